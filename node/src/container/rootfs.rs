//! Directories of containers and volumes on the data partition.
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use wherry_protocol::{AccountId, ContainerId, Generation, Name};

/// A file system operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct RootfsError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl RootfsError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self { path: path.into(), source }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Where the runtime mounts something in every container; files are empty.
const SKELETON_DIRECTORIES: [&str; 4] = ["proc", "sys", "dev", "etc"];
const SKELETON_FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// The node's part of the data partition, and of the directory in memory (/run) that goes with each boot.
#[derive(Debug, Clone)]
pub struct DataDir {
    data: PathBuf,
    run: PathBuf,
}

impl DataDir {
    /// Makes what is missing below both. Only root looks inside: layers hold set-id programs.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(data: &Path, run: &Path) -> Result<Self, RootfsError> {
        let this = Self::at(data, run);
        for directory in [this.layers(), this.configs(), this.containers(), this.volumes(), this.run.clone()]
        {
            make_private(&directory)?;
        }
        make(&mount_point(&this.run), 0o700)?;
        this.make_skeleton()?;
        Ok(this)
    }

    /// The same paths, with nothing made.
    #[must_use]
    pub fn at(data: &Path, run: &Path) -> Self {
        Self { data: data.into(), run: run.into() }
    }

    /// A layer with nothing but places to mount at: what an image lacks of them needs not be made, file by file, for
    /// every container.
    fn make_skeleton(&self) -> Result<(), RootfsError> {
        let skeleton = skeleton(&self.data);
        make(&skeleton, 0o755)?;
        for directory in SKELETON_DIRECTORIES {
            make(&skeleton.join(directory), 0o755)?;
        }
        SKELETON_FILES
            .iter()
            .map(|file| skeleton.join(file))
            .filter(|path| !path.exists())
            .try_for_each(|path| write(&path, "").map_err(RootfsError::at(&path)))
    }

    /// Where all of it is that lasts.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.data.clone()
    }

    /// Unpacked layers.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    /// Image configurations, by digest.
    #[must_use]
    pub fn configs(&self) -> PathBuf {
        self.data.join("configs")
    }

    fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// Volumes of one account.
    #[must_use]
    pub fn volumes_of(&self, account: AccountId) -> PathBuf {
        self.volumes().join(account.0.to_string())
    }

    /// Makes a volume unless it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_volume(&self, account: AccountId, name: &Name) -> Result<(), RootfsError> {
        make_private(&self.volumes_of(account))?;
        let path = self.volumes_of(account).join(name.as_str());
        make(&path, 0o755)
    }

    /// The directories of one container.
    #[must_use]
    pub fn container(&self, id: ContainerId) -> ContainerDir {
        ContainerDir {
            disk: self.containers().join(id.0.to_string()),
            mount_point: mount_point(&self.run),
            skeleton: skeleton(&self.data),
            data: self.path(),
        }
    }

    /// Every container that has a directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn container_ids(&self) -> Result<Vec<ContainerId>, RootfsError> {
        let path = self.containers();
        let entries = fs::read_dir(&path).map_err(RootfsError::at(&path))?;
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(id).map(ContainerId).collect())
    }
}

fn skeleton(data: &Path) -> PathBuf {
    data.join("skeleton")
}

fn mount_point(run: &Path) -> PathBuf {
    run.join("root")
}

/// Everything one container has, besides volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir {
    disk: PathBuf,
    mount_point: PathBuf,
    skeleton: PathBuf,
    data: PathBuf,
}

impl ContainerDir {
    /// What it wrote; stays from one of its lives to the next.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.disk.join("upper")
    }

    /// Scratch space of overlayfs.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.disk.join("work")
    }

    /// Archives that are unpacked in it with each start.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.disk.join("files")
    }

    /// Where the child mounts the overlay, in its own mount namespace: all containers use the same.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.mount_point.clone()
    }

    /// Where layers, volumes and this directory are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The lowest layer of every container.
    #[must_use]
    pub fn skeleton(&self) -> PathBuf {
        self.skeleton.clone()
    }

    /// Makes the directories. What an earlier life wrote is kept, unless it is to be thrown away: `clean_since` is the
    /// first life that began, or begins, without it.
    ///
    /// # Errors
    /// When something cannot be made or thrown away.
    pub fn prepare(&self, clean_since: Generation) -> Result<(), RootfsError> {
        make(&self.disk, 0o700)?;
        if clean_since > Generation(0) && self.clean_since() < clean_since {
            for directory in [self.upper(), self.work()] {
                remove_all(&directory)?;
            }
            // Last: whoever is interrupted before begins again.
            let path = self.clean_mark();
            write(&path, &clean_since.0.to_string()).map_err(RootfsError::at(&path))?;
        }
        make(&self.work(), 0o700)?;
        // The root directory of the container has the mode of this one.
        make(&self.upper(), 0o755)
    }

    fn clean_mark(&self) -> PathBuf {
        self.disk.join("clean-since")
    }

    fn clean_since(&self) -> Generation {
        let text = fs::read_to_string(self.clean_mark()).unwrap_or_default();
        Generation(text.parse().unwrap_or(0))
    }

    /// Deletes all of it; nothing there is fine.
    ///
    /// # Errors
    /// When something resists.
    pub fn remove(&self) -> Result<(), RootfsError> {
        remove_all(&self.disk)
    }

    /// Whether there is something.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.disk.exists()
    }
}

fn remove_all(path: &Path) -> Result<(), RootfsError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RootfsError::at(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn make_private(path: &Path) -> Result<(), RootfsError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(RootfsError::at(path))
}

/// Makes one directory with exactly this mode, whatever the umask.
fn make(path: &Path, mode: u32) -> Result<(), RootfsError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(RootfsError::at(path)(error)),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(RootfsError::at(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_and_go() {
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::open(&base.path().join("node"), &base.path().join("run")).unwrap();
        let dir = data.container(ContainerId(7));
        dir.prepare(Generation(0)).unwrap();
        fs::write(dir.upper().join("kept"), "x").unwrap();
        dir.prepare(Generation(0)).unwrap();
        assert!(dir.upper().join("kept").exists());
        dir.prepare(Generation(2)).unwrap();
        assert!(!dir.upper().join("kept").exists());
        fs::write(dir.upper().join("kept"), "x").unwrap();
        dir.prepare(Generation(2)).unwrap();
        assert!(dir.upper().join("kept").exists(), "thrown away once, not with each start");
        dir.prepare(Generation(5)).unwrap();
        assert!(!dir.upper().join("kept").exists());
        assert_eq!(data.container_ids().unwrap(), [ContainerId(7)]);
        assert_eq!(fs::metadata(data.layers()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(dir.upper()).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(dir.skeleton().join("etc/hosts").is_file() && dir.mount_point().is_dir());
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.exists() && data.container_ids().unwrap().is_empty());
    }

    #[test]
    fn volumes_are_apart_by_account() {
        let base = tempfile::tempdir().unwrap();
        let data = DataDir::open(base.path(), &base.path().join("run")).unwrap();
        let name: Name = "db".parse().unwrap();
        data.make_volume(AccountId(1), &name).unwrap();
        fs::write(data.volumes_of(AccountId(1)).join("db/file"), "x").unwrap();
        data.make_volume(AccountId(1), &name).unwrap();
        data.make_volume(AccountId(2), &name).unwrap();
        assert!(data.volumes_of(AccountId(1)).join("db/file").exists());
        assert!(!data.volumes_of(AccountId(2)).join("db/file").exists());
    }
}
