//! The supervisor's decisions, pure: no clock, no descriptor, no system call. Time and events come in, actions go out,
//! and the reactor performs them. `D` stands for a descriptor; tests use numbers.
mod note;
mod service;
mod shutdown;
mod table;

pub use note::Note;
pub use service::Service;
pub use shutdown::Phase;
pub use table::{MAX_PROCESSES, Process};

use crate::control::{Descriptors, FromSupervisor, Launch, LaunchStep, Power, ProcessKey, RawStatus};
use std::collections::BTreeMap;

/// Every duration the supervisor decides by, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Pause before the first restart of a service that ended; doubled with each further failure. Short, because the
    /// containers go on without it but nobody can reach them.
    pub backoff_first_ms: u64,
    /// Longest pause: a service that cannot start must not wear out the console or the flash.
    pub backoff_most_ms: u64,
    /// A service that ran this long was healthy: its failures are forgotten.
    pub healthy_ms: u64,
    /// How long a new service may take to its first heartbeat; opening a large store after a power cut takes seconds.
    pub first_heartbeat_ms: u64,
    /// How long it may be silent afterwards before it is killed and restarted. Services send one every few seconds.
    pub heartbeat_ms: u64,
    /// How often the hardware watchdog is fed; drivers commonly have 10 s and more.
    pub watchdog_feed_ms: u64,
    /// Without any heartbeat for so long the watchdog is not fed any more: restarting the service did not help, a reset
    /// may.
    pub watchdog_patience_ms: u64,
    /// At shutdown, between TERM and KILL for containers. Ten seconds is what `docker stop` gives.
    pub containers_stop_ms: u64,
    /// The same for the service.
    pub service_stop_ms: u64,
    /// After KILL, how long ends are awaited; a process stuck in the kernel must not stop the shutdown.
    pub kill_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_first_ms: 100,
            backoff_most_ms: 30_000,
            healthy_ms: 60_000,
            first_heartbeat_ms: 60_000,
            heartbeat_ms: 30_000,
            watchdog_feed_ms: 4_000,
            watchdog_patience_ms: 600_000,
            containers_stop_ms: 10_000,
            service_stop_ms: 5_000,
            kill_ms: 2_000,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<D> {
    /// The file systems are mounted: begin.
    Boot,
    /// Answer to [`Action::StartService`].
    ServiceStarted {
        /// Its process id.
        pid: i32,
    },
    /// The other answer to [`Action::StartService`].
    ServiceNotStarted,
    /// The service does not read what it is sent: the queue for it is full.
    ServiceDeaf,
    /// The service asks for a process; the request is checked and complete.
    Launch {
        /// The request.
        launch: Launch,
        /// Its descriptors.
        descriptors: Descriptors<D>,
    },
    /// The service asked for a process in a malformed way.
    BadLaunch(ProcessKey),
    /// The service asks for a signal.
    Signal {
        /// To which process.
        key: ProcessKey,
        /// Which.
        signal: i32,
    },
    /// The service wants a process forgotten.
    Release(ProcessKey),
    /// See [`crate::control::ToSupervisor::CloseKept`].
    CloseKept {
        /// Which process.
        key: ProcessKey,
        /// Which of its descriptors.
        label: String,
    },
    /// Heartbeat of the service.
    Alive,
    /// The service, a signal from outside or ctrl-alt-del asks to shut down.
    Power(Power),
    /// Answer to [`Action::Fork`].
    Forked {
        /// Which process.
        key: ProcessKey,
        /// Its process id.
        pid: i32,
        /// Its pidfd.
        pidfd: D,
    },
    /// The other answer to [`Action::Fork`].
    ForkFailed {
        /// Which process.
        key: ProcessKey,
        /// Of clone3.
        errno: i32,
    },
    /// A forked process runs its program.
    Started(ProcessKey),
    /// A forked process could not run its program.
    StartFailed {
        /// Which process.
        key: ProcessKey,
        /// What failed in it.
        step: LaunchStep,
        /// Why.
        errno: i32,
    },
    /// A child, of whatever origin, has been reaped.
    Ended {
        /// Its former process id.
        pid: i32,
        /// How it ended.
        status: RawStatus,
    },
    /// Time has passed.
    Tick,
}

/// What to do about it, in order.
#[derive(Debug)]
pub enum Action<D> {
    /// Start the service with a fresh control socket.
    StartService,
    /// Send the service a signal.
    SignalService(i32),
    /// Fork a process.
    Fork {
        /// The request.
        launch: Launch,
        /// What becomes the child's, and its cgroup. The kept ones stay here.
        descriptors: Descriptors<D>,
    },
    /// Send a signal to a process.
    SignalProcess {
        /// Its pidfd.
        pidfd: D,
        /// Signal number.
        signal: i32,
    },
    /// Kill everything in a cgroup (cgroup.kill).
    KillCgroup(D),
    /// Kill whatever else descends from here.
    KillEverything,
    /// Tell the service.
    Send {
        /// What.
        message: FromSupervisor,
        /// With it.
        attached: Vec<D>,
    },
    /// Feed the hardware watchdog, if there is one.
    FeedWatchdog,
    /// Unmount, sync and end the machine (or this process, where that is all it is). Always the last.
    Finish(Power),
    /// Tell people.
    Note(Note),
}

