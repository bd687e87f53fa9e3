//! The address plan of a cluster: which network each board's containers have, chosen once by its broker.
use crate::{NodeIndex, Prefix, Prefix6};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Networks that are nobody's on the internet (RFC 1918 §3).
const PRIVATE: [Prefix; 3] = [
    Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(172, 16, 0, 0), 12),
    Prefix::new(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// A board's number takes so many bits of an address.
const BOARD_BITS: u8 = 8;
/// Longest prefix: 253 addresses for the containers of each board.
const MAX_BITS: u8 = 16;
/// Locally assigned unique local addresses (RFC 4193 §3.1).
const ULA: u8 = 0xfd;
/// Lengths of the prefix that a cluster has for itself, and of each network within (RFC 4193 §3.1).
const ULA_BITS: u8 = 48;
const ULA_SUBNET_BITS: u8 = 64;

/// What makes a cluster's IPv6 addresses its own: 40 bits that nobody else is likely to have chosen (RFC 4193 §3.2).
pub type GlobalId = [u8; 5];

/// The tunnels' ends are the last network of this length among the addresses of board 0, which has no containers.
const ENDS_BITS: u8 = 24;

/// Why a network cannot be cut into the boards' networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// No network at all.
    #[error("'{0}' is not a network for containers: say one as in 10.0.0.0/8")]
    Text(String),
    /// An address within a network.
    #[error("{0} is an address within a network: for the containers' network say {1}")]
    Host(Prefix, Prefix),
    /// Addresses that may be somebody's on the internet.
    #[error(
        "{0} is not private, so it cannot be the containers' network: choose one within 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
    )]
    Public(Prefix),
    /// Not enough addresses.
    #[error(
        "{0} is too small to be cut into the networks of 254 boards: choose a prefix of /8 to /{MAX_BITS}"
    )]
    TooSmall(Prefix),
    /// Somebody else's addresses.
    #[error(
        "the containers' network {overlay} and {whose} {lan} overlap: choose another one for the containers, as in overlay = \"{instead}\" in the broker's configuration"
    )]
    Taken {
        /// The containers'.
        overlay: Overlay,
        /// Whose network it is.
        whose: &'static str,
        /// That network.
        lan: Prefix,
        /// One that could be chosen.
        instead: Prefix,
    },
}

/// The addresses of all containers of a cluster: one private network, cut into 256 of the same size, by the boards' numbers; and
/// one /48 of IPv6, of which each board has the /64 with its number. A container's IPv6 address follows from its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Overlay {
    network: Prefix,
    global: GlobalId,
}

/// What is sent and stored; checked when it comes back.
#[derive(Serialize, Deserialize)]
struct Fields {
    network: Prefix,
    global: GlobalId,
}

impl TryFrom<Fields> for Overlay {
    type Error = OverlayError;
    fn try_from(fields: Fields) -> Result<Self, OverlayError> {
        Self::new(fields.network).map(|overlay| overlay.with_global(fields.global))
    }
}

impl From<Overlay> for Fields {
    fn from(overlay: Overlay) -> Self {
        Self { network: overlay.network, global: overlay.global }
    }
}

impl Default for Overlay {
    /// 10.0.0.0/8: board N has 10.N.0.0/16.
    fn default() -> Self {
        let [largest, ..] = PRIVATE;
        Self { network: largest, global: GlobalId::default() }
    }
}

impl Overlay {
    /// Cuts `network`. Its IPv6 addresses are those of nobody in particular, see [`Overlay::with_global`].
    ///
    /// # Errors
    /// When it is not private, too small, or no network.
    pub fn new(network: Prefix) -> Result<Self, OverlayError> {
        if network.bits > 32 || network.network() != network {
            let fitting = Prefix::new(network.address, network.bits).network();
            return Err(OverlayError::Host(network, fitting));
        }
        if !PRIVATE.iter().any(|private| private.bits <= network.bits && private.contains(network.address)) {
            return Err(OverlayError::Public(network));
        }
        if network.bits > MAX_BITS {
            Err(OverlayError::TooSmall(network))
        } else {
            Ok(Self { network, global: GlobalId::default() })
        }
    }

    /// The same with these IPv6 addresses.
    #[must_use]
    pub fn with_global(self, global: GlobalId) -> Self {
        Self { global, ..self }
    }

    /// What its IPv6 addresses are known by.
    #[must_use]
    pub fn global(&self) -> GlobalId {
        self.global
    }

    /// All of it.
    #[must_use]
    pub fn network(&self) -> Prefix {
        self.network
    }

