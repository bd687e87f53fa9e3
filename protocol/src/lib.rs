//! What laptop, broker and node say to one another, and how it is protected on the way.
//!
//! ```text
//! message   requests, replies, desired state, reports       (postcard, pinned by tests)
//! io        streams over any AsyncRead/AsyncWrite: handshake, sealed bytes, yamux, one request per stream
//! session   sealed records with counter nonces and rekeying \  sans-IO: bytes in, bytes out,
//! handshake HELLO → WELCOME → INITIATE → READY              |  no clock, no socket, no runtime
//! discovery which broker of a LAN holds a key               /
//! key, token, id, limits, error, text                        the vocabulary
//! ```
//!
//! The crate has no clock, no runtime and no unsafe code; time and randomness are passed in.
#![forbid(unsafe_code)]

pub mod constraint;
mod crypto;
pub mod discovery;
pub mod error;
pub mod handshake;
pub mod id;
#[cfg(feature = "io")]
pub mod io;
pub mod key;
pub mod limits;
pub mod message;
pub mod overlay;
pub mod policy;
pub mod prefix;
pub mod session;
pub mod text;
pub mod token;

pub use constraint::Constraint;
pub use error::{ErrorCode, WireError};
pub use id::{AccountId, ContainerId, ContainerRef, Digest, Generation, Name, NodeIndex};
#[cfg(feature = "io")]
pub use key::OsRandom;
pub use key::{PublicKey, Random, SecretKey};
pub use limits::Limits;
pub use overlay::{Overlay, OverlayError};
pub use prefix::{Prefix, Prefix6, PrefixError};
pub use token::{Role, Token};
