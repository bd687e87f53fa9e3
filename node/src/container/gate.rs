//! Where a container's first process waits until its network is there, and how it is found out what became of it then.
use super::instance::unusable;
use super::pump::AsyncDescriptor;
use super::report::{self, Failure, Report, Step};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use wherry_protocol::{ErrorCode, WireError};

/// The child waits here until its network is there; then it says whether it became the container's program.
#[derive(Debug)]
pub(super) struct Gate {
    go: OwnedFd,
    report: AsyncDescriptor,
}

impl Gate {
    pub(super) fn new(go: OwnedFd, report: OwnedFd) -> Result<Self, WireError> {
        Ok(Self { go, report: AsyncDescriptor::new(report).map_err(unusable)? })
    }

    /// Opens once `connected` says that the network is there.
    ///
    /// # Errors
    /// Why the child did not become its program.
    pub(super) async fn pass(
        self,
        connected: impl Future<Output = Result<(), WireError>>,
    ) -> Result<(), WireError> {
        match connected.await {
            Ok(()) => self.open().await,
            Err(error) => Err(self.close(error).await),
        }
    }

    /// Stays shut: all is set up and the network is there, but the program is not started.
    ///
    /// # Errors
    /// Why the child does not stand at the gate.
    pub(super) async fn hold(
        self,
        connected: impl Future<Output = Result<(), WireError>>,
    ) -> Result<Self, WireError> {
        if let Err(error) = connected.await {
            return Err(self.close(error).await);
        }
        match judge(read(&self.report, |reports| !reports.is_empty()).await?) {
            Outcome::AtTheGate => Ok(self),
            Outcome::Failed(failure) => Err(failure.into()),
            Outcome::Executed | Outcome::Vanished => Err(vanished()),
        }
    }

    /// Lets the child through, and waits until it is its program.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn open(self) -> Result<(), WireError> {
        // A child that has failed already has closed its end; its report says why.
        File::from(self.go).write_all(&[1]).ok();
        match outcome(&self.report).await? {
            Outcome::Executed => Ok(()),
            Outcome::Failed(failure) => Err(failure.into()),
            Outcome::Vanished | Outcome::AtTheGate => Err(vanished()),
        }
    }

    /// Closed without a word, the child gives up.
    async fn close(self, error: WireError) -> WireError {
        drop(self.go);
        match outcome(&self.report).await {
            // What the child failed at by itself explains why its namespace could not be entered; that it was not let
            // through the gate explains nothing.
            Ok(Outcome::Failed(failure)) if failure.step != Step::Go => failure.into(),
            Ok(Outcome::Executed | Outcome::Failed(_) | Outcome::Vanished | Outcome::AtTheGate) => error,
            Err(unread) => unread,
        }
    }
}

fn vanished() -> WireError {
    let message = "the container's process was killed before it became its program";
    WireError::new(ErrorCode::StartFailed, message)
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    AtTheGate,
    Executed,
    Failed(Failure),
    Vanished,
}

async fn outcome(report: &AsyncDescriptor) -> Result<Outcome, WireError> {
    Ok(judge(read(report, |_| false).await?))
}

/// Reports until there are enough of them, or no more come.
async fn read(
    report: &AsyncDescriptor,
    enough: impl Fn(&[Report]) -> bool,
) -> Result<Vec<Report>, WireError> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() <= report::MAX_BYTES {
        let length = report.read(&mut buffer).await.map_err(unusable)?;
        bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if length == 0 || enough(&report::decode(&bytes).0) {
            break;
        }
    }
    Ok(report::decode(&bytes).0)
}

/// The last word counts: `Executing` followed by the end of the pipe means that execve closed it.
fn judge(reports: Vec<Report>) -> Outcome {
    match reports.into_iter().next_back() {
        Some(Report::Executing) => Outcome::Executed,
        Some(Report::Failed(failure)) => Outcome::Failed(failure),
        Some(Report::AtTheGate) => Outcome::AtTheGate,
        Some(Report::Code(_) | Report::Signal(_)) | None => Outcome::Vanished,
    }
}
