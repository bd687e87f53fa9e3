//! A world for tests: backends on loopback, the endpoint before them, and clients.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "no test uses all of it, and one that cannot go on should stop"
)]
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wherry_endpoint::{
    Access, Backend, Backends, CertifiedKey, Challenges, Cluster, Config, ConnectError, CookieKey, Host,
    HostName, Identity, Limits, Listeners, Observer, Refusal, Table, Who, serve,
};

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// A body of pieces that are made when they are asked for.
pub(crate) fn stream(pieces: impl futures_util::Stream<Item = Bytes> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))))
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// Where backends listen, connections that were asked for, and places for them.
#[derive(Clone)]
pub(crate) struct Addresses(Arc<Mutex<HashMap<u64, SocketAddr>>>, Arc<AtomicUsize>, Arc<Semaphore>);

impl Default for Addresses {
    fn default() -> Self {
        Self(Arc::default(), Arc::default(), Arc::new(Semaphore::new(PLACES)))
    }
}

/// More than any test needs.
const PLACES: usize = 10_000;

/// A connection to a backend, and its place.
pub(crate) struct Placed(TcpStream, OwnedSemaphorePermit);

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Addresses {
    pub(crate) fn set(&self, id: u64, address: SocketAddr) {
        self.0.lock().unwrap().insert(id, address);
    }
}

impl Addresses {
    /// Connections that were asked for.
    pub(crate) fn asked(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }

    /// From now on so many connections at once, to all backends together.
    pub(crate) fn bound(&self, limit: usize) {
        self.2.forget_permits(PLACES - limit);
    }
}

impl Backends for Addresses {
    type Stream = Placed;

    async fn connect(&self, backend: u64) -> Result<Placed, ConnectError> {
        let address = self.0.lock().unwrap().get(&backend).copied();
        let address = address.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        self.1.fetch_add(1, Ordering::SeqCst);
        let place = Arc::clone(&self.2).try_acquire_owned().map_err(|_| ConnectError::Busy)?;
        Ok(Placed(TcpStream::connect(address).await?, place))
    }
}

/// A container that is not known.
pub(crate) const NOBODY: u64 = u64::MAX;

/// What a test sees of the endpoint.
pub(crate) struct Seen {
    accesses: mpsc::UnboundedSender<Access>,
    refusals: Mutex<Vec<Refusal>>,
}

impl Observer for Seen {
    fn access(&self, access: &Access) {
        // The test may be over.
        drop(self.accesses.send(access.clone()));
    }

    fn refused(&self, _: SocketAddr, refusal: Refusal) {
        self.refusals.lock().unwrap().push(refusal);
    }
}

pub(crate) struct World {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) addresses: Addresses,
    pub(crate) challenges: Challenges,
    pub(crate) accesses: mpsc::UnboundedReceiver<Access>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    table: watch::Sender<Arc<Table>>,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<std::io::Result<()>>>,
}

pub(crate) fn host(name: &str, backends: &[u64]) -> Host {
    let backend = |id: &u64| Backend { id: *id, weight: 1, healthy: true };
    let cluster = Cluster { backends: backends.iter().map(backend).collect() };
    Host::new(HostName::new(name).unwrap(), Arc::new(cluster))
}

/// A self-signed certificate that is its own root.
pub(crate) fn certificate(name: &str) -> (Arc<CertifiedKey>, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let key = ring::sign::any_supported_type(&key).unwrap();
    let certificate = made.cert.der().clone();
    (Arc::new(CertifiedKey::new(vec![certificate.clone()], key)), certificate)
}

impl World {
    pub(crate) async fn new(hosts: Vec<Host>) -> Self {
        Self::with(hosts, Limits::default(), None).await
    }

