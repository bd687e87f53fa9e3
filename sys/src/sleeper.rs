//! A process that does nothing but keep new namespaces alive until somebody else has got hold of them.
use crate::process::{pidfd_send_signal, wait};
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::Pid;
use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

/// Bytes of the child's stack: it calls the kernel and nothing else.
const STACK_BYTES: usize = 16 * 1024;

/// A child in new namespaces that waits until this is dropped, or until the thread that made it ends. It has no
/// descriptors and runs no program.
#[derive(Debug)]
pub struct Sleeper {
    pid: Pid,
    pidfd: OwnedFd,
    /// What the child runs on.
    _stack: Box<[Aligned]>,
}

/// As both architectures want a stack to be.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))]
struct Aligned {
    _bytes: [u8; 16],
}

impl Sleeper {
    /// Makes the namespaces that `CLONE_NEW*` flags say, and the process in them. The ids of a new user namespace are
    /// not mapped yet (user_namespaces(7)).
    ///
    /// # Errors
    /// [`SysError::Clone`]; `EPERM`, `EINVAL` or `ENOSPC` when the kernel makes no (more) user namespaces.
    pub fn new(namespaces: CloneFlags) -> Result<Self> {
        let mut old = SigSet::empty();
        // The child keeps them blocked: no handler of this process may run in it.
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))
            .map_err(SysError::SignalMask)?;
        let cloned = clone(namespaces);
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
        // Nobody else reaps it, so it is there; and killed, it ends at once. The stack goes after that.
        if pidfd_send_signal(&self.pidfd, libc::SIGKILL).is_ok() {
            wait(self.pid).ok();
        }
    }
}

/// Without a copy of the memory, which would hold up the other threads of this process for a millisecond.
fn clone(namespaces: CloneFlags) -> Result<Sleeper> {
    let mut stack = vec![Aligned { _bytes: [0; 16] }; STACK_BYTES / size_of::<Aligned>()].into_boxed_slice();
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
    // A number as the argument, so that nothing of this thread's is pointed to.
    let parent = nix::unistd::getpid().as_raw() as usize;
    // SAFETY: the child runs `sleep` on a stack of its own, which stacks of both architectures enter from the end and which
    // outlives it (see Drop). It shares this thread's memory, thread-local errno included: all its calls succeed, so it
    // writes to none of it. With CLONE_PIDFD the kernel stores a descriptor where the fifth argument points.
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end;
        libc::clone(sleep, top.cast(), flags, parent as *mut c_void, &raw mut pidfd)
    };
    let pid = Errno::result(pid).map_err(SysError::Clone)?;
    // SAFETY: clone succeeded, so the kernel stored a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Sleeper { pid: Pid::from_raw(pid), pidfd, _stack: stack })
}

extern "C" fn sleep(parent: *mut c_void) -> c_int {
    // SAFETY: system calls on numbers, none of which the C library attends to (as it does to pause, a cancellation point). Descriptors are not shared with the parent; all are closed, so that
    // no pipe of it is held open.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
        // The parent may have ended before the kernel was told what to do then.
        while libc::getppid() as usize == parent as usize {
            let (none, bytes) = (ptr::null_mut::<c_void>(), 0_usize);
            libc::syscall(libc::SYS_ppoll, none, 0_usize, none, none, bytes);
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
        assert_eq!(Sleeper::new(both).unwrap_err(), SysError::Clone(Errno::EINVAL));
    }
}
