//! What is below all tunnels: two WireGuard devices per board, so that one can have a new key while packets go through the other
//! (docs/decisions/0021). Which packets belong to which board is decided by keys: the
//! device takes a tunnel's packets from a board's own address within only if that board's key has sealed them.
use super::observe::{cut_off, find, is_up, mtu_of};
use super::plan::underlay_mtu;
use super::route::{Existing, RouteSocket, RouteSpec};
use super::wireguard::{Device, WireguardPeer4, WireguardSocket};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime};
use wherry_net::address::{IpPrefix, Overlay, Prefix, WIREGUARD, WIREGUARD_PORTS};
use wherry_protocol::message::{Peer, WireguardKeys};
use wherry_protocol::{NodeIndex, OsRandom, PublicKey, SecretKey};

/// A session that both ends use is made anew at least so often (WireGuard paper, section 6.1: REJECT_AFTER_TIME), and keepalives
/// make both ends use it: an older one is none.
const SESSION: Duration = Duration::from_secs(180);
/// The plane that packets go through unless a route to a board says otherwise.
const USUAL: usize = 0;

/// The board's end.
#[derive(Debug)]
pub(super) struct Underlay {
    socket: WireguardSocket,
    secrets: [SecretKey; 2],
    /// When each got its key: sessions from before are as good as gone.
    since: [SystemTime; 2],
    /// Through which of the devices packets should go.
    plane: usize,
}

/// What the devices are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The board's number.
    pub(super) index: NodeIndex,
    /// The addresses of all containers, among which are the tunnels' ends.
    pub(super) overlay: Overlay,
    /// Largest packet of the interface to the outside, in bytes.
    pub(super) uplink: u32,
    /// Boards to have tunnels with.
    pub(super) peers: &'a [Peer],
}

impl Underlay {
    /// With the keys of the devices that a former life of the service left, or new ones: a board begins each boot with new keys.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no WireGuard.
    pub(super) fn open() -> Result<Self, Errno> {
        let mut socket = WireguardSocket::open()?;
        let mut former = |name| Ok(socket.device(name)?.and_then(|device| device.secret));
        let former: [Option<SecretKey>; 2] = [former(WIREGUARD[0])?, former(WIREGUARD[1])?];
        let secrets = former.map(|secret| secret.unwrap_or_else(new_key));
        Ok(Self { socket, secrets, since: [SystemTime::UNIX_EPOCH; 2], plane: USUAL })
    }

    pub(super) fn keys(&self) -> WireguardKeys {
        [self.secrets[0].public().0, self.secrets[1].public().0]
    }

    /// A new key for a plane; what is none is ignored.
    pub(super) fn rekey(&mut self, plane: u8) {
        let plane = usize::from(plane);
        if let (Some(secret), Some(since)) = (self.secrets.get_mut(plane), self.since.get_mut(plane)) {
            (*secret, *since) = (new_key(), SystemTime::now());
        }
    }

    pub(super) fn set_plane(&mut self, plane: u8) {
        self.plane = usize::from(plane).min(WIREGUARD.len() - 1);
    }

    /// Makes the devices what they should be; `links` are all devices.
    pub(super) fn ensure(
        &mut self,
        route: &mut RouteSocket,
        links: &[LinkMessage],
        wish: Wish<'_>,
    ) -> Result<(), Errno> {
        let mut sessions: [BTreeMap<PublicKey, SystemTime>; 2] = Default::default();
        for (plane, seen) in sessions.iter_mut().enumerate() {
            *seen = self.device(route, links, wish, plane)?;
        }
        let is_up = |name| find(links, name).is_some_and(is_up);
        let known = route.routes()?;
        let led = is_up(WIREGUARD[USUAL]).then_some(known.as_slice());
        address(route, wish.overlay.tunnel_end(wish.index), led)?;
        for name in WIREGUARD {
            if !is_up(name) {
                route.set_up(name)?;
            }
        }
        let others = by_other_plane(wish, &sessions, self.plane, SystemTime::now());
        routes(route, &known, &others)
    }

