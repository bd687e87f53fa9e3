//! Running programs: what they print goes to the person, to a string or to a log file.
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::error::TaskError;

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// Runs `command` with the person watching.
pub(crate) fn watched(command: &mut Command) -> Result<(), TaskError> {
    let status = command.status().map_err(|source| not_started(command, source))?;
    if status.success() { Ok(()) } else { Err(failed(command, status, String::new())) }
}

/// What `command` prints.
pub(crate) fn output(command: &mut Command) -> Result<String, TaskError> {
    Ok(String::from_utf8_lossy(&bytes(command)?).into_owned())
}

/// The bytes that `command` prints.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>, TaskError> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| not_started(command, source))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = format!(": {}", tail(&String::from_utf8_lossy(&output.stderr)));
    Err(failed(command, output.status, message))
}

/// Runs `command` with its output in the file `log`, calling `each` for every line.
pub(crate) fn logged(command: &mut Command, log: &Path, mut each: impl FnMut(&str)) -> Result<(), TaskError> {
    let mut file = File::create(log).map_err(TaskError::io("create", log))?;
    let errors = file.try_clone().map_err(TaskError::io("write", log))?;
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
    let mut child = started.map_err(|source| not_started(command, source))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            file.write_all(&[line.as_slice(), b"\n"].concat()).map_err(TaskError::io("write", log))?;
            each(&String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait().map_err(|source| not_started(command, source))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(log).unwrap_or_default();
    let message = format!("; the end of {}:\n{}", log.display(), tail(&String::from_utf8_lossy(&text)));
    Err(failed(command, status, message))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn not_started(command: &Command, source: std::io::Error) -> TaskError {
    TaskError::NotStarted { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn failed(command: &Command, status: ExitStatus, message: String) -> TaskError {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).take(4);
    let program = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    TaskError::Failed { program, status: status.to_string(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_carries_what_was_printed() {
        let error = output(&mut shell("echo why >&2; exit 4")).unwrap_err().to_string();
        assert!(error.contains("exit status: 4") && error.ends_with(": why"), "{error}");
        assert_eq!(output(&mut shell("echo fine")).unwrap(), "fine\n");
    }

    #[test]
    fn a_log_has_both_streams_and_each_line_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut lines = Vec::new();
        let result =
            logged(&mut shell("echo one; echo two >&2; exit 1"), &log, |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one"]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("one") && error.contains("two"), "{error}");
    }
}
