//! Listeners and connections.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::Stalls;
use crate::challenge::Challenges;
use crate::clients::{Client, Clients, Place};
use crate::cookie::CookieKey;
use crate::guard::{Guard, Link};
use crate::limits::{Limits, STREAM_SEND_BUFFER};
use crate::observe::Observer;
use crate::pool::Pool;
use crate::refusal::Refusal;
use crate::service::handle;
use crate::stall::WriteStall;
use crate::table::{Host, Table};
use crate::ticket::{Held, InFlight};
use crate::tls::{Accepted, Tls, TlsAcceptor};

/// After an error of `accept`, which is most often a want of descriptors: others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Idle HTTP/2 connections and idle backends are looked at so many times per limit.
const LOOKS: u32 = 4;
const MIN_LOOK: Duration = Duration::from_millis(10);
/// What a connection buffers of what it reads and writes: at least a head, and hyper wants 8 KiB.
const MIN_BUFFER: usize = 8 * 1024;
/// Silence of a client's connection after which TCP asks whether anybody is there, and between questions; after three there is
/// not. Otherwise a client that lost its power holds a WebSocket until that is given up for silence.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_QUESTIONS: u32 = 3;

/// There is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// As many connections as may be are open on the way there: nothing is wrong with the backend.
    #[error("there are as many connections on the way to the backend as may be")]
    Busy,
    /// The backend or the way there has failed.
    #[error("the backend cannot be reached")]
    Unreachable(#[from] io::Error),
}

/// Reaches backends.
pub trait Backends: Send + Sync + 'static {
    /// A connection to a backend.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a connection. The endpoint bounds the time.
    fn connect(&self, backend: u64) -> impl Future<Output = Result<Self::Stream, ConnectError>> + Send;
}

/// A container behind an address from which it comes only in a way of speaking: somebody passes its bytes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which; it sees only the hosts whose rules name it.
    pub container: u64,
    /// Its own address, for rules, backends and the observer.
    pub address: IpAddr,
}

/// Who comes from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever has that address.
    Client,
    /// A container.
    Container(Identity),
    /// Nobody who is known, though the address stands for a container: refused.
    Unknown,
}

/// Says who comes from an address. Asked once per connection; must not block.
pub type Identify = Arc<dyn Fn(SocketAddr) -> Who + Send + Sync>;

/// What stays the same as long as the endpoint runs.
#[derive(Clone)]
pub struct Config {
    /// The bounds.
    pub limits: Limits,
    /// Of sticky cookies.
    pub cookie_key: CookieKey,
    /// Answers for ACME.
    pub challenges: Challenges,
    /// For access rules.
    pub identify: Identify,
    /// Hears of every request.
    pub observer: Arc<dyn Observer>,
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Config").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Where clients come in.
#[derive(Debug)]
pub struct Listeners {
    /// HTTP/1.1 as it is; port 80.
    pub http: TcpListener,
    /// TLS; port 443. Redirects name the default port.
    pub https: Option<TcpListener>,
}

/// Everything that connections share.
pub(crate) struct Endpoint<B> {
    pub(crate) backends: B,
    pub(crate) config: Config,
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) pool: Arc<Pool>,
    /// No new requests.
    pub(crate) stop: CancellationToken,
    /// No requests at all.
    pub(crate) kill: CancellationToken,
    pub(crate) client_tasks: TaskTracker,
    pub(crate) backend_tasks: TaskTracker,
    /// What is in flight by host, and by customer.
    hosts: Mutex<HashMap<String, HostCounts>>,
    customers: Mutex<HashMap<u64, Arc<AtomicUsize>>>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    clients: Clients,
}

/// What one host has in flight.
#[derive(Debug, Default)]
struct HostCounts {
    requests: Arc<AtomicUsize>,
    tunnels: Arc<AtomicUsize>,
}

/// A connection's place among all, and among its client's.
type Admitted = (InFlight, Place);

/// One client's connection.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) container: Option<u64>,
    pub(crate) tls: Option<Tls>,
    /// To the guard of HTTP/1.
    pub(crate) link: Option<Arc<Link>>,
    /// Of HTTP/2.
    pub(crate) stalls: Option<Arc<Stalls>>,
    /// Its requests in flight.
    pub(crate) busy: Arc<AtomicUsize>,
    pub(crate) client: Client,
    /// Counts for the limits until the connection and its tunnel are gone.
    _admitted: Admitted,
}

