//! Every bound of the endpoint.
use std::time::Duration;

/// Every bound of the endpoint: its unit, and what it is for. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and header fields of one request, also the decoded header list of HTTP/2: 431 or 414 above.
    pub head_bytes: usize,
    /// Header fields of one request: 431 above.
    pub head_fields: usize,
    /// Connections from clients at once: closed at once above, so memory is bounded.
    pub connections: usize,
    /// Of those, connections from one IPv4 address, or one IPv6 /64, which is what one customer gets.
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
    /// A body, either way, that makes no progress for so long is given up.
    pub progress_timeout: Duration,
    /// An upgraded connection (WebSocket) that is silent both ways for so long is closed.
    pub tunnel_timeout: Duration,
    /// Concurrent requests of one HTTP/2 connection.
    pub streams: u32,
    /// Streams that one HTTP/2 client may reset before we have handled them (rapid reset, CVE-2023-44487).
    pub pending_resets: usize,
    /// Streams of one HTTP/2 connection that end with an error of the client's (CVE-2025-8671).
    pub error_resets: usize,
    /// Body bytes that one HTTP/2 stream may send ahead of the backend; a connection has four times that.
    pub stream_window: u32,
    /// Requests in flight of one host: 503 above.
    pub requests_per_host: usize,
    /// Idle connections kept per backend.
    pub idle_per_backend: usize,
    /// Kept for this long; less than what servers usually grant, or requests run into connections that just close.
    pub backend_idle_timeout: Duration,
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
            connections_per_client: 256,
            head_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            connect_timeout: Duration::from_secs(3),
            first_byte_timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(60),
            tunnel_timeout: Duration::from_secs(3600),
            streams: 100,
            pending_resets: 20,
            error_resets: 100,
            stream_window: 256 * 1024,
            requests_per_host: 1024,
            idle_per_backend: 64,
            backend_idle_timeout: Duration::from_secs(30),
            attempts: 3,
            set_aside: (Duration::from_secs(1), Duration::from_secs(30)),
            drain: Duration::from_secs(30),
        }
    }
}
