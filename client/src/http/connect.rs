//! Reaching a server.
use super::tls::Trust;
use super::url::Origin;
use super::{CONNECT_SECONDS, HANDSHAKE_SECONDS, HttpError};
use crate::session::plain;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// On the network.
    Net(Origin),
    /// Behind a socket of this computer.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(origin) => write!(f, "{} port {}", origin.host, origin.port),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A connection.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// Makes connections, trusting whom it was told to trust.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    trust: Trust,
}

impl Dialler {
    pub(crate) fn new(trust: Trust) -> Self {
        Self { trust }
    }

    pub(super) async fn dial(&self, endpoint: &Endpoint) -> Result<Wire, HttpError> {
        let whom = endpoint.to_string();
        match endpoint {
            Endpoint::Unix(path) => {
                let failed = |error| HttpError::Unreachable { whom, reason: plain(&error) };
                Ok(Wire::Unix(UnixStream::connect(path).await.map_err(failed)?))
            }
            Endpoint::Net(origin) => {
                let stream = tcp(origin, &whom).await?;
                match origin.secure {
                    true => Ok(Wire::Tls(Box::new(self.handshake(origin, stream, whom).await?))),
                    false => Ok(Wire::Plain(stream)),
                }
            }
        }
    }

    async fn handshake(
        &self,
        origin: &Origin,
        stream: TcpStream,
        whom: String,
    ) -> Result<TlsStream<TcpStream>, HttpError> {
        let connecting = self.trust.connect(origin.bare_host(), stream);
        match tokio::time::timeout(Duration::from_secs(HANDSHAKE_SECONDS), connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(super::tls::explain(whom, &error)),
            Err(_) => Err(HttpError::Silent { whom, seconds: HANDSHAKE_SECONDS }),
        }
    }
}

async fn tcp(origin: &Origin, whom: &str) -> Result<TcpStream, HttpError> {
    let unreachable = |reason: String| HttpError::Unreachable { whom: whom.to_owned(), reason };
    let connecting = async {
        let found = tokio::net::lookup_host((origin.bare_host(), origin.port)).await?;
        let addresses: Vec<SocketAddr> = found.filter(|address| usable(origin, address)).collect();
        TcpStream::connect(addresses.as_slice()).await
    };
    let stream = tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS), connecting)
        .await
        .map_err(|_| unreachable(format!("no answer within {CONNECT_SECONDS} s")))?
        .map_err(|error| unreachable(plain(&error)))?;
    stream.set_nodelay(true).map_err(|error| unreachable(plain(&error)))?;
    Ok(stream)
}

/// Without TLS nothing leaves this computer, whatever `localhost` may resolve to.
fn usable(origin: &Origin, address: &SocketAddr) -> bool {
    origin.secure || address.ip().is_loopback()
}
