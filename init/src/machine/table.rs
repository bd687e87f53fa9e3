//! The launched processes and what is kept for them.
use super::{Action, Forbidden, Note, Phase, Supervisor};
use crate::control::{
    Descriptors, EntryState, FromSupervisor, Launch, LaunchStep, Namespaces, ProcessKey, RawStatus,
};
use nix::libc;

/// Most processes known at a time, running or not yet released. A board runs tens; the bound keeps a mad service from
/// taking PID 1's memory and descriptors (18 for each at most).
pub const MAX_PROCESSES: usize = 1024;

/// One process in one state, with exactly what is valid then.
#[derive(Debug)]
pub enum Process<D> {
    /// Being forked.
    Forking {
        /// When that was asked for.
        started_ms: u64,
        /// For the service's next incarnations.
        kept: Vec<(String, D)>,
        /// Its cgroup's directory.
        cgroup: Option<D>,
    },
    /// Exists, and has not yet reached its program.
    Starting {
        /// It.
        live: Live<D>,
        /// The incarnation of the service that asked: only that one is told about the start.
        asked_by: u64,
    },
    /// Runs.
    Running {
        /// It.
        live: Live<D>,
    },
    /// Ended; waits for its release.
    Exited {
        /// Its former process id.
        pid: i32,
        /// When it was launched.
        started_ms: u64,
        /// How it ended.
        status: RawStatus,
        /// For the service's next incarnations.
        kept: Vec<(String, D)>,
    },
}

/// What is known of a process that exists.
#[derive(Debug)]
pub struct Live<D> {
    /// Its process id.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: D,
    /// When it was launched, in milliseconds since boot.
    pub started_ms: u64,
    /// For the service's next incarnations.
    pub kept: Vec<(String, D)>,
    /// Its cgroup's directory.
    pub cgroup: Option<D>,
    /// Nobody wants to hear of it after its end.
    pub released: bool,
}

impl<D> Process<D> {
    pub(super) fn live(&self) -> Option<&Live<D>> {
        match self {
            Self::Starting { live, .. } | Self::Running { live } => Some(live),
            Self::Forking { .. } | Self::Exited { .. } => None,
        }
    }
}

impl<D: Clone> Supervisor<D> {
    pub(super) fn launch(
        &mut self,
        now: u64,
        launch: Launch,
        descriptors: Descriptors<D>,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        self.require_service("launch")?;
        let key = launch.key;
        if let Some((step, errno)) = self.refusal(key) {
            out.push(refuse(key, step, errno));
            return Ok(());
        }
        // A process that joins a container shares its cgroup: ending one must not end the other.
        let own = launch.namespaces.contains(Namespaces::PID);
        let (kept, cgroup) = (descriptors.kept.clone(), descriptors.cgroup.clone().filter(|_| own));
        self.processes.insert(key, Process::Forking { started_ms: now, kept, cgroup });
        out.push(Action::Fork { launch, descriptors });
        Ok(())
    }

    fn refusal(&self, key: ProcessKey) -> Option<(LaunchStep, i32)> {
        if self.phase != Phase::Up {
            return Some((LaunchStep::Table, libc::ESHUTDOWN));
        }
        if self.processes.contains_key(&key) {
            return Some((LaunchStep::Key, libc::EEXIST));
        }
        (self.processes.len() >= MAX_PROCESSES).then_some((LaunchStep::Table, libc::EAGAIN))
    }

    pub(super) fn bad_launch(&mut self, key: ProcessKey, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        self.require_service("malformed launch")?;
        out.push(refuse(key, LaunchStep::Request, libc::EINVAL));
        Ok(())
    }

    pub(super) fn forked(&mut self, key: ProcessKey, pid: i32, pidfd: D) -> Result<(), Forbidden> {
        let (started_ms, kept, cgroup) = self.take_forking(key, "forked")?;
        let live = Live { pid, pidfd, started_ms, kept, cgroup, released: false };
        self.processes.insert(key, Process::Starting { live, asked_by: self.incarnation });
        Ok(())
    }

