//! Mounts beyond mount(2): whole trees at once, detached ones, and a new root.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};
use std::ffi::{CStr, CString};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Attributes of a mount, as mount_setattr(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(u64);

impl Attributes {
    /// None of them.
    pub const NOTHING: Self = Self(0);
    /// No writes.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// No set-id programs.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// No device nodes.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// No programs.
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    /// Symbolic links are not followed.
    pub const NO_SYMLINKS: Self = Self(libc::MOUNT_ATTR_NOSYMFOLLOW);
    /// Reading does not change access times.
    pub const NO_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_NOATIME);
    /// Every reading changes them.
    pub const STRICT_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_STRICTATIME);
    /// Reading a directory does not change its access time.
    pub const NO_DIRECTORY_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_NODIRATIME);
    /// To be cleared before another way with access times is set: it is one field of the mount, not three flags.
    pub const ACCESS_TIMES: Self = Self(libc::MOUNT_ATTR__ATIME);

    /// These, but none of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a mount exchanges what is mounted below it with others (Documentation/filesystems/sharedsubtree.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// From its master only.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and it cannot be mounted a second time.
    Unbindable,
}

/// What [`change_tree`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Taken away first.
    pub clear: Attributes,
    /// Added then.
    pub set: Attributes,
    /// Unchanged if there is none.
    pub propagation: Option<Propagation>,
}

/// Changes the mount that `tree` refers to, and with `recursive` every mount below.
///
/// # Errors
/// [`SysError::MountSetattr`].
pub fn change_tree(tree: impl AsFd, change: Change, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    apply(tree.as_fd().as_raw_fd(), c"", change, flags)
}

/// Adds attributes to the mount at `path`, and with `recursive` to every mount below.
///
/// # Errors
/// [`SysError::MountSetattr`].
pub fn restrict(path: &Path, attributes: Attributes, recursive: bool) -> Result<()> {
    let path = c_path(path, SysError::MountSetattr)?;
    set_attributes(libc::AT_FDCWD, &path, attributes, if recursive { libc::AT_RECURSIVE } else { 0 })
}

/// Like [`restrict`], for the mount that `tree` refers to: attached or not, without walking a path to it.
///
/// # Errors
/// [`SysError::MountSetattr`].
pub fn restrict_tree(tree: impl AsFd, attributes: Attributes, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    set_attributes(tree.as_fd().as_raw_fd(), c"", attributes, flags)
}

/// Lets the detached `tree` (not the mounts below it) show each owner as `user_namespace` maps it: an inode of user 0 belongs to
/// whoever is root in there, and what that one makes becomes user 0's (Documentation/filesystems/idmappings.rst).
///
/// # Errors
/// [`SysError::MountSetattr`]; `EINVAL` when the file system cannot do that.
pub fn map_owners(tree: impl AsFd, user_namespace: impl AsFd) -> Result<()> {
    let descriptor = user_namespace.as_fd().as_raw_fd();
    let descriptor = u64::try_from(descriptor).map_err(|_| SysError::MountSetattr(Errno::EBADF))?;
    let change = Change { set: Attributes(libc::MOUNT_ATTR_IDMAP), ..Change::default() };
    apply_with(tree.as_fd().as_raw_fd(), c"", change, libc::AT_EMPTY_PATH, descriptor)
}

fn set_attributes(directory: RawFd, path: &CStr, attributes: Attributes, flags: libc::c_int) -> Result<()> {
    apply(directory, path, Change { set: attributes, ..Change::default() }, flags)
}

fn apply(directory: RawFd, path: &CStr, change: Change, flags: libc::c_int) -> Result<()> {
    apply_with(directory, path, change, flags, 0)
}

fn apply_with(
    directory: RawFd,
    path: &CStr,
    change: Change,
    flags: libc::c_int,
    user_namespace: u64,
) -> Result<()> {
    // SAFETY: mount_attr is plain data for which all zeroes is valid: nothing to set or clear.
    let mut request: libc::mount_attr = unsafe { zeroed() };
    request.attr_set = change.set.0;
    request.attr_clr = change.clear.0;
    request.userns_fd = user_namespace;
    request.propagation = change.propagation.map_or(0, |propagation| match propagation {
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    });
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path ends in null and the kernel reads one mount_attr of the given size.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, directory, path.as_ptr(), flags, &raw const request, size)
    };
    Errno::result(result).map(drop).map_err(SysError::MountSetattr)
}

