//! The state directory: a directory for each container with its record, `state.json`, and the socket on which its first
//! process waits for `start`.
//!
//! A record is replaced as a whole (written beside, then renamed), by whoever holds the lock of the container's directory.
//! One that is not as it was written is reported and left alone.
use super::cli::Id;
use super::error::OciError;
use super::hooks::Hook;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a command waits for another one that holds the container: hooks run under the lock.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Longest record, in bytes: annotations and hooks of the longest `config.json`, written with indentation.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
const RECORD: &str = "state.json";
const NEW_RECORD: &str = ".state.json.new";
const SOCKET: &str = "start.sock";
/// Directories that are not containers yet, or not any more.
const PENDING: &str = ".pending-";

/// What the specification calls the status of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not ended, or has not ended well.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its first process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// How far a container was brought by commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Creating,
    Created,
    Started,
}

/// The first process of a container. A number alone may be another process's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstProcess {
    pub(super) pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub(super) started: u64,
}

/// What `create` made in the tree of cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CgroupRecord {
    /// The container's directory.
    pub(super) path: PathBuf,
    /// Directories that were not there before, the container's last.
    pub(super) made: Vec<PathBuf>,
}

/// Mounts that outlive the container because its mount namespace is not its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mounted {
    /// The root file system.
    pub(super) path: PathBuf,
    /// The file of the namespace, and its inode; the host's if there is none.
    pub(super) namespace: Option<(PathBuf, u64)>,
}

/// All that later commands have to know. `config.json` may have changed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) oci_version: String,
    pub(super) bundle: PathBuf,
    pub(super) annotations: BTreeMap<String, String>,
    /// Seconds after 1970.
    pub(super) created: u64,
    pub(super) phase: Phase,
    pub(super) first: Option<FirstProcess>,
    /// Whether `config.json` has a process to start.
    pub(super) startable: bool,
    pub(super) cgroup: Option<CgroupRecord>,
    pub(super) mounted: Option<Mounted>,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "version")]
enum Stored {
    #[serde(rename = "1")]
    V1(Record),
}

impl Record {
    pub(super) fn status(&self) -> Status {
        let alive = self.first.is_some_and(|first| started_at(first.pid) == Some(first.started));
        match self.phase {
            Phase::Creating => Status::Creating,
            Phase::Created if alive => Status::Created,
            Phase::Started if alive => Status::Running,
            Phase::Created | Phase::Started => Status::Stopped,
        }
    }

    /// As the specification has it (runtime.md, "State").
    pub(super) fn to_json(&self, status: Status) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
        });
        if let (Some(first), Some(state)) = (self.first, state.as_object_mut()) {
            let pid = if status == Status::Stopped { 0 } else { first.pid };
            state.insert("pid".into(), pid.into());
        }
        if let (false, Some(state)) = (self.annotations.is_empty(), state.as_object_mut()) {
            state.insert("annotations".into(), serde_json::json!(self.annotations));
        }
        state
    }
}

