//! Pseudo terminals (pty(7)).
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

/// Both ends of a pseudo terminal, close-on-exec.
#[derive(Debug)]
pub struct Pty {
    /// The side of whoever shows the terminal.
    pub controller: OwnedFd,
    /// The side of the program in it.
    pub terminal: OwnedFd,
}

/// Size of a window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

impl From<WindowSize> for libc::winsize {
    fn from(size: WindowSize) -> Self {
        Self { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
    }
}

/// Makes a pseudo terminal in the devpts of /dev/pts.
///
/// # Errors
/// [`SysError::Openpty`].
pub fn open_pty(size: WindowSize) -> Result<Pty> {
    let pair = nix::pty::openpty(&libc::winsize::from(size), None).map_err(SysError::Openpty)?;
    crate::fd::set_cloexec(&pair.master, true)?;
    crate::fd::set_cloexec(&pair.slave, true)?;
    Ok(Pty { controller: pair.master, terminal: pair.slave })
}

/// Makes a pseudo terminal in the devpts that `multiplexer` belongs to: its `ptmx`, opened with `O_PATH` or otherwise.
///
/// # Errors
/// [`SysError::Openpty`]; `ENOTTY` when it is anything else than that, which is then not opened.
pub fn open_pty_of(multiplexer: impl AsFd, size: WindowSize) -> Result<Pty> {
    /// magic.h; admin-guide/devices.txt.
    const PTMX: (u64, u64) = (5, 2);
    let fail = |errno| SysError::Openpty(errno);
    let device = nix::sys::stat::fstat(multiplexer.as_fd()).map_err(fail)?.st_rdev;
    let file_system = nix::sys::statfs::fstatfs(multiplexer.as_fd()).map_err(fail)?.filesystem_type();
    let numbers = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    if numbers != PTMX || file_system != nix::sys::statfs::DEVPTS_SUPER_MAGIC {
        return Err(fail(Errno::ENOTTY));
    }
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = format!("/proc/self/fd/{}", multiplexer.as_fd().as_raw_fd());
    let controller = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).map_err(fail)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let result = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked) };
    Errno::result(result).map_err(fail)?;
    // By descriptor: the path of the other end means something else in this mount namespace (ioctl_tty(2)).
    // SAFETY: TIOCGPTPEER takes open flags.
    let peer = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTPEER as _, flags.bits()) };
    let peer = Errno::result(peer).map_err(fail)?;
    // SAFETY: a new descriptor that nothing else owns.
    let terminal = unsafe { OwnedFd::from_raw_fd(peer) };
    set_window_size(&controller, size)?;
    Ok(Pty { controller, terminal })
}

/// Makes `terminal` the controlling terminal of the calling session leader.
///
/// # Errors
/// [`SysError::ControllingTerminal`].
pub fn set_controlling(terminal: impl AsFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a number; 0 means not to steal it from another session.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY as _, 0) };
    Errno::result(result).map(drop).map_err(SysError::ControllingTerminal)
}

/// Tells the terminal its size; its foreground process group gets SIGWINCH.
///
/// # Errors
/// [`SysError::WindowSize`].
pub fn set_window_size(terminal: impl AsFd, size: WindowSize) -> Result<()> {
    let size = libc::winsize::from(size);
    // SAFETY: TIOCSWINSZ reads one winsize.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
    Errno::result(result).map(drop).map_err(SysError::WindowSize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{End, Image, Spawn, spawn, wait};
    use nix::sched::CloneFlags;
    use std::ffi::CString;
    use std::fs::File;
    use std::io::Read as _;

    #[test]
    fn a_program_sees_the_size() {
        let pty = open_pty(WindowSize { rows: 10, columns: 20 }).unwrap();
        set_window_size(&pty.controller, WindowSize { rows: 30, columns: 91 }).unwrap();
        let arguments = ["stty", "size"].map(|word| CString::new(word).unwrap());
        let request = Spawn {
            image: Image::Program { path: c"/bin/stty", arguments: &arguments, environment: &[] },
            descriptors: &[pty.terminal.as_fd(), pty.terminal.as_fd(), pty.terminal.as_fd()],
            namespaces: CloneFlags::empty(),
            cgroup: None,
            death_signal: None,
        };
        assert_eq!(wait(spawn(&request).unwrap().pid), Ok(End::Code(0)));
        let mut buffer = [0; 16];
        let length = File::from(pty.controller).read(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"30 91\r\n");
    }

    #[test]
    fn a_terminal_can_be_made_by_its_multiplexer() {
        let multiplexer = File::open("/dev/pts/ptmx").unwrap();
        let pty = open_pty_of(&multiplexer, WindowSize { rows: 7, columns: 8 }).unwrap();
        nix::unistd::write(&pty.terminal, b"hello").unwrap();
        let mut buffer = [0; 16];
        let length = File::from(pty.controller).read(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        for other in ["/dev/null", "/dev/tty0", "/etc/passwd"].map(File::open).into_iter().flatten() {
            let size = WindowSize { rows: 1, columns: 1 };
            assert!(matches!(open_pty_of(&other, size), Err(SysError::Openpty(Errno::ENOTTY))));
        }
    }

    #[test]
    fn only_a_terminal_controls_or_has_a_size() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(set_controlling(&file), Err(SysError::ControllingTerminal(Errno::ENOTTY))));
        let size = WindowSize { rows: 1, columns: 1 };
        assert!(matches!(set_window_size(&file, size), Err(SysError::WindowSize(Errno::ENOTTY))));
    }
}
