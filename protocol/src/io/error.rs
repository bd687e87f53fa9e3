//! What can go wrong with a session.
use crate::error::WireError;
use crate::handshake::HandshakeError;
use crate::session::RecordError;
use std::io;

/// Why a session, a stream or a message failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The transport failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// The other end is not the broker whose key we have.
    #[error(
        "the peer does not hold the expected key: it is another broker, or somebody pretends to be it; \
         if the broker was set up anew, ask its administrator for a new token and join again"
    )]
    WrongServerKey,
    /// The other end said no.
    #[error("{0}")]
    Refused(#[source] WireError),
    /// No version of the protocol is spoken by both ends.
    #[error("{message}")]
    Version {
        /// What to do, for people.
        message: String,
    },
    /// The peer does not keep to the protocol; `what` says where.
    #[error("the peer does not keep to the protocol: {what}")]
    Garbage {
        /// In a few words.
        what: String,
    },
    /// The session has ended, in order or because the connection was cut.
    #[error("the connection was closed by the other end")]
    Closed,
    /// A message is larger than its limit.
    #[error("a message of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Announced or made.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
    /// As many streams are open as the limit allows.
    #[error("{limit} requests are already under way on this session: wait for one to end")]
    TooManyStreams {
        /// See [`crate::Limits::streams`].
        limit: usize,
    },
}

impl SessionError {
    pub(crate) fn garbage(what: impl Into<String>) -> Self {
        Self::Garbage { what: what.into() }
    }
}

impl From<HandshakeError> for SessionError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::WrongServerKey => Self::WrongServerKey,
            HandshakeError::Generation { .. } => Self::Version { message: error.to_string() },
            HandshakeError::Busy => Self::Refused(WireError::new(crate::ErrorCode::Busy, error.to_string())),
            HandshakeError::NotWherry
            | HandshakeError::Cookie
            | HandshakeError::Forged
            | HandshakeError::Malformed => Self::garbage(error.to_string()),
        }
    }
}

impl From<RecordError> for SessionError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Truncated | RecordError::Closed => Self::Closed,
            RecordError::TooLarge { .. }
            | RecordError::Forged { .. }
            | RecordError::Malformed
            | RecordError::Rekey => Self::garbage(error.to_string()),
        }
    }
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        // Errors of the record layer travel through io::Error; they come out as what they were.
        if let Some(record) = error.get_ref().and_then(|inner| inner.downcast_ref::<RecordError>()) {
            return (*record).into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::WriteZero
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<yamux::ConnectionError> for SessionError {
    fn from(error: yamux::ConnectionError) -> Self {
        match error {
            yamux::ConnectionError::Io(error) => error.into(),
            yamux::ConnectionError::Decode(yamux::FrameDecodeError::Io(error)) => error.into(),
            yamux::ConnectionError::Closed => Self::Closed,
            other => Self::garbage(other.to_string()),
        }
    }
}

/// A record error as an io::Error, for the traits that know no other.
pub(super) fn to_io(error: RecordError) -> io::Error {
    let kind = match error {
        RecordError::Truncated => io::ErrorKind::UnexpectedEof,
        RecordError::Closed => io::ErrorKind::BrokenPipe,
        RecordError::Forged { .. }
        | RecordError::TooLarge { .. }
        | RecordError::Malformed
        | RecordError::Rekey => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}
