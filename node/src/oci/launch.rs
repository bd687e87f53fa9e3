//! `create`: cgroup, namespaces, identity maps and hooks, in conversation with the container's first process, which does
//! the rest from inside.
use super::child::{self, Inside};
use super::cli::Create;
use super::error::OciError;
use super::hooks;
use super::log::Log;
use super::plan::{Kind, NEW_TIME, Namespaces, Plan};
use super::store::{Entry, FirstProcess, Mounted, Phase, Record, Status, started_at};
use super::{cgroup, destroy};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use rustix::process::{Rlimit, prlimit};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use wherry_sys::SysError;
use wherry_sys::child::{Fork, ThreadsCounted, count_threads, exit, fork, fork_into};
use wherry_sys::fdpass::{recv, send, seqpacket_pair};
use wherry_sys::process::{namespace_kind, wait};

/// Longest message of the conversation, in bytes: one sentence.
pub(super) const MAX_MESSAGE_BYTES: usize = 8192;
/// The first byte of what the first process says.
pub(super) const PID: u8 = b'p';
pub(super) const READY: u8 = b'r';
pub(super) const CREATED: u8 = b'c';
pub(super) const WARNING: u8 = b'w';
pub(super) const FAILED: u8 = b'e';

/// What besides the plan `create` was given.
#[derive(Debug)]
pub(super) struct Given<'a> {
    pub(super) options: &'a Create,
    pub(super) cgroups: bool,
    /// Descriptors from 3 on that the program inherits, and how many of them are sockets of LISTEN_FDS.
    pub(super) preserved: Vec<OwnedFd>,
    pub(super) listening: u32,
}

/// Brings a container to life, up to the point where it waits for `start`. On failure all is undone.
///
/// # Errors
/// [`OciError`].
pub(super) fn launch(
    entry: &Entry,
    mut record: Record,
    plan: &Plan,
    given: &Given<'_>,
    log: &Log,
) -> Result<Record, OciError> {
    match bring_up(entry, &mut record, plan, given, log) {
        Ok(()) => Ok(record),
        Err(error) => {
            match destroy::destroy(entry, &record, log) {
                Ok(()) => {}
                Err(second) => log.warn(&format!("cleaning up: {second}")),
            }
            Err(error)
        }
    }
}

fn bring_up(
    entry: &Entry,
    record: &mut Record,
    plan: &Plan,
    given: &Given<'_>,
    log: &Log,
) -> Result<(), OciError> {
    let console = console(plan, given.options)?;
    let joined = open_namespaces(&plan.namespaces)?;
    if given.cgroups {
        record.cgroup = cgroup::create(&plan.cgroup)?;
    }
    record.mounted = mounted(plan, &joined)?;
    entry.write(record)?;
    let socket = entry.socket();
    let listener = UnixListener::bind(&socket).map_err(OciError::io("making socket", &socket))?;
    let (ours, theirs) = seqpacket_pair().map_err(OciError::sys("creating the container"))?;
    let cgroup = record.cgroup.as_ref().map(|cgroup| cgroup::directory(&cgroup.path)).transpose()?;
    let threads = count_threads();
    let fork_first = |sibling| {
        let flags = plan.namespaces.new & !(CloneFlags::CLONE_NEWCGROUP | NEW_TIME);
        fork_into(threads, flags, cgroup.as_ref().map(OwnedFd::as_fd), sibling)
    };
    let inside = Inside { plan, sync: theirs, listener, console, given, record: record.clone() };
    let (pid, ours) = if joined.is_empty() && !plan.namespaces.new.contains(NEW_TIME) {
        match fork_first(false).map_err(OciError::sys("creating namespaces"))? {
            Fork::Child => {
                // So that it sees the end of the other side.
                drop(ours);
                child::run(inside)
            }
            Fork::Parent { child } => {
                drop(inside);
                (child, ours)
            }
        }
    } else {
        through_another(threads, inside, ours, &joined, fork_first)?
    };
    accompany(entry, record, plan, given, (&ours, pid), log)
}

