//! The node: runs containers and their network on one board.
pub mod container;
pub mod net;
