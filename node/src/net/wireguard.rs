//! WireGuard devices by generic netlink (include/uapi/linux/wireguard.h), over our blocking socket.
use netlink_packet_core::{Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, ParseableParametrized as _};
use netlink_packet_generic::GenlHeader;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wherry_net::netlink::{Attributes, Message, Socket, append, messages};
use wherry_protocol::{PublicKey, SecretKey};

/// NLMSG_DONE: the end of a dump.
const KIND_DONE: u16 = 3;
/// struct genlmsghdr, in bytes.
const GENERIC_HEADER_BYTES: usize = 4;
/// The family that knows the numbers of the others (linux/genetlink.h), its question, and two attributes.
const CONTROL_FAMILY: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_ID: u16 = 1;
const CONTROL_NAME: u16 = 2;
const FAMILY_NAME: &str = "wireguard";
const FAMILY_VERSION: u8 = 1;
/// How often a peer hears of us at least. The first time is at once: the first packet of a container need not wait for a
/// handshake, and a peer that still has a session which we do not know any more gets a new one.
const KEEPALIVE_SECONDS: u16 = 25;

/// A socket to the WireGuard devices of one network namespace.
#[derive(Debug)]
pub(crate) struct WireguardSocket {
    socket: Socket,
    family: u16,
}

/// Another board, as the device knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WireguardPeer4 {
    /// Where its packets go.
    pub(crate) endpoint: SocketAddrV4,
    /// The one address that it may have within.
    pub(crate) inside: Ipv4Addr,
}

/// A device as it is.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// `None` before it was given one.
    pub(crate) secret: Option<SecretKey>,
    pub(crate) port: u16,
    /// `None`: not as we would make one.
    pub(crate) peers: BTreeMap<PublicKey, Option<WireguardPeer4>>,
    /// When a session was last agreed on with those that have one.
    pub(crate) handshakes: BTreeMap<PublicKey, SystemTime>,
}

impl WireguardSocket {
    /// For the calling thread's network namespace.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no WireGuard.
    pub(crate) fn open() -> Result<Self, Errno> {
        let mut socket = Socket::open(SockProtocol::NetlinkGeneric)?;
        let question = Attributes::default().text(CONTROL_NAME, FAMILY_NAME);
        let header = [CONTROL_GET_FAMILY, 1, 0, 0];
        let payload = [&header, question.as_slice()].concat();
        let mut family = None;
        ask(&mut socket, (CONTROL_FAMILY, NLM_F_ACK), &payload, |message| {
            family = family.or(family_id(message.payload))
        })?;
        Ok(Self { socket, family: family.ok_or(Errno::ENOENT)? })
    }

    /// A device, or `None` if there is no such one.
    pub(crate) fn device(&mut self, name: &str) -> Result<Option<Device>, Errno> {
        let question = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfName(name.to_owned())],
        };
        let mut device = Device::default();
        let mut damaged = false;
        let answered = self.ask(NLM_F_DUMP, &question, |message| match parse(message.payload) {
            Some(part) => device.take(part),
            None => damaged = true,
        });
        match answered {
            Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
            Ok(()) if damaged => Err(Errno::EBADMSG),
            Ok(()) => Ok(Some(device)),
        }
    }

    /// Gives a device its key and its port.
    pub(crate) fn set_identity(&mut self, name: &str, secret: &SecretKey, port: u16) -> Result<(), Errno> {
        let more =
            vec![WireguardAttribute::PrivateKey(*secret.as_bytes()), WireguardAttribute::ListenPort(port)];
        self.set(name, more)
    }

    /// Adds a peer, or changes it.
    pub(crate) fn set_peer(&mut self, name: &str, key: PublicKey, peer: WireguardPeer4) -> Result<(), Errno> {
        let allowed = WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(IpAddr::V4(peer.inside)),
            WireguardAllowedIpAttr::Cidr(32),
        ]);
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
            WireguardPeerAttribute::Endpoint(SocketAddr::V4(peer.endpoint)),
            WireguardPeerAttribute::PersistentKeepalive(KEEPALIVE_SECONDS),
            WireguardPeerAttribute::AllowedIps(vec![allowed]),
        ]);
        self.set(name, vec![WireguardAttribute::Peers(vec![peer])])
    }

    /// Forgets a peer.
    pub(crate) fn remove_peer(&mut self, name: &str, key: PublicKey) -> Result<(), Errno> {
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]);
        self.set(name, vec![WireguardAttribute::Peers(vec![peer])])
    }

    fn set(&mut self, name: &str, more: Vec<WireguardAttribute>) -> Result<(), Errno> {
        let mut attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        attributes.extend(more);
        let message = WireguardMessage { cmd: WireguardCmd::SetDevice, attributes };
        self.ask(NLM_F_ACK, &message, |_| {})
    }

    fn ask(
        &mut self,
        flags: u16,
        message: &WireguardMessage,
        each: impl FnMut(Message<'_>),
    ) -> Result<(), Errno> {
        let mut payload = vec![0; GENERIC_HEADER_BYTES + message.buffer_len()];
        let (header, body) = payload.split_at_mut(GENERIC_HEADER_BYTES);
        header.copy_from_slice(&[message.cmd.into(), FAMILY_VERSION, 0, 0]);
        message.emit(body);
        ask(&mut self.socket, (self.family, flags), &payload, each)
    }
}

impl Device {
    /// One message of a dump: those after the first have more peers only.
    fn take(&mut self, part: WireguardMessage) {
        for attribute in part.attributes {
            match attribute {
                // All zeroes is none (linux/wireguard.h).
                WireguardAttribute::PrivateKey(bytes) if bytes != [0; 32] => {
                    self.secret = Some(SecretKey::from_bytes(bytes));
                }
                WireguardAttribute::ListenPort(port) => self.port = port,
                WireguardAttribute::Peers(peers) => {
                    self.peers.extend(peers.iter().filter_map(seen));
                    self.handshakes.extend(peers.iter().filter_map(handshake));
                }
                _ => {}
            }
        }
    }
}

