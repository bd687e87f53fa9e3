//! What an ACME server asks for before it certifies a name (RFC 8555 §8.3, RFC 8737).
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::rustls::sign::CertifiedKey;

/// Where http-01 looks.
pub(crate) const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol of tls-alpn-01.
pub(crate) const ALPN: &[u8] = b"acme-tls/1";

/// Answers to challenges, shared between the ACME client and the endpoint.
#[derive(Clone, Default)]
pub struct Challenges(Arc<Mutex<Store>>);

#[derive(Default)]
struct Store {
    /// By domain and token.
    http: HashMap<(String, String), String>,
    tls: HashMap<String, Arc<CertifiedKey>>,
}

impl fmt::Debug for Challenges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (http, tls) = self.with(|store| (store.http.len(), store.tls.len()));
        formatter.debug_struct("Challenges").field("http", &http).field("tls", &tls).finish()
    }
}

impl Challenges {
    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers http-01: `authorization` is the key authorization.
    pub fn set_http(&self, domain: &str, token: &str, authorization: &str) {
        let key = (domain.to_ascii_lowercase(), token.to_owned());
        self.with(|store| store.http.insert(key, authorization.to_owned()));
    }

    /// Takes an http-01 answer away.
    pub fn remove_http(&self, domain: &str, token: &str) {
        self.with(|store| store.http.remove(&(domain.to_ascii_lowercase(), token.to_owned())));
    }

    /// Answers tls-alpn-01 with a certificate that has the acmeIdentifier extension.
    pub fn set_tls(&self, domain: &str, certificate: Arc<CertifiedKey>) {
        self.with(|store| store.tls.insert(domain.to_ascii_lowercase(), certificate));
    }

    /// Takes a tls-alpn-01 answer away.
    pub fn remove_tls(&self, domain: &str) {
        self.with(|store| store.tls.remove(&domain.to_ascii_lowercase()));
    }

    /// The key authorization for a path below [`PATH`].
    pub(crate) fn http(&self, domain: &str, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.with(|store| store.http.get(&(domain.to_owned(), token.to_owned())).cloned())
    }

    pub(crate) fn tls(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        self.with(|store| store.tls.get(domain).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_and_go() {
        let challenges = Challenges::default();
        challenges.set_http("A.example", "token", "token.print");
        let answer = |domain, path| challenges.http(domain, path);
        assert_eq!(answer("a.example", "/.well-known/acme-challenge/token").as_deref(), Some("token.print"));
        assert_eq!(answer("b.example", "/.well-known/acme-challenge/token"), None);
        assert_eq!(answer("a.example", "/.well-known/acme-challenge/toke"), None);
        assert_eq!(answer("a.example", "/token"), None);
        challenges.remove_http("a.example", "token");
        assert_eq!(answer("a.example", "/.well-known/acme-challenge/token"), None);
    }
}
