//! UDP: every sender gets a stream of its own, for as long as something comes or goes.
use super::{Carried, MAX_CONNECTIONS, TunnelEvent, patiently};
use crate::container::Container;
use crate::error::ClientError;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wherry_protocol::io::{MAX_DATAGRAM_BYTES, SessionError, recv_datagram, send_datagram};

/// After so long without a datagram either way a sender is forgotten: as long as connection tracking remembers one that was
/// answered (nf_conntrack_udp_timeout_stream).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams of one sender that wait for their stream; what comes beyond is lost, as on any full link.
const QUEUE: usize = 64;

/// A UDP port of this computer.
#[derive(Debug)]
pub struct DatagramTunnel {
    socket: UdpSocket,
    address: SocketAddr,
    container: Container,
    port: u16,
    idle: Duration,
}

impl DatagramTunnel {
    /// Listens on `address` (port 0: any free one) for datagrams to `port` in the container.
    pub async fn bind(address: SocketAddr, container: Container, port: u16) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Listen { address, source };
        let socket = UdpSocket::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, container, port, idle: IDLE })
    }

    /// Forgets a sender after so long a silence.
    #[must_use]
    pub fn with_idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves datagrams until it is dropped.
    pub async fn run(self, report: impl Fn(TunnelEvent) + Send + Sync + 'static) {
        let socket = Arc::new(self.socket);
        let mut senders: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
        let mut flows = JoinSet::new();
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        loop {
            let (length, peer) = tokio::select! {
                Some(ended) = flows.join_next() => {
                    // Whatever way it ended, its queue went with it.
                    senders.retain(|_, sender| !sender.is_closed());
                    if let Ok(event) = ended {
                        report(event);
                    }
                    continue;
                }
                received = socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    // Of an earlier answer that did not arrive.
                    Err(_) => continue,
                },
            };
            let datagram = buffer.get(..length).unwrap_or_default().to_vec();
            if let Some(sender) = senders.get(&peer) {
                sender.try_send(datagram).ok();
                continue;
            }
            if senders.len() >= MAX_CONNECTIONS {
                continue;
            }
            let (sender, queue) = mpsc::channel(QUEUE);
            sender.try_send(datagram).ok();
            senders.insert(peer, sender);
            report(TunnelEvent::Opened { peer });
            let flow = Flow {
                socket: Arc::clone(&socket),
                peer,
                container: self.container.clone(),
                idle: self.idle,
            };
            flows.spawn(flow.run(self.port, queue));
        }
    }
}

struct Flow {
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    container: Container,
    idle: Duration,
}

impl Flow {
    async fn run(self, port: u16, queue: mpsc::Receiver<Vec<u8>>) -> TunnelEvent {
        let peer = self.peer;
        match self.carry(port, queue).await {
            Ok((sent, received)) => TunnelEvent::Closed { peer, sent, received },
            Err(error) => TunnelEvent::Failed { peer, error },
        }
    }

    async fn carry(self, port: u16, mut queue: mpsc::Receiver<Vec<u8>>) -> Result<Carried, ClientError> {
        let stream = patiently(|| self.container.open_datagrams(port)).await?;
        let (mut reader, mut writer) = futures_util::AsyncReadExt::split(stream);
        let lost = |error: SessionError| self.container.lost(std::io::Error::other(error));
        let (mut sent, mut received) = (0, 0);
        // One future from beginning to end, for a datagram must not be left half read when something else happens first.
        let (answers, mut answered) = mpsc::channel(QUEUE);
        let reading = async move {
            let mut datagram = Vec::new();
            while recv_datagram(&mut reader, &mut datagram).await? {
                if answers.send(datagram.clone()).await.is_err() {
                    break;
                }
            }
            Ok::<(), SessionError>(())
        };
        tokio::pin!(reading);
        loop {
            let next = async {
                tokio::select! {
                    Some(datagram) = queue.recv() => Ok(Step::Towards(datagram)),
                    Some(datagram) = answered.recv() => Ok(Step::Back(datagram)),
                    ended = &mut reading => ended.map(|()| Step::End),
                }
            };
            match timeout(self.idle, next).await {
                Err(_) | Ok(Ok(Step::End)) => return Ok((sent, received)),
                Ok(Err(error)) => return Err(lost(error)),
                Ok(Ok(Step::Towards(datagram))) => {
                    send_datagram(&mut writer, &datagram).await.map_err(lost)?;
                    sent += datagram.len() as u64;
                }
                Ok(Ok(Step::Back(datagram))) => {
                    self.socket.send_to(&datagram, self.peer).await.ok();
                    received += datagram.len() as u64;
                }
            }
        }
    }
}

enum Step {
    Towards(Vec<u8>),
    Back(Vec<u8>),
    End,
}
