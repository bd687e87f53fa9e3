//! Rules as programs of nf_tables' register machine.
//!
//! A packet's fields are loaded into registers and compared there; a comparison that fails ends the rule. What `nft`
//! calls dependencies (`ip saddr` only makes sense for IPv4) is made explicit here, once per rule.
use super::model::{Family, Icmp, Key, Match, Not, Protocol, Rule, Statement, States, Verdict};
use crate::address::{Prefix, Prefix6};
use wherry_protocol::message::Transport;

/// First of the 32-bit registers; keys of several parts fill them one after another (NFT_REG32_00).
const REGISTER_BASE: u32 = 8;
/// Bytes of one such register.
const REGISTER_BYTES: u32 = 4;
/// Length of an interface name in the kernel (IFNAMSIZ).
const IFNAMSIZ: usize = 16;

/// Where in a packet a load begins (enum nft_payload_bases).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What is known about a packet besides its bytes (enum nft_meta_keys).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meta {
    Protocol = 1,
    Iifname = 6,
    Oifname = 7,
    Nfproto = 15,
    L4proto = 16,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Meta(Meta),
    Payload { header: Header, offset: u32, bytes: u32 },
    State,
    Status,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    Load { from: Load, register: u32 },
    Mask { mask: Vec<u8> },
    Compare { not: Not, data: Vec<u8> },
    Lookup { not: Not, set: &'static str },
    Limit { per_second: u32 },
    Counter,
    Masquerade,
    Redirect { address: Vec<u8>, port: Vec<u8> },
    Verdict(Verdict),
}

/// The first register: where all but the later parts of keys are loaded.
pub(super) const FIRST: u32 = REGISTER_BASE;

const fn payload(header: Header, offset: u32, bytes: u32) -> Load {
    Load::Payload { header, offset, bytes }
}

// Offsets: RFC 791 §3.1 (IPv4), RFC 8200 §3 (IPv6), RFC 826 (ARP), RFC 792 (ICMP); ports come first in TCP and UDP alike.
const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;
const IP6_SOURCE: u32 = 8;
const IP6_DESTINATION: u32 = 24;
const ETHER_SOURCE: Load = payload(Header::Link, 6, 6);
const ARP_ETHER: Load = payload(Header::Network, 8, 6);
const ARP_IP: Load = payload(Header::Network, 14, 4);
const SOURCE_PORT: Load = payload(Header::Transport, 0, 2);
const DESTINATION_PORT: Load = payload(Header::Transport, 2, 2);
const ICMP_TYPE: Load = payload(Header::Transport, 0, 1);
const ICMP_CODE: Load = payload(Header::Transport, 1, 1);

/// What must be so for a field to mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Ipv4,
    Ipv6,
    Arp,
    Protocol(Protocol),
}

/// The program of `rule` in a table of `family`.
pub(super) fn program(family: Family, rule: &Rule) -> Vec<Instruction> {
    let mut program = Program { family, known: Vec::new(), code: Vec::new() };
    rule.0.iter().for_each(|statement| program.statement(statement));
    program.code
}

struct Program {
    family: Family,
    known: Vec<Need>,
    code: Vec<Instruction>,
}

