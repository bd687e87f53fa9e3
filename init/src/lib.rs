//! PID 1 of a board: a supervisor and nothing else. It starts the service, restarts it with growing backoff, forks the
//! containers on the service's request and keeps their descriptors, reaps, feeds the watchdog and shuts down in order.
//!
//! | module | purpose |
//! |---|---|
//! | [`control`] | what supervisor and service say to each other |
//! | [`machine`] | every decision, pure |
//! | `reactor` | the poll loop that performs them |
//! | [`boot`] | mounts and the rest that only a machine's PID 1 does |
//! | [`mode`] | where this runs: board, virtual machine or ordinary process |
//! | [`environment`] | what the service is told about that |
//!
//! It is one thread that waits in poll and nowhere else, and nothing in it may panic; if it does, the machine syncs and
//! reboots.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::expect_used)
)]

pub mod boot;
mod command_line;
mod config;
pub mod control;
pub mod environment;
mod finish;
mod host;
mod launch;
mod link;
pub mod log;
pub mod machine;
pub mod mode;
mod reactor;

pub use command_line::CommandLine;
pub use config::{SupervisorConfig, UsageError};

use log::Log;
use mode::Abilities;

/// Supervises until the machine, or this process, ends.
pub fn run(config: SupervisorConfig) -> ! {
    let kernel_log = config.process_root.is_none();
    reboot_on_panic(kernel_log);
    // First, so that no child's end is missed.
    let ready = reactor::block_signals().map_err(host::HostError::from).and_then(|signals| {
        wherry_sys::process::become_subreaper()?;
        Ok((host::Host::prepare(config)?, signals))
    });
    match ready {
        Ok((host, signals)) => reactor::Reactor::new(host, signals).run(),
        Err(error) => {
            Log::new(kernel_log && std::process::id() == 1).error(&error);
            give_up()
        }
    }
}

/// Nothing is running yet. On a machine the kernel panics, and `panic=` on its command line reboots it.
#[expect(clippy::exit, reason = "the caller's main has nothing left to do")]
fn give_up() -> ! {
    std::process::exit(1)
}

/// A panic of PID 1 says so in the kernel's log, writes what can be written, and reboots: a board without a supervisor
/// would go on for a while and then never recover.
fn reboot_on_panic(kernel_log: bool) {
    std::panic::set_hook(Box::new(move |panic| {
        let pid_one = std::process::id() == 1;
        Log::new(kernel_log && pid_one).error(format_args!("supervisor {panic}"));
        finish::emergency(if pid_one { Abilities::POWER } else { Abilities::NONE })
    }));
}
