//! The one station of a segment that is no machine: a DHCP server (RFC 2131) with fixed leases. It also answers ARP
//! and pings for its own address, so that "the network works" can be told from "the other machine works".
use crate::machine::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket,
    DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The station's Ethernet address.
const OWN: EthernetAddress = EthernetAddress(Mac::local(0xff, 1).0);
const HOP_LIMIT: u8 = 64;

/// What the DHCP server tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// The server's own address, also offered as gateway.
    pub gateway: Ipv4Addr,
    /// Length of the network prefix, 0 to 32.
    pub prefix_length: u8,
    /// Name server to tell, if any.
    pub dns: Option<Ipv4Addr>,
    /// How long a lease is good, in seconds.
    pub lease_seconds: u32,
    /// Who gets which address. Others get no answer.
    pub leases: BTreeMap<Mac, Ipv4Addr>,
}

impl Lan {
    fn mask(&self) -> Ipv4Addr {
        let host_bits = 32_u32.saturating_sub(u32::from(self.prefix_length));
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// The answer to a frame, if it wants one from us.
    pub(crate) fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.dst_addr() != OWN && !frame.dst_addr().is_broadcast() {
            return None;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.arp(frame.payload()),
            EthernetProtocol::Ipv4 => self.ipv4(frame.src_addr(), frame.payload()),
            _ => None,
        }
    }

    fn arp(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
        else {
            return None;
        };
        if operation != ArpOperation::Request || target_protocol_addr != self.gateway {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: OWN,
            source_protocol_addr: self.gateway,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        Some(ethernet(source_hardware_addr, EthernetProtocol::Arp, reply.buffer_len(), |buffer| {
            reply.emit(&mut ArpPacket::new_unchecked(buffer));
        }))
    }

    fn ipv4(&self, from: EthernetAddress, payload: &[u8]) -> Option<Vec<u8>> {
        let packet = Ipv4Packet::new_checked(payload).ok()?;
        let repr = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        match repr.next_header {
            IpProtocol::Udp => self.udp(&repr, packet.payload()),
            IpProtocol::Icmp if repr.dst_addr == self.gateway => {
                self.echo(from, repr.src_addr, packet.payload())
            }
            _ => None,
        }
    }

    fn echo(&self, to: EthernetAddress, address: Ipv4Addr, payload: &[u8]) -> Option<Vec<u8>> {
        let checksums = ChecksumCapabilities::default();
        let packet = Icmpv4Packet::new_checked(payload).ok()?;
        let Icmpv4Repr::EchoRequest { ident, seq_no, data } = Icmpv4Repr::parse(&packet, &checksums).ok()?
        else {
            return None;
        };
        let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
        Some(self.packet(to, address, IpProtocol::Icmp, reply.buffer_len(), |buffer| {
            reply.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums);
        }))
    }

    fn udp(&self, ip: &Ipv4Repr, payload: &[u8]) -> Option<Vec<u8>> {
        let (source, destination) = (IpAddress::Ipv4(ip.src_addr), IpAddress::Ipv4(ip.dst_addr));
        let packet = UdpPacket::new_checked(payload).ok()?;
        let udp = UdpRepr::parse(&packet, &source, &destination, &ChecksumCapabilities::default()).ok()?;
        if udp.src_port != DHCP_CLIENT_PORT || udp.dst_port != DHCP_SERVER_PORT {
            return None;
        }
        let packet = DhcpPacket::new_checked(packet.payload()).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let (message, address) = self.verdict(&request)?;
        self.dhcp(&request, message, address)
    }

    /// RFC 2131 §4.3: what to say to a client, and which address it is about.
    fn verdict(&self, request: &DhcpRepr<'_>) -> Option<(DhcpMessageType, Ipv4Addr)> {
        let lease = *self.leases.get(&Mac(request.client_hardware_address.0))?;
        match request.message_type {
            DhcpMessageType::Discover => Some((DhcpMessageType::Offer, lease)),
            DhcpMessageType::Request if request.server_identifier.is_some_and(|id| id != self.gateway) => {
                None
            }
            DhcpMessageType::Request => {
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                Some(if wanted == lease {
                    (DhcpMessageType::Ack, lease)
                } else {
                    (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED)
                })
            }
            DhcpMessageType::Offer
            | DhcpMessageType::Decline
            | DhcpMessageType::Ack
            | DhcpMessageType::Nak
            | DhcpMessageType::Release
            | DhcpMessageType::Inform
            | DhcpMessageType::Unknown(_) => None,
        }
    }

