//! Version exchange and enrolment.
use crate::error::WireError;
use crate::id::{AccountId, Name};
use crate::token::{Role, TokenSecret};
use serde::{Deserialize, Serialize};

/// The protocol version this crate speaks.
pub const PROTOCOL_VERSION: u16 = 6;
/// The oldest version it still understands.
pub const OLDEST_PROTOCOL_VERSION: u16 = 6;

/// First message on the first stream, from the side that dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest version the sender speaks.
    pub version: u16,
    /// Oldest version the sender speaks.
    pub oldest: u16,
    /// Optional abilities, one bit each; none are defined yet.
    pub features: u64,
    /// Name and version of the software, for people: `wherry 0.1.0`.
    pub software: String,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// Go on in this version, with these features.
    Accepted {
        /// The version both will speak.
        version: u16,
        /// The features both have.
        features: u64,
        /// Name and version of the answering software.
        software: String,
        /// What the dialling key is here; `None` on the enrolment port.
        role: Option<Role>,
    },
    /// No; the session ends.
    Refused(WireError),
}

/// First message on a stream of the enrolment port: claim a one-time token for the key that dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// What the claimer believes the token makes it.
    pub role: Role,
    /// The one-time secret.
    pub secret: TokenSecret,
    /// A name for people: user@laptop, or the board's host name.
    pub label: Name,
}

/// The answer to [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// The key is known from now on. Repeating the claim with the same key gives the same answer.
    Enrolled {
        /// The new account.
        account: AccountId,
        /// Its role.
        role: Role,
        /// What the cluster calls itself.
        location: Name,
    },
    /// The token does not hold.
    Refused(WireError),
}
