//! What the node decides, and nothing else: the broker's wishes and the runtime's events go in, orders and reports
//! come out. No clock, no socket, no container is touched here.
use crate::net::LocalContainer;
use std::collections::BTreeMap;
use wherry_protocol::message::{
    Condition, ContainerDesired, ContainerReport, ContainerState, ExitStatus, FromNode, NetworkDesired,
    NodeDesired, ToNode, Want, WireguardKeys,
};
use wherry_protocol::{ContainerId, ContainerRef, NodeIndex, Overlay, WireError};

/// SIGKILL (signal(7)); the only signal that the state decides on by itself.
const SIGKILL: u8 = 9;

/// First pause before a container is started again, in milliseconds; it doubles with each end that comes soon, up to the
/// longest. As docker does it.
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 60_000;
/// A container that ran so long did not end soon after its start, in milliseconds.
const LONG_LIFE_MS: u64 = 10_000;
/// Told of a container that could not be started again: what docker exits with when it fails.
const START_FAILED: ExitStatus = ExitStatus::Code(125);

fn pause_ms(quick_ends: u32) -> u64 {
    // 2^10 of the first pause is beyond the longest.
    (FIRST_PAUSE_MS << quick_ends.saturating_sub(1).min(10)).min(LONGEST_PAUSE_MS)
}

/// Milliseconds of a monotonic clock.
pub type MonoMs = u64;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The broker said so.
    Broker(ToNode),
    /// A container of a previous life of this service, found with the supervisor.
    Adopted(ContainerReport),
    /// A container's process runs.
    Started {
        /// Which.
        container: ContainerRef,
        /// Its process id.
        pid: u32,
        /// When, Unix milliseconds.
        started_ms: u64,
    },
    /// A container could not be started; nothing of the attempt is running.
    StartFailed {
        /// Which.
        container: ContainerRef,
        /// Why.
        error: WireError,
    },
    /// A container's process ended.
    Exited {
        /// Which.
        container: ContainerRef,
        /// How.
        status: ExitStatus,
        /// When, Unix milliseconds.
        finished_ms: u64,
    },
    /// A container that runs is otherwise than before.
    Condition {
        /// Which.
        container: ContainerRef,
        /// How it is.
        condition: Condition,
    },
    /// Nothing is left of a container.
    Removed(ContainerRef),
    /// The network of this revision is in place, or could not be.
    NetworkApplied {
        /// Which revision.
        revision: u64,
        /// Why not.
        error: Option<String>,
    },
    /// The board's WireGuard keys are these now.
    Rekeyed(WireguardKeys),
    /// Time went by; see [`State::poll_at`].
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// This board's number is known (or has changed): addresses follow from it.
    Join(NodeIndex, Overlay),
    /// Fetch what is missing, then start this container.
    Start(Box<ContainerDesired>),
    /// Send a signal to a container's first process.
    Signal {
        /// Which.
        container: ContainerRef,
        /// Signal number.
        signal: u8,
    },
    /// Start the program of a container that is asleep.
    Wake(ContainerRef),
    /// Delete every trace of a container whose process is not running.
    Remove(ContainerRef),
    /// Make the network so.
    ApplyNetwork {
        /// Peers and connections.
        network: NetworkDesired,
        /// The containers that belong here.
        containers: Vec<LocalContainer>,
    },
    /// A new key for this WireGuard device.
    Rekey(u8),
    /// Send through this one.
    Plane(u8),
    /// Tell the broker, if it is there.
    Report(FromNode),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Known from the broker, never started here in this generation.
    Idle,
    Preparing,
    Running {
        pid: u32,
        started_ms: u64,
        /// By our own clock.
        since: MonoMs,
        ending: Ending,
    },
    /// Ended by itself, and about to start again.
    Waiting {
        status: ExitStatus,
        finished_ms: u64,
        until: MonoMs,
    },
    Ended(ContainerState),
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody asked it to end.
    No,
    /// It got its stop signal; SIGKILL follows then.
    Asked { kill_at: MonoMs },
    /// SIGKILL was sent.
    Killed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    /// Found running after a restart of the service; the broker has not said yet what it wants with it.
    Unknown,
    Keep(Box<ContainerDesired>),
    /// This generation ends, then this newer one starts.
    Replace(Box<ContainerDesired>),
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    container: ContainerRef,
    wish: Wish,
    phase: Phase,
    /// How often it was started again in this generation.
    restarts: u32,
    /// How often in a row it ended soon after its start.
    quick_ends: u32,
    /// When it last ended, Unix milliseconds.
    ended_ms: u64,
    /// How it is while it runs.
    condition: Condition,
    /// It was asleep and is being woken.
    waking: bool,
}

