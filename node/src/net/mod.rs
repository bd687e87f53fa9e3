//! The network of one board. Under construction; see docs/network.md.
pub mod address;
pub mod firewall;
mod netlink;
pub mod nft;
