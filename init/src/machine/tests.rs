//! Walks the machine through lives and deaths, and through every input in every state where it is out of place.
use super::*;
use crate::control::{EntryState, Namespaces};
use nix::libc;
use proptest::prelude::*;
use std::collections::VecDeque;

type Machine = Supervisor<u32>;
type Actions = Vec<Action<u32>>;

const KEY: ProcessKey = ProcessKey { id: 1, generation: 1 };
const OTHER: ProcessKey = ProcessKey { id: 2, generation: 1 };
const SERVICE: i32 = 100;
const CONTAINER: i32 = 200;
const FAST: Timing = Timing {
    backoff_first_ms: 10,
    backoff_most_ms: 1000,
    healthy_ms: 5000,
    first_heartbeat_ms: 600,
    heartbeat_ms: 300,
    watchdog_feed_ms: 50,
    watchdog_patience_ms: 10_000,
    containers_stop_ms: 100,
    service_stop_ms: 50,
    kill_ms: 20,
};

fn launch(key: ProcessKey) -> Input<u32> {
    let descriptors = Descriptors {
        plan: 1,
        go: 2,
        report: 3,
        stdio: [4, 5, 6],
        cgroup: Some(7),
        extra: vec![],
        kept: vec![("log".into(), 8), ("stdout".into(), 9)],
    };
    let (argument, kept) =
        ("container".into(), descriptors.kept.iter().map(|(label, _)| label.clone()).collect());
    let launch = Launch { key, namespaces: Namespaces::ALL, argument, cgroup: true, extra: 0, kept };
    Input::Launch { launch, descriptors }
}

/// Handles inputs that must be legal; returns what followed from the last.
fn feed(machine: &mut Machine, now: u64, inputs: impl IntoIterator<Item = Input<u32>>) -> Actions {
    let mut out = Vec::new();
    for input in inputs {
        out.clear();
        machine.handle(now, input, &mut out).expect("legal input");
    }
    out
}

fn booted() -> Machine {
    let mut machine = Machine::new(FAST, 0);
    feed(&mut machine, 0, [Input::Boot, Input::ServiceStarted { pid: SERVICE }]);
    machine
}

fn with_container() -> Machine {
    let mut machine = booted();
    let forked = Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 };
    feed(&mut machine, 0, [launch(KEY), forked, Input::Started(KEY)]);
    machine
}

fn sent(actions: &Actions) -> Vec<&FromSupervisor> {
    let message = |action: &'_ Action<u32>| matches!(action, Action::Send { .. });
    actions
        .iter()
        .filter(|action| message(action))
        .map(|action| match action {
            Action::Send { message, .. } => message,
            other => unreachable!("{other:?}"),
        })
        .collect()
}

fn crash(machine: &mut Machine, now: u64) -> Actions {
    feed(machine, now, [Input::Ended { pid: SERVICE, status: RawStatus::Signal(9) }])
}

#[test]
fn boot_starts_the_service_and_gives_it_an_empty_inventory() {
    let mut machine = Machine::new(FAST, 0);
    assert_eq!(machine.poll_at(), None, "nothing is due before boot");
    let actions = feed(&mut machine, 0, [Input::Boot]);
    assert!(matches!(actions[..], [Action::StartService, Action::FeedWatchdog]), "{actions:?}");
    let actions = feed(&mut machine, 1, [Input::ServiceStarted { pid: SERVICE }]);
    assert_eq!(sent(&actions), [&FromSupervisor::InventoryEnd]);
}

#[test]
fn a_launch_is_answered_when_its_program_runs() {
    let mut machine = booted();
    let actions = feed(&mut machine, 5, [launch(KEY)]);
    assert!(matches!(actions[..], [Action::Fork { .. }]), "{actions:?}");
    let actions = feed(&mut machine, 6, [Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 }]);
    assert!(actions.is_empty(), "{actions:?}");
    let actions = feed(&mut machine, 7, [Input::Started(KEY)]);
    let [Action::Send { message, attached }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((message, &attached[..]), (&FromSupervisor::Launched { key: KEY, pid: CONTAINER }, &[50][..]));
}

