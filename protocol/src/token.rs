//! Enrolment tokens: `wry1-<role>-<base32>[@host[:port]]`.
//!
//! A token carries the broker's public key, so the first byte sent to the broker is already authenticated, and a
//! one-time secret. The broker keeps only the secret's hash.
use crate::id::Digest;
use crate::key::PublicKey;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the enrolled key may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A person or a program: sees and touches its own containers.
    User,
    /// May also see everything, invite and remove.
    Admin,
    /// A board that runs containers.
    Node,
}

impl Role {
    /// The word used in tokens, configuration and output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        [Self::User, Self::Admin, Self::Node]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(TokenError::Role)
    }
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Wrong prefix or shape.
    #[error("not a token: expected wry1-<role>-<characters>, as `wherry token create` prints it")]
    Shape,
    /// The role is not one of user, admin and node.
    #[error("the token's role is not one of user, admin and node")]
    Role,
    /// The checksum is wrong: a character is missing or mistyped.
    #[error("the token is damaged: a character is missing or wrong, copy it again")]
    Checksum,
}

/// The secret of a token: whoever shows it first becomes what the token says.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSecret(pub [u8; 16]);

impl TokenSecret {
    /// What the broker keeps instead of the secret.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// A parsed token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it makes of the key that claims it.
    pub role: Role,
    /// The broker's identity.
    pub broker: PublicKey,
    /// The one-time secret.
    pub secret: TokenSecret,
    /// Where the broker is, if whoever made the token knew: `host` or `host:port` of the session port.
    pub address: Option<String>,
}

const PREFIX: &str = "wry1-";
const CHECKSUM_BYTES: usize = 4;
/// Longest token text accepted, in bytes: key and secret take 84, a host name at most 253.
const MAX_TEXT_BYTES: usize = 400;

impl Token {
    fn checksum(role: Role, body: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut input = role.as_str().as_bytes().to_vec();
        input.extend_from_slice(body);
        let digest = Digest::of(&input).0;
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = self.broker.0.to_vec();
        body.extend_from_slice(&self.secret.0);
        let checksum = Self::checksum(self.role, &body);
        body.extend_from_slice(&checksum);
        let text = data_encoding::BASE32_NOPAD.encode(&body).to_ascii_lowercase();
        write!(f, "{PREFIX}{}-{text}", self.role)?;
        match &self.address {
            Some(address) => write!(f, "@{address}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenError::Shape);
        }
        let (text, address) = match text.split_once('@') {
            Some((_, "")) => return Err(TokenError::Shape),
            Some((token, address)) => (token, Some(address.to_owned())),
            None => (text, None),
        };
        let (role, body) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(TokenError::Shape)?;
        let role: Role = role.parse()?;
        let bytes =
            data_encoding::BASE32_NOPAD_NOCASE.decode(body.as_bytes()).map_err(|_| TokenError::Checksum)?;
        let (body, checksum) =
            bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM_BYTES)).ok_or(TokenError::Checksum)?;
        if checksum != Self::checksum(role, body) {
            return Err(TokenError::Checksum);
        }
        let (key, secret) = body.split_at_checked(32).ok_or(TokenError::Checksum)?;
        Ok(Self {
            role,
            broker: PublicKey(key.try_into().map_err(|_| TokenError::Checksum)?),
            secret: TokenSecret(secret.try_into().map_err(|_| TokenError::Checksum)?),
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Token {
        Token {
            role: Role::User,
            broker: PublicKey([7; 32]),
            secret: TokenSecret([9; 16]),
            address: Some("192.168.1.10".into()),
        }
    }

    #[test]
    fn text_is_pinned() {
        let text = sample().to_string();
        assert_eq!(
            text,
            "wry1-user-a4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqscijbeeqscijbeeqscijbeeqstkble6a@192.168.1.10"
        );
        assert_eq!(text.parse::<Token>().unwrap(), sample());
    }

    #[test]
    fn one_wrong_character_is_noticed() {
        let text = sample().to_string();
        let (token, _) = text.split_once('@').unwrap();
        for position in "wry1-user-".len()..token.len() {
            let mut bytes = token.as_bytes().to_vec();
            bytes[position] = if bytes[position] == b'a' { b'b' } else { b'a' };
            let damaged = String::from_utf8(bytes).unwrap();
            assert_eq!(damaged.parse::<Token>(), Err(TokenError::Checksum), "position {position}");
        }
    }

    #[test]
    fn the_role_cannot_be_edited() {
        let text = sample().to_string().replace("-user-", "-admin-");
        assert_eq!(text.parse::<Token>(), Err(TokenError::Checksum));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            drop(text.parse::<Token>());
            drop(format!("wry1-user-{text}").parse::<Token>());
        }
    }
}
