//! A ruleset as `nft -s list ruleset` (1.0.6) prints it.
use super::model::{
    Base, Chain, Family, Hook, Icmp, Key, KeyType, Match, Not, Policy, Protocol, Rule, Ruleset, Set,
    Statement, States, Table, Value, Verdict,
};
use std::fmt::{self, Display, Formatter};
use wherry_protocol::message::Transport;

fn joined<T: Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| write!(f, "{table}"))
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        };
        let parts = self.sets.iter().map(Set::to_string).chain(self.chains.iter().map(Chain::to_string));
        write!(f, "table {family} {} {{\n{}}}\n", self.name, joined(parts, "\n"))
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\tset {} {{\n\t\ttype {}\n", self.name, joined(&self.key, " . "))?;
        if !self.elements.is_empty() {
            let elements = self.elements.iter().map(|element| joined(element.values(&self.key), " . "));
            writeln!(f, "\t\telements = {{ {} }}", joined(elements, ",\n\t\t\t     "))?;
        }
        f.write_str("\t}\n")
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ifname => "ifname",
            Self::Ether => "ether_addr",
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
        })
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ifname(name) => write!(f, "\"{name}\""),
            Self::Ether(mac) => f.write_str(&joined(mac.iter().map(|byte| format!("{byte:02x}")), ":")),
            Self::Ipv4(address) => write!(f, "{address}"),
            Self::Ipv6(address) => write!(f, "{address}"),
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Gre => "gre",
            Self::Icmpv6 => "ipv6-icmp",
        })
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
        f.write_str("\t}\n")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Input => "filter hook input priority filter",
            Hook::Output => "filter hook output priority filter",
            Hook::Forward => "filter hook forward priority filter",
            Hook::SourceNat => "nat hook postrouting priority srcnat",
            Hook::DestinationNat => "nat hook prerouting priority dstnat",
            Hook::BridgePrerouting => "filter hook prerouting priority dstnat",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {hook}; policy {policy};")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(&self.0, " "))
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(condition) => write!(f, "{condition}"),
            Self::Limit { per_second } => write!(f, "limit rate {per_second}/second"),
            Self::Counter => f.write_str("counter"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Redirect(address, port) => write!(f, "dnat ip to {address}:{port}"),
            Self::Verdict(Verdict::Accept) => f.write_str("accept"),
            Self::Verdict(Verdict::Drop(reason)) => write!(f, "drop comment \"{}\"", reason.name()),
            Self::Verdict(Verdict::Jump(chain)) => write!(f, "jump {chain}"),
        }
    }
}

impl Display for Not {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is => Ok(()),
            Self::IsNot => f.write_str("!= "),
        }
    }
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(not, name) => write!(f, "iifname {not}\"{name}\""),
            Self::Output(not, name) => write!(f, "oifname {not}\"{name}\""),
            Self::Source(not, network) => write!(f, "ip saddr {not}{network}"),
            Self::Destination(not, network) => write!(f, "ip daddr {not}{network}"),
            Self::Source6(not, network) => write!(f, "ip6 saddr {not}{network}"),
            Self::Destination6(not, network) => write!(f, "ip6 daddr {not}{network}"),
            Self::Ipv6 => f.write_str("meta nfproto ipv6"),
            Self::Arp => f.write_str("meta protocol arp"),
            Self::Ipv4 => f.write_str("meta protocol ip"),
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::SourcePort(over, port) => write!(f, "{} sport {port}", transport(*over)),
            Self::DestinationPort(over, port) => write!(f, "{} dport {port}", transport(*over)),
            Self::Icmp(Icmp::EchoRequest) => f.write_str("icmp type echo-request"),
            Self::Icmp(Icmp::FragmentationNeeded) => {
                f.write_str("icmp type destination-unreachable icmp code frag-needed")
            }
            Self::Icmp(Icmp::PacketTooBig) => f.write_str("icmpv6 type packet-too-big"),
            Self::State(states) => write!(f, "ct state {states}"),
            Self::Redirected => f.write_str("ct status dnat"),
            Self::Lookup(not, key, set) => write!(f, "{} {not}@{set}", joined(key, " . ")),
        }
    }
}

impl Display for States {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let named = [(self.established, "established"), (self.related, "related"), (self.new, "new")];
        f.write_str(&joined(named.iter().filter(|(on, _)| *on).map(|(_, name)| name), ","))
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "iifname",
            Self::EtherSource => "ether saddr",
            Self::ArpEther => "arp saddr ether",
            Self::ArpIp => "arp saddr ip",
            Self::Source => "ip saddr",
            Self::Destination => "ip daddr",
            Self::Source6 => "ip6 saddr",
            Self::Destination6 => "ip6 daddr",
            Self::Protocol => "meta l4proto",
            Self::SourcePort => "th sport",
            Self::DestinationPort => "th dport",
        })
    }
}
