//! A broker and a person's configuration directory; runs the binary in it.
use crate::broker::Broker;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use wherry_protocol::Role;

pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) home: tempfile::TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Ran {
    /// The output of a success.
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.out
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).unwrap()
    }

    /// A failure with this code and exactly one sentence, which contains `words`.
    pub(crate) fn fails(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "one sentence: {self:?}");
        assert!(self.err.starts_with("wherry: ") && self.err.contains(words), "{words}: {self:?}");
    }
}

impl World {
    /// A broker that nobody has joined.
    pub(crate) fn empty() -> Self {
        Self { broker: Broker::start(), home: tempfile::tempdir().unwrap() }
    }

    /// A broker, joined as administrator.
    pub(crate) fn joined() -> Self {
        let world = Self::empty();
        let token = world.broker.token(Role::Admin).to_string();
        world.run(&["join", &token]).ok();
        world
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wherry"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("USER", "ada")
            .env("TMPDIR", std::env::temp_dir())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn line(&self, line: &str) -> Ran {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self.spawn(arguments, Stdio::piped());
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        child.wait_with_output().unwrap().into()
    }

    pub(crate) fn spawn(&self, arguments: &[&str], stdin: Stdio) -> Child {
        self.command(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn locations(&self) -> PathBuf {
        self.home.path().join(".config/wherry/locations")
    }
}

/// Waits until something is so, at most ten seconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}
