//! Why a request or a connection was not served, and what the client is told.
use hyper::StatusCode;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:expr, $text:literal;)*) => {
        /// Why a request or a connection was not served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The status that a client gets; `None` where the connection ends before a response is possible.
            #[must_use]
            pub const fn status(self) -> Option<StatusCode> {
                match self { $(Self::$name => $status,)* }
            }

            /// One sentence for the client.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

refusals! {
    /// The bytes are not one unambiguous HTTP request (RFC 9112).
    Malformed = Some(StatusCode::BAD_REQUEST), "The request is not well-formed HTTP.\n";
    /// `Content-Length` and `Transfer-Encoding` do not give one length (RFC 9112 §6.3).
    AmbiguousLength = Some(StatusCode::BAD_REQUEST), "The length of the request body is ambiguous.\n";
    /// No `Host`, several, one that is no host name, or one that contradicts the target.
    BadHost = Some(StatusCode::BAD_REQUEST), "The request must name exactly one host.\n";
    /// The target is not a path, or the method is `CONNECT`.
    BadTarget = Some(StatusCode::BAD_REQUEST), "The request target must be a path.\n";
    /// Access rules cannot be applied to a path that servers read in different ways.
    AmbiguousPath = Some(StatusCode::BAD_REQUEST), "The path contains an ambiguous segment.\n";
    /// No access rule allows it.
    Forbidden = Some(StatusCode::FORBIDDEN), "The rules of this host do not allow this request.\n";
    /// No such virtual host.
    UnknownHost = Some(StatusCode::NOT_FOUND), "No such host is served here.\n";
    /// The host has no cluster for this path.
    NoRoute = Some(StatusCode::NOT_FOUND), "Nothing is served at this path.\n";
    /// The head was not complete in time.
    HeadTimeout = Some(StatusCode::REQUEST_TIMEOUT), "The request head did not arrive in time.\n";
    /// The body made no progress, or hardly any.
    BodyTimeout = Some(StatusCode::REQUEST_TIMEOUT), "The request body did not arrive in time.\n";
    /// The body is longer than the host allows.
    BodyTooLarge = Some(StatusCode::PAYLOAD_TOO_LARGE), "The request body is larger than this host allows.\n";
    /// The request line alone is longer than a head may be.
    TargetTooLong = Some(StatusCode::URI_TOO_LONG), "The request target is too long.\n";
    /// An expectation other than `100-continue`.
    Expectation = Some(StatusCode::EXPECTATION_FAILED), "Only 100-continue can be expected.\n";
    /// The host named is not the one the TLS connection was made for.
    Misdirected = Some(StatusCode::MISDIRECTED_REQUEST), "This connection was made for another host.\n";
    /// Too many bytes or lines of header fields.
    HeadTooLarge = Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), "The header fields of the request are too large.\n";
    /// The client has as many requests in flight as it may.
    ClientBusy = Some(StatusCode::TOO_MANY_REQUESTS), "Too many requests in flight from your address; try again shortly.\n";
    /// The backend broke off before it answered, or its answer is not HTTP.
    BackendFailed = Some(StatusCode::BAD_GATEWAY), "The backend did not give a valid response.\n";
    /// The host, or all hosts together, have as many requests in flight or connections to backends as they may.
    HostBusy = Some(StatusCode::SERVICE_UNAVAILABLE), "This host has too many requests in flight; try again shortly.\n";
    /// No backend can be reached.
    NoBackend = Some(StatusCode::SERVICE_UNAVAILABLE), "No backend of this host is available; try again shortly.\n";
    /// The backend did not answer in time.
    BackendTimeout = Some(StatusCode::GATEWAY_TIMEOUT), "The backend did not answer in time.\n";
    /// As many connections as may be.
    Connections = None, "Too many connections.";
    /// As many connections from one client as may be.
    ClientConnections = None, "Too many connections from one address.";
    /// From an address that stands for a container, but none is known there.
    UnknownCaller = None, "Nobody is known at this address.";
    /// TLS for a name without a certificate here, or without a name.
    UnknownServerName = None, "No certificate for this name.";
    /// The TLS handshake failed or took too long.
    Handshake = None, "The TLS handshake failed.";
}
