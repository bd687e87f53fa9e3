//! What the child says about itself on descriptor 5, and how it is put into one sentence.
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use wherry_protocol::{ErrorCode, WireError};

/// Longest report, in bytes: a step, a path and an error number.
pub const MAX_BYTES: usize = 16 * 1024;

/// A step of the way from clone to the container's program, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Making the node's own program unreachable.
    Shield,
    /// Reading the plan.
    Plan,
    /// Joining the container's namespaces.
    Join,
    /// Cutting the mount namespace off from the host's.
    Propagation,
    /// Mounting the image's layers.
    Overlay,
    /// Opening what is mounted from the node: a volume.
    Source,
    /// Making the layers the root directory.
    Pivot,
    /// Unpacking files that are to be there before the program starts.
    Files,
    /// Mounting something.
    Mount,
    /// Making a device node or a link in /dev.
    Device,
    /// Hiding a path.
    Mask,
    /// Making a path read-only.
    ReadOnly,
    /// Setting a kernel parameter of the container's own.
    Sysctl,
    /// Setting the host name.
    Hostname,
    /// Connecting the terminal.
    Terminal,
    /// Waiting until the network is there.
    Go,
    /// Looking the user up.
    User,
    /// Entering the working directory.
    Workdir,
    /// Setting a resource limit.
    Limit,
    /// Giving up privileges.
    Privileges,
    /// Installing the system call filter.
    Seccomp,
    /// Finding the program.
    Program,
    /// Executing the program.
    Exec,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Shield => "protecting the node's program",
            Self::Plan => "reading the plan",
            Self::Join => "joining the container",
            Self::Propagation => "separating mounts",
            Self::Overlay => "mounting the image",
            Self::Source => "opening",
            Self::Pivot => "changing the root",
            Self::Files => "putting files into the container:",
            Self::Mount => "mounting",
            Self::Device => "making",
            Self::Mask => "hiding",
            Self::ReadOnly => "protecting",
            Self::Sysctl => "setting",
            Self::Hostname => "setting the host name",
            Self::Terminal => "connecting the terminal",
            Self::Go => "waiting for the network",
            Self::User => "finding user",
            Self::Workdir => "entering",
            Self::Limit => "setting limit",
            Self::Privileges => "giving up privileges",
            Self::Seccomp => "installing the system call filter",
            Self::Program => "finding",
            Self::Exec => "executing",
        }
    }
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", sentence(*.step, .detail, Errno::from_raw(*.errno)))]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// With what: a path, a name; may be empty.
    pub detail: String,
    /// Why, as in errno(3).
    pub errno: i32,
}

impl Failure {
    /// `step` on `detail` failed with `errno`.
    pub fn new(step: Step, detail: impl Into<String>, errno: Errno) -> Self {
        Self { step, detail: detail.into(), errno: errno as i32 }
    }
}

/// One word of the child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The next thing it does is to become the container's program. If nothing follows but the end, it has.
    Executing,
    /// It cannot.
    Failed(Failure),
    /// An exec'd process ended with this code.
    Code(i32),
    /// This signal ended an exec'd process.
    Signal(i32),
    /// All is set up; it waits to be let through.
    AtTheGate,
}

/// The reports in `bytes`, and how many of the bytes they took.
#[must_use]
pub fn decode(bytes: &[u8]) -> (Vec<Report>, usize) {
    let (mut reports, mut rest) = (Vec::new(), bytes);
    while let Ok((report, after)) = postcard::take_from_bytes(rest) {
        reports.push(report);
        rest = after;
    }
    (reports, bytes.len() - rest.len())
}

impl From<Failure> for WireError {
    fn from(failure: Failure) -> Self {
        Self::new(ErrorCode::StartFailed, failure.to_string())
    }
}

fn sentence(step: Step, detail: &str, errno: Errno) -> String {
    let shown: String = detail.chars().take(200).collect();
    match (step, errno) {
        (Step::Program, Errno::ENOENT | Errno::ENOTDIR) => {
            format!("could not start: no such program '{shown}' in the image, check the command")
        }
        (Step::Program | Step::Exec, Errno::EACCES) => {
            format!("could not start: '{shown}' is not executable, check the command")
        }
        (Step::Exec, Errno::ENOEXEC) => {
            format!("could not start: '{shown}' is not a program for this node's processor")
        }
        (Step::Exec, Errno::ENOENT) => {
            format!("could not start: the interpreter or loader that '{shown}' needs is not in the image")
        }
        (Step::User, Errno::ENOENT) => {
            format!("could not start: no user or group '{shown}' in the image, give one that /etc/passwd has")
        }
        (Step::User, Errno::EOVERFLOW) => {
            format!(
                "could not start: {shown} is above 65535, the highest that a container has: give a lower one"
            )
        }
        // It says itself what and why.
        (Step::Files, _) => format!("could not start: its files cannot be put into it: {shown}"),
        (Step::Go, Errno::EPIPE) => "could not start: the network was not set up".to_owned(),
        (step, errno) => {
            let gap = if shown.is_empty() { "" } else { " " };
            format!("could not start: {}{gap}{shown} failed: {}", step.words(), errno.desc())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_sentences() {
        for (step, detail, errno, text) in [
            (
                Step::Program,
                "foo",
                Errno::ENOENT,
                "could not start: no such program 'foo' in the image, check the command",
            ),
            (
                Step::Mount,
                "/proc",
                Errno::EPERM,
                "could not start: mounting /proc failed: Operation not permitted",
            ),
            (Step::Pivot, "", Errno::EINVAL, "could not start: changing the root failed: Invalid argument"),
        ] {
            assert_eq!(Failure::new(step, detail, errno).to_string(), text);
        }
    }

    #[test]
    fn reports_come_in_pieces() {
        let failed = Report::Failed(Failure::new(Step::Exec, "/bin/x", Errno::ENOEXEC));
        let mut bytes = postcard::to_stdvec(&Report::Executing).unwrap();
        bytes.extend(postcard::to_stdvec(&failed).unwrap());
        let whole = bytes.len();
        assert_eq!(decode(&bytes), (vec![Report::Executing, failed], whole));
        assert_eq!(decode(&bytes[..whole - 1]), (vec![Report::Executing], 1));
        assert_eq!(decode(&[]), (vec![], 0));
        assert_eq!(decode(&[200, 1]).0, vec![]);
    }
}
