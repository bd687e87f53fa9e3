//! What goes wrong in a task.
use std::error::Error;
use std::path::{Path, PathBuf};

use wherry_images::disk::DiskError;

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: run `cargo xtask setup`")]
    NotStarted {
        /// The program.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program failed; what it printed is above or in the message.
    #[error("{program} failed ({status}){message}")]
    Failed {
        /// The program and its first arguments.
        program: String,
        /// How it ended.
        status: String,
        /// Its last lines, or nothing where they have been seen already.
        message: String,
    },
    /// A disk image could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Something a person must decide or repair, as one sentence.
    #[error("{0}")]
    Say(String),
}

impl TaskError {
    /// For `map_err`: an input or output error of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// The error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}
