//! Errors as they cross the wire: a stable number and one sentence for a person.
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal,)*) => {
        /// What kind of failure it was. The numbers are part of the protocol and never change meaning;
        /// a number from a newer peer survives as [`ErrorCode::Unknown`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
            /// A code this version has no name for.
            Unknown(u16),
        }

        impl From<u16> for ErrorCode {
            fn from(number: u16) -> Self {
                match number { $($number => Self::$variant,)* other => Self::Unknown(other) }
            }
        }

        impl From<ErrorCode> for u16 {
            fn from(code: ErrorCode) -> u16 {
                match code { $(ErrorCode::$variant => $number,)* ErrorCode::Unknown(other) => other }
            }
        }

        #[cfg(test)]
        const ALL: &[(ErrorCode, u16)] = &[$((ErrorCode::$variant, $number),)*];
    };
}

error_codes! {
    /// A fault on the answering side that the asker cannot mend.
    Internal = 1,
    /// The request makes no sense (a value out of range, a stream used wrongly).
    Invalid = 2,
    /// The key is unknown here: it never enrolled, or was revoked.
    Unauthenticated = 3,
    /// The account may not do this.
    Forbidden = 4,
    /// No such image, container, node, volume, token or account, or none that this account may see.
    NotFound = 5,
    /// The name is taken.
    AlreadyExists = 6,
    /// Not possible in the present state (exec in a stopped container, say).
    WrongState = 7,
    /// No node has room, or the named node cannot take it.
    NoCapacity = 8,
    /// The node is not connected.
    NodeUnreachable = 9,
    /// The disk of the broker or of the node is full.
    DiskFull = 10,
    /// Bytes do not match their digest.
    DigestMismatch = 11,
    /// The image is not one, or asks for what is refused (path escapes, device nodes, another platform).
    BadImage = 12,
    /// The container could not be started; the message names the step and the system's error.
    StartFailed = 13,
    /// The token is wrong, used or expired. One code, so that nothing is learnt by guessing.
    BadToken = 14,
    /// The peer speaks another version of the protocol.
    Version = 15,
    /// Too many requests or too much unauthenticated work; try again later.
    Busy = 16,
    /// Something is larger than its limit.
    TooLarge = 17,
    /// The stored state is damaged; it is left as it is.
    CorruptStore = 18,
    /// Took longer than its deadline.
    Timeout = 19,
    /// Still used by something else (an image by a container).
    InUse = 20,
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        u16::from(*self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from)
    }
}

/// A refusal or failure sent to the asking side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What kind.
    pub code: ErrorCode,
    /// One sentence: what failed, with which value, and what to do next. Lower case, no trailing period.
    pub message: String,
}

impl WireError {
    /// An error of kind `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_unknown_ones_survive() {
        for (position, (code, number)) in ALL.iter().enumerate() {
            assert_eq!(usize::from(*number), position + 1);
            assert_eq!(u16::from(*code), *number);
            assert_eq!(ErrorCode::from(*number), *code);
        }
        let bytes = postcard::to_stdvec(&ErrorCode::Unknown(999)).unwrap();
        assert_eq!(postcard::from_bytes::<ErrorCode>(&bytes).unwrap(), ErrorCode::Unknown(999));
    }

    #[test]
    fn wire_bytes_are_pinned() {
        let error = WireError::new(ErrorCode::NotFound, "no");
        assert_eq!(postcard::to_stdvec(&error).unwrap(), [5, 2, b'n', b'o']);
    }
}
