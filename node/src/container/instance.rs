//! One life of a container, running or ended: its output, its input, its terminal, how it ended.
use super::cgroup::Cgroup;
use super::gate::Gate;
use super::health::HealthPlan;
use super::logs::{Log, Ring};
use super::plan::{self, Plan, Process, Root};
use super::pump::{self, AsyncDescriptor, Input, unix_ms};
use super::supervisor::{ExitWatch, Survivor};
use super::user_namespace::IdRange;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use wherry_init::control::{ProcessKey, RawStatus};
use wherry_protocol::message::{Channel, Condition, ExitStatus, ImageManifest};
use wherry_protocol::{ContainerRef, ErrorCode, WireError};
use wherry_sys::terminal::{self, WindowSize};

/// Labels of what the supervisor keeps.
pub const KEPT_LOG: &str = "log";
/// The sealed plan, so that exec knows the container's settings after a restart of the service.
pub const KEPT_PLAN: &str = "plan";
/// Write end of stdin's pipe.
pub const KEPT_STDIN: &str = "stdin";
/// Read end of stdout's pipe.
pub const KEPT_STDOUT: &str = "stdout";
/// Read end of stderr's pipe.
pub const KEPT_STDERR: &str = "stderr";
/// The controlling side of the terminal.
pub const KEPT_TERMINAL: &str = "pty";
/// Write end of the gate of a container that is asleep.
pub const KEPT_GO: &str = "go";
/// Read end of its reports.
pub const KEPT_REPORT: &str = "report";

/// How long output is awaited after the last process has ended: only a descriptor that leaked out of the container could
/// hold a pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How often that, at most, while somebody still reads.
const MOST_DRAINS: u32 = 60;

/// The supervisor's name for one life of a container.
#[must_use]
pub fn key(container: ContainerRef) -> ProcessKey {
    ProcessKey { id: container.id.0, generation: container.generation.0 }
}

/// The node's ends of the standard streams, by label.
pub type Ends = HashMap<String, OwnedFd>;

/// One life of a container.
#[derive(Debug)]
pub struct Instance {
    /// Which.
    pub container: ContainerRef,
    /// Its first process, on this node.
    pub pid: u32,
    /// When it was started, Unix milliseconds.
    pub started_ms: u64,
    /// Its output.
    pub log: Arc<Log>,
    /// How exec'd processes are to be, unless told otherwise.
    pub process: Process,
    /// Its bounds.
    pub cgroup: Cgroup,
    /// Its root, whose directories must stay.
    pub root: Root,
    /// How it is found out whether it is well.
    pub health: Option<HealthPlan>,
    /// What its image consists of.
    pub image: ImageManifest,
    /// Held until nothing of it is left.
    #[expect(dead_code, reason = "it is there to be dropped")]
    ids: Option<IdRange>,
    condition: watch::Sender<Condition>,
    /// Where its first process waits until it is woken.
    gate: Mutex<Option<Gate>>,
    /// Its first process; `None` once it was found ended.
    pidfd: Option<OwnedFd>,
    input: Input,
    terminal: Option<Arc<AsyncDescriptor>>,
    ended: watch::Sender<Option<Ended>>,
}

/// How and when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// When, Unix milliseconds.
    pub finished_ms: u64,
}

/// What is needed to look after a container's process.
#[derive(Debug)]
pub struct Parts {
    /// Which.
    pub container: ContainerRef,
    /// Its process id.
    pub pid: u32,
    /// Its pidfd, if it runs.
    pub pidfd: Option<OwnedFd>,
    /// When it was started, Unix milliseconds.
    pub started_ms: u64,
    /// The ring of its output.
    pub ring: Ring,
    /// Whether somebody is about to attach who wants all of it.
    pub attended: bool,
    /// From the plan.
    pub process: Process,
    /// From the plan too.
    pub root: Root,
    /// From the plan too.
    pub health: Option<HealthPlan>,
    /// From the plan too.
    pub image: ImageManifest,
    /// Its ids on the node, if it has a user namespace.
    pub ids: Option<IdRange>,
    /// Shut, if it is asleep.
    pub(super) gate: Option<Gate>,
    /// Its bounds.
    pub cgroup: Cgroup,
    /// The node's ends of its standard streams.
    pub ends: Ends,
    /// Shows its end.
    pub exit: ExitWatch,
}

