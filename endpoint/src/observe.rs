//! What the endpoint tells about its work.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::refusal::Refusal;

/// How a request was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// One request, when it is over.
#[derive(Clone, Debug)]
pub struct Access {
    /// The client.
    pub client: SocketAddr,
    /// As the client named it, lower-case; empty where it is not known.
    pub host: String,
    /// Empty where the head was refused before it was read.
    pub method: String,
    /// As it came, without the query, which may be confidential.
    pub path: String,
    /// The status sent; `None` when the client went before there was one.
    pub status: Option<u16>,
    /// Bytes of the request body; of an upgraded connection all that the client sent.
    pub received: u64,
    /// Bytes of the response body, likewise.
    pub sent: u64,
    /// From the end of the request's head to the end of the response's body.
    pub duration: Duration,
    /// Who answered.
    pub backend: Option<u64>,
    /// How the client's connection is encrypted.
    pub encryption: Encryption,
    /// HTTP/2 rather than HTTP/1.
    pub http2: bool,
    /// Why it was not served.
    pub refusal: Option<Refusal>,
    /// Whether the response was sent to its end, as far as we can tell.
    pub complete: bool,
}

/// Hears of every request. Called on the endpoint's own tasks: it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A request is over.
    fn access(&self, access: &Access);

    /// A connection, or one request (then [`Self::access`] tells too), was refused.
    fn refused(&self, client: SocketAddr, refusal: Refusal);
}

/// Counts, and nothing more.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Counters {
    /// Requests that are over.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Connections and requests that were refused for this reason.
    #[must_use]
    pub fn refusals(&self, refusal: Refusal) -> u64 {
        self.refusals.get(refusal as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Observer for Counters {
    fn access(&self, _: &Access) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, _: SocketAddr, refusal: Refusal) {
        if let Some(count) = self.refusals.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_counter_and_its_sentence() {
        let counters = Counters::default();
        for (number, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, number);
            counters.refused(SocketAddr::from(([127, 0, 0, 1], 1)), *refusal);
            assert_eq!(counters.refusals(*refusal), 1);
            assert!(refusal.text().trim_end().ends_with('.'));
        }
    }
}