/// The node's memory.
#[derive(Debug, Default)]
pub struct State {
    place: Option<(NodeIndex, Overlay)>,
    containers: BTreeMap<ContainerId, Entry>,
    /// The WireGuard device that packets go through.
    plane: u8,
}

impl State {
    /// Takes one input, adds what is to be done to `out`.
    pub fn handle(&mut self, now: MonoMs, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Broker(message) => self.broker(now, message, out),
            Input::Adopted(report) => self.adopt(report),
            Input::Started { container, pid, started_ms } => {
                let phase = Phase::Running { pid, started_ms, since: now, ending: Ending::No };
                self.advance(now, container, phase, out);
                out.extend(self.entry(container).and_then(|entry| entry.unusual()).map(Output::Report));
            }
            Input::Condition { container, condition } => self.condition(now, container, condition, out),
            Input::StartFailed { container, error } => {
                self.advance(now, container, Phase::Ended(ContainerState::Failed(error)), out);
            }
            Input::Exited { container, status, finished_ms } => {
                let state = ContainerState::Exited { status, finished_ms };
                self.advance(now, container, Phase::Ended(state), out);
            }
            Input::Removed(container) => {
                if self.entry(container).is_some() {
                    self.containers.remove(&container.id);
                    out.push(Output::Report(FromNode::Removed(container)));
                }
            }
            Input::NetworkApplied { revision, error } => {
                out.push(Output::Report(FromNode::Network { revision, error }));
            }
            Input::Rekeyed(keys) => out.push(Output::Report(FromNode::Keys(keys))),
            Input::Tick => {
                for entry in self.containers.values_mut() {
                    settle(now, entry, out);
                }
            }
        }
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn poll_at(&self) -> Option<MonoMs> {
        self.containers.values().filter_map(Entry::due_at).min()
    }

    /// What the broker is told when a session begins.
    #[must_use]
    pub fn inventory(&self) -> Vec<ContainerReport> {
        self.containers.values().filter_map(Entry::report).collect()
    }

    /// What the broker is told besides when a session begins: containers that are not as usual.
    #[must_use]
    pub fn conditions(&self) -> Vec<FromNode> {
        self.containers.values().filter_map(Entry::unusual).collect()
    }

    /// The desired form of a container that runs in this generation: what exec and friends need.
    #[must_use]
    pub fn running(&self, container: ContainerRef) -> bool {
        self.containers
            .get(&container.id)
            .is_some_and(|entry| entry.container == container && matches!(entry.phase, Phase::Running { .. }))
    }

    fn entry(&mut self, container: ContainerRef) -> Option<&mut Entry> {
        self.containers.get_mut(&container.id).filter(|entry| entry.container == container)
    }

    fn adopt(&mut self, report: ContainerReport) {
        let phase = match report.state {
            ContainerState::Running { pid, started_ms } => {
                Phase::Running { pid, started_ms, since: 0, ending: Ending::No }
            }
            ended @ (ContainerState::Exited { .. } | ContainerState::Failed(_)) => Phase::Ended(ended),
            ContainerState::Pending | ContainerState::Preparing | ContainerState::Restarting { .. } => {
                Phase::Idle
            }
        };
        let container = report.container;
        let entry = Entry { phase, restarts: report.restarts, ..Entry::new(container) };
        self.containers.insert(container.id, entry);
    }

    /// It may come before the news that the container runs.
    fn condition(
        &mut self,
        now: MonoMs,
        container: ContainerRef,
        condition: Condition,
        out: &mut Vec<Output>,
    ) {
        let Some(entry) = self.entry(container) else { return };
        match entry.phase {
            Phase::Preparing | Phase::Running { .. } => entry.condition = condition.clone(),
            Phase::Idle | Phase::Waiting { .. } | Phase::Ended(_) | Phase::Removing => return,
        }
        if matches!(entry.phase, Phase::Running { .. }) {
            out.push(Output::Report(FromNode::Condition { container, condition }));
            settle(now, entry, out);
        }
    }

