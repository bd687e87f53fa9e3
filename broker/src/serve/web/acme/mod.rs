//! Certificates from an authority, by ACME (RFC 8555), and new ones before they expire.
//!
//! ```text
//! plan     which name is next, and when; pure
//! order    one certificate
//! https    requests to the authority
//! ```
mod https;
mod order;
mod plan;

use crate::record::{AcmeAccount, Certificate};
use crate::serve::Shared;
use crate::state::{Input, Web};
use https::Https;
use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use order::{Bought, OrderError};
use plan::{Due, Plan};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use wherry_endpoint::{StoredCertificate, trusted_roots};
use wherry_protocol::message::AcmeSettings;

/// Longest time for one certificate.
const ATTEMPT: Duration = Duration::from_secs(600);
/// Longest sleep: the clock may have been set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// How the authority says that it does not know an account any more (RFC 8555 §6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// Longest sentence of an authority that is passed on.
const MAX_PROBLEM_CHARS: usize = 500;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum AcmeError {
    #[error("no certificates are asked for")]
    Off,
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("the authorities to trust cannot be read: {0}")]
    Roots(#[from] wherry_endpoint::CertificateError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("no account with the authority: {0}")]
    Account(Error),
    #[error("the account with the authority cannot be read or kept: {0}")]
    Credentials(#[from] serde_json::Error),
    #[error("the key of the external account is not base64url")]
    ExternalKey,
    #[error("what the authority sent is of no use: {0}")]
    Useless(wherry_endpoint::CertificateError),
    #[error("it took too long")]
    Time,
}

/// Gets certificates for as long as the broker runs, one at a time.
pub(crate) async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = follow(&shared) => {}
        () = shared.end.cancelled() => {}
    }
}

async fn follow(shared: &Shared) {
    let (mut web, mut plan) = (shared.core.web(), Plan::new(shared.web.certificate_pause));
    loop {
        let wanted = Arc::clone(&web.borrow_and_update());
        let wait = match plan.next(&wanted) {
            Some(due) => match due.at.checked_sub(now()).filter(|seconds| *seconds > 0) {
                Some(seconds) => Duration::from_secs(seconds).min(LONGEST_SLEEP),
                None => {
                    let certified = attempt(shared, &wanted, &due).await;
                    plan.tried(&due, certified.is_ok(), now());
                    tell(shared, due.host, certified).await;
                    continue;
                }
            },
            None => LONGEST_SLEEP,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = web.changed() => if changed.is_err() { return },
        }
    }
}

async fn tell(shared: &Shared, host: String, certified: Result<Certificate, AcmeError>) {
    let result = match certified {
        Ok(certificate) => {
            tracing::info!(host, not_after = certificate.not_after, "a certificate has come");
            Ok(Box::new(certificate))
        }
        Err(error) => {
            tracing::warn!(host, "no certificate: {error}");
            Err(plain(&error.to_string()))
        }
    };
    shared.core.tell(Input::Certified { host, result }).await;
}

/// An authority's words come from outside, and go to terminals.
fn plain(text: &str) -> String {
    text.chars().take(MAX_PROBLEM_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn attempt(shared: &Shared, web: &Web, due: &Due) -> Result<Certificate, AcmeError> {
    let settings = web.acme.as_deref().ok_or(AcmeError::Off)?;
    let kept = web.acme_account.as_deref().filter(|account| account.directory == settings.directory);
    tokio::time::timeout(ATTEMPT, certify(shared, settings, kept, due)).await.unwrap_or(Err(AcmeError::Time))
}

async fn certify(
    shared: &Shared,
    settings: &AcmeSettings,
    kept: Option<&AcmeAccount>,
    due: &Due,
) -> Result<Certificate, AcmeError> {
    let challenges = &shared.web.challenges;
    let bought = match kept {
        Some(kept) => {
            let account = known(shared, settings, kept).await?;
            match order::buy(&account, &due.host, due.way, challenges).await {
                // It was closed there, or the authority began anew.
                Err(OrderError::Protocol(Error::Api(problem)))
                    if problem.r#type.as_deref() == Some(NO_ACCOUNT) =>
                {
                    let account = new(shared, settings).await?;
                    order::buy(&account, &due.host, due.way, challenges).await?
                }
                other => other?,
            }
        }
        None => {
            let account = new(shared, settings).await?;
            order::buy(&account, &due.host, due.way, challenges).await?
        }
    };
    checked(&due.host, bought)
}

fn checked(host: &str, bought: Bought) -> Result<Certificate, AcmeError> {
    let (chain, key) = (bought.chain.into_bytes(), bought.key.into_bytes());
    let read = StoredCertificate::read(&chain, &key)
        .and_then(|read| read.check(host, now()).map(|()| read))
        .map_err(AcmeError::Useless)?;
    let (not_before, not_after) = (read.not_before(), read.not_after());
    Ok(Certificate { chain, key, acme: true, not_before, not_after })
}

async fn known(shared: &Shared, settings: &AcmeSettings, kept: &AcmeAccount) -> Result<Account, AcmeError> {
    let credentials: AccountCredentials = serde_json::from_slice(&kept.credentials)?;
    let builder = Account::builder_with_http(Box::new(client(shared, settings)?));
    builder.from_credentials(credentials).await.map_err(AcmeError::Account)
}

/// Registers, and keeps what proves the registration.
async fn new(shared: &Shared, settings: &AcmeSettings) -> Result<Account, AcmeError> {
    let contacts: Vec<String> = settings.contacts.iter().map(|contact| format!("mailto:{contact}")).collect();
    let contacts: Vec<&str> = contacts.iter().map(String::as_str).collect();
    let wanted = NewAccount {
        contact: &contacts,
        terms_of_service_agreed: settings.terms_agreed,
        only_return_existing: false,
    };
    let external = settings.external_account.as_ref().map(external).transpose()?;
    let builder = Account::builder_with_http(Box::new(client(shared, settings)?));
    let made = builder.create(&wanted, settings.directory.clone(), external.as_ref()).await;
    let (account, credentials) = made.map_err(AcmeError::Account)?;
    let credentials = serde_json::to_vec(&credentials)?;
    let kept = AcmeAccount { directory: settings.directory.clone(), credentials };
    shared.core.tell(Input::AcmeAccount(kept)).await;
    Ok(account)
}

fn external((id, key): &(String, String)) -> Result<ExternalAccountKey, AcmeError> {
    let key = data_encoding::BASE64URL_NOPAD.decode(key.trim_end_matches('=').as_bytes());
    Ok(ExternalAccountKey::new(id.clone(), &key.map_err(|_| AcmeError::ExternalKey)?))
}

/// Trusts whom everybody trusts, and whom the admin named besides.
fn client(shared: &Shared, settings: &AcmeSettings) -> Result<Https, AcmeError> {
    let mut roots = trusted_roots(&settings.roots)?;
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(config));
    Ok(Https { resolvers: shared.web.resolvers.clone(), tls })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authoritys_words_are_shown_harmlessly() {
        assert_eq!(plain("a\x1b[31m\nb"), "a [31m b");
        assert_eq!(plain(&"é".repeat(600)).chars().count(), MAX_PROBLEM_CHARS);
    }
}
