//! Long-term keys: a public key is an identity.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroize;

/// A source of unpredictable bytes, handed in from outside: the operating system's, or a seeded one in tests.
pub trait Random: Send {
    /// Fills all of `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// The operating system's generator (getrandom(2)).
#[cfg(feature = "io")]
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandom;

#[cfg(feature = "io")]
impl Random for OsRandom {
    /// Panics if the kernel has no randomness, which Linux rules out once getrandom(2) has returned at boot.
    fn fill(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("getrandom(2) fills the buffer");
    }
}

/// A key text that could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key: expected 52 base32 characters")]
pub struct KeyError;

/// An X25519 public key (RFC 7748): the identity of an account, a node or a broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The first 8 characters of the text form, as people are shown them.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

/// An X25519 secret key. Wiped from memory when dropped, never printed.
#[derive(Clone)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// A new key from `random`.
    pub fn generate(random: &mut dyn Random) -> Self {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        Self(bytes)
    }

    /// The key whose 32 bytes these are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for storing in a file of mode 0600.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The identity that belongs to this key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(crypto_box::SecretKey::from(self.0).public_key().to_bytes())
    }

    /// The text form, for a file of mode 0600: 52 base32 characters.
    #[must_use]
    pub fn to_text(&self) -> String {
        encode(&self.0)
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

fn encode(bytes: &[u8; 32]) -> String {
    data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = data_encoding::BASE32_NOPAD_NOCASE.decode(text.trim().as_bytes()).map_err(|_| KeyError)?;
    bytes.try_into().map_err(|_| KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_secrecy() {
        let secret = SecretKey::generate(&mut OsRandom);
        let public = secret.public();
        assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
        assert_eq!(secret.to_text().parse::<SecretKey>().unwrap().public(), public);
        assert_eq!(format!("{secret:?}"), "SecretKey(..)");
        assert_eq!("short".parse::<PublicKey>(), Err(KeyError));
    }
}