    /// A fact about the process of `container`; facts about earlier generations are late and change nothing.
    fn advance(&mut self, now: MonoMs, container: ContainerRef, phase: Phase, out: &mut Vec<Output>) {
        let Some(entry) = self.entry(container) else { return };
        let soon = match entry.phase {
            Phase::Running { since, .. } => Some(now.saturating_sub(since) < LONG_LIFE_MS),
            Phase::Preparing => matches!(phase, Phase::Ended(_)).then_some(true),
            Phase::Idle | Phase::Waiting { .. } | Phase::Ended(_) | Phase::Removing => None,
        };
        entry.quick_ends = match soon {
            Some(true) => entry.quick_ends.saturating_add(1),
            Some(false) => 0,
            None => entry.quick_ends,
        };
        if !matches!(phase, Phase::Running { .. }) {
            entry.condition = Condition::default();
            entry.waking = false;
        }
        entry.phase = phase;
        entry.consider_restart(now);
        entry.report_to(out);
        settle(now, entry, out);
    }

    fn broker(&mut self, now: MonoMs, message: ToNode, out: &mut Vec<Output>) {
        match message {
            ToNode::Sync(desired) => self.sync(now, desired, out),
            ToNode::Container(desired) => self.desire(now, *desired, out),
            ToNode::Remove(id) => match self.containers.get_mut(&id) {
                Some(entry) => {
                    entry.wish = Wish::Remove;
                    settle(now, entry, out);
                }
                // It is what the broker waits for: nothing is left.
                None => out.push(Output::Report(FromNode::Removed(gone(id)))),
            },
            ToNode::Network(network) => out.push(self.apply_network(network)),
            ToNode::Rekey(plane) => out.push(Output::Rekey(plane)),
            ToNode::Plane(plane) => self.choose_plane(plane, out),
        }
    }

    fn sync(&mut self, now: MonoMs, desired: NodeDesired, out: &mut Vec<Output>) {
        let place = (desired.index, desired.overlay);
        if self.place != Some(place) {
            self.place = Some(place);
            out.push(Output::Join(desired.index, desired.overlay));
        }
        let network = desired.network;
        let wanted: BTreeMap<ContainerId, ContainerDesired> =
            desired.containers.into_iter().map(|container| (container.container.id, container)).collect();
        for entry in self.containers.values_mut().filter(|entry| !wanted.contains_key(&entry.container.id)) {
            entry.wish = Wish::Remove;
            settle(now, entry, out);
        }
        for container in wanted.into_values() {
            self.desire(now, container, out);
        }
        self.choose_plane(desired.plane, out);
        out.push(self.apply_network(network));
    }

    fn choose_plane(&mut self, plane: u8, out: &mut Vec<Output>) {
        if std::mem::replace(&mut self.plane, plane) != plane {
            out.push(Output::Plane(plane));
        }
    }

    fn apply_network(&self, network: NetworkDesired) -> Output {
        let local = |entry: &Entry| match &entry.wish {
            Wish::Keep(desired) | Wish::Replace(desired) => Some(LocalContainer::of(desired)),
            Wish::Unknown | Wish::Remove => None,
        };
        Output::ApplyNetwork { network, containers: self.containers.values().filter_map(local).collect() }
    }

    fn desire(&mut self, now: MonoMs, desired: ContainerDesired, out: &mut Vec<Output>) {
        let container = desired.container;
        let entry = self.containers.entry(container.id).or_insert_with(|| Entry::new(container));
        if matches!(entry.wish, Wish::Remove) || container.generation < entry.container.generation {
            return;
        }
        entry.wish = if container.generation > entry.container.generation {
            Wish::Replace(Box::new(desired))
        } else {
            // A service that has just started learns how often its containers were restarted, and may say so now.
            let learnt = desired.restarts > entry.restarts;
            entry.restarts = entry.restarts.max(desired.restarts);
            entry.wish = Wish::Keep(Box::new(desired));
            if entry.consider_restart(now) || learnt {
                entry.report_to(out);
            }
            return settle(now, entry, out);
        };
        settle(now, entry, out);
    }
}

/// The broker asked to remove a container that is not here; the generation says "whichever".
fn gone(id: ContainerId) -> ContainerRef {
    ContainerRef { id, generation: wherry_protocol::Generation(0) }
}

