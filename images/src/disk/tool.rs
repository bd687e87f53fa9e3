//! Running external programs: one way, with one kind of error.
use std::process::{Command, Stdio};

use super::error::DiskError;

/// Directories of administration programs, which an ordinary user's path often lacks.
const ADMIN_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/opt/e2fsprogs/sbin";

/// An external program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    /// Its name.
    pub(crate) program: &'static str,
    /// The Debian package that has it.
    pub(crate) package: &'static str,
}

impl Tool {
    /// Runs the program with `arguments` and `environment`, quietly; its complaint becomes the error.
    pub(crate) fn run(self, arguments: &[String], environment: &[(&str, &str)]) -> Result<(), DiskError> {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new(self.program)
            .args(arguments)
            .env("PATH", format!("{path}:{ADMIN_PATH}"))
            .env("LC_ALL", "C")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .map_err(|source| self.not_started(source))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned();
        Err(DiskError::ToolFailed { program: self.program, status: output.status.to_string(), message })
    }

    fn not_started(self, source: std::io::Error) -> DiskError {
        match source.kind() {
            std::io::ErrorKind::NotFound => {
                DiskError::ToolMissing { program: self.program, package: self.package }
            }
            _ => DiskError::Io { action: "run", path: self.program.into(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_and_a_failing_one_its_reason() {
        let missing = Tool { program: "wherry-no-such-program", package: "some-package" }.run(&[], &[]);
        let text = missing.unwrap_err().to_string();
        assert!(text.contains("install the package some-package"), "{text}");
        let arguments = ["-c".to_owned(), "echo first >&2; echo last >&2; exit 3".to_owned()];
        let failed = Tool { program: "sh", package: "dash" }.run(&arguments, &[]);
        assert_eq!(failed.unwrap_err().to_string(), "sh failed (exit status: 3): last");
    }
}
