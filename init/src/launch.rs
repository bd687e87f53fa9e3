//! Forking: the service with its control socket, and whatever it asks for.
use crate::control::{CONTROL_FD_ENV, Descriptors, Endpoint, Launch, LaunchStep, Namespaces};
use crate::host::Host;
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use wherry_sys::process::{Child, Image, Spawn, SpawnStep, spawn};
use wherry_sys::{Result, SysError};

/// The running program itself, even if its file has been replaced meanwhile: versions cannot mix.
const SELF: &CStr = c"/proc/self/exe";

/// Starts the service; `endpoint` becomes its end of the control socket.
pub(crate) fn service(host: &Host, endpoint: &Endpoint) -> Result<Child> {
    const CONTROL_FD: u8 = 3;
    let config = &host.config;
    let words = [OsStr::new(&config.program), OsStr::new(&config.service_argument)];
    let extra = config.extra_arguments.iter().map(|word| word.as_os_str());
    let arguments = words.into_iter().chain(extra).map(c_string).collect::<Result<Vec<_>>>()?;
    let mut environment = host.environment.variables();
    environment.push(c_string(OsStr::new(&format!("{CONTROL_FD_ENV}={CONTROL_FD}")))?);
    spawn(&Spawn {
        image: Image::Program { path: SELF, arguments: &arguments, environment: &environment },
        descriptors: &[host.null.as_fd(), host.console.as_fd(), host.console.as_fd(), endpoint.as_fd()],
        namespaces: CloneFlags::empty(),
        cgroup: None,
        // As an ordinary process the supervisor may be killed, and a service without one is of no use.
        death_signal: Some(Signal::SIGKILL),
    })
}

/// Forks what the service asked for.
pub(crate) fn process<F: AsFd>(host: &Host, launch: &Launch, descriptors: &Descriptors<F>) -> Result<Child> {
    let words = [OsStr::new(&host.config.program), OsStr::new(&launch.argument)];
    let arguments = words.into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
    let [stdin, stdout, stderr] = &descriptors.stdio;
    let fixed = [stdin, stdout, stderr, &descriptors.plan, &descriptors.go, &descriptors.report];
    let table: Vec<BorrowedFd<'_>> = fixed.into_iter().chain(&descriptors.extra).map(AsFd::as_fd).collect();
    let image = match &host.config.copy {
        Some(copy) if copy.argument == launch.argument => Image::Copy(host.threads, copy.run),
        _ => Image::Program { path: SELF, arguments: &arguments, environment: &[] },
    };
    spawn(&Spawn {
        image,
        descriptors: &table,
        namespaces: flags(launch.namespaces),
        cgroup: descriptors.cgroup.as_ref().map(AsFd::as_fd),
        death_signal: None,
    })
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| SysError::Clone3(Errno::EINVAL))
}

fn flags(namespaces: Namespaces) -> CloneFlags {
    let table = [
        (Namespaces::MOUNT, CloneFlags::CLONE_NEWNS),
        (Namespaces::PID, CloneFlags::CLONE_NEWPID),
        (Namespaces::NET, CloneFlags::CLONE_NEWNET),
        (Namespaces::UTS, CloneFlags::CLONE_NEWUTS),
        (Namespaces::IPC, CloneFlags::CLONE_NEWIPC),
        (Namespaces::CGROUP, CloneFlags::CLONE_NEWCGROUP),
    ];
    let wanted = table.into_iter().filter(|(namespace, _)| namespaces.contains(*namespace));
    wanted.map(|(_, flag)| flag).collect()
}

/// What failed in a child, in the words of the control protocol.
pub(crate) fn step(step: SpawnStep) -> LaunchStep {
    match step {
        SpawnStep::Session | SpawnStep::Descriptors => LaunchStep::Child,
        SpawnStep::Exec => LaunchStep::Exec,
    }
}

/// Kills everything in the cgroup behind `directory` (cgroup-v2.rst, cgroup.kill; Linux 5.14).
pub(crate) fn kill_cgroup(directory: impl AsFd) -> Result<()> {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = openat(directory.as_fd(), "cgroup.kill", flags, nix::sys::stat::Mode::empty());
    let file = file.map_err(SysError::Open)?;
    nix::unistd::write(&file, b"1").map(drop).map_err(SysError::Write)
}

/// Whether a number is a signal that a process may be sent.
pub(crate) fn is_signal(number: i32) -> bool {
    (1..=libc::SIGRTMAX()).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_is_its_flag() {
        assert_eq!(flags(Namespaces::NONE), CloneFlags::empty());
        assert_eq!(
            flags(Namespaces::PID | Namespaces::NET),
            CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET
        );
        assert_eq!(flags(Namespaces::ALL).iter().count(), 6);
    }

    #[test]
    fn signals_have_bounds() {
        assert!(is_signal(1) && is_signal(64) && !is_signal(0) && !is_signal(-9) && !is_signal(65));
    }
}
