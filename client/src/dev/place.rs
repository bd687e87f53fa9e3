//! Where virtual clusters live: `${XDG_STATE_HOME:-~/.local/state}/wherry/dev/<name>/`, and how to find one again.
use super::error::DevError;
use super::plan::Options;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wherry_protocol::Name;

const RECORD_FILE: &str = "cluster.json";
const OWNER_FILE: &str = "owner.json";
const LOG_FILE: &str = "log";

/// What stays for the life of a cluster. Holds the one-time admin token, so its file is private.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it was made with.
    pub options: Options,
    /// Loopback address of this host that leads to the broker.
    pub address: Ipv4Addr,
    /// Makes its first user the administrator.
    pub admin_token: String,
}

/// The process that runs a cluster, while it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// Private directory with a short name for its sockets.
    pub runtime: PathBuf,
}

impl Owner {
    /// Where it listens.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control")
    }
}

/// The directory of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// The place of the cluster called `name`, below the user's state directory (XDG Base Directory Specification).
    pub fn of(name: &Name) -> Result<Self, DevError> {
        Ok(Self { directory: state_root()?.join(name.as_str()) })
    }

    /// The cluster in `directory`.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Names of all clusters that have a place, sorted.
    pub fn all() -> Result<Vec<Name>, DevError> {
        let root = state_root()?;
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(DevError::io("read", root)(error)),
        };
        let name = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<Name>().ok();
        let mut names: Vec<Name> = entries.filter_map(|entry| name(entry.ok()?)).collect();
        names.sort();
        Ok(names)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the owner process writes what it has to say.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join(LOG_FILE)
    }

    /// Whether there is anything.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directory.join(RECORD_FILE).exists()
    }

    /// Makes the directory, private.
    pub fn create(&self) -> Result<(), DevError> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(DevError::io("create", &self.directory))
    }

    /// What the cluster was made with.
    pub fn record(&self) -> Result<Record, DevError> {
        read(&self.directory.join(RECORD_FILE))
    }

    /// Writes that down.
    pub fn save_record(&self, record: &Record) -> Result<(), DevError> {
        write_private(&self.directory.join(RECORD_FILE), record)
    }

    /// The process that runs it, if there is one that still lives.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let owner: Owner = read(&self.directory.join(OWNER_FILE)).ok()?;
        is_owner(&owner, &self.directory).then_some(owner)
    }

    /// Says which process runs it.
    pub fn save_owner(&self, owner: &Owner) -> Result<(), DevError> {
        write_private(&self.directory.join(OWNER_FILE), owner)
    }

    /// Forgets which process ran it.
    pub fn clear_owner(&self) {
        // If it is not there, it is as it should be.
        drop(fs::remove_file(self.directory.join(OWNER_FILE)));
    }

    /// Removes everything, disks included.
    pub fn remove(&self) -> Result<(), DevError> {
        fs::remove_dir_all(&self.directory).map_err(DevError::io("remove", &self.directory))
    }
}

fn state_root() -> Result<PathBuf, DevError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    Ok(state.ok_or(DevError::NoHome)?.join("wherry/dev"))
}

/// Process ids are used again: where the system tells (Linux), the process must also be one that runs this cluster.
fn is_owner(owner: &Owner, directory: &Path) -> bool {
    let Ok(pid) = i32::try_from(owner.pid) else { return false };
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => line.split(|b| *b == 0).any(|word| word == directory.as_os_str().as_encoded_bytes()),
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => rustix::process::Pid::from_raw(pid)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DevError> {
    let text = fs::read(path).map_err(DevError::io("read", path))?;
    serde_json::from_slice(&text).map_err(|source| DevError::Damaged { path: path.to_owned(), source })
}

/// Through a second file and a rename: a reader sees the old or the new, never a half.
fn write_private<T: Serialize>(path: &Path, value: &T) -> Result<(), DevError> {
    let partial = path.with_extension("partial");
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| DevError::Damaged { path: path.to_owned(), source })?;
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&text)?;
        fs::rename(&partial, path)
    };
    write().map_err(DevError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use wherry_images::disk::Arch;

    fn record() -> Record {
        Record {
            options: Options::new("demo".parse().unwrap(), Arch::X86_64, "/images".into()),
            address: Ipv4Addr::new(127, 70, 1, 2),
            admin_token: "wry1-admin-x".into(),
        }
    }

    #[test]
    fn the_record_comes_back_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::at(root.path().join("demo"));
        assert!(!place.exists());
        place.create().unwrap();
        place.save_record(&record()).unwrap();
        assert_eq!(place.record().unwrap(), record());
        let mode = fs::metadata(place.directory().join(RECORD_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        place.remove().unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn a_damaged_record_is_told_and_a_process_of_others_is_no_owner() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::at(root.path().to_owned());
        fs::write(root.path().join(RECORD_FILE), "{").unwrap();
        assert!(matches!(place.record(), Err(DevError::Damaged { .. })));
        place.save_owner(&Owner { pid: std::process::id(), runtime: "/tmp/x".into() }).unwrap();
        assert_eq!(place.owner(), None, "this process does not have the directory among its arguments");
        place.save_owner(&Owner { pid: u32::MAX, runtime: "/tmp/x".into() }).unwrap();
        assert_eq!(place.owner(), None);
    }
}
