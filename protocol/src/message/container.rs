//! Containers: what is asked for, what is, and the bytes that flow.
use super::condition::HealthCheck;
use super::network::{Drops, Egress};
use super::node::Transport;
use crate::Prefix;
use crate::constraint::Constraint;
use crate::error::WireError;
use crate::id::{ContainerRef, Digest, Name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// The label that makes a container part of a service.
pub const SERVICE_LABEL: &str = "service";

/// What to run and how. Empty or `None` means the image's own setting, or the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Replaces the image's Entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's Cmd unless empty.
    pub command: Vec<String>,
    /// Added to the image's Env; later wins.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Host name inside; the container's name by default.
    pub hostname: Option<String>,
    /// Give it a pseudo-terminal as stdin, stdout and stderr.
    pub tty: bool,
    /// Keep stdin open for whoever attaches; otherwise it reads end-of-file.
    pub stdin_open: bool,
    /// Mount the root file system read-only.
    pub read_only: bool,
    /// Named volumes to mount.
    pub mounts: Vec<VolumeMount>,
    /// Ports of the broker that lead to ports of the container.
    pub publish: Vec<PublishedPort>,
    /// Bounds on what it may use.
    pub resources: Resources,
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// Labels, for people and selectors.
    pub labels: Vec<(String, String)>,
    /// Everything else that somebody wants otherwise than usual.
    pub settings: Vec<Setting>,
}

/// A wish about a container. New ones are added at the end, so that [`ContainerSpec`] keeps its shape. Of those that can be
/// fulfilled only once, the last counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// What happens when it ends by itself.
    Restart(RestartPolicy),
    /// Signal that asks it to stop; the image's otherwise, or SIGTERM.
    StopSignal(u8),
    /// Seconds from that signal to SIGKILL, unless whoever stops it says otherwise.
    StopSeconds(u16),
    /// An empty file system in memory, mounted over `path`.
    Tmpfs {
        /// Absolute path inside.
        path: String,
        /// Most bytes in it.
        size_bytes: u64,
    },
    /// A capability beyond the usual ones, such as `NET_RAW`.
    AddCapability(String),
    /// One of the usual capabilities less; `ALL` is all of them, before any is added.
    DropCapability(String),
    /// A resource limit of its processes (setrlimit(2)); `u64::MAX` is none.
    Limit {
        /// `nofile`, `nproc`, …: the names of ulimit.
        name: String,
        /// What applies.
        soft: u64,
        /// What it may be raised to.
        hard: u64,
    },
    /// A kernel parameter of its own namespaces: `net.core.somaxconn`, value.
    Sysctl {
        /// With dots.
        name: String,
        /// As it is written.
        value: String,
    },
    /// Ask this name server, and those of other entries, instead of the board's.
    Nameserver(Ipv4Addr),
    /// A line more in /etc/hosts.
    Host {
        /// Name.
        name: String,
        /// Address.
        address: Ipv4Addr,
    },
    /// Somebody will attach right after its start and wants all of its output: the node does not let go of what they have not
    /// read, and lets the container wait instead. Otherwise output never holds a container up.
    Attended,
    /// Its first process is a small init of ours, which passes signals on to its program and reaps orphans.
    Init,
    /// A device of the board (admins only).
    Device {
        /// Path on the board, below /dev.
        device: String,
        /// Path inside, below /dev.
        path: String,
    },
    /// Place it only on boards that are so.
    Constraint(Constraint),
    /// A tar archive (a blob that its owner has sent) that is unpacked into its root directory whenever it starts, before
    /// anything else is mounted there and before its program runs.
    Files(Descriptor),
    /// How it is found out whether it is well; instead of the image's.
    Health(HealthCheck),
    /// Its health is not checked, whatever the image says.
    NoHealth,
    /// All is set up, but its program does not start before it is woken.
    Asleep,
    /// Where its packets may go outside the cluster.
    Egress(Egress),
}

/// Whether a container that ends by itself is started again, after a pause that grows from 0.1 s to 1 min. One that
/// somebody stopped stays stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays ended.
    #[default]
    No,
    /// Unless it ended with code 0.
    OnFailure {
        /// At most so often in one life.
        most: Option<u32>,
    },
    /// In any case.
    Always,
}

impl RestartPolicy {
    /// Whether a container that ended so is started again, after `restarts` restarts in a row.
    #[must_use]
    pub fn applies(self, status: ExitStatus, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { most } => {
                status != ExitStatus::Code(0) && most.is_none_or(|most| restarts < most)
            }
            Self::Always => true,
        }
    }
}

impl ContainerSpec {
    /// The last setting of a kind.
    fn last<T>(&self, of_kind: impl FnMut(&Setting) -> Option<T>) -> Option<T> {
        self.settings.iter().rev().find_map(of_kind)
    }

    /// The last of [`Setting::Restart`].
    #[must_use]
    pub fn restart(&self) -> RestartPolicy {
        let policy = self.last(|setting| match setting {
            Setting::Restart(policy) => Some(*policy),
            _ => None,
        });
        policy.unwrap_or_default()
    }