/// Existing namespaces are joined, and a new time namespace is set, by a process of its own: this one must stay outside to
/// call hooks and write identity maps.
fn through_another(
    threads: ThreadsCounted,
    inside: Inside<'_>,
    ours: OwnedFd,
    joined: &[(Kind, OwnedFd)],
    fork_first: impl Fn(bool) -> Result<Fork, SysError>,
) -> Result<(Pid, OwnedFd), OciError> {
    match fork(threads).map_err(OciError::sys("joining namespaces"))? {
        Fork::Child => {
            drop(ours);
            let forked = join(joined, inside.plan)
                .and_then(|()| fork_first(true).map_err(OciError::sys("creating namespaces")));
            let text = match forked {
                Ok(Fork::Child) => child::run(inside),
                Ok(Fork::Parent { child }) => format!("{}{child}", char::from(PID)),
                Err(error) => format!("{}{error}", char::from(FAILED)),
            };
            // If even that fails, the other side sees the end of this process.
            send(inside.sync.as_fd(), text.as_bytes(), &[]).ok();
            exit(0)
        }
        Fork::Parent { child } => {
            drop(inside);
            let heard = hear(&ours);
            wait(child).map_err(OciError::sys("joining namespaces"))?;
            let number = match heard? {
                (PID, text) => text.parse().ok(),
                _ => None,
            };
            let number = number.ok_or_else(|| OciError::Child("joining namespaces failed".into()))?;
            Ok((Pid::from_raw(number), ours))
        }
    }
}

/// Opened before anything is done, so that one of the wrong kind leaves nothing behind.
fn open_namespaces(namespaces: &Namespaces) -> Result<Vec<(Kind, OwnedFd)>, OciError> {
    namespaces
        .joined
        .iter()
        .map(|(kind, path)| {
            let file: OwnedFd = File::open(path).map_err(OciError::io("opening namespace", path))?.into();
            match namespace_kind(&file) {
                Ok(flag) if flag == kind.flag => Ok((*kind, file)),
                Ok(_) | Err(_) => {
                    let shown = path.display();
                    Err(OciError::Config(format!("{shown} is no {} namespace", kind.name)))
                }
            }
        })
        .collect()
}

/// Those of the host while there are the rights of the host, then the user namespace, then those that belong to it.
fn join(joined: &[(Kind, OwnedFd)], plan: &Plan) -> Result<(), OciError> {
    if plan.namespaces.new.contains(NEW_TIME) {
        let fail =
            |source| OciError::Sys { what: "creating a time namespace", source: SysError::Setns(source) };
        unshare(NEW_TIME).map_err(fail)?;
        let lines: String =
            plan.time_offsets.iter().map(|(clock, s, ns)| format!("{clock} {s} {ns}\n")).collect();
        let path = Path::new("/proc/self/timens_offsets");
        fs::write(path, lines).map_err(OciError::io("writing linux.timeOffsets to", path))?;
    }
    let is_user = |kind: &Kind| kind.flag == CloneFlags::CLONE_NEWUSER;
    let fail =
        |kind: Kind, errno| OciError::Child(format!("joining the {} namespace failed: {errno}", kind.name));
    let mut later = Vec::new();
    for (kind, file) in joined.iter().filter(|(kind, _)| !is_user(kind)) {
        match setns(file, kind.flag) {
            Err(nix::errno::Errno::EPERM) => later.push((kind, file)),
            result => result.map_err(|errno| fail(*kind, errno))?,
        }
    }
    for (kind, file) in joined.iter().filter(|(kind, _)| is_user(kind)) {
        // The kernel does not let a process join the one that it is in.
        if !is_own_user_namespace(file) {
            setns(file, kind.flag).map_err(|errno| fail(*kind, errno))?;
        }
    }
    later.into_iter().try_for_each(|(kind, file)| setns(file, kind.flag).map_err(|errno| fail(*kind, errno)))
}

fn is_own_user_namespace(file: &OwnedFd) -> bool {
    let own = fs::metadata("/proc/self/ns/user");
    let stat = rustix::fs::fstat(file);
    matches!((own, stat), (Ok(own), Ok(stat)) if (own.dev(), own.ino()) == (stat.st_dev, stat.st_ino))
}

/// Mounts in a namespace that is not the container's own have to be taken away afterwards.
fn mounted(plan: &Plan, joined: &[(Kind, OwnedFd)]) -> Result<Option<Mounted>, OciError> {
    if plan.namespaces.own_mounts() {
        return Ok(None);
    }
    let is_mount = |kind: &Kind| kind.flag == CloneFlags::CLONE_NEWNS;
    let path = plan.namespaces.joined.iter().find(|(kind, _)| is_mount(kind)).map(|(_, path)| path.clone());
    let file = joined.iter().find(|(kind, _)| is_mount(kind)).map(|(_, file)| file);
    let namespace = match (path, file) {
        (Some(path), Some(file)) => {
            let stat = rustix::fs::fstat(file);
            let stat = stat.map_err(|error| OciError::io("opening namespace", &path)(error.into()))?;
            Some((path, stat.st_ino))
        }
        (None, _) | (_, None) => None,
    };
    Ok(Some(Mounted { path: plan.root.path.clone(), namespace }))
}

