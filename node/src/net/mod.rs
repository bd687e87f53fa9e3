//! The network of one board's containers: devices, rules, and tunnels to other boards.
//!
//! ```text
//! network   what the agent calls             board    the state behind it, on a thread of its own
//! plan      what must change (pure)          observe  what is; apply: takes the steps of a plan
//! inside    a container's end                tunnel   TCP from inside a container
//! rules     those of one namespace
//! underlay  what is below all tunnels        wireguard  its devices, by generic netlink
//! ```
//! Rules come from `wherry_net::firewall`, the board's own address from `wherry_net::setup`. `docs/network.md` has the
//! address plan, the way of a packet, and every table.
mod apply;
mod board;
mod error;
mod inside;
pub(crate) mod namespace;
mod network;
mod observe;
pub mod plan;
mod route;
mod rules;
mod settings;
pub mod tunnel;
mod underlay;
mod wireguard;

pub use apply::{ApplyError, StepError};
pub use error::NetError;
pub use inside::InsideError;
pub use network::{LocalContainer, NetConfig, Network};