    /// The network of board `index`'s containers.
    #[must_use]
    pub fn subnet(&self, index: NodeIndex) -> Prefix {
        let bits = self.network.bits + BOARD_BITS;
        let number = u32::from(index.0) << (32 - bits);
        Prefix::new(Ipv4Addr::from_bits(self.network.address.to_bits() | number), bits)
    }

    /// The board's own address in it, the first: its containers' gateway.
    #[must_use]
    pub fn gateway(&self, index: NodeIndex) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet(index).address.to_bits() | 1)
    }

    /// All of its IPv6 addresses.
    #[must_use]
    pub fn network6(&self) -> Prefix6 {
        let [a, b, c, d, e] = self.global;
        let bytes = [ULA, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Prefix6::new(Ipv6Addr::from(bytes), ULA_BITS)
    }

    /// The IPv6 network of board `index`'s containers.
    #[must_use]
    pub fn subnet6(&self, index: NodeIndex) -> Prefix6 {
        let number = u128::from(index.0) << (128 - ULA_SUBNET_BITS);
        let network = self.network6().address.to_bits();
        Prefix6::new(Ipv6Addr::from_bits(network | number), ULA_SUBNET_BITS)
    }

    /// The IPv6 address of whoever has `address`: the same board's, and the same number within.
    #[must_use]
    pub fn address6(&self, address: Ipv4Addr) -> Ipv6Addr {
        let host_bits = 32 - u32::from(self.network.bits + BOARD_BITS);
        let within = address.to_bits() & !self.network.mask();
        let (board, host) = (within >> host_bits, within & ((1 << host_bits) - 1));
        let board = u128::from(board) << (128 - ULA_SUBNET_BITS);
        Ipv6Addr::from_bits(self.network6().address.to_bits() | board | u128::from(host))
    }

    /// A board's end of all its tunnels: its address on the WireGuard devices. No container has one of that network.
    #[must_use]
    pub fn tunnel_end(&self, index: NodeIndex) -> Prefix {
        let ends = Prefix::new(self.subnet(NodeIndex(0)).broadcast(), ENDS_BITS).network();
        Prefix::new(Ipv4Addr::from_bits(ends.address.to_bits() | u32::from(index.0)), ENDS_BITS)
    }

    /// Whether a container of board `index` may have `address`: in the subnet, and not its first, its last or the gateway.
    #[must_use]
    pub fn usable(&self, index: NodeIndex, address: Ipv4Addr) -> bool {
        let subnet = self.subnet(index);
        let others = [subnet.address, self.gateway(index), subnet.broadcast()];
        subnet.contains(address) && !others.contains(&address)
    }

    /// Addresses that the containers of a board may have, in ascending order.
    pub fn addresses(&self, index: NodeIndex) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let subnet = self.subnet(index);
        (subnet.address.to_bits() + 2..subnet.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// How many these are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let all = 1_usize << (32 - u32::from(self.network.bits + BOARD_BITS));
        all - 3
    }

    /// Refuses an overlay that has addresses of `lan`, a network that is `whose`.
    ///
    /// # Errors
    /// [`OverlayError::Taken`], with a network that could be chosen instead.
    pub fn check_apart(&self, whose: &'static str, lan: Prefix) -> Result<(), OverlayError> {
        let lan = lan.network();
        if !self.network.overlaps(lan) {
            return Ok(());
        }
        // One of these two is free whatever the LAN is, unless somebody's LAN is all of the private networks.
        let wide = Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8);
        let instead = if wide.overlaps(lan) { Prefix::new(Ipv4Addr::new(172, 20, 0, 0), 14) } else { wide };
        Err(OverlayError::Taken { overlay: *self, whose, lan, instead })
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.network.fmt(f)
    }
}

