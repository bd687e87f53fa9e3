//! The command line of an OCI runtime (runtime-spec 1.0 to 1.2; opencontainers/runtime-tools,
//! docs/command-line-interface.md), for hosts on which other programs drive containers.
//!
//! ```text
//! cli       words to a command
//! bundle    config.json, read and checked by the MUSTs of the specification
//! plan      config.json → what to do, step by step                                    pure
//! store     the state directory: one locked, versioned record per container
//! launch    create: namespaces, identity maps, cgroup, and the child's conversation with its parent
//! child     performs the plan, waits for `start`, becomes the program
//! cgroup    the container's cgroup
//! destroy   undoing what create did
//! hooks     programs at the points of a container's life
//! commands  what each command does
//! log       where errors and warnings go
//! ```
//!
//! Processes: `create` forks the container's first process into its namespaces and ends. That process listens on a socket
//! in the state directory; `start` connects, and learns over the connection whether the program could be executed.
mod bundle;
mod cgroup;
mod check;
mod child;
mod cli;
mod commands;
mod destroy;
mod error;
mod features;
mod hooks;
mod launch;
mod log;
mod plan;
mod run;
mod store;

pub use error::OciError;

use std::ffi::OsString;
use std::process::ExitCode;

/// The argument that selects this command line.
pub const ARGUMENT: &str = "oci";
/// The newest version of the specification whose properties are known here.
pub const SPEC_VERSION: &str = "1.2.0";

/// Runs one command: `arguments` are the words after [`ARGUMENT`]. Call it first thing in `main`: there must be no other thread.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("wherry-node oci: {error}");
            return ExitCode::FAILURE;
        }
    };
    let log = match log::Log::open(&invocation.global) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("wherry-node oci: {error}");
            return ExitCode::FAILURE;
        }
    };
    match commands::perform(invocation, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
