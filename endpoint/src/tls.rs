//! TLS: one certificate per host, chosen by the name that the client asks for, and never another.
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ProtocolVersion, ServerConfig};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::challenge::{ALPN, Challenges};
use crate::observe::Encryption;
use crate::refusal::Refusal;
use crate::table::Table;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a client's handshake settled.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// Lower-case.
    pub(crate) name: String,
    pub(crate) encryption: Encryption,
    pub(crate) http2: bool,
}

/// How a handshake ended.
pub(crate) enum Accepted {
    Client(Box<TlsStream<TcpStream>>, Tls),
    /// A tls-alpn-01 challenge was answered, and there is nothing more to say.
    Challenge,
}

/// Makes TLS of connections.
pub(crate) struct TlsAcceptor {
    config: Arc<ServerConfig>,
    table: watch::Receiver<Arc<Table>>,
    challenges: Challenges,
}

impl TlsAcceptor {
    pub(crate) fn new(table: watch::Receiver<Arc<Table>>, challenges: Challenges) -> io::Result<Self> {
        let by_name = Arc::new(ByName(table.clone()));
        let config = config(by_name, &[HTTP2, HTTP1])?;
        Ok(Self { config, table, challenges })
    }

    /// The handshake. Its bound in time is the caller's.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Accepted, Refusal> {
        let failed = |error: io::Error| {
            tracing::debug!(%error, "TLS handshake failed");
            Refusal::Handshake
        };
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(failed)?;
        let hello = start.client_hello();
        let name = hello.server_name().map(str::to_ascii_lowercase).unwrap_or_default();
        if is_challenge(&hello) {
            let key = self.challenges.tls(&name).ok_or(Refusal::UnknownServerName)?;
            let config = config(Arc::new(SingleCertAndKey::from(key)), &[ALPN]).map_err(failed)?;
            let mut stream = start.into_stream(config).await.map_err(failed)?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await.map_err(failed)?;
            return Ok(Accepted::Challenge);
        }
        let known = certificate(&self.table, &name).is_some();
        // Without a certificate it fails too, and the client gets an alert.
        let handshake = start.into_stream(Arc::clone(&self.config)).await;
        let stream =
            handshake.map_err(|error| if known { failed(error) } else { Refusal::UnknownServerName })?;
        let (_, session) = stream.get_ref();
        let encryption = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => Encryption::Tls12,
            _ => Encryption::Tls13,
        };
        let tls = Tls { name, encryption, http2: session.alpn_protocol() == Some(HTTP2) };
        Ok(Accepted::Client(Box::new(stream), tls))
    }
}

/// A client that offers this protocol alone wants nothing but the certificate (RFC 8737 §3).
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ALPN) && offered.next().is_none())
}

fn config(certificates: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error: rustls::Error| io::Error::other(error))?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn certificate(table: &watch::Receiver<Arc<Table>>, name: &str) -> Option<Arc<CertifiedKey>> {
    table.borrow().host(name)?.certificate.clone()
}

#[derive(Debug)]
struct ByName(watch::Receiver<Arc<Table>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        certificate(&self.0, &hello.server_name()?.to_ascii_lowercase())
    }
}