    /// One device; gives when its peers were last agreed with.
    fn device(
        &mut self,
        route: &mut RouteSocket,
        links: &[LinkMessage],
        wish: Wish<'_>,
        plane: usize,
    ) -> Result<BTreeMap<PublicKey, SystemTime>, Errno> {
        let (Some(name), Some(port), Some(secret), Some(since)) = (
            WIREGUARD.get(plane),
            WIREGUARD_PORTS.get(plane),
            self.secrets.get(plane),
            self.since.get(plane),
        ) else {
            return Err(Errno::EINVAL);
        };
        let mtu = underlay_mtu(wish.uplink);
        let mut device = match self.socket.device(name)? {
            Some(device) => device,
            None => create(route, links, name, mtu)?,
        };
        if device.secret.as_ref().map(SecretKey::public) != Some(secret.public()) || device.port != *port {
            self.socket.set_identity(name, secret, *port)?;
        }
        for change in changes(&wanted(wish, plane, *port), &device.peers) {
            match change {
                Change::Set(key, peer) => self.socket.set_peer(name, key, peer)?,
                Change::Remove(key) => self.socket.remove_peer(name, key)?,
            }
        }
        if mtu_of(links, name).is_some_and(|seen| seen != mtu) {
            route.set_link(name, vec![LinkAttribute::Mtu(mtu)])?;
        }
        // Unless the clock was set back since then.
        if *since <= SystemTime::now() {
            device.handshakes.retain(|_, last| *last >= *since);
        }
        Ok(device.handshakes)
    }
}

fn new_key() -> SecretKey {
    SecretKey::generate(&mut OsRandom)
}

fn create(route: &mut RouteSocket, links: &[LinkMessage], name: &str, mtu: u32) -> Result<Device, Errno> {
    if find(links, name).is_some() {
        // Something else with our name.
        route.delete_link(name)?;
    }
    let info = vec![LinkInfo::Kind(InfoKind::Wireguard)];
    route.create_link(name, info, vec![LinkAttribute::Mtu(mtu)])?;
    Ok(Device::default())
}

/// The ends of boards that packets go to through the other device than usual: those with a live session there, if it is the one
/// that should be used, or if there is none on the usual one.
fn by_other_plane(
    wish: Wish<'_>,
    sessions: &[BTreeMap<PublicKey, SystemTime>; 2],
    plane: usize,
    now: SystemTime,
) -> BTreeSet<Ipv4Addr> {
    let live = |peer: &Peer, plane: usize| {
        let key = peer.wireguard.and_then(|keys| keys.get(plane).copied()).map(PublicKey);
        let last = key.and_then(|key| sessions.get(plane)?.get(&key).copied());
        // A clock that was set back meanwhile makes it a session of the future: as good as any.
        last.is_some_and(|last| now.duration_since(last).map_or(true, |age| age < SESSION))
    };
    let other = 1 - USUAL;
    let through = |peer: &&Peer| live(peer, other) && (plane == other || !live(peer, USUAL));
    let end = |peer: &Peer| wish.overlay.tunnel_end(peer.index).address;
    wish.peers.iter().filter(through).map(end).collect()
}

/// Routes to single boards through the other device, and no others there.
fn routes(route: &mut RouteSocket, known: &[RouteMessage], wanted: &BTreeSet<Ipv4Addr>) -> Result<(), Errno> {
    let name = WIREGUARD[1 - USUAL];
    let index = nix::net::if_::if_nametoindex(name)?;
    let have: BTreeSet<Ipv4Addr> = known.iter().filter_map(|message| host_route(message, index)).collect();
    let direct = |address: &Ipv4Addr| RouteSpec::direct(Prefix::host(*address));
    for address in wanted.difference(&have) {
        route.add_route(name, direct(address), Existing::Replace)?;
    }
    for address in have.difference(wanted) {
        route.remove_route(name, direct(address))?;
    }
    Ok(())
}

/// Where a route through this device leads, if it is one to a single address.
fn host_route(message: &RouteMessage, index: u32) -> Option<Ipv4Addr> {
    let (mut destination, mut through) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Oif(index) => through = Some(*index),
            _ => {}
        }
    }
    destination.filter(|_| through == Some(index) && message.header.destination_prefix_length == 32)
}

/// The device has one address; with its network come the ways to all other boards' ends, among the routes that are `led` if the
/// device is up.
fn address(route: &mut RouteSocket, wanted: Prefix, led: Option<&[RouteMessage]>) -> Result<(), Errno> {
    let name = WIREGUARD[USUAL];
    let index = nix::net::if_::if_nametoindex(name)?;
    let mut have = route.addresses(index)?;
    let cut_off = led.map(|routes| cut_off(&have, routes, index)).unwrap_or_default();
    let wanted = IpPrefix::from(wanted);
    let wrong = |address: &IpPrefix| *address != wanted || cut_off.contains(address);
    for address in have.extract_if(.., |address| wrong(address)) {
        route.remove_address(name, address)?;
    }
    if have.contains(&wanted) { Ok(()) } else { route.add_address(name, wanted, Existing::Refuse) }
}

