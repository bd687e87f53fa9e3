//! Asking the name servers of the board's own network.
//!
//! ```text
//! upstream  whom to ask, and telling their answers from other people's
//! lookup    addresses and texts of names
//! ```
mod lookup;
mod upstream;

pub use lookup::{LookupError, addresses, texts};
pub use upstream::{Transport, Upstream};
