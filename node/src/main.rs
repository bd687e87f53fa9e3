//! The node's one binary: PID 1, the service, and the children between clone and exec.
use std::process::ExitCode;
use wherry_init::SupervisorConfig;
use wherry_node::container::{child, exec};
use wherry_node::serve;

fn main() -> ExitCode {
    let supervisor = SupervisorConfig::new("wherry-node", "serve").with_copy(child::ARGUMENT, child::run);
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().unwrap_or_default().to_str() {
        // These two before anything else: they need a process with one thread, and the first is process 1 of its own
        // namespace.
        Some(child::ARGUMENT | child::ARGUMENT_INIT) => ExitCode::from(child::run()),
        Some(exec::ARGUMENT) => ExitCode::from(exec::run()),
        #[cfg(feature = "oci")]
        Some(wherry_node::oci::ARGUMENT) => wherry_node::oci::main(arguments),
        Some("init") => match supervisor.with_arguments(arguments) {
            Ok(config) => wherry_init::run(config),
            Err(error) => fail(&error),
        },
        Some("serve") => serve::run().map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
        // A machine's kernel starts PID 1 with whatever words it did not understand itself.
        _ if std::process::id() == 1 => wherry_init::run(supervisor),
        _ => fail(&"expected init, serve, container or container-exec"),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("wherry-node: {error}");
    ExitCode::FAILURE
}
