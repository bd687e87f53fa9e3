//! Whom to trust: the system's authorities, and those a person names. There is no way to trust everybody.
use super::HttpError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Largest file of certificates, in bytes: that of all authorities has 220 000.
const MAX_CA_BYTES: u64 = 4 * 1024 * 1024;

/// Why there is nobody to trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("cannot read the certificates in {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no usable certificate: expected PEM, beginning with -----BEGIN CERTIFICATE-----", .0.display())]
    NoCertificate(PathBuf),
    /// The system has no authorities.
    #[error(
        "this computer has no certificates of authorities: install the package ca-certificates, or name some with --ca"
    )]
    NoAuthorities,
    /// The TLS library.
    #[error("TLS cannot be used: {0}")]
    Library(String),
}

/// Authorities.
#[derive(Clone)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// The system's authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` are heeded) and those of `extra`, a PEM file. That
    /// there are none at all is an error only where a server on the network is to be reached.
    pub(crate) fn load(extra: Option<&Path>, local: bool) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        // Single damaged ones among the system's are passed over, as every browser does.
        roots.add_parsable_certificates(of_the_system());
        if let Some(path) = extra {
            for certificate in read(path)? {
                roots.add(certificate).map_err(|_| TrustError::NoCertificate(path.to_owned()))?;
            }
        }
        if roots.is_empty() && !local {
            return Err(TrustError::NoAuthorities);
        }
        Self::of(roots)
    }

    /// Nobody: for a client that will talk to this computer only.
    pub(crate) fn nobody() -> Result<Self, TrustError> {
        Self::of(RootCertStore::empty())
    }

    fn of(roots: RootCertStore) -> Result<Self, TrustError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError::Library(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}

/// Where OpenSSL would look: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else the usual places of this system. What cannot be read
/// is passed over: without any authority there is an error of its own.
fn of_the_system() -> Vec<CertificateDer<'static>> {
    let probed = openssl_probe::probe();
    let (file, directory) = (std::env::var_os("SSL_CERT_FILE"), std::env::var_os("SSL_CERT_DIR"));
    let given = file.is_some() || directory.is_some();
    let file = if given { file.map(PathBuf::from) } else { probed.cert_file };
    let directory = match directory {
        Some(directory) => std::env::split_paths(&directory).collect(),
        // The file has what the directory has, all in one.
        None if given || file.is_some() => Vec::new(),
        None => probed.cert_dir,
    };
    let entries = directory.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let paths = file.into_iter().chain(entries.filter_map(|entry| Some(entry.ok()?.path())));
    paths.filter_map(|path| read(&path).ok()).flatten().collect()
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    use io::Read as _;
    let failed = |source| TrustError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_CA_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let none = || TrustError::NoCertificate(path.to_owned());
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| none())?;
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

/// What a failed handshake means.
pub(super) fn explain(whom: String, error: &io::Error) -> HttpError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            HttpError::Untrusted { whom, reason: certificate(reason) }
        }
        Some(rustls::Error::InvalidMessage(_)) => HttpError::NotTls { whom },
        Some(other) => HttpError::Broken { whom, reason: other.to_string() },
        None => HttpError::Broken { whom, reason: crate::session::plain(error) },
    }
}

fn certificate(error: &rustls::CertificateError) -> String {
    use rustls::CertificateError as E;
    match error {
        E::UnknownIssuer => "no trusted authority has signed its certificate".into(),
        E::Expired | E::ExpiredContext { .. } => "its certificate has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => "its certificate is not valid yet".into(),
        E::NotValidForName | E::NotValidForNameContext { .. } => "its certificate is for another name".into(),
        other => format!("its certificate is not good: {other}"),
    }
}
