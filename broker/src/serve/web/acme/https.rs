//! Requests to the authority: HTTPS by the cluster's own name servers, within bounds.
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use wherry_net::dns::{self, Upstream};

/// Longest time for a request with its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for a connection to one of the authority's addresses.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest answer: a chain of certificates has some KiB.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The usual port.
const PORT: u16 = 443;

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
enum HttpsError {
    #[error("{0} is no https:// address")]
    Address(Uri),
    #[error("the address of {0} cannot be found: {1}")]
    Name(String, dns::LookupError),
    #[error("{0} has no IPv4 address")]
    NoAddress(String),
    #[error("{0} cannot be reached: {1}")]
    Connect(String, std::io::Error),
    #[error("{0} does not prove who it is: {1}")]
    Tls(String, std::io::Error),
    #[error("{0} breaks off: {1}")]
    Exchange(String, hyper::Error),
    #[error("the answer of {0} cannot be read: {1}")]
    Body(String, Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} does not answer")]
    Silence(String),
}

/// One connection for each request: there are few.
pub(super) struct Https {
    pub(super) resolvers: watch::Receiver<Upstream>,
    pub(super) tls: TlsConnector,
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (servers, tls) = (self.resolvers.borrow().clone(), self.tls.clone());
        let uri = request.uri().clone();
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, exchange(&servers, &tls, request)).await {
                Ok(Ok(response)) => Ok(BytesResponse::from(response)),
                Ok(Err(error)) => Err(instant_acme::Error::Other(Box::new(error))),
                Err(_) => Err(instant_acme::Error::Other(Box::new(HttpsError::Silence(uri.to_string())))),
            }
        })
    }
}

async fn exchange(
    servers: &Upstream,
    tls: &TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, HttpsError> {
    let uri = request.uri().clone();
    let wrong = || HttpsError::Address(uri.clone());
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(wrong)?;
    let host = authority.host().to_owned();
    let stream = connect(servers, tls, &host, authority.port_u16().unwrap_or(PORT)).await?;
    // In origin form (RFC 9112 §3.2.1).
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| wrong())?;
    let value = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?;
    request.headers_mut().insert(HOST, value);
    let broken = |error| HttpsError::Exchange(host.clone(), error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| HttpsError::Body(host.clone(), error))?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(body)))
    };
    tokio::pin!(connection, talk);
    tokio::select! {
        result = &mut talk => result,
        // It ends when the answer was read, or fails; the other future knows more of it.
        _ = &mut connection => talk.await,
    }
}

async fn connect(
    servers: &Upstream,
    tls: &TlsConnector,
    host: &str,
    port: u16,
) -> Result<TlsStream<TcpStream>, HttpsError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpsError::NoAddress(host.to_owned()))?;
    let mut last = HttpsError::NoAddress(host.to_owned());
    for address in addresses(servers, host).await? {
        let attempt = TcpStream::connect(SocketAddr::new(address, port));
        let connected = tokio::time::timeout(CONNECT, attempt).await;
        match connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                return tls
                    .connect(name, stream)
                    .await
                    .map_err(|error| HttpsError::Tls(host.to_owned(), error));
            }
            Err(error) => last = HttpsError::Connect(host.to_owned(), error),
        }
    }
    Err(last)
}

async fn addresses(servers: &Upstream, host: &str) -> Result<Vec<IpAddr>, HttpsError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    // Never asked of anybody (RFC 6761 §6.3).
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let found = dns::addresses(servers, host).await;
    let found = found.map_err(|error| HttpsError::Name(host.to_owned(), error))?;
    Ok(found.into_iter().map(IpAddr::V4).collect())
}
