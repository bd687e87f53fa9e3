//! The shell around the [machine](crate::machine): one thread that waits in poll and nowhere else.
use crate::control::{Descriptors, Launch, Power, ProcessKey, RawStatus, ToSupervisor};
use crate::host::Host;
use crate::launch;
use crate::link::{Heard, Held, Link};
use crate::machine::{Action, Input, Supervisor};
use crate::mode::Abilities;
use crate::{control, finish};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use wherry_sys::process::{self, End, Reaped, Start};
use wherry_sys::{SysError, power};

/// Most messages of the service handled before signals and ends get their turn again.
const MESSAGES_PER_TURN: usize = 64;
/// Most messages read from a service that has ended; its socket holds fewer.
const LAST_WORDS: usize = 4096;
/// Most complaints about garbage in the log, per incarnation: the log is small and others need it.
const MAX_COMPLAINTS: u32 = 5;

/// The running supervisor.
pub(crate) struct Reactor {
    host: Host,
    machine: Supervisor<Held>,
    signals: SignalFd,
    link: Option<Link>,
    starting: Vec<Starting>,
    inputs: VecDeque<Input<Held>>,
    now: u64,
    complaints: u32,
}

/// A forked process whose program has not been seen to run.
struct Starting {
    key: ProcessKey,
    pid: i32,
    start: OwnedFd,
}

/// Signals the supervisor listens to. All are blocked, so nothing interrupts it.
pub(crate) fn block_signals() -> Result<SignalFd, SysError> {
    SigSet::all().thread_block().map_err(SysError::SignalMask)?;
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPWR,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        mask.add(signal);
    }
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(SysError::Signalfd)
}

impl Reactor {
    pub(crate) fn new(host: Host, signals: SignalFd) -> Self {
        let now = power::boot_time_ms().unwrap_or_default();
        let machine = Supervisor::new(host.config.timing, now);
        let (link, starting, inputs) = (None, Vec::new(), VecDeque::new());
        Self { host, machine, signals, link, starting, inputs, now, complaints: 0 }
    }

    pub(crate) fn run(mut self) -> ! {
        self.give(Input::Boot);
        loop {
            self.wait();
            self.now = power::boot_time_ms().unwrap_or(self.now).max(self.now);
            self.read_signals();
            self.read_starts();
            self.read_service(MESSAGES_PER_TURN);
            self.reap();
            if self.link.as_mut().is_some_and(|link| link.flush().is_err()) {
                self.give(Input::ServiceDeaf);
            }
            self.give(Input::Tick);
        }
    }

