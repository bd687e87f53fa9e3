//! Containers: what is asked for, what is, and the bytes that flow.
use crate::error::WireError;
use crate::id::{ContainerRef, Digest, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

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

/// A TCP port of the broker that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port on the broker.
    pub port: u16,
    /// Port in the container.
    pub container_port: u16,
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
}

impl ContainerState {
    /// Neither running nor on the way to it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match self {
            Self::Exited { .. } | Self::Failed(_) => true,
            Self::Pending | Self::Preparing | Self::Running { .. } => false,
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

/// Which part of a container's output is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Keep sending until the container ends.
    pub follow: bool,
    /// Only the last so many lines of what is held.
    pub tail_lines: Option<u32>,
}

/// What a node says about one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Which life of which container.
    pub container: ContainerRef,
    /// What it is doing.
    pub state: ContainerState,
}
