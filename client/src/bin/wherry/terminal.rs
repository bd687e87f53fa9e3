//! This computer's terminal: raw mode that is always undone, its size.
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stdin, stdout};

/// Rows and columns when nobody knows better: the VT100's.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// Whether somebody sits at standard input.
pub(crate) fn is_interactive() -> bool {
    isatty(stdin())
}

/// Rows and columns.
pub(crate) fn size() -> (u16, u16) {
    [tcgetwinsize(stdout()), tcgetwinsize(stdin())]
        .into_iter()
        .filter_map(Result::ok)
        .map(|size| (size.ws_row, size.ws_col))
        .find(|&(rows, columns)| rows > 0 && columns > 0)
        .unwrap_or(DEFAULT_SIZE)
}

/// Every key goes to the other side while this exists; dropping it gives the terminal back as it was.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` if standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // If the terminal has gone away there is nothing to give back.
        tcsetattr(stdin(), OptionalActions::Drain, &self.before).unwrap_or_default();
    }
}
