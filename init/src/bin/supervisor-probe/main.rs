//! Supervisor, service and container in one program, as the real ones are, for the tests of this crate. The service plays
//! the scenario that its first argument names and writes what it sees to `run/events`.
#![expect(
    clippy::unwrap_used,
    reason = "a test helper fails by panicking, which its supervisor and the test see"
)]

mod service;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use wherry_init::SupervisorConfig;
use wherry_init::machine::Timing;
use wherry_sys::fd;

/// Short enough for tests, and far enough apart to be told from each other on a busy machine.
pub(crate) const TIMING: Timing = Timing {
    backoff_first_ms: 200,
    backoff_most_ms: 5_000,
    healthy_ms: 60_000,
    first_heartbeat_ms: 30_000,
    heartbeat_ms: 30_000,
    watchdog_feed_ms: 1_000,
    watchdog_patience_ms: 60_000,
    containers_stop_ms: 3_000,
    service_stop_ms: 1_000,
    kill_ms: 1_000,
};

/// The argument of what runs in a copy of the supervisor.
pub(crate) const COPIED: &str = "copied";

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|word| word.to_str()) {
        Some("serve") => service::play(arguments.next().as_ref().and_then(|word| word.to_str())),
        Some("container") => {
            container();
        }
        Some("init") => supervise(arguments.collect()),
        // The kernel starts /init with whatever it did not understand itself.
        _ => supervise(Vec::new()),
    }
}

fn supervise(arguments: Vec<OsString>) {
    let config = SupervisorConfig::new("supervisor-probe", "serve").with_copy(COPIED, container);
    let mut config = config.with_arguments(arguments).unwrap();
    let silent = config.extra_arguments.first().is_some_and(|scenario| scenario == "silent");
    let first_heartbeat_ms = if silent { 300 } else { TIMING.first_heartbeat_ms };
    config.timing = Timing { first_heartbeat_ms, ..TIMING };
    config.panic_on_signal = true;
    wherry_init::run(config)
}

/// The plan is a shell script; it runs after `go` has been closed, and the report says that it is about to.
fn container() -> u8 {
    const PLAN: i32 = 3;
    const GO: i32 = 4;
    const REPORT: i32 = 5;
    let script = fd::read_sealed(fd::inherited(PLAN).unwrap(), 4096).unwrap();
    let mut go = File::from(fd::inherited(GO).unwrap());
    let mut report = File::from(fd::inherited(REPORT).unwrap());
    go.read_to_end(&mut Vec::new()).unwrap();
    report.write_all(b"ready").unwrap();
    let error = Command::new("/bin/sh").arg("-c").arg(String::from_utf8(script).unwrap()).exec();
    unreachable!("{error}")
}
