//! What can go wrong between a laptop and its cluster, each in one sentence that says what to do.
use crate::address::{Address, AddressError};
use crate::engine::EngineError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use std::io;
use wherry_images::archive::ArchiveError;
use wherry_protocol::io::SessionError;
use wherry_protocol::message::ImageName;
use wherry_protocol::{Digest, ErrorCode, Role, WireError};

/// Why something asked of a cluster did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stored locations.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A text that is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A text that names nobody a connection could be about.
    #[error("'{0}' is neither a container nor label:KEY=VALUE nor service:NAME")]
    Party(String),
    /// A proxy was asked for something outside the cluster.
    #[error("'{0}' is neither a container nor a service of yours, and the proxy leads nowhere else")]
    Elsewhere(String),
    /// What a program says to the proxy makes no sense.
    #[error("this is no SOCKS5 connection: {0}")]
    Proxy(String),
    /// The token does not say where the broker is, and nobody else did.
    #[error("the token does not say where the broker is: add --address <host>")]
    NoAddress,
    /// A token for a board was given to a person.
    #[error("this is a {0} token: it belongs into a board's wherry.toml, not to `wherry join`")]
    NotForPeople(Role),
    /// No connection.
    #[error(
        "cannot reach the broker at {host} port {port} ({reason}): check that it is switched on, that the address is right and \
         that no firewall is between"
    )]
    Unreachable {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// The system's words, or `no answer within 10 s`.
        reason: String,
    },
    /// Somebody else answers at the broker's address.
    #[error(
        "whoever answers at {0} does not hold the broker's key: it is another broker or an impostor; \
         if the broker was set up anew, remove this location and join again with a new token"
    )]
    WrongKey(Address),
    /// Something that is not a broker answers.
    #[error("what answers at {host} port {port} is not a Wherry broker: {reason}")]
    NotABroker {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What it did.
        reason: String,
    },
    /// The broker speaks another version of the protocol.
    #[error("{0}")]
    Version(String),
    /// The broker does not know this key.
    #[error("the broker at {address} does not accept this computer's key: {message}")]
    NotAccepted {
        /// Where.
        address: Address,
        /// What it said.
        message: String,
    },
    /// The broker, or the node behind it, said no.
    #[error("{0}")]
    Refused(WireError),
    /// The session ended in the middle of something.
    #[error("lost the connection to the broker at {address}: {reason}")]
    Lost {
        /// Where.
        address: Address,
        /// How.
        reason: String,
    },
    /// An answer that does not belong to the question.
    #[error("the broker answered '{0}' with something else: its software does not fit this one's")]
    Unexpected(&'static str),
    /// An image archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file here for what is on its way.
    #[error("cannot keep what the node sends in a temporary file: {0}")]
    Spool(#[source] io::Error),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A container engine of this computer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No image is meant.
    #[error("no image is called '{0}', nor does an id begin so: list them with `wherry images`")]
    NoImage(String),
    /// Several images are meant.
    #[error("'{0}' may mean several images ({1}): say which by name")]
    SeveralImages(String, String),
    /// A blob that is another one.
    #[error("the broker sent something else than {0}: its disk or its software is damaged")]
    WrongBlob(Digest),
    /// A configuration that makes no sense.
    #[error("the configuration of image '{0}' cannot be understood: {1}")]
    Configuration(ImageName, String),
    /// A local port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

impl ClientError {
    /// What kind of refusal it was, if the broker refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the session broke, so that a new one may do better.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Whether nobody answers, or not yet, as while a broker boots.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotABroker { .. })
    }

    /// A failure while connecting to `port` of `address`.
    pub(crate) fn connecting(address: &Address, port: u16, error: SessionError) -> Self {
        let host = address.host().to_owned();
        match error {
            SessionError::WrongServerKey => Self::WrongKey(address.clone()),
            SessionError::Version { message } => Self::Version(message),
            SessionError::Refused(error) if error.code == ErrorCode::Unauthenticated => {
                Self::NotAccepted { address: address.clone(), message: error.message }
            }
            SessionError::Refused(error) => Self::Refused(error),
            SessionError::Io(error) => Self::Unreachable { host, port, reason: error.to_string() },
            error @ (SessionError::Closed
            | SessionError::Garbage { .. }
            | SessionError::TooLarge { .. }
            | SessionError::TooManyStreams { .. }) => {
                Self::NotABroker { host, port, reason: error.to_string() }
            }
        }
    }

    /// A failure on a session that was up.
    pub(crate) fn on_session(address: &Address, error: SessionError) -> Self {
        match error {
            SessionError::Refused(error) => Self::Refused(error),
            SessionError::Version { message } => Self::Version(message),
            SessionError::TooManyStreams { limit } => {
                let text = format!("this session has {limit} streams open, the limit: end some or wait");
                Self::Refused(WireError::new(ErrorCode::Busy, text))
            }
            error @ (SessionError::WrongServerKey
            | SessionError::Io(_)
            | SessionError::Closed
            | SessionError::Garbage { .. }
            | SessionError::TooLarge { .. }) => {
                Self::Lost { address: address.clone(), reason: error.to_string() }
            }
        }
    }
}
