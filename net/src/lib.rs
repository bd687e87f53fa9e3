//! A board's own network, the same for broker and node.
//!
//! ```text
//! link       finds the Ethernet interfaces, brings them up, sets addresses and routes   (rtnetlink)
//! dhcp       DHCPv4 client                                                             (RFC 2131, smoltcp)
//! setup      what the configuration says, made so and kept so
//! discovery  a node asks its LAN for its broker, udp/1026
//! ```
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod discovery;
pub mod link;
pub mod setup;