fn seen(peer: &WireguardPeer) -> Option<(PublicKey, Option<WireguardPeer4>)> {
    let (mut key, mut endpoint, mut allowed) = (None, None, Vec::new());
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey(*bytes)),
            WireguardPeerAttribute::Endpoint(SocketAddr::V4(address)) => endpoint = Some(*address),
            WireguardPeerAttribute::AllowedIps(addresses) => allowed.extend(addresses.iter().map(single)),
            _ => {}
        }
    }
    let peer = match (endpoint, allowed.as_slice()) {
        (Some(endpoint), [Some(inside)]) => Some(WireguardPeer4 { endpoint, inside: *inside }),
        _ => None,
    };
    Some((key?, peer))
}

/// All zeroes is never.
fn handshake(peer: &WireguardPeer) -> Option<(PublicKey, SystemTime)> {
    let (mut key, mut last) = (None, None);
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey(*bytes)),
            WireguardPeerAttribute::LastHandshake(time) => last = since_1970(time.seconds, time.nano_seconds),
            _ => {}
        }
    }
    Some((key?, last?))
}

fn since_1970(seconds: i64, nanos: i64) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    (!since.is_zero()).then(|| UNIX_EPOCH.checked_add(since)).flatten()
}

/// The address, if it is no network.
fn single(allowed: &WireguardAllowedIp) -> Option<Ipv4Addr> {
    let (mut address, mut bits) = (None, None);
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(IpAddr::V4(found)) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => bits = Some(*found),
            _ => {}
        }
    }
    address.filter(|_| bits == Some(32))
}

fn parse(payload: &[u8]) -> Option<WireguardMessage> {
    let header = GenlHeader::parse(payload).ok()?;
    let body = payload.get(GENERIC_HEADER_BYTES..)?;
    WireguardMessage::parse_with_param(body, header).ok()
}

/// The number of a family, out of the control family's answer.
fn family_id(payload: &[u8]) -> Option<u16> {
    let mut rest = payload.get(GENERIC_HEADER_BYTES..)?;
    loop {
        let [l0, l1, k0, k1, ..] = *rest else { return None };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) == CONTROL_ID {
            return value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Sends one message, and gives what comes back to `each` until the kernel says that this was all.
fn ask(
    socket: &mut Socket,
    (kind, flags): (u16, u16),
    payload: &[u8],
    mut each: impl FnMut(Message<'_>),
) -> Result<(), Errno> {
    let sequence = socket.next_sequence();
    let mut bytes = Vec::new();
    append(&mut bytes, kind, NLM_F_REQUEST | flags, sequence, payload);
    socket.send(&bytes)?;
    loop {
        let datagram = socket.receive()?;
        for message in messages(&datagram).filter(|message| message.sequence == sequence) {
            match message.answer() {
                Some(answer) => return answer,
                None if message.kind == KIND_DONE => return done(message.payload),
                None => each(message),
            }
        }
    }
}

/// The end of a dump says how it went: a negated errno, or a length.
fn done(payload: &[u8]) -> Result<(), Errno> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(code) if code < 0 => Err(Errno::from_raw(code.saturating_neg())),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_family_is_found() {
        let answer = Attributes::default().text(CONTROL_NAME, FAMILY_NAME).bytes(CONTROL_ID, &[0x1d, 0x00]);
        let payload = [&[1, 2, 0, 0], answer.as_slice()].concat();
        assert_eq!(family_id(&payload), Some(u16::from_ne_bytes([0x1d, 0])));
        for length in 0..payload.len() - 4 {
            assert_eq!(family_id(&payload[..length]), None);
        }
        // An attribute that claims to have no length at all.
        assert_eq!(family_id(&[1, 2, 0, 0, 0, 0, 9, 0]), None);
    }

    #[test]
    fn a_dump_that_failed_is_an_error() {
        assert_eq!(done(&(-19_i32).to_ne_bytes()), Err(Errno::ENODEV));
        assert_eq!((done(&0_i32.to_ne_bytes()), done(&[])), (Ok(()), Ok(())));
    }

    #[test]
    fn a_peer_with_a_network_or_no_endpoint_is_none_of_ours() {
        let key = PublicKey([3; 32]);
        let allowed = |bits| {
            WireguardAllowedIp(vec![
                WireguardAllowedIpAttr::IpAddr(IpAddr::V4(Ipv4Addr::new(10, 0, 255, 2))),
                WireguardAllowedIpAttr::Cidr(bits),
            ])
        };
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 168, 50, 12), 51820);
        let peer = |bits: &[u8], endpoint: Option<SocketAddrV4>| {
            let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0)];
            attributes.extend(endpoint.map(|address| WireguardPeerAttribute::Endpoint(address.into())));
            attributes
                .push(WireguardPeerAttribute::AllowedIps(bits.iter().map(|bits| allowed(*bits)).collect()));
            seen(&WireguardPeer(attributes))
        };
        let ours = WireguardPeer4 { endpoint, inside: Ipv4Addr::new(10, 0, 255, 2) };
        assert_eq!(peer(&[32], Some(endpoint)), Some((key, Some(ours))));
        assert_eq!(peer(&[24], Some(endpoint)), Some((key, None)));
        assert_eq!(peer(&[32, 32], Some(endpoint)), Some((key, None)));
        assert_eq!(peer(&[32], None), Some((key, None)));
        assert_eq!(seen(&WireguardPeer(vec![])), None);
    }
}
