//! The broker's one binary: `serve` is the service.
use std::ffi::OsString;
use std::process::ExitCode;
use wherry_broker::board;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let command = words.next().unwrap_or_default();
    match run(&command.to_string_lossy(), words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wherry-broker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, words: impl Iterator<Item = OsString>) -> Result<(), board::BoardError> {
    match command {
        "serve" => board::serve(words),
        other => Err(board::BoardError::Usage(format!("'{other}' is no command"))),
    }
}
