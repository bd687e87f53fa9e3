//! One more process in a running container.
//!
//! The service starts its own program again as a helper. Descriptors: 0–2 the new process's own, 3 the plan (a
//! [`Process`] in a sealed memory file), 4 a pidfd of the container's first process, 5 where reports go. The helper
//! joins the container's namespaces and forks, because only a child is really inside of a pid namespace; it stays
//! outside to report how the child ended.
use super::child::{
    EXIT_FAILED, PLAN_FD, REPORT_FD, before_the_root, enter_user_namespace, inherited, prepare, raise_limits,
    read_plan, say, shield,
};
use super::plan::Process;
use super::report::{self, Failure, Report, Step};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::convert::Infallible;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use wherry_sys::child::{Fork, count_threads, fork};
use wherry_sys::process::{End, pidfd_open, pidfd_send_signal, reap, setns};

/// The argument by which the service starts this.
pub const ARGUMENT: &str = "container-exec";
const TARGET_FD: i32 = 4;

/// Runs the process that the plan describes and reports how it ended. Call it first thing in `main`: there must be no
/// other thread.
#[must_use]
pub fn run() -> u8 {
    let shielded = shield(ARGUMENT);
    let Ok(report) = wherry_sys::fd::inherited(REPORT_FD) else { return EXIT_FAILED };
    match shielded.and_then(|()| helper(&report)) {
        Ok(()) => 0,
        Err(failure) => {
            say(&report, &Report::Failed(failure));
            EXIT_FAILED
        }
    }
}

fn helper(report: &OwnedFd) -> Result<(), Failure> {
    let process: Process = read_plan(inherited(PLAN_FD)?)?;
    let target = inherited(TARGET_FD)?;
    before_the_root()?;
    let threads = count_threads();
    // From here on signals wait in a descriptor: they are for the process, not for its helper.
    let signals = SigSet::all();
    signals.thread_block().map_err(join)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(join)?;
    // With close-on-exec, so that its end tells that the child has become the program.
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(join)?;
    setns(&target, every_namespace()).map_err(|error| join(error.errno()))?;
    match fork(threads).map_err(|error| join(error.errno()))? {
        Fork::Child => {
            let Err(failure) = become_process(&process, &target);
            say(&write, &Report::Failed(failure));
            Ok(())
        }
        Fork::Parent { child } => {
            drop(write);
            let pidfd = pidfd_open(child).map_err(|error| join(error.errno()))?;
            close_standard_streams().map_err(join)?;
            match failure_of_child(read)? {
                Some(failure) => Err(failure),
                None => accompany(child, &pidfd, &signals, report),
            }
        }
    }
}

fn join(errno: Errno) -> Failure {
    Failure::new(Step::Join, "", errno)
}

/// Of the user's only the program itself is a part: whoever joins another one first may not join the rest.
fn every_namespace() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
}

fn become_process(process: &Process, target: &OwnedFd) -> Result<Infallible, Failure> {
    let terminal = |errno| Failure::new(Step::Terminal, "", errno);
    SigSet::empty().thread_set_mask().map_err(join)?;
    nix::unistd::setsid().map_err(terminal)?;
    if process.tty {
        wherry_sys::terminal::set_controlling(std::io::stdin()).map_err(|error| terminal(error.errno()))?;
    }
    raise_limits(process)?;
    if let Some(first) = process.first_id {
        enter_user_namespace(target, first)?;
    }
    let prepared = prepare(process)?;
    // Set last: a change of user clears it. A helper that is killed takes the process along.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(join)?;
    prepared.execute()
}

/// Puts something silent over 0, 1 and 2: they belong to the process alone, whose readers must see their end when it
/// ends and not when the helper does.
fn close_standard_streams() -> Result<(), Errno> {
    let (silent, _) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::unistd::dup2_stdin(&silent)?;
    nix::unistd::dup2_stdout(&silent)?;
    nix::unistd::dup2_stderr(&silent)
}

/// Waits until the child has become its program (`None`), or has said why not.
fn failure_of_child(from_child: OwnedFd) -> Result<Option<Failure>, Failure> {
    let mut bytes = Vec::new();
    let limit = report::MAX_BYTES as u64;
    let read = File::from(from_child).take(limit).read_to_end(&mut bytes);
    read.map_err(|error| join(wherry_sys::fd::errno_of(&error)))?;
    Ok(report::decode(&bytes).0.into_iter().find_map(|report| match report {
        Report::Failed(failure) => Some(failure),
        Report::Executing | Report::Code(_) | Report::Signal(_) | Report::AtTheGate => None,
    }))
}

/// Passes signals on until the process has ended, then tells how.
fn accompany(child: Pid, pidfd: &OwnedFd, signals: &SignalFd, report: &OwnedFd) -> Result<(), Failure> {
    say(report, &Report::Executing);
    loop {
        let Some(signal) = signals.read_signal().map_err(join)? else { continue };
        let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
        if number == Signal::SIGCHLD as i32 {
            if let Some(end) = ended(child)? {
                say(report, &end);
                return Ok(());
            }
        } else if let Err(error) = pidfd_send_signal(pidfd, number)
            // It has ended, and SIGCHLD is on its way.
            && error.errno() != Errno::ESRCH
        {
            return Err(join(error.errno()));
        }
    }
}

/// SIGCHLD also tells of stopping and going on, and several of them may be one.
fn ended(child: Pid) -> Result<Option<Report>, Failure> {
    while let Some(reaped) = reap().map_err(|error| join(error.errno()))? {
        if reaped.pid == child {
            return Ok(Some(match reaped.end {
                End::Code(code) => Report::Code(code),
                End::Signal(signal) => Report::Signal(signal),
            }));
        }
    }
    Ok(None)
}
