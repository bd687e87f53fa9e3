//! Why a step of a test did not do what it should.
use std::path::{Path, PathBuf};

/// What went wrong, for the person who reads the test's output.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file or program that the tests need was not given.
    #[error(
        "{variable} is not set; run this through `cargo xtask test`, which builds what is needed and sets it"
    )]
    NotGiven {
        /// The environment variable.
        variable: &'static str,
    },
    /// Something that should have been built does not exist.
    #[error("{} does not exist; run this through `cargo xtask test`, which builds what is needed", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// Something was not as it should be.
    #[error("{0}")]
    Unexpected(String),
    /// A command did not do what it should.
    #[error("`{command}` {problem}\n  exit code: {code}\n  stdout: {stdout}\n  stderr: {stderr}")]
    Command {
        /// As typed.
        command: String,
        /// What is wrong with its outcome.
        problem: String,
        /// Exit code; 128 + signal if one ended it.
        code: i32,
        /// What it printed.
        stdout: String,
        /// What it complained.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds:.1} s; last seen: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: f64,
        /// What was seen instead.
        last: String,
    },
    /// The virtual cluster.
    #[error(transparent)]
    Dev(#[from] wherry_client::dev::DevError),
    /// The file system or a process.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Failure {
    /// For `map_err`: `action` failed.
    pub fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// For `map_err`: `action` on `path` failed.
    pub fn file(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        Self::io(format!("{action} {}", path.display()))
    }
}

/// Fails with `message` unless `condition` holds.
pub fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Unexpected(message())) }
}