impl Program {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match(condition) => self.condition(condition),
            Statement::Limit { per_second } => {
                self.code.push(Instruction::Limit { per_second: *per_second });
            }
            Statement::Counter => self.code.push(Instruction::Counter),
            Statement::Masquerade => self.code.push(Instruction::Masquerade),
            Statement::Redirect(address, port) => {
                let (address, port) = (address.octets().to_vec(), port.to_be_bytes().to_vec());
                self.code.push(Instruction::Redirect { address, port });
            }
            Statement::Verdict(verdict) => self.code.push(Instruction::Verdict(*verdict)),
        }
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Input(not, name) => self.compare(Load::Meta(Meta::Iifname), *not, interface(name)),
            Match::Output(not, name) => self.compare(Load::Meta(Meta::Oifname), *not, interface(name)),
            Match::Source(not, network) => self.network(IP_SOURCE, *not, *network),
            Match::Destination(not, network) => self.network(IP_DESTINATION, *not, *network),
            Match::Source6(not, network) => self.network6(IP6_SOURCE, *not, *network),
            Match::Destination6(not, network) => self.network6(IP6_DESTINATION, *not, *network),
            Match::Ipv6 => self.need(Need::Ipv6),
            Match::Arp => self.need(Need::Arp),
            Match::Ipv4 => self.need(Need::Ipv4),
            Match::Protocol(protocol) => self.need(Need::Protocol(*protocol)),
            Match::SourcePort(over, port) => self.port(*over, SOURCE_PORT, *port),
            Match::DestinationPort(over, port) => self.port(*over, DESTINATION_PORT, *port),
            Match::Icmp(kind) => self.icmp(*kind),
            Match::State(states) => self.state(*states),
            Match::Redirected => self.bits(Load::Status, STATUS_DESTINATION_NAT),
            Match::Lookup(not, key, set) => self.lookup(*not, key, set),
        }
    }

    fn need(&mut self, need: Need) {
        if self.known.contains(&need) {
            return;
        }
        self.known.push(need);
        let (load, data) = match (need, self.family) {
            (Need::Ipv4, Family::Inet) => (Meta::Nfproto, vec![NFPROTO_IPV4]),
            (Need::Ipv4, Family::Bridge) => (Meta::Protocol, ETHERTYPE_IPV4.to_be_bytes().to_vec()),
            (Need::Ipv6, Family::Inet) => (Meta::Nfproto, vec![NFPROTO_IPV6]),
            (Need::Ipv6, Family::Bridge) => (Meta::Protocol, ETHERTYPE_IPV6.to_be_bytes().to_vec()),
            (Need::Arp, Family::Inet | Family::Bridge) => {
                (Meta::Protocol, ETHERTYPE_ARP.to_be_bytes().to_vec())
            }
            (Need::Protocol(protocol), Family::Inet | Family::Bridge) => {
                (Meta::L4proto, vec![number(protocol)])
            }
        };
        self.compare(Load::Meta(load), Not::Is, data);
    }

    fn load(&mut self, from: Load, register: u32) {
        self.code.push(Instruction::Load { from, register });
    }

    fn compare(&mut self, from: Load, not: Not, data: Vec<u8>) {
        self.load(from, FIRST);
        self.code.push(Instruction::Compare { not, data });
    }

    fn network(&mut self, offset: u32, not: Not, network: Prefix) {
        self.need(Need::Ipv4);
        let (whole, mask) = (network.network().address.octets(), network.mask().to_be_bytes());
        self.beginning(offset, not, network.bits, (&whole, &mask));
    }

    fn network6(&mut self, offset: u32, not: Not, network: Prefix6) {
        self.need(Need::Ipv6);
        let (whole, mask) = (network.network().address.octets(), network.mask().to_be_bytes());
        self.beginning(offset, not, network.bits, (&whole, &mask));
    }

    /// Compares the first `bits` of an address: whole bytes, or all of it through a mask.
    fn beginning(&mut self, offset: u32, not: Not, bits: u8, (whole, mask): (&[u8], &[u8])) {
        let bytes = usize::from(bits / 8).min(whole.len());
        if bits > 0 && bits.is_multiple_of(8) {
            let data = whole.get(..bytes).unwrap_or(whole).to_vec();
            return self.compare(payload(Header::Network, offset, u32::from(bits / 8)), not, data);
        }
        self.load(payload(Header::Network, offset, whole.len() as u32), FIRST);
        self.code.push(Instruction::Mask { mask: mask.to_vec() });
        self.code.push(Instruction::Compare { not, data: whole.to_vec() });
    }

    fn port(&mut self, over: Transport, load: Load, port: u16) {
        self.need(Need::Protocol(over.into()));
        self.compare(load, Not::Is, port.to_be_bytes().to_vec());
    }

    fn icmp(&mut self, kind: Icmp) {
        let (version, protocol) = match kind {
            Icmp::EchoRequest | Icmp::FragmentationNeeded => (Need::Ipv4, Protocol::Icmp),
            Icmp::PacketTooBig => (Need::Ipv6, Protocol::Icmpv6),
        };
        self.need(version);
        self.need(Need::Protocol(protocol));
        match kind {
            Icmp::EchoRequest => self.compare(ICMP_TYPE, Not::Is, vec![8]),
            Icmp::PacketTooBig => self.compare(ICMP_TYPE, Not::Is, vec![2]),
            Icmp::FragmentationNeeded => {
                self.compare(ICMP_TYPE, Not::Is, vec![3]);
                self.compare(ICMP_CODE, Not::Is, vec![4]);
            }
        }
    }

    fn state(&mut self, states: States) {
        let bits = (u32::from(states.established) * STATE_ESTABLISHED)
            | (u32::from(states.related) * STATE_RELATED)
            | (u32::from(states.new) * STATE_NEW);
        self.bits(Load::State, bits);
    }

    /// Whether one of `bits` is set.
    fn bits(&mut self, from: Load, bits: u32) {
        self.load(from, FIRST);
        self.code.push(Instruction::Mask { mask: bits.to_ne_bytes().to_vec() });
        self.code.push(Instruction::Compare { not: Not::IsNot, data: vec![0; 4] });
    }

    fn lookup(&mut self, not: Not, key: &[Key], set: &'static str) {
        key.iter().filter_map(|part| requirement(*part)).for_each(|need| self.need(need));
        let mut register = FIRST;
        for part in key {
            let (from, bytes) = source(*part);
            self.load(from, register);
            register += bytes.div_ceil(REGISTER_BYTES);
        }
        self.code.push(Instruction::Lookup { not, set });
    }
}

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;
// NF_CT_STATE_BIT(IP_CT_ESTABLISHED, IP_CT_RELATED, IP_CT_NEW).
const STATE_ESTABLISHED: u32 = 2;
const STATE_RELATED: u32 = 4;
const STATE_NEW: u32 = 8;
/// IPS_DST_NAT.
const STATUS_DESTINATION_NAT: u32 = 1 << 5;