impl FromStr for Overlay {
    type Err = OverlayError;
    fn from_str(text: &str) -> Result<Self, OverlayError> {
        let network = text.parse().map_err(|_| OverlayError::Text(text.chars().take(40).collect()))?;
        Self::new(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(text: &str) -> Overlay {
        text.parse().unwrap()
    }

    #[test]
    fn boards_get_equal_parts() {
        let (usual, three) = (Overlay::default(), NodeIndex(3));
        assert_eq!(usual, overlay("10.0.0.0/8"));
        assert_eq!(usual.subnet(three).to_string(), "10.3.0.0/16");
        assert_eq!(usual.gateway(three).to_string(), "10.3.0.1");
        assert_eq!(usual.tunnel_end(three).to_string(), "10.0.255.3/24");
        let middle = overlay("172.16.0.0/12");
        assert_eq!(middle.subnet(NodeIndex(254)).to_string(), "172.31.224.0/20");
        assert_eq!(middle.tunnel_end(NodeIndex(254)).to_string(), "172.16.15.254/24");
        let small = overlay("192.168.0.0/16");
        assert_eq!(small.subnet(three).to_string(), "192.168.3.0/24");
        assert_eq!(small.tunnel_end(three).to_string(), "192.168.0.3/24");
        assert_eq!((usual.capacity(), middle.capacity(), small.capacity()), (65_533, 4093, 253));
        for plan in [usual, middle, small] {
            let all: Vec<Ipv4Addr> = plan.addresses(three).collect();
            assert_eq!(all.len(), plan.capacity());
            assert!(all.iter().all(|address| plan.usable(three, *address)));
        }
    }

    #[test]
    fn ipv6_addresses_follow_from_the_others() {
        let id = [0x12, 0x34, 0x56, 0x78, 0x9a];
        let usual = Overlay::default().with_global(id);
        assert_eq!(usual.network6().to_string(), "fd12:3456:789a::/48");
        assert_eq!(usual.subnet6(NodeIndex(18)).to_string(), "fd12:3456:789a:12::/64");
        let of = |overlay: Overlay, address: &str| overlay.address6(address.parse().unwrap()).to_string();
        assert_eq!(of(usual, "10.18.0.1"), "fd12:3456:789a:12::1");
        assert_eq!(of(usual, "10.1.255.254"), "fd12:3456:789a:1::fffe");
        let other = overlay("172.20.0.0/14").with_global(id);
        assert_eq!(of(other, "172.20.4.2"), "fd12:3456:789a:1::2");
        assert_eq!(of(other, "172.23.251.254"), "fd12:3456:789a:fe::3fe");
        for plan in [usual, other, overlay("192.168.0.0/16").with_global(id)] {
            let (index, mut seen) = (NodeIndex(7), std::collections::BTreeSet::new());
            let all = plan.addresses(index).map(|address| plan.address6(address));
            assert!(
                all.into_iter().all(|address| plan.subnet6(index).contains(address) && seen.insert(address))
            );
        }
    }

    #[test]
    fn reserved_addresses_are_not_usable() {
        let (usual, index) = (Overlay::default(), NodeIndex(3));
        for bad in ["10.3.0.0", "10.3.0.1", "10.3.255.255", "10.4.0.2", "192.168.0.2"] {
            assert!(!usual.usable(index, bad.parse().unwrap()), "{bad}");
        }
        assert!(usual.usable(index, "10.3.0.2".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_cut_is_refused_in_a_sentence() {
        for (text, words) in [
            ("all", "'all' is not a network for containers: say one as in 10.0.0.0/8"),
            ("10.1.0.0/8", "for the containers' network say 10.0.0.0/8"),
            ("8.0.0.0/8", "8.0.0.0/8 is not private"),
            ("10.0.0.0/7", "is not private"),
            ("172.0.0.0/8", "is not private"),
            ("100.64.0.0/10", "is not private"),
            ("10.1.0.0/17", "choose a prefix of /8 to /16"),
        ] {
            let error = text.parse::<Overlay>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        for bits in [17, 33, 255] {
            let network = Prefix { address: Ipv4Addr::new(10, 0, 0, 0), bits };
            let fields = Fields { network, global: GlobalId::default() };
            assert!(Overlay::try_from(fields).is_err(), "{bits}");
        }
    }

    #[test]
    fn a_lan_within_it_is_refused_with_a_way_out() {
        let apart = |plan: &str, lan: &str| {
            let lan = lan.parse().unwrap();
            overlay(plan).check_apart("the board's network", lan).map_err(|error| error.to_string())
        };
        assert_eq!(apart("10.0.0.0/8", "192.168.50.2/24"), Ok(()));
        assert_eq!(
            apart("10.0.0.0/8", "10.0.5.9/24"),
            Err("the containers' network 10.0.0.0/8 and the board's network 10.0.5.0/24 overlap: choose another one for \
                 the containers, as in overlay = \"172.20.0.0/14\" in the broker's configuration"
                .into())
        );
        assert!(apart("192.168.0.0/16", "192.168.50.2/24").unwrap_err().contains("\"10.0.0.0/8\""));
        assert!(apart("172.20.0.0/14", "0.0.0.0/0").is_err());
    }
}
