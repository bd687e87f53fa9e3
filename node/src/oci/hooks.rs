//! Programs that are called at the points of a container's life (runtime-spec, config.md, "POSIX-platform Hooks").
use super::error::OciError;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wherry_sys::process::pidfd_open;

/// What of a failed hook's standard error is repeated, in bytes.
const TOLD_BYTES: u64 = 1024;

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) path: PathBuf,
    /// `argv`, the program's name first; its path if empty.
    pub(super) args: Vec<String>,
    /// `NAME=value`; nothing else is in its environment.
    pub(super) env: Vec<String>,
    /// After so many it is killed.
    pub(super) timeout_seconds: Option<u64>,
}

/// All of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hooks {
    pub(super) prestart: Vec<Hook>,
    pub(super) create_runtime: Vec<Hook>,
    pub(super) create_container: Vec<Hook>,
    pub(super) start_container: Vec<Hook>,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
}

/// Calls them in order with `state` on standard input, until one fails.
///
/// # Errors
/// [`OciError::Hook`].
pub(super) fn call_all(
    kind: &'static str,
    hooks: &[Hook],
    state: &str,
    directory: &Path,
) -> Result<(), OciError> {
    hooks.iter().try_for_each(|hook| {
        call(hook, state, directory).map_err(|reason| OciError::Hook {
            kind,
            path: hook.path.clone(),
            reason,
        })
    })
}

/// The same, but all are called, and each failure is handed to `warn`.
pub(super) fn call_each(
    kind: &'static str,
    hooks: &[Hook],
    state: &str,
    directory: &Path,
    mut warn: impl FnMut(OciError),
) {
    for hook in hooks {
        call_all(kind, std::slice::from_ref(hook), state, directory).unwrap_or_else(&mut warn);
    }
}

fn call(hook: &Hook, state: &str, directory: &Path) -> Result<(), String> {
    // A file, not a pipe: nobody has to read it.
    let input =
        wherry_sys::fd::sealed_memfd(c"state", state.as_bytes()).map_err(|error| error.to_string())?;
    let memory = rustix::fs::memfd_create(c"stderr", rustix::fs::MemfdFlags::CLOEXEC);
    let mut errors = File::from(memory.map_err(|error| error.to_string())?);
    let told = errors.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    command.current_dir(directory).stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::from(told));
    let child = command.spawn().map_err(|error| error.to_string())?;
    wait(child, hook.timeout_seconds.map(Duration::from_secs)).map_err(|reason| {
        let mut text = String::new();
        let read = errors.rewind().and_then(|()| errors.take(TOLD_BYTES).read_to_string(&mut text));
        match (read, text.trim()) {
            (Ok(_), said) if !said.is_empty() => format!("{reason}: {said}"),
            (Ok(_) | Err(_), _) => reason,
        }
    })
}

fn wait(mut child: Child, timeout: Option<Duration>) -> Result<(), String> {
    if let Some(timeout) = timeout
        && !ends_within(&child, timeout)?
    {
        // It may have ended just now.
        child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
        return Err(format!("it took longer than {} seconds", timeout.as_secs()));
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

fn ends_within(child: &Child, timeout: Duration) -> Result<bool, String> {
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    let pidfd = pidfd_open(nix::unistd::Pid::from_raw(pid)).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let poll_timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut watched, poll_timeout) {
            Ok(1..) => return Ok(true),
            Ok(_) if left.is_zero() => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.desc().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).into();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into()], timeout_seconds: Some(1) }
    }

    #[test]
    fn a_hook_gets_the_state_its_environment_and_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let script = shell("cat > state; echo $0 $A$HOME > words");
        call(&script, "{\"id\": 1}", dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("state")).unwrap(), "{\"id\": 1}");
        assert_eq!(std::fs::read_to_string(dir.path().join("words")).unwrap(), "sh b\n");
        // One that does not read a large state is not waited for.
        call(&shell("true"), &"x".repeat(1 << 20), dir.path()).unwrap();
    }

    #[test]
    fn failures_and_endless_hooks_are_told() {
        let root = Path::new("/");
        let failed = call(&shell("echo oh no >&2; exit 3"), "{}", root).unwrap_err();
        assert_eq!(failed, "exit status: 3: oh no");
        assert_eq!(call(&shell("sleep 100"), "{}", root).unwrap_err(), "it took longer than 1 seconds");
        let missing = Hook { path: "/nothing".into(), ..shell("") };
        let error = call_all("poststop", &[missing], "{}", root).unwrap_err();
        assert_eq!(
            error.to_string(),
            "poststop hook /nothing failed: No such file or directory (os error 2)"
        );
    }
}
