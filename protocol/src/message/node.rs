//! Broker and node. The broker sends what should be; the node makes it so and says what is.
use super::condition::{Condition, Probe};
use super::container::{
    ChangesQuery, ContainerReport, ContainerSpec, CopySpec, ExecSpec, ImageManifest, LogQuery,
};
use super::network::{Called, Drops, RefusedAnswers};
use crate::Overlay;
use crate::id::{AccountId, ContainerId, ContainerRef, Digest, Generation, Name, NodeIndex};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// First message on a stream that a node opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeCall {
    /// The one control stream of the session: after this the node sends [`FromNode`], the broker [`ToNode`].
    Control(Box<NodeHello>),
    /// Asks for a blob. The reply is `Reply::Blob { size }`, then exactly so many raw bytes.
    FetchBlob(Digest),
    /// A container of the node asks the web endpoint. The reply is `Reply::Done`, then what it says and what it hears.
    Web {
        /// Which; its packets have no other sender.
        container: ContainerId,
        /// Whether it came to port 443.
        tls: bool,
    },
}

/// Who the node is and what it already runs, sent when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHello {
    /// What the board is.
    pub facts: NodeFacts,
    /// What it can spare now.
    pub load: NodeLoad,
    /// Every container it knows, running or ended.
    pub inventory: Vec<ContainerReport>,
}

/// One public key for each plane. Boards have two WireGuard devices side by side, so that one can have a new key while
/// packets go through the other.
pub type WireguardKeys = [[u8; 32]; 2];

/// What does not change while a board is up, but for keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// `amd64` or `arm64`, in OCI's words.
    pub architecture: String,
    /// CPUs online.
    pub cpus: u16,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Kernel release, as in `uname -r`.
    pub kernel: String,
    /// Version of the node's software.
    pub software: String,
    /// Random, new at each boot (/proc/sys/kernel/random/boot_id).
    pub boot_id: [u8; 16],
    /// Address of the board on the private network: the outer end of GRE tunnels.
    pub underlay: Ipv4Addr,
    /// Whether the kernel can do GRE and WireGuard; without them containers reach only containers of the same board.
    pub overlay: bool,
    /// Whether cgroup limits are enforced.
    pub limits: bool,
    /// Its WireGuard public keys, one for each plane, new with each boot; `None` without `overlay`.
    pub wireguard: Option<WireguardKeys>,
}

/// What changes all the time; kept in memory only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Memory available, in bytes (MemAvailable of /proc/meminfo).
    pub memory_available_bytes: u64,
    /// One-minute load average, in thousandths.
    pub load_milli: u32,
    /// CPU in use since the last report, in thousandths of all CPUs.
    pub cpu_busy_milli: u16,
    /// Free space of the data partition, in bytes, with what image layers take that go when their room is needed.
    pub disk_free_bytes: u64,
    /// Size of the data partition, in bytes.
    pub disk_bytes: u64,
    /// Seconds since the board booted.
    pub uptime_seconds: u64,
    /// Packets that its firewall has dropped since then, those of containers' own left out.
    pub dropped: Drops,
    /// Answers to LAN discovery that it has not believed since its service started.
    pub refused_answers: RefusedAnswers,
}

/// From the node, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNode {
    /// Every few seconds.
    Load(NodeLoad),
    /// A container's state changed.
    Container(ContainerReport),
    /// The container and all its traces are gone from the node.
    Removed(ContainerRef),
    /// The network is as [`NetworkDesired`] of this revision says, or could not be made so.
    Network {
        /// The revision it answers.
        revision: u64,
        /// Why not, in one sentence.
        error: Option<String>,
    },
    /// How a container that runs is, whenever that changes. Unless it is said it is as by default.
    Condition {
        /// Which life of which container.
        container: ContainerRef,
        /// How it is.
        condition: Condition,
    },
    /// Its keys are these now, as [`ToNode::Rekey`] asked.
    Keys(WireguardKeys),
}

/// To the node, on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// All that should be; the first message. What the node has beyond it is to be removed.
    Sync(NodeDesired),
    /// This container should be as said (new, or changed in `want`).
    Container(Box<ContainerDesired>),
    /// Nothing of this container should be left.
    Remove(ContainerId),
    /// The network should be as said.
    Network(NetworkDesired),
    /// A new key for this plane (0 or 1), which no board sends through. Answered by [`FromNode::Keys`].
    Rekey(u8),
    /// Send through this plane, to each board from the moment on that it has answered there.
    Plane(u8),
}

/// All that a node should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDesired {
    /// The node's number in the cluster.
    pub index: NodeIndex,
    /// The addresses of the cluster's containers.
    pub overlay: Overlay,
    /// Containers.
    pub containers: Vec<ContainerDesired>,
    /// Peers and connections.
    pub network: NetworkDesired,
    /// As [`ToNode::Plane`] says.
    pub plane: u8,
}