/// Boards whose keys are known.
fn wanted(wish: Wish<'_>, plane: usize, port: u16) -> BTreeMap<PublicKey, WireguardPeer4> {
    let peer = |peer: &Peer| {
        let endpoint = SocketAddrV4::new(peer.underlay, port);
        let inside = wish.overlay.tunnel_end(peer.index).address;
        Some((PublicKey(*peer.wireguard?.get(plane)?), WireguardPeer4 { endpoint, inside }))
    };
    wish.peers.iter().filter_map(peer).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set(PublicKey, WireguardPeer4),
    Remove(PublicKey),
}

/// Removals first: an address within belongs to one peer at a time, and the kernel gives it to the one named last.
fn changes(
    wanted: &BTreeMap<PublicKey, WireguardPeer4>,
    seen: &BTreeMap<PublicKey, Option<WireguardPeer4>>,
) -> Vec<Change> {
    let removed = seen.keys().filter(|key| !wanted.contains_key(key)).map(|key| Change::Remove(*key));
    let set = wanted.iter().filter(|(key, peer)| seen.get(key) != Some(&Some(**peer)));
    removed.chain(set.map(|(key, peer)| Change::Set(*key, *peer))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn peer(index: u8, key: Option<u8>) -> Peer {
        let underlay = Ipv4Addr::new(192, 168, 50, 10 + index);
        Peer { index: NodeIndex(index), underlay, wireguard: key.map(|byte| [[byte; 32], [byte + 100; 32]]) }
    }

    fn wish(peers: &[Peer]) -> Wish<'_> {
        Wish { index: NodeIndex(1), overlay: Overlay::default(), uplink: 1500, peers }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let wanted = wanted(wish(&[peer(2, Some(2)), peer(3, Some(3)), peer(4, None)]), 0, 51820);
        assert_eq!(wanted.len(), 2, "without a key there is no way to a board");
        let (two, three) = (PublicKey([2; 32]), PublicKey([3; 32]));
        let right = wanted[&two];
        assert_eq!(right.endpoint, "192.168.50.12:51820".parse().unwrap());
        assert_eq!(right.inside, Ipv4Addr::new(10, 0, 255, 2));
        let seen = [(two, Some(right)), (three, None), (PublicKey([9; 32]), Some(right))].into();
        assert_eq!(
            changes(&wanted, &seen),
            [Change::Remove(PublicKey([9; 32])), Change::Set(three, wanted[&three])]
        );
        let reached = wanted.iter().map(|(key, peer)| (*key, Some(*peer))).collect();
        assert_eq!(changes(&wanted, &reached), []);
    }

    #[test]
    fn a_board_with_a_new_key_takes_its_old_one_s_place() {
        let before = wanted(wish(&[peer(2, Some(2))]), 0, 51820)
            .into_iter()
            .map(|(key, peer)| (key, Some(peer)))
            .collect();
        let after = wanted(wish(&[peer(2, Some(5))]), 0, 51820);
        let key = PublicKey([5; 32]);
        assert_eq!(
            changes(&after, &before),
            [Change::Remove(PublicKey([2; 32])), Change::Set(key, after[&key])]
        );
    }

    #[test]
    fn packets_go_where_the_board_has_answered() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        let (first, second) = (PublicKey([2; 32]), PublicKey([102; 32]));
        let peers = [peer(2, Some(2)), peer(3, None)];
        let other = |plane, last: [Option<u64>; 2]| {
            let session =
                |key, last: Option<u64>| last.map(|seconds| (key, ago(seconds))).into_iter().collect();
            let sessions = [session(first, last[0]), session(second, last[1])];
            by_other_plane(wish(&peers), &sessions, plane, now).len() == 1
        };
        assert!(other(1, [Some(10), Some(10)]) && !other(0, [Some(10), Some(10)]), "as told");
        assert!(!other(1, [Some(10), None]), "it has not answered there");
        assert!(!other(1, [Some(10), Some(200)]), "not for long");
        assert!(other(0, [Some(200), Some(10)]), "the usual way is dead");
        assert!(!other(0, [None, None]) && !other(1, [None, None]), "nowhere: the usual way");
        let stranger = [[(PublicKey([9; 32]), now)].into(), [(PublicKey([9; 32]), now)].into()];
        assert!(by_other_plane(wish(&peers), &stranger, 1, now).is_empty(), "another key's session");
    }
}
