//! Virtual boards: typed QEMU command lines, running machines with their console and QMP, and an
//! Ethernet segment between machines that lives in this process.
//!
//! ```text
//! Machine ──command_line()──▶ pure, golden-tested
//!    └─ Running::start ──▶ one QEMU process: console file, QMP over its stdin and stdout
//! Segment ──▶ learning switch between N machines (unix datagram sockets), faults, capture, DHCP
//! ```
//!
//! The crate knows QEMU and Ethernet; what runs inside the machines is not its business.
pub mod console;
pub mod host;
pub mod machine;
pub mod probe;
pub mod qmp;
pub mod running;
pub mod segment;
mod spawn;

pub use console::{Console, ConsoleError};
pub use host::{Accelerator, Host};
pub use machine::{Arch, Disk, Mac, Machine, Nic};
pub use probe::accelerator_for;
pub use running::{MachineError, Memory, Running};
pub use segment::{Counters, Faults, Lan, Port, Segment, SegmentError};

use std::time::Duration;

/// Environment variable: a number by which all deadlines of this crate are multiplied, for slow or busy hosts.
pub const TIMEOUT_FACTOR_VARIABLE: &str = "WHERRY_TIMEOUT_FACTOR";

/// `base`, stretched by [`TIMEOUT_FACTOR_VARIABLE`]. A factor that is no number, or is below 0.1, counts as 1.
#[must_use]
pub fn patience(base: Duration) -> Duration {
    let factor = std::env::var(TIMEOUT_FACTOR_VARIABLE).ok().and_then(|text| text.parse::<f64>().ok());
    base.mul_f64(factor.filter(|f| (0.1..=1000.0).contains(f)).unwrap_or(1.0))
}
