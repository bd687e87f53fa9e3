//! What may be done with a container, by what it is doing: one exhaustive table.
use crate::record::{Container, Phase};
use wherry_protocol::message::ContainerState;

/// What somebody wants to do with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop,
    Start,
    /// Starting it with none of what it has written.
    StartClean,
    Remove {
        force: bool,
    },
    /// Exec, tunnel and signals: they need a process.
    Enter,
    /// Attach and logs: they need output, also that of a process which has ended.
    Watch,
    /// Starting the program of one that is asleep.
    Wake,
}

/// What a container is doing, as far as legality goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Situation {
    /// On the way to running.
    Starting,
    Running,
    /// Ended, and about to start again by itself.
    Restarting,
    /// Asked to end, has not ended.
    Stopping,
    /// Its process ended.
    Ended,
    /// It could not be started.
    Failed,
    /// For its owner it is gone already.
    Removing,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Do it.
    Go,
    /// It is so already: reply without doing anything.
    Already,
    /// Do it as soon as the container has started.
    WhenStarted,
    /// No; the text follows the container's name in the error.
    Refuse(&'static str),
    /// No, there was a failure to start; reply with it.
    TellFailure,
    /// As if it did not exist.
    NotThere,
}

pub(crate) fn situation(container: &Container) -> Situation {
    match (&container.phase, &container.state) {
        (Phase::Removing { .. }, _) => Situation::Removing,
        (Phase::Wanted | Phase::Stopping { .. }, ContainerState::Exited { .. }) => Situation::Ended,
        (Phase::Wanted | Phase::Stopping { .. }, ContainerState::Failed(_)) => Situation::Failed,
        (Phase::Wanted, ContainerState::Pending | ContainerState::Preparing) => Situation::Starting,
        (Phase::Wanted, ContainerState::Running { .. }) => Situation::Running,
        (Phase::Wanted, ContainerState::Restarting { .. }) => Situation::Restarting,
        (
            Phase::Stopping { .. },
            ContainerState::Pending
            | ContainerState::Preparing
            | ContainerState::Running { .. }
            | ContainerState::Restarting { .. },
        ) => Situation::Stopping,
    }
}

pub(crate) fn legal(action: Action, situation: Situation) -> Verdict {
    use Action::{Enter, Remove, Start, StartClean, Stop, Wake, Watch};
    use Situation::{Ended, Failed, Removing, Restarting, Running, Starting, Stopping};
    match (action, situation) {
        (Stop | Start | StartClean | Remove { .. } | Enter | Watch | Wake, Removing) => Verdict::NotThere,

        (Stop, Starting | Running | Restarting | Stopping) => Verdict::Go,
        (Stop, Ended | Failed) => Verdict::Already,

        (Start, Starting | Running | Restarting) => Verdict::Already,
        (StartClean, Starting | Running | Restarting) => {
            Verdict::Refuse("is running: stop it first, or use `wherry restart --reset`")
        }
        (Start | StartClean, Stopping) => {
            Verdict::Refuse("is being stopped: wait until it has ended, then start it")
        }
        (Start | StartClean, Ended | Failed) => Verdict::Go,

        (Remove { force: true }, Starting | Running | Restarting | Stopping | Ended | Failed) => Verdict::Go,
        (Remove { force: false }, Ended | Failed) => Verdict::Go,
        (Remove { force: false }, Starting | Running | Restarting | Stopping) => {
            Verdict::Refuse("is running: stop it first, or remove it by force")
        }

        (Enter, Starting) => Verdict::Refuse("has not started yet: wait for it, or look at its state"),
        (Enter, Running | Stopping) => Verdict::Go,
        (Enter, Restarting) => {
            Verdict::Refuse("has ended and is about to start again: wait for it, or look at its log")
        }
        (Enter | Wake, Ended) => Verdict::Refuse("is not running: start it first"),
        (Wake, Starting | Running | Restarting | Stopping) => Verdict::Go,
        (Enter | Watch | Wake, Failed) => Verdict::TellFailure,

        (Watch, Starting) => Verdict::WhenStarted,
        (Watch, Running | Restarting | Stopping | Ended) => Verdict::Go,
    }
}
