//! What the supervisor tells people.
use crate::control::{Power, ProcessKey, RawStatus};
use std::fmt;

/// An event worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The service ended and will be started again.
    ServiceEnded {
        /// How.
        status: RawStatus,
        /// Pause until the restart, in milliseconds.
        restart_ms: u64,
    },
    /// The service could not be started and will be tried again.
    ServiceNotStarted {
        /// Pause until then, in milliseconds.
        restart_ms: u64,
    },
    /// No heartbeat: the service is killed.
    ServiceSilent {
        /// For how long, in milliseconds.
        silent_ms: u64,
    },
    /// It does not read its messages: the service is killed.
    ServiceDeaf,
    /// Going down.
    GoingDown {
        /// How.
        power: Power,
        /// Processes that get a TERM.
        processes: usize,
    },
    /// Some did not heed the TERM in time.
    Killing {
        /// How many.
        processes: usize,
    },
    /// Some are still there after KILL.
    GivingUp {
        /// How many.
        processes: usize,
    },
    /// A signal for, or the release of, a process that is not there.
    NoSuchProcess(ProcessKey),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceEnded { status: RawStatus::Code(code), restart_ms } => {
                write!(f, "service ended with code {code}, restart in {restart_ms} ms")
            }
            Self::ServiceEnded { status: RawStatus::Signal(signal), restart_ms } => {
                write!(f, "service killed by signal {signal}, restart in {restart_ms} ms")
            }
            Self::ServiceNotStarted { restart_ms } => {
                write!(f, "service not started, retry in {restart_ms} ms")
            }
            Self::ServiceSilent { silent_ms } => write!(f, "service silent for {silent_ms} ms, killing it"),
            Self::ServiceDeaf => write!(f, "service does not read its messages, killing it"),
            Self::GoingDown { power: Power::PowerOff, processes } => {
                write!(f, "powering off, stopping {processes} processes")
            }
            Self::GoingDown { power: Power::Reboot, processes } => {
                write!(f, "rebooting, stopping {processes} processes")
            }
            Self::Killing { processes } => {
                write!(f, "{processes} processes did not stop in time, killing them")
            }
            Self::GivingUp { processes } => {
                write!(f, "{processes} processes survive KILL, going on without them")
            }
            Self::NoSuchProcess(key) => write!(f, "no process {}.{}", key.id, key.generation),
        }
    }
}
