//! A board's own network, the same for broker and node.
//!
//! ```text
//! link       finds the Ethernet interfaces, brings them up, sets addresses, routes, VLANs (rtnetlink)
//! dhcp       DHCPv4 client                                                             (RFC 2131, smoltcp)
//! setup      what the configuration says, made so and kept so
//! dns        asking the name servers of the board's network
//! discovery  a node asks its LAN for its broker, udp/1026
//! join       a container's connection to the web endpoint, carried on
//! firewall   rules for boards and containers, computed from connections (pure)
//! nft        rules as text and as netlink messages, without the nft program
//! address    the overlay's address plan
//! ```
#![forbid(unsafe_code)]

pub mod address;
pub mod dhcp;
pub mod discovery;
pub mod dns;
pub mod firewall;
pub mod join;
pub mod link;
pub mod netlink;
pub mod nft;
pub mod setup;
pub mod sntp;
