//! When a container is asked how it is, and what the answers add up to. Pure: the image's wish and the user's go in.
use serde::{Deserialize, Serialize};
use std::time::Duration;
use wherry_images::oci::Healthcheck;
use wherry_protocol::message::{Health, HealthCheck, HealthReport, OnUnhealthy, Probe, Setting};
use wherry_protocol::policy::{self, CHECK_MS};

/// What applies where nobody says otherwise: Docker's defaults, in milliseconds.
const INTERVAL_MS: u32 = 30_000;
const TIMEOUT_MS: u32 = 30_000;
const START_INTERVAL_MS: u32 = 5_000;
const RETRIES: u32 = 3;

/// A health check with everything decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPlan {
    /// The question.
    pub probe: Probe,
    /// From the end of one check to the next, in milliseconds.
    pub interval_ms: u32,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u32,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// So long after its start failures do not count, in milliseconds.
    pub start_period_ms: u32,
    /// As `interval_ms`, during that time.
    pub start_interval_ms: u32,
    /// Whether an unhealthy container is killed.
    pub kill: bool,
}

/// What the image and the user want together; `None` for no check.
#[must_use]
pub fn plan(image: Option<&Healthcheck>, settings: &[Setting]) -> Option<HealthPlan> {
    let wish = settings.iter().rev().find_map(|setting| match setting {
        Setting::NoHealth => Some(None),
        Setting::Health(check) => Some(Some(check)),
        _ => None,
    });
    if wish == Some(None) {
        return None;
    }
    let wish = wish.flatten();
    let own = wish.and_then(|check| check.probe.clone());
    let probe = own.or_else(|| image.and_then(image_probe))?;
    // An image that asks for nonsense is not checked; a user has been told.
    policy::check_probe(&probe).ok()?;
    let pick = |wish: Option<u32>, image: Option<i64>, usual| {
        wish.or_else(|| image.and_then(milliseconds)).unwrap_or(usual)
    };
    let user = |field: fn(&HealthCheck) -> Option<u32>| wish.and_then(field);
    let of_image = |field: fn(&Healthcheck) -> Option<i64>| image.and_then(field);
    let retries = of_image(|image| image.retries).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
    Some(HealthPlan {
        probe,
        interval_ms: pick(user(|c| c.interval_ms), of_image(|i| i.interval), INTERVAL_MS),
        timeout_ms: pick(user(|c| c.timeout_ms), of_image(|i| i.timeout), TIMEOUT_MS),
        retries: user(|c| c.retries).or(retries).unwrap_or(RETRIES),
        start_period_ms: pick(user(|c| c.start_period_ms), of_image(|i| i.start_period), 0),
        start_interval_ms: pick(
            user(|c| c.start_interval_ms),
            of_image(|i| i.start_interval),
            START_INTERVAL_MS,
        ),
        kill: wish.is_some_and(|check| check.on_failure == OnUnhealthy::Kill),
    })
}

/// `CMD` and `CMD-SHELL`, as Dockerfile's HEALTHCHECK leaves them in the configuration.
fn image_probe(image: &Healthcheck) -> Option<Probe> {
    let (kind, words) = image.test.as_deref()?.split_first()?;
    match (kind.as_str(), words) {
        ("CMD", [_, ..]) => Some(Probe::Exec(words.to_vec())),
        ("CMD-SHELL", [line, ..]) => Some(Probe::shell(line)),
        _ => None,
    }
}

/// Images say nanoseconds; 0 is "as usual", and what nobody may ask for is brought within bounds.
fn milliseconds(nanoseconds: i64) -> Option<u32> {
    if nanoseconds <= 0 {
        return None;
    }
    let asked = u32::try_from(nanoseconds / 1_000_000).unwrap_or(u32::MAX);
    Some(asked.clamp(*CHECK_MS.start(), *CHECK_MS.end()))
}

/// What the checks so far add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    plan: HealthPlan,
    report: HealthReport,
}

impl Course {
    /// Before the first check.
    #[must_use]
    pub fn new(plan: HealthPlan) -> Self {
        let report = HealthReport { health: Health::Starting, failures: 0, output: String::new() };
        Self { plan, report }
    }

    /// What is to be told.
    #[must_use]
    pub fn report(&self) -> &HealthReport {
        &self.report
    }

    /// How long to wait before the next check, `age` after the container's start.
    #[must_use]
    pub fn pause(&self, age: Duration) -> Duration {
        let starting = self.report.health == Health::Starting && self.in_start_period(age);
        let pause = if starting { self.plan.start_interval_ms } else { self.plan.interval_ms };
        Duration::from_millis(u64::from(pause))
    }

