//! What a process needs between being cloned and becoming somebody else's program.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

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
    let ThreadsCounted { one: true } = threads else { return Err(SysError::Fork(Errno::EBUSY)) };
    // SAFETY: there is one thread, so the child's copy of memory is consistent and may be used without restriction.
    match unsafe { nix::unistd::fork() }.map_err(SysError::Fork)? {
        ForkResult::Parent { child } => Ok(Fork::Parent { child }),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Proof that the threads of this process have been counted.
#[derive(Debug, Clone, Copy)]
pub struct ThreadsCounted {
    one: bool,
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
    }
}
