//! Questions in, answers out.
use super::answer::{Verdict, answer, failure};
use super::directory::Directory;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use wherry_net::dns::{Transport, Upstream};

/// The port of DNS (RFC 1035 §4.2).
const PORT: u16 = 53;
/// Time between attempts to listen: the board's address may not be there yet.
const RETRY: Duration = Duration::from_secs(1);

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much the containers of a board may ask at once.
#[derive(Debug, Clone, Copy)]
pub struct DnsLimits {
    /// Questions of one container that wait for servers outside, and its TCP connections.
    pub per_asker: usize,
    /// Of all of them together.
    pub all: usize,
    /// How long a TCP connection may be silent.
    pub idle: Duration,
    /// Longest question over UDP, in bytes.
    pub question_bytes: usize,
}

impl DnsLimits {
    /// A board's.
    pub const BOARD: Self =
        Self { per_asker: 32, all: 256, idle: Duration::from_secs(10), question_bytes: 4096 };
}

struct Server {
    directory: watch::Receiver<Arc<Directory>>,
    upstream: watch::Receiver<Upstream>,
    limits: DnsLimits,
    all: Arc<Semaphore>,
    /// Of all places those that connections may take, so that some are left for datagrams.
    connections: Arc<Semaphore>,
    askers: Mutex<HashMap<Ipv4Addr, usize>>,
    turn: AtomicUsize,
}

/// Serves on the board's `address` for as long as it is polled, from the moment the address is there.
pub async fn serve(
    address: Ipv4Addr,
    directory: watch::Receiver<Arc<Directory>>,
    upstream: watch::Receiver<Upstream>,
    limits: DnsLimits,
) {
    let at = SocketAddrV4::new(address, PORT);
    let mut silent = false;
    loop {
        let bound = async { Ok((UdpSocket::bind(at).await?, TcpListener::bind(at).await?)) }.await;
        match bound {
            Ok((udp, tcp)) => {
                silent = false;
                serve_on(udp, tcp, directory.clone(), upstream.clone(), limits).await;
            }
            Err::<_, io::Error>(error) if !silent => {
                tracing::warn!("the DNS server cannot listen on {at}, trying again: {error}");
                silent = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Serves on these sockets until the one for datagrams fails.
pub async fn serve_on(
    udp: UdpSocket,
    tcp: TcpListener,
    directory: watch::Receiver<Arc<Directory>>,
    upstream: watch::Receiver<Upstream>,
    limits: DnsLimits,
) {
    let all = Arc::new(Semaphore::new(limits.all));
    let askers = Mutex::default();
    let connections_at_once = Arc::new(Semaphore::new(limits.all / 2));
    let server = Arc::new(Server {
        directory,
        upstream,
        limits,
        all,
        connections: connections_at_once,
        askers,
        turn: AtomicUsize::new(0),
    });
    tokio::select! {
        error = datagrams(&server, Arc::new(udp)) => tracing::warn!("the DNS server's UDP socket: {error}"),
        () = connections(&server, tcp) => {}
    }
}

async fn datagrams(server: &Arc<Server>, udp: Arc<UdpSocket>) -> io::Error {
    let mut buffer = vec![0; server.limits.question_bytes];
    loop {
        let (length, from) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Of an earlier answer that did not arrive.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return error,
        };
        let question = buffer.get(..length).unwrap_or_default();
        let SocketAddr::V4(asker) = from else { continue };
        match server.judge(*asker.ip(), question, Transport::Udp) {
            Verdict::Ignore => {}
            Verdict::Answer(answer) => send(&udp, &answer, from).await,
            Verdict::Forward => {
                let (server, udp, question) = (Arc::clone(server), Arc::clone(&udp), question.to_vec());
                let Some(place) = server.enter(*asker.ip()) else {
                    tracing::debug!(%asker, "asks more than it may at once");
                    continue;
                };
                tokio::spawn(async move {
                    if let Some(answer) = server.forward(&question, Transport::Udp).await {
                        send(&udp, &answer, from).await;
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn send(udp: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = udp.send_to(answer, to).await {
        tracing::debug!(%to, "an answer could not be sent: {error}");
    }
}

async fn connections(server: &Arc<Server>, tcp: TcpListener) {
    loop {
        let (stream, from) = match tcp.accept().await {
            Ok(accepted) => accepted,
            // For lack of descriptors, say; those who are connected do not suffer.
            Err(error) => {
                tracing::debug!("a connection to the DNS server could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let SocketAddr::V4(asker) = from else { continue };
        let asker = *asker.ip();
        let Ok(connection) = Arc::clone(&server.connections).try_acquire_owned() else { continue };
        let Some(place) = server.enter(asker) else { continue };
        let server = Arc::clone(server);
        tokio::spawn(async move {
            if let Err(error) = converse(&server, asker, stream).await {
                tracing::debug!(%asker, "DNS over TCP: {error}");
            }
            drop((place, connection));
        });
    }
}

/// One question after the other (RFC 7766 §6.2.1), until the asker has had enough or is silent for too long.
async fn converse(server: &Server, asker: Ipv4Addr, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let read = async {
            let mut question = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut question).await?;
            io::Result::Ok(question)
        };
        let question = match timeout(server.limits.idle, read).await {
            Ok(Ok(question)) => question,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let answer = match server.judge(asker, &question, Transport::Tcp) {
            Verdict::Ignore => return Ok(()),
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => server.forward(&question, Transport::Tcp).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes(), answer.as_slice()].concat();
        // Who does not read does not keep its place either.
        timeout(server.limits.idle, stream.write_all(&message)).await??;
    }
}

/// One question's or connection's place; given back on drop.
struct Place {
    server: Arc<Server>,
    asker: Ipv4Addr,
    _one_of_all: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut askers = self.server.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = askers.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                askers.remove(&self.asker);
            }
        }
    }
}

impl Server {
    fn judge(&self, asker: Ipv4Addr, question: &[u8], over: Transport) -> Verdict {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let directory = Arc::clone(&self.directory.borrow());
        answer(&directory, asker, question, over, turn)
    }

    async fn forward(&self, question: &[u8], over: Transport) -> Option<Vec<u8>> {
        let upstream = self.upstream.borrow().clone();
        match upstream.ask(question, over).await {
            Some(answer) => Some(answer),
            None => failure(question),
        }
    }

    fn enter(self: &Arc<Self>, asker: Ipv4Addr) -> Option<Place> {
        let one_of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = askers.entry(asker).or_default();
        if *count >= self.limits.per_asker {
            return None;
        }
        *count += 1;
        Some(Place { server: Arc::clone(self), asker, _one_of_all: one_of_all })
    }
}