/// Serves until `shutdown`, then lets requests in flight finish for [`Limits::drain`]. A table that is sent counts for every
/// request that comes after; those in flight, and connections, are left alone.
///
/// # Errors
/// When TLS cannot be set up.
pub async fn serve<B: Backends>(
    listeners: Listeners,
    table: watch::Receiver<Arc<Table>>,
    backends: B,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let tls = TlsAcceptor::new(table.clone(), config.challenges.clone())?;
    let endpoint = Arc::new(Endpoint::new(backends, config, table));
    // Nothing outlives us, even when we are dropped.
    let _kill = endpoint.kill.clone().drop_guard();
    let https = async {
        match &listeners.https {
            Some(listener) => accept(&endpoint, listener, Some(Arc::new(tls))).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown => {}
        () = accept(&endpoint, &listeners.http, None) => {}
        () = https => {}
        () = endpoint.watch() => {}
    }
    drop(listeners);
    endpoint.stop.cancel();
    endpoint.client_tasks.close();
    if timeout(endpoint.config.limits.drain, endpoint.client_tasks.wait()).await.is_err() {
        tracing::warn!(
            connections = endpoint.client_tasks.len(),
            "requests did not finish in time and are cut off"
        );
    }
    endpoint.kill.cancel();
    endpoint.client_tasks.wait().await;
    endpoint.backend_tasks.close();
    endpoint.backend_tasks.wait().await;
    Ok(())
}

async fn accept<B: Backends>(
    endpoint: &Arc<Endpoint<B>>,
    listener: &TcpListener,
    tls: Option<Arc<TlsAcceptor>>,
) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let client = endpoint.clients.of(address.ip());
        let admitted = match endpoint.admit(&client) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                endpoint.config.observer.refused(address, refusal);
                continue;
            }
        };
        let (endpoint, tls) = (Arc::clone(endpoint), tls.clone());
        let kill = endpoint.kill.clone();
        endpoint.client_tasks.clone().spawn(kill.run_until_cancelled_owned(async move {
            connection(endpoint, stream, address, tls, (client, admitted)).await;
        }));
    }
}

impl<B: Backends> Endpoint<B> {
    fn new(backends: B, config: Config, table: watch::Receiver<Arc<Table>>) -> Self {
        Self {
            backends,
            pool: Arc::new(Pool::new(&config.limits)),
            config,
            table,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            client_tasks: TaskTracker::new(),
            backend_tasks: TaskTracker::new(),
            hosts: Mutex::default(),
            customers: Mutex::default(),
            requests: Arc::default(),
            connections: Arc::default(),
            clients: Clients::default(),
        }
    }

    fn admit(&self, client: &Client) -> Result<Admitted, Refusal> {
        let limits = &self.config.limits;
        let all = InFlight::below(limits.connections, &self.connections).ok_or(Refusal::Connections)?;
        let one = client.enter(|counts| &counts.connections, limits.connections_per_client);
        Ok((all, one.ok_or(Refusal::ClientConnections)?))
    }

    /// Counts a client's request to a host.
    pub(crate) fn enter(&self, client: &Client, host: &Host) -> Result<Held, Refusal> {
        let limits = &self.config.limits;
        // First: who asks for too much must not be in the way of others meanwhile.
        let one = client.enter(|counts| &counts.requests, limits.requests_per_client);
        let one = one.ok_or(Refusal::ClientBusy)?;
        let below = |limit, count: &Arc<AtomicUsize>| InFlight::below(limit, count).ok_or(Refusal::HostBusy);
        let served = below(limits.requests_per_host, &self.host_count(host, |counts| &counts.requests))?;
        let customer = {
            let mut customers = self.customers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(customers.entry(host.customer).or_default())
        };
        let customer = below(limits.requests_per_customer, &customer)?;
        let all = below(limits.requests, &self.requests)?;
        Ok(Held::new(one, [served, customer, all]))
    }

    /// Counts a client's tunnel to a host, which its request goes on as.
    pub(crate) fn enter_tunnel(&self, client: &Client, host: &Host) -> Result<(Place, InFlight), Refusal> {
        let limits = &self.config.limits;
        let one = client.enter(|counts| &counts.tunnels, limits.tunnels_per_client);
        let one = one.ok_or(Refusal::ClientBusy)?;
        let count = self.host_count(host, |counts| &counts.tunnels);
        Ok((one, InFlight::below(limits.tunnels_per_host, &count).ok_or(Refusal::HostBusy)?))
    }

