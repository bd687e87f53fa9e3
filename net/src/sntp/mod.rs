//! The board's clock: SNTP (RFC 4330) from several servers, and a time that never goes back across reboots.
//!
//! ```text
//! packet    a question and what its answer says; pure
//! select    several answers → one offset, or none; pure
//! floor     the last time that was known, on the data partition
//! keep      asks, again and again, and has the clock set
//! ```
//! Boards of this class have no clock that runs while they are off: they begin in 1970, or when their firmware was made.
mod floor;
mod keep;
mod packet;
mod select;

pub use floor::{EARLIEST_SECONDS, Floor};
pub use keep::{Keeper, Schedule, Servers};
pub use packet::{Answer, Nanos, Refusal};
pub use select::{Adjustment, Sample, decide, select};
