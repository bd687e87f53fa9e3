//! What can go wrong, each in one sentence.
use super::store::{LOCK_PATIENCE, Status};
use std::path::{Path, PathBuf};
use wherry_sys::SysError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The words make no command.
    #[error("{0}, see 'wherry-node oci --help'")]
    Usage(String),
    /// An id that is none.
    #[error(
        "container id '{0}' cannot be used: give 1 to 255 letters, digits, '_', '-', '+' or '.', beginning with a letter, a digit or '_'"
    )]
    Id(String),
    /// Nothing has that id.
    #[error("no container '{0}', 'list' shows those there are")]
    NoSuchContainer(String),
    /// Something has it already.
    #[error("container '{0}' exists already, delete it or choose another id")]
    Exists(String),
    /// The container is not in the state that the command needs.
    #[error("cannot {operation} container '{id}': it is {status}")]
    Status {
        /// Which.
        id: String,
        /// What it is.
        status: Status,
        /// What was asked.
        operation: &'static str,
    },
    /// Another command holds it.
    #[error("container '{0}' is busy: another command has held it for {seconds} seconds, try again", seconds = LOCK_PATIENCE.as_secs())]
    Busy(String),
    /// Its record is not what was written. It is left as it is.
    #[error("the state of container '{id}' cannot be trusted: {reason}; make sure that nothing of it runs and remove {path} by hand", path = .path.display())]
    Corrupt {
        /// Which.
        id: String,
        /// In what way.
        reason: String,
        /// Where it is.
        path: PathBuf,
    },
    /// Others could write to the state directory.
    #[error("state directory {path} cannot be trusted: make it a directory of root that nobody else can write to", path = .0.display())]
    UnsafeRoot(PathBuf),
    /// `config.json` is wrong.
    #[error("config.json: {0}")]
    Config(String),
    /// `config.json` is right, but asks for something that cannot be done here.
    #[error("config.json asks for {0}, which this runtime cannot give; leave it out")]
    Unsupported(String),
    /// A cgroup cannot be had.
    #[error("{0}")]
    Cgroup(String),
    /// Working with a file failed.
    #[error("{what} {path} failed: {source}", path = .path.display())]
    Io {
        /// Doing what.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Sys {
        /// Doing what.
        what: &'static str,
        /// Which call, and why.
        source: SysError,
    },
    /// A hook failed.
    #[error("{kind} hook {path} failed: {reason}", path = .path.display())]
    Hook {
        /// When it is called.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What the container's first process said.
    #[error("{0}")]
    Child(String),
    /// Not root.
    #[error("this runtime needs root: it makes namespaces and mounts for others")]
    NotRoot,
}

impl OciError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    pub(super) fn sys(what: &'static str) -> impl Fn(SysError) -> Self {
        move |source| Self::Sys { what, source }
    }
}
