//! The real `wherry` command, as one person with a home of their own uses it.
use crate::failure::Failure;
use crate::terminal::Terminal;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wherry_qemu::patience;

/// How long one command may take: pulling apart an image on an emulated board is the slowest.
const COMMAND: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// A person at a keyboard.
#[derive(Debug, Clone)]
pub struct Wherry {
    binary: PathBuf,
    home: PathBuf,
    wrapper: Vec<OsString>,
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// As typed.
    pub command: String,
    /// Exit code; 128 + signal if one ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Wherry {
    /// The command `binary` with its files below `home`.
    #[must_use]
    pub fn new(binary: PathBuf, home: PathBuf) -> Self {
        Self { binary, home, wrapper: Vec::new() }
    }

    /// The same command run by another one, such as `ip netns exec NAME`.
    #[must_use]
    pub fn wrapped(self, wrapper: &[&str]) -> Self {
        Self { wrapper: wrapper.iter().map(Into::into).collect(), ..self }
    }

    /// Another program of this person's, such as `ssh`, with the same home and surroundings.
    #[must_use]
    pub fn program(&self, name: &str) -> Self {
        Self { binary: name.into(), ..self.clone() }
    }

    /// Another person, with another home.
    #[must_use]
    pub fn with_home(&self, home: PathBuf) -> Self {
        Self { home, ..self.clone() }
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where this person's files are.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.binary.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(arguments);
        command.env("HOME", &self.home);
        command.env("XDG_CONFIG_HOME", self.home.join("config"));
        command.env("XDG_STATE_HOME", self.home.join("state"));
        command.env_remove("WHERRY_LOCATION").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end; one that takes too long is killed, and that is a failure.
    pub fn run(&self, arguments: &[&str]) -> Result<Outcome, Failure> {
        let mut running = self.start(arguments)?;
        match running.wait(COMMAND)? {
            Some(outcome) => Ok(outcome),
            None => Err(running.kill()?.failure("did not end in time")),
        }
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn ok(&self, arguments: &[&str]) -> Result<String, Failure> {
        Ok(self.run(arguments)?.expect_code(0)?.stdout)
    }

    /// Runs a command that must succeed with `--json`, and gives the document it printed.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, Failure> {
        let outcome = self.run(&[&["--json"], arguments].concat())?.expect_code(0)?;
        serde_json::from_str(&outcome.stdout)
            .map_err(|error| outcome.failure(&format!("printed no JSON ({error})")))
    }

    /// Runs a command that must fail with one sentence on stderr that contains `word`, and with a code that is not 0.
    pub fn refused(&self, arguments: &[&str], word: &str) -> Result<Outcome, Failure> {
        let outcome = self.run(arguments)?;
        let said = outcome.stderr.to_lowercase();
        if outcome.code == 0 {
            return Err(outcome.failure("should have failed"));
        }
        if !said.contains(&word.to_lowercase()) {
            return Err(outcome.failure(&format!("should have said something with '{word}'")));
        }
        if said.contains("panicked") || said.contains("error {") {
            return Err(outcome.failure("should have failed with a sentence for people"));
        }
        Ok(outcome)
    }

    /// Starts a command in a terminal of so many rows and columns.
    pub fn in_terminal(&self, arguments: &[&str], rows: u16, columns: u16) -> Result<Terminal, Failure> {
        let mut command = self.command(arguments);
        command.env("TERM", "xterm");
        Terminal::start(command, rows, columns)
    }

    /// Starts a command that goes on.
    pub fn start(&self, arguments: &[&str]) -> Result<Background, Failure> {
        let mut command = self.command(arguments);
        let program = self.binary.file_name().unwrap_or_default().to_string_lossy();
        let words = std::iter::once(&*program).chain(arguments.iter().copied()).map(quoted);
        let shown = words.collect::<Vec<_>>().join(" ");
        let mut child = command.spawn().map_err(Failure::io(format!("run {}", self.binary.display())))?;
        let stdout = Collected::from(child.stdout.take());
        let stderr = Collected::from(child.stderr.take());
        Ok(Background { command: shown, child, started: Instant::now(), stdout, stderr })
    }
}

/// As one would have to type it into a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl Outcome {
    /// Fails unless the exit code is `code`.
    pub fn expect_code(self, code: i32) -> Result<Self, Failure> {
        if self.code == code {
            Ok(self)
        } else {
            Err(self.failure(&format!("should have ended with {code}")))
        }
    }

