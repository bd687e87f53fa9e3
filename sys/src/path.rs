//! Opening files below a directory that somebody else filled (openat2(2)).
use crate::{Result, SysError};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opens `path` as if `root` were `/`: absolute symlinks and `..` stay inside. Always close-on-exec, never through
/// magic links of /proc.
///
/// # Errors
/// [`SysError::Openat2`].
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    open(root, path, flags, mode, ResolveFlag::RESOLVE_IN_ROOT)
}

/// Opens `path` below `root` without following any symlink; whatever would leave `root` is refused.
///
/// # Errors
/// [`SysError::Openat2`]; `ELOOP` at a symlink, `EXDEV` at an escape.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    open(root, path, flags, mode, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open(root: impl AsFd, path: &Path, flags: OFlag, mode: Mode, resolve: ResolveFlag) -> Result<OwnedFd> {
    // The kernel refuses a mode where no file can be created.
    let creates = flags.intersects(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(if creates { mode } else { Mode::empty() })
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).map_err(SysError::Openat2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../../etc/passwd", root.join("etc/climbing")).unwrap();
        symlink("/proc/self/root/etc/passwd", root.join("magic")).unwrap();
        (dir, File::open(root).unwrap())
    }

    fn read(fd: OwnedFd) -> String {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn in_root_resolves_symlinks_inside() {
        let (_dir, root) = tree();
        for path in ["etc/passwd", "/etc/passwd", "absolute", "etc/climbing", "../../etc/passwd"] {
            let fd = open_in_root(&root, Path::new(path), OFlag::O_RDONLY, Mode::empty()).unwrap();
            assert_eq!(read(fd), "inside", "{path}");
        }
        let escape = open_in_root(&root, Path::new("../secret"), OFlag::O_RDONLY, Mode::empty());
        assert_eq!(escape.unwrap_err(), SysError::Openat2(Errno::ENOENT));
    }

    #[test]
    fn beneath_refuses_symlinks_and_escapes() {
        let (_dir, root) = tree();
        let open = |path| open_beneath(&root, Path::new(path), OFlag::O_RDONLY, Mode::S_IRUSR).map(read);
        assert_eq!(open("etc/passwd").unwrap(), "inside");
        assert_eq!(open("absolute"), Err(SysError::Openat2(Errno::ELOOP)));
        assert_eq!(open("../secret"), Err(SysError::Openat2(Errno::EXDEV)));
        assert_eq!(open("/etc/passwd"), Err(SysError::Openat2(Errno::EXDEV)));
    }

    #[test]
    fn a_file_can_be_created() {
        let (_dir, root) = tree();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        open_beneath(&root, Path::new("etc/new"), flags, Mode::S_IRUSR).unwrap();
        let again = open_in_root(&root, Path::new("etc/new"), flags, Mode::S_IRUSR);
        assert_eq!(again.unwrap_err(), SysError::Openat2(Errno::EEXIST));
    }
}