    fn in_start_period(&self, age: Duration) -> bool {
        age < Duration::from_millis(u64::from(self.plan.start_period_ms))
    }

    /// Takes the answer of one check, `age` after the container's start. Whether there is something new to tell.
    pub fn take(&mut self, age: Duration, answer: Result<(), String>) -> bool {
        let before = self.report.health;
        match answer {
            Ok(()) => {
                self.report = HealthReport { health: Health::Healthy, failures: 0, output: String::new() };
            }
            Err(words) => {
                let forgiven = before == Health::Starting && self.in_start_period(age);
                if !forgiven {
                    self.report.failures = self.report.failures.saturating_add(1);
                }
                if self.report.failures >= self.plan.retries {
                    self.report.health = Health::Unhealthy;
                }
                self.report.output = words;
            }
        }
        self.report.health != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(test: &[&str]) -> Healthcheck {
        let test = Some(test.iter().map(|&word| word.to_owned()).collect());
        Healthcheck { test, interval: Some(2_000_000_000), retries: Some(5), ..Healthcheck::default() }
    }

    fn user(probe: Option<Probe>) -> Setting {
        Setting::Health(HealthCheck {
            probe,
            interval_ms: None,
            timeout_ms: Some(700),
            retries: None,
            start_period_ms: Some(1000),
            start_interval_ms: None,
            on_failure: OnUnhealthy::Kill,
        })
    }

    #[test]
    fn the_user_overrides_the_image_piece_by_piece() {
        assert_eq!(plan(None, &[]), None);
        assert_eq!(plan(Some(&image(&["NONE"])), &[]), None);
        assert_eq!(plan(Some(&image(&["CMD"])), &[]), None);
        assert_eq!(plan(Some(&image(&["CMD", "a"])), &[Setting::NoHealth]), None);
        let shell = plan(Some(&image(&["CMD-SHELL", "a b"])), &[]).unwrap();
        assert_eq!(shell.probe, Probe::Exec(vec!["/bin/sh".into(), "-c".into(), "a b".into()]));
        assert_eq!(
            (shell.interval_ms, shell.timeout_ms, shell.retries, shell.kill),
            (2000, 30_000, 5, false)
        );
        let both = plan(Some(&image(&["CMD", "a"])), &[user(Some(Probe::Tcp { port: 80 }))]).unwrap();
        assert_eq!(both.probe, Probe::Tcp { port: 80 });
        assert_eq!(
            (both.interval_ms, both.timeout_ms, both.start_period_ms, both.kill),
            (2000, 700, 1000, true)
        );
        assert_eq!(plan(None, &[user(None)]), None, "there is no question");
    }

    #[test]
    fn an_image_cannot_ask_for_nonsense() {
        let hectic = Healthcheck { interval: Some(1), ..image(&["CMD", "a"]) };
        assert_eq!(plan(Some(&hectic), &[]).unwrap().interval_ms, 100);
        let lazy = Healthcheck { interval: Some(i64::MAX), ..image(&["CMD", "a"]) };
        assert_eq!(plan(Some(&lazy), &[]).unwrap().interval_ms, 86_400_000);
        let never = Healthcheck { interval: Some(-5), retries: Some(-1), ..image(&["CMD", "a"]) };
        assert_eq!(plan(Some(&never), &[]).unwrap().interval_ms, 30_000);
        assert_eq!(plan(Some(&never), &[]).unwrap().retries, 3);
        assert_eq!(plan(Some(&image(&["CMD", ""])), &[]), None);
    }

    #[test]
    fn failures_add_up_and_one_success_mends() {
        let health = HealthPlan { retries: 2, ..plan(Some(&image(&["CMD", "a"])), &[user(None)]).unwrap() };
        let mut course = Course::new(health);
        let second = Duration::from_secs(1);
        assert!(!course.take(second / 2, Err("too early".into())), "the start period forgives");
        assert_eq!(course.report().failures, 0);
        assert_eq!(course.pause(second / 2), Duration::from_secs(5));
        assert_eq!(course.pause(second), Duration::from_secs(2));
        assert!(!course.take(second, Err("no".into())));
        assert!(course.take(second * 3, Err("still no".into())));
        assert_eq!(course.report().health, Health::Unhealthy);
        assert_eq!(course.report().output, "still no");
        assert!(course.take(second * 5, Ok(())));
        assert_eq!(
            course.report(),
            &HealthReport { health: Health::Healthy, failures: 0, output: String::new() }
        );
        assert!(!course.take(second * 7, Ok(())));
        assert!(!course.take(second * 9, Err("no".into())), "one failure is none");
        assert_eq!(course.report().health, Health::Healthy);
    }
}