impl Entry {
    fn new(container: ContainerRef) -> Self {
        Self {
            container,
            wish: Wish::Unknown,
            phase: Phase::Idle,
            restarts: 0,
            quick_ends: 0,
            ended_ms: 0,
            condition: Condition::default(),
            waking: false,
        }
    }

    /// What has ended by itself and should start again does not end, it waits. Whether that is so.
    fn consider_restart(&mut self, now: MonoMs) -> bool {
        let Wish::Keep(desired) = &self.wish else { return false };
        let (status, finished_ms) = match &self.phase {
            Phase::Ended(ContainerState::Exited { status, finished_ms }) => (*status, *finished_ms),
            // It has run before: what keeps it from starting now (a full disk, say) may pass.
            Phase::Ended(ContainerState::Failed(_)) if self.restarts > 0 => (START_FAILED, self.ended_ms),
            Phase::Ended(_) | Phase::Idle | Phase::Preparing | Phase::Running { .. } | Phase::Removing => {
                return false;
            }
            Phase::Waiting { .. } => return false,
        };
        let again = desired.want == Want::Running && desired.spec.restart().applies(status, self.restarts);
        if again {
            self.ended_ms = finished_ms;
            let until = now.saturating_add(pause_ms(self.quick_ends));
            self.phase = Phase::Waiting { status, finished_ms, until };
        }
        again
    }

    fn due_at(&self) -> Option<MonoMs> {
        match self.phase {
            Phase::Running { ending: Ending::Asked { kill_at }, .. } => Some(kill_at),
            Phase::Waiting { until, .. } => Some(until),
            Phase::Running { ending: Ending::No | Ending::Killed, .. }
            | Phase::Idle
            | Phase::Preparing
            | Phase::Ended(_)
            | Phase::Removing => None,
        }
    }

    fn state(&self) -> Option<ContainerState> {
        match &self.phase {
            Phase::Idle | Phase::Removing => None,
            Phase::Preparing => Some(ContainerState::Preparing),
            Phase::Running { pid, started_ms, .. } => {
                Some(ContainerState::Running { pid: *pid, started_ms: *started_ms })
            }
            Phase::Waiting { status, finished_ms, .. } => {
                Some(ContainerState::Restarting { status: *status, finished_ms: *finished_ms })
            }
            Phase::Ended(state) => Some(state.clone()),
        }
    }

    fn report(&self) -> Option<ContainerReport> {
        let restarts = self.restarts;
        self.state().map(|state| ContainerReport { container: self.container, state, restarts })
    }

    /// What is to be said of it beyond its state.
    fn unusual(&self) -> Option<FromNode> {
        let (container, condition) = (self.container, self.condition.clone());
        let told = matches!(self.phase, Phase::Running { .. }) && condition != Condition::default();
        told.then_some(FromNode::Condition { container, condition })
    }

    fn report_to(&self, out: &mut Vec<Output>) {
        out.extend(self.report().map(|report| Output::Report(FromNode::Container(report))));
    }

    fn prepare(&mut self, desired: &ContainerDesired, out: &mut Vec<Output>) {
        self.container = desired.container;
        self.phase = Phase::Preparing;
        self.report_to(out);
        out.push(Output::Start(Box::new(desired.clone())));
    }
}

/// The one place that compares what is with what should be.
fn settle(now: MonoMs, entry: &mut Entry, out: &mut Vec<Output>) {
    match entry.wish.clone() {
        Wish::Unknown => {}
        Wish::Keep(desired) => settle_kept(now, entry, &desired, out),
        Wish::Replace(desired) => match entry.phase {
            Phase::Running { .. } => kill(entry, out),
            Phase::Idle | Phase::Waiting { .. } | Phase::Ended(_) => {
                *entry = Entry::new(desired.container);
                entry.wish = Wish::Keep(desired.clone());
                settle_kept(now, entry, &desired, out);
            }
            Phase::Preparing | Phase::Removing => {}
        },
        Wish::Remove => match entry.phase {
            Phase::Running { .. } => kill(entry, out),
            Phase::Idle | Phase::Waiting { .. } | Phase::Ended(_) => {
                entry.phase = Phase::Removing;
                out.push(Output::Remove(entry.container));
            }
            Phase::Preparing | Phase::Removing => {}
        },
    }
}

