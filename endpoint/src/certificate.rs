//! Certificates that people bring: read, and checked before anybody depends on them.
use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_cert::der::Decode;

/// Certificates of one chain: four are usual at most, and each costs a client time.
const MAX_CHAIN: usize = 10;

/// A certificate or key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// No certificate is in it, or too many.
    #[error(
        "the certificate file must hold 1 to {MAX_CHAIN} certificates as PEM, the name's own first, not {0}"
    )]
    Count(usize),
    /// One of them is not one.
    #[error("certificate {0} of the file cannot be read: {1}")]
    Damaged(usize, String),
    /// No private key is in it, or one of a kind that is not known.
    #[error(
        "the key file must hold one private key as PEM (PKCS#8, PKCS#1 or SEC1; RSA, ECDSA or Ed25519): {0}"
    )]
    Key(String),
    /// It belongs to another certificate.
    #[error("the private key is not the one of the first certificate of the file")]
    Mismatch,
    /// It is for other names.
    #[error("the certificate is not for {0}")]
    Name(String),
    /// It is not valid any more.
    #[error("the certificate expired {0} ago: bring a new one")]
    Expired(Age),
    /// Or not yet.
    #[error("the certificate becomes valid only in {0}: look at the clocks, or wait")]
    NotYet(Age),
}

/// A duration for people, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(pub u64);

impl fmt::Display for Age {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self.0 {
            seconds @ 0..120 => (seconds, "seconds"),
            seconds @ 120..7200 => (seconds / 60, "minutes"),
            seconds @ 7200..172_800 => (seconds / 3600, "hours"),
            seconds => (seconds / 86_400, "days"),
        };
        write!(formatter, "{count} {unit}")
    }
}

/// Authorities to trust, as read from PEM; none is fine.
///
/// # Errors
/// When one of them cannot be read.
pub fn trusted_roots(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let damaged = |error: String| CertificateError::Damaged(number + 1, error);
        let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
        roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
    }
    if roots.is_empty() && !pem.is_empty() {
        return Err(CertificateError::Count(0));
    }
    Ok(roots)
}

/// A chain of certificates with the key of the first, as read from PEM.
#[derive(Clone, Debug)]
pub struct StoredCertificate {
    key: Arc<CertifiedKey>,
    not_before: u64,
    not_after: u64,
}

impl StoredCertificate {
    /// Reads both, and compares the key with the certificate.
    ///
    /// # Errors
    /// When either cannot be read, or they do not belong together.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let mut certificates = Vec::new();
        for (number, certificate) in CertificateDer::pem_slice_iter(chain).take(MAX_CHAIN + 1).enumerate() {
            let damaged = |error: String| CertificateError::Damaged(number + 1, error);
            let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
            x509_cert::Certificate::from_der(&certificate).map_err(|error| damaged(error.to_string()))?;
            certificates.push(certificate);
        }
        let Some(first) = certificates.first().filter(|_| certificates.len() <= MAX_CHAIN) else {
            return Err(CertificateError::Count(certificates.len()));
        };
        let validity = validity(first)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| CertificateError::Key(error.to_string()))?;
        let key =
            ring::sign::any_supported_type(&key).map_err(|error| CertificateError::Key(error.to_string()))?;
        let key = CertifiedKey::new(certificates, key);
        // Ring always tells the public key of its private ones.
        key.keys_match().map_err(|_| CertificateError::Mismatch)?;
        Ok(Self { key: Arc::new(key), not_before: validity.0, not_after: validity.1 })
    }

    /// Whether a client that asks for `host` at `now` (Unix seconds) would take it, as far as that does not depend on whom the
    /// client trusts. A wildcard host needs a wildcard certificate.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, host: &str, now: u64) -> Result<(), CertificateError> {
        let other = || CertificateError::Name(host.to_owned());
        let asked = match host.strip_prefix("*.") {
            // A name that nobody would have put into a certificate by itself.
            Some(domain) => format!("any-name-at-all.{domain}"),
            None => host.to_owned(),
        };
        let name = ServerName::try_from(asked).map_err(|_| other())?;
        let first = self.key.cert.first().ok_or(CertificateError::Count(0))?;
        let parsed = ParsedCertificate::try_from(first)
            .map_err(|error| CertificateError::Damaged(1, error.to_string()))?;
        verify_server_name(&parsed, &name).map_err(|_| other())?;
        if now < self.not_before {
            return Err(CertificateError::NotYet(Age(self.not_before - now)));
        }
        if now >= self.not_after {
            return Err(CertificateError::Expired(Age(now - self.not_after)));
        }
        Ok(())
    }

    /// For [`Host::certificate`](crate::Host::certificate).
    #[must_use]
    pub fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// From when on it is valid, Unix seconds.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// Until when it is valid, Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}

