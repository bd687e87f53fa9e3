//! What is below all tunnels: one WireGuard device per board. Which packets belong to which board is decided by keys: the
//! device takes a tunnel's packets from a board's own address within only if that board's key has sealed them.
use super::observe::{find, mtu_of};
use super::plan::underlay_mtu;
use super::route::{Existing, RouteSocket};
use super::wireguard::{Device, WireguardPeer4, WireguardSocket};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use wherry_net::address::{Prefix, WIREGUARD, WIREGUARD_PORT, tunnel_end};
use wherry_protocol::message::Peer;
use wherry_protocol::{NodeIndex, OsRandom, PublicKey, SecretKey};

/// The board's end.
#[derive(Debug)]
pub(super) struct Underlay {
    socket: WireguardSocket,
    secret: SecretKey,
}

impl Underlay {
    /// With the key of the device that a former life of the service left, or a new one: a board has one per boot.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no WireGuard.
    pub(super) fn open() -> Result<Self, Errno> {
        let mut socket = WireguardSocket::open()?;
        let former = socket.device(WIREGUARD)?.and_then(|device| device.secret);
        let secret = former.unwrap_or_else(|| SecretKey::generate(&mut OsRandom));
        Ok(Self { socket, secret })
    }

    pub(super) fn key(&self) -> PublicKey {
        self.secret.public()
    }

    /// Makes the device what it should be; `links` are all devices, `uplink` is the largest packet of the interface to the
    /// outside, in bytes.
    pub(super) fn ensure(
        &mut self,
        route: &mut RouteSocket,
        links: &[LinkMessage],
        (index, uplink): (NodeIndex, u32),
        peers: &[Peer],
    ) -> Result<(), Errno> {
        let mtu = underlay_mtu(uplink);
        let device = match self.socket.device(WIREGUARD)? {
            Some(device) => device,
            None => self.create(route, links, mtu)?,
        };
        if device.secret.as_ref().map(SecretKey::public) != Some(self.key()) || device.port != WIREGUARD_PORT
        {
            self.socket.set_identity(WIREGUARD, &self.secret, WIREGUARD_PORT)?;
        }
        for change in changes(&wanted(peers), &device.peers) {
            match change {
                Change::Set(key, peer) => self.socket.set_peer(WIREGUARD, key, peer)?,
                Change::Remove(key) => self.socket.remove_peer(WIREGUARD, key)?,
            }
        }
        address(route, tunnel_end(index))?;
        if mtu_of(links, WIREGUARD).is_some_and(|seen| seen != mtu) {
            route.set_link(WIREGUARD, vec![LinkAttribute::Mtu(mtu)])?;
        }
        match find(links, WIREGUARD) {
            Some(link) if link.header.flags.contains(LinkFlags::Up) => Ok(()),
            Some(_) | None => route.set_up(WIREGUARD),
        }
    }

    fn create(&self, route: &mut RouteSocket, links: &[LinkMessage], mtu: u32) -> Result<Device, Errno> {
        if find(links, WIREGUARD).is_some() {
            // Something else with our name.
            route.delete_link(WIREGUARD)?;
        }
        let info = vec![LinkInfo::Kind(InfoKind::Wireguard)];
        route.create_link(WIREGUARD, info, vec![LinkAttribute::Mtu(mtu)])?;
        Ok(Device::default())
    }
}

/// The device has one address; with its network come the ways to all other boards' ends.
fn address(route: &mut RouteSocket, wanted: Prefix) -> Result<(), Errno> {
    let have = route.addresses(nix::net::if_::if_nametoindex(WIREGUARD)?)?;
    for wrong in have.iter().filter(|address| **address != wanted) {
        route.remove_address(WIREGUARD, *wrong)?;
    }
    if have.contains(&wanted) { Ok(()) } else { route.add_address(WIREGUARD, wanted, Existing::Refuse) }
}

/// Boards whose keys are known.
fn wanted(peers: &[Peer]) -> BTreeMap<PublicKey, WireguardPeer4> {
    let peer = |peer: &Peer| {
        let endpoint = SocketAddrV4::new(peer.underlay, WIREGUARD_PORT);
        let inside = tunnel_end(peer.index).address;
        Some((PublicKey(peer.wireguard?), WireguardPeer4 { endpoint, inside }))
    };
    peers.iter().filter_map(peer).collect()
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
        Peer { index: NodeIndex(index), underlay, wireguard: key.map(|byte| [byte; 32]) }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let wanted = wanted(&[peer(2, Some(2)), peer(3, Some(3)), peer(4, None)]);
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
        let before = wanted(&[peer(2, Some(2))]).into_iter().map(|(key, peer)| (key, Some(peer))).collect();
        let after = wanted(&[peer(2, Some(5))]);
        let key = PublicKey([5; 32]);
        assert_eq!(
            changes(&after, &before),
            [Change::Remove(PublicKey([2; 32])), Change::Set(key, after[&key])]
        );
    }
}