fn settle_kept(now: MonoMs, entry: &mut Entry, desired: &ContainerDesired, out: &mut Vec<Output>) {
    let container = entry.container;
    match (desired.want, &mut entry.phase) {
        (Want::Running, Phase::Idle) => entry.prepare(desired, out),
        (Want::Stopped { signal, grace_seconds }, Phase::Running { ending, .. }) => match *ending {
            Ending::No => {
                *ending = Ending::Asked { kill_at: now.saturating_add(u64::from(grace_seconds) * 1000) };
                out.push(Output::Signal { container, signal });
            }
            Ending::Asked { kill_at } if now >= kill_at => kill(entry, out),
            Ending::Asked { .. } | Ending::Killed => {}
        },
        (Want::Running, &mut Phase::Waiting { until, .. }) => {
            if now >= until {
                entry.restarts = entry.restarts.saturating_add(1);
                entry.prepare(desired, out);
            }
        }
        (Want::Stopped { .. }, &mut Phase::Waiting { status, finished_ms, .. }) => {
            entry.phase = Phase::Ended(ContainerState::Exited { status, finished_ms });
            entry.report_to(out);
        }
        (Want::Running, Phase::Running { ending: Ending::No, .. }) => {
            if entry.condition.asleep && !desired.spec.is_asleep() && !entry.waking {
                entry.waking = true;
                out.push(Output::Wake(container));
            }
        }
        // One start per generation: what has ended stays ended until the broker asks for a new life.
        (Want::Running, Phase::Preparing | Phase::Running { .. } | Phase::Ended(_) | Phase::Removing)
        | (Want::Stopped { .. }, Phase::Idle | Phase::Preparing | Phase::Ended(_) | Phase::Removing) => {}
    }
}

