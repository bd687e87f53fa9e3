//! The account of one request, which is told when it is over, however it ends.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Instant;

use crate::clients::Place;
use crate::guard::Link;
use crate::observe::{Access, Observer};
use crate::refusal::Refusal;

/// Counts one more for as long as it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    /// `None` when there are `limit` already.
    pub(crate) fn below(limit: usize, count: &Arc<AtomicUsize>) -> Option<Self> {
        let one = Self(Arc::clone(count));
        // Counted first: two that come at once must not both be the last.
        (count.fetch_add(1, Ordering::Relaxed) < limit).then_some(one)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's places among those that are bounded.
#[derive(Debug)]
pub(crate) struct Held {
    _client: Place,
    _others: [InFlight; 3],
}

impl Held {
    pub(crate) fn new(client: Place, others: [InFlight; 3]) -> Self {
        Self { _client: client, _others: others }
    }
}

/// One request until its response is sent.
pub(crate) struct Ticket {
    pub(crate) access: Access,
    /// Its places, once it has them.
    pub(crate) held: Option<Arc<Held>>,
    observer: Arc<dyn Observer>,
    begun: Instant,
    link: Option<Arc<Link>>,
    busy: Arc<AtomicUsize>,
}

impl Ticket {
    /// `busy` counts the requests of the connection.
    pub(crate) fn new(
        access: Access,
        observer: Arc<dyn Observer>,
        link: Option<Arc<Link>>,
        busy: &Arc<AtomicUsize>,
    ) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self { access, held: None, observer, begun: Instant::now(), link, busy: Arc::clone(busy) }
    }

    /// It is not served, and why.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.access.refusal = Some(refusal);
        self.observer.refused(self.access.client, refusal);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.end();
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
        self.access.duration = self.begun.elapsed();
        self.observer.access(&self.access);
    }
}
