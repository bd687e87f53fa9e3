//! The last steps: terminal, directory, identity, rights, filter, exec.
use super::super::error::OciError;
use super::super::launch::Given;
use super::super::plan::process::{Process, Sets};
use super::failed;
use super::root::open_path;
use crate::container::child::become_program::{c_string, own_streams, read_small, search_program};
use crate::container::child::mounts::{PATH_DIRECTORY, at, make_directory, make_file, sys};
use crate::container::report::{Failure, Step};
use crate::container::user;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{CWD, Mode};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use wherry_sys::capability::{self, CapabilitySet, ThreadSets};
use wherry_sys::fdpass::send;
use wherry_sys::mount::{attach, detached_copy};
use wherry_sys::seccomp::Instruction;
use wherry_sys::terminal::{open_pty_of, set_controlling};

/// What exec gets.
pub(super) struct Prepared {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// Makes a terminal in the container's devpts, sends its other end to whoever shows it, and puts it in the place of the
/// standard streams.
pub(super) fn open_terminal(process: &Process, console: &OwnedFd) -> Result<(), OciError> {
    let Some(size) = process.terminal else { return Ok(()) };
    let fail = || OciError::sys("opening a terminal in the container's /dev/pts");
    let multiplexer = open_path("/dev/pts/ptmx").map_err(at(Step::Terminal, "/dev/pts/ptmx"))?;
    let pty = open_pty_of(&multiplexer, size).map_err(fail())?;
    let name = rustix::pty::ptsname(&pty.controller, Vec::new()).map_err(at(Step::Terminal, ""))?;
    send(console.as_fd(), name.as_bytes(), &[pty.controller.as_fd()])
        .map_err(OciError::sys("sending the terminal to --console-socket"))?;
    let path = name.to_str().unwrap_or_default();
    let root = rustix::fs::open("/", PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Terminal, "/"))?;
    let target = make_file(&root, "/dev/console").map_err(at(Step::Terminal, "/dev/console"))?;
    let copy = detached_copy(CWD, Path::new(path)).map_err(sys(Step::Terminal, path))?;
    attach(copy, target).map_err(sys(Step::Terminal, "/dev/console"))?;
    let place = failed("placing the terminal");
    nix::unistd::dup2_stdin(&pty.terminal).map_err(&place)?;
    nix::unistd::dup2_stdout(&pty.terminal).map_err(&place)?;
    nix::unistd::dup2_stderr(&pty.terminal).map_err(&place)?;
    set_controlling(std::io::stdin()).map_err(fail())
}

/// Whether some of what is asked for cannot be had.
pub(super) fn lacks_ambient(process: &Process) -> bool {
    process.capabilities.possible_ambient() != process.capabilities.ambient
}

/// Everything that can fail before anybody has said `start`.
pub(super) fn prepare(process: &Process, given: &Given<'_>) -> Result<Prepared, OciError> {
    let root = rustix::fs::open("/", PATH_DIRECTORY, Mode::empty()).map_err(at(Step::Workdir, "/"))?;
    let directory = make_directory(&root, &process.cwd).map_err(at(Step::Workdir, &process.cwd))?;
    rustix::process::fchdir(directory).map_err(at(Step::Workdir, &process.cwd))?;
    let path = process.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
    let name = process.argv.first().map_or("", String::as_str);
    let program = search_program(name, path)?;
    Ok(Prepared {
        program: c_string(&program)?,
        arguments: process.argv.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?,
        environment: environment(process, given.listening, &root)?,
    })
}

/// HOME is what the image's /etc/passwd says, unless it is set (as in runc and crun); sockets are announced as
/// sd_listen_fds(3) wants it.
fn environment(process: &Process, listening: u32, root: &OwnedFd) -> Result<Vec<CString>, Failure> {
    let mut variables = process.env.clone();
    if !variables.iter().any(|variable| variable.starts_with("HOME=")) {
        // A broken file is no reason not to start: nobody has asked for it.
        let passwd = read_small(root, "/etc/passwd").unwrap_or_default();
        let home = user::resolve(&process.uid.to_string(), &passwd, "").map(|identity| identity.home);
        variables.push(format!("HOME={}", home.unwrap_or_else(|_| "/".into())));
    }
    if listening > 0 {
        variables
            .retain(|variable| !variable.starts_with("LISTEN_FDS=") && !variable.starts_with("LISTEN_PID="));
        variables
            .extend([format!("LISTEN_FDS={listening}"), format!("LISTEN_PID={}", nix::unistd::getpid())]);
    }
    variables.iter().map(|variable| c_string(variable)).collect()
}

impl Prepared {
    /// Becomes the program.
    pub(super) fn execute(self, process: &Process, preserved: &[OwnedFd]) -> Result<Infallible, OciError> {
        wherry_sys::child::restore_broken_pipe_signal();
        let mask = nix::sys::signal::SigSet::empty().thread_set_mask();
        mask.map_err(failed("resetting signals"))?;
        // Without no_new_privs only a privileged process may install a filter, so it comes before rights are given up.
        if !process.no_new_privileges {
            install(process)?;
        }
        drop_privileges(process)?;
        if process.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().map_err(failed("setting noNewPrivileges"))?;
            install(process)?;
        }
        rustix::process::umask(Mode::from_raw_mode(process.umask));
        for descriptor in preserved {
            wherry_sys::fd::set_cloexec(descriptor, false)
                .map_err(OciError::sys("keeping descriptors open"))?;
        }
        let shown = process.argv.first().map_or("", String::as_str);
        let Err(errno) = nix::unistd::execve(&self.program, &self.arguments, &self.environment);
        Err(Failure::new(Step::Exec, shown, errno).into())
    }
}

fn install(process: &Process) -> Result<(), OciError> {
    let Some(filter) = &process.filter else { return Ok(()) };
    let convert = |one: &crate::container::seccomp::Instruction| Instruction {
        code: one.code,
        jt: one.jt,
        jf: one.jf,
        k: one.k,
    };
    let instructions: Vec<Instruction> = filter.instructions.iter().map(convert).collect();
    wherry_sys::seccomp::install(&instructions, filter.flags)
        .map_err(OciError::sys("installing the system call filter"))
}

/// Bounding set while there is the right to change it, then groups, group and user, then the rest.
fn drop_privileges(process: &Process) -> Result<(), OciError> {
    let Sets { bounding, effective, inheritable, permitted, .. } = process.capabilities;
    let fail = OciError::sys("setting process.capabilities");
    capability::limit_bounding_set(bounding).map_err(&fail)?;
    let user = failed("becoming process.user");
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(&user)?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    if !uid.is_root() {
        own_streams(uid, |_| None);
    }
    setresgid(gid, gid, gid).map_err(&user)?;
    // An ordinary user may be given capabilities too.
    capability::set_keep_capabilities(true).map_err(&fail)?;
    setresuid(uid, uid, uid).map_err(&user)?;
    capability::set_keep_capabilities(false).map_err(&fail)?;
    capability::set_thread_sets(ThreadSets { effective, permitted, inheritable }).map_err(&fail)?;
    let ambient: CapabilitySet = process.capabilities.possible_ambient();
    capability::set_ambient(ambient).map_err(&fail)
}