pub(super) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Icmp => 1,
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Gre => 47,
        Protocol::Icmpv6 => 58,
    }
}

/// A name as the kernel compares it: all 16 bytes, or only what stands before the `*`.
fn interface(name: &str) -> Vec<u8> {
    if let Some(beginning) = name.strip_suffix('*') {
        return beginning.as_bytes().to_vec();
    }
    padded(name.as_bytes(), IFNAMSIZ)
}

fn padded(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(length, 0);
    padded
}

fn requirement(part: Key) -> Option<Need> {
    match part {
        Key::Input | Key::EtherSource | Key::Protocol | Key::SourcePort | Key::DestinationPort => None,
        Key::ArpEther | Key::ArpIp => Some(Need::Arp),
        Key::Source | Key::Destination => Some(Need::Ipv4),
        Key::Source6 | Key::Destination6 => Some(Need::Ipv6),
    }
}

/// Where a part of a key is loaded from, and how many bytes it has.
fn source(part: Key) -> (Load, u32) {
    match part {
        Key::Input => (Load::Meta(Meta::Iifname), 16),
        Key::EtherSource => (ETHER_SOURCE, 6),
        Key::ArpEther => (ARP_ETHER, 6),
        Key::ArpIp => (ARP_IP, 4),
        Key::Source => (payload(Header::Network, IP_SOURCE, 4), 4),
        Key::Destination => (payload(Header::Network, IP_DESTINATION, 4), 4),
        Key::Source6 => (payload(Header::Network, IP6_SOURCE, 16), 16),
        Key::Destination6 => (payload(Header::Network, IP6_DESTINATION, 16), 16),
        Key::Protocol => (Load::Meta(Meta::L4proto), 1),
        Key::SourcePort => (SOURCE_PORT, 2),
        Key::DestinationPort => (DESTINATION_PORT, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn loads(rule: &Rule) -> Vec<Load> {
        let code = program(Family::Inet, rule).into_iter();
        code.filter_map(|step| match step {
            Instruction::Load { from, .. } => Some(from),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn a_dependency_is_checked_once_per_rule() {
        let address = Prefix::host(Ipv4Addr::new(10, 1, 0, 2));
        let rule = Rule::new().source(address).destination(address).accept();
        let checks = loads(&rule).into_iter().filter(|load| *load == Load::Meta(Meta::Nfproto)).count();
        assert_eq!(checks, 1);
    }

    #[test]
    fn prefixes_compare_whole_bytes_or_through_a_mask() {
        let of = |text: &str| program(Family::Inet, &Rule::new().source(text.parse().unwrap()));
        assert_eq!(of("10.2.0.0/16")[3], Instruction::Compare { not: Not::Is, data: vec![10, 2] });
        assert_eq!(of("172.16.9.9/12")[3], Instruction::Mask { mask: vec![255, 240, 0, 0] });
        assert_eq!(of("172.16.9.9/12")[4], Instruction::Compare { not: Not::Is, data: vec![172, 16, 0, 0] });
        assert_eq!(of("0.0.0.0/0")[3], Instruction::Mask { mask: vec![0; 4] });
    }

    #[test]
    fn keys_fill_whole_registers() {
        let code = program(
            Family::Bridge,
            &Rule::new().lookup(&[Key::Input, Key::EtherSource, Key::Source], "owners"),
        );
        let registers: Vec<u32> = code
            .iter()
            .filter_map(|step| match step {
                Instruction::Load { register, .. } => Some(*register),
                _ => None,
            })
            .collect();
        assert_eq!(registers, [FIRST, FIRST, FIRST + 4, FIRST + 6]);
    }
}
