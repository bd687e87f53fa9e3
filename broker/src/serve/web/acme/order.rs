//! One certificate: order, proofs, request, download (RFC 8555 §7.1).
use super::plan::Way;
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, ChallengeType, Error, Identifier, KeyAuthorization,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use wherry_endpoint::{CertifiedKey, Challenges};

/// How long the authority may think about proofs, and then about the certificate.
const THOUGHT: Duration = Duration::from_secs(120);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Protocol(#[from] Error),
    #[error("the authority offers no proof over HTTP or TLS for this name")]
    NoProof,
    #[error("the authority refuses the proof: {0}")]
    Refused(String),
    #[error("a certificate for the proof cannot be made: {0}")]
    Answer(String),
}

/// PEM of the chain, and of its key.
#[derive(Debug)]
pub(super) struct Bought {
    pub(super) chain: String,
    pub(super) key: String,
}

/// Proofs that are to be seen; they go with it.
struct Shown<'a> {
    challenges: &'a Challenges,
    host: &'a str,
    tokens: Vec<String>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        for token in &self.tokens {
            self.challenges.remove_http(self.host, token);
        }
        self.challenges.remove_tls(self.host);
    }
}

impl Shown<'_> {
    fn show(&mut self, way: Way, token: &str, authorization: &KeyAuthorization) -> Result<(), OrderError> {
        match way {
            Way::Http => {
                self.tokens.push(token.to_owned());
                self.challenges.set_http(self.host, token, authorization.as_str());
            }
            Way::Tls => {
                let certificate =
                    tls_answer(self.host, authorization.digest().as_ref()).map_err(OrderError::Answer)?;
                self.challenges.set_tls(self.host, certificate);
            }
        }
        Ok(())
    }
}

/// Orders a certificate for `host` and waits for it. The name is proven by `way` if the authority offers that.
pub(super) async fn buy(
    account: &Account,
    host: &str,
    way: Way,
    challenges: &Challenges,
) -> Result<Bought, OrderError> {
    let names = [Identifier::Dns(host.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    let mut shown = Shown { challenges, host, tokens: Vec::new() };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        prove(authorization?, way, &mut shown).await?;
    }
    let patience = RetryPolicy::new().timeout(THOUGHT);
    match order.poll_ready(&patience).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(refusal(&mut order).await),
        // The order says that a proof was not good; the proof says why.
        Err(Error::Api(problem)) => {
            return Err(match refusal(&mut order).await {
                OrderError::Refused(why) if why.is_empty() => Error::Api(problem).into(),
                other => other,
            });
        }
        Err(other) => return Err(other.into()),
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&patience).await?;
    Ok(Bought { chain, key })
}

async fn prove(
    mut authorization: AuthorizationHandle<'_>,
    way: Way,
    shown: &mut Shown<'_>,
) -> Result<(), OrderError> {
    // Proven some days ago, as the authority remembers.
    if authorization.status == AuthorizationStatus::Valid {
        return Ok(());
    }
    let offered = |kind: &ChallengeType| authorization.challenges.iter().any(|one| one.r#type == *kind);
    let (way, kind) = match way {
        Way::Http if offered(&ChallengeType::Http01) => (Way::Http, ChallengeType::Http01),
        Way::Http | Way::Tls if offered(&ChallengeType::TlsAlpn01) => (Way::Tls, ChallengeType::TlsAlpn01),
        Way::Http | Way::Tls => (Way::Http, ChallengeType::Http01),
    };
    let mut challenge = authorization.challenge(kind).ok_or(OrderError::NoProof)?;
    shown.show(way, &challenge.token, &challenge.key_authorization())?;
    Ok(challenge.set_ready().await?)
}

/// What the proofs' problems are, as the authority says; empty if it says nothing.
async fn refusal(order: &mut Order) -> OrderError {
    let mut problems = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await {
            problems.extend(state.challenges.iter().filter_map(|one| one.error.clone()));
        }
    }
    let words = problems.into_iter().map(|problem| problem.detail.unwrap_or_else(|| "no reason".into()));
    OrderError::Refused(words.collect::<Vec<_>>().join("; "))
}

/// A certificate of our own that holds the proof (RFC 8737 §3).
fn tls_answer(host: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let said = |error: rcgen::Error| error.to_string();
    let key = rcgen::KeyPair::generate().map_err(said)?;
    let mut params = rcgen::CertificateParams::new([host.to_owned()]).map_err(said)?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(said)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}
