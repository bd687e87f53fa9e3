//! Forking, waiting and signalling by pidfd.
//!
//! [`spawn`] is one clone3(2) followed by an exec, or by a function in a copy of a process that has one thread. Until then the
//! child may be a copy of one thread of a process with many: it allocates nothing, locks nothing and calls only the
//! kernel (signal-safety(7)).
use crate::child::{ThreadsCounted, exit};
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

/// What to start, and how.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    /// What the child becomes.
    pub image: Image<'a>,
    /// The child's whole descriptor table: the n-th becomes its descriptor n, everything else is closed.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// `CLONE_NEW*` flags.
    pub namespaces: CloneFlags,
    /// Directory of the cgroup v2 in which the child starts.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Signal that the child gets when the calling thread ends. It would get it at once if that has already happened.
    pub death_signal: Option<Signal>,
}

/// What a child runs.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// A program.
    Program {
        /// Its path, as the child sees it.
        path: &'a CStr,
        /// Arguments, the program's name first.
        arguments: &'a [CString],
        /// Environment, `NAME=value`.
        environment: &'a [CString],
    },
    /// This function, in a copy of the calling process, whose code it ends with. It takes no exec, which is a third of what
    /// a small program costs; but until it executes something itself, `/proc` shows it with the caller's arguments and
    /// environment, and its addresses are the caller's.
    Copy(ThreadsCounted, fn() -> u8),
}

/// A child that exists. Whether its program started is told by [`started`].
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: Pid,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// Read end, nonblocking, of a pipe that exec closes: readable when the child's program has started or failed to.
    pub start: OwnedFd,
}

/// What a child's [`Child::start`] pipe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing yet.
    Pending,
    /// The program runs (or the child was killed before; wait tells).
    Running,
    /// The program does not run; the child has ended with code 127.
    Failed(SpawnStep, Errno),
}

/// What failed in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnStep {
    /// setsid, prctl or sigprocmask.
    Session = 1,
    /// dup3 or close_range.
    Descriptors = 2,
    /// execve.
    Exec = 3,
}

/// Exit code of a child whose program could not be started, as shells use it.
const EXEC_FAILED: u8 = 127;
/// Signals are 1 to this number (signal(7)).
pub const LAST_SIGNAL: c_int = 64;
/// `sizeof(sigset_t)` of the kernel.
const SIGNAL_SET_BYTES: usize = 8;

/// linux/sched.h; the constant of the libc crate is too narrow for it.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Everything the child needs, prepared before there is a child.
struct Prepared<'a> {
    image: PreparedImage<'a>,
    sources: Vec<OwnedFd>,
    report: OwnedFd,
    death_signal: c_int,
}

enum PreparedImage<'a> {
    Program { path: &'a CStr, arguments: Vec<*const c_char>, environment: Vec<*const c_char> },
    Copy(fn() -> u8),
}

impl<'a> PreparedImage<'a> {
    fn new(image: &Image<'a>) -> Result<Self> {
        Ok(match *image {
            Image::Program { path, arguments, environment } => {
                Self::Program { path, arguments: pointers(arguments), environment: pointers(environment) }
            }
            Image::Copy(threads, run) => {
                threads.just_one().map_err(SysError::Clone3)?;
                Self::Copy(run)
            }
        })
    }
}

/// Starts a child: new session, signals as at boot, exactly the given descriptors.
///
/// # Errors
/// [`SysError::Clone3`], with `EBUSY` for a copy of a process with several threads; or what failed while preparing. Failures in the child are told by [`started`].
pub fn spawn(request: &Spawn<'_>) -> Result<Child> {
    let (start, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(SysError::Pipe2)?;
    crate::fd::set_nonblocking(&start, true)?;
    let lowest = c_int::try_from(request.descriptors.len()).unwrap_or(c_int::MAX);
    // Sources live above all targets, so that placing one never overwrites another.
    let sources = request.descriptors.iter().map(|fd| duplicate_above(*fd, lowest)).collect::<Result<_>>()?;
    let prepared = Prepared {
        image: PreparedImage::new(&request.image)?,
        sources,
        report: duplicate_above(report.as_fd(), lowest)?,
        death_signal: request.death_signal.map_or(0, |signal| signal as c_int),
    };
    drop(report);
    let mut old = SigSet::empty();
    // No handler of this process may run in the child, so nothing is delivered until the child has reset them.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))
        .map_err(SysError::SignalMask)?;
    let cloned = clone3(request, &prepared);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&old), None).map_err(SysError::SignalMask)?;
    cloned.map(|(pid, pidfd)| Child { pid, pidfd, start })
}