    /// Until something can be read, or the machine wants to be ticked.
    fn wait(&self) {
        let left = self.machine.poll_at().map(|at| at.saturating_sub(self.now));
        let timeout =
            left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some((endpoint, sending)) = self.link.as_ref().and_then(Link::interest) {
            let room = if sending { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(endpoint.as_fd(), PollFlags::POLLIN | room));
        }
        fds.extend(self.starting.iter().map(|process| PollFd::new(process.start.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // No memory, say. Turning without waiting would make it worse.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }

    /// Handles one input and all that follows from it.
    fn give(&mut self, input: Input<Held>) {
        self.inputs.push_back(input);
        let mut actions = Vec::new();
        while let Some(input) = self.inputs.pop_front() {
            if let Err(forbidden) = self.machine.handle(self.now, input, &mut actions) {
                self.complain(&forbidden);
            }
            for action in actions.drain(..) {
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action<Held>) {
        match action {
            Action::StartService => self.start_service(),
            Action::SignalService(signal) => {
                if let Some(link) = &self.link {
                    self.signal(&link.child.pidfd, signal);
                }
            }
            Action::Fork { launch, descriptors } => self.fork(&launch, &descriptors),
            Action::SignalProcess { pidfd, signal } => self.signal(&pidfd, signal),
            Action::KillCgroup(directory) => {
                if let Err(error) = launch::kill_cgroup(&directory) {
                    self.host.log.warning(format_args!("cgroup.kill: {error}"));
                }
            }
            Action::KillEverything => finish::kill_strays(),
            Action::Send { message, attached } => {
                if self.link.as_mut().is_some_and(|link| link.send(message, attached).is_err()) {
                    self.inputs.push_back(Input::ServiceDeaf);
                }
            }
            Action::FeedWatchdog => {
                if let Some(Err(error)) = self.host.watchdog.as_ref().map(power::Watchdog::feed) {
                    self.host.log.warning(error);
                }
            }
            Action::Note(note) => self.host.log.info(note),
            Action::Finish(power) => finish::finish(&self.host, power),
        }
    }

    /// Each incarnation has a socket of its own: it must not read what was meant for its predecessor.
    fn start_service(&mut self) {
        self.complaints = 0;
        let started =
            control::Endpoint::pair().map_err(|error| error.to_string()).and_then(|(ours, theirs)| {
                ours.set_nonblocking(true).map_err(|error| error.to_string())?;
                let child = launch::service(&self.host, &theirs).map_err(|error| error.to_string())?;
                Ok(Link::new(child, ours))
            });
        match started {
            Ok(link) => {
                if self.host.abilities.supports(Abilities::MACHINE) {
                    spare_when_memory_is_short(link.child.pid.as_raw());
                }
                self.inputs.push_back(Input::ServiceStarted { pid: link.child.pid.as_raw() });
                self.link = Some(link);
            }
            Err(error) => {
                self.host.log.error(format_args!("cannot start the service: {error}"));
                self.inputs.push_back(Input::ServiceNotStarted);
            }
        }
    }

    fn fork(&mut self, launch: &Launch, descriptors: &Descriptors<Held>) {
        let key = launch.key;
        match launch::process(&self.host, launch, descriptors) {
            Ok(child) => {
                let pid = child.pid.as_raw();
                self.starting.push(Starting { key, pid, start: child.start });
                self.inputs.push_back(Input::Forked { key, pid, pidfd: Rc::new(child.pidfd) });
            }
            Err(error) => {
                self.inputs.push_back(Input::ForkFailed { key, errno: error.errno() as i32 });
            }
        }
    }

    fn signal(&self, pidfd: &OwnedFd, signal: i32) {
        match process::pidfd_send_signal(pidfd, signal) {
            // It has ended meanwhile, which will be told.
            Ok(()) | Err(SysError::PidfdSendSignal(Errno::ESRCH)) => {}
            Err(error) => self.host.log.warning(error),
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGTERM | Signal::SIGUSR2 | Signal::SIGPWR) => {
                    self.give(Input::Power(Power::PowerOff));
                }
                // The terminal of an ordinary process is gone; a machine's PID 1 has none.
                Some(Signal::SIGHUP) if !self.host.abilities.supports(Abilities::MACHINE) => {
                    self.give(Input::Power(Power::PowerOff));
                }
                // Ctrl-alt-del on a machine, ctrl-c on a terminal.
                Some(Signal::SIGINT) => self.give(Input::Power(Power::Reboot)),
                Some(Signal::SIGUSR1) if self.host.config.panic_on_signal => panic_on_purpose(),
                // A child ended: they are reaped in each turn.
                _ => {}
            }
        }
    }

    fn read_starts(&mut self) {
        let mut still = Vec::new();
        for process in std::mem::take(&mut self.starting) {
            match process::started(&process.start) {
                Start::Pending => still.push(process),
                Start::Running => self.give(Input::Started(process.key)),
                Start::Failed(step, errno) => self.give(Input::StartFailed {
                    key: process.key,
                    step: launch::step(step),
                    errno: errno as i32,
                }),
            }
        }
        self.starting.append(&mut still);
    }

    fn read_service(&mut self, most: usize) {
        for _ in 0..most {
            match self.link.as_mut().map_or(Heard::Nothing, Link::hear) {
                Heard::Message(message, descriptors) => self.request(message, descriptors),
                Heard::Garbage(error) => self.complain(&error),
                Heard::Nothing => return,
            }
        }
    }

    fn request(&mut self, message: ToSupervisor, attached: Vec<OwnedFd>) {
        let input = match message {
            ToSupervisor::Launch(launch) => match Descriptors::split(&launch, attached) {
                Ok(descriptors) => Input::Launch { launch, descriptors: descriptors.map(Rc::new) },
                Err(error) => {
                    self.complain(&error);
                    Input::BadLaunch(launch.key)
                }
            },
            ToSupervisor::Signal { key, signal } if launch::is_signal(signal) => {
                Input::Signal { key, signal }
            }
            ToSupervisor::Signal { signal, .. } => return self.complain(&format_args!("no signal {signal}")),
            ToSupervisor::Release(key) => Input::Release(key),
            ToSupervisor::CloseKept { key, label } => Input::CloseKept { key, label },
            ToSupervisor::Alive => Input::Alive,
            ToSupervisor::Power(power) => Input::Power(power),
        };
        self.give(input);
    }

    fn complain(&mut self, about: &dyn std::fmt::Display) {
        if self.complaints < MAX_COMPLAINTS {
            self.complaints = self.complaints.saturating_add(1);
            self.host.log.warning(format_args!("service: {about}"));
        }
    }

    /// The only place that waits for children: the service, what it launched, and orphans.
    fn reap(&mut self) {
        while let Ok(Some(Reaped { pid, end })) = process::reap() {
            let pid = pid.as_raw();
            // What it said before is older than its end.
            if self.starting.iter().any(|process| process.pid == pid) {
                self.read_starts();
                self.starting.retain(|process| process.pid != pid);
            }
            if self.link.as_ref().is_some_and(|link| link.child.pid.as_raw() == pid) {
                self.read_service(LAST_WORDS);
                self.report_start();
                self.link = None;
            }
            let status = match end {
                End::Code(code) => RawStatus::Code(code),
                End::Signal(signal) => RawStatus::Signal(signal),
            };
            self.give(Input::Ended { pid, status });
        }
    }

    fn report_start(&self) {
        let start = self.link.as_ref().map(|link| process::started(&link.child.start));
        if let Some(Start::Failed(step, errno)) = start {
            self.host.log.error(format_args!("cannot start the service: {step:?}: {}", errno.desc()));
        }
    }
}

/// Containers go first: without the service nobody could even say what happened (proc_pid_oom_score_adj(5)).
fn spare_when_memory_is_short(pid: i32) {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-500").ok();
}

/// Reached in tests only, see [`crate::config::SupervisorConfig::panic_on_signal`].
#[expect(clippy::panic, reason = "what happens after a panic has to be tested")]
fn panic_on_purpose() -> ! {
    panic!("asked to panic")
}