/// One container as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDesired {
    /// Which life of which container. A higher generation than the node has means: start anew.
    pub container: ContainerRef,
    /// Whose it is.
    pub account: AccountId,
    /// What its owner calls it.
    pub name: Name,
    /// How to run it.
    pub spec: ContainerSpec,
    /// What to run.
    pub image: ImageManifest,
    /// Its address, within the node's part of the overlay.
    pub address: Ipv4Addr,
    /// Running or not.
    pub want: Want,
    /// Restarts in this life that the broker knows of: a node service that starts anew goes on from there.
    pub restarts: u32,
    /// What it wrote in lives before this one is thrown away.
    pub clean_since: Generation,
}

/// Whether a container should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// It should run: once per generation, unless its restart policy says otherwise.
    Running,
    /// It should not: signal, then after the grace kill.
    Stopped {
        /// First signal to send; SIGTERM stands for the container's own stop signal.
        signal: u8,
        /// Seconds until SIGKILL.
        grace_seconds: u16,
    },
}

/// The node's share of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDesired {
    /// Counts up with each change; answered by [`FromNode::Network`].
    pub revision: u64,
    /// Boards to have a tunnel with: only those that some connection needs.
    pub peers: Vec<Peer>,
    /// Connections with at least one end on this node.
    pub connections: Vec<Connection>,
    /// What the containers of this node and those that they may connect to are called.
    pub names: Vec<Called>,
    /// Containers of this node that rules of the web endpoint name as callers.
    pub callers: Vec<WebCaller>,
}

/// A container that may ask the web endpoint, through its own board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebCaller {
    /// Which.
    pub container: ContainerId,
    /// Its address.
    pub address: Ipv4Addr,
    /// For these names, which lead it to its board: `www.example.org`, or `*.example.org`.
    pub hosts: Vec<String>,
}

/// Another board, as the outer end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number: traffic for its part of the overlay goes there.
    pub index: NodeIndex,
    /// Its address on the private network.
    pub underlay: Ipv4Addr,
    /// Its WireGuard public keys. There is no tunnel to a board without.
    pub wireguard: Option<WireguardKeys>,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// `from` may open connections to `to` on `port`; nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// The container that may connect.
    pub from: ContainerId,
    /// Its address.
    pub from_address: Ipv4Addr,
    /// The container it may connect to.
    pub to: ContainerId,
    /// Its address.
    pub to_address: Ipv4Addr,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
}

/// First message on a stream that the broker opens to a node: a user's request, with who really asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The account, proven by its key to the broker.
    pub account: AccountId,
    /// What it wants.
    pub request: RoutedRequest,
}

/// What a node does on a stream of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoutedRequest {
    /// Reply `Done`, then frames both ways until `Exit`.
    Exec {
        /// In this container.
        container: ContainerRef,
        /// This process.
        spec: ExecSpec,
    },
    /// Reply `Done`, then frames with the output so far and from now on; stdin goes to the container. `Exit` ends it.
    Attach {
        /// To this container.
        container: ContainerRef,
    },
    /// Reply `Done`, then frames; the end of the stream is the end of the log.
    Logs {
        /// Of this container.
        container: ContainerRef,
        /// Which part.
        query: LogQuery,
    },
    /// Reply `Done`, then raw bytes both ways: a TCP connection to this port inside the container's network namespace. For
    /// UDP datagrams both ways (`u16` length, little endian, then the datagram), until the stream ends.
    Tunnel {
        /// Into this container.
        container: ContainerRef,
        /// To this port.
        port: u16,
        /// With this protocol.
        transport: Transport,
    },
    /// Sends a signal. Reply `Done`.
    Signal {
        /// To the first process of this container.
        container: ContainerRef,
        /// This one.
        signal: u8,
    },
    /// Test images only: makes the node service abort, to prove that containers outlive it. Refused elsewhere.
    Crash,
    /// What it uses now. Reply `Stats`.
    Stats {
        /// Which.
        container: ContainerRef,
    },
    /// What runs in it. Reply `Processes`.
    Processes {
        /// In which.
        container: ContainerRef,
    },
    /// Reply `Done`, then frames: a tar archive (POSIX.1-1988, with GNU long names) as standard output or standard input,
    /// what went wrong in words as standard error, then `Exit`, with code 0 if all was copied.
    Copy {
        /// Out of or into this container.
        container: ContainerRef,
        /// What.
        copy: CopySpec,
    },
    /// Freezes it, or lets it go on. Reply `Done` once it is so.
    Pause {
        /// Which.
        container: ContainerRef,
        /// Whether to freeze it.
        paused: bool,
    },
    /// Asks again and again. Reply `Done` as soon as the answer is yes, an error when the time is over.
    Ready {
        /// Whom.
        container: ContainerRef,
        /// What; how its own health check judges otherwise.
        probe: Option<Probe>,
        /// How long, in milliseconds.
        timeout_ms: u32,
    },
    /// Reply `Base`, then frames: what was asked for as standard output, then `Exit`, or `Error`.
    Changes {
        /// Whose.
        container: ContainerRef,
        /// What of them.
        query: ChangesQuery,
    },
}
