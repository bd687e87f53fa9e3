//! What a container may be asked, and how often.
use super::{Refused, refuse, shown};
use crate::message::{HealthCheck, Probe};

/// Shortest and longest time in a health check, in milliseconds: a check more often than that would be the main load of a
/// small board; longer than a day nobody waits.
pub const CHECK_MS: std::ops::RangeInclusive<u32> = 100..=86_400_000;
/// Most failures in a row before a container counts as unhealthy.
const MAX_RETRIES: u32 = 1000;
/// Longest command of a check, in bytes: it is kept in memory for every container.
const MAX_PROBE_BYTES: usize = 16 * 1024;
/// Longest path of an HTTP request to a container, in bytes.
const MAX_URL_PATH_BYTES: usize = 2048;
/// Checks a question to a container.
///
/// # Errors
/// When it cannot be asked.
pub fn check_probe(probe: &Probe) -> Result<(), Refused> {
    match probe {
        Probe::Exec(command) if command.first().is_none_or(String::is_empty) => {
            refuse("there is no command to ask with: name a program")
        }
        Probe::Exec(command)
            if command.iter().map(|word| word.len() + 1).sum::<usize>() > MAX_PROBE_BYTES =>
        {
            refuse(format!("the command of a check takes more than {MAX_PROBE_BYTES} bytes"))
        }
        Probe::Exec(command) if command.iter().any(|word| word.contains('\0')) => {
            refuse("an argument of the check contains a NUL byte")
        }
        Probe::Exec(_) => Ok(()),
        Probe::Tcp { port: 0 } | Probe::Http { port: 0, .. } => refuse("a port is 1 to 65535, not 0"),
        Probe::Tcp { .. } => Ok(()),
        Probe::Http { path, .. } => {
            let visible = path.bytes().all(|byte| byte.is_ascii_graphic());
            if path.starts_with('/') && path.len() <= MAX_URL_PATH_BYTES && visible {
                Ok(())
            } else {
                refuse(format!("'{}' is not a path to ask for: begin with '/', no spaces", shown(path)))
            }
        }
    }
}

pub(super) fn check(check: &HealthCheck) -> Result<(), Refused> {
    if let Some(probe) = &check.probe {
        check_probe(probe)?;
    }
    for (what, time) in [
        ("interval", check.interval_ms),
        ("timeout", check.timeout_ms),
        ("start interval", check.start_interval_ms),
    ] {
        if time.is_some_and(|time| !CHECK_MS.contains(&time)) {
            return refuse(format!("the {what} of a health check is 100 ms to a day"));
        }
    }
    if check.start_period_ms.is_some_and(|time| time > *CHECK_MS.end()) {
        return refuse("the start period of a health check is at most a day");
    }
    match check.retries {
        Some(retries) if !(1..=MAX_RETRIES).contains(&retries) => {
            refuse(format!("a container is unhealthy after 1 to {MAX_RETRIES} failures, not {retries}"))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::OnUnhealthy;

    fn every(interval_ms: u32) -> HealthCheck {
        HealthCheck {
            probe: None,
            interval_ms: Some(interval_ms),
            timeout_ms: None,
            retries: None,
            start_period_ms: None,
            start_interval_ms: None,
            on_failure: OnUnhealthy::Tell,
        }
    }

    fn http(path: &str) -> Probe {
        Probe::Http { port: 80, path: path.into() }
    }

    #[test]
    fn questions_are_checked() {
        let exec = |words: &[&str]| Probe::Exec(words.iter().map(|&word| word.to_owned()).collect());
        for probe in [exec(&["true"]), Probe::Tcp { port: 1 }, http("/"), http("/a?b=%20c")] {
            assert_eq!(check_probe(&probe), Ok(()), "{probe:?}");
        }
        for probe in [
            exec(&[]),
            exec(&[""]),
            exec(&["a\0"]),
            Probe::Tcp { port: 0 },
            http(""),
            http("x"),
            http("/a b"),
            http("/\r\nHost: x"),
            http(&"/x".repeat(MAX_URL_PATH_BYTES)),
        ] {
            assert!(check_probe(&probe).is_err(), "{probe:?}");
        }
    }

    #[test]
    fn times_are_bounded() {
        assert!(check(&every(100)).is_ok());
        assert!(check(&every(99)).is_err() && check(&every(u32::MAX)).is_err());
        assert!(check(&HealthCheck { retries: Some(0), ..every(100) }).is_err());
        assert!(check(&HealthCheck { start_period_ms: Some(u32::MAX), ..every(100) }).is_err());
        assert!(check(&HealthCheck { probe: Some(Probe::Tcp { port: 0 }), ..every(100) }).is_err());
    }
}
