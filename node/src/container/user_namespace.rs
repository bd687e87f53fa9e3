//! User namespaces: root in a container is nobody on the board, and nobody in every other container.
//!
//! Each container has 65536 ids of its own on the node. On the disk, owners are the container's own (0 is its root): the
//! data directory is mounted, for each container anew, with owners mapped (Documentation/filesystems/idmappings.rst), so
//! that layers and volumes can be shared between containers.
//!
//! The namespace comes with those of network, host name and IPC, which belong to it. Making them takes longer than all else
//! in a start, so a few are made ahead.
use super::rootfs::DataDir;
use crate::net::namespace::within;
use nix::sched::CloneFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wherry_sys::mount::{detached_copy_of_target, map_owners};
use wherry_sys::sleeper::Sleeper;

/// Ids of one container: 0 to 65535, as in every distribution of Linux.
pub const IDS: u32 = 65_536;
/// Where they begin on the node: a range that nobody else takes ids from (systemd, docs/UIDS-GIDS.md), should the node be
/// an ordinary process on a machine with users.
const FIRST: u32 = 0x7000_0000;
/// Containers that can run at once: so many ranges there are up to the next one that is taken.
const MAX_RANGES: u32 = 4094;
/// Made ahead. The kernel's memory for them, about 150 KiB each, is for the network's tables most of all.
const SPARES: usize = 2;
/// Longer than the start of a container takes.
const REFILL_AFTER: Duration = Duration::from_millis(10);

/// All of them on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UserNamespaces {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ranges: Ranges,
    shows_core: bool,
    spares: Mutex<Vec<Fresh>>,
}

type Ranges = Arc<Mutex<BTreeSet<u32>>>;

/// A range of ids that is nobody else's until this is dropped.
#[derive(Debug)]
pub struct IdRange {
    first: u32,
    ranges: Ranges,
}

impl IdRange {
    /// The node's id of the container's root.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.first
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        lock(&self.ranges).remove(&self.first);
    }
}

/// New namespaces that no process is in.
#[derive(Debug)]
pub struct Fresh {
    /// The ids of the user namespace.
    pub ids: IdRange,
    /// The user namespace, which owns the others.
    pub user: OwnedFd,
    /// Network.
    pub net: OwnedFd,
    /// Host name.
    pub uts: OwnedFd,
    /// System V IPC and message queues.
    pub ipc: OwnedFd,
}

impl UserNamespaces {
    /// Finds out whether the kernel has them, and the data directory's file system can show owners otherwise.
    ///
    /// # Errors
    /// What they fail with.
    pub fn open(data: &Path) -> io::Result<Self> {
        let ranges = Ranges::default();
        // Not kept: which ranges are taken is not known yet.
        let first = Fresh::new(free_range(&ranges)?)?;
        let directory = File::open(data)?;
        let copy = detached_copy_of_target(&directory, Path::new(""), false);
        copy.and_then(|copy| map_owners(copy, &first.user)).map_err(from_sys)?;
        let shows_core = within(first.net.as_fd(), || Path::new("/proc/sys/net/core/somaxconn").exists())?;
        Ok(Self { inner: Arc::new(Inner { ranges, shows_core, spares: Mutex::default() }) })
    }

    /// Whether parameters below net.core can be set in a network namespace that belongs to a user namespace: before Linux
    /// 6.10 they are not even shown there.
    #[must_use]
    pub fn shows_core_parameters(&self) -> bool {
        self.inner.shows_core
    }

    /// Those of a container that runs already, by what [`IdRange::first`] was; `None` if another one has them.
    #[must_use]
    pub fn claim(&self, first: u32) -> Option<IdRange> {
        claim(&self.inner.ranges, first)
    }

    /// Namespaces for one more container.
    ///
    /// # Errors
    /// When the kernel makes no more.
    pub async fn take(&self) -> io::Result<Fresh> {
        let ready = lock(&self.inner.spares).pop();
        let fresh = match ready {
            Some(fresh) => fresh,
            None => self.in_background(Self::make).await??,
        };
        self.refill();
        Ok(fresh)
    }