/// When the process was started, unless it has ended (proc_pid_stat(5)).
pub(super) fn started_at(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // From state, field 3, to field 22.
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

/// All containers of one state directory.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    /// # Errors
    /// When the directory can be neither used nor made, or is not root's alone.
    pub(super) fn open(root: &Path) -> Result<Self, OciError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(root).map_err(OciError::io("making", root))?;
        let metadata = fs::symlink_metadata(root).map_err(OciError::io("opening", root))?;
        const OTHERS_WRITE: u32 = 0o022;
        if !metadata.is_dir() || metadata.uid() != 0 || metadata.mode() & OTHERS_WRITE != 0 {
            return Err(OciError::UnsafeRoot(root.into()));
        }
        Ok(Self { root: std::path::absolute(root).map_err(OciError::io("opening", root))? })
    }

    /// Makes the directory of a new container, locked and with its record in it, in one step.
    ///
    /// # Errors
    /// [`OciError::Exists`].
    pub(super) fn create(&self, id: &Id, record: &Record) -> Result<Entry, OciError> {
        let pending = self.root.join(format!("{PENDING}{}", std::process::id()));
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        if let Err(error) = builder.create(&pending) {
            // Left by a process that was killed and had the same number.
            fs::remove_dir_all(&pending).map_err(OciError::io("removing", &pending))?;
            drop(error);
            builder.create(&pending).map_err(OciError::io("making", &pending))?;
        }
        let result = self.publish(id, record, &pending);
        if result.is_err() {
            fs::remove_dir_all(&pending).map_err(OciError::io("removing", &pending))?;
        }
        result
    }

    fn publish(&self, id: &Id, record: &Record, pending: &Path) -> Result<Entry, OciError> {
        let entry = Entry { id: id.clone(), path: self.root.join(id.as_str()), directory: open(pending)? };
        entry.try_lock()?;
        entry.write(record)?;
        let renamed = rustix::fs::renameat_with(CWD, pending, CWD, &entry.path, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => Ok(entry),
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => {
                Err(OciError::Exists(id.to_string()))
            }
            Err(error) => Err(OciError::io("making", &entry.path)(error.into())),
        }
    }

    /// # Errors
    /// [`OciError::NoSuchContainer`].
    pub(super) fn find(&self, id: &Id) -> Result<Entry, OciError> {
        let path = self.root.join(id.as_str());
        match open(&path) {
            Ok(directory) => Ok(Entry { id: id.clone(), path, directory }),
            Err(OciError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(OciError::NoSuchContainer(id.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Those there are, by name. What is no container is not one of them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn ids(&self) -> Result<Vec<Id>, OciError> {
        let entries = fs::read_dir(&self.root).map_err(OciError::io("reading", &self.root))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<Id> = names.filter_map(|name| Id::parse(&name).ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }
}

fn open(path: &Path) -> Result<OwnedFd, OciError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| OciError::io("opening", path)(error.into()))
}

/// One container's directory. It is locked from [`Entry::lock`] on until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    id: Id,
    path: PathBuf,
    directory: OwnedFd,
}

impl Entry {
    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    /// Where the first process listens for `start`. By descriptor, because such paths are short (unix(7)).
    pub(super) fn socket(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.directory.as_raw_fd().to_string()).join(SOCKET)
    }

    /// Keeps other commands away from the container.
    ///
    /// # Errors
    /// [`OciError::Busy`]; [`OciError::NoSuchContainer`] if it was deleted meanwhile.
    pub(super) fn lock(&self) -> Result<(), OciError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        while !self.try_lock()? {
            if Instant::now() > deadline {
                return Err(OciError::Busy(self.id.to_string()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let same = fs::symlink_metadata(&self.path).is_ok_and(|named| {
            let own = rustix::fs::fstat(&self.directory);
            own.is_ok_and(|own| (own.st_dev, own.st_ino) == (named.dev(), named.ino()))
        });
        if same { Ok(()) } else { Err(OciError::NoSuchContainer(self.id.to_string())) }
    }

    /// Lets others work on the container. To be done before this process ends: its copies have the lock too.
    pub(super) fn unlock(&self) {
        flock(&self.directory, FlockOperation::NonBlockingUnlock).ok();
    }

    fn try_lock(&self) -> Result<bool, OciError> {
        match flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(OciError::io("locking", &self.path)(error.into())),
        }
    }

    /// # Errors
    /// [`OciError::Corrupt`].
    pub(super) fn read(&self) -> Result<Record, OciError> {
        let corrupt =
            |reason: String| OciError::Corrupt { id: self.id.to_string(), reason, path: self.path.clone() };
        let bytes = self.read_bytes().map_err(|error| corrupt(format!("{RECORD}: {error}")))?;
        let Stored::V1(record) =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("{RECORD}: {error}")))?;
        if record.id != self.id.as_str() {
            return Err(corrupt(format!("it is that of '{}'", record.id.escape_debug())));
        }
        Ok(record)
    }

    fn read_bytes(&self) -> Result<Vec<u8>, std::io::Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.directory, RECORD, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no ordinary file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            return Err(std::io::Error::other(format!("it is longer than {MAX_RECORD_BYTES} bytes")));
        }
        Ok(bytes)
    }

    /// Replaces the record as a whole.
    ///
    /// # Errors
    /// When it cannot be written; the old one is still there then.
    pub(super) fn write(&self, record: &Record) -> Result<(), OciError> {
        let fail = || OciError::io("writing the state in", &self.path);
        let bytes = serde_json::to_vec(&Stored::V1(record.clone())).map_err(|error| fail()(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.directory, NEW_RECORD, flags, mode);
        let mut file = File::from(file.map_err(|error| fail()(error.into()))?);
        file.write_all(&bytes).map_err(fail())?;
        let directory = self.directory.as_fd();
        rustix::fs::renameat(directory, NEW_RECORD, directory, RECORD).map_err(|error| fail()(error.into()))
    }

    /// Removes all of it. The id is free as soon as this returns.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn remove(&self) -> Result<(), OciError> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let pending = parent.join(format!("{PENDING}{}", std::process::id()));
        fs::rename(&self.path, &pending).map_err(OciError::io("removing", &self.path))?;
        for name in [RECORD, NEW_RECORD, SOCKET] {
            remove_file(self.directory.as_fd(), name.as_ref())
                .map_err(OciError::io("removing", &self.path))?;
        }
        fs::remove_dir(&pending).map_err(OciError::io("removing", &pending))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.unlock();
    }
}

fn remove_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), std::io::Error> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
