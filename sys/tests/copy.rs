//! Children that are copies of this process. It must have one thread, so it is no test harness.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use nix::sched::CloneFlags;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use wherry_sys::SysError;
use wherry_sys::child::{ThreadsCounted, count_threads};
use wherry_sys::fd::inherited;
use wherry_sys::process::{End, Image, Spawn, Start, spawn, started, wait};

fn main() {
    let threads = count_threads();
    a_copy_has_exactly_the_given_descriptors_and_returns_its_code(threads);
    a_copy_lives_in_its_namespaces(threads);
    a_panic_of_a_copy_is_its_own(threads);
    a_broken_pipe_is_an_error(threads);
    a_process_with_more_threads_is_not_copied();
}

/// Runs `copy` with the write end of a pipe as its descriptors 0 to 3; what it wrote, and its end.
fn run(threads: ThreadsCounted, copy: fn() -> u8, namespaces: CloneFlags) -> (String, End) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let descriptors = [write.as_fd(); 4];
    let child = spawn(&request(Image::Copy(threads, copy), &descriptors, namespaces)).unwrap();
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    let end = wait(child.pid).unwrap();
    assert_eq!(started(&child.start), Start::Running);
    (text, end)
}

fn request<'a>(image: Image<'a>, descriptors: &'a [BorrowedFd<'a>], namespaces: CloneFlags) -> Spawn<'a> {
    Spawn { image, descriptors, namespaces, cgroup: None, death_signal: None }
}

fn output() -> File {
    inherited(3).map(File::from).unwrap()
}

fn a_copy_has_exactly_the_given_descriptors_and_returns_its_code(threads: ThreadsCounted) {
    // Not close-on-exec, and not for the copy either.
    let _mine: OwnedFd = nix::unistd::dup(std::io::stdin()).unwrap();
    let copy = || {
        let mut numbers: Vec<String> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        numbers.sort();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let blocked = status.lines().find(|line| line.starts_with("SigBlk:")).unwrap();
        let session = nix::unistd::getsid(None).unwrap() == nix::unistd::getpid();
        write!(output(), "{} {session} {}", numbers.join(","), blocked.ends_with("\t0000000000000000"))
            .unwrap();
        7
    };
    // The fifth is the directory that is read.
    assert_eq!(run(threads, copy, CloneFlags::empty()), ("0,1,2,3,4 true true".into(), End::Code(7)));
}

fn a_copy_lives_in_its_namespaces(threads: ThreadsCounted) {
    let copy = || {
        write!(output(), "{}", std::process::id()).unwrap();
        0
    };
    assert_eq!(run(threads, copy, CloneFlags::CLONE_NEWPID), ("1".into(), End::Code(0)));
}

fn a_panic_of_a_copy_is_its_own(threads: ThreadsCounted) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {
        write!(output(), "the parent's hook").ok();
    }));
    let result = run(threads, || panic!("of a copy"), CloneFlags::empty());
    std::panic::set_hook(before);
    assert_eq!(result, (String::new(), End::Code(127)));
}

fn a_broken_pipe_is_an_error(threads: ThreadsCounted) {
    let copy = || {
        let (read, write) = nix::unistd::pipe().unwrap();
        drop(read);
        let error = File::from(write).write_all(b"x").unwrap_err();
        u8::from(error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    assert_eq!(run(threads, copy, CloneFlags::empty()), (String::new(), End::Code(1)));
}

fn a_process_with_more_threads_is_not_copied() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let image = Image::Copy(count_threads(), || 0);
    let refused = spawn(&request(image, &[], CloneFlags::empty()));
    assert_eq!(refused.unwrap_err(), SysError::Clone3(nix::errno::Errno::EBUSY));
    drop(done);
    assert!(thread.join().unwrap().is_err());
}
