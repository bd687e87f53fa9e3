//! Which packets may go where, as rulesets computed from what the broker wants. Pure: nothing here touches the kernel.
//!
//! A connection `from → to:port` opens exactly two things, in both containers' namespaces and once more on each board
//! on the way: packets to the port, and packets back from it that belong to a flow already seen. Nothing accepts
//! "established" for overlay traffic in general, so taking a connection away also ends the flows that use it.
mod board;
mod container;

pub use board::{Board, Ports, Published, board};
pub use container::{Container, container};

use super::address::{Overlay, Prefix};
use super::nft::{Key, KeyType, NftError, NftSocket, Rule, Set, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use wherry_protocol::message::{DropReason, Egress, Transport};

/// Closes a board that runs no containers (a broker) but for what it offers, `published` ports among it. In the calling
/// thread's namespace.
///
/// # Errors
/// When the kernel lacks nf_tables or the process CAP_NET_ADMIN.
pub fn protect(ports: Ports, published: &[Published]) -> Result<(), NftError> {
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
    NftSocket::open()?.replace(&board(&nothing))
}

/// The name of all our tables.
pub const TABLE: &str = "wherry";
/// DNS (RFC 1035 §4.2).
const DNS: u16 = 53;
/// Ports of the web.
const WEB: [u16; 2] = [80, 443];

/// Networks that are not the internet: no container has business there. RFC 6890 lists them; the overlay is one of them or
/// within one, and comes first.
const NOT_INTERNET: [Prefix; 9] = [
    Prefix::new(Ipv4Addr::new(0, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(100, 64, 0, 0), 10),
    Prefix::new(Ipv4Addr::new(127, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(169, 254, 0, 0), 16),
    Prefix::new(Ipv4Addr::new(172, 16, 0, 0), 12),
    Prefix::new(Ipv4Addr::new(192, 168, 0, 0), 16),
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
    let elements = addresses.iter().map(|address| vec![Value::Ipv4(*address)]).collect();
    Set { name, key: vec![KeyType::Ipv4], elements }
}

/// Rules that let packets to the DNS servers pass.
fn to_resolvers() -> [Rule; 2] {
    [Transport::Udp, Transport::Tcp]
        .map(|over| Rule::new().lookup(&[Key::Destination], "resolvers").port(over, DNS).accept())
}

#[cfg(test)]
mod golden {
    use std::path::Path;

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
