//! The network of a board as the node's agent sees it.
use super::board::Board;
use super::error::NetError;
use super::tunnel;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};
use wherry_net::setup::Uplink;
use wherry_protocol::message::{
    ContainerDesired, Drops, Egress, NetworkDesired, PublishedOn, PublishedPort, WireguardKeys,
};
use wherry_protocol::{ContainerId, NodeIndex, Overlay};

/// What does not change while the service runs.
#[derive(Debug, Clone, Copy)]
pub struct NetConfig {
    /// How often the kernel's state is compared with what is wanted, unasked.
    pub reconcile: Duration,
}

impl NetConfig {
    /// A node's: ten seconds until something that was deleted by hand is back.
    pub const NODE: Self = Self { reconcile: Duration::from_secs(10) };
}

/// A container of this board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalContainer {
    /// Which.
    pub id: ContainerId,
    /// Its overlay address.
    pub address: Ipv4Addr,
    /// Where it may send outside the cluster.
    pub egress: Vec<Egress>,
    /// Its ports that are published on this board.
    pub published: Vec<PublishedPort>,
}

impl LocalContainer {
    /// As the broker wants it.
    #[must_use]
    pub fn of(desired: &ContainerDesired) -> Self {
        let on_node = |port: &&PublishedPort| port.on == PublishedOn::Node;
        Self {
            id: desired.container.id,
            address: desired.address,
            egress: desired.spec.egress(),
            published: desired.spec.publish.iter().filter(on_node).cloned().collect(),
        }
    }
}

type Job = Box<dyn FnOnce(&mut Board) + Send>;

/// The network of a board. Cheap to clone; all clones are the same network. Its devices and rules stay when the last one
/// is dropped, so that a restart of the service interrupts nothing.
#[derive(Debug, Clone)]
pub struct Network {
    jobs: Sender<Job>,
    keys: Arc<watch::Sender<Option<WireguardKeys>>>,
    drops: watch::Receiver<Drops>,
}

