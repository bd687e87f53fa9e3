//! Lines for people, written without ever waiting for a reader.
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;

/// How much a line matters; numbers of syslog(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The console shows it even with `quiet`.
    Error = 3,
    /// Something was not as it should be.
    Warning = 4,
    /// An event.
    Info = 6,
}

/// Where lines go.
#[derive(Debug)]
pub struct Log {
    /// /dev/kmsg; without it, standard error.
    kernel: Option<File>,
}

/// Longest line, in bytes: the kernel's records end at 1024 minus a prefix, and a pipe takes it whole or not at all.
const MAX_LINE: usize = 900;

impl Log {
    /// To the kernel's log where that is ours, else to standard error.
    #[must_use]
    pub fn new(kernel_log: bool) -> Self {
        let open = || OpenOptions::new().write(true).open("/dev/kmsg").ok();
        Self { kernel: if kernel_log { open() } else { None } }
    }

    /// Writes a line, or drops it if nobody takes it now.
    pub fn line(&self, level: Level, text: impl fmt::Display) {
        match &self.kernel {
            Some(kernel) => write_whole(kernel, &format!("<{}>wherry: {text}", level as u8)),
            None => write_ready(&format!("wherry: {text}")),
        }
    }

    /// An event.
    pub fn info(&self, text: impl fmt::Display) {
        self.line(Level::Info, text);
    }

    /// Something was not as it should be.
    pub fn warning(&self, text: impl fmt::Display) {
        self.line(Level::Warning, text);
    }

    /// Somebody should act.
    pub fn error(&self, text: impl fmt::Display) {
        self.line(Level::Error, text);
    }
}

/// The kernel takes one record per write and never blocks.
fn write_whole(mut to: &File, line: &str) {
    to.write_all(ending(line).as_bytes()).ok();
}

fn write_ready(line: &str) {
    let stderr = std::io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // A pipe that polls as writable has room for PIPE_BUF bytes, more than a line.
    if matches!(poll(&mut ready, PollTimeout::ZERO), Ok(1)) {
        nix::unistd::write(&stderr, ending(line).as_bytes()).ok();
    }
}

fn ending(line: &str) -> String {
    let mut end = line.len().min(MAX_LINE);
    while !line.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let cut = line.get(..end).unwrap_or_default();
    format!("{}\n", cut.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_not_too_long() {
        assert_eq!(ending("two\nlines"), "two lines\n");
        let long = "ü".repeat(MAX_LINE);
        assert!(ending(&long).len() <= MAX_LINE + 1);
        assert!(ending(&format!("x{long}")).len() <= MAX_LINE + 1);
    }
}
