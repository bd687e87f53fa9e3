//! `run`: create and start; unless detached, pass signals on, wait for the end and delete.
use super::commands::start;
use super::destroy;
use super::error::OciError;
use super::log::Log;
use super::store::Entry;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use wherry_sys::SysError;
use wherry_sys::process::{End, pidfd_send_signal, reap};

/// What shells add to a signal's number.
const SIGNAL_EXIT: i32 = 128;

/// The exit code of the container's program.
///
/// # Errors
/// [`OciError`]; nothing of the container is left then.
pub(super) fn run(entry: &Entry, detach: bool, log: &Log) -> Result<u8, OciError> {
    // Blocked before there is something to miss. The program has a mask of its own.
    let signals = watch().map_err(|errno| OciError::sys("watching signals")(SysError::Signalfd(errno)))?;
    let first = entry.read()?.first;
    let pidfd = first.and_then(destroy::find);
    let started = start(entry, log);
    if detach && started.is_ok() {
        return Ok(0);
    }
    entry.unlock();
    let ended = match (&started, first, pidfd) {
        (Ok(()), Some(first), Some(pidfd)) => accompany(Pid::from_raw(first.pid), &pidfd, &signals),
        _ => Ok(End::Code(0)),
    };
    match entry.lock() {
        Ok(()) => destroy::destroy(entry, &entry.read()?, log)?,
        // Somebody else was faster.
        Err(OciError::NoSuchContainer(_)) => {}
        Err(error) => return Err(error),
    }
    started?;
    let code = match ended? {
        End::Code(code) => code,
        End::Signal(signal) => SIGNAL_EXIT + signal,
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn watch() -> nix::Result<SignalFd> {
    let signals = SigSet::all();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}

fn accompany(pid: Pid, pidfd: &OwnedFd, signals: &SignalFd) -> Result<End, OciError> {
    loop {
        // Also before the first signal: it may have ended while nobody looked.
        while let Some(reaped) = reap().map_err(OciError::sys("waiting for the container"))? {
            if reaped.pid == pid {
                return Ok(reaped.end);
            }
        }
        let signal = signals.read_signal();
        let signal =
            signal.map_err(|errno| OciError::sys("waiting for signals")(SysError::Signalfd(errno)))?;
        let number = signal.and_then(|signal| i32::try_from(signal.ssi_signo).ok()).unwrap_or_default();
        if number != Signal::SIGCHLD as i32 && number != 0 {
            // One that has ended needs no signal; its end is told by the next SIGCHLD.
            pidfd_send_signal(pidfd, number).ok();
        }
    }
}