impl Network {
    /// Takes over the network namespace of the calling thread. On a fresh board this closes the firewall at once; what a
    /// former life of the service left working goes on working until the first [`Network::apply`].
    ///
    /// # Errors
    /// When the kernel lacks nf_tables or the process CAP_NET_ADMIN.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let (jobs, queue) = mpsc::channel();
        let (opened, result) = mpsc::sync_channel(1);
        let (counted, drops) = watch::channel(Drops::default());
        // A new thread inherits the namespace of the one that makes it.
        let thread = std::thread::Builder::new().name("wherry-net".into()).spawn(move || {
            let board = Board::open();
            let known = board.as_ref().map(|board| board.keys()).map_err(Clone::clone);
            let told = opened.send(known);
            if let (Ok(board), Ok(())) = (board, told) {
                work(board, &queue, config.reconcile, &counted);
            }
        });
        thread.map_err(|_| NetError::Stopped)?;
        let (keys, _) = watch::channel(result.recv().map_err(|_| NetError::Stopped)??);
        Ok(Self { jobs, keys: Arc::new(keys), drops })
    }

    /// The board's WireGuard keys, if it can make tunnels to other boards.
    #[must_use]
    pub fn keys(&self) -> Option<WireguardKeys> {
        *self.keys.borrow()
    }

    /// Makes a new key for one of the two devices below the tunnels; what goes through the other one is not touched. Gives all
    /// keys, or `None` where there can be no tunnels.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn rekey(&self, plane: u8) -> Result<Option<WireguardKeys>, NetError> {
        let keys = self.call(move |board| board.rekey(plane)).await??;
        self.keys.send_replace(keys);
        Ok(keys)
    }

    /// Sends to other boards through this device, to each from the moment on that it has answered there.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn set_plane(&self, plane: u8) -> Result<(), NetError> {
        self.call(move |board| board.set_plane(plane)).await?
    }

    /// Packets that the board's own rules had dropped when the kernel was last looked at.
    #[must_use]
    pub fn board_drops(&self) -> Drops {
        *self.drops.borrow()
    }

    /// Packets that a container's rules have dropped; `None` when it is not attached.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn drops(&self, id: ContainerId) -> Result<Option<Drops>, NetError> {
        self.call(move |board| board.drops_of(id)).await?
    }

    /// Says how the board reaches the outside, now and whenever that changes; `None` when it does not any more.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn set_uplink(&self, uplink: Option<Uplink>) -> Result<(), NetError> {
        self.call(|board| board.set_uplink(uplink)).await?
    }

    /// The board's number and the addresses of all containers are known: makes the bridge.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn start(&self, index: NodeIndex, overlay: Overlay) -> Result<(), NetError> {
        self.call(move |board| board.start(index, overlay)).await?
    }

    /// Makes tunnels and rules what the broker wants. `containers` are all of this board's, attached or not: what a
    /// former life left of others is removed.
    ///
    /// # Errors
    /// See [`NetError`]. After [`NetError::NoTunnels`] and [`NetError::NoUplink`] everything but the tunnels holds.
    pub async fn apply(
        &self,
        wanted: &NetworkDesired,
        containers: &[LocalContainer],
    ) -> Result<(), NetError> {
        let (wanted, containers) = (wanted.clone(), containers.to_vec());
        self.call(move |board| board.apply(wanted, &containers)).await?
    }

    /// Connects a container: its rules, then `eth0` with its address. `namespace` is a pidfd of a process in the
    /// container's network namespace or the namespace's file; it is needed only during the call. A container that is
    /// connected already (the service was restarted) is taken over as it is.
    ///
    /// # Errors
    /// See [`NetError`]; nothing of the container is left then.
    pub async fn attach(&self, container: LocalContainer, namespace: OwnedFd) -> Result<(), NetError> {
        self.call(move |board| board.attach(container, namespace.as_fd())).await?
    }

    /// Disconnects a container and forgets it. One that is not attached is no error.
    ///
    /// # Errors
    /// See [`NetError`].
    pub async fn detach(&self, id: ContainerId) -> Result<(), NetError> {
        self.call(move |board| board.detach(id)).await?
    }

    /// A TCP connection to a port of a container, made from within its namespace: to its address, or where nothing
    /// listens there, to its loopback.
    ///
    /// # Errors
    /// As connect(2); `NotFound` when the container is not attached.
    pub async fn connect(&self, id: ContainerId, port: u16) -> io::Result<TcpStream> {
        let place = self.call(move |board| board.place(id)).await.and_then(|place| place);
        let (address, namespace) = place.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
        match tunnel::connect(namespace.as_fd(), SocketAddrV4::new(address, port)).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tunnel::connect(namespace.as_fd(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).await
            }
            other => other,
        }
    }

    /// A UDP socket to a port of a container, made from within its namespace: whether somebody listens there shows only when
    /// an answer comes.
    ///
    /// # Errors
    /// As connect(2); `NotFound` when the container is not attached.
    pub async fn connect_udp(&self, id: ContainerId, port: u16) -> io::Result<UdpSocket> {
        let place = self.call(move |board| board.place(id)).await.and_then(|place| place);
        let (address, namespace) = place.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
        tunnel::connect_udp(namespace.as_fd(), SocketAddrV4::new(address, port)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Board) -> T + Send + 'static,
    ) -> Result<T, NetError> {
        let (answer, result) = oneshot::channel();
        let job = move |board: &mut Board| {
            // Whoever asked may have gone; the work is done all the same.
            answer.send(job(board)).ok();
        };
        self.jobs.send(Box::new(job)).map_err(|_| NetError::Stopped)?;
        result.await.map_err(|_| NetError::Stopped)
    }
}

/// Does jobs until the last [`Network`] is gone, and looks after the kernel every now and then, however many there are.
fn work(mut board: Board, queue: &Receiver<Job>, reconcile: Duration, counted: &watch::Sender<Drops>) {
    let mut next = Instant::now() + reconcile;
    loop {
        let job = match next.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(RecvTimeoutError::Timeout),
            left => queue.recv_timeout(left),
        };
        match job {
            Ok(job) => job(&mut board),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = board.look_after() {
                    tracing::warn!(%error, "the network is not as it should be");
                }
                match board.drops() {
                    Ok(drops) => drop(counted.send(drops)),
                    Err(error) => tracing::warn!(%error, "the firewall's counters cannot be read"),
                }
                next = Instant::now() + reconcile;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
