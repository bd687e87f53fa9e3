//! How the supervisor is to run.
use crate::machine::Timing;
use std::ffi::OsString;
use std::path::PathBuf;

/// What the program that calls [`crate::run`] decides.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// Name of the program, `argv[0]` of what is started.
    pub program: String,
    /// First argument of the service, e.g. `serve`.
    pub service_argument: String,
    /// More of them.
    pub extra_arguments: Vec<OsString>,
    /// What a copy of the supervisor does.
    pub copy: Option<Copy>,
    /// Run as an ordinary process with everything below this directory, instead of as PID 1 of a machine.
    pub process_root: Option<PathBuf>,
    /// Deadlines and pauses.
    pub timing: Timing,
    /// SIGUSR1 makes the supervisor panic. For tests of what happens then; no release program sets it.
    pub panic_on_signal: bool,
}

/// When the service asks for a process with `argument`, the supervisor does not execute its program with it but runs this in
/// a copy of itself.
#[derive(Debug, Clone)]
pub struct Copy {
    /// As in [`crate::control::Launch`].
    pub argument: &'static str,
    /// Gives the exit code. The supervisor has one thread, so its copy may do what a program may.
    pub run: fn() -> u8,
}

/// The arguments of `init` make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// An argument nobody knows.
    #[error(
        "unknown argument `{0}` of init: the usage is `init [--process --root DIR [-- SERVICE ARGUMENTS]]`"
    )]
    Unknown(String),
    /// `--root` without a directory.
    #[error("`--root` needs a directory")]
    NoDirectory,
    /// One of the two without the other.
    #[error("`--process` and `--root DIR` belong together")]
    Incomplete,
}

impl SupervisorConfig {
    /// For `program init` without arguments.
    #[must_use]
    pub fn new(program: &str, service_argument: &str) -> Self {
        Self {
            program: program.to_owned(),
            service_argument: service_argument.to_owned(),
            extra_arguments: Vec::new(),
            copy: None,
            process_root: None,
            timing: Timing::default(),
            panic_on_signal: false,
        }
    }

    /// See [`Copy`].
    #[must_use]
    pub fn with_copy(self, argument: &'static str, run: fn() -> u8) -> Self {
        Self { copy: Some(Copy { argument, run }), ..self }
    }

    /// Adds what follows `init` on the command line: `[--process --root DIR [-- SERVICE ARGUMENTS]]`.
    ///
    /// # Errors
    /// [`UsageError`]. PID 1 of a machine must not call this: the kernel passes it every word it does not know itself.
    pub fn with_arguments(
        mut self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter();
        let mut as_process = false;
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--process") => as_process = true,
                Some("--root") => {
                    self.process_root = Some(arguments.next().ok_or(UsageError::NoDirectory)?.into());
                }
                Some("--") => self.extra_arguments = arguments.by_ref().collect(),
                _ => return Err(UsageError::Unknown(argument.to_string_lossy().into_owned())),
            }
        }
        if as_process == self.process_root.is_some() { Ok(self) } else { Err(UsageError::Incomplete) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<SupervisorConfig, UsageError> {
        SupervisorConfig::new("wherry-node", "serve").with_arguments(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_understood() {
        assert_eq!(parse(&[]).unwrap().process_root, None);
        let config = parse(&["--process", "--root", "/t", "--", "--root", "x"]).unwrap();
        assert_eq!(config.process_root, Some("/t".into()));
        assert_eq!(config.extra_arguments, ["--root", "x"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (words, error) in [
            (&["--root"][..], UsageError::NoDirectory),
            (&["--process"], UsageError::Incomplete),
            (&["--root", "/t"], UsageError::Incomplete),
            (&["fast"], UsageError::Unknown("fast".into())),
        ] {
            assert_eq!(parse(words).unwrap_err(), error);
        }
    }
}
