//! The node's one binary: PID 1, the service and the child between clone and exec.
use std::process::ExitCode;
use wherry_node::container::{child, exec};

/// What sysexits.h calls a command that was used wrongly.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        // These two before anything else: they need a process with one thread.
        Some(child::ARGUMENT) => child::run(),
        Some(exec::ARGUMENT) => exec::run(),
        Some(_) | None => {
            eprintln!("wherry-node is started by the board itself");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