    fn host_count(&self, host: &Host, which: fn(&HostCounts) -> &Arc<AtomicUsize>) -> Arc<AtomicUsize> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let name = host.name.as_str();
        if let Some(counts) = hosts.get(name) {
            return Arc::clone(which(counts));
        }
        Arc::clone(which(hosts.entry(name.to_owned()).or_default()))
    }

    /// Forgets what the table does not name any more. Never ends.
    async fn watch(&self) {
        let mut table = self.table.clone();
        let mut known = Arc::clone(&table.borrow_and_update());
        let mut sweep = interval((self.config.limits.backend_idle_timeout / LOOKS).max(MIN_LOOK));
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = table.changed() => {
                    let new = Arc::clone(&table.borrow_and_update());
                    self.pool.renewed(&known, &new);
                    known = new;
                }
                _ = sweep.tick() => {}
            }
            self.pool.sweep(&known);
            let used = |count: &Arc<AtomicUsize>| count.load(Ordering::Relaxed) > 0;
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            hosts.retain(|name, counts| {
                known.host(name).is_some() || used(&counts.requests) || used(&counts.tunnels)
            });
            drop(hosts);
            let customers: HashSet<u64> = known.hosts().map(|host| host.customer).collect();
            let mut counts = self.customers.lock().unwrap_or_else(PoisonError::into_inner);
            counts.retain(|customer, count| customers.contains(customer) || used(count));
        }
    }
}

async fn connection<B: Backends>(
    endpoint: Arc<Endpoint<B>>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<TlsAcceptor>>,
    (client, admitted): (Client, Admitted),
) {
    let limits = &endpoint.config.limits;
    // Otherwise small responses wait for the acknowledgement of their first half.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    if let Err(error) = keep_alive(&stream) {
        tracing::debug!(%error, "TCP keepalive");
    }
    let (address, container) = match (endpoint.config.identify)(address) {
        Who::Client => (address, None),
        Who::Container(Identity { container, address: own }) => {
            (SocketAddr::new(own, address.port()), Some(container))
        }
        Who::Unknown => return endpoint.config.observer.refused(address, Refusal::UnknownCaller),
    };
    let mut peer = Peer {
        address,
        container,
        tls: None,
        link: None,
        stalls: None,
        busy: Arc::default(),
        client,
        _admitted: admitted,
    };
    let Some(tls) = tls else {
        return serve_http1(&endpoint, WriteStall::new(stream, limits.progress_timeout), peer).await;
    };
    let handshake =
        endpoint.stop.run_until_cancelled(timeout(limits.handshake_timeout, tls.accept(stream))).await;
    match handshake {
        Some(Ok(Ok(Accepted::Client(stream, tls)))) => {
            let stream = WriteStall::new(stream, limits.progress_timeout);
            let http2 = tls.http2;
            peer.tls = Some(tls);
            if http2 {
                serve_http2(&endpoint, stream, peer).await;
            } else {
                serve_http1(&endpoint, stream, peer).await;
            }
        }
        Some(Ok(Ok(Accepted::Challenge))) | None => {}
        Some(Ok(Err(refusal))) => endpoint.config.observer.refused(address, refusal),
        Some(Err(_)) => endpoint.config.observer.refused(address, Refusal::Handshake),
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_QUESTIONS))
}

async fn serve_http1<B: Backends, S>(endpoint: &Arc<Endpoint<B>>, stream: S, mut peer: Peer)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &endpoint.config.limits;
    let link = Arc::new(Link::default());
    let guard = Guard::new(stream, limits, Arc::clone(&link));
    peer.link = Some(link);
    let peer = Arc::new(peer);
    let service = service_fn(|request| handle(Arc::clone(endpoint), Arc::clone(&peer), request));
    let mut builder = http1::Builder::new();
    // The guard keeps the times and counts, and more strictly.
    builder.header_read_timeout(None).max_headers(limits.head_fields + 1);
    builder.max_buf_size(limits.head_bytes.max(MIN_BUFFER) * 2);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(guard), service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = endpoint.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

