//! What passes between the wire and the state machine: only answers to what was asked last, by who was asked, that a board can
//! use. A server that refuses what it has offered itself is asked less and less often.
use super::{CLIENT_PORT, SERVER_PORT};
use crate::link::{is_host, is_host_of};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, IpAddress, IpProtocol, Ipv4Packet, UdpPacket};
use std::net::Ipv4Addr;

/// Shortest prefix that is believed: no network is larger than a whole class A.
const SHORTEST_PREFIX: u8 = 8;
/// Pause after a refusal; each one that follows doubles it (as RFC 2131 §4.1 has it for repetitions), up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// A refusal so long after the last one is the first of another story.
const FORGOTTEN: Duration = Duration::from_secs(180);

/// Why an offer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("{0} is no host's address")]
    Address(Ipv4Addr),
    #[error("{0} is no mask of a network that a board can be in")]
    Mask(Ipv4Addr),
    #[error("it has no mask")]
    NoMask,
    #[error("it is over at once")]
    Over,
}

/// What was sent last.
#[derive(Debug)]
struct Asked {
    transaction: u32,
    kind: DhcpMessageType,
    mac: EthernetAddress,
    /// Who alone may answer; anybody if `None`.
    server: Option<Ipv4Addr>,
    answered: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    asked: Option<Asked>,
    /// Who gave the present lease.
    lessor: Option<Ipv4Addr>,
    /// The last refusal, and for how long nothing is asked after it.
    refused: Option<(Instant, Duration)>,
    said: Option<Unusable>,
}

impl Gate {
    /// The state machine begins anew, perhaps in another network: nobody has been asked anything.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { said: self.said, ..Self::default() };
    }

    /// For how long nothing is to be sent.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        match self.refused {
            Some((at, pause)) if now < at + pause => at + pause - now,
            Some(_) | None => Duration::ZERO,
        }
    }

    /// This frame is sent.
    pub(super) fn sent(&mut self, frame: &[u8]) {
        let lessor = self.lessor;
        let asked = within(frame, (CLIENT_PORT, SERVER_PORT), |to, message| Asked {
            transaction: message.transaction_id,
            kind: message.message_type,
            mac: message.client_hardware_address,
            // A renewal goes to the one that gave the lease, and names none (RFC 2131 §4.3.6).
            server: message.server_identifier.or(lessor.filter(|_| !to.is_broadcast())),
            answered: false,
        });
        self.asked = asked.or(self.asked.take());
    }

    /// Whether the state machine may have this frame: DHCP answers to us, and ARP replies (never requests: those are the kernel's to
    /// answer).
    pub(super) fn lets_in(&mut self, frame: &[u8], now: Instant) -> bool {
        if self.asked.is_none() {
            return false;
        }
        let ports = (SERVER_PORT, CLIENT_PORT);
        is_arp_reply(frame) || within(frame, ports, |_, message| self.believes(message, now)).unwrap_or(false)
    }

    fn believes(&mut self, message: &DhcpRepr<'_>, now: Instant) -> bool {
        let (Some(asked), Some(server)) = (&mut self.asked, message.server_identifier) else { return false };
        let by_who_was_asked = asked.server.is_none_or(|asked| asked == server);
        let to_us =
            message.transaction_id == asked.transaction && message.client_hardware_address == asked.mac;
        if asked.answered || !to_us || !by_who_was_asked {
            return false;
        }
        match (asked.kind, message.message_type) {
            (DhcpMessageType::Discover, DhcpMessageType::Offer)
            | (DhcpMessageType::Request, DhcpMessageType::Ack) => {
                if let Err(unusable) = judge(message) {
                    if self.said.replace(unusable) != Some(unusable) {
                        tracing::warn!("DHCP: what {server} offers is refused: {unusable}");
                    }
                    return false;
                }
                asked.answered = true;
                if message.message_type == DhcpMessageType::Ack {
                    self.lessor = Some(server);
                }
                true
            }
            (DhcpMessageType::Request, DhcpMessageType::Nak) => {
                asked.answered = true;
                self.lessor = None;
                let longer = |(at, pause): (Instant, Duration)| {
                    (now < at + FORGOTTEN).then(|| (pause * 2).min(LONGEST_PAUSE))
                };
                self.refused = Some((now, self.refused.and_then(longer).unwrap_or(FIRST_PAUSE)));
                true
            }
            _ => false,
        }
    }
}