#[test]
fn failures_of_a_launch_leave_no_trace() {
    let refused = |step, errno| FromSupervisor::LaunchFailed { key: KEY, errno, step };
    let mut machine = booted();
    let actions = feed(&mut machine, 0, [launch(KEY), Input::ForkFailed { key: KEY, errno: 12 }]);
    assert_eq!(sent(&actions), [&refused(LaunchStep::Clone, 12)]);
    let forked = Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 };
    let failed = Input::StartFailed { key: KEY, step: LaunchStep::Exec, errno: 2 };
    let actions = feed(&mut machine, 0, [launch(KEY), forked, failed]);
    assert_eq!(sent(&actions), [&refused(LaunchStep::Exec, 2)]);
    let actions = feed(&mut machine, 0, [Input::BadLaunch(KEY)]);
    assert_eq!(sent(&actions), [&refused(LaunchStep::Request, libc::EINVAL)]);
    assert!(machine.processes().is_empty());
}

#[test]
fn a_key_in_use_is_refused_until_its_release() {
    let mut machine = with_container();
    let refused = FromSupervisor::LaunchFailed { key: KEY, errno: libc::EEXIST, step: LaunchStep::Key };
    assert_eq!(sent(&feed(&mut machine, 0, [launch(KEY)])), [&refused]);
    feed(&mut machine, 0, [Input::Ended { pid: CONTAINER, status: RawStatus::Code(0) }]);
    assert_eq!(sent(&feed(&mut machine, 0, [launch(KEY)])), [&refused]);
    let actions = feed(&mut machine, 0, [Input::Release(KEY), launch(KEY)]);
    assert!(matches!(actions[..], [Action::Fork { .. }]));
}

#[test]
fn one_kept_descriptor_is_closed_on_request() {
    let mut machine = with_container();
    let close = |label: &str| Input::CloseKept { key: KEY, label: label.into() };
    assert!(feed(&mut machine, 0, [close("log"), close("unheard-of")]).is_empty());
    crash(&mut machine, 20);
    feed(&mut machine, 10_000, [Input::Tick]);
    let actions = feed(&mut machine, 10_001, [Input::ServiceStarted { pid: 101 }]);
    let kept = actions.iter().find_map(|action| match action {
        Action::Send { message: FromSupervisor::Entry { kept, .. }, attached } => Some((kept, attached)),
        _ => None,
    });
    let (kept, attached) = kept.unwrap();
    assert_eq!((kept.as_slice(), attached.len()), (&["stdout".to_owned()][..], 2));
}

#[test]
fn the_table_is_bounded() {
    let mut machine = booted();
    for id in 0..MAX_PROCESSES {
        let key = ProcessKey { id: id as u64, generation: 0 };
        feed(&mut machine, 0, [launch(key), Input::Forked { key, pid: 1000 + id as i32, pidfd: 1 }]);
    }
    let actions = feed(&mut machine, 0, [launch(ProcessKey { id: 0, generation: 1 })]);
    assert!(matches!(sent(&actions)[..], [FromSupervisor::LaunchFailed { step: LaunchStep::Table, .. }]));
}

#[test]
fn an_end_is_told_and_recorded() {
    let mut machine = with_container();
    let status = RawStatus::Code(7);
    let actions = feed(&mut machine, 9, [Input::Ended { pid: CONTAINER, status }]);
    assert_eq!(sent(&actions), [&FromSupervisor::Exited { key: KEY, status }]);
    assert!(matches!(machine.processes()[&KEY], Process::Exited { pid: CONTAINER, .. }));
    // The pid may be used again by an orphan; that is not ours any more.
    assert!(feed(&mut machine, 9, [Input::Ended { pid: CONTAINER, status }]).is_empty());
}

#[test]
fn an_end_before_the_start_is_known_is_told_in_order() {
    let mut machine = booted();
    let forked = Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 };
    let ended = Input::Ended { pid: CONTAINER, status: RawStatus::Code(0) };
    let actions = feed(&mut machine, 0, [launch(KEY), forked, ended]);
    assert!(matches!(sent(&actions)[..], [FromSupervisor::Launched { .. }, FromSupervisor::Exited { .. }]));
}

