//! Real children: what they see, and what the parent learns of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wherry_sys::SysError;
use wherry_sys::process::{
    Child, End, Image, Spawn, SpawnStep, Start, pidfd_open, pidfd_send_signal, spawn, started, wait,
};

fn strings(words: &[&str]) -> Vec<CString> {
    words.iter().map(|word| CString::new(*word).unwrap()).collect()
}

fn request<'a>(program: &'a CStr, arguments: &'a [CString], descriptors: &'a [BorrowedFd<'a>]) -> Spawn<'a> {
    let namespaces = CloneFlags::empty();
    let image = Image::Program { path: program, arguments, environment: &[] };
    Spawn { image, descriptors, namespaces, cgroup: None, death_signal: None }
}

/// Runs a shell script with stdin, stdout and stderr on one pipe's write end; returns its output and end.
fn shell(script: &str, namespaces: CloneFlags) -> (String, End) {
    let (mut output, write) = pipe();
    let fds = [write.as_fd(), write.as_fd(), write.as_fd()];
    let arguments = strings(&["sh", "-c", script]);
    let child = spawn(&Spawn { namespaces, ..request(c"/bin/sh", &arguments, &fds) }).unwrap();
    drop(write);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    (text, wait(child.pid).unwrap())
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

fn outcome(child: &Child) -> Start {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match started(&child.start) {
            Start::Pending if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
}

#[test]
fn the_child_has_exactly_the_given_descriptors() {
    let (output, end) = shell("ls /proc/self/fd | tr '\\n' ' '; exit 3", CloneFlags::empty());
    // The fourth is the directory that ls itself reads.
    assert_eq!((output.as_str(), end), ("0 1 2 3 ", End::Code(3)));
}

#[test]
fn descriptors_are_placed_even_when_numbers_overlap() {
    let (mut first, first_write) = pipe();
    let (mut second, second_write) = pipe();
    // 0, 1 and 2 of this process are used as sources for other numbers.
    let fds = [std::io::stdin(), std::io::stdin()].map(|stdin| stdin.as_fd().try_clone_to_owned().unwrap());
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let order = [fds[0].as_fd(), stderr.as_fd(), stdout.as_fd(), second_write.as_fd(), first_write.as_fd()];
    let arguments = strings(&["sh", "-c", "echo three >&3; echo four >&4"]);
    let child = spawn(&request(c"/bin/sh", &arguments, &order)).unwrap();
    drop((first_write, second_write));
    let (mut four, mut three) = (String::new(), String::new());
    first.read_to_string(&mut four).unwrap();
    second.read_to_string(&mut three).unwrap();
    assert_eq!((three.as_str(), four.as_str()), ("three\n", "four\n"));
    assert_eq!(wait(child.pid), Ok(End::Code(0)));
}

#[test]
fn signals_session_and_environment_are_fresh() {
    // Rust's runtime ignores SIGPIPE in this process; the child must not inherit that.
    let (output, _) = shell(
        "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ps -o sid= -p $$; echo $$; env",
        CloneFlags::empty(),
    );
    let zero = "0000000000000000";
    assert!(
        output.contains(&format!("SigIgn:\t{zero}")) && output.contains(&format!("SigBlk:\t{zero}")),
        "{output}"
    );
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    assert_eq!(lines[3], lines[4], "leader of its own session: {output}");
    assert!(
        lines[5..].iter().all(|line| line.starts_with("PWD=")
            || line.starts_with("OLDPWD=")
            || line.starts_with("_=")
            || line.starts_with("SHLVL=")),
        "{output}"
    );
}

#[test]
fn namespaces_are_new() {
    let flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET;
    let (output, end) = shell(
        "echo $$; hostname inside; hostname; ls /sys/class/net >/dev/null; grep -c : /proc/net/dev",
        flags,
    );
    assert_eq!((output.as_str(), end), ("1\ninside\n1\n", End::Code(0)), "pid 1, own host name, only lo");
    assert_ne!(nix::unistd::gethostname().unwrap(), "inside");
}

#[test]
fn exec_failure_is_reported_with_its_errno() {
    let arguments = strings(&["nothing"]);
    let child = spawn(&request(c"/nowhere/nothing", &arguments, &[])).unwrap();
    assert_eq!(outcome(&child), Start::Failed(SpawnStep::Exec, Errno::ENOENT));
    assert_eq!(wait(child.pid), Ok(End::Code(127)));
    let child = spawn(&request(c"/dev/null", &arguments, &[])).unwrap();
    assert_eq!(outcome(&child), Start::Failed(SpawnStep::Exec, Errno::EACCES));
    assert_eq!(wait(child.pid), Ok(End::Code(127)));
}

#[test]
fn clone_failure_is_reported_by_the_parent() {
    let arguments = strings(&["true"]);
    let regular: OwnedFd = tempfile::tempfile().unwrap().into();
    let error = spawn(&Spawn { cgroup: Some(regular.as_fd()), ..request(c"/bin/true", &arguments, &[]) })
        .unwrap_err();
    assert!(matches!(error, SysError::Clone3(_)), "{error}");
}

#[test]
fn a_success_closes_the_start_pipe_and_signals_reach_the_child() {
    let (_stdin_read, _stdin_write) = pipe();
    let arguments = strings(&["sleep", "100"]);
    let child = spawn(&request(c"/bin/sleep", &arguments, &[])).unwrap();
    assert_eq!(outcome(&child), Start::Running);
    pidfd_send_signal(&child.pidfd, 0).unwrap();
    let opened = pidfd_open(child.pid).unwrap();
    pidfd_send_signal(&opened, 40).unwrap();
    assert_eq!(wait(child.pid), Ok(End::Signal(40)), "a realtime signal has no name and must not confuse us");
    assert_eq!(pidfd_send_signal(&opened, 9), Err(SysError::PidfdSendSignal(Errno::ESRCH)));
    assert_eq!(pidfd_open(child.pid).unwrap_err(), SysError::PidfdOpen(Errno::ESRCH));
}

#[test]
fn the_death_signal_follows_the_calling_thread() {
    let arguments = strings(&["sleep", "100"]);
    let thread = std::thread::spawn(move || {
        let child =
            spawn(&Spawn { death_signal: Some(Signal::SIGTERM), ..request(c"/bin/sleep", &arguments, &[]) });
        let child = child.unwrap();
        assert_eq!(outcome(&child), Start::Running);
        child.pid
    });
    assert_eq!(wait(thread.join().unwrap()), Ok(End::Signal(15)));
}

#[test]
fn setns_joins_the_namespaces_of_a_process() {
    let arguments = strings(&["sleep", "100"]);
    let namespaces = CloneFlags::CLONE_NEWUTS;
    let child = spawn(&Spawn { namespaces, ..request(c"/bin/sleep", &arguments, &[]) }).unwrap();
    // A thread of its own: namespaces belong to threads.
    let theirs = std::fs::read_link(format!("/proc/{}/ns/uts", child.pid)).unwrap();
    let pidfd = child.pidfd.try_clone().unwrap();
    let mine = std::thread::spawn(move || {
        wherry_sys::process::setns(&pidfd, CloneFlags::CLONE_NEWUTS).unwrap();
        std::fs::read_link("/proc/thread-self/ns/uts").unwrap()
    });
    assert_eq!(mine.join().unwrap(), theirs);
    assert_ne!(std::fs::read_link("/proc/self/ns/uts").unwrap(), theirs);
    pidfd_send_signal(&child.pidfd, 9).unwrap();
    assert_eq!(wait(child.pid), Ok(End::Signal(9)));
}
