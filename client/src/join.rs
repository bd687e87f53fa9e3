//! Enrolment: a one-time token becomes a stored location.
use crate::address::Address;
use crate::error::ClientError;
use crate::session::dial;
use crate::store::{Config, StoredLocation};
use wherry_protocol::io::{recv, send};
use wherry_protocol::message::{EnrolReply, EnrolRequest};
use wherry_protocol::{Limits, Name, OsRandom, Role, SecretKey, Token, WireError};

/// What the token does not say.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Where the broker is, instead of where the token says.
    pub address: Option<Address>,
    /// What to call the location here; the cluster's own name otherwise.
    pub name: Option<Name>,
    /// What the account is called at the broker.
    pub label: Name,
}

/// Claims `token`: makes a key pair here, shows the broker its public half, and stores the location.
///
/// Repeating it after a lost answer, or after success, gives the same result: the key is stored before it is used.
/// The first location becomes the default one.
pub async fn join(
    config: &Config,
    token: &Token,
    options: &JoinOptions,
) -> Result<StoredLocation, ClientError> {
    if token.role == Role::Node {
        return Err(ClientError::NotForPeople(token.role));
    }
    let address = match (&options.address, &token.address) {
        (Some(address), _) => address.clone(),
        (None, Some(text)) => text.parse()?,
        (None, None) => return Err(ClientError::NoAddress),
    };
    let hash = token.secret.hash();
    let known = config.find_by_token(&hash)?;
    let secret = match &known {
        Some(known) => known.secret.clone(),
        None => config.pending_key(&hash, || SecretKey::generate(&mut OsRandom))?,
    };
    let (account, role, cluster) = match claim(&address, &secret, token, &options.label).await? {
        EnrolReply::Enrolled { account, role, location } => (account, role, location),
        EnrolReply::Refused(error) => return Err(ClientError::Refused(advise(error))),
    };
    let name = options.name.clone().or(known.map(|known| known.name)).unwrap_or(cluster);
    let label = options.label.clone();
    let location =
        StoredLocation { name, address, broker: token.broker, secret, account, role, label, token: hash };
    config.save(&location)?;
    config.forget_pending(&hash)?;
    if config.default_name()?.is_none() {
        config.set_default(&location.name)?;
    }
    Ok(location)
}

async fn claim(
    address: &Address,
    secret: &SecretKey,
    token: &Token,
    label: &Name,
) -> Result<EnrolReply, ClientError> {
    let lost = |error| ClientError::on_session(address, error);
    let (mux, _) = dial(address, address.enrolment_port(), secret, &token.broker).await?;
    let mut stream = mux.open().await.map_err(lost)?;
    let request = EnrolRequest { role: token.role, secret: token.secret, label: label.clone() };
    send(&mut stream, &request).await.map_err(lost)?;
    let reply = recv(&mut stream, Limits::DEFAULT.message_bytes).await.map_err(lost)?;
    mux.close();
    reply.ok_or(ClientError::Unexpected("enrolment"))
}

/// The broker says only that the token does not hold; what to do about it is the same whatever the reason.
fn advise(error: WireError) -> WireError {
    match error.message.contains("token") {
        true => error,
        false => WireError { message: format!("the token was refused: {}", error.message), ..error },
    }
}

/// A label made of a user's and a computer's name: `ada-laptop`.
#[must_use]
pub fn label(user: &str, host: &str) -> Option<Name> {
    let host = host.split('.').next().unwrap_or(host);
    let text: String = format!("{user}-{host}")
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .collect();
    text.trim_matches(['-', '_', '.']).chars().take(Name::MAX_BYTES).collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_always_names() {
        let made = |user, host| label(user, host).map(|name| name.to_string());
        assert_eq!(made("Ada", "Laptop.lan").as_deref(), Some("ada-laptop"));
        assert_eq!(made("", "x").as_deref(), Some("x"));
        assert_eq!(made("a b", "ü").as_deref(), Some("a-b"));
        assert_eq!(made("", ""), None);
        assert_eq!(made(&"u".repeat(90), "h").map(|name| name.len()), Some(63));
    }
}
