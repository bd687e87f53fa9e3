//! From a privileged process inside of the container to the container's program: user, directory, limits, privileges,
//! filter, exec, in this order. Shared by a container's first process and those that exec adds.
use super::super::copy;
use super::super::plan::{Limit, Process, Resource};
use super::super::report::{Failure, Step};
use super::super::seccomp::Filter;
use super::super::user::{self, Identity};
use super::ids;
use super::mounts::make_directory;
use nix::errno::Errno;
use nix::sys::resource::{Resource as Kind, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use wherry_protocol::message::CopySpec;
use wherry_sys::capability::{CapabilitySet, ThreadSets};

/// Used to find the program when the environment has no PATH (execvp(3) uses the same two).
const FALLBACK_PATH: &str = "/bin:/usr/bin";
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Everything that can fail has been done, except for the last two steps.
pub(in super::super) struct Prepared<'a> {
    filter: &'a Filter,
    copy: Option<&'a CopySpec>,
    program: CString,
    shown: &'a str,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    home: PathBuf,
}

/// Does all but the last two steps. The root directory is the container's, and this process is root in it.
pub(in super::super) fn prepare(process: &Process) -> Result<Prepared<'_>, Failure> {
    let root =
        rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Failure::new(Step::Workdir, "/", errno(error)))?;
    let identity = identity(&root, &process.user)?;
    ids::check(process, "user", identity.uid)?;
    identity.groups.iter().chain([&identity.gid]).try_for_each(|&gid| ids::check(process, "group", gid))?;
    enter(&root, &process.workdir)?;
    process.limits.iter().try_for_each(set_limit)?;
    let program = match process.copy {
        Some(_) => String::new(),
        None => find_program(process)?,
    };
    let prepared = Prepared {
        filter: &process.filter,
        copy: process.copy.as_ref(),
        program: c_string(&program)?,
        shown: process.argv.first().map_or("", String::as_str),
        arguments: process.argv.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?,
        environment: environment(process, &identity)?,
        home: home(process, &identity).into(),
    };
    drop_privileges(&identity, process.capabilities)?;
    Ok(prepared)
}

impl Prepared<'_> {
    /// Both of the last two steps.
    pub(in super::super) fn execute(self) -> Result<Infallible, Failure> {
        self.shut()?;
        self.become_it()
    }

    /// Puts this process behind the filter.
    pub(super) fn shut(&self) -> Result<(), Failure> {
        self.filter.install().map_err(|error| Failure::new(Step::Seccomp, "", seccomp_errno(&error)))
    }

    /// Becomes the program.
    pub(super) fn become_it(self) -> Result<Infallible, Failure> {
        wherry_sys::child::restore_broken_pipe_signal();
        if let Some(copy) = self.copy {
            // What is written from here on is the archive's or the user's.
            wherry_sys::child::exit(copy::run(copy, &self.home));
        }
        nix::unistd::execve(&self.program, &self.arguments, &self.environment)
            .map_err(|errno| Failure::new(Step::Exec, self.shown, errno))
    }
}

pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn seccomp_errno(error: &seccompiler::Error) -> Errno {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => {
            wherry_sys::fd::errno_of(error)
        }
        seccompiler::Error::Backend(_)
        | seccompiler::Error::EmptyFilter
        | seccompiler::Error::ThreadSync(_) => Errno::EINVAL,
    }
}

pub(crate) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new(Step::Plan, "", Errno::EINVAL))
}

fn identity(root: &OwnedFd, who: &str) -> Result<Identity, Failure> {
    let read =
        |path: &'static str| read_small(root, path).map_err(|errno| Failure::new(Step::User, path, errno));
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    user::resolve(who, &passwd, &group).map_err(|missing| Failure::new(Step::User, missing.0, Errno::ENOENT))
}

