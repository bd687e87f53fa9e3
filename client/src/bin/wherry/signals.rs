//! Signals by name. Containers run on Linux, so its numbers are used, whatever this computer runs (signal(7)).
use crate::context::CliError;
use tokio::signal::unix::{Signal, SignalKind, signal};

const NAMES: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Largest signal number on Linux.
const MAX: u8 = 64;

/// What ctrl-C sends.
pub(crate) const INT: u8 = 2;
/// What `kill` sends unless told otherwise.
pub(crate) const TERM: u8 = 15;
/// A terminal that went away.
pub(crate) const HUP: u8 = 1;

/// `TERM`, `SIGTERM`, `term`, `15`.
pub(crate) fn parse(text: &str) -> Result<u8, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = || text.parse().ok().filter(|number| (1..=MAX).contains(number) && !text.starts_with('+'));
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .or_else(number)
        .ok_or_else(|| format!("'{text}' is not a signal: use a name or number, as in TERM or 15"))
}

/// `SIGKILL` for 9; the number where there is no name.
pub(crate) fn name(signal: u8) -> String {
    match NAMES.iter().find(|(_, number)| *number == signal) {
        Some((name, _)) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// Ctrl-C, and the wish of whoever manages services, for commands that go on until then.
#[derive(Debug)]
pub(crate) struct Ending {
    interrupt: Signal,
    terminate: Signal,
}

impl Ending {
    /// From now on neither ends this program by itself.
    pub(crate) fn watch() -> Result<Self, CliError> {
        let watch =
            |kind| signal(kind).map_err(|error| CliError::Other(format!("cannot watch signals: {error}")));
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    pub(crate) async fn wished(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(15));
        }
        assert_eq!((parse("64"), parse("USR1")), (Ok(64), Ok(10)));
        for bad in ["", "0", "65", "SIG", "TERMINATE", "-9", "+9"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!((name(9).as_str(), name(40).as_str()), ("SIGKILL", "signal 40"));
    }
}
