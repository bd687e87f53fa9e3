//! A whole cluster in virtual machines, for a person (`wherry dev`) and for tests.
//!
//! ```text
//! plan      which boards with which addresses: pure
//! cluster   the segment and the machines, owned by one process
//! control   how another process talks to that one: a socket, one JSON line each way
//! place     the directories a cluster lives in, and finding it again
//! ```
mod cluster;
pub mod control;
mod error;
pub mod place;
mod plan;

pub use cluster::{BoardReport, Cluster, Report};
pub use error::DevError;
pub use plan::{Board, Options, boards};