    pub(crate) async fn with(hosts: Vec<Host>, limits: Limits, container: Option<u64>) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (http, https) = (listen().await.unwrap(), listen().await.unwrap());
        let (http_address, https_address) = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let (accesses, told) = mpsc::unbounded_channel();
        let seen = Arc::new(Seen { accesses, refusals: Mutex::default() });
        let roots =
            hosts.iter().filter_map(|host| Some(host.certificate.as_ref()?.cert[0].clone())).collect();
        let (table, tables) = watch::channel(Arc::new(Table::new(hosts).unwrap()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (addresses, challenges) = (Addresses::default(), Challenges::default());
        let config = Config {
            limits,
            cookie_key: CookieKey::new(&[1; 32]),
            challenges: challenges.clone(),
            identify: Arc::new(move |address| match container {
                None => Who::Client,
                Some(NOBODY) => Who::Unknown,
                Some(container) => Who::Container(Identity { container, address: address.ip() }),
            }),
            observer: Arc::clone(&seen) as Arc<dyn Observer>,
        };
        let served = tokio::spawn(serve(
            Listeners { http, https: Some(https) },
            tables,
            addresses.clone(),
            config,
            async {
                drop(stopped.await);
            },
        ));
        Self {
            http: http_address,
            https: https_address,
            addresses,
            challenges,
            accesses: told,
            roots,
            table,
            seen,
            stop: Some(stop),
            served: Some(served),
        }
    }

    pub(crate) fn table(&self, hosts: Vec<Host>) {
        self.table.send_replace(Arc::new(Table::new(hosts).unwrap()));
    }

    /// Starts an ordinary backend.
    pub(crate) async fn backend(&self, id: u64) -> JoinHandle<()> {
        self.server(id, move |request| answer(id, request)).await
    }

    /// Starts a backend that answers so.
    pub(crate) async fn server<F, R>(&self, id: u64, answer: F) -> JoinHandle<()>
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addresses.set(id, listener.local_addr().unwrap());
        tokio::spawn(async move {
            // Dropped with the task: so are the connections.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async { Ok::<_, Infallible>(answer.await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    // The endpoint may break off.
                    drop(served.await);
                });
            }
        })
    }

    /// All bytes over a new connection without TLS, until the endpoint closes it.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        rest(&mut stream).await
    }

    /// One request over a new connection of HTTP/1 without TLS.
    pub(crate) async fn get(&self, host: &str, path: &str) -> (StatusCode, String) {
        let response = self.send(get(host, path)).await;
        (response.status(), text(response).await)
    }

    /// The same from another address.
    pub(crate) async fn get_from(&self, from: [u8; 4], host: &str, path: &str) -> StatusCode {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = socket.connect(self.http).await.unwrap();
        http1(stream).await.send_request(get(host, path)).await.unwrap().status()
    }

    /// Starts a backend that tells when it is asked, and answers when it may.
    pub(crate) async fn held(&self, id: u64) -> (Arc<Notify>, Arc<Notify>, JoinHandle<()>) {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let notify = (Arc::clone(&begun), Arc::clone(&go));
        let server = self.server(id, move |_| {
            let (begun, go) = notify.clone();
            async move {
                begun.notify_one();
                go.notified().await;
                Response::new(full("late"))
            }
        });
        (begun, go, server.await)
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.http).await.unwrap();
        http1(stream).await.send_request(request).await.unwrap()
    }

    pub(crate) async fn tls(&self, name: &str, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        self.roots.iter().for_each(|root| roots.add(root.clone()).unwrap());
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self.tls_with(name, config).await
    }

    pub(crate) async fn tls_with(
        &self,
        name: &str,
        config: ClientConfig,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) async fn http2(&self, name: &str) -> hyper::client::conn::http2::SendRequest<Body> {
        let stream = self.tls(name, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub(crate) async fn access(&mut self) -> Access {
        within(self.accesses.recv()).await.unwrap()
    }

    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.seen.refusals.lock().unwrap().clone()
    }

    /// Asks the endpoint to end; what `serve` said.
    pub(crate) fn stop(&mut self) -> JoinHandle<std::io::Result<()>> {
        drop(self.stop.take());
        self.served.take().unwrap()
    }
}

pub(crate) async fn http1<S>(stream: S) -> hyper::client::conn::http1::SendRequest<Body>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) fn get(host: &str, path: &str) -> Request<Body> {
    Request::builder().uri(path).header("host", host).body(full("")).unwrap()
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What comes until the end.
pub(crate) async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    // Of a connection that is reset, what came before.
    drop(within(stream.read_to_end(&mut bytes)).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A head, and nothing after it is read.
pub(crate) async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// A test that waits in vain fails.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("nothing happened in 30 seconds")
}

async fn answer(id: u64, mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/big" => {
            let piece = Bytes::from(vec![b'x'; 64 * 1024]);
            let pieces = futures_util::stream::repeat(piece).take(1024);
            Response::new(stream(pieces))
        }
        "/head" => {
            let mut lines = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                lines += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            Response::new(full(lines))
        }
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                drop(tokio::io::copy(&mut reads, &mut writes).await);
                drop(writes.shutdown().await);
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket");
            response.header("sec-websocket-accept", "x").body(full("")).unwrap()
        }
        "/204" => Response::builder().status(204).body(full("")).unwrap(),
        "/304" => Response::builder().status(304).header("etag", "\"x\"").body(full("")).unwrap(),
        "/hop" => {
            let response = Response::builder()
                .header("connection", "x-hop")
                .header("x-hop", "1")
                .header("keep-alive", "timeout=5");
            response.header("x-end", "1").body(full("hop")).unwrap()
        }
        _ => Response::new(full(format!("{id} {path}"))),
    }
}