impl Instance {
    /// Starts copying output and waiting for the end; `on_end` is called then, after all output is in the log.
    ///
    /// # Errors
    /// When a descriptor cannot be polled.
    pub fn watch(
        parts: Parts,
        on_end: impl FnOnce(ContainerRef, Ended) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let Parts {
            container,
            pid,
            pidfd,
            started_ms,
            ring,
            attended,
            process,
            root,
            health,
            image,
            ids,
            gate,
            cgroup,
            mut ends,
            exit,
        } = parts;
        let log = Log::new(ring);
        let log = Arc::new(if attended { log.attended() } else { log });
        let mut pumps = Vec::new();
        for (label, channel) in [(KEPT_STDOUT, Channel::Stdout), (KEPT_STDERR, Channel::Stderr)] {
            if let Some(end) = ends.remove(label) {
                pumps.push(pump::output(Arc::new(AsyncDescriptor::new(end)?), channel, Arc::clone(&log)));
            }
        }
        let mut terminal = None;
        if let Some(end) = ends.remove(KEPT_TERMINAL) {
            let end = Arc::new(AsyncDescriptor::new(end)?);
            pumps.push(pump::output(Arc::clone(&end), Channel::Stdout, Arc::clone(&log)));
            terminal = Some(end);
        }
        let input = match (&terminal, ends.remove(KEPT_STDIN)) {
            (Some(terminal), _) => Input::Terminal(Arc::clone(terminal)),
            (None, Some(pipe)) => Input::Pipe(Mutex::new(Some(AsyncDescriptor::new(pipe)?))),
            (None, None) => Input::None,
        };
        let ended = watch::Sender::new(None);
        let asleep = gate.is_some();
        let condition = Condition { paused: cgroup.is_frozen(), asleep, health: None };
        let instance = Arc::new(Self {
            container,
            pid,
            started_ms,
            log,
            process,
            cgroup,
            root,
            health,
            image,
            ids,
            condition: watch::Sender::new(condition),
            gate: Mutex::new(gate),
            pidfd,
            input,
            terminal,
            ended,
        });
        tokio::spawn(finish(Arc::clone(&instance), pumps, exit, on_end));
        Ok(instance)
    }

    /// Takes over what the supervisor kept for a former life of this service.
    ///
    /// # Errors
    /// When the kept descriptors are not what they should be.
    pub fn adopt_parts(
        survivor: Survivor,
        cgroup: Cgroup,
        exit: ExitWatch,
        booted_ms: u64,
    ) -> io::Result<Parts> {
        let Survivor { key, pid, started_ms, state, mut kept } = survivor;
        let gate = match (kept.remove(KEPT_GO), kept.remove(KEPT_REPORT)) {
            (Some(go), Some(report)) => Some(Gate::new(go, report).map_err(io::Error::other)?),
            (None, _) | (_, None) => None,
        };
        let missing = |what| io::Error::new(io::ErrorKind::InvalidData, format!("no {what} was kept"));
        let ring = Ring::open(kept.remove(KEPT_LOG).ok_or_else(|| missing("log"))?)?;
        let sealed = kept.remove(KEPT_PLAN).ok_or_else(|| missing("plan"))?;
        let plan = read_plan(sealed)?;
        let container = ContainerRef {
            id: wherry_protocol::ContainerId(key.id),
            generation: wherry_protocol::Generation(key.generation),
        };
        Ok(Parts {
            container,
            pid,
            pidfd: state.ok(),
            started_ms: booted_ms.saturating_add(started_ms),
            ring,
            // Whoever was attached has lost the stream with the service.
            attended: false,
            process: plan.process,
            root: plan.root,
            health: plan.health,
            image: plan.image,
            ids: None,
            gate,
            cgroup,
            ends: kept,
            exit,
        })
    }