async fn serve_http2<B: Backends, S>(endpoint: &Arc<Endpoint<B>>, stream: S, mut peer: Peer)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &endpoint.config.limits;
    let stalls = Arc::new(Stalls::default());
    peer.stalls = Some(Arc::clone(&stalls));
    let peer = Arc::new(peer);
    let busy = Arc::clone(&peer.busy);
    // Streams are tasks of their own, and end with the endpoint.
    let shared = (Arc::clone(endpoint), peer);
    // In a box: otherwise a stream's kilobytes of state are copied again by everything that wraps its task.
    let service =
        service_fn(move |request| Box::pin(handle(Arc::clone(&shared.0), Arc::clone(&shared.1), request)));
    let mut builder = http2::Builder::new(Tracked(endpoint.client_tasks.clone(), endpoint.kill.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.error_resets)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.stream_window.saturating_mul(2))
        .max_send_buf_size(STREAM_SEND_BUFFER)
        .keep_alive_interval(limits.idle_timeout)
        .keep_alive_timeout(limits.head_timeout);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut look = interval((limits.idle_timeout.min(limits.progress_timeout) / LOOKS).max(MIN_LOOK));
    let (mut stopping, mut used) = (false, Instant::now());
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke off");
                }
                return;
            }
            () = endpoint.stop.cancelled(), if !stopping => {
                connection.as_mut().graceful_shutdown();
                stopping = true;
            }
            _ = look.tick() => {
                if busy.load(Ordering::Relaxed) > 0 {
                    used = Instant::now();
                }
                // Also a client that never said anything, or never to the end of a head.
                let idle = used.elapsed() >= limits.idle_timeout;
                if idle && stopping || stalls.any_since(limits.progress_timeout) {
                    return;
                }
                if idle {
                    connection.as_mut().graceful_shutdown();
                    stopping = true;
                }
            }
        }
    }
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone)]
struct Tracked(TaskTracker, CancellationToken);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(self.1.clone().run_until_cancelled_owned(stream));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex};
    use tokio::sync::Notify;

    use super::*;
    use crate::observe::Counters;
    use crate::table::{Backend, Cluster, HostName};

    #[tokio::test]
    async fn clients_are_asked_whether_they_are_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        keep_alive(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_QUESTIONS);
    }

    /// Answers with a body without end, from when it may. Counts its bytes.
    #[derive(Clone, Default)]
    struct Endless(Arc<Notify>, Arc<AtomicUsize>);

    impl Backends for Endless {
        type Stream = DuplexStream;

        async fn connect(&self, _: u64) -> Result<DuplexStream, ConnectError> {
            let (ours, mut theirs) = duplex(1024);
            let Self(go, count) = self.clone();
            tokio::spawn(async move {
                theirs.read_exact(&mut [0]).await.unwrap();
                theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n").await.unwrap();
                go.notified().await;
                while theirs.write_all(&[0; 1024]).await.is_ok() {
                    count.fetch_add(1024, Ordering::SeqCst);
                }
            });
            Ok(ours)
        }
    }

    fn endpoint(backends: Endless) -> Arc<Endpoint<Endless>> {
        let backend = Backend { id: 1, weight: 1, healthy: true };
        let cluster = Arc::new(Cluster { backends: vec![backend] });
        let table = Table::new([Host::new(HostName::new("a").unwrap(), cluster)]).unwrap();
        let config = Config {
            limits: Limits::default(),
            cookie_key: CookieKey::new(&[1; 32]),
            challenges: Challenges::default(),
            identify: Arc::new(|_| Who::Client),
            observer: Arc::new(Counters::default()),
        };
        Arc::new(Endpoint::new(backends, config, watch::channel(Arc::new(table)).1))
    }

    /// A client that grants large windows, and then takes nothing from its socket.
    #[tokio::test]
    async fn little_waits_for_a_client_of_http2_that_takes_nothing() {
        let Endless(go, count) = Endless::default();
        let endpoint = endpoint(Endless(Arc::clone(&go), Arc::clone(&count)));
        let client = endpoint.clients.of([192, 0, 2, 1].into());
        let admitted = endpoint.admit(&client).unwrap();
        let peer = Peer {
            address: ([192, 0, 2, 1], 1).into(),
            container: None,
            tls: None,
            link: None,
            stalls: None,
            busy: Arc::default(),
            client,
            _admitted: admitted,
        };
        let ((near, mut near_valve), (mut far_valve, far)) = (duplex(1024), duplex(1024));
        let shut = Arc::new(Notify::new());
        let (valve, closed) = (Arc::clone(&shut), Arc::new(AtomicBool::new(false)));
        let is_closed = Arc::clone(&closed);
        tokio::spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut near_valve, &mut far_valve) => {}
                () = valve.notified() => {}
            }
            closed.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        });
        tokio::spawn(async move { serve_http2(&endpoint, near, peer).await });
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(16 << 20).initial_connection_window_size(16 << 20);
        let (mut sender, connection) = builder.handshake(TokioIo::new(far)).await.unwrap();
        tokio::spawn(connection);
        let request =
            hyper::Request::get("http://a/").body(http_body_util::Empty::<hyper::body::Bytes>::new());
        let _response = sender.send_request(request.unwrap()).await.unwrap();
        shut.notify_one();
        while !is_closed.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        let mut before = usize::MAX;
        while before != count.load(Ordering::SeqCst) {
            before = count.load(Ordering::SeqCst);
            sleep(Duration::from_millis(200)).await;
        }
        // 16 KiB that are ready to be sent, and beyond that some of these pieces of 1 KiB.
        assert!(before <= 24 * 1024, "{before}");
    }
}
