//! Identifiers. Whatever can restart is named by an id *and* a generation, so that a late word about
//! a previous life is recognisable.
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An identifier text that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A name that breaks the rule of [`Name`].
    #[error(
        "'{0}' is not a valid name: use 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit"
    )]
    Name(String),
    /// A digest that is not `sha256:` and 64 hexadecimal digits.
    #[error("'{0}' is not a digest: expected sha256: and 64 hexadecimal digits")]
    Digest(String),
    /// A container id that is not `c` and a decimal number.
    #[error("'{0}' is not a container id: expected c and a number, as in c12")]
    Container(String),
}

/// An account: one person or machine that may ask the broker for things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId(pub u32);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}", self.0)
    }
}

/// A board's number in its cluster, 1 to 254: which part of the overlay its containers have, see [`Overlay`](crate::Overlay).
/// The broker itself is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeIndex(pub u8);

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A container, for the life of the cluster. The broker counts them up and never reuses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub u64);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.strip_prefix('c')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(ContainerId)
            .ok_or_else(|| IdError::Container(text.into()))
    }
}

/// How many times a container has been started; 1 is the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u32);

/// One life of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerRef {
    /// Which container.
    pub id: ContainerId,
    /// Which of its lives.
    pub generation: Generation,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.generation.0)
    }
}

/// A name that people choose: of a container, an image repository's short form, a volume, a location, an account.
///
/// 1 to 63 bytes of `a-z 0-9 - _ .`, starting with a letter or digit; so it is always safe as one path
/// component and as a DNS label's raw material.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes: one DNS label (RFC 1035 §2.3.4).
    pub const MAX_BYTES: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = text.bytes();
        let head_ok = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let tail_ok = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if head_ok && tail_ok && text.len() <= Self::MAX_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The SHA-256 of a blob: a layer, a configuration or a manifest (OCI image-spec, descriptor.md).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm: the blob's file name.
    #[must_use]
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first 12 hexadecimal digits, as people are shown them.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.short())
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.strip_prefix("sha256:")
            .and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Digest)
            .ok_or_else(|| IdError::Digest(text.chars().take(80).collect()))
    }
}

// As text where people read it (JSON), as 32 bytes on the wire.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Digest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_path_components() {
        for good in ["web", "0", "a-b_c.d", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "é", &"x".repeat(64), "a\0"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_hostile_name_is_refused_on_the_wire() {
        let bytes = postcard::to_stdvec("../../etc").unwrap();
        assert!(postcard::from_bytes::<Name>(&bytes).is_err());
    }

    #[test]
    fn digest_text_and_wire_forms() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert_eq!(postcard::to_stdvec(&digest).unwrap(), digest.0);
        for bad in ["sha256:", "sha512:00", &text[..70], &text.to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err());
        }
    }

    #[test]
    fn container_id_text() {
        assert_eq!("c12".parse::<ContainerId>().unwrap(), ContainerId(12));
        for bad in ["12", "c", "c+1", "c-1", "c1x", "c99999999999999999999999"] {
            assert!(bad.parse::<ContainerId>().is_err());
        }
    }
}