fn duplicate_above(fd: BorrowedFd<'_>, lowest: c_int) -> Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest)).map_err(SysError::Dup)?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

fn clone3(request: &Spawn<'_>, prepared: &Prepared<'_>) -> Result<(Pid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all zeroes is valid: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { zeroed() };
    let into_cgroup = request.cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    args.flags = request.namespaces.bits() as u64 | libc::CLONE_PIDFD as u64 | into_cgroup;
    args.pidfd = ptr::addr_of_mut!(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = request.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM the child gets a copy of the memory, like fork; `args` is fully initialised and its
    // pointers are valid for the call. The child goes on in `run_child`, which keeps to signal-safe calls.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::addr_of_mut!(args), size_of::<libc::clone_args>()) };
    match pid {
        0 => run_child(prepared),
        1.. => {
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Pid::from_raw(pid as libc::pid_t), pidfd))
        }
        _ => Err(SysError::Clone3(Errno::last())),
    }
}

fn run_child(prepared: &Prepared<'_>) -> ! {
    let become_it = || match &prepared.image {
        PreparedImage::Program { path, arguments, environment } => {
            become_fresh(prepared, libc::CLOSE_RANGE_CLOEXEC)?;
            // SAFETY: signal-safe; the arrays end in null and point to strings that live in this process's copy of the memory.
            unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            Err((SpawnStep::Exec, Errno::last()))
        }
        PreparedImage::Copy(run) => {
            // The report is closed too: it runs.
            become_fresh(prepared, 0)?;
            Ok(*run)
        }
    };
    let (step, errno) = match become_it() {
        Ok(run) => exit(call(run)),
        Err(failed) => failed,
    };
    let mut report = [step as u8, 0, 0, 0, 0];
    report[1..].copy_from_slice(&(errno as i32).to_le_bytes());
    // SAFETY: write is signal-safe; the buffer outlives the call.
    unsafe {
        libc::write(prepared.report.as_raw_fd(), report.as_ptr().cast(), report.len());
    }
    exit(EXEC_FAILED)
}

/// A panic must neither do what the process that this is a copy of does then, nor return into its frames.
fn call(run: fn() -> u8) -> u8 {
    std::panic::set_hook(Box::new(|_| {}));
    // As Rust's runtime has it, and as whatever runs here expects.
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE, and no handler is replaced.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    std::panic::catch_unwind(run).unwrap_or(EXEC_FAILED)
}

/// Leaves everything of the parent behind. `close` is how descriptors above the given ones are closed.
fn become_fresh(prepared: &Prepared<'_>, close: libc::c_uint) -> Result<(), (SpawnStep, Errno)> {
    let session = |result| Errno::result(result).map(drop).map_err(|errno| (SpawnStep::Session, errno));
    let descriptors =
        |result| Errno::result(result).map(drop).map_err(|errno| (SpawnStep::Descriptors, errno));
    // The kernel's struct sigaction, longer than on any architecture: all zeroes is SIG_DFL without flags and mask.
    let default = [0_u64; 8];
    // SAFETY: signal-safe system calls on plain data. With `close` 0, descriptors of objects that exist in this process's
    // copy of the memory are closed; none of these is used any more, the caller never returns.
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            // The raw call, because the C library keeps 32 and 33 for itself. KILL and STOP refuse, which is right.
            let old = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, SIGNAL_SET_BYTES);
        }
        session(libc::setsid())?;
        if prepared.death_signal != 0 {
            session(libc::prctl(libc::PR_SET_PDEATHSIG, prepared.death_signal as libc::c_ulong, 0, 0, 0))?;
        }
        let mut number: RawFd = 0;
        for source in &prepared.sources {
            descriptors(libc::dup3(source.as_raw_fd(), number, 0))?;
            number += 1;
        }
        descriptors(libc::syscall(libc::SYS_close_range, number, libc::c_uint::MAX, close) as c_int)?;
        let mut none: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut none);
        session(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))
    }
}

