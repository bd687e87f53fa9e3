//! The way down: containers, then the service, then everybody else, each with a deadline.
use super::{Action, Forbidden, Note, Service, Supervisor};
use crate::control::Power;
use nix::libc;

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Up,
    /// Containers have got their TERM. The service still runs: it forwards their last words.
    Containers {
        /// How it will end.
        power: Power,
        /// When it goes on in any case.
        until: u64,
    },
    /// The service has got its TERM.
    Service {
        /// How it will end.
        power: Power,
        /// When it goes on in any case.
        until: u64,
    },
    /// Everybody has got a KILL.
    Killing {
        /// How it will end.
        power: Power,
        /// When it goes on in any case.
        until: u64,
    },
    /// [`Action::Finish`] is out.
    Down,
}

impl<D: Clone> Supervisor<D> {
    pub(super) fn power(
        &mut self,
        now: u64,
        power: Power,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        match self.phase {
            Phase::Up => {}
            Phase::Containers { .. } | Phase::Service { .. } | Phase::Killing { .. } | Phase::Down => {
                return Err(Forbidden { input: "power request", state: "going down already" });
            }
        }
        match self.service {
            Service::Unborn | Service::Backoff { .. } => self.service = Service::Stopped,
            Service::Starting { .. }
            | Service::Running { .. }
            | Service::Ending { .. }
            | Service::Stopped => {}
        }
        out.push(Action::Note(Note::GoingDown { power, processes: self.live_count() }));
        self.signal_all(libc::SIGTERM, out);
        self.phase = Phase::Containers { power, until: now.saturating_add(self.timing.containers_stop_ms) };
        Ok(())
    }

    /// Takes as many steps as are due.
    pub(super) fn go_down(&mut self, now: u64, out: &mut Vec<Action<D>>) {
        if let Phase::Containers { power, until } = self.phase
            && (self.live_count() == 0 || until <= now)
        {
            if matches!(self.service, Service::Running { .. }) {
                out.push(Action::SignalService(libc::SIGTERM));
            }
            self.phase = Phase::Service { power, until: now.saturating_add(self.timing.service_stop_ms) };
        }
        if let Phase::Service { power, until } = self.phase
            && (self.service == Service::Stopped || until <= now)
        {
            self.kill_the_rest(out);
            self.phase = Phase::Killing { power, until: now.saturating_add(self.timing.kill_ms) };
        }
        if let Phase::Killing { power, until } = self.phase
            && (self.left() == 0 || until <= now)
        {
            if self.left() > 0 {
                out.push(Action::Note(Note::GivingUp { processes: self.left() }));
            }
            self.phase = Phase::Down;
            out.push(Action::Finish(power));
        }
    }

    fn kill_the_rest(&mut self, out: &mut Vec<Action<D>>) {
        if self.left() > 0 {
            out.push(Action::Note(Note::Killing { processes: self.left() }));
        }
        self.kill_all(out);
        self.kill_service(out);
        // Strays too: what was reparented to us keeps file systems busy.
        out.push(Action::KillEverything);
    }

    fn left(&self) -> usize {
        self.live_count().saturating_add(usize::from(self.service != Service::Stopped))
    }
}