    pub(super) fn fork_failed(
        &mut self,
        key: ProcessKey,
        errno: i32,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        self.take_forking(key, "fork failed")?;
        self.send(out, refuse(key, LaunchStep::Clone, errno));
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "the fields of Process::Forking, used right away")]
    fn take_forking(
        &mut self,
        key: ProcessKey,
        input: &'static str,
    ) -> Result<(u64, Vec<(String, D)>, Option<D>), Forbidden> {
        match self.processes.remove(&key) {
            Some(Process::Forking { started_ms, kept, cgroup }) => Ok((started_ms, kept, cgroup)),
            other => {
                self.put_back(key, other);
                Err(Forbidden { input, state: "the process is not being forked" })
            }
        }
    }

    pub(super) fn started(&mut self, key: ProcessKey, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        let (live, asked_by) = self.take_starting(key, "process started")?;
        if asked_by == self.incarnation {
            let message = FromSupervisor::Launched { key, pid: live.pid };
            self.send(out, Action::Send { message, attached: vec![live.pidfd.clone()] });
        }
        self.processes.insert(key, Process::Running { live });
        Ok(())
    }

    /// The service that asked is told that there is no such process. A later incarnation has it in its inventory, so for
    /// that one it ended, with the code that shells give to a program that cannot be run.
    pub(super) fn start_failed(
        &mut self,
        key: ProcessKey,
        step: LaunchStep,
        errno: i32,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        const CANNOT_RUN: RawStatus = RawStatus::Code(127);
        let (live, asked_by) = self.take_starting(key, "process not started")?;
        if asked_by == self.incarnation {
            self.send(out, refuse(key, step, errno));
        } else {
            self.record_end(key, live, CANNOT_RUN, out);
        }
        Ok(())
    }

    fn take_starting(&mut self, key: ProcessKey, input: &'static str) -> Result<(Live<D>, u64), Forbidden> {
        match self.processes.remove(&key) {
            Some(Process::Starting { live, asked_by }) => Ok((live, asked_by)),
            other => {
                self.put_back(key, other);
                Err(Forbidden { input, state: "the process is not starting" })
            }
        }
    }

    fn put_back(&mut self, key: ProcessKey, process: Option<Process<D>>) {
        if let Some(process) = process {
            self.processes.insert(key, process);
        }
    }

    pub(super) fn signal(
        &mut self,
        key: ProcessKey,
        signal: i32,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        self.require_service("signal")?;
        match self.processes.get(&key).and_then(Process::live) {
            Some(live) => out.push(Action::SignalProcess { pidfd: live.pidfd.clone(), signal }),
            None => out.push(Action::Note(Note::NoSuchProcess(key))),
        }
        Ok(())
    }

    pub(super) fn release(&mut self, key: ProcessKey, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        self.require_service("release")?;
        match self.processes.get_mut(&key) {
            Some(Process::Exited { .. }) => drop(self.processes.remove(&key)),
            Some(Process::Starting { live, .. } | Process::Running { live }) => {
                live.released = true;
                kill(live, out);
            }
            Some(Process::Forking { .. }) => {
                return Err(Forbidden { input: "release", state: "the process is being forked" });
            }
            None => out.push(Action::Note(Note::NoSuchProcess(key))),
        }
        Ok(())
    }

    /// Forgets one kept descriptor of a process, which closes it.
    pub(super) fn close_kept(
        &mut self,
        key: ProcessKey,
        label: &str,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        self.require_service("close-kept")?;
        let kept = match self.processes.get_mut(&key) {
            Some(Process::Starting { live, .. } | Process::Running { live }) => &mut live.kept,
            Some(Process::Forking { kept, .. } | Process::Exited { kept, .. }) => kept,
            None => {
                out.push(Action::Note(Note::NoSuchProcess(key)));
                return Ok(());
            }
        };
        kept.retain(|(name, _)| name != label);
        Ok(())
    }

    /// Somebody ended: the service, one of the processes, or an orphan that nobody knows.
    pub(super) fn ended(&mut self, now: u64, pid: i32, status: RawStatus, out: &mut Vec<Action<D>>) {
        if self.service_ended(now, pid, status, out) {
            return;
        }
        let is_it = |process: &Process<D>| process.live().is_some_and(|live| live.pid == pid);
        let Some(key) = self.processes.iter().find_map(|(key, process)| is_it(process).then_some(*key))
        else {
            return;
        };
        // The start pipe has been read before, unless its news were lost: then it did start.
        self.started(key, out).ok();
        match self.processes.remove(&key) {
            Some(Process::Running { live }) => self.record_end(key, live, status, out),
            other => self.put_back(key, other),
        }
    }

    fn record_end(&mut self, key: ProcessKey, live: Live<D>, status: RawStatus, out: &mut Vec<Action<D>>) {
        let message = FromSupervisor::Exited { key, status };
        self.send(out, Action::Send { message, attached: Vec::new() });
        if !live.released {
            let Live { pid, started_ms, kept, .. } = live;
            self.processes.insert(key, Process::Exited { pid, started_ms, status, kept });
        }
    }

    /// To a running service only: another learns it from its inventory.
    fn send(&self, out: &mut Vec<Action<D>>, action: Action<D>) {
        if self.require_service("send").is_ok() {
            out.push(action);
        }
    }

    pub(super) fn send_inventory(&self, out: &mut Vec<Action<D>>) {
        for (key, process) in &self.processes {
            out.extend(entry(*key, process));
        }
        out.push(Action::Send { message: FromSupervisor::InventoryEnd, attached: Vec::new() });
    }

    /// Signals every process that exists; returns how many.
    pub(super) fn signal_all(&self, signal: i32, out: &mut Vec<Action<D>>) -> usize {
        let live = || self.processes.values().filter_map(Process::live);
        out.extend(live().map(|live| Action::SignalProcess { pidfd: live.pidfd.clone(), signal }));
        live().count()
    }

    pub(super) fn kill_all(&self, out: &mut Vec<Action<D>>) {
        for live in self.processes.values().filter_map(Process::live) {
            kill(live, out);
        }
    }

    pub(super) fn live_count(&self) -> usize {
        self.processes.values().filter(|process| process.live().is_some()).count()
    }
}