/// A detached copy of the mount tree at `path` (below `directory` if relative), invisible until [`attach`] puts it
/// somewhere. Symlinks are not followed at the last component.
///
/// # Errors
/// [`SysError::OpenTree`].
pub fn detached_copy(directory: impl AsFd, path: &Path) -> Result<OwnedFd> {
    open_tree(directory, path, libc::AT_SYMLINK_NOFOLLOW | libc::AT_RECURSIVE)
}

/// The same of what `path` leads to over symlinks, with the mounts below it or without them.
///
/// # Errors
/// [`SysError::OpenTree`].
pub fn detached_copy_of_target(directory: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    open_tree(directory, path, if recursive { libc::AT_RECURSIVE } else { 0 })
}

fn open_tree(directory: impl AsFd, path: &Path, how: libc::c_int) -> Result<OwnedFd> {
    let path = c_path(path, SysError::OpenTree)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | (how | libc::AT_EMPTY_PATH) as libc::c_uint;
    // SAFETY: the path ends in null.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, directory.as_fd().as_raw_fd(), path.as_ptr(), flags) };
    let number = Errno::result(result).map_err(SysError::OpenTree)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Puts a detached tree exactly on the file or directory that `target` was opened on, so that no path is walked again.
///
/// # Errors
/// [`SysError::MoveMount`].
pub fn attach(tree: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (tree.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    // SAFETY: both paths are the empty string, which the flags allow.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    Errno::result(result).map(drop).map_err(SysError::MoveMount)
}

/// Makes the mount point `root` this mount namespace's root and detaches the old one completely (pivot_root(2), the
/// `pivot_root(".", ".")` way: no directory for the old root is needed).
///
/// # Errors
/// [`SysError::Chdir`], [`SysError::PivotRoot`], [`SysError::Umount`].
pub fn replace_root(root: &Path) -> Result<()> {
    chdir(root).map_err(SysError::Chdir)?;
    pivot_root(".", ".").map_err(SysError::PivotRoot)?;
    detach_old_root()
}

/// The same with the current directory, which must be the root of a mount. Mounts of the old root may be shared with
/// other namespaces: they stay mounted there.
///
/// # Errors
/// [`SysError::Open`], [`SysError::PivotRoot`], [`SysError::MountSetattr`], [`SysError::Umount`], [`SysError::Chdir`].
pub fn replace_root_with_current() -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let old = open("/", flags, Mode::empty()).map_err(SysError::Open)?;
    pivot_root(".", ".").map_err(SysError::PivotRoot)?;
    change_tree(&old, Change { propagation: Some(Propagation::Slave), ..Change::default() }, true)?;
    detach_old_root()
}

/// After pivot_root it lies over the new one, and is the current directory.
fn detach_old_root() -> Result<()> {
    umount2(".", MntFlags::MNT_DETACH).map_err(SysError::Umount)?;
    chdir("/").map_err(SysError::Chdir)
}

fn c_path(path: &Path, error: fn(Errno) -> SysError) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| error(Errno::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::fs::{self, File};

    use nix::mount::{MsFlags, mount};

    const NONE: Option<&str> = None;

    /// A private mount namespace belongs to one thread.
    fn in_a_namespace(test: impl FnOnce(&Path) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            mount(Some("t"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            fs::create_dir_all(path.join("deep")).unwrap();
            mount(Some("d"), &path.join("deep"), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            test(&path);
        });
        thread.join().unwrap();
    }

    #[test]
    fn restriction_reaches_the_mounts_below() {
        in_a_namespace(|dir| {
            restrict(dir, Attributes::READ_ONLY.and(Attributes::NO_SUID), false).unwrap();
            assert!(fs::write(dir.join("x"), "").is_err());
            fs::write(dir.join("deep/x"), "").unwrap();
            restrict(dir, Attributes::READ_ONLY, true).unwrap();
            assert!(fs::write(dir.join("deep/y"), "").is_err());
            assert_eq!(
                restrict(&dir.join("deep/x"), Attributes::NO_EXEC, false),
                Err(SysError::MountSetattr(Errno::EINVAL))
            );
        });
    }

    #[test]
    fn a_detached_copy_is_attached_by_descriptor() {
        in_a_namespace(|dir| {
            fs::write(dir.join("deep/file"), "content").unwrap();
            fs::create_dir(dir.join("target")).unwrap();
            let tree = detached_copy(File::open(dir).unwrap(), Path::new("deep")).unwrap();
            attach(&tree, File::open(dir.join("target")).unwrap()).unwrap();
            assert_eq!(fs::read_to_string(dir.join("target/file")).unwrap(), "content");
            let locked = detached_copy(File::open(dir.join("deep")).unwrap(), Path::new("")).unwrap();
            restrict_tree(&locked, Attributes::READ_ONLY, true).unwrap();
            attach(&locked, File::open(dir.join("target")).unwrap()).unwrap();
            assert!(fs::write(dir.join("target/file"), "changed").is_err());
            let missing = detached_copy(File::open(dir).unwrap(), Path::new("nothing")).unwrap_err();
            assert_eq!(missing, SysError::OpenTree(Errno::ENOENT));
            assert!(matches!(
                attach(tempfile::tempfile().unwrap(), File::open(dir).unwrap()),
                Err(SysError::MoveMount(_))
            ));
        });
    }

    #[test]
    fn owners_are_shown_as_a_user_namespace_maps_them() {
        use crate::sleeper::Sleeper;
        use std::os::unix::fs::{MetadataExt as _, fchown};
        // Not tmpfs, which some kernels cannot do this with.
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        fchown(&file, Some(5), Some(70_000)).unwrap();
        let sleeper = Sleeper::new(CloneFlags::CLONE_NEWUSER).unwrap();
        let proc = format!("/proc/{}", sleeper.pid());
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("{proc}/{map}"), "0 1879048192 65536").unwrap();
        }
        let user = File::open(format!("{proc}/ns/user")).unwrap();
        let tree = detached_copy_of_target(File::open(dir.path()).unwrap(), Path::new(""), false).unwrap();
        map_owners(&tree, &user).unwrap();
        let again = map_owners(&tree, &user);
        assert_eq!(again, Err(SysError::MountSetattr(Errno::EPERM)), "once only");
        let seen = fs::metadata(format!("/proc/self/fd/{}/file", tree.as_raw_fd())).unwrap();
        assert_eq!(
            (seen.uid(), seen.gid()),
            (1_879_048_197, 65_534),
            "a group that is not mapped is nobody's"
        );
        let no_namespace = map_owners(&tree, File::open("/dev/null").unwrap());
        assert_eq!(no_namespace, Err(SysError::MountSetattr(Errno::EINVAL)));
    }

    #[test]
    fn attributes_and_propagation_change_both_ways() {
        in_a_namespace(|dir| {
            let tree = detached_copy_of_target(File::open(dir).unwrap(), Path::new(""), false).unwrap();
            attach(&tree, File::open(dir).unwrap()).unwrap();
            let of_dir = || {
                let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                let line = text.lines().rev().find(|line| line.contains(&format!(" {} ", dir.display())));
                line.unwrap().to_owned()
            };
            let set = Attributes::READ_ONLY.and(Attributes::NO_ACCESS_TIME);
            let propagation = Some(Propagation::Shared);
            change_tree(&tree, Change { clear: Attributes::ACCESS_TIMES, set, propagation }, true).unwrap();
            assert!(of_dir().contains(" ro,noatime shared:"), "{}", of_dir());
            let change = Change { clear: set.and(Attributes::ACCESS_TIMES), ..Change::default() };
            change_tree(&tree, Change { propagation: Some(Propagation::Private), ..change }, false).unwrap();
            assert!(of_dir().contains(" rw,relatime - "), "{}", of_dir());
            assert!(!dir.join("deep/d").exists());
        });
    }

    #[test]
    fn the_root_is_replaced_and_the_old_one_gone() {
        in_a_namespace(|dir| {
            fs::write(dir.join("mark"), "new root").unwrap();
            replace_root(dir).unwrap();
            assert_eq!(fs::read_to_string("/mark").unwrap(), "new root");
            assert!(!Path::new("/proc").exists());
            assert_eq!(replace_root(Path::new("/nothing")), Err(SysError::Chdir(Errno::ENOENT)));
        });
    }
}
