//! The service's life: started, watched, restarted with growing pauses.
use super::{Action, Forbidden, Note, Phase, Supervisor};
use crate::control::RawStatus;
use nix::libc;

/// Where the service is in its life. `failures` counts ends without a healthy run between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Never started: the machine still boots.
    Unborn,
    /// Being forked.
    Starting {
        /// So far.
        failures: u32,
    },
    /// It runs and may be talked to.
    Running {
        /// Its process id.
        pid: i32,
        /// Since when.
        started_at: u64,
        /// Killed and restarted if not heard by then.
        silent_at: u64,
        /// Before this start.
        failures: u32,
    },
    /// Killed for misbehaving; its end has not been seen yet.
    Ending {
        /// Its process id.
        pid: i32,
        /// Since when it ran.
        started_at: u64,
        /// Before that start.
        failures: u32,
    },
    /// Waiting to be started again.
    Backoff {
        /// When.
        restart_at: u64,
        /// So far.
        failures: u32,
    },
    /// Not to be started again: the machine goes down.
    Stopped,
}

const NOT_RUNNING: &str = "the service does not run";

impl<D: Clone> Supervisor<D> {
    pub(super) fn boot(&mut self, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        match (&self.service, self.phase) {
            (Service::Unborn, Phase::Up) => {
                self.start_service(0, out);
                Ok(())
            }
            (
                Service::Unborn
                | Service::Starting { .. }
                | Service::Running { .. }
                | Service::Ending { .. }
                | Service::Backoff { .. }
                | Service::Stopped,
                _,
            ) => Err(Forbidden { input: "boot", state: "booted already" }),
        }
    }

    fn start_service(&mut self, failures: u32, out: &mut Vec<Action<D>>) {
        self.incarnation = self.incarnation.saturating_add(1);
        self.service = Service::Starting { failures };
        out.push(Action::StartService);
    }

    pub(super) fn service_started(
        &mut self,
        now: u64,
        pid: i32,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        let failures = self.starting("service started")?;
        let silent_at = now.saturating_add(self.timing.first_heartbeat_ms);
        self.service = Service::Running { pid, started_at: now, silent_at, failures };
        self.send_inventory(out);
        Ok(())
    }

    pub(super) fn service_not_started(
        &mut self,
        now: u64,
        out: &mut Vec<Action<D>>,
    ) -> Result<(), Forbidden> {
        let failures = self.starting("service not started")?.saturating_add(1);
        if let Some(restart_ms) = self.back_off(now, failures) {
            out.push(Action::Note(Note::ServiceNotStarted { restart_ms }));
        }
        Ok(())
    }

    fn starting(&self, input: &'static str) -> Result<u32, Forbidden> {
        match self.service {
            Service::Starting { failures } => Ok(failures),
            Service::Unborn
            | Service::Running { .. }
            | Service::Ending { .. }
            | Service::Backoff { .. }
            | Service::Stopped => Err(Forbidden { input, state: "the service is not being started" }),
        }
    }

    /// Requests are legal only from a running service.
    pub(super) fn require_service(&self, input: &'static str) -> Result<(), Forbidden> {
        match self.service {
            Service::Running { .. } => Ok(()),
            Service::Unborn
            | Service::Starting { .. }
            | Service::Ending { .. }
            | Service::Backoff { .. }
            | Service::Stopped => Err(Forbidden { input, state: NOT_RUNNING }),
        }
    }

    pub(super) fn alive(&mut self, now: u64) -> Result<(), Forbidden> {
        self.require_service("heartbeat")?;
        self.heard_at = now;
        if let Service::Running { silent_at, .. } = &mut self.service {
            *silent_at = now.saturating_add(self.timing.heartbeat_ms);
        }
        Ok(())
    }

    pub(super) fn service_deaf(&mut self, out: &mut Vec<Action<D>>) -> Result<(), Forbidden> {
        self.require_service("full queue")?;
        out.push(Action::Note(Note::ServiceDeaf));
        self.kill_service(out);
        Ok(())
    }

    pub(super) fn kill_service(&mut self, out: &mut Vec<Action<D>>) {
        if let Service::Running { pid, started_at, failures, .. } = self.service {
            self.service = Service::Ending { pid, started_at, failures };
            out.push(Action::SignalService(libc::SIGKILL));
        }
    }

    /// Whether `pid` was the service.
    pub(super) fn service_ended(
        &mut self,
        now: u64,
        pid: i32,
        status: RawStatus,
        out: &mut Vec<Action<D>>,
    ) -> bool {
        let (started_at, failures) = match self.service {
            Service::Running { pid: own, started_at, failures, .. }
            | Service::Ending { pid: own, started_at, failures }
                if own == pid =>
            {
                (started_at, failures)
            }
            Service::Unborn
            | Service::Starting { .. }
            | Service::Running { .. }
            | Service::Ending { .. }
            | Service::Backoff { .. }
            | Service::Stopped => return false,
        };
        let healthy = now.saturating_sub(started_at) >= self.timing.healthy_ms;
        let failures = if healthy { 1 } else { failures.saturating_add(1) };
        if let Some(restart_ms) = self.back_off(now, failures) {
            out.push(Action::Note(Note::ServiceEnded { status, restart_ms }));
        }
        true
    }

    /// Plans a restart and returns the pause, or stops for good when the machine goes down.
    fn back_off(&mut self, now: u64, failures: u32) -> Option<u64> {
        if !matches!(self.phase, Phase::Up) {
            self.service = Service::Stopped;
            return None;
        }
        let pause = pause_ms(self.timing.backoff_first_ms, self.timing.backoff_most_ms, failures);
        self.service = Service::Backoff { restart_at: now.saturating_add(pause), failures };
        Some(pause)
    }

    pub(super) fn service_due(&self) -> Option<u64> {
        match self.service {
            Service::Running { silent_at, .. } => Some(silent_at),
            Service::Backoff { restart_at, .. } => Some(restart_at),
            Service::Unborn | Service::Starting { .. } | Service::Ending { .. } | Service::Stopped => None,
        }
    }

    pub(super) fn tick_service(&mut self, now: u64, out: &mut Vec<Action<D>>) {
        match self.service {
            Service::Running { silent_at, started_at, .. } if silent_at <= now => {
                let silent_ms = now.saturating_sub(self.heard_at.max(started_at));
                out.push(Action::Note(Note::ServiceSilent { silent_ms }));
                self.kill_service(out);
            }
            Service::Backoff { restart_at, failures } if restart_at <= now => {
                self.start_service(failures, out)
            }
            Service::Unborn
            | Service::Starting { .. }
            | Service::Running { .. }
            | Service::Ending { .. }
            | Service::Backoff { .. }
            | Service::Stopped => {}
        }
    }
}

/// `first` for the first failure, doubled with each further one, never above `most`.
fn pause_ms(first: u64, most: u64, failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1);
    2_u64
        .checked_pow(doublings)
        .and_then(|factor| first.checked_mul(factor))
        .map_or(most, |pause| pause.min(most))
}

#[cfg(test)]
mod tests {
    use super::pause_ms;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<u64> = (1..=10).map(|failures| pause_ms(100, 30_000, failures)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
        assert_eq!(pause_ms(100, 30_000, u32::MAX), 30_000);
    }
}