fn console(plan: &Plan, options: &Create) -> Result<Option<OwnedFd>, OciError> {
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal.is_some());
    match (&options.console_socket, terminal) {
        (Some(path), true) => UnixStream::connect(path)
            .map(|socket| Some(socket.into()))
            .map_err(OciError::io("connecting to console socket", path)),
        (None, false) => Ok(None),
        (None, true) => Err(OciError::Usage("process.terminal needs --console-socket".into())),
        (Some(_), false) => Err(OciError::Usage("--console-socket needs process.terminal".into())),
    }
}

/// The rest, from outside.
fn accompany(
    entry: &Entry,
    record: &mut Record,
    plan: &Plan,
    given: &Given<'_>,
    (ours, pid): (&OwnedFd, Pid),
    log: &Log,
) -> Result<(), OciError> {
    let process = Path::new("/proc").join(pid.to_string());
    let Some(started) = started_at(pid.as_raw()) else { return Err(hear(ours).err().unwrap_or_else(ended)) };
    record.first = Some(FirstProcess { pid: pid.as_raw(), started });
    entry.write(record)?;
    if let Some(maps) = &plan.mappings {
        for (file, lines) in [("gid_map", &maps.groups), ("uid_map", &maps.users)] {
            let path = process.join(file);
            fs::write(&path, lines).map_err(OciError::io("writing id mappings to", &path))?;
        }
    }
    if let Some(adjustment) = plan.process.as_ref().and_then(|process| process.oom_score_adjustment) {
        let path = process.join("oom_score_adj");
        fs::write(&path, adjustment.to_string())
            .map_err(OciError::io("writing process.oomScoreAdj to", &path))?;
    }
    tell(ours, pid.to_string().as_bytes())?;
    expect(ours, READY, log)?;
    let state = record.to_json(Status::Creating).to_string();
    hooks::call_all("prestart", &plan.hooks.prestart, &state, &record.bundle)?;
    hooks::call_all("createRuntime", &plan.hooks.create_runtime, &state, &record.bundle)?;
    tell(ours, b"go")?;
    expect(ours, CREATED, log)?;
    record.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup::restrict_devices(cgroup, &plan.cgroup))?;
    limit(plan, pid)?;
    if let Some(path) = &given.options.pid_file {
        write_pid(path, pid)?;
    }
    record.phase = Phase::Created;
    entry.write(record)
}

fn tell(ours: &OwnedFd, bytes: &[u8]) -> Result<(), OciError> {
    // One that is gone may have said why.
    send(ours.as_fd(), bytes, &[]).map_err(|_| hear(ours).err().unwrap_or_else(ended))
}

fn ended() -> OciError {
    OciError::Child("the container's first process ended before it was ready".into())
}

fn expect(ours: &OwnedFd, wanted: u8, log: &Log) -> Result<(), OciError> {
    loop {
        match hear(ours)? {
            (kind, _) if kind == wanted => return Ok(()),
            (WARNING, text) => log.warn(&text),
            (_, text) => return Err(OciError::Child(text)),
        }
    }
}

fn hear(ours: &OwnedFd) -> Result<(u8, String), OciError> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let received = recv(ours.as_fd(), &mut buffer).map_err(OciError::sys("creating the container"))?;
    let (kind, text) = buffer.get(..received.len).and_then(<[u8]>::split_first).ok_or_else(ended)?;
    let text = String::from_utf8_lossy(text).into_owned();
    if *kind == FAILED { Err(OciError::Child(text)) } else { Ok((*kind, text)) }
}

/// From outside, where there is the right to raise them.
fn limit(plan: &Plan, pid: Pid) -> Result<(), OciError> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw());
    for limit in plan.process.iter().flat_map(|process| &process.limits) {
        // The highest number is the kernel's word for "none".
        let number = |value: u64| Some(value).filter(|&value| value != u64::MAX);
        let new = Rlimit { current: number(limit.soft), maximum: number(limit.hard) };
        prlimit(pid, limit.resource, new).map_err(|errno| {
            OciError::Child(format!("setting limit {:?} failed: {errno}", limit.resource))
        })?;
    }
    Ok(())
}

/// Whole or not at all: programs wait for the file to appear.
fn write_pid(path: &Path, pid: Pid) -> Result<(), OciError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| file.write_all(pid.to_string().as_bytes()));
    let renamed = written.and_then(|()| fs::rename(&partial, path));
    if renamed.is_err() {
        fs::remove_file(&partial).ok();
    }
    renamed.map_err(OciError::io("writing", path))
}
