//! Fresh network namespaces for tests. Where they cannot be had, tests fail: they are never skipped.
#![allow(dead_code, reason = "every test file uses its own part of this")]
use nix::sched::{CloneFlags, unshare};
use std::process::{Command, Output};

/// Runs `body` on a thread of its own in a fresh network namespace, with `lo` up.
pub(crate) fn isolated<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a fresh network namespace: run these tests as root");
        run("ip link set lo up");
        body()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What `command` (words separated by blanks) prints; it must succeed.
pub(crate) fn run(command: &str) -> String {
    let output = attempt(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "`{command}` failed: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs `command` and says how it went.
pub(crate) fn attempt(command: &str) -> Output {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    Command::new(program).args(words).output().unwrap_or_else(|error| panic!("`{command}`: {error}"))
}
