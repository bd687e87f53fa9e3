//! What can go wrong while making a disk image.
use std::path::{Path, PathBuf};

/// Why a disk image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
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
    /// An external program is missing.
    #[error("{program} is not installed: install the package {package}, or run `cargo xtask setup`")]
    ToolMissing {
        /// The program's name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// An external program failed.
    #[error("{program} failed ({status}): {message}")]
    ToolFailed {
        /// The program's name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The last line it printed.
        message: String,
    },
    /// Something does not fit where it must go.
    #[error("{what} needs {needed} bytes, but only {available} fit")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The data partition's size is out of range.
    #[error("a data partition of {bytes} bytes is out of range: choose between {min} and {max} bytes")]
    DataSize {
        /// What was asked for.
        bytes: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A file name that the file system being written cannot hold.
    #[error("{name:?} cannot be a file name here")]
    Name {
        /// The name.
        name: String,
    },
    /// The EFI stub is not one.
    #[error("{} is not an EFI stub that sections can be added to: {reason}", path.display())]
    Stub {
        /// The stub.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A manifest could not be understood.
    #[error("{} is not a manifest of a disk template", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A manifest written by another version of Wherry, or inconsistent.
    #[error("the template in {} cannot be used: {reason}; build it again with `cargo xtask images`", dir.display())]
    Template {
        /// The template's directory.
        dir: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
}

impl DiskError {
    /// For `map_err`: an input or output error of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