    /// How it is, now and whenever that changes.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Changes how it is; those who watch are told if that makes a difference.
    pub fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.condition.send_if_modified(|condition| {
            let before = condition.clone();
            change(condition);
            *condition != before
        });
    }

    /// Starts the program of one that is asleep; for others it is nothing.
    ///
    /// # Errors
    /// Why it did not start. Its log says so too, because whoever wakes it may be gone.
    pub async fn wake(&self) -> Result<(), WireError> {
        let Some(gate) = self.gate.lock().await.take() else { return Ok(()) };
        let opened = gate.open().await;
        if let Err(error) = &opened {
            self.log.append(Channel::Stderr, pump::unix_ms(), format!("{error}\n").as_bytes());
        }
        self.change(|condition| condition.asleep = false);
        opened
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(ended) = *ended.borrow_and_update() {
                return ended;
            }
            if ended.changed().await.is_err() {
                // The sender lives as long as self: this cannot come to pass while somebody waits.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A copy of its pidfd, `None` if it has ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.pidfd.as_ref().filter(|_| self.ended().is_none()).and_then(|fd| fd.try_clone().ok())
    }

    /// Whether it has a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Its input.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The size of its terminal, if it has one.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let Some(terminal) = &self.terminal
            && let Err(error) =
                terminal::set_window_size(terminal.get().as_fd(), WindowSize { rows, columns })
        {
            tracing::debug!("a terminal was not resized: {error}");
        }
    }
}

async fn finish(
    instance: Arc<Instance>,
    pumps: Vec<JoinHandle<()>>,
    mut exit: ExitWatch,
    on_end: impl FnOnce(ContainerRef, Ended) + Send + 'static,
) {
    let Ok(raw) = exit.wait_for(Option::is_some).await.map(|status| *status) else { return };
    let mut drained = std::pin::pin!(async {
        for pump in pumps {
            pump.await.ok();
        }
    });
    // Whoever attends has a slow line, perhaps: then the last output is still on its way.
    for _ in 0..MOST_DRAINS {
        let in_time = tokio::time::timeout(DRAIN, &mut drained).await.is_ok();
        if in_time || !instance.log.is_attended() {
            break;
        }
    }
    let status = status(raw, instance.cgroup.out_of_memory());
    let ended = Ended { status, finished_ms: unix_ms() };
    instance.log.close();
    instance.ended.send_replace(Some(ended));
    on_end(instance.container, ended);
}

const SIGKILL: u8 = 9;

fn status(raw: Option<RawStatus>, out_of_memory: bool) -> ExitStatus {
    match raw {
        Some(RawStatus::Code(code)) => ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Some(RawStatus::Signal(signal)) => match u8::try_from(signal).unwrap_or(SIGKILL) {
            SIGKILL if out_of_memory => ExitStatus::OutOfMemory,
            signal => ExitStatus::Signal(signal),
        },
        None => ExitStatus::Signal(SIGKILL),
    }
}

/// What is asked of a container takes a process in it.
pub(super) fn not_running(container: ContainerRef) -> WireError {
    WireError::new(ErrorCode::WrongState, format!("container {} is not running", container.id))
}

/// What the node itself could not do for a container.
pub(super) fn unusable(error: io::Error) -> WireError {
    WireError::new(ErrorCode::Internal, format!("the node could not set the container up: {error}"))
}

/// Reads a sealed plan.
///
/// # Errors
/// When it is not one.
pub fn read_plan(sealed: OwnedFd) -> io::Result<Plan> {
    let bytes = wherry_sys::fd::read_sealed(sealed, plan::MAX_BYTES)
        .map_err(|error| io::Error::from(error.errno()))?;
    postcard::from_bytes(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_exactly() {
        assert_eq!(status(Some(RawStatus::Code(7)), false), ExitStatus::Code(7));
        assert_eq!(status(Some(RawStatus::Code(0)), true), ExitStatus::Code(0));
        assert_eq!(status(Some(RawStatus::Signal(15)), true), ExitStatus::Signal(15));
        assert_eq!(status(Some(RawStatus::Signal(9)), false), ExitStatus::Signal(9));
        assert_eq!(status(Some(RawStatus::Signal(9)), true), ExitStatus::OutOfMemory);
    }
}
