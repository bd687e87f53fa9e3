//! Ports of this computer that lead into containers.
//!
//! ```text
//! mod        one port that leads to one port of a container: TCP
//! datagrams  the same for UDP
//! proxy      one port that leads wherever its user says: SOCKS5 (RFC 1928)
//! ```
mod datagrams;
mod proxy;

pub use datagrams::DatagramTunnel;
pub use proxy::Proxy;

use crate::container::Container;
use crate::error::ClientError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_protocol::ErrorCode;
use wherry_protocol::io::Stream;

/// Connections of one tunnel at the same time. Those for which the session has no stream wait a while for one.
const MAX_CONNECTIONS: usize = 256;
/// Pause after the system refused a connection, for lack of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For how long a connection waits for a broker or a board that has gone: a restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two attempts meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What happens on a tunnel.
#[derive(Debug)]
pub enum TunnelEvent {
    /// Somebody connected, or sent a first datagram.
    Opened {
        /// From here.
        peer: SocketAddr,
    },
    /// A connection ended in order, or nothing came for long.
    Closed {
        /// From here.
        peer: SocketAddr,
        /// Bytes towards the container.
        sent: u64,
        /// Bytes from the container.
        received: u64,
    },
    /// A connection could not be made, or broke; the tunnel goes on.
    Failed {
        /// From here.
        peer: SocketAddr,
        /// Why.
        error: ClientError,
    },
}

/// Bytes of one connection: towards the container, and back.
type Carried = (u64, u64);

/// A listening port of this computer.
#[derive(Debug)]
pub struct Tunnel {
    listener: TcpListener,
    address: SocketAddr,
    container: Container,
    port: u16,
}

impl Tunnel {
    /// Listens on `address` (port 0: any free one) for connections to `port` in the container.
    pub async fn bind(address: SocketAddr, container: Container, port: u16) -> Result<Self, ClientError> {
        let (listener, address) = listen(address).await?;
        Ok(Self { listener, address, container, port })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until it is dropped. A session that breaks is renewed for the next connection, and connections
    /// that come while the broker is away wait for it for a while.
    pub async fn run(self, report: impl Fn(TunnelEvent) + Send + Sync + 'static) {
        let (container, port) = (self.container, self.port);
        let serve = move |socket| carry(socket, container.clone(), port);
        accept(self.listener, serve, Arc::new(report)).await;
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ClientError> {
    let failed = |source| ClientError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Gives each connection to `serve`, so many at a time, and tells what comes of it.
async fn accept<F>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F,
    report: Arc<impl Fn(TunnelEvent) + Send + Sync + 'static>,
) where
    F: Future<Output = Result<Carried, ClientError>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Delaying small packets here would only add to what the path does anyway; if it cannot be set, nothing is lost.
        socket.set_nodelay(true).unwrap_or_default();
        let (served, report) = (serve(socket), Arc::clone(&report));
        connections.spawn(async move {
            report(TunnelEvent::Opened { peer });
            report(match served.await {
                Ok((sent, received)) => TunnelEvent::Closed { peer, sent, received },
                Err(error) => TunnelEvent::Failed { peer, error },
            });
            drop(permit);
        });
    }
}

async fn carry(socket: TcpStream, container: Container, port: u16) -> Result<Carried, ClientError> {
    let stream = patiently(|| container.open_port(port)).await?;
    splice(socket, &container, stream).await
}

async fn splice(
    mut socket: TcpStream,
    container: &Container,
    stream: Stream,
) -> Result<Carried, ClientError> {
    let mut stream = stream.compat();
    let carried = tokio::io::copy_bidirectional(&mut socket, &mut stream).await;
    if carried.is_err() {
        // Cut off is not ended: whoever connected must be able to tell.
        socket.set_zero_linger().ok();
    }
    carried.map_err(|error| container.lost(error))
}

/// Tries again for a while when nobody answers or there is no room: the broker or the board may be on its way back, and others
/// end.
async fn patiently<T, F>(open: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open().await {
            Err(error) if is_passing(&error) && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}

fn is_passing(error: &ClientError) -> bool {
    let passing = [ErrorCode::NodeUnreachable, ErrorCode::Busy];
    error.is_lost() || error.is_absence() || error.code().is_some_and(|code| passing.contains(&code))
}
