//! Every bound of the endpoint.
use std::time::Duration;

/// What is ready to be sent of each HTTP/2 stream while the client takes nothing.
pub(crate) const STREAM_SEND_BUFFER: usize = 16 * 1024;
/// Bytes of a response's head, and of one piece of its body.
pub(crate) const RESPONSE_BUFFER: usize = 32 * 1024;

/// Every bound of the endpoint: its unit, and what it is for. Sizes are bytes.
///
/// Memory in the worst case follows from them. A request over HTTP/2 whose client and backend take nothing holds 16 KiB of head,
/// 128 KiB of its body, and 80 KiB of the response (the 16 KiB that HTTP/2 buffers of a stream, one piece of 32 KiB above that, and
/// one in hand); its connection to the backend buffers 64 KiB more. It counts until the last of these bytes is written: 2048
/// requests take 576 MiB, those of one customer 54 MiB and those of one client 27 MiB. A client's connection takes 144 KiB beside
/// its requests, mostly for TLS: 576 MiB for 4096 of them, 14 MiB for those of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and header fields of one request, also the decoded header list of HTTP/2: 431 or 414 above.
    pub head_bytes: usize,
    /// Header fields of one request: 431 above.
    pub head_fields: usize,
    /// Connections from clients at once: closed at once above, so memory is bounded.
    pub connections: usize,
    /// Of those, connections from one client: an IPv4 address, or an IPv6 /64, which is what one household gets. Many get a /56: what
    /// all clients of one have together is twice that, of this and of the other bounds per client.
    pub connections_per_client: usize,
    /// From the first byte of a connection or request to the end of its head (slowloris): 408 after.
    pub head_timeout: Duration,
    /// For the whole TLS handshake.
    pub handshake_timeout: Duration,
    /// A client's connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// For [`Backends::connect`](crate::Backends::connect).
    pub connect_timeout: Duration,
    /// From the last progress of the request body to the head of the response: 504 after.
    pub first_byte_timeout: Duration,
    /// A body, either way, that makes no progress for so long is given up; so is a peer that takes nothing of what we send.
    pub progress_timeout: Duration,
    /// A request body may be waited for so long in all; [`Self::body_rate`] bytes of it make good for a second.
    pub body_grace: Duration,
    /// Bytes a second: less than any line that people use, more than bytes sent to keep a connection occupied.
    pub body_rate: u64,
    /// An upgraded connection (WebSocket) that is silent both ways for so long is closed.
    pub tunnel_timeout: Duration,
    /// Concurrent requests of one HTTP/2 connection.
    pub streams: u32,
    /// Streams that one HTTP/2 client may reset before we have handled them (rapid reset, CVE-2023-44487).
    pub pending_resets: usize,
    /// Streams of one HTTP/2 connection that end with an error of the client's (CVE-2025-8671).
    pub error_resets: usize,
    /// Body bytes that one HTTP/2 stream may send ahead of the backend; a connection has twice that.
    pub stream_window: u32,
    /// Requests in flight, which bounds memory: 503 above.
    pub requests: usize,
    /// Of those, requests for hosts of one customer: 503 above. Below what a customer may have of connections to its backends, which
    /// for Wherry's accounts are 256: requests must not end in those being used up, which looks as if backends failed.
    pub requests_per_customer: usize,
    /// Of those, requests for one host: 503 above, and the customer's other hosts go on.
    pub requests_per_host: usize,
    /// Requests in flight of one client: 429 above, so that nobody takes all that a host has.
    pub requests_per_client: usize,
    /// Of a host's requests, upgraded connections (WebSocket), which may last for days: 503 above.
    pub tunnels_per_host: usize,
    /// Of a client's requests, upgraded connections: 429 above.
    pub tunnels_per_client: usize,
    /// Idle connections kept per backend.
    pub idle_per_backend: usize,
    /// Kept for this long; less than the five seconds that common servers grant, or requests run into connections that just close.
    pub backend_idle_timeout: Duration,
    /// A request that may not be sent twice gets no connection that has been idle for longer: it would be lost with it.
    pub unrepeatable_idle_timeout: Duration,
    /// A request is tried at so many backends at most.
    pub attempts: usize,
    /// First and longest time for which a backend that cannot be reached is set aside.
    pub set_aside: (Duration, Duration),
    /// After shutdown, requests in flight have so long to finish.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            head_fields: 100,
            connections: 4096,
            connections_per_client: 96,
            head_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            connect_timeout: Duration::from_secs(3),
            first_byte_timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(60),
            body_grace: Duration::from_secs(300),
            body_rate: 1024,
            tunnel_timeout: Duration::from_secs(3600),
            streams: 32,
            pending_resets: 20,
            error_resets: 100,
            stream_window: 128 * 1024,
            requests: 2048,
            requests_per_customer: 192,
            requests_per_host: 160,
            requests_per_client: 96,
            tunnels_per_host: 128,
            tunnels_per_client: 48,
            idle_per_backend: 64,
            backend_idle_timeout: Duration::from_secs(4),
            unrepeatable_idle_timeout: Duration::from_secs(1),
            attempts: 3,
            set_aside: (Duration::from_secs(1), Duration::from_secs(30)),
            drain: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_has_all_of_a_host_and_no_host_all_of_its_customer() {
        let limits = Limits::default();
        let rising = [
            limits.tunnels_per_client,
            limits.requests_per_client,
            limits.tunnels_per_host,
            limits.requests_per_host,
            limits.requests_per_customer,
            limits.requests,
        ];
        assert!(rising.is_sorted_by(|less, more| less < more), "{rising:?}");
        assert!(limits.connections_per_client < limits.connections);
        assert!(limits.unrepeatable_idle_timeout < limits.backend_idle_timeout);
        assert!(limits.backend_idle_timeout < Duration::from_secs(5), "what common servers grant");
    }
}
