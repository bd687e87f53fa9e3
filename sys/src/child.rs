//! What a process needs between being cloned and becoming somebody else's program.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, Pid};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

/// Which of the two processes this is, after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called it.
    Parent {
        /// The new one.
        child: Pid,
    },
    /// The new one.
    Child,
}

/// Duplicates the process, which must have one thread: a copy made while other threads hold locks cannot even allocate.
///
/// # Errors
/// [`SysError::Fork`]; `EBUSY` when there are other threads (as far as /proc tells, so call it while /proc is the host's).
pub fn fork(threads: ThreadsCounted) -> Result<Fork> {
    threads.just_one().map_err(SysError::Fork)?;
    // SAFETY: there is one thread, so the child's copy of memory is consistent and may be used without restriction.
    match unsafe { nix::unistd::fork() }.map_err(SysError::Fork)? {
        ForkResult::Parent { child } => Ok(Fork::Parent { child }),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Like [`fork`], into new namespaces and a cgroup. With `sibling` the new process is a child of this one's parent.
///
/// The C library does not know of it: nothing in the child may rely on thread ids that the library has stored.
///
/// # Errors
/// [`SysError::Clone3`]; `EBUSY` when there are other threads.
pub fn fork_into(
    threads: ThreadsCounted,
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    sibling: bool,
) -> Result<Fork> {
    threads.just_one().map_err(SysError::Clone3)?;
    // SAFETY: clone_args is plain data for which all zeroes is valid: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    let parent = if sibling { libc::CLONE_PARENT as u64 } else { 0 };
    args.flags = namespaces.bits() as u64 | parent | cgroup.map_or(0, |_| crate::process::CLONE_INTO_CGROUP);
    // A sibling's end is told to the parent in the way that this process's own is (clone(2)).
    args.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    args.cgroup = cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM the child gets a copy of the memory, like fork; there is one thread, so that copy is
    // consistent; `args` is fully initialised.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::addr_of_mut!(args), size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(Fork::Child),
        1.. => Ok(Fork::Parent { child: Pid::from_raw(pid as libc::pid_t) }),
        _ => Err(SysError::Clone3(Errno::last())),
    }
}

/// Proof that the threads of this process have been counted.
#[derive(Debug, Clone, Copy)]
pub struct ThreadsCounted {
    one: bool,
}

impl ThreadsCounted {
    pub(crate) fn just_one(self) -> Result<(), Errno> {
        if self.one { Ok(()) } else { Err(Errno::EBUSY) }
    }
}

/// Counts the threads of this process. Take it while /proc is trusted, and start none after it.
#[must_use]
pub fn count_threads() -> ThreadsCounted {
    let tasks = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    ThreadsCounted { one: matches!(tasks, Ok(1)) }
}

/// Ends this process at once, without the clean-up of a program that it is only a copy of.
pub fn exit(code: u8) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

/// Closes every descriptor from `first` on. For a process that goes on with none of them until its end: whoever still holds
/// one, up the stack, is never returned to.
///
/// # Errors
/// As close_range(2), ENOSYS before Linux 5.9.
pub fn close_from(first: u32) -> Result<()> {
    // SAFETY: numbers only. No memory is touched; a descriptor used afterwards gives EBADF.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(result).map(drop).map_err(SysError::CloseRange)
}

/// Gives SIGPIPE its default action back: Rust's standard library ignores it at start, and exec would pass that on.
pub fn restore_broken_pipe_signal() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE, and no handler of this process is replaced.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_is_not_forked() {
        // The test harness itself has a main thread and this one.
        assert_eq!(fork(count_threads()), Err(SysError::Fork(Errno::EBUSY)));
        let into = fork_into(count_threads(), CloneFlags::CLONE_NEWUTS, None, false);
        assert_eq!(into, Err(SysError::Clone3(Errno::EBUSY)));
    }
}