/// An input that makes no sense in the present state. The state is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{input} ignored: {state}")]
pub struct Forbidden {
    /// What came.
    pub input: &'static str,
    /// Why it is out of place.
    pub state: &'static str,
}

/// The supervisor's state.
#[derive(Debug)]
pub struct Supervisor<D> {
    timing: Timing,
    phase: Phase,
    service: Service,
    /// Counts the incarnations of the service.
    incarnation: u64,
    /// Last heartbeat of any incarnation.
    heard_at: u64,
    feed_at: u64,
    processes: BTreeMap<ProcessKey, Process<D>>,
}

impl<D: Clone> Supervisor<D> {
    /// Before anything has happened; `now` is in milliseconds since boot, as everywhere here.
    #[must_use]
    pub fn new(timing: Timing, now: u64) -> Self {
        Self {
            timing,
            phase: Phase::Up,
            service: Service::Unborn,
            incarnation: 0,
            heard_at: now,
            feed_at: now,
            processes: BTreeMap::new(),
        }
    }

    /// Takes one input and appends what follows from it.
    ///
    /// # Errors
    /// [`Forbidden`] if the input is out of place; nothing has changed then.
    pub fn handle(&mut self, now: u64, input: Input<D>, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        match input {
            Input::Boot => self.boot(out),
            Input::ServiceStarted { pid } => self.service_started(now, pid, out),
            Input::ServiceNotStarted => self.service_not_started(now, out),
            Input::ServiceDeaf => self.service_deaf(out),
            Input::Launch { launch, descriptors } => self.launch(now, launch, descriptors, out),
            Input::BadLaunch(key) => self.bad_launch(key, out),
            Input::Signal { key, signal } => self.signal(key, signal, out),
            Input::Release(key) => self.release(key, out),
            Input::CloseKept { key, label } => self.close_kept(key, &label, out),
            Input::Alive => self.alive(now),
            Input::Power(power) => self.power(now, power, out),
            Input::Forked { key, pid, pidfd } => self.forked(key, pid, pidfd),
            Input::ForkFailed { key, errno } => self.fork_failed(key, errno, out),
            Input::Started(key) => self.started(key, out),
            Input::StartFailed { key, step, errno } => self.start_failed(key, step, errno, out),
            Input::Ended { pid, status } => {
                self.ended(now, pid, status, out);
                Ok(())
            }
            Input::Tick => Ok(()),
        }?;
        self.tick(now, out);
        Ok(())
    }

    /// When [`Input::Tick`] is due at the latest.
    #[must_use]
    pub fn poll_at(&self) -> Option<u64> {
        let service = match self.phase {
            Phase::Up => self.service_due(),
            Phase::Containers { until, .. } | Phase::Service { until, .. } | Phase::Killing { until, .. } => {
                Some(until)
            }
            Phase::Down => return None,
        };
        [service, self.feed_due()].into_iter().flatten().min()
    }

    /// The service's state, for reports and tests.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// How far a shutdown has come.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The processes it knows.
    #[must_use]
    pub fn processes(&self) -> &BTreeMap<ProcessKey, Process<D>> {
        &self.processes
    }

    fn tick(&mut self, now: u64, out: &mut Vec<Action<D>>) {
        match self.phase {
            Phase::Up => self.tick_service(now, out),
            Phase::Containers { .. } | Phase::Service { .. } | Phase::Killing { .. } => {
                self.go_down(now, out)
            }
            Phase::Down => {}
        }
        if self.feed_due().is_some_and(|due| due <= now) {
            self.feed_at = now.saturating_add(self.timing.watchdog_feed_ms);
            if self.deserves_feeding(now) {
                out.push(Action::FeedWatchdog);
            }
        }
    }

    fn feed_due(&self) -> Option<u64> {
        match self.service {
            Service::Unborn => None,
            Service::Starting { .. }
            | Service::Running { .. }
            | Service::Ending { .. }
            | Service::Backoff { .. }
            | Service::Stopped => (!matches!(self.phase, Phase::Down)).then_some(self.feed_at),
        }
    }

    /// A shutdown has deadlines of its own; until then somebody must have been heard in a while.
    fn deserves_feeding(&self, now: u64) -> bool {
        let silent = now.saturating_sub(self.heard_at);
        !matches!(self.phase, Phase::Up) || silent <= self.timing.watchdog_patience_ms
    }
}

#[cfg(test)]
mod tests;
