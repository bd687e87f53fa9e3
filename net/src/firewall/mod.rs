//! Which packets may go where, as rulesets computed from what the broker wants. Pure: nothing here touches the kernel.
//!
//! A connection `from → to:port` opens exactly two things, in both containers' namespaces and once more on each board
//! on the way: packets to the port, and packets back from it that belong to a flow already seen. Nothing accepts
//! "established" for overlay traffic in general, so taking a connection away also ends the flows that use it.
mod board;
mod container;

pub use board::{Board, Ports, Published, board};
pub use container::{Container, container};

use super::address::{Overlay, Prefix, Prefix6};
use super::nft::{
    Element, Icmp, Key, KeyType, Match, NftError, NftSocket, Not, Rule, RulesGeneration, Set, States, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use wherry_protocol::message::{DropReason, Egress, Transport};

/// Closes a board that runs no containers (a broker) but for what it offers, `published` ports among it. In the calling
/// thread's namespace.
///
/// Gives the state of the rules then: as long as [`generation`] gives the same, nobody has changed them.
///
/// # Errors
/// When the kernel lacks nf_tables or the process CAP_NET_ADMIN.
pub fn protect(ports: Ports, published: &[Published]) -> Result<RulesGeneration, NftError> {
    let nothing = Board {
        ports,
        published,
        uplink: None,
        lan: &[],
        overlay: Overlay::default(),
        index: None,
        peers: &[],
        connections: &[],
        callers: &[],
        containers: &BTreeMap::new(),
        egress: &BTreeMap::new(),
    };
    let mut socket = NftSocket::open()?;
    socket.replace(&board(&nothing))?;
    socket.generation()
}

/// The state of the calling thread's namespace's rules.
///
/// # Errors
/// As [`protect`].
pub fn generation() -> Result<RulesGeneration, NftError> {
    NftSocket::open()?.generation()
}

/// The two addresses that each container has. Whatever is about connections exists once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

impl Version {
    fn key_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType::Ipv4,
            Self::V6 => KeyType::Ipv6,
        }
    }

    /// The address of this kind of whoever has `address`.
    fn value(self, overlay: Overlay, address: Ipv4Addr) -> Value {
        match self {
            Self::V4 => Value::Ipv4(address),
            Self::V6 => Value::Ipv6(overlay.address6(address)),
        }
    }

    fn source(self) -> Key {
        match self {
            Self::V4 => Key::Source,
            Self::V6 => Key::Source6,
        }
    }

    fn destination(self) -> Key {
        match self {
            Self::V4 => Key::Destination,
            Self::V6 => Key::Destination6,
        }
    }

    /// The name of the set for this kind of address.
    fn set(self, names: [&'static str; 2]) -> &'static str {
        let [v4, v6] = names;
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// Routers on the way say that a packet was too large: path MTU discovery needs it.
    fn too_large(self) -> Rule {
        let kind = match self {
            Self::V4 => Icmp::FragmentationNeeded,
            Self::V6 => Icmp::PacketTooBig,
        };
        Rule::new().when(Match::Icmp(kind)).state(States::RELATED).accept()
    }
}

/// The name of all our tables.
pub const TABLE: &str = "wherry";
/// DNS (RFC 1035 §4.2).
const DNS: u16 = 53;
/// Ports of the web.
const WEB: [u16; 2] = [80, 443];

/// Networks that are not the internet: no container has business there. RFC 6890 lists them; the overlay is one of them or
/// within one, and comes first.
const NOT_INTERNET: [Prefix; 11] = [
    Prefix::new(Ipv4Addr::new(0, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(100, 64, 0, 0), 10),
    Prefix::new(Ipv4Addr::new(127, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(169, 254, 0, 0), 16),
    Prefix::new(Ipv4Addr::new(172, 16, 0, 0), 12),
    Prefix::new(Ipv4Addr::new(192, 0, 0, 0), 24),
    Prefix::new(Ipv4Addr::new(192, 168, 0, 0), 16),
    Prefix::new(Ipv4Addr::new(198, 18, 0, 0), 15),
    Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4),
    Prefix::new(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Rules that drop what is not on its way to the internet: the overlay, the board's networks, everybody's private ones.
fn only_internet(overlay: Overlay, lan: &[Prefix]) -> Vec<Rule> {
    let lan = lan.iter().map(|prefix| prefix.network());
    let lan: BTreeSet<_> = lan.filter(|lan| !NOT_INTERNET.contains(lan)).collect();
    let private = lan.into_iter().chain(NOT_INTERNET).filter(|network| *network != overlay.network());
    let drop = |network, reason| Rule::new().destination(network).drop(reason);
    let ours = drop(overlay.network(), DropReason::NotConnected);
    std::iter::once(ours).chain(private.map(|network| drop(network, DropReason::PrivateNetwork))).collect()
}

/// Networks outside that somebody has opened. The overlay is none, whatever was said.
fn lan_of(overlay: Overlay, egress: &[Egress]) -> impl Iterator<Item = Prefix> {
    egress.iter().filter_map(move |egress| match egress {
        Egress::Lan(network) => {
            Some(network.network()).filter(|network| !network.overlaps(overlay.network()))
        }
        Egress::None | Egress::Internet => None,
    })
}

fn addresses(name: &'static str, addresses: &[Ipv4Addr]) -> Set {
    let elements = addresses.iter().map(|address| Element::new([Value::Ipv4(*address)])).collect();
    Set { name, key: vec![KeyType::Ipv4], elements }
}

/// What the kernel says on a link by itself: it reports groups that it listens to (RFC 3810), which nobody here asks for.
fn multicast() -> Rule {
    let everywhere = Prefix6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);
    Rule::new().when(Match::Destination6(Not::Is, everywhere)).ignore(DropReason::Ipv6)
}

/// Rules that let packets to the DNS servers pass.
fn to_resolvers() -> [Rule; 2] {
    [Transport::Udp, Transport::Tcp]
        .map(|over| Rule::new().lookup(&[Key::Destination], "resolvers").port(over, DNS).accept())
}

#[cfg(test)]
mod golden {
    use crate::address::Overlay;
    use std::path::Path;

    /// Whose rules the files show.
    pub(super) fn overlay() -> Overlay {
        Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a])
    }

    /// Compares with a file under `tests/golden`; with WHERRY_BLESS set, writes it instead.
    pub(super) fn check(name: &str, text: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("WHERRY_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).expect("golden file; WHERRY_BLESS=1 writes it");
        assert_eq!(text, expected, "{name} differs; WHERRY_BLESS=1 accepts the change");
    }
}
