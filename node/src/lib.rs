//! The node: runs containers and their network on one board.
//!
//! ```text
//! config     wherry.toml of the board, and where things are
//! identity   the board's long-term key
//! facts      what the board is and can spare
//! state      pure: the broker's wishes and the runtime's events in, orders and reports out
//! routed     requests of users that the broker routed here
//! executor   carries out what the state decides
//! agent      the shell around the state
//! session    keeps a session with the broker; link dials and enrols
//! container  the runtime: plan, child, exec, logs, cgroups
//! oci        the command line of an OCI runtime, for hosts
//! web        the way of containers to the web endpoint
//! dns        the server that containers ask
//! net        bridge, GRE, nftables, DHCP as plan and apply
//! ```
pub mod agent;
pub mod blobs;
pub mod config;
pub mod container;
pub mod dns;
pub mod executor;
pub mod facts;
pub mod identity;
pub mod link;
pub mod net;
#[cfg(feature = "oci")]
pub mod oci;
pub mod probe;
pub mod routed;
pub mod serve;
pub mod session;
pub mod state;
pub mod web;
