//! The board's long-term key: made on the board, never leaves it.
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use wherry_protocol::{Random, SecretKey};

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot use the key file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there but is no key. It is left as it is: replacing it would make the board a stranger.
    #[error(
        "the key file {path} is damaged; restore it, or remove the node from the cluster and flash the board again"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Others could read the key.
    #[error("the key file {path} has mode {mode:o}, others could have read it; it must be 600")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Reads the key at `path`, or makes one there on the first boot.
///
/// # Errors
/// When the file cannot be used; an existing file is never replaced.
pub fn load_or_create(path: &Path, random: &mut dyn Random) -> Result<SecretKey, IdentityError> {
    let io = |source| IdentityError::Io { path: path.into(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(IdentityError::Mode { path: path.into(), mode });
            }
            text.parse().map_err(|_| IdentityError::Damaged { path: path.into() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, random).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(IdentityError::Damaged { path: path.into() })
        }
        Err(error) => Err(io(error)),
    }
}

// Written beside and renamed, so that a power cut leaves the whole key or none.
fn create(path: &Path, random: &mut dyn Random) -> io::Result<SecretKey> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("new");
    fs::remove_file(&temporary).ok();
    let key = SecretKey::generate(random);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(key.to_text().as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::OsRandom;

    #[test]
    fn the_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data/node/key");
        let first = load_or_create(&path, &mut OsRandom).unwrap().public();
        assert_eq!(load_or_create(&path, &mut OsRandom).unwrap().public(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_or_readable_key_is_reported_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for content in [&b"not a key"[..], &[0xff, 0xfe]] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create(&path, &mut OsRandom).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, "x").unwrap();
        assert!(matches!(load_or_create(&path, &mut OsRandom), Err(IdentityError::Mode { .. })));
    }
}
