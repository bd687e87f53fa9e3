//! The hardware watchdog (kernel: Documentation/watchdog/watchdog-api.rst) and the end.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

// linux/watchdog.h: _IOR('W', 5, int) and _IOWR('W', 6, int).
nix::ioctl_read!(
    #[doc = "WDIOC_KEEPALIVE."]
    watchdog_keepalive,
    b'W',
    5,
    libc::c_int
);
nix::ioctl_readwrite!(
    #[doc = "WDIOC_SETTIMEOUT."]
    watchdog_set_timeout,
    b'W',
    6,
    libc::c_int
);

/// An armed watchdog: unless fed in time the machine resets. Dropping it does not disarm it.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    timeout: Duration,
}

impl Watchdog {
    /// Opens the device, which arms it, and asks for `timeout`; the driver may round it.
    ///
    /// # Errors
    /// [`SysError::Open`], `ENOENT` where there is none.
    pub fn arm(device: &Path, timeout: Duration) -> Result<Self> {
        let device = OpenOptions::new().write(true).open(device);
        let device = device.map_err(|error| SysError::Open(crate::fd::errno_of(&error)))?;
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the ioctl reads and writes one int. A driver with a fixed timeout refuses; its timeout is then
        // unknown and the one asked for is as good a guess as any.
        if unsafe { watchdog_set_timeout(device.as_raw_fd(), &raw mut seconds) }.is_err() {
            return Ok(Self { device, timeout });
        }
        let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Self { device, timeout })
    }

    /// What the driver agreed to.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Starts the count again.
    ///
    /// # Errors
    /// [`SysError::Watchdog`].
    pub fn feed(&self) -> Result<()> {
        let mut unused = 0;
        // SAFETY: the ioctl writes at most one int.
        unsafe { watchdog_keepalive(self.device.as_raw_fd(), &raw mut unused) }
            .map(drop)
            .map_err(SysError::Watchdog)
    }

    /// Disarms it with the magic character, where the driver allows that.
    ///
    /// # Errors
    /// [`SysError::Write`].
    pub fn disarm(&self) -> Result<()> {
        (&self.device).write_all(b"V").map_err(|error| SysError::Write(crate::fd::errno_of(&error)))
    }
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Power off.
    PowerOff,
    /// Start again.
    Restart,
}

/// Ends the machine at once; file systems are not synced. In a pid namespace it ends that namespace (reboot(2)).
///
/// # Errors
/// [`SysError::Reboot`].
pub fn end_machine(ending: Ending) -> Result<Infallible> {
    use nix::sys::reboot::{RebootMode, reboot};
    let mode = match ending {
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Restart => RebootMode::RB_AUTOBOOT,
    };
    reboot(mode).map_err(SysError::Reboot)
}

/// Makes ctrl-alt-del send SIGINT to PID 1 instead of resetting the machine.
///
/// # Errors
/// [`SysError::Reboot`].
pub fn ctrl_alt_del_signals() -> Result<()> {
    nix::sys::reboot::set_cad_enabled(false).map_err(SysError::Reboot)
}

/// Milliseconds since boot, `CLOCK_BOOTTIME`.
///
/// # Errors
/// [`SysError::ClockGettime`].
pub fn boot_time_ms() -> Result<u64> {
    let time =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_err(SysError::ClockGettime)?;
    let invalid = |_| SysError::ClockGettime(Errno::EINVAL);
    let seconds = u64::try_from(time.tv_sec()).map_err(invalid)?;
    let millis = u64::try_from(time.tv_nsec() / 1_000_000).map_err(invalid)?;
    Ok(seconds.saturating_mul(1000).saturating_add(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_watchdog_is_an_error_that_says_so() {
        let error = Watchdog::arm(Path::new("/nowhere/watchdog"), Duration::from_secs(10)).unwrap_err();
        assert_eq!(error, SysError::Open(Errno::ENOENT));
    }

    /// A regular file takes the writes and refuses the ioctls: enough to see the magic character and the refusal.
    #[test]
    fn disarming_writes_the_magic_character() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watchdog = Watchdog::arm(file.path(), Duration::from_secs(10)).unwrap();
        assert_eq!(watchdog.timeout(), Duration::from_secs(10));
        assert_eq!(watchdog.feed(), Err(SysError::Watchdog(Errno::ENOTTY)));
        watchdog.disarm().unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"V");
    }

    #[test]
    fn boot_time_grows() {
        let first = boot_time_ms().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(boot_time_ms().unwrap() >= first + 5);
    }
}