    /// The service that it is part of: its label `service`, where that is a name.
    #[must_use]
    pub fn service(&self) -> Option<Name> {
        self.labels.iter().find(|(key, _)| key == SERVICE_LABEL).and_then(|(_, value)| value.parse().ok())
    }

    /// Where its packets may go outside the cluster: all of [`Setting::Egress`], or the internet.
    #[must_use]
    pub fn egress(&self) -> Vec<Egress> {
        let own = self.settings.iter().filter_map(|setting| match setting {
            Setting::Egress(egress) => Some(*egress),
            _ => None,
        });
        let own: Vec<Egress> = own.collect();
        if own.is_empty() { vec![Egress::Internet] } else { own }
    }

    /// Archives that are unpacked in it before its program runs, in this order.
    pub fn files(&self) -> impl Iterator<Item = &Descriptor> {
        self.settings.iter().filter_map(|setting| match setting {
            Setting::Files(blob) => Some(blob),
            _ => None,
        })
    }

    /// Whether it is not to start before it is woken.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.settings.contains(&Setting::Asleep)
    }

    /// The last of [`Setting::StopSignal`].
    #[must_use]
    pub fn stop_signal(&self) -> Option<u8> {
        self.last(|setting| match setting {
            Setting::StopSignal(signal) => Some(*signal),
            _ => None,
        })
    }

    /// The last of [`Setting::StopSeconds`], or 10.
    #[must_use]
    pub fn stop_seconds(&self) -> u16 {
        /// As docker has it.
        const USUAL: u16 = 10;
        let seconds = self.last(|setting| match setting {
            Setting::StopSeconds(seconds) => Some(*seconds),
            _ => None,
        });
        seconds.unwrap_or(USUAL)
    }
}

/// A named volume, kept on the node's data partition, mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume; made when first used.
    pub volume: Name,
    /// Absolute path inside.
    pub path: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Where a published port is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishedOn {
    /// On the broker, wherever the container runs. The container sees connections from its own board.
    #[default]
    Broker,
    /// On the board that the container runs on. The container sees who really connects.
    Node,
}

/// A port that leads from outside the cluster to one of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port on the broker or the board.
    pub port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// With this protocol.
    pub transport: Transport,
    /// Whose.
    pub on: PublishedOn,
    /// From these networks only; from anywhere if there are none.
    pub allow: Vec<Prefix>,
    /// Says first who really connects: a PROXY protocol header, version 2 (haproxy's proxy-protocol.txt).
    pub proxy: bool,
}

impl PublishedPort {
    /// A TCP port of the broker that is open to anybody.
    #[must_use]
    pub fn tcp(port: u16, container_port: u16) -> Self {
        let (transport, on) = (Transport::Tcp, PublishedOn::Broker);
        Self { port, container_port, transport, on, allow: Vec::new(), proxy: false }
    }

    /// What no two ports of a place have in common.
    #[must_use]
    pub fn key(&self) -> (Transport, u16) {
        (self.transport, self.port)
    }

    /// Whether somebody at `address` may connect.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                self.allow.is_empty() || self.allow.iter().any(|network| network.contains(address))
            }
            IpAddr::V6(_) => self.allow.is_empty(),
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.on {
            PublishedOn::Broker => "",
            PublishedOn::Node => "node:",
        };
        let transport = match self.transport {
            Transport::Tcp => "",
            Transport::Udp => "/udp",
        };
        write!(f, "{place}{}->{}{transport}", self.port, self.container_port)
    }
}

/// Bounds of one container. `None` is the node's default, never "no bound".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory, in bytes (cgroup v2 `memory.max`).
    pub memory_bytes: Option<u64>,
    /// CPU time, in thousandths of one CPU (cgroup v2 `cpu.max`).
    pub cpu_milli: Option<u32>,
    /// Processes and threads (cgroup v2 `pids.max`).
    pub pids: Option<u32>,
}

/// How a container or an exec'd process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// The kernel killed it because it reached its memory bound.
    OutOfMemory,
}

impl ExitStatus {
    /// As a shell would report it: the code, 128 + signal, or 137.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::OutOfMemory => 137,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited ({code})"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("killed: out of memory"),
        }
    }
}

/// What a container is doing. Times are Unix milliseconds by the clock of whoever observed them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Placed, but its node has not answered yet.
    Pending,
    /// The node fetches and unpacks layers.
    Preparing,
    /// Its process runs.
    Running {
        /// Process id on the node.
        pid: u32,
        /// When it started.
        started_ms: u64,
    },
    /// Its process ended.
    Exited {
        /// How.
        status: ExitStatus,
        /// When.
        finished_ms: u64,
    },
    /// It could not be started.
    Failed(WireError),
    /// Its process ended, and it will be started again.
    Restarting {
        /// How it ended.
        status: ExitStatus,
        /// When.
        finished_ms: u64,
    },
}

impl ContainerState {
    /// Neither running nor on the way to it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match self {
            Self::Exited { .. } | Self::Failed(_) => true,
            Self::Pending | Self::Preparing | Self::Running { .. } | Self::Restarting { .. } => false,
        }
    }
}

