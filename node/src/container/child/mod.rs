//! Between clone and the container's program: performs the plan, one step after the other.
//!
//! It runs in new namespaces, made by the supervisor, as the first process there. Descriptors: 0–2 the container's own,
//! 3 the plan (a sealed memory file), 4 the go pipe (one byte once the network is there), 5 where reports go; with a user
//! namespace: 6 it, 7 and 8 the namespaces of host name and IPC that belong to it, 9 that of the network if it does too.
//!
//! With a user namespace this process stays the node's root, for most of these steps need that, but makes files as the
//! container's root. It enters the user namespace last.
pub(crate) mod become_program;
mod ids;
mod init;
pub(crate) mod mounts;
mod shield;

pub(super) use become_program::{prepare, raise_limits};
pub(super) use ids::enter_user_namespace;
use init::Init;
pub(super) use shield::shield;
#[cfg(feature = "oci")]
pub(crate) use shield::shield_with_environment;

use super::plan::{MAX_BYTES, Plan};
use super::report::{Failure, Report, Step};
use super::user_namespace::IDS;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

/// By what the service asks for this: a copy of the supervisor runs it, which saves an exec.
pub const ARGUMENT: &str = "container";
/// The same as a program of its own, for a first process that stays: it should neither look like the supervisor to who looks
/// at `/proc` in the container, nor share memory with it.
pub const ARGUMENT_INIT: &str = "container-init";
/// What a shell returns for a program that cannot be executed.
pub(super) const EXIT_FAILED: u8 = 127;

pub(super) const PLAN_FD: i32 = 3;
const GO_FD: i32 = 4;
pub(super) const REPORT_FD: i32 = 5;
/// With a user namespace: it, and those it owns.
const USER_FD: i32 = 6;
const OWNED_FDS: [(i32, CloneFlags); 2] = [(7, CloneFlags::CLONE_NEWUTS), (8, CloneFlags::CLONE_NEWIPC)];
const NETWORK_FD: (i32, CloneFlags) = (9, CloneFlags::CLONE_NEWNET);

/// Becomes the container's program, or reports why not and returns the code to end with. There must be no other thread.
#[must_use]
pub fn run() -> u8 {
    // Before any descriptor is taken over: the shield executes this program once more, with all of them.
    let shielded = shield(ARGUMENT);
    let Ok(report) = wherry_sys::fd::inherited(REPORT_FD) else { return EXIT_FAILED };
    match shielded.and_then(|()| start(&report)) {
        Ok(init) => {
            // Its end tells that the program runs.
            drop(report);
            init.accompany()
        }
        Err(failure) => {
            say(&report, &Report::Failed(failure));
            EXIT_FAILED
        }
    }
}

/// Returns only to look after the program, if that is wanted.
fn start(report: &OwnedFd) -> Result<Init, Failure> {
    let plan: Plan = read_plan(inherited(PLAN_FD)?)?;
    let go = inherited(GO_FD)?;
    before_the_root()?;
    let user = plan.process.first_id.map(|first| ids::join(first, plan.owns_network)).transpose()?;
    let mut sources = mounts::change_root(&plan, user.as_ref())?;
    mounts::unpack(&mut sources)?;
    mounts::furnish(&plan, sources)?;
    hostname(&plan.hostname)?;
    raise_limits(&plan.process)?;
    if let (Some(user), Some(first)) = (user, plan.process.first_id) {
        enter_user_namespace(user, first)?;
    }
    if plan.asleep {
        say(report, &Report::AtTheGate);
    }
    wait_for_go(go)?;
    become_first(&plan, report)
}

fn become_first(plan: &Plan, report: &OwnedFd) -> Result<Init, Failure> {
    let prepared = prepare(&plan.process)?;
    say(report, &Report::Executing);
    if plan.init {
        return init::start(prepared);
    }
    let Err(failure) = prepared.execute();
    Err(failure)
}

/// What is done while /proc is still the node's own.
pub(super) fn before_the_root() -> Result<(), Failure> {
    let fail = |detail: &str, errno| Failure::new(Step::Privileges, detail, errno);
    // The supervisor and the service protect themselves from the out-of-memory killer; containers must not inherit that.
    std::fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|error| fail("oom_score_adj", wherry_sys::fd::errno_of(&error)))?;
    // Until exec nobody in the container may look into this process.
    nix::sys::prctl::set_dumpable(false).map_err(|errno| fail("dumpable", errno))
}

pub(super) fn inherited(number: i32) -> Result<OwnedFd, Failure> {
    wherry_sys::fd::inherited(number).map_err(|error| Failure::new(Step::Plan, "", error.errno()))
}

/// The plan in a sealed memory file.
pub(super) fn read_plan<T: DeserializeOwned>(fd: OwnedFd) -> Result<T, Failure> {
    let fail = |errno| Failure::new(Step::Plan, "", errno);
    let bytes = wherry_sys::fd::read_sealed(fd, MAX_BYTES).map_err(|error| fail(error.errno()))?;
    postcard::from_bytes(&bytes).map_err(|_| fail(Errno::EBADMSG))
}

fn hostname(name: &str) -> Result<(), Failure> {
    let fail = |errno| Failure::new(Step::Hostname, name, errno);
    nix::unistd::sethostname(name).map_err(fail)
}

/// Leaves the node's view of cgroups, before the cgroup file system is mounted. Not by clone: the kernel roots the new
/// namespace where the *caller* is, and only now that is the container's own cgroup (copy_cgroup_ns in
/// kernel/cgroup/namespace.c).
fn leave_cgroup_namespace() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|errno| Failure::new(Step::Propagation, "cgroups", errno))
}

fn wait_for_go(go: OwnedFd) -> Result<(), Failure> {
    let fail = |errno| Failure::new(Step::Go, "", errno);
    match File::from(go).read(&mut [0]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(fail(Errno::EPIPE)),
        Err(error) => Err(fail(wherry_sys::fd::errno_of(&error))),
    }
}

/// Writes one report. If even that fails there is nobody to tell.
pub(super) fn say(to: &OwnedFd, report: &Report) {
    if let (Ok(bytes), Ok(copy)) = (postcard::to_stdvec(report), to.as_fd().try_clone_to_owned()) {
        drop(File::from(copy).write_all(&bytes));
    }
}
