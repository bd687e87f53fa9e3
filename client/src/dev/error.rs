//! What can go wrong with a virtual cluster.
use crate::seed::SeedError;
use std::path::PathBuf;
use wherry_images::disk::DiskError;
use wherry_protocol::Name;
use wherry_qemu::{MachineError, SegmentError};

/// Why a virtual cluster did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Something that a person asked for is out of range.
    #[error("{what} is {value}, but must be {allowed}")]
    OutOfRange {
        /// What.
        what: &'static str,
        /// What it was to be.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// No images to boot from.
    #[error("there is no image of a {role} for {arch} in {}; build the images with `cargo xtask images`, or name their directory with --images", directory.display())]
    NoImages {
        /// Which program.
        role: &'static str,
        /// For which processor.
        arch: &'static str,
        /// Where they were looked for.
        directory: PathBuf,
    },
    /// A cluster of that name runs.
    #[error("the cluster '{0}' is running already; stop it with `wherry dev down {0}`")]
    Running(Name),
    /// No cluster of that name runs.
    #[error("no cluster '{0}' is running; start one with `wherry dev up {0}`")]
    NotRunning(Name),
    /// No cluster of that name exists.
    #[error("there is no cluster '{0}'; start one with `wherry dev up {0}`")]
    Unknown(Name),
    /// A kept cluster differs from what was asked for.
    #[error(
        "the cluster '{0}' exists with other options; remove it with `wherry dev down {0}`, or start it as it is with `wherry dev up {0}` and no options"
    )]
    Differs(Name),
    /// No machine of that name.
    #[error("there is no machine '{0}' in this cluster; `wherry dev status` lists them")]
    UnknownMachine(String),
    /// The machine already runs.
    #[error("machine '{0}' is running already")]
    MachineRuns(String),
    /// The machine does not run.
    #[error("machine '{0}' is off; switch it on with `wherry dev boot {0}`")]
    MachineIsOff(String),
    /// The process that owns the cluster could not be started or ended early.
    #[error("the cluster's process ended while starting: {0}")]
    Owner(String),
    /// The process that owns the cluster does not answer.
    #[error("the process that runs the cluster '{0}' does not answer; stop it with `wherry dev down {0}`")]
    NoAnswer(Name),
    /// The process that owns the cluster refused.
    #[error("{0}")]
    Refused(String),
    /// Neither XDG_STATE_HOME nor HOME says where to keep state.
    #[error(
        "neither XDG_STATE_HOME nor HOME is an absolute path, so there is no place for the cluster's disks"
    )]
    NoHome,
    /// All loopback addresses that were tried are in use.
    #[error("found no free loopback address for the broker's ports 2020 and 2021; stop other clusters first")]
    NoAddress,
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file of the cluster is damaged.
    #[error("{} is damaged ({source}); remove the cluster with `wherry dev down`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Keys and tokens could not be made.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The network could not be made.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl DevError {
    /// For `map_err`: `action` on `path` failed.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
