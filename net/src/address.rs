//! The address plan: which numbers and names follow from a board's index and a container's id.
//!
//! ```text
//! Overlay         the overlay, and which part of it each board's containers have: 10.N.0.0/16 of 10.0.0.0/8
//! 10.N.0.1        board N's bridge, wherry0        gre-M         tunnel to board M
//! fdxx:…:N::1     its IPv6 address                 fdxx:…:N::xy  a container's, by its IPv4 address
//! wv12            board's end of container c12     02:57:0a:N:x:y   MAC of 10.N.x.y
//! wherry-wg       WireGuard, below all tunnels     10.0.255.N    board N's address on it: the end of its tunnels
//! wherry-wg1      the same, with another key
//! ```
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use wherry_protocol::{ContainerId, NodeIndex};
pub use wherry_protocol::{Overlay, OverlayError, Prefix, Prefix6, PrefixError};

/// A network or an interface's address of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpPrefix {
    /// IPv4.
    V4(Prefix),
    /// IPv6.
    V6(Prefix6),
}

impl IpPrefix {
    /// The address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.address.into(),
            Self::V6(prefix) => prefix.address.into(),
        }
    }

    /// The same network with the host bits cleared.
    #[must_use]
    pub fn network(self) -> Self {
        match self {
            Self::V4(prefix) => prefix.network().into(),
            Self::V6(prefix) => prefix.network().into(),
        }
    }

    /// Length of the prefix.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.bits,
            Self::V6(prefix) => prefix.bits,
        }
    }
}

impl From<Prefix> for IpPrefix {
    fn from(prefix: Prefix) -> Self {
        Self::V4(prefix)
    }
}

impl From<Prefix6> for IpPrefix {
    fn from(prefix: Prefix6) -> Self {
        Self::V6(prefix)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => prefix.fmt(f),
            Self::V6(prefix) => prefix.fmt(f),
        }
    }
}

/// The bridge that a board's containers hang on.
pub const BRIDGE: &str = "wherry0";
/// The container's own end of its veth pair.
pub const CONTAINER_INTERFACE: &str = "eth0";
/// Beginning of the names of tunnels; the board's number follows.
pub const TUNNEL_PREFIX: &str = "gre-";
/// Beginning of the names of the board's ends of veth pairs; the container's number follows.
pub const PORT_PREFIX: &str = "wv";
/// The WireGuard devices below all tunnels, one for each plane: packets go through one of them while the other gets a new key.
pub const WIREGUARD: [&str; 2] = ["wherry-wg", "wherry-wg1"];
/// Their UDP ports on every board.
pub const WIREGUARD_PORTS: [u16; 2] = [51820, 51821];
/// What WireGuard adds over IPv4: 20 bytes of IPv4, 8 of UDP, 16 of header and 16 of authentication tag (the WireGuard
/// paper, section 5.4.6).
pub const WIREGUARD_OVERHEAD_BYTES: u32 = 60;
/// Smallest largest packet that IPv6 works with, in bytes (RFC 8200 §5).
pub const IPV6_MIN_MTU: u32 = 1280;
/// What GRE without key or checksum adds: 20 bytes of IPv4 and 4 of GRE (RFC 2784 §2.1).
pub const GRE_OVERHEAD_BYTES: u32 = 24;

/// The name of the tunnel to board `peer`.
#[must_use]
pub fn tunnel_name(peer: NodeIndex) -> String {
    format!("{TUNNEL_PREFIX}{}", peer.0)
}

/// The board's end of the container's veth pair. Ids count up from 1 over the whole life of a cluster, so they stay far
/// below the 13 digits that fit a kernel interface name (IFNAMSIZ is 16 with the terminating zero); a longer one is
/// refused by [`port_name`]'s `None`.
#[must_use]
pub fn port_name(id: ContainerId) -> Option<String> {
    let name = format!("{PORT_PREFIX}{}", id.0);
    (name.len() < 16).then_some(name)
}

/// The MAC address that belongs to an overlay address: locally administered, unicast, with the address in it.
#[must_use]
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x57, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let lan: Prefix = "192.168.50.2/24".parse().unwrap();
        assert_eq!(lan.network().to_string(), "192.168.50.0/24");
        assert!(
            lan.contains(Ipv4Addr::new(192, 168, 50, 254)) && !lan.contains(Ipv4Addr::new(192, 168, 51, 1))
        );
        assert_eq!(lan.broadcast(), Ipv4Addr::new(192, 168, 50, 255));
        assert!("0.0.0.0/0".parse::<Prefix>().unwrap().contains(Ipv4Addr::new(8, 8, 8, 8)));
        for bad in ["", "1.2.3.4", "1.2.3.4/33", "1.2.3/8", "1.2.3.4/-1", "/8"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(port_name(ContainerId(12)).as_deref(), Some("wv12"));
        assert_eq!(port_name(ContainerId(9_999_999_999_999)).as_deref(), Some("wv9999999999999"));
        assert_eq!(port_name(ContainerId(u64::MAX)), None);
        assert_eq!(tunnel_name(NodeIndex(254)), "gre-254");
        assert_eq!(mac(Ipv4Addr::new(10, 1, 0, 2)), [2, 0x57, 10, 1, 0, 2]);
    }
}
