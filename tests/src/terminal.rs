//! A person's terminal: a pseudo-terminal with a command in it.
use crate::cli::Collected;
use crate::failure::{Failure, ensure};
use crate::wait::until;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::process::{Child, Command};
use std::time::Duration;

/// A command with a terminal, and what it has shown there. Killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    child: Child,
    shown: Collected,
}

impl Terminal {
    /// Runs `command` in a terminal of so many rows and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Result<Self, Failure> {
        let failed = |error: rustix::io::Errno| Failure::io("open a terminal")(error.into());
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).map_err(failed)?;
        grantpt(&controller).map_err(failed)?;
        unlockpt(&controller).map_err(failed)?;
        let name = ptsname(&controller, Vec::new()).map_err(failed)?;
        let name = name.to_string_lossy().into_owned();
        let open = || OpenOptions::new().read(true).write(true).open(&name);
        let (input, output, error) = (open(), open(), open());
        let unusable = || Failure::io(format!("open {name}"));
        command.stdin(input.map_err(unusable())?);
        command.stdout(output.map_err(unusable())?).stderr(error.map_err(unusable())?);
        let keyboard = File::from(controller);
        tcsetwinsize(&keyboard, size(rows, columns)).map_err(failed)?;
        let child = command.spawn().map_err(Failure::io("run a command in a terminal"))?;
        // Reading ends with EIO once nobody has the other end.
        let shown = Collected::from(Some(keyboard.try_clone().map_err(unusable())?));
        Ok(Self { keyboard, child, shown })
    }

    /// Everything on the screen so far.
    #[must_use]
    pub fn shown(&self) -> String {
        self.shown.text()
    }

    /// Waits until `text` is on the screen.
    pub fn expect(&self, text: &str, timeout: Duration) -> Result<(), Failure> {
        until(&format!("'{text}' on the terminal"), timeout, || match self.shown() {
            shown if shown.contains(text) => Ok(()),
            shown => Err(shown),
        })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<(), Failure> {
        self.keyboard.write_all(keys.as_bytes()).map_err(Failure::io("press keys"))
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Failure> {
        tcsetwinsize(&self.keyboard, size(rows, columns))
            .map_err(|error| Failure::io("resize a terminal")(error.into()))?;
        // A terminal emulator's child is its session's leader and hears of it; ours is told by hand.
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGWINCH)
            .map_err(|errno| Failure::io("announce a size")(errno.into()))
    }

    /// Waits for its end, and wants this exit code.
    pub fn expect_code(&mut self, code: i32, timeout: Duration) -> Result<(), Failure> {
        let status = until("the end of a command in a terminal", timeout, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}; {}", self.shown.text())),
        })?;
        ensure(status.code() == Some(code), || {
            format!("it ended with {status}, not {code}: {}", self.shown())
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
