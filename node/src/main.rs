//! The node's one binary: PID 1, the service, and the children between clone and exec.
use std::process::ExitCode;
use wherry_init::SupervisorConfig;
use wherry_node::container::{child, exec};
use wherry_node::serve;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    // The kernel starts PID 1 with whatever words it did not understand itself.
    if std::process::id() == 1 && !is_child(&command) {
        wherry_init::run(SupervisorConfig::new("wherry-node", "serve"));
    }
    match command.to_str() {
        Some("init") => match SupervisorConfig::new("wherry-node", "serve").with_arguments(arguments) {
            Ok(config) => wherry_init::run(config),
            Err(error) => fail(&error),
        },
        Some("serve") => serve::run().map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
        Some("container") => child::run(),
        Some(exec::ARGUMENT) => exec::run(),
        _ => fail(&"expected init, serve, container or container-exec"),
    }
}

/// A container's first process is process 1 too, of its own namespace.
fn is_child(command: &std::ffi::OsStr) -> bool {
    command == "container" || command == exec::ARGUMENT
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("wherry-node: {error}");
    ExitCode::FAILURE
}
