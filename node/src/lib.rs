//! The node: runs containers and their network on one board.
//!
//! ```text
//! config     wherry.toml of the board, and where things are
//! facts      what the board is and can spare
//! state      pure: the broker's wishes and the runtime's events in, orders and reports out
//! container  the runtime: plan, child, exec, logs, cgroups
//! net        bridge, GRE, nftables, DHCP as plan and apply
//! ```
pub mod config;
pub mod container;
pub mod facts;
pub mod net;
pub mod state;