fn kill<D: Clone>(live: &Live<D>, out: &mut Vec<Action<D>>) {
    out.push(Action::SignalProcess { pidfd: live.pidfd.clone(), signal: libc::SIGKILL });
    // What it has started goes with it.
    out.extend(live.cgroup.clone().map(Action::KillCgroup));
}

fn refuse<D>(key: ProcessKey, step: LaunchStep, errno: i32) -> Action<D> {
    Action::Send { message: FromSupervisor::LaunchFailed { key, errno, step }, attached: Vec::new() }
}

fn entry<D: Clone>(key: ProcessKey, process: &Process<D>) -> Option<Action<D>> {
    let (pid, started_ms, state, pidfd, kept) = match process {
        // It becomes Starting before any service can start: the reactor answers a fork at once.
        Process::Forking { .. } => return None,
        Process::Starting { live, .. } | Process::Running { live } => {
            (live.pid, live.started_ms, EntryState::Running, Some(live.pidfd.clone()), &live.kept)
        }
        Process::Exited { pid, started_ms, status, kept } => {
            (*pid, *started_ms, EntryState::Exited(*status), None, kept)
        }
    };
    let (labels, descriptors): (Vec<_>, Vec<_>) = kept.iter().cloned().unzip();
    let attached = pidfd.into_iter().chain(descriptors).collect();
    Some(Action::Send {
        message: FromSupervisor::Entry { key, pid, started_ms, state, kept: labels },
        attached,
    })
}
