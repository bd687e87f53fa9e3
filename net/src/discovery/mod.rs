//! LAN discovery, udp/1026: a node asks for the broker it belongs to, the broker answers from its address and proves its key.
//! The bytes and why they prove it: `wherry_protocol::discovery`.
//!
//! ```text
//! ask     a node's part: from each of its addresses, until one answer proves itself
//! answer  the broker's part, with what it is ready to work for strangers
//! tally   what was refused, counted and told once a minute
//! ```
mod answer;
mod ask;
mod tally;

pub use answer::Responder;
pub use ask::{Finder, Found};

/// The port of both: a node's firewall lets answers in from it and to it only.
pub const PORT: u16 = 1026;
