//! The container's first process, from its fork to the program: it performs the plan from inside, waits for `start`, and
//! says over a socket why it cannot go on.
mod program;
mod root;

use super::error::OciError;
use super::hooks;
use super::launch::{self, Given};
use super::plan::Plan;
use super::store::{FirstProcess, Record, Status};
use crate::container::report::Failure;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use wherry_sys::child::exit;
use wherry_sys::fdpass::{recv, send};

/// What a shell returns for a program that cannot be executed.
const EXIT_FAILED: u8 = 127;
/// What `start` writes to say that it means it.
pub(super) const START: u8 = b's';

/// What the first process has from its parent.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sync: OwnedFd,
    pub(super) listener: UnixListener,
    pub(super) console: Option<OwnedFd>,
    pub(super) given: &'a Given<'a>,
    pub(super) record: Record,
}

impl From<Failure> for OciError {
    fn from(failure: Failure) -> Self {
        Self::Child(failure.to_string())
    }
}

fn failed(what: &str) -> impl Fn(nix::errno::Errno) -> OciError + '_ {
    move |errno| OciError::Child(format!("{what} failed: {}", errno.desc()))
}

/// Does not return: this is a copy of the process that called it.
pub(super) fn run(inside: Inside<'_>) -> ! {
    let started =
        prepare(&inside).and_then(|ready| wait_for_start(&inside.listener).map(|start| (ready, start)));
    match started {
        Ok((ready, mut start)) => {
            let Err(error) = go(&inside, ready);
            start.write_all(error.to_string().as_bytes()).ok();
        }
        Err(error) => say(&inside.sync, launch::FAILED, &error.to_string()),
    }
    exit(EXIT_FAILED)
}

/// If nobody listens there is nobody to tell.
fn say(sync: &OwnedFd, kind: u8, text: &str) {
    let mut bytes = vec![kind];
    bytes.extend(text.bytes().take(launch::MAX_MESSAGE_BYTES - 1));
    send(sync.as_fd(), &bytes, &[]).ok();
}

fn hear(sync: &OwnedFd) -> Result<String, OciError> {
    let mut buffer = [0; 64];
    let gone = || OciError::Child("create ended before the container was ready".into());
    let received = recv(sync.as_fd(), &mut buffer).map_err(OciError::sys("creating the container"))?;
    let bytes = buffer.get(..received.len).filter(|bytes| !bytes.is_empty()).ok_or_else(gone)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// What waits for `start`.
struct Ready {
    program: Option<program::Prepared>,
    first: FirstProcess,
}

fn prepare(inside: &Inside<'_>) -> Result<Ready, OciError> {
    let plan = inside.plan;
    let pid = hear(&inside.sync)?.parse().map_err(|_| OciError::Child("no process id".into()))?;
    let first = FirstProcess { pid, started: 0 };
    enter_namespaces(plan)?;
    say(&inside.sync, launch::READY, "");
    hear(&inside.sync)?;
    plan.sysctls.iter().try_for_each(set_sysctl)?;
    let tree = root::mount(plan)?;
    let state = state(&inside.record, first, Status::Creating);
    hooks::call_all("createContainer", &plan.hooks.create_container, &state, &inside.record.bundle)?;
    root::enter(plan, &tree, inside.given.options.no_pivot)?;
    if let (Some(process), Some(console)) = (&plan.process, &inside.console) {
        program::open_terminal(process, console)?;
    }
    root::protect(plan, &tree)?;
    let program = plan.process.as_ref().map(|process| program::prepare(process, inside.given)).transpose()?;
    if plan.process.as_ref().is_some_and(program::lacks_ambient) {
        let text = "ambient capabilities that are not both permitted and inheritable cannot be given and are left out";
        say(&inside.sync, launch::WARNING, text);
    }
    say(&inside.sync, launch::CREATED, "");
    Ok(Ready { program, first })
}

fn state(record: &Record, first: FirstProcess, status: Status) -> String {
    Record { first: Some(first), ..record.clone() }.to_json(status).to_string()
}

fn enter_namespaces(plan: &Plan) -> Result<(), OciError> {
    nix::unistd::setsid().map_err(failed("starting a session"))?;
    if plan.namespaces.other_users() {
        let fail = failed("becoming root of the user namespace");
        setgroups(&[]).map_err(&fail)?;
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).map_err(&fail)?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).map_err(&fail)?;
    }
    // Until exec nobody in a shared namespace may look into this process.
    nix::sys::prctl::set_dumpable(false).map_err(failed("hiding"))?;
    match wherry_sys::keyring::new_session() {
        // A kernel without keyrings has no keys to protect.
        Err(error) if error.errno() != nix::errno::Errno::ENOSYS => {
            return Err(OciError::sys("making a keyring")(error));
        }
        Ok(()) | Err(_) => {}
    }
    // Not by clone: the kernel roots it where the caller is, and only now that is the container's own cgroup.
    if plan.namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed("creating a cgroup namespace"))?;
    }
    if plan.namespaces.new.contains(CloneFlags::CLONE_NEWNET) {
        wherry_sys::net::loopback_up().map_err(OciError::sys("starting the loopback interface"))?;
    }
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).map_err(failed("setting the host name"))?;
    }
    if let Some(name) = &plan.domainname {
        let set = rustix::system::setdomainname(name.as_bytes());
        set.map_err(|error| OciError::Child(format!("setting the domain name failed: {error}")))?;
    }
    Ok(())
}

/// Through the host's /proc, which shows the parameters of this process's namespaces.
fn set_sysctl((file, value): &(String, String)) -> Result<(), OciError> {
    let path = Path::new("/proc/sys").join(file);
    std::fs::write(&path, value).map_err(OciError::io("setting", &path))
}

fn wait_for_start(listener: &UnixListener) -> Result<UnixStream, OciError> {
    let fail = || OciError::io("waiting for start", Path::new("start.sock"));
    loop {
        let (mut start, _) = listener.accept().map_err(fail())?;
        let mut word = [0];
        // One that gives up is nobody.
        if matches!(start.read(&mut word), Ok(1)) && word == [START] {
            return Ok(start);
        }
    }
}

fn go(inside: &Inside<'_>, ready: Ready) -> Result<Infallible, OciError> {
    let state = state(&inside.record, ready.first, Status::Created);
    let hooks = &inside.plan.hooks.start_container;
    hooks::call_all("startContainer", hooks, &state, Path::new("/"))?;
    let (Some(process), Some(program)) = (&inside.plan.process, ready.program) else {
        return Err(OciError::Config("there is no process to start".into()));
    };
    program.execute(process, &inside.given.preserved)
}