    fn dhcp(&self, request: &DhcpRepr<'_>, message: DhcpMessageType, address: Ipv4Addr) -> Option<Vec<u8>> {
        let granted = message != DhcpMessageType::Nak;
        let reply = DhcpRepr {
            message_type: message,
            transaction_id: request.transaction_id,
            secs: 0,
            client_hardware_address: request.client_hardware_address,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: address,
            server_ip: self.gateway,
            router: granted.then_some(self.gateway),
            subnet_mask: granted.then(|| self.mask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: true,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(self.gateway),
            parameter_request_list: None,
            dns_servers: self.dns.filter(|_| granted).map(|dns| [dns].into_iter().collect()),
            max_size: None,
            lease_duration: granted.then_some(self.lease_seconds),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut body = vec![0; reply.buffer_len()];
        reply.emit(&mut DhcpPacket::new_unchecked(&mut body)).ok()?;
        let udp = UdpRepr { src_port: DHCP_SERVER_PORT, dst_port: DHCP_CLIENT_PORT };
        let length = udp.header_len().saturating_add(body.len());
        let (source, destination) = (IpAddress::Ipv4(self.gateway), IpAddress::Ipv4(Ipv4Addr::BROADCAST));
        // Broadcast reaches clients that have no address yet, and harms nobody on a segment this small.
        Some(self.packet(
            EthernetAddress::BROADCAST,
            Ipv4Addr::BROADCAST,
            IpProtocol::Udp,
            length,
            |buffer| {
                let fill = |payload: &mut [u8]| payload.copy_from_slice(&body);
                let mut packet = UdpPacket::new_unchecked(buffer);
                let checksums = ChecksumCapabilities::default();
                udp.emit(&mut packet, &source, &destination, body.len(), fill, &checksums);
            },
        ))
    }

    fn packet(
        &self,
        to: EthernetAddress,
        address: Ipv4Addr,
        next_header: IpProtocol,
        payload_len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Vec<u8> {
        let ip = Ipv4Repr {
            src_addr: self.gateway,
            dst_addr: address,
            next_header,
            payload_len,
            hop_limit: HOP_LIMIT,
        };
        let length = ip.buffer_len().saturating_add(payload_len);
        ethernet(to, EthernetProtocol::Ipv4, length, |buffer| {
            let mut packet = Ipv4Packet::new_unchecked(buffer);
            ip.emit(&mut packet, &ChecksumCapabilities::default());
            fill(packet.payload_mut());
        })
    }
}

fn ethernet(
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = EthernetRepr { src_addr: OWN, dst_addr: to, ethertype };
    let mut bytes = vec![0; header.buffer_len().saturating_add(length)];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    header.emit(&mut frame);
    fill(frame.payload_mut());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Mac = Mac::local(1, 7);

    fn lan() -> Lan {
        Lan {
            gateway: Ipv4Addr::new(192, 168, 50, 1),
            prefix_length: 24,
            dns: Some(Ipv4Addr::new(9, 9, 9, 9)),
            lease_seconds: 3600,
            leases: BTreeMap::from([(CLIENT, Ipv4Addr::new(192, 168, 50, 7))]),
        }
    }

    fn ask(mac: Mac, message_type: DhcpMessageType, requested_ip: Option<Ipv4Addr>) -> Vec<u8> {
        let repr = DhcpRepr {
            message_type,
            transaction_id: 42,
            secs: 0,
            client_hardware_address: EthernetAddress(mac.0),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut body = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut body)).unwrap();
        let udp = UdpRepr { src_port: DHCP_CLIENT_PORT, dst_port: DHCP_SERVER_PORT };
        let sender = Lan { gateway: Ipv4Addr::UNSPECIFIED, ..lan() };
        sender.packet(
            EthernetAddress::BROADCAST,
            Ipv4Addr::BROADCAST,
            IpProtocol::Udp,
            8 + body.len(),
            |buffer| {
                let ends = (IpAddress::Ipv4(Ipv4Addr::UNSPECIFIED), IpAddress::Ipv4(Ipv4Addr::BROADCAST));
                let mut packet = UdpPacket::new_unchecked(buffer);
                let sums = ChecksumCapabilities::default();
                udp.emit(&mut packet, &ends.0, &ends.1, body.len(), |p| p.copy_from_slice(&body), &sums);
            },
        )
    }

    /// Checks the checksums on the way in, and hands the DHCP part to `check`.
    fn with_reply(bytes: &[u8], check: impl FnOnce(DhcpRepr<'_>)) {
        let frame = EthernetFrame::new_checked(bytes).unwrap();
        let ip = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let repr = Ipv4Repr::parse(&ip, &ChecksumCapabilities::default()).unwrap();
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&repr.src_addr.into(), &repr.dst_addr.into()));
        check(DhcpRepr::parse(&DhcpPacket::new_checked(udp.payload()).unwrap()).unwrap());
    }

    #[test]
    fn a_known_card_is_offered_and_granted_its_address() {
        let address = Ipv4Addr::new(192, 168, 50, 7);
        let offer = lan().answer(&ask(CLIENT, DhcpMessageType::Discover, None)).unwrap();
        with_reply(&offer, |reply| {
            assert_eq!((reply.message_type, reply.your_ip), (DhcpMessageType::Offer, address));
            assert_eq!(reply.transaction_id, 42);
        });
        let ack = lan().answer(&ask(CLIENT, DhcpMessageType::Request, Some(address))).unwrap();
        with_reply(&ack, |reply| {
            assert_eq!((reply.message_type, reply.your_ip), (DhcpMessageType::Ack, address));
            assert_eq!(reply.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
            assert_eq!(reply.router, Some(lan().gateway));
            assert_eq!(reply.lease_duration, Some(3600));
            assert_eq!(reply.dns_servers.unwrap().as_slice(), [Ipv4Addr::new(9, 9, 9, 9)]);
        });
    }

    #[test]
    fn a_wrong_wish_is_refused_and_a_stranger_ignored() {
        let wish = Some(Ipv4Addr::new(192, 168, 50, 99));
        let nak = lan().answer(&ask(CLIENT, DhcpMessageType::Request, wish)).unwrap();
        with_reply(&nak, |reply| assert_eq!(reply.message_type, DhcpMessageType::Nak));
        assert_eq!(lan().answer(&ask(Mac::local(1, 8), DhcpMessageType::Discover, None)), None);
        assert_eq!(lan().answer(&ask(CLIENT, DhcpMessageType::Release, None)), None);
    }

    #[test]
    fn arp_for_the_gateway_only() {
        let request = |target| {
            let repr = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: EthernetAddress(CLIENT.0),
                source_protocol_addr: Ipv4Addr::new(192, 168, 50, 7),
                target_hardware_addr: EthernetAddress::BROADCAST,
                target_protocol_addr: target,
            };
            ethernet(EthernetAddress::BROADCAST, EthernetProtocol::Arp, repr.buffer_len(), |buffer| {
                repr.emit(&mut ArpPacket::new_unchecked(buffer));
            })
        };
        assert!(lan().answer(&request(lan().gateway)).is_some());
        assert_eq!(lan().answer(&request(Ipv4Addr::new(192, 168, 50, 9))), None);
    }

    #[test]
    fn every_prefix_of_a_good_frame_and_flipped_bytes_are_harmless() {
        let good = ask(CLIENT, DhcpMessageType::Discover, None);
        for length in 0..good.len() {
            assert_eq!(lan().answer(&good[..length]), None, "cut at {length}");
        }
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0xff;
            // Whatever it answers, it must not panic.
            drop(lan().answer(&bad));
        }
    }

    #[test]
    fn masks_of_all_lengths() {
        for (prefix_length, mask) in [(0, [0; 4]), (24, [255, 255, 255, 0]), (32, [255; 4]), (99, [255; 4])] {
            assert_eq!(Lan { prefix_length, ..lan() }.mask(), Ipv4Addr::from(mask));
        }
    }
}