    /// Makes one more to have at hand, soon. When that fails, so will the next start that finds none, and say why.
    pub fn refill(&self) {
        let this = self.clone();
        tokio::spawn(async move {
            // What the last one was taken for goes first.
            tokio::time::sleep(REFILL_AFTER).await;
            let made = this.in_background(|this| {
                let wanted = lock(&this.inner.spares).len() < SPARES;
                wanted.then(|| this.make())
            });
            let Ok(Some(Ok(fresh))) = made.await else { return };
            let mut spares = lock(&this.inner.spares);
            if spares.len() < SPARES {
                spares.push(fresh);
            }
        });
    }

    fn in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this))
    }

    /// Namespaces for one more container, made now.
    ///
    /// # Errors
    /// When the kernel makes no more.
    pub fn make(&self) -> io::Result<Fresh> {
        Fresh::new(free_range(&self.inner.ranges)?)
    }
}

fn claim(ranges: &Ranges, first: u32) -> Option<IdRange> {
    let free = lock(ranges).insert(first);
    free.then(|| IdRange { first, ranges: Arc::clone(ranges) })
}

fn free_range(ranges: &Ranges) -> io::Result<IdRange> {
    let all = (0..MAX_RANGES).map(|number| FIRST + number * IDS);
    let mut free = all.filter_map(|first| claim(ranges, first));
    free.next().ok_or_else(|| io::Error::other(format!("{MAX_RANGES} containers run already")))
}

impl Fresh {
    fn new(ids: IdRange) -> io::Result<Self> {
        let kinds = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        let sleeper = Sleeper::new(kinds).map_err(from_sys)?;
        let proc = Path::new("/proc").join(sleeper.pid().to_string());
        let map = format!("0 {} {IDS}", ids.first);
        for file in ["uid_map", "gid_map"] {
            std::fs::write(proc.join(file), &map)?;
        }
        let namespace = |name| File::open(proc.join("ns").join(name)).map(OwnedFd::from);
        Ok(Self {
            user: namespace("user")?,
            net: namespace("net")?,
            uts: namespace("uts")?,
            ipc: namespace("ipc")?,
            ids,
        })
    }
}

/// Opens them, or says why containers share the node's ids.
#[must_use]
pub fn if_possible(data: &DataDir) -> Option<UserNamespaces> {
    match UserNamespaces::open(&data.path()) {
        Ok(namespaces) => Some(namespaces),
        Err(error) => {
            tracing::warn!(
                "containers get no user namespaces of their own, this kernel or disk cannot: {error}"
            );
            None
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn from_sys(error: wherry_sys::SysError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_sys::process::namespace_kind;

    #[tokio::test]
    async fn each_has_ids_of_its_own_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let all = UserNamespaces::open(dir.path()).unwrap();
        let (one, two) = (all.take().await.unwrap(), all.take().await.unwrap());
        assert_ne!(one.ids.first(), two.ids.first());
        assert!(all.claim(one.ids.first()).is_none());
        for (fd, kind) in [
            (&one.user, CloneFlags::CLONE_NEWUSER),
            (&one.net, CloneFlags::CLONE_NEWNET),
            (&one.uts, CloneFlags::CLONE_NEWUTS),
            (&one.ipc, CloneFlags::CLONE_NEWIPC),
        ] {
            assert_eq!(namespace_kind(fd.as_fd()).unwrap(), kind);
        }
        let first = one.ids.first();
        drop(one);
        assert_eq!(all.claim(first).unwrap().first(), first);
    }

    #[test]
    fn what_runs_already_keeps_its_ids() {
        let dir = tempfile::tempdir().unwrap();
        let all = UserNamespaces::open(dir.path()).unwrap();
        let old = all.claim(FIRST).unwrap();
        assert_eq!(all.make().unwrap().ids.first(), FIRST + IDS);
        drop(old);
        assert_eq!(all.make().unwrap().ids.first(), FIRST);
    }

    #[test]
    fn ranges_come_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let all = UserNamespaces::open(dir.path()).unwrap();
        let taken: Vec<IdRange> = (0..MAX_RANGES).map(|_| free_range(&all.inner.ranges).unwrap()).collect();
        assert_eq!(taken.last().unwrap().first(), FIRST + (MAX_RANGES - 1) * IDS);
        assert_eq!(all.make().unwrap_err().to_string(), "4094 containers run already");
    }
}