/// One image as a node needs it: everything else is in the blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// The OCI image configuration blob.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A blob by content (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// SHA-256 of the blob as stored and sent.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// How it is packed.
    pub media: Media,
}

/// What a blob holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Media {
    /// OCI image configuration, JSON.
    Config,
    /// A plain tar archive.
    LayerTar,
    /// A tar archive, gzip (RFC 1952).
    LayerTarGzip,
    /// A tar archive, Zstandard (RFC 8878).
    LayerTarZstd,
}

/// Which of the three standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Towards the process.
    Stdin,
    /// From the process; also everything of a terminal.
    Stdout,
    /// From the process.
    Stderr,
}

/// What flows on a stream after the reply to exec, attach or logs; in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Bytes of one of the standard streams; at most [`crate::Limits::chunk_bytes`].
    Data {
        /// Which stream.
        channel: Channel,
        /// The bytes.
        #[serde(with = "super::bytes")]
        bytes: Vec<u8>,
    },
    /// No more bytes will come on this channel.
    End(Channel),
    /// The user's terminal has this size now.
    Resize {
        /// Rows of text.
        rows: u16,
        /// Columns of text.
        columns: u16,
    },
    /// Send this signal to the process (the user pressed ctrl-C without a terminal, say).
    Signal(u8),
    /// The process ended; the last frame.
    Exit(ExitStatus),
    /// It cannot go on; the last frame.
    Error(WireError),
    /// Older output was dropped: the ring in memory holds only so much.
    Dropped {
        /// How many bytes are lost.
        bytes: u64,
    },
    /// When the output in the next frame was read from the container, Unix milliseconds.
    Time(u64),
}

/// A process to start in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Working directory; the container's by default.
    pub workdir: Option<String>,
    /// User; the container's by default.
    pub user: Option<String>,
    /// Give it a pseudo-terminal of this size (rows, columns).
    pub tty: Option<(u16, u16)>,
    /// Whether stdin will be sent; otherwise it reads end-of-file.
    pub stdin: bool,
}

/// Files to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopySpec {
    /// The file or directory at this absolute path, as an archive whose only entry at the top has its last name.
    Out {
        /// Inside.
        path: String,
    },
    /// Such an archive, into the directory at this absolute path; if there is none, under this name.
    In {
        /// Inside.
        path: String,
    },
    /// Whatever an SFTP client asks for: version 3 of that protocol, draft-ietf-secsh-filexfer-02, as standard input and
    /// output. It begins in the container's working directory, as exec does.
    Sftp {
        /// User; the container's by default.
        user: Option<String>,
    },
}

impl CopySpec {
    /// Where, if it is about one place.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Out { path } | Self::In { path } => Some(path),
            Self::Sftp { .. } => None,
        }
    }

    /// Whether it reads standard input.
    #[must_use]
    pub fn reads(&self) -> bool {
        match self {
            Self::Out { .. } => false,
            Self::In { .. } | Self::Sftp { .. } => true,
        }
    }
}

/// What of a container's own changes to its files is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangesQuery {
    /// Names: for each an `A` (added), `C` (changed) or `D` (deleted), the path, and a NUL.
    Names,
    /// Everything, as a layer: a tar archive in which deletions are whiteouts (OCI image-spec, layer.md).
    Layer,
}

/// Which part of a container's output is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Keep sending until the container ends.
    pub follow: bool,
    /// Only the last so many lines of what is held.
    pub tail_lines: Option<u32>,
    /// Only what was read from the container later than this.
    pub since: Option<LogSince>,
    /// Say before each piece of output when it was read ([`Frame::Time`]).
    pub times: bool,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogSince {
    /// A time by the node's clock, Unix milliseconds.
    Time(u64),
    /// So many milliseconds ago: the same on a board that does not know the time.
    Age(u64),
}

/// What a container uses, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// When, Unix milliseconds by the node's clock.
    pub time_ms: u64,
    /// CPU time since its start, in microseconds (cgroup v2 `cpu.stat`); `None` where the kernel does not count it.
    pub cpu_us: Option<u64>,
    /// Memory in use, without what could be dropped at once, in bytes (`memory.current` less `inactive_file`).
    pub memory_bytes: Option<u64>,
    /// Its bound, in bytes (`memory.max`).
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Received from the network since its start, in bytes.
    pub received_bytes: Option<u64>,
    /// Sent to the network, in bytes.
    pub sent_bytes: Option<u64>,
    /// Packets that its own firewall has dropped since it was attached to the network; `None` while it is not.
    pub dropped: Option<Drops>,
}

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its number inside.
    pub pid: u32,
    /// Its parent's number inside; 0 of the first.
    pub parent: u32,
    /// User number inside.
    pub uid: u32,
    /// One letter, as in ps(1).
    pub state: char,
    /// CPU time, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that is its and resident, in bytes.
    pub resident_bytes: u64,
    /// Program and arguments, or the name in square brackets.
    pub command: String,
}

/// What a node says about one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Which life of which container.
    pub container: ContainerRef,
    /// What it is doing.
    pub state: ContainerState,
    /// How often it was started again in this life.
    pub restarts: u32,
}