/// Reads a [`Child::start`] pipe without waiting (if it is still nonblocking).
#[must_use]
pub fn started(start: impl AsFd) -> Start {
    let mut report = [0; 5];
    match nix::unistd::read(start, &mut report) {
        Ok(0) => Start::Running,
        Ok(_) => {
            let [step, errno @ ..] = report;
            let step = match step {
                1 => SpawnStep::Session,
                2 => SpawnStep::Descriptors,
                _ => SpawnStep::Exec,
            };
            Start::Failed(step, Errno::from_raw(i32::from_le_bytes(errno)))
        }
        Err(_) => Start::Pending,
    }
}

/// A child that ended and is now gone from the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its former process id.
    pub pid: Pid,
    /// How it ended.
    pub end: End,
}

/// How a process ended. Signals are numbers because realtime ones have no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It returned this exit code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Takes one ended child, any, if there is one.
///
/// # Errors
/// [`SysError::Waitid`]; having no children at all is not an error.
pub fn reap() -> Result<Option<Reaped>> {
    wait_for(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG)
}

/// Whether there is any child, running or not yet reaped.
#[must_use]
pub fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a null siginfo_t is allowed: nothing is stored.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, ptr::null_mut(), options) };
    Errno::result(result) != Err(Errno::ECHILD)
}

/// Makes this process the parent of its descendants' orphans, as PID 1 is of everybody's.
///
/// # Errors
/// [`SysError::Prctl`].
pub fn become_subreaper() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(SysError::Prctl)
}

/// Waits for one child to end.
///
/// # Errors
/// [`SysError::Waitid`].
pub fn wait(pid: Pid) -> Result<End> {
    let id = libc::id_t::try_from(pid.as_raw()).map_err(|_| SysError::Waitid(Errno::EINVAL))?;
    wait_for(libc::P_PID, id, libc::WEXITED)?.map(|reaped| reaped.end).ok_or(SysError::Waitid(Errno::ECHILD))
}

fn wait_for(kind: libc::idtype_t, id: libc::id_t, options: c_int) -> Result<Option<Reaped>> {
    // SAFETY: siginfo_t is plain data; waitid fills it, or leaves si_pid 0 when no child has ended.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    loop {
        // SAFETY: `info` is valid for writing.
        match Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, options) }) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(None),
            Err(errno) => return Err(SysError::Waitid(errno)),
        }
    }
    // SAFETY: waitid filled the SIGCHLD members (or they are still zero).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let end = if info.si_code == libc::CLD_EXITED { End::Code(status) } else { End::Signal(status) };
    Ok((pid != 0).then(|| Reaped { pid: Pid::from_raw(pid), end }))
}

/// A descriptor for an existing process, close-on-exec.
///
/// # Errors
/// [`SysError::PidfdOpen`].
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: no pointers involved.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let number = Errno::result(number).map_err(SysError::PidfdOpen)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// Sends signal `number`, or checks for existence with 0. It can never hit another process that took over the pid.
///
/// # Errors
/// [`SysError::PidfdSendSignal`]; `ESRCH` when the process has ended.
pub fn pidfd_send_signal(pidfd: impl AsFd, number: i32) -> Result<()> {
    let raw = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo asks the kernel to make one as kill(2) does.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, raw, number, ptr::null::<libc::siginfo_t>(), 0) };
    Errno::result(result).map(drop).map_err(SysError::PidfdSendSignal)
}

/// Which `CLONE_NEW*` flag makes namespaces of the kind that this nsfs descriptor stands for (ioctl_ns(2)).
///
/// # Errors
/// [`SysError::Ioctl`]; `ENOTTY` when it is no namespace.
pub fn namespace_kind(namespace: impl AsFd) -> Result<CloneFlags> {
    /// linux/nsfs.h: `_IO(0xb7, 3)`.
    const NS_GET_NSTYPE: c_int = 0xb703;
    // SAFETY: the request takes no argument and returns a number.
    let kind = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_NSTYPE as _) };
    Errno::result(kind).map(CloneFlags::from_bits_retain).map_err(SysError::Ioctl)
}

/// Joins the calling thread to namespaces of the process behind `pidfd`, or to the one namespace behind an nsfs descriptor.
///
/// # Errors
/// [`SysError::Setns`].
pub fn setns(target: impl AsFd, namespaces: CloneFlags) -> Result<()> {
    nix::sched::setns(target, namespaces).map_err(SysError::Setns)
}