fn judge(message: &DhcpRepr<'_>) -> Result<(), Unusable> {
    let address = message.your_ip;
    if message.lease_duration == Some(0) {
        return Err(Unusable::Over);
    }
    let prefix = match message.subnet_mask {
        None if message.message_type == DhcpMessageType::Ack => return Err(Unusable::NoMask),
        // An offer need not have one.
        None => None,
        Some(mask) => {
            let prefix = IpAddress::Ipv4(mask).prefix_len().filter(|prefix| *prefix >= SHORTEST_PREFIX);
            Some(prefix.ok_or(Unusable::Mask(mask))?)
        }
    };
    let good = prefix.map_or_else(|| is_host(address), |prefix| is_host_of(address, prefix));
    if good { Ok(()) } else { Err(Unusable::Address(address)) }
}

fn is_arp_reply(frame: &[u8]) -> bool {
    EthernetFrame::new_checked(frame).is_ok_and(|frame| {
        frame.ethertype() == EthernetProtocol::Arp
            && ArpPacket::new_checked(frame.payload()).is_ok_and(|arp| arp.operation() == ArpOperation::Reply)
    })
}

/// What `read` makes of a DHCP message between these ports (from, to) and of the address that it goes to; `None` if it is none.
fn within<T>(frame: &[u8], ports: (u16, u16), read: impl FnOnce(Ipv4Addr, &DhcpRepr<'_>) -> T) -> Option<T> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if ip.next_header() != IpProtocol::Udp {
        return None;
    }
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    if (udp.src_port(), udp.dst_port()) != ports {
        return None;
    }
    let message = DhcpPacket::new_checked(udp.payload()).ok()?;
    let message = DhcpRepr::parse(&message).ok()?;
    Some(read(ip.dst_addr(), &message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
    use smoltcp::socket::dhcpv4;
    use smoltcp::wire::{EthernetRepr, HardwareAddress, Ipv4Repr, UdpRepr};
    use std::collections::VecDeque;

    const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 66);
    const BOARD: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 12);
    const NOW: Instant = Instant::ZERO;

    fn message(message_type: DhcpMessageType, transaction_id: u32) -> DhcpRepr<'static> {
        let nobody = Ipv4Addr::UNSPECIFIED;
        DhcpRepr {
            message_type,
            transaction_id,
            secs: 0,
            client_hardware_address: MAC,
            client_ip: nobody,
            your_ip: nobody,
            server_ip: nobody,
            router: None,
            subnet_mask: None,
            relay_agent_ip: nobody,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    /// What `server` answers: a good lease, as far as it is one.
    fn answer(message_type: DhcpMessageType, transaction_id: u32, server: Ipv4Addr) -> DhcpRepr<'static> {
        DhcpRepr {
            your_ip: BOARD,
            server_identifier: Some(server),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            lease_duration: Some(600),
            ..message(message_type, transaction_id)
        }
    }

    fn frame(message: &DhcpRepr<'_>, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
        let udp = UdpRepr { src_port: ports.0, dst_port: ports.1 };
        let payload_len = udp.header_len() + message.buffer_len();
        let from = message.server_identifier.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let ip = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Udp,
            payload_len,
            hop_limit: 9,
        };
        let ethernet = EthernetRepr { src_addr: MAC, dst_addr: MAC, ethertype: EthernetProtocol::Ipv4 };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + payload_len];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        ethernet.emit(&mut frame);
        let sums = ChecksumCapabilities::default();
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &sums);
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        let put = |payload: &mut [u8]| message.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap();
        udp.emit(&mut datagram, &from.into(), &to.into(), message.buffer_len(), put, &sums);
        bytes
    }

    fn to_board(message: &DhcpRepr<'_>) -> Vec<u8> {
        frame(message, BOARD, (SERVER_PORT, CLIENT_PORT))
    }

    /// One that has said this, to `to`.
    fn having_sent(said: &DhcpRepr<'_>, to: Ipv4Addr) -> Gate {
        let mut gate = Gate::default();
        gate.sent(&frame(said, to, (CLIENT_PORT, SERVER_PORT)));
        gate
    }

    fn discovering() -> Gate {
        having_sent(&message(DhcpMessageType::Discover, 7), Ipv4Addr::BROADCAST)
    }

    fn requesting() -> Gate {
        let request = DhcpRepr { server_identifier: Some(SERVER), ..message(DhcpMessageType::Request, 7) };
        having_sent(&request, Ipv4Addr::BROADCAST)
    }

    fn arp(operation: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend([0; 20]);
        frame
    }

    #[test]
    fn nothing_comes_in_before_something_was_asked() {
        let offer = to_board(&answer(DhcpMessageType::Offer, 1, SERVER));
        assert!(!Gate::default().lets_in(&offer, NOW), "the state machine begins with the number 1");
        assert!(!Gate::default().lets_in(&arp(2), NOW));
        let offer = to_board(&answer(DhcpMessageType::Offer, 7, SERVER));
        assert!(discovering().lets_in(&offer, NOW));
        let mut anew = discovering();
        anew.begin_anew();
        assert!(!anew.lets_in(&offer, NOW), "what was asked in another network");
    }

    #[test]
    fn only_dhcp_answers_and_arp_replies_come_in() {
        let good = answer(DhcpMessageType::Offer, 7, SERVER);
        for (may, from, to) in [
            (true, SERVER_PORT, CLIENT_PORT),
            (false, SERVER_PORT, SERVER_PORT),
            (false, SERVER_PORT, 2020),
            (false, 2020, CLIENT_PORT),
        ] {
            assert_eq!(discovering().lets_in(&frame(&good, BOARD, (from, to)), NOW), may);
        }
        assert!(discovering().lets_in(&arp(2), NOW));
        assert!(!discovering().lets_in(&arp(1), NOW));
        let mut tcp = to_board(&good);
        tcp[23] = 6;
        assert!(!discovering().lets_in(&tcp, NOW));
        let whole = to_board(&good);
        for length in 0..whole.len() {
            discovering().lets_in(&whole[..length], NOW);
        }
    }

    #[test]
    fn only_answers_to_the_question_come_in_and_each_once() {
        let lets = |gate: &mut Gate, kind, number, server| {
            gate.lets_in(&to_board(&answer(kind, number, server)), NOW)
        };
        let (offer, ack, nak) = (DhcpMessageType::Offer, DhcpMessageType::Ack, DhcpMessageType::Nak);
        assert!(!lets(&mut discovering(), offer, 8, SERVER), "another number");
        let mut other = answer(offer, 7, SERVER);
        other.client_hardware_address = EthernetAddress([2; 6]);
        assert!(!discovering().lets_in(&to_board(&other), NOW), "another board");
        assert!(!lets(&mut discovering(), ack, 7, SERVER) && !lets(&mut discovering(), nak, 7, SERVER));
        for kind in [ack, nak] {
            let mut gate = requesting();
            assert!(!lets(&mut gate, kind, 7, OTHER), "who was not asked");
            assert!(lets(&mut gate, kind, 7, SERVER));
            assert!(!lets(&mut gate, nak, 7, SERVER), "second thoughts");
        }
        // A renewal names nobody, and goes to one only.
        let renewal = message(DhcpMessageType::Request, 9);
        let mut gate = requesting();
        assert!(lets(&mut gate, ack, 7, SERVER));
        gate.sent(&frame(&renewal, SERVER, (CLIENT_PORT, SERVER_PORT)));
        assert!(!lets(&mut gate, nak, 9, OTHER));
        // Later it goes to everybody.
        gate.sent(&frame(&renewal, Ipv4Addr::BROADCAST, (CLIENT_PORT, SERVER_PORT)));
        assert!(lets(&mut gate, nak, 9, OTHER));
    }

    #[test]
    fn what_no_board_can_use_is_no_lease() {
        let lets = |change: fn(&mut DhcpRepr<'_>)| {
            let (mut offer, mut ack) =
                (answer(DhcpMessageType::Offer, 7, SERVER), answer(DhcpMessageType::Ack, 7, SERVER));
            change(&mut offer);
            change(&mut ack);
            let both =
                [discovering().lets_in(&to_board(&offer), NOW), requesting().lets_in(&to_board(&ack), NOW)];
            assert_eq!(both[0], both[1]);
            both[0]
        };
        fn mask(message: &mut DhcpRepr<'_>, octets: [u8; 4]) {
            message.subnet_mask = Some(octets.into());
        }
        assert!(lets(|_| {}));
        assert!(lets(|message| mask(message, [255, 0, 0, 0])));
        assert!(lets(|message| mask(message, [255, 255, 255, 254])));
        let refused: [fn(&mut DhcpRepr<'_>); 10] = [
            |message| mask(message, [0, 0, 0, 0]),
            |message| mask(message, [254, 0, 0, 0]),
            |message| mask(message, [255, 0, 255, 0]),
            |message| message.your_ip = Ipv4Addr::new(127, 0, 0, 9),
            |message| message.your_ip = Ipv4Addr::new(224, 0, 0, 9),
            |message| message.your_ip = Ipv4Addr::new(0, 0, 0, 9),
            |message| message.your_ip = Ipv4Addr::BROADCAST,
            |message| message.your_ip = Ipv4Addr::new(192, 168, 50, 0),
            |message| message.your_ip = Ipv4Addr::new(192, 168, 50, 255),
            |message| message.lease_duration = Some(0),
        ];
        for change in refused {
            assert!(!lets(change));
        }
        // An offer may leave it out, a lease may not.
        let bare = |kind| to_board(&DhcpRepr { subnet_mask: None, ..answer(kind, 7, SERVER) });
        assert!(discovering().lets_in(&bare(DhcpMessageType::Offer), NOW));
        assert!(!requesting().lets_in(&bare(DhcpMessageType::Ack), NOW));
    }

    /// A LAN with a server that offers and then refuses.
    struct Naysayer {
        gate: Gate,
        answers: VecDeque<Vec<u8>>,
        discovers: Vec<Instant>,
        frames: usize,
    }

    struct In(Vec<u8>);
    struct Out<'a>(&'a mut Naysayer, Instant);

    impl RxToken for In {
        fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
            read(&self.0)
        }
    }

    impl TxToken for Out<'_> {
        fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
            let mut frame = vec![0; length];
            let result = write(&mut frame);
            self.0.gate.sent(&frame);
            self.0.frames += 1;
            let asked = within(&frame, (CLIENT_PORT, SERVER_PORT), |_, message| {
                (message.message_type, message.transaction_id)
            });
            let (kind, number) = asked.unwrap();
            let kind = match kind {
                DhcpMessageType::Discover => {
                    self.0.discovers.push(self.1);
                    DhcpMessageType::Offer
                }
                _ => DhcpMessageType::Nak,
            };
            self.0.answers.push_back(to_board(&answer(kind, number, SERVER)));
            result
        }
    }

    impl Device for Naysayer {
        type RxToken<'a> = In;
        type TxToken<'a> = Out<'a>;

        fn receive(&mut self, now: Instant) -> Option<(In, Out<'_>)> {
            let frame = self.answers.pop_front()?;
            self.gate.lets_in(&frame, now).then_some((In(frame), Out(self, now)))
        }

        fn transmit(&mut self, now: Instant) -> Option<Out<'_>> {
            (self.gate.pause(now) == Duration::ZERO).then_some(Out(self, now))
        }

        fn capabilities(&self) -> DeviceCapabilities {
            let mut capabilities = DeviceCapabilities::default();
            capabilities.medium = Medium::Ethernet;
            capabilities.max_transmission_unit = 1514;
            capabilities
        }
    }

    #[test]
    fn a_server_that_refuses_its_own_offers_is_asked_less_and_less() {
        let mut lan =
            Naysayer { gate: Gate::default(), answers: VecDeque::new(), discovers: Vec::new(), frames: 0 };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ethernet(MAC)), &mut lan, NOW);
        let mut sockets = SocketSet::new(Vec::new());
        sockets.add(dhcpv4::Socket::new());
        let end = NOW + Duration::from_secs(600);
        let mut now = NOW;
        // A wire that takes a millisecond.
        while now < end && lan.frames < 10_000 {
            interface.poll(now, &mut lan, &mut sockets);
            now += Duration::from_millis(1);
        }
        let seconds: Vec<i64> = lan.discovers.windows(2).map(|two| (two[1] - two[0]).secs() as i64).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64, 64, 64]);
        assert_eq!(lan.frames, lan.discovers.len() * 2, "a question and a request each time");
    }

    #[test]
    fn a_refusal_long_after_another_is_the_first_of_its_kind() {
        let nak = to_board(&answer(DhcpMessageType::Nak, 7, SERVER));
        let mut gate = requesting();
        assert!(gate.lets_in(&nak, NOW));
        assert_eq!(gate.pause(NOW), FIRST_PAUSE);
        gate.asked = requesting().asked;
        let soon = NOW + Duration::from_secs(9);
        assert!(gate.lets_in(&nak, soon));
        assert_eq!(gate.pause(soon), FIRST_PAUSE * 2);
        gate.asked = requesting().asked;
        let late = soon + FORGOTTEN;
        assert!(gate.lets_in(&nak, late));
        assert_eq!(gate.pause(late), FIRST_PAUSE);
        gate.begin_anew();
        assert_eq!(gate.pause(late), Duration::ZERO, "another cable");
    }

    proptest! {
        #[test]
        fn garbage_is_kept_out(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0..300_usize) {
            prop_assert!(!discovering().lets_in(&bytes, NOW));
            let mut changed = to_board(&answer(DhcpMessageType::Ack, 7, SERVER));
            if let Some(byte) = changed.get_mut(at) {
                *byte = bytes.first().copied().unwrap_or_default();
            }
            requesting().lets_in(&changed, NOW);
        }
    }
}