fn kill(entry: &mut Entry, out: &mut Vec<Output>) {
    if let Phase::Running { ending, .. } = &mut entry.phase
        && *ending != Ending::Killed
    {
        *ending = Ending::Killed;
        out.push(Output::Signal { container: entry.container, signal: SIGKILL });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wherry_protocol::message::{ContainerSpec, Descriptor, ImageManifest, Media, RestartPolicy, Setting};
    use wherry_protocol::{AccountId, Digest, ErrorCode, Generation};

    fn reference(id: u64, generation: u32) -> ContainerRef {
        ContainerRef { id: ContainerId(id), generation: Generation(generation) }
    }

    fn desired(id: u64, generation: u32, want: Want) -> ContainerDesired {
        ContainerDesired {
            container: reference(id, generation),
            account: AccountId(1),
            name: "web".parse().unwrap(),
            spec: ContainerSpec::default(),
            image: ImageManifest {
                config: Descriptor { digest: Digest([0; 32]), size: 1, media: Media::Config },
                layers: Vec::new(),
            },
            address: std::net::Ipv4Addr::new(10, 1, 0, 2),
            want,
            restarts: 0,
            clean_since: Generation(0),
        }
    }

    fn restarting(policy: RestartPolicy, want: Want) -> ContainerDesired {
        let settings = vec![Setting::Restart(policy)];
        ContainerDesired {
            spec: ContainerSpec { settings, ..ContainerSpec::default() },
            ..desired(1, 1, want)
        }
    }

    fn ended(code: u8) -> Input {
        Input::Exited { container: reference(1, 1), status: ExitStatus::Code(code), finished_ms: 2 }
    }

    fn reported(out: &[Output]) -> Vec<(ContainerState, u32)> {
        out.iter()
            .filter_map(|output| match output {
                Output::Report(FromNode::Container(report)) => Some((report.state.clone(), report.restarts)),
                _ => None,
            })
            .collect()
    }

    fn starts(out: &[Output]) -> bool {
        out.iter().any(|output| matches!(output, Output::Start(_)))
    }

    fn waits(code: u8) -> ContainerState {
        ContainerState::Restarting { status: ExitStatus::Code(code), finished_ms: 2 }
    }

    fn gone_for_good(code: u8) -> ContainerState {
        ContainerState::Exited { status: ExitStatus::Code(code), finished_ms: 2 }
    }

    #[test]
    fn what_should_always_run_is_started_again_after_a_growing_pause() {
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
        let mut now = 0;
        for (restarts, pause) in (0..).zip([100, 200, 400, 800]) {
            step(&mut state, now, started(1, 1));
            assert_eq!(reported(&step(&mut state, now, ended(0))), [(waits(0), restarts)]);
            assert_eq!(state.poll_at(), Some(now + pause));
            assert!(!starts(&step(&mut state, now + pause - 1, Input::Tick)));
            now += pause;
            let out = step(&mut state, now, Input::Tick);
            assert!(starts(&out));
            assert_eq!(reported(&out), [(ContainerState::Preparing, restarts + 1)]);
        }
        // A long life makes the next pause short again.
        step(&mut state, now, started(1, 1));
        step(&mut state, now + LONG_LIFE_MS, ended(0));
        assert_eq!(state.poll_at(), Some(now + LONG_LIFE_MS + FIRST_PAUSE_MS));
        assert!((0..100).all(|ends| (FIRST_PAUSE_MS..=LONGEST_PAUSE_MS).contains(&pause_ms(ends))));
    }

    #[test]
    fn only_failures_count_where_only_failures_should() {
        let policy = RestartPolicy::OnFailure { most: Some(1) };
        let mut state = State::default();
        step(&mut state, 0, put(restarting(policy, Want::Running)));
        step(&mut state, 0, started(1, 1));
        assert_eq!(reported(&step(&mut state, 0, ended(1))), [(waits(1), 0)]);
        assert!(starts(&step(&mut state, 1000, Input::Tick)));
        step(&mut state, 1000, started(1, 1));
        assert_eq!(reported(&step(&mut state, 1000, ended(1))), [(gone_for_good(1), 1)], "once is enough");
        assert_eq!(state.poll_at(), None);
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::OnFailure { most: None }, Want::Running)));
        step(&mut state, 0, started(1, 1));
        assert_eq!(reported(&step(&mut state, 0, ended(0))), [(gone_for_good(0), 0)], "that was no failure");
    }

    #[test]
    fn what_somebody_stopped_stays_stopped() {
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
        step(&mut state, 0, started(1, 1));
        step(&mut state, 0, put(restarting(RestartPolicy::Always, STOP)));
        assert_eq!(reported(&step(&mut state, 0, ended(0))), [(gone_for_good(0), 0)]);
        // Also in the pause between two lives.
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
        step(&mut state, 0, started(1, 1));
        step(&mut state, 0, ended(3));
        let out = step(&mut state, 0, put(restarting(RestartPolicy::Always, STOP)));
        assert_eq!(reported(&out), [(gone_for_good(3), 0)]);
        assert_eq!(state.poll_at(), None);
    }

    #[test]
    fn a_restart_that_fails_is_tried_again_and_a_start_that_fails_is_not() {
        let failed = || Input::StartFailed {
            container: reference(1, 1),
            error: WireError::new(ErrorCode::DiskFull, "full"),
        };
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
        assert!(matches!(
            reported(&step(&mut state, 0, failed())).as_slice(),
            [(ContainerState::Failed(_), 0)]
        ));
        assert_eq!(state.poll_at(), None);
        let mut state = State::default();
        step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
        step(&mut state, 0, started(1, 1));
        step(&mut state, 0, ended(0));
        assert!(starts(&step(&mut state, 1000, Input::Tick)));
        let out = step(&mut state, 1000, failed());
        assert!(matches!(reported(&out).as_slice(), [(ContainerState::Restarting { .. }, 1)]));
        // Ever more rarely.
        let mut now = 1000;
        for pause in [200, 400, 800] {
            assert_eq!(state.poll_at(), Some(now + pause));
            now += pause;
            assert!(starts(&step(&mut state, now, Input::Tick)));
            step(&mut state, now, failed());
        }
    }

    #[test]
    fn a_new_service_goes_on_counting_and_restarts_what_ended_meanwhile() {
        let mut state = State::default();
        let report = ContainerReport { container: reference(1, 1), state: gone_for_good(1), restarts: 0 };
        step(&mut state, 0, Input::Adopted(report));
        let known = ContainerDesired { restarts: 7, ..restarting(RestartPolicy::Always, Want::Running) };
        let out = step(&mut state, 0, sync(vec![known]));
        assert_eq!(reported(&out), [(waits(1), 7)]);
        let out = step(&mut state, 1000, Input::Tick);
        assert!(starts(&out));
        assert_eq!(reported(&out), [(ContainerState::Preparing, 8)]);
    }

    #[test]
    fn a_pause_ends_with_removal_or_a_new_life() {
        let waiting = || {
            let mut state = State::default();
            step(&mut state, 0, put(restarting(RestartPolicy::Always, Want::Running)));
            step(&mut state, 0, started(1, 1));
            step(&mut state, 0, ended(0));
            state
        };
        let out = step(&mut waiting(), 0, Input::Broker(ToNode::Remove(ContainerId(1))));
        assert_eq!(out, [Output::Remove(reference(1, 1))]);
        let out = step(&mut waiting(), 0, put(desired(1, 2, Want::Running)));
        assert!(matches!(out.last(), Some(Output::Start(start)) if start.container == reference(1, 2)));
        assert_eq!(reported(&out), [(ContainerState::Preparing, 0)]);
    }

    fn sync(containers: Vec<ContainerDesired>) -> Input {
        Input::Broker(ToNode::Sync(NodeDesired {
            index: NodeIndex(1),
            overlay: Overlay::default(),
            containers,
            network: NetworkDesired::default(),
            plane: 0,
        }))
    }

    fn put(container: ContainerDesired) -> Input {
        Input::Broker(ToNode::Container(Box::new(container)))
    }

    fn step(state: &mut State, now: MonoMs, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        state.handle(now, input, &mut out);
        out
    }

    fn started(id: u64, generation: u32) -> Input {
        Input::Started { container: reference(id, generation), pid: 42, started_ms: 1 }
    }

    fn exited(id: u64, generation: u32) -> Input {
        Input::Exited { container: reference(id, generation), status: ExitStatus::Code(0), finished_ms: 2 }
    }

    const STOP: Want = Want::Stopped { signal: 15, grace_seconds: 10 };

    #[test]
    fn a_container_is_started_once_per_generation() {
        let mut state = State::default();
        let out = step(&mut state, 0, put(desired(1, 1, Want::Running)));
        assert!(matches!(out.as_slice(), [Output::Report(_), Output::Start(_)]));
        step(&mut state, 0, started(1, 1));
        step(&mut state, 0, exited(1, 1));
        assert_eq!(step(&mut state, 0, put(desired(1, 1, Want::Running))), []);
        let out = step(&mut state, 0, put(desired(1, 2, Want::Running)));
        assert!(matches!(out.last(), Some(Output::Start(start)) if start.container == reference(1, 2)));
    }

    #[test]
    fn stop_is_a_signal_then_after_the_grace_a_kill() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 1, Want::Running)));
        step(&mut state, 0, started(1, 1));
        let signal = |signal| Output::Signal { container: reference(1, 1), signal };
        assert_eq!(step(&mut state, 1_000, put(desired(1, 1, STOP))), [signal(15)]);
        assert_eq!(state.poll_at(), Some(11_000));
        assert_eq!(step(&mut state, 10_999, Input::Tick), []);
        assert_eq!(step(&mut state, 11_000, Input::Tick), [signal(SIGKILL)]);
        assert_eq!(state.poll_at(), None);
        assert_eq!(step(&mut state, 12_000, Input::Tick), []);
    }

    #[test]
    fn stop_while_preparing_takes_effect_when_it_runs() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 1, Want::Running)));
        assert_eq!(step(&mut state, 0, put(desired(1, 1, STOP))), []);
        let out = step(&mut state, 5, started(1, 1));
        assert!(out.contains(&Output::Signal { container: reference(1, 1), signal: 15 }));
    }

    #[test]
    fn remove_kills_then_deletes_then_reports() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 1, Want::Running)));
        step(&mut state, 0, started(1, 1));
        let remove = || Input::Broker(ToNode::Remove(ContainerId(1)));
        assert_eq!(
            step(&mut state, 0, remove()),
            [Output::Signal { container: reference(1, 1), signal: SIGKILL }]
        );
        assert!(step(&mut state, 0, exited(1, 1)).contains(&Output::Remove(reference(1, 1))));
        assert_eq!(
            step(&mut state, 0, Input::Removed(reference(1, 1))),
            [Output::Report(FromNode::Removed(reference(1, 1)))]
        );
        assert!(state.inventory().is_empty());
        // Asked again, the answer is the same: gone.
        assert!(matches!(step(&mut state, 0, remove()).as_slice(), [Output::Report(FromNode::Removed(_))]));
    }

    #[test]
    fn an_adopted_container_keeps_running_when_the_broker_still_wants_it() {
        let mut state = State::default();
        let report = ContainerReport {
            container: reference(1, 3),
            state: ContainerState::Running { pid: 7, started_ms: 1 },
            restarts: 0,
        };
        step(&mut state, 0, Input::Adopted(report.clone()));
        assert_eq!(state.inventory(), [report]);
        let out = step(&mut state, 0, sync(vec![desired(1, 3, Want::Running)]));
        assert!(matches!(out.as_slice(), [Output::Join(NodeIndex(1), _), Output::ApplyNetwork { .. }]));
        assert!(state.running(reference(1, 3)) && !state.running(reference(1, 2)));
    }

    #[test]
    fn what_the_broker_does_not_know_is_removed() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 1, Want::Running)));
        step(&mut state, 0, started(1, 1));
        let out = step(&mut state, 0, sync(Vec::new()));
        assert!(out.contains(&Output::Signal { container: reference(1, 1), signal: SIGKILL }));
    }

    #[test]
    fn late_words_about_an_earlier_life_change_nothing() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 2, Want::Running)));
        step(&mut state, 0, started(1, 2));
        assert_eq!(step(&mut state, 0, exited(1, 1)), []);
        assert_eq!(step(&mut state, 0, put(desired(1, 1, STOP))), []);
        assert!(state.running(reference(1, 2)));
    }

    #[test]
    fn a_new_generation_replaces_a_running_one() {
        let mut state = State::default();
        step(&mut state, 0, put(desired(1, 1, Want::Running)));
        step(&mut state, 0, started(1, 1));
        let out = step(&mut state, 0, put(desired(1, 2, Want::Running)));
        assert_eq!(out, [Output::Signal { container: reference(1, 1), signal: SIGKILL }]);
        let out = step(&mut state, 0, exited(1, 1));
        assert!(matches!(out.last(), Some(Output::Start(start)) if start.container == reference(1, 2)));
    }

    /// A model runtime: performs orders at once, in any order the seed picks.
    fn obey(state: &mut State, now: MonoMs, pending: &mut Vec<Input>, input: Input) {
        for output in step(state, now, input) {
            match output {
                Output::Start(start) => {
                    pending.push(Input::Started { container: start.container, pid: 1, started_ms: now })
                }
                Output::Signal { container, .. } => {
                    pending.push(Input::Exited { container, status: ExitStatus::Signal(9), finished_ms: now })
                }
                Output::Remove(container) => pending.push(Input::Removed(container)),
                Output::Wake(_)
                | Output::Join(..)
                | Output::ApplyNetwork { .. }
                | Output::Rekey(_)
                | Output::Plane(_)
                | Output::Report(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happened_a_last_sync_is_reached(
            wishes in proptest::collection::vec((1u64..4, 1u32..4, 0u8..4, any::<bool>()), 0..40),
        ) {
            let mut state = State::default();
            let mut pending: Vec<Input> = Vec::new();
            let mut now = 0;
            for (id, generation, kind, deliver) in wishes {
                now += 100;
                let input = match kind {
                    0 => put(desired(id, generation, Want::Running)),
                    1 => put(desired(id, generation, STOP)),
                    2 => Input::Broker(ToNode::Remove(ContainerId(id))),
                    _ => Input::StartFailed {
                        container: reference(id, generation),
                        error: WireError::new(ErrorCode::StartFailed, "x"),
                    },
                };
                obey(&mut state, now, &mut pending, input);
                if deliver && !pending.is_empty() {
                    let input = pending.remove(0);
                    obey(&mut state, now, &mut pending, input);
                }
            }
            let goal = vec![desired(1, 9, Want::Running), desired(2, 9, STOP)];
            obey(&mut state, now, &mut pending, sync(goal.clone()));
            // Twice, as a removal under way swallows the first wish for the same id.
            for _ in 0..2 {
                while !pending.is_empty() {
                    now += 100;
                    let input = pending.remove(0);
                    obey(&mut state, now, &mut pending, input);
                }
                obey(&mut state, now, &mut pending, sync(goal.clone()));
            }
            prop_assert!(state.running(reference(1, 9)));
            prop_assert!(!state.running(reference(2, 9)));
            prop_assert!(state.containers.keys().all(|id| id.0 == 1 || id.0 == 2));
        }
    }
}
