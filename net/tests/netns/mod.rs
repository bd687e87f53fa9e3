//! Fresh network namespaces for tests. Where they cannot be had, tests fail: they are never skipped.
#![allow(dead_code, reason = "every test file uses its own part of this")]
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output};
use std::time::Duration;

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

/// Waits until the kernel lets packets through a device that was just switched on.
pub(crate) fn wait_for_carrier(device: &str) {
    for _ in 0..500 {
        if run(&format!("ip -o link show {device}")).contains("state UP") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{device} does not come up: {}", run("ip link"));
}

/// A network namespace that lives as long as this value or something in it.
#[derive(Debug)]
pub(crate) struct Space(OwnedFd);

impl Space {
    /// A fresh namespace.
    pub(crate) fn new() -> Self {
        isolated(|| Self(File::open("/proc/thread-self/ns/net").expect("the namespace's file").into()))
    }

    /// Another descriptor of the same namespace.
    pub(crate) fn fd(&self) -> OwnedFd {
        self.0.try_clone().expect("a descriptor")
    }

    /// A path that leads to it as long as it lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in it. Sockets made there stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command in it that must succeed.
    pub(crate) fn run(&self, command: &str) -> String {
        self.enter(|| run(command))
    }
}

/// Where the board hangs: a router with the address .1, and behind it a host of the internet.
pub(crate) const ROUTER: &str = "192.168.50.1";
pub(crate) const BOARD: &str = "192.168.50.12";
pub(crate) const INTERNET: &str = "203.0.113.10";

/// Gives the calling thread's namespace an `eth0` on a network with a router; returns the router's namespace.
pub(crate) fn board_with_router() -> Space {
    let router = Space::new();
    run("ip link add eth0 type veth peer name lan");
    run(&format!("ip link set lan netns {}", router.path()));
    run(&format!("ip addr add {BOARD}/24 dev eth0"));
    run("ip link set eth0 up");
    run(&format!("ip route add default via {ROUTER}"));
    router.run(&format!("ip addr add {ROUTER}/24 dev lan"));
    router.run(&format!("ip addr add {INTERNET}/32 dev lo"));
    router.run("ip link set lan up");
    wait_for_carrier("eth0");
    router.enter(|| wait_for_carrier("lan"));
    router
}
