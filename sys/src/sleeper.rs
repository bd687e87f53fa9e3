//! A process that does nothing but keep new namespaces alive until somebody else has got hold of them.
use crate::process::{pidfd_send_signal, wait};
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::Pid;
use std::mem::{size_of, zeroed};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

/// A child in new namespaces that waits until this is dropped, or until the thread that made it ends. It has no
/// descriptors and runs no program.
#[derive(Debug)]
pub struct Sleeper {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Sleeper {
    /// Makes the namespaces that `CLONE_NEW*` flags say, and the process in them. The ids of a new user namespace are
    /// not mapped yet (user_namespaces(7)).
    ///
    /// # Errors
    /// [`SysError::Clone3`]; `EPERM`, `EINVAL` or `ENOSPC` when the kernel makes no (more) user namespaces.
    pub fn new(namespaces: CloneFlags) -> Result<Self> {
        let mut old = SigSet::empty();
        // No handler of this process may run in the child.
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))
            .map_err(SysError::SignalMask)?;
        let cloned = clone3(namespaces);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&old), None).map_err(SysError::SignalMask)?;
        cloned
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Nobody else reaps it, so it is there; and killed, it ends at once.
        if pidfd_send_signal(&self.pidfd, libc::SIGKILL).is_ok() {
            wait(self.pid).ok();
        }
    }
}

fn clone3(namespaces: CloneFlags) -> Result<Sleeper> {
    let mut pidfd: RawFd = -1;
    let parent = nix::unistd::getpid();
    // SAFETY: clone_args is plain data for which all zeroes is valid: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    args.flags = namespaces.bits() as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::addr_of_mut!(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child gets a copy of the memory, like fork; `args` is fully initialised and its
    // pointers are valid for the call. The child goes on in `sleep`, which keeps to signal-safe calls.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::addr_of_mut!(args), size_of::<libc::clone_args>()) };
    match pid {
        0 => sleep(parent),
        1.. => {
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Sleeper { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
        }
        _ => Err(SysError::Clone3(Errno::last())),
    }
}

fn sleep(parent: Pid) -> ! {
    // SAFETY: signal-safe system calls on numbers. All descriptors are closed, so that no pipe of the parent is held open.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
        // The parent may have ended before the kernel was told what to do then.
        while libc::getppid() == parent.as_raw() {
            libc::pause();
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_keeps_namespaces_that_outlive_it() {
        let sleeper = Sleeper::new(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWUTS).unwrap();
        let proc = format!("/proc/{}", sleeper.pid());
        assert_ne!(
            fs::read_link(format!("{proc}/ns/user")).unwrap(),
            fs::read_link("/proc/self/ns/user").unwrap()
        );
        while fs::read_dir(format!("{proc}/fd")).unwrap().count() > 0 {
            std::thread::yield_now();
        }
        fs::write(format!("{proc}/uid_map"), "0 1879048192 65536").unwrap();
        let user = fs::File::open(format!("{proc}/ns/user")).unwrap();
        drop(sleeper);
        assert!(!fs::exists(&proc).unwrap());
        let kind = crate::process::namespace_kind(&user).unwrap();
        assert_eq!(kind, CloneFlags::CLONE_NEWUSER);
    }

    #[test]
    fn nonsense_is_refused() {
        let both = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_FS;
        assert_eq!(Sleeper::new(both).unwrap_err(), SysError::Clone3(Errno::EINVAL));
    }
}
