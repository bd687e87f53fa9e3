//! The broker's one binary: PID 1 and the service.
use std::process::ExitCode;
use wherry_broker::board;
use wherry_init::SupervisorConfig;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let supervisor = SupervisorConfig::new("wherry-broker", "serve");
    match arguments.next().unwrap_or_default().to_str() {
        Some("init") => match supervisor.with_arguments(arguments) {
            Ok(config) => wherry_init::run(config),
            Err(error) => fail(&error),
        },
        Some("serve") => board::serve(arguments).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
        // A machine's kernel starts PID 1 with whatever words it did not understand itself.
        _ if std::process::id() == 1 => wherry_init::run(supervisor),
        _ => fail(&"expected init or serve"),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("wherry-broker: {error}");
    ExitCode::FAILURE
}
