//! What supervisor and service say to each other: one postcard message per SEQPACKET datagram, descriptors attached.
//!
//! It never leaves the machine and both ends come from the same ELF, but the service parses hostile input for a living,
//! so the supervisor treats what it sends as hostile too.
mod attach;
mod endpoint;

pub use attach::{Descriptors, DescriptorsError};
pub use endpoint::{CONTROL_FD_ENV, ControlError, Endpoint};

use serde::{Deserialize, Serialize};
use std::ops::BitOr;

/// Longest datagram, in bytes. The largest legal message, a launch with [`MAX_KEPT`] labels, needs about 600.
pub const MAX_DATAGRAM: usize = 4096;
/// Most descriptors the supervisor keeps for one process.
pub const MAX_KEPT: usize = 16;
/// Longest label of a kept descriptor, in bytes.
pub const MAX_LABEL: usize = 32;
/// Longest [`Launch::argument`], in bytes.
pub const MAX_ARGUMENT: usize = 64;
/// Most [`Launch::extra`] descriptors.
pub const MAX_EXTRA: u8 = 4;

/// One life of one container: a late report about an earlier life carries another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// The service's number for it.
    pub id: u64,
    /// Counts the launches of that id.
    pub generation: u32,
}

/// From the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Fork a process. Answered by [`FromSupervisor::Launched`] or [`FromSupervisor::LaunchFailed`].
    Launch(Launch),
    /// Send a signal to a launched process. No answer; nothing happens if it has ended.
    Signal {
        /// Which process.
        key: ProcessKey,
        /// Signal number as in signal(7).
        signal: i32,
    },
    /// Forget an ended process and close what was kept for it; a running one is killed first and forgotten at its end.
    Release(ProcessKey),
    /// Heartbeat: the service still serves. Without it the hardware watchdog is not fed and the service is restarted.
    Alive,
    /// Shut the machine down in order.
    Power(Power),
    /// Close one kept descriptor: the last copy of a pipe's write end, so that its reader sees the end. No answer; an
    /// unknown process or label changes nothing.
    CloseKept {
        /// Which process.
        key: ProcessKey,
        /// Which of its descriptors.
        label: String,
    },
}

/// A process to fork: `/proc/self/exe <argument>` in new namespaces.
///
/// The datagram carries, in this order: plan (a sealed memory file; the child's descriptor 3), read end of the go pipe
/// (4), write end of the report pipe (5), stdin (0), stdout (1), stderr (2), the cgroup's directory if
/// [`cgroup`](Self::cgroup), [`extra`](Self::extra) more for the child (6 and up), then one per label of
/// [`kept`](Self::kept). [`Descriptors`] puts them in order and takes them apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Its identity from now on.
    pub key: ProcessKey,
    /// New namespaces of the process.
    pub namespaces: Namespaces,
    /// The only argument, e.g. `container`.
    pub argument: String,
    /// Whether a cgroup directory is attached, in which the process starts.
    pub cgroup: bool,
    /// Descriptors for the child beyond the six; at most [`MAX_EXTRA`].
    pub extra: u8,
    /// Labels of the descriptors the supervisor keeps until [`ToSupervisor::Release`]; at most [`MAX_KEPT`].
    pub kept: Vec<String>,
}

/// How the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// And stays off.
    PowerOff,
    /// And comes up again.
    Reboot,
}

/// From the supervisor. Each incarnation of the service first gets one [`Entry`](Self::Entry) per known process, then
/// [`InventoryEnd`](Self::InventoryEnd).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSupervisor {
    /// A process launched by an earlier incarnation. Attached: a pidfd if it runs, then the kept descriptors.
    Entry {
        /// Which process.
        key: ProcessKey,
        /// Process id in the supervisor's namespace.
        pid: i32,
        /// When it was launched, in milliseconds since boot (`CLOCK_BOOTTIME`).
        started_ms: u64,
        /// Whether it still runs.
        state: EntryState,
        /// Labels of the attached kept descriptors.
        kept: Vec<String>,
    },
    /// That was the inventory.
    InventoryEnd,
    /// The process exists. Attached: its pidfd, good for poll, signals and setns; the status comes by
    /// [`Exited`](Self::Exited), because only a parent may wait.
    Launched {
        /// Which process.
        key: ProcessKey,
        /// Process id in the supervisor's namespace.
        pid: i32,
    },
    /// It does not exist, and nothing of the request is kept.
    LaunchFailed {
        /// Which request.
        key: ProcessKey,
        /// Why, as in errno(3).
        errno: i32,
        /// What failed.
        step: LaunchStep,
    },
    /// A process ended. Its record and descriptors are kept until [`ToSupervisor::Release`].
    Exited {
        /// Which process.
        key: ProcessKey,
        /// How.
        status: RawStatus,
    },
}

/// Whether a process of the inventory still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryState {
    /// It runs.
    Running,
    /// It ended, with this status.
    Exited(RawStatus),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawStatus {
    /// It returned this exit code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl RawStatus {
    /// As shells count: the exit code, or 128 + signal number.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        const SIGNALLED: i32 = 128;
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(SIGNALLED),
        }
    }
}

/// What failed in a launch, before the child's own program took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchStep {
    /// The key is in use: running, or ended and not released (`EEXIST`).
    Key,
    /// Too many processes are known already (`EAGAIN`), or the machine is going down (`ESHUTDOWN`).
    Table,
    /// Descriptors or texts do not match the request (`EINVAL`).
    Request,
    /// clone3.
    Clone,
    /// Descriptors, signals or session of the child.
    Child,
    /// execve of our own program.
    Exec,
}

/// A set of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Namespaces(u8);

impl Namespaces {
    /// None: the supervisor's own.
    pub const NONE: Self = Self(0);
    /// Mounts.
    pub const MOUNT: Self = Self(1);
    /// Process ids.
    pub const PID: Self = Self(2);
    /// Interfaces, addresses, rules.
    pub const NET: Self = Self(4);
    /// Host name.
    pub const UTS: Self = Self(8);
    /// System V IPC and message queues.
    pub const IPC: Self = Self(16);
    /// View of the cgroup tree.
    pub const CGROUP: Self = Self(32);
    /// All of them.
    pub const ALL: Self = Self(63);

    /// Whether every namespace of `other` is in this set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Namespaces {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl From<Namespaces> for u8 {
    fn from(set: Namespaces) -> Self {
        set.0
    }
}

impl TryFrom<u8> for Namespaces {
    type Error = &'static str;
    fn try_from(bits: u8) -> Result<Self, Self::Error> {
        if bits & !Self::ALL.0 == 0 { Ok(Self(bits)) } else { Err("unknown namespace bit") }
    }
}

#[cfg(test)]
mod tests;
