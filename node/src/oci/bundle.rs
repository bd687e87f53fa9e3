//! A bundle: a directory with `config.json` and, mostly, the root file system.
use super::check;
use super::error::OciError;
use oci_spec::runtime::Spec;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Longest `config.json`, in bytes: those of the largest Kubernetes pods stay below 1 MiB, and a longer one would cost
/// several times its length in memory.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// A bundle whose configuration has been checked.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    pub(super) spec: Spec,
}

impl Bundle {
    /// # Errors
    /// [`OciError::Config`], [`OciError::Unsupported`], [`OciError::Io`].
    pub(super) fn open(path: &Path) -> Result<Self, OciError> {
        let path = path.canonicalize().map_err(OciError::io("opening bundle", path))?;
        let spec = parse(&read(&path.join("config.json"))?)?;
        Ok(Self { path, spec })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, OciError> {
    let fail = || OciError::io("reading", path);
    let mut options = File::options();
    // A pipe in its place is not waited for.
    options.read(true).custom_flags(nix::libc::O_NONBLOCK);
    let file = options.open(path).map_err(fail())?;
    let metadata = file.metadata().map_err(fail())?;
    if !metadata.is_file() {
        return Err(OciError::Config("it is no ordinary file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(fail())?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(OciError::Config(format!("it is longer than {MAX_CONFIG_BYTES} bytes")));
    }
    Ok(bytes)
}

/// # Errors
/// [`OciError::Config`], [`OciError::Unsupported`].
pub(super) fn parse(bytes: &[u8]) -> Result<Spec, OciError> {
    let spec: Spec = serde_json::from_slice(bytes).map_err(|error| OciError::Config(error.to_string()))?;
    check::check(&spec)?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_configuration_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(open().contains("No such file"), "{}", open());
        let path = directory.path().join("config.json");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open().contains("no ordinary file"), "{}", open());
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(100 << 20).unwrap();
        assert!(open().contains("longer than 4194304 bytes"), "{}", open());
        std::fs::write(&path, "[").unwrap();
        assert!(open().contains("EOF"), "{}", open());
        // Depth of nesting is limited by the parser.
        std::fs::write(&path, "[".repeat(1 << 20)).unwrap();
        assert!(open().starts_with("config.json: "), "{}", open());
    }
}
