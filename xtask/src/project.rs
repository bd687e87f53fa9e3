//! Where things are.
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wherry_images::disk::Arch;

use crate::error::TaskError;

/// The name of this machine's processor, as Rust and Wherry write it.
pub(crate) const HOST_ARCH: &str = std::env::consts::ARCH;

/// The places that tasks read and write.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Cargo's output.
    pub(crate) target: PathBuf,
    /// What outlives a clone: kernels, packages, fixtures.
    pub(crate) cache: PathBuf,
}

impl Project {
    /// From the environment of a task.
    pub(crate) fn find() -> Result<Self, TaskError> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
        let root = root.ok_or_else(|| TaskError::Say("xtask must be inside the repository".into()))?;
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || variable("HOME").map(|home| home.join(".cache"));
        let cache = variable("XDG_CACHE_HOME").or_else(home);
        let cache = cache
            .ok_or_else(|| TaskError::Say("set HOME or XDG_CACHE_HOME: kernels are kept there".into()))?;
        let target = variable("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { target, cache: cache.join("wherry"), root })
    }

    /// What tasks produce for one processor: `bin/`, `images/<role>/`, `fixtures/`.
    pub(crate) fn output(&self, arch: Arch) -> PathBuf {
        self.artifacts().join(arch.name())
    }

    /// Parent of every [`Project::output`].
    pub(crate) fn artifacts(&self) -> PathBuf {
        self.target.join("wherry")
    }
}

/// `path` as a directory that exists.
pub(crate) fn make_dir(path: &Path) -> Result<(), TaskError> {
    fs::create_dir_all(path).map_err(TaskError::io("create", path))
}

/// SHA-256 of several parts, unambiguous about where each ends, in hexadecimal.
pub(crate) fn hash_parts(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A size for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
