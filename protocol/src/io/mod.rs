//! Sessions over any `AsyncRead + AsyncWrite` of the futures crates: handshake, sealed bytes, streams, messages.
//!
//! ```text
//! connect / accept   handshake              → Secure<T>: a sealed byte pipe
//! multiplex          streams (yamux)        → Mux to open, Incoming to accept, Driver to spawn
//! hello, read_hello, answer_hello           first stream: versions
//! send / recv        messages on a stream; send_datagram / recv_datagram
//! ```
//!
//! There is no runtime in here, so there are no timers: whoever calls [`connect`], [`accept`], [`hello`] and
//! [`read_hello`] bounds them with [`crate::Limits::handshake_seconds`].
mod connect;
mod datagram;
mod error;
mod hello;
mod message;
mod mux;
mod secure;
mod stream;
mod watch;

pub use crate::session::Side;
pub use connect::{ServerKeys, accept, accept_with, connect, connect_with, refuse_busy};
pub use datagram::{MAX_DATAGRAM_BYTES, recv_datagram, send_datagram};
pub use error::SessionError;
pub use hello::{answer_hello, hello, read_hello};
pub use message::{recv, send};
pub use mux::{Driver, Incoming, Mux, multiplex};
pub use secure::Secure;
pub use stream::Stream;
pub use watch::HungUp;

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds since some moment in this process: the clock that the layers below ask for.
fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}
