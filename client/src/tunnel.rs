//! A port of this computer that leads to a port inside a container.
use crate::container::Container;
use crate::error::ClientError;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

/// Connections of one tunnel at the same time; below the streams that a session may have open.
const MAX_CONNECTIONS: usize = 256;
/// Pause after the system refused a connection, for lack of descriptors, say.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What happens on a tunnel.
#[derive(Debug)]
pub enum TunnelEvent {
    /// Somebody connected.
    Opened {
        /// From here.
        peer: SocketAddr,
    },
    /// A connection ended in order.
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
        let failed = |source| ClientError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, container, port })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until it is dropped. A session that breaks is renewed for the next connection.
    pub async fn run(self, report: impl Fn(TunnelEvent) + Send + Sync + 'static) {
        let report = Arc::new(report);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let (socket, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(_) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (container, port, report) = (self.container.clone(), self.port, Arc::clone(&report));
            connections.spawn(async move {
                report(TunnelEvent::Opened { peer });
                report(match carry(socket, &container, port).await {
                    Ok((sent, received)) => TunnelEvent::Closed { peer, sent, received },
                    Err(error) => TunnelEvent::Failed { peer, error },
                });
                drop(permit);
            });
        }
    }
}

async fn carry(mut socket: TcpStream, container: &Container, port: u16) -> Result<(u64, u64), ClientError> {
    // Delaying small packets here would only add to what the path does anyway; if it cannot be set, nothing is lost.
    socket.set_nodelay(true).unwrap_or_default();
    let mut stream = container.open_port(port).await?.compat();
    tokio::io::copy_bidirectional(&mut socket, &mut stream).await.map_err(|error| container.lost(error))
}
