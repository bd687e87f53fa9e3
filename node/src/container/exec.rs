//! One more process in a running container.
//!
//! The service starts its own program again as a helper. Descriptors: 0–2 the new process's own, 3 the plan (a
//! [`Process`] in a sealed memory file), 4 a pidfd of the container's first process, 5 where reports go. The helper
//! joins the container's namespaces and forks, because only a child is really inside of a pid namespace; it stays
//! outside to report how the child ended.
use super::child::{
    EXIT_FAILED, PLAN_FD, REPORT_FD, before_the_root, inherited, prepare, read_plan, say, shield,
};
use super::plan::Process;
use super::report::{self, Failure, Report, Step};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use wherry_sys::SysError;
use wherry_sys::child::{Fork, ThreadsCounted, count_threads, fork};
use wherry_sys::process::{End, setns, wait};

/// The argument by which the service starts this.
pub const ARGUMENT: &str = "container-exec";
const TARGET_FD: i32 = 4;

/// Runs the process that the plan describes and reports how it ended. Call it first thing in `main`: there must be no
/// other thread.
#[must_use]
pub fn run() -> ExitCode {
    let shielded = shield();
    let Ok(report) = wherry_sys::fd::inherited(REPORT_FD) else { return ExitCode::from(EXIT_FAILED) };
    match shielded.and_then(|()| helper(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&report, &Report::Failed(failure));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn helper(report: &OwnedFd) -> Result<(), Failure> {
    let process: Process = read_plan(inherited(PLAN_FD)?)?;
    let target = inherited(TARGET_FD)?;
    before_the_root()?;
    let threads = count_threads();
    // With close-on-exec, so that its end tells that the child has become the program.
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(join)?;
    setns(target, every_namespace()).map_err(|error| join(error.errno()))?;
    match start(threads, &process, &write)? {
        None => Ok(()),
        Some(child) => {
            drop(write);
            supervise(child, read, report)
        }
    }
}

fn join(errno: Errno) -> Failure {
    Failure::new(Step::Join, "", errno)
}

fn every_namespace() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
}

/// Returns the child's number in the parent. In the child it returns only after a failure that it has told.
fn start(threads: ThreadsCounted, process: &Process, to: &OwnedFd) -> Result<Option<Pid>, Failure> {
    match fork(threads).map_err(|error: SysError| join(error.errno()))? {
        Fork::Parent { child } => Ok(Some(child)),
        Fork::Child => {
            let Err(failure) = become_process(process);
            say(to, &Report::Failed(failure));
            Ok(None)
        }
    }
}

fn become_process(process: &Process) -> Result<Infallible, Failure> {
    let terminal = |errno| Failure::new(Step::Terminal, "", errno);
    nix::unistd::setsid().map_err(terminal)?;
    if process.tty {
        wherry_sys::terminal::set_controlling(std::io::stdin()).map_err(|error| terminal(error.errno()))?;
    }
    prepare(process)?.execute()
}

fn supervise(child: Pid, from_child: OwnedFd, report: &OwnedFd) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let limit = report::MAX_BYTES as u64;
    File::from(from_child)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| join(wherry_sys::fd::errno_of(&error)))?;
    let (reports, _) = report::decode(&bytes);
    // The descriptors of the process are its own: its readers must see their end when it ends, not when we do.
    close_standard_streams().map_err(join)?;
    match reports.into_iter().next() {
        Some(failed) => say(report, &failed),
        None => say(report, &Report::Executing),
    }
    let ended = wait(child).map_err(|error| join(error.errno()))?;
    say(
        report,
        &match ended {
            End::Code(code) => Report::Code(code),
            End::Signal(signal) => Report::Signal(signal),
        },
    );
    Ok(())
}

/// Puts the report's own descriptor over 0, 1 and 2: nothing is ever read from or written to them any more.
fn close_standard_streams() -> Result<(), Errno> {
    let (read, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    nix::unistd::dup2_stdin(&read)?;
    nix::unistd::dup2_stdout(&read)?;
    nix::unistd::dup2_stderr(&read)
}