#[test]
fn a_crash_keeps_containers_and_the_next_incarnation_learns_everything() {
    let mut machine = with_container();
    feed(
        &mut machine,
        0,
        [launch(OTHER), Input::Forked { key: OTHER, pid: 201, pidfd: 60 }, Input::Started(OTHER)],
    );
    let actions = crash(&mut machine, 20);
    assert!(matches!(actions[..], [Action::Note(Note::ServiceEnded { restart_ms: 10, .. })]), "{actions:?}");
    // One container ends while nobody listens.
    assert!(feed(&mut machine, 25, [Input::Ended { pid: CONTAINER, status: RawStatus::Code(7) }]).is_empty());
    assert_eq!(machine.poll_at(), Some(30));
    let actions = feed(&mut machine, 30, [Input::Tick]);
    assert!(matches!(actions[..], [Action::StartService]), "{actions:?}");
    let actions = feed(&mut machine, 31, [Input::ServiceStarted { pid: 101 }]);
    let kept = || vec!["log".to_owned(), "stdout".to_owned()];
    let ended = EntryState::Exited(RawStatus::Code(7));
    let expected = [
        FromSupervisor::Entry { key: KEY, pid: CONTAINER, started_ms: 0, state: ended, kept: kept() },
        FromSupervisor::Entry {
            key: OTHER,
            pid: 201,
            started_ms: 0,
            state: EntryState::Running,
            kept: kept(),
        },
        FromSupervisor::InventoryEnd,
    ];
    assert_eq!(sent(&actions), expected.iter().collect::<Vec<_>>());
    let attached: Vec<&[u32]> = actions
        .iter()
        .filter_map(
            |action| if let Action::Send { attached, .. } = action { Some(&attached[..]) } else { None },
        )
        .collect();
    assert_eq!(attached, [&[8, 9][..], &[60, 8, 9], &[]]);
    feed(&mut machine, 32, [Input::Release(KEY)]);
    assert_eq!(machine.processes().keys().collect::<Vec<_>>(), [&OTHER]);
}

/// The new incarnation has the process in its inventory and never asked for it.
#[test]
fn a_start_asked_for_by_a_dead_incarnation_is_not_answered() {
    for fails in [false, true] {
        let mut machine = booted();
        feed(&mut machine, 0, [launch(KEY), Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 }]);
        crash(&mut machine, 0);
        let actions = feed(&mut machine, 10, [Input::Tick, Input::ServiceStarted { pid: 101 }]);
        assert!(matches!(sent(&actions)[0], FromSupervisor::Entry { state: EntryState::Running, .. }));
        let failed = Input::StartFailed { key: KEY, step: LaunchStep::Exec, errno: 2 };
        let actions = feed(&mut machine, 11, [if fails { failed } else { Input::Started(KEY) }]);
        let exited = FromSupervisor::Exited { key: KEY, status: RawStatus::Code(127) };
        assert_eq!(sent(&actions), if fails { vec![&exited] } else { vec![] });
    }
}

