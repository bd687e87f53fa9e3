//! A small init: the container's first process stays, passes signals on to the program, reaps orphans, and ends as the
//! program ended.
use super::super::report::{Failure, Step};
use super::become_program::Prepared;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::convert::Infallible;
use std::os::fd::{AsFd as _, OwnedFd};
use wherry_sys::child::{Fork, count_threads, fork};
use wherry_sys::process::{End, pidfd_open, pidfd_send_signal, reap};

/// What a shell adds to the number of the signal that ended a program: process 1 cannot be ended by its own.
const BY_SIGNAL: i32 = 128;

/// A program that runs, and what is needed to look after it.
pub(super) struct Init {
    child: Pid,
    pidfd: OwnedFd,
    signals: SignalFd,
}

fn fail(errno: Errno) -> Failure {
    Failure::new(Step::Exec, "the container's init", errno)
}

/// Starts the program. Returns in the parent only; both are behind the filter already.
pub(super) fn start(prepared: Prepared<'_>) -> Result<Init, Failure> {
    prepared.shut()?;
    let all = SigSet::all();
    all.thread_block().map_err(fail)?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC).map_err(fail)?;
    match fork(count_threads()).map_err(|error| fail(error.errno()))? {
        Fork::Child => {
            let Err(failure) = become_child(prepared);
            Err(failure)
        }
        Fork::Parent { child } => {
            // Nobody in the container may look into this process, which is not the image's.
            nix::sys::prctl::set_dumpable(false).map_err(fail)?;
            let pidfd = pidfd_open(child).map_err(|error| fail(error.errno()))?;
            Ok(Init { child, pidfd, signals })
        }
    }
}

/// In a process group of its own and, with a terminal, in its foreground: ctrl-C reaches the program and not its init.
fn become_child(prepared: Prepared<'_>) -> Result<Infallible, Failure> {
    let own = Pid::from_raw(0);
    nix::unistd::setpgid(own, own).map_err(fail)?;
    let stdin = std::io::stdin();
    if rustix::termios::isatty(stdin.as_fd()) {
        // SIGTTOU is blocked, so this works from the background. A terminal that is not ours is no reason to fail.
        nix::unistd::tcsetpgrp(stdin.as_fd(), nix::unistd::getpgrp()).ok();
    }
    SigSet::empty().thread_set_mask().map_err(fail)?;
    prepared.become_it()
}

impl Init {
    /// Looks after the program until it ends; the exit code.
    pub(super) fn accompany(self) -> u8 {
        loop {
            match self.signals.read_signal() {
                Ok(Some(signal)) => {
                    let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
                    if number == Signal::SIGCHLD as i32 {
                        if let Some(code) = self.reap() {
                            return code;
                        }
                    } else {
                        // One that has ended has its SIGCHLD on the way.
                        pidfd_send_signal(&self.pidfd, number).ok();
                    }
                }
                Ok(None) | Err(Errno::EINTR) => {}
                Err(_) => return super::EXIT_FAILED,
            }
        }
    }

    /// Several SIGCHLD may be one.
    fn reap(&self) -> Option<u8> {
        while let Ok(Some(reaped)) = reap() {
            if reaped.pid == self.child {
                return Some(match reaped.end {
                    End::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
                    End::Signal(signal) => u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX),
                });
            }
        }
        None
    }
}
