//! Undoing what `create` did: after the end of a container, or when `create` failed half-way.
use super::error::OciError;
use super::log::Log;
use super::store::{Entry, FirstProcess, Mounted, Record, Status, started_at};
use super::{cgroup, hooks};
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use wherry_sys::child::{Fork, count_threads, exit, fork};
use wherry_sys::process::{End, pidfd_open, pidfd_send_signal, wait};

/// How long a killed process may take to be gone, in milliseconds.
const PATIENCE_MS: u16 = 10_000;

/// Kills what runs, removes what was made, calls the poststop hooks, forgets the container.
///
/// # Errors
/// When something cannot be removed; the record stays then, so that it can be tried again.
pub(super) fn destroy(entry: &Entry, record: &Record, log: &Log) -> Result<(), OciError> {
    kill(record)?;
    record.cgroup.as_ref().map_or(Ok(()), cgroup::destroy)?;
    record.mounted.as_ref().map_or(Ok(()), unmount)?;
    if record.first.is_some() {
        let state = record.to_json(Status::Stopped).to_string();
        let warn = |error: OciError| log.warn(&error.to_string());
        hooks::call_each("poststop", &record.poststop, &state, &record.bundle, warn);
    }
    entry.remove()
}

/// The process, if it is still the one that was started.
pub(super) fn find(first: FirstProcess) -> Option<OwnedFd> {
    // In this order: the number cannot be another's after the comparison.
    let pidfd = pidfd_open(Pid::from_raw(first.pid)).ok()?;
    (started_at(first.pid) == Some(first.started)).then_some(pidfd)
}

fn kill(record: &Record) -> Result<(), OciError> {
    let Some(first) = record.first else { return Ok(()) };
    if let Some(pidfd) = find(first) {
        match pidfd_send_signal(&pidfd, nix::libc::SIGKILL) {
            Err(error) if error.errno() != nix::errno::Errno::ESRCH => {
                return Err(OciError::sys("killing the container")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if !matches!(nix::poll::poll(&mut watched, PollTimeout::from(PATIENCE_MS)), Ok(1..)) {
            return Err(OciError::Child(format!("process {} cannot be killed, try again later", first.pid)));
        }
    }
    // After `create` in the same process it is a child of this one.
    waitpid(Pid::from_raw(first.pid), Some(WaitPidFlag::WNOHANG)).ok();
    Ok(())
}

fn unmount(mounted: &Mounted) -> Result<(), OciError> {
    let Some((namespace, inode)) = &mounted.namespace else { return detach(&mounted.path) };
    // A namespace that is gone has taken its mounts along; the file may be another's by now.
    let Ok(file) = File::open(namespace) else { return Ok(()) };
    if !file.metadata().is_ok_and(|metadata| metadata.ino() == *inode) {
        return Ok(());
    }
    match fork(count_threads()).map_err(OciError::sys("entering a mount namespace"))? {
        Fork::Child => {
            let joined = setns(&file, CloneFlags::CLONE_NEWNS).is_ok();
            exit(u8::from(!(joined && detach(&mounted.path).is_ok())))
        }
        Fork::Parent { child } => match wait(child).map_err(OciError::sys("unmounting"))? {
            End::Code(0) => Ok(()),
            End::Code(_) | End::Signal(_) => {
                let what = format!("{} in namespace {}", mounted.path.display(), namespace.display());
                Err(OciError::Child(format!("unmounting {what} failed")))
            }
        },
    }
}

/// All that `create` mounted is below one mount.
fn detach(path: &Path) -> Result<(), OciError> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Never mounted, or no longer there.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(OciError::io("unmounting", path)(errno.into())),
    }
}