/// From when until when a certificate is valid, Unix seconds (RFC 5280 §4.1.2.5).
fn validity(certificate: &CertificateDer<'_>) -> Result<(u64, u64), CertificateError> {
    let parsed = x509_cert::Certificate::from_der(certificate)
        .map_err(|error| CertificateError::Damaged(1, error.to_string()))?;
    let validity = parsed.tbs_certificate().validity();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    Ok((seconds(validity.not_before), seconds(validity.not_after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;
    use proptest::prelude::*;

    const DAY: u64 = 86_400;

    fn pair(names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let certificate = params.self_signed(&key).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
    }

    fn pem(label: &str, bytes: &[u8]) -> String {
        let lines: Vec<String> = BASE64
            .encode(bytes)
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    /// 1 January 2026.
    const BEGIN: u64 = 1_767_225_600;

    #[test]
    fn a_pair_is_read_and_checked() {
        let (chain, key) = pair(&["www.example.org", "*.example.net"]);
        let read = StoredCertificate::read(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!((read.not_before(), read.not_after()), (BEGIN, BEGIN + 90 * DAY));
        let now = BEGIN + DAY;
        assert_eq!(read.check("www.example.org", now), Ok(()));
        assert_eq!(read.check("a.example.net", now), Ok(()));
        assert_eq!(read.check("*.example.net", now), Ok(()));
        for other in ["example.org", "*.example.org", "a.b.example.net", "example.net", "", "*."] {
            assert_eq!(read.check(other, now), Err(CertificateError::Name(other.to_owned())), "{other}");
        }
        let early = read.check("www.example.org", BEGIN - 3 * DAY).unwrap_err();
        assert_eq!(
            early.to_string(),
            "the certificate becomes valid only in 3 days: look at the clocks, or wait"
        );
        let late = read.check("www.example.org", BEGIN + 90 * DAY + 90).unwrap_err();
        assert_eq!(late.to_string(), "the certificate expired 90 seconds ago: bring a new one");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let ((chain, key), (_, other)) = (pair(&["a.example"]), pair(&["a.example"]));
        let read =
            |chain: &str, key: &str| StoredCertificate::read(chain.as_bytes(), key.as_bytes()).map(|_| ());
        assert_eq!(read(&chain, &key), Ok(()));
        assert_eq!(read(&chain, &other), Err(CertificateError::Mismatch));
        assert_eq!(read("", &key), Err(CertificateError::Count(0)));
        assert_eq!(read(&key, &key), Err(CertificateError::Count(0)));
        assert_eq!(read(&chain.repeat(11), &key), Err(CertificateError::Count(11)));
        assert_eq!(read(&chain.repeat(10), &key), Ok(()));
        assert!(matches!(read(&chain, ""), Err(CertificateError::Key(_))));
        assert!(matches!(read(&chain, &chain), Err(CertificateError::Key(_))));
        let rubbish = pem("CERTIFICATE", b"rubbish");
        assert!(matches!(read(&rubbish, &key), Err(CertificateError::Damaged(1, _))));
        assert!(matches!(read(&format!("{chain}{rubbish}"), &key), Err(CertificateError::Damaged(2, _))));
        let rubbish = rubbish.replace("CERTIFICATE", "PRIVATE KEY");
        assert!(matches!(read(&chain, &rubbish), Err(CertificateError::Key(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..600, with: u8) {
            drop(StoredCertificate::read(&bytes, &bytes));
            let (chain, key) = pair(&["a.example"]);
            let mut changed = chain.clone().into_bytes();
            let at = at % changed.len();
            changed[at] = with;
            if let Ok(read) = StoredCertificate::read(&changed, key.as_bytes()) {
                drop(read.check("a.example", BEGIN + DAY));
            }
        }
    }
}
