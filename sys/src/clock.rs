//! The system's clock. Whoever changes it needs CAP_SYS_TIME.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Sets the clock forward by so many nanoseconds, or back if they are negative.
///
/// # Errors
/// [`SysError::ClockGettime`], [`SysError::ClockSettime`].
pub fn step(nanos: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(SysError::ClockGettime)?;
    let whole = i128::from(now.tv_sec()) * i128::from(NANOS_PER_SECOND) + i128::from(now.tv_nsec());
    let then = whole + i128::from(nanos);
    let invalid = |_| SysError::ClockSettime(Errno::EINVAL);
    let seconds = i64::try_from(then.div_euclid(i128::from(NANOS_PER_SECOND))).map_err(invalid)?;
    let rest = i64::try_from(then.rem_euclid(i128::from(NANOS_PER_SECOND))).map_err(invalid)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, rest)).map_err(SysError::ClockSettime)
}

/// Lets the clock run up to 0.05 % faster or slower until so many nanoseconds are made up (adjtime(3): ADJ_OFFSET_SINGLESHOT of
/// adjtimex(2)). What was left of an earlier call is forgotten.
///
/// # Errors
/// [`SysError::Adjtimex`].
pub fn slew(nanos: i64) -> Result<()> {
    // SAFETY: timex consists of integers only, for which all zeros is a value.
    let mut request: nix::libc::timex = unsafe { std::mem::zeroed() };
    request.modes = nix::libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = nanos / 1000;
    // SAFETY: the kernel reads and writes the structure behind the pointer during the call only, and it is ours alone.
    let state = unsafe { nix::libc::adjtimex(&raw mut request) };
    Errno::result(state).map(drop).map_err(SysError::Adjtimex)
}