/// An ordinary file of the image as text; empty if there is none. A pipe or device in its place is not waited for.
pub(crate) fn read_small(root: &OwnedFd, path: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        result => result.map_err(errno)?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(errno)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::EINVAL);
    }
    let mut bytes = Vec::new();
    let limit = user::MAX_FILE_BYTES as u64 + 1;
    File::from(fd).take(limit).read_to_end(&mut bytes).map_err(|error| wherry_sys::fd::errno_of(&error))?;
    if bytes.len() > user::MAX_FILE_BYTES {
        return Err(Errno::EFBIG);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn enter(root: &OwnedFd, path: &str) -> Result<(), Failure> {
    let fail = |error| Failure::new(Step::Workdir, path, errno(error));
    let directory = make_directory(root, path).map_err(fail)?;
    rustix::process::fchdir(directory).map_err(fail)
}

/// Raises hard limits where they are to be higher, which takes the node's root. Lower ones are set by [`prepare`], which
/// itself may need more.
pub(in super::super) fn raise_limits(process: &Process) -> Result<(), Failure> {
    process.limits.iter().try_for_each(|limit| {
        let fail = |errno| Failure::new(Step::Limit, limit.resource.name(), errno);
        let kind = kind(limit);
        let (soft, hard) = getrlimit(kind).map_err(fail)?;
        match setrlimit(kind, soft, hard.max(limit.hard)) {
            // A node that is itself bounded cannot give more than it has.
            Err(Errno::EPERM) => Ok(()),
            result => result.map_err(fail),
        }
    })
}

fn kind(limit: &Limit) -> Kind {
    match limit.resource {
        Resource::As => Kind::RLIMIT_AS,
        Resource::Core => Kind::RLIMIT_CORE,
        Resource::Cpu => Kind::RLIMIT_CPU,
        Resource::Data => Kind::RLIMIT_DATA,
        Resource::Fsize => Kind::RLIMIT_FSIZE,
        Resource::Memlock => Kind::RLIMIT_MEMLOCK,
        Resource::Msgqueue => Kind::RLIMIT_MSGQUEUE,
        Resource::Nice => Kind::RLIMIT_NICE,
        Resource::Nofile => Kind::RLIMIT_NOFILE,
        Resource::Nproc => Kind::RLIMIT_NPROC,
        Resource::Sigpending => Kind::RLIMIT_SIGPENDING,
        Resource::Stack => Kind::RLIMIT_STACK,
    }
}

fn set_limit(limit: &Limit) -> Result<(), Failure> {
    let kind = kind(limit);
    let fail = |errno| Failure::new(Step::Limit, limit.resource.name(), errno);
    match setrlimit(kind, limit.soft, limit.hard) {
        // A node that is itself bounded (a process, not a board) cannot give more than it has.
        Err(Errno::EPERM) => {
            let (_, most) = getrlimit(kind).map_err(fail)?;
            setrlimit(kind, limit.soft.min(most), limit.hard.min(most)).map_err(fail)
        }
        result => result.map_err(fail),
    }
}

fn home<'a>(process: &'a Process, identity: &'a Identity) -> &'a str {
    let own = process.env.iter().find(|(name, _)| name == "HOME");
    own.map_or(&identity.home, |(_, value)| value)
}

fn environment(process: &Process, identity: &Identity) -> Result<Vec<CString>, Failure> {
    let there = process.env.iter().any(|(name, _)| name == "HOME");
    let added = (!there).then(|| format!("HOME={}", identity.home));
    let own = process.env.iter().map(|(name, value)| format!("{name}={value}"));
    own.chain(added).map(|variable| c_string(&variable)).collect()
}

fn find_program(process: &Process) -> Result<String, Failure> {
    let name = process.argv.first().map_or("", String::as_str);
    let path = process.env.iter().find(|(variable, _)| variable == "PATH").map(|(_, value)| value.as_str());
    search_program(name, path)
}

/// As execvp(3), but without its habit of trying /bin/sh for what is no program.
pub(crate) fn search_program(name: &str, path: Option<&str>) -> Result<String, Failure> {
    let fail = |errno| Failure::new(Step::Program, name, errno);
    if name.contains('/') {
        return executable(name).map(|()| name.to_owned()).map_err(fail);
    }
    let mut found = Errno::ENOENT;
    for directory in path.unwrap_or(FALLBACK_PATH).split(':') {
        let candidate =
            if directory.is_empty() { format!("./{name}") } else { format!("{directory}/{name}") };
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => found = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(fail(found))
}

fn executable(path: &str) -> Result<(), Errno> {
    const ANY_EXECUTE: u32 = 0o111;
    let stat = rustix::fs::stat(path).map_err(errno)?;
    let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if file && stat.st_mode & ANY_EXECUTE != 0 { Ok(()) } else { Err(Errno::EACCES) }
}

/// Images let their programs open /dev/stdout and /dev/stderr by name: whoever they run as must be allowed to. Only pipes
/// and terminals, which are this process's own; /dev/null is everybody's. `group` tells their group, if it is to be another
/// one, by whether they are terminals.
pub(crate) fn own_streams(uid: Uid, group: impl Fn(bool) -> Option<Gid>) {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let pipe = rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        let terminal = rustix::termios::isatty(stream);
        if pipe || terminal {
            // A program that never opens them needs nothing of this.
            nix::unistd::fchown(stream, Some(uid), group(terminal)).ok();
        }
    }
}

/// Bounding set while there is the right to change it, then groups, group and user, then what root would still have.
fn drop_privileges(identity: &Identity, capabilities: u64) -> Result<(), Failure> {
    let sys = |detail: &'static str| {
        move |error: wherry_sys::SysError| Failure::new(Step::Privileges, detail, error.errno())
    };
    let id = |detail: &'static str| move |errno| Failure::new(Step::Privileges, detail, errno);
    match wherry_sys::keyring::new_session() {
        // A kernel without keyrings has no keys to protect.
        Err(error) if error.errno() != Errno::ENOSYS => return Err(sys("keyring")(error)),
        Ok(()) | Err(_) => {}
    }
    let keep = CapabilitySet::from_bits(capabilities);
    wherry_sys::capability::limit_bounding_set(keep).map_err(sys("bounding set"))?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(id("groups"))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if !uid.is_root() {
        own_streams(uid, |_| None);
    }
    setresgid(gid, gid, gid).map_err(id("group"))?;
    setresuid(uid, uid, uid).map_err(id("user"))?;
    let kept = if uid.is_root() { keep } else { CapabilitySet::EMPTY };
    let sets = ThreadSets { effective: kept, permitted: kept, inheritable: CapabilitySet::EMPTY };
    wherry_sys::capability::set_thread_sets(sets).map_err(sys("capabilities"))?;
    wherry_sys::capability::set_ambient(CapabilitySet::EMPTY).map_err(sys("ambient set"))?;
    nix::sys::prctl::set_no_new_privs().map_err(id("no_new_privs"))
}