    /// Fails unless it printed something with `text` in it.
    pub fn expect_stdout(self, text: &str) -> Result<Self, Failure> {
        if self.stdout.contains(text) {
            Ok(self)
        } else {
            Err(self.failure(&format!("should have printed '{text}'")))
        }
    }

    /// This outcome as a failure.
    #[must_use]
    pub fn failure(&self, problem: &str) -> Failure {
        let Self { command, code, stdout, stderr, .. } = self.clone();
        Failure::Command { command, problem: problem.to_owned(), code, stdout, stderr }
    }
}

/// What a process prints, collected by a thread so that it never waits for us.
#[derive(Debug)]
pub(crate) struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    pub(crate) fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            std::thread::spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
                }
            })
        });
        Self { bytes, reader }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has left what it read.
            drop(reader.join());
        }
        self.text()
    }
}

/// A command that goes on; killed when dropped.
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    started: Instant,
    stdout: Collected,
    stderr: Collected,
}

impl Background {
    /// What it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has complained so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it ends by itself; `None` if it does not.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Failure> {
        let deadline = self.started + patience(timeout);
        loop {
            let status = self.child.try_wait().map_err(Failure::io(format!("wait for {}", self.command)))?;
            match status {
                Some(status) => return Ok(Some(self.outcome(status))),
                None if Instant::now() >= deadline => return Ok(None),
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// Ends it with SIGINT, as ctrl-C does.
    pub fn interrupt(mut self) -> Result<Outcome, Failure> {
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
            .map_err(|error| Failure::Unexpected(format!("cannot interrupt `{}`: {error}", self.command)))?;
        self.started = Instant::now();
        match self.wait(Duration::from_secs(10))? {
            Some(outcome) => Ok(outcome),
            None => Err(self.kill()?.failure("did not end when interrupted")),
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> Result<Outcome, Failure> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        let status = killed.map_err(Failure::io(format!("end {}", self.command)))?;
        Ok(self.outcome(status))
    }

    fn outcome(&mut self, status: ExitStatus) -> Outcome {
        let signal = || status.signal().unwrap_or(127).saturating_add(128);
        Outcome {
            command: self.command.clone(),
            code: status.code().unwrap_or_else(signal),
            took: self.started.elapsed(),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Wherry {
        Wherry::new("/bin/sh".into(), "/nonexistent".into())
    }

    #[test]
    fn outcomes_are_told_in_full() {
        let outcome = shell().run(&["-c", "echo out; echo err >&2; exit 3"]).unwrap();
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (3, "out\n", "err\n"));
        assert_eq!(outcome.command, "sh -c 'echo out; echo err >&2; exit 3'");
        let error = outcome.expect_code(0).unwrap_err().to_string();
        assert!(error.contains("should have ended with 0") && error.contains("stderr: err"), "{error}");
    }

    #[test]
    fn a_refusal_needs_a_failure_and_its_word() {
        assert!(shell().refused(&["-c", "echo No such thing >&2; exit 1"], "no such").is_ok());
        assert!(shell().refused(&["-c", "echo no such thing >&2"], "no such").is_err());
        assert!(shell().refused(&["-c", "echo something else >&2; exit 1"], "no such").is_err());
    }

    #[test]
    fn what_goes_on_can_be_read_and_ended() {
        let mut sleeper = shell().start(&["-c", "echo started; exec sleep 60"]).unwrap();
        let read =
            crate::wait::until("its output", Duration::from_secs(5), || match sleeper.stdout().as_str() {
                "started\n" => Ok(()),
                other => Err(other.to_owned()),
            });
        read.unwrap();
        assert!(sleeper.wait(Duration::ZERO).unwrap().is_none());
        assert_eq!(sleeper.interrupt().unwrap().code, 130);
    }
}