#[test]
fn backoff_grows_and_a_healthy_run_resets_it() {
    let mut machine = booted();
    let (mut now, mut pauses) = (0, Vec::new());
    for _ in 0..9 {
        crash(&mut machine, now);
        let due = machine.service_due().unwrap();
        pauses.push(due - now);
        now = due;
        feed(&mut machine, now, [Input::Tick, Input::ServiceStarted { pid: SERVICE }]);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    for _ in 0..20 {
        now += FAST.heartbeat_ms - 1;
        feed(&mut machine, now, [Input::Alive]);
    }
    crash(&mut machine, now);
    assert_eq!(machine.service_due(), Some(now + 10));
}

#[test]
fn a_service_that_cannot_be_started_is_tried_again() {
    let mut machine = Machine::new(FAST, 0);
    let actions = feed(&mut machine, 0, [Input::Boot, Input::ServiceNotStarted]);
    assert!(matches!(actions[..], [Action::Note(Note::ServiceNotStarted { restart_ms: 10 })]), "{actions:?}");
    assert!(matches!(feed(&mut machine, 10, [Input::Tick])[..], [Action::StartService]));
}

#[test]
fn a_silent_service_is_killed_and_restarted() {
    let mut machine = booted();
    feed(&mut machine, 599, [Input::Tick]);
    let actions = feed(&mut machine, 600, [Input::Tick]);
    let [Action::Note(Note::ServiceSilent { silent_ms: 600 }), Action::SignalService(9), ..] = actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(matches!(machine.service(), Service::Ending { .. }));
    crash(&mut machine, 601);
    assert!(matches!(machine.service(), Service::Backoff { .. }));
    let mut machine = booted();
    feed(&mut machine, 100, [Input::Alive]);
    feed(&mut machine, 399, [Input::Tick]);
    feed(&mut machine, 400, [Input::Tick]);
    assert!(
        matches!(machine.service(), Service::Ending { .. }),
        "silence after a heartbeat is measured from it"
    );
}

#[test]
fn a_deaf_service_is_killed() {
    let mut machine = booted();
    let actions = feed(&mut machine, 1, [Input::ServiceDeaf]);
    assert!(
        matches!(actions[..], [Action::Note(Note::ServiceDeaf), Action::SignalService(9)]),
        "{actions:?}"
    );
}

#[test]
fn the_watchdog_is_fed_while_the_service_is_heard() {
    let mut machine = booted();
    let fed = |actions: &Actions| actions.iter().any(|action| matches!(action, Action::FeedWatchdog));
    assert!(!fed(&feed(&mut machine, 49, [Input::Tick])));
    assert!(fed(&feed(&mut machine, 50, [Input::Tick])));
    assert!(!fed(&feed(&mut machine, 99, [Input::Tick])));
    crash(&mut machine, 100);
    assert!(fed(&feed(&mut machine, 9_999, [Input::Tick])), "patience covers restarts");
    assert!(!fed(&feed(&mut machine, 10_051, [Input::Tick])), "but not for ever");
    assert!(matches!(machine.service(), Service::Starting { .. }));
    feed(&mut machine, 10_060, [Input::ServiceStarted { pid: 101 }, Input::Alive]);
    assert!(fed(&feed(&mut machine, 10_200, [Input::Tick])), "a heartbeat makes it good");
}

#[test]
fn a_running_process_is_killed_and_forgotten_on_release() {
    let mut machine = with_container();
    let actions = feed(&mut machine, 0, [Input::Release(KEY)]);
    let [Action::SignalProcess { pidfd: 50, signal: 9 }, Action::KillCgroup(7)] = actions[..] else {
        panic!("{actions:?}")
    };
    let actions = feed(&mut machine, 1, [Input::Ended { pid: CONTAINER, status: RawStatus::Signal(9) }]);
    assert_eq!(sent(&actions).len(), 1);
    assert!(machine.processes().is_empty());
}

#[test]
fn the_cgroup_of_a_process_that_joined_it_is_spared() {
    let mut machine = booted();
    let Input::Launch { mut launch, descriptors } = launch(KEY) else { unreachable!("a launch") };
    launch.namespaces = Namespaces::NONE;
    let forked = Input::Forked { key: KEY, pid: CONTAINER, pidfd: 50 };
    feed(&mut machine, 0, [Input::Launch { launch, descriptors }, forked, Input::Started(KEY)]);
    let actions = feed(&mut machine, 0, [Input::Release(KEY)]);
    assert!(matches!(actions[..], [Action::SignalProcess { pidfd: 50, signal: 9 }]), "{actions:?}");
}

#[test]
fn signals_reach_only_what_exists() {
    let mut machine = with_container();
    let actions = feed(&mut machine, 0, [Input::Signal { key: KEY, signal: 15 }]);
    assert!(matches!(actions[..], [Action::SignalProcess { pidfd: 50, signal: 15 }]), "{actions:?}");
    let stale = ProcessKey { generation: 0, ..KEY };
    let actions = feed(&mut machine, 0, [Input::Signal { key: stale, signal: 15 }]);
    assert!(
        matches!(actions[..], [Action::Note(Note::NoSuchProcess(_))]),
        "an earlier generation: {actions:?}"
    );
}

#[test]
fn shutdown_goes_step_by_step_when_all_obey() {
    let mut machine = with_container();
    let actions = feed(&mut machine, 10, [Input::Power(Power::PowerOff)]);
    let [Action::Note(Note::GoingDown { processes: 1, .. }), Action::SignalProcess { signal: 15, .. }] =
        actions[..]
    else {
        panic!("{actions:?}")
    };
    let actions = feed(&mut machine, 11, [Input::Ended { pid: CONTAINER, status: RawStatus::Code(0) }]);
    assert!(matches!(actions[..], [Action::Send { .. }, Action::SignalService(15)]), "{actions:?}");
    let actions = crash(&mut machine, 12);
    assert!(matches!(actions[..], [Action::KillEverything, Action::Finish(Power::PowerOff)]), "{actions:?}");
    assert_eq!((machine.phase(), machine.poll_at()), (&Phase::Down, None));
}

#[test]
fn shutdown_keeps_its_deadlines_when_nobody_obeys() {
    let mut machine = with_container();
    feed(&mut machine, 0, [Input::Power(Power::Reboot)]);
    let mut seen = Vec::new();
    for now in 1..=200 {
        for action in feed(&mut machine, now, [Input::Tick]) {
            if !matches!(action, Action::FeedWatchdog) {
                seen.push((now, format!("{action:?}")));
            }
        }
    }
    let expected = [
        (100, "SignalService(15)"),
        (150, "Note(Killing { processes: 2 })"),
        (150, "SignalProcess { pidfd: 50, signal: 9 }"),
        (150, "KillCgroup(7)"),
        (150, "SignalService(9)"),
        (150, "KillEverything"),
        (170, "Note(GivingUp { processes: 2 })"),
        (170, "Finish(Reboot)"),
    ];
    assert_eq!(seen.iter().map(|(now, text)| (*now, text.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn nothing_new_starts_while_going_down() {
    let mut machine = with_container();
    feed(&mut machine, 0, [Input::Power(Power::PowerOff)]);
    let refused =
        FromSupervisor::LaunchFailed { key: OTHER, errno: libc::ESHUTDOWN, step: LaunchStep::Table };
    assert_eq!(sent(&feed(&mut machine, 1, [launch(OTHER)])), [&refused]);
    crash(&mut machine, 2);
    assert_eq!(machine.service(), &Service::Stopped, "no restart");
}

#[test]
fn shutdown_before_boot_or_during_backoff_ends_at_once() {
    let mut machine = Machine::new(FAST, 0);
    let actions = feed(&mut machine, 0, [Input::Power(Power::PowerOff)]);
    assert!(matches!(actions.last(), Some(Action::Finish(Power::PowerOff))), "{actions:?}");
    let mut machine = booted();
    crash(&mut machine, 0);
    let actions = feed(&mut machine, 1, [Input::Power(Power::Reboot)]);
    assert!(matches!(actions.last(), Some(Action::Finish(Power::Reboot))), "{actions:?}");
}

#[test]
fn notes_read_well() {
    let ended = Note::ServiceEnded { status: RawStatus::Signal(11), restart_ms: 200 };
    assert_eq!(ended.to_string(), "service killed by signal 11, restart in 200 ms");
    let down = Note::GoingDown { power: Power::Reboot, processes: 2 };
    assert_eq!(down.to_string(), "rebooting, stopping 2 processes");
    assert_eq!(Note::NoSuchProcess(KEY).to_string(), "no process 1.1");
}

/// Every state of the service, with one container that runs.
fn every_state() -> Vec<(&'static str, Machine)> {
    let starting = || {
        let mut machine = with_container();
        crash(&mut machine, 0);
        feed(&mut machine, 10, [Input::Tick]);
        machine
    };
    let mut ending = with_container();
    feed(&mut ending, 0, [Input::ServiceDeaf]);
    let mut backoff = with_container();
    crash(&mut backoff, 0);
    let mut stopped = with_container();
    feed(&mut stopped, 0, [Input::Power(Power::PowerOff)]);
    crash(&mut stopped, 0);
    let mut down = booted();
    feed(&mut down, 0, [Input::Power(Power::PowerOff)]);
    crash(&mut down, 0);
    vec![
        ("unborn", Machine::new(FAST, 0)),
        ("starting", starting()),
        ("running", with_container()),
        ("ending", ending),
        ("backoff", backoff),
        ("stopped", stopped),
        ("down", down),
    ]
}

type InputAndStates = (fn() -> Input<u32>, &'static [&'static str]);

/// Each input with the states in which it is legal.
fn every_input() -> Vec<InputAndStates> {
    const RUNNING: &[&str] = &["running"];
    const NEVER: &[&str] = &[];
    vec![
        (|| Input::Boot, &["unborn"]),
        (|| Input::ServiceStarted { pid: 1 }, &["starting"]),
        (|| Input::ServiceNotStarted, &["starting"]),
        (|| Input::ServiceDeaf, RUNNING),
        (|| launch(OTHER), RUNNING),
        (|| Input::BadLaunch(OTHER), RUNNING),
        (|| Input::Signal { key: KEY, signal: 1 }, RUNNING),
        (|| Input::Release(KEY), RUNNING),
        (|| Input::CloseKept { key: KEY, label: "log".into() }, RUNNING),
        (|| Input::Alive, RUNNING),
        (|| Input::Power(Power::Reboot), &["unborn", "starting", "running", "ending", "backoff"]),
        // The only process there runs already.
        (|| Input::Forked { key: KEY, pid: 1, pidfd: 1 }, NEVER),
        (|| Input::ForkFailed { key: KEY, errno: 1 }, NEVER),
        (|| Input::Started(KEY), NEVER),
        (|| Input::StartFailed { key: KEY, step: LaunchStep::Exec, errno: 1 }, NEVER),
        (|| Input::Forked { key: OTHER, pid: 1, pidfd: 1 }, NEVER),
        (|| Input::Started(OTHER), NEVER),
    ]
}

#[test]
fn every_forbidden_transition_is_refused_and_changes_nothing() {
    for (number, (input, legal)) in every_input().into_iter().enumerate() {
        for (state, mut machine) in every_state() {
            let (before, mut out) = (format!("{machine:?}"), Vec::new());
            let result = machine.handle(10, input(), &mut out);
            assert_eq!(result.is_ok(), legal.contains(&state), "input {number} in state {state}");
            if result.is_err() {
                assert!(out.is_empty(), "input {number} in state {state}: {out:?}");
                assert_eq!(format!("{machine:?}"), before, "input {number} in state {state}");
            }
        }
    }
}

#[test]
fn a_process_being_forked_cannot_be_released() {
    let mut machine = booted();
    feed(&mut machine, 0, [launch(KEY)]);
    assert!(machine.handle(0, Input::Release(KEY), &mut Vec::new()).is_err());
    assert!(machine.handle(0, Input::Started(KEY), &mut Vec::new()).is_err());
}

/// A world that answers actions as the reactor does, driven by arbitrary events.
#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Launch(u64),
    Release(u64),
    Signal(u64),
    Alive,
    Deaf,
    EndService,
    EndProcess(usize),
    Orphan,
    Power,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0_u64..400).prop_map(Event::Wait),
        6 => (0_u64..6).prop_map(Event::Launch),
        3 => (0_u64..6).prop_map(Event::Release),
        2 => (0_u64..6).prop_map(Event::Signal),
        6 => Just(Event::Alive),
        1 => Just(Event::Deaf),
        3 => Just(Event::EndService),
        4 => (0_usize..8).prop_map(Event::EndProcess),
        1 => Just(Event::Orphan),
        1 => Just(Event::Power),
    ]
}

#[derive(Default)]
struct World {
    now: u64,
    next_pid: i32,
    service: Option<i32>,
    processes: Vec<i32>,
    finished: bool,
    pending: VecDeque<Input<u32>>,
}

impl World {
    /// As the reactor does: what an action leads to is handled after the other actions of its input.
    fn give(&mut self, machine: &mut Machine, input: Input<u32>) {
        self.pending.push_back(input);
        while let Some(input) = self.pending.pop_front() {
            let mut out = Vec::new();
            machine.handle(self.now, input, &mut out).ok();
            for action in out {
                assert!(!self.finished, "nothing comes after Finish: {action:?}");
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action<u32>) {
        self.next_pid += 1;
        let pid = self.next_pid;
        match action {
            Action::StartService => {
                assert!(self.service.is_none(), "never two services");
                self.service = Some(pid);
                self.pending.push_back(Input::ServiceStarted { pid });
            }
            Action::Fork { launch, .. } => {
                self.processes.push(pid);
                self.pending.push_back(Input::Forked { key: launch.key, pid, pidfd: pid as u32 });
                self.pending.push_back(Input::Started(launch.key));
            }
            Action::SignalService(9) => self.end_service(),
            Action::SignalProcess { pidfd, signal: 9 } => self.end(pidfd as i32),
            Action::Send { .. } => assert!(self.service.is_some(), "messages only to a running service"),
            Action::Finish(_) => self.finished = true,
            Action::SignalService(_)
            | Action::SignalProcess { .. }
            | Action::KillCgroup(_)
            | Action::KillEverything
            | Action::FeedWatchdog
            | Action::Note(_) => {}
        }
    }

    fn end_service(&mut self) {
        if let Some(pid) = self.service.take() {
            self.pending.push_back(Input::Ended { pid, status: RawStatus::Code(1) });
        }
    }

    fn end(&mut self, pid: i32) {
        if self.processes.contains(&pid) {
            self.processes.retain(|known| *known != pid);
            self.pending.push_back(Input::Ended { pid, status: RawStatus::Code(0) });
        }
    }

    fn happen(&mut self, machine: &mut Machine, event: &Event) {
        let key = |id: u64| ProcessKey { id, generation: 0 };
        match *event {
            Event::Wait(ms) => {
                self.now += ms;
                self.give(machine, Input::Tick);
            }
            Event::Launch(id) => self.give(machine, launch(key(id))),
            Event::Release(id) => self.give(machine, Input::Release(key(id))),
            Event::Signal(id) => self.give(machine, Input::Signal { key: key(id), signal: 15 }),
            Event::Alive => self.give(machine, Input::Alive),
            Event::Deaf => self.give(machine, Input::ServiceDeaf),
            Event::EndService => self.end_service(),
            Event::EndProcess(index) => {
                if let Some(pid) = self.processes.get(index).copied() {
                    self.end(pid);
                }
            }
            Event::Orphan => self.give(machine, Input::Ended { pid: -5, status: RawStatus::Code(0) }),
            Event::Power => self.give(machine, Input::Power(Power::PowerOff)),
        }
        self.give(machine, Input::Tick);
    }
}

proptest! {
    /// Whatever happens: one service at most, its table agrees with the world, time always leads somewhere, and after a
    /// power request the end comes within the deadlines.
    #[test]
    fn any_history_keeps_the_invariants(events in proptest::collection::vec(event(), 1..120)) {
        let mut machine = Machine::new(FAST, 0);
        let mut world = World::default();
        world.give(&mut machine, Input::Boot);
        for event in &events {
            world.happen(&mut machine, event);
            let mut live: Vec<i32> = machine.processes().values().filter_map(|p| p.live().map(|l| l.pid)).collect();
            live.sort_unstable();
            prop_assert_eq!(&live, &world.processes);
            if !world.finished {
                let due = machine.poll_at();
                prop_assert!(due.is_some_and(|due| due > world.now), "due {:?} at {}", due, world.now);
            }
        }
        world.give(&mut machine, Input::Power(Power::PowerOff));
        world.now += FAST.containers_stop_ms;
        world.give(&mut machine, Input::Tick);
        world.now += FAST.service_stop_ms;
        world.give(&mut machine, Input::Tick);
        world.now += FAST.kill_ms;
        world.give(&mut machine, Input::Tick);
        prop_assert!(world.finished);
        prop_assert!(world.processes.is_empty() && world.service.is_none());
    }
}
