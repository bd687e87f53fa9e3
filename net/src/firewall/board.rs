//! The rules of the board itself: what may reach it, what passes through it, and who may call himself what.
use super::{DNS, TABLE, VERSIONS, Version, WEB, addresses, lan_of, multicast, only_internet};
use crate::address::{
    BRIDGE, Overlay, PORT_PREFIX, Prefix, TUNNEL_PREFIX, WIREGUARD, WIREGUARD_PORTS, mac, port_name,
    tunnel_name,
};
use crate::nft::{
    Chain, Element, Family, Hook, Icmp, Key, KeyType, Match, Not, Policy, Protocol, Rule, Ruleset, Set,
    SetChange, States, Table, Value,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use wherry_protocol::message::{Connection, DropReason, Egress, Peer, Transport, WebCaller};
use wherry_protocol::{ContainerId, NodeIndex};

/// Sessions, and enrolment.
const BROKER_PORTS: [u16; 2] = [2020, 2021];
/// LAN discovery.
const DISCOVERY_PORT: u16 = 1026;
/// DHCP's server and client (RFC 2131 §4.1).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// Pings answered in a second: enough for people, little for a flood.
const PINGS_PER_SECOND: u32 = 10;

/// What a board offers to its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// A broker's: sessions and enrolment.
    Broker,
    /// A node's: none, it dials out.
    Node,
}

/// What the rules of a board depend on.
#[derive(Debug, Clone, Copy)]
pub struct Board<'a> {
    /// What it offers.
    pub ports: Ports,
    /// Ports of its own that lead to containers: a broker's through its service, a node's straight to the container.
    pub published: &'a [Published],
    /// The interface to the outside, once known.
    pub uplink: Option<&'a str>,
    /// The board's networks there.
    pub lan: &'a [Prefix],
    /// The addresses of all containers.
    pub overlay: Overlay,
    /// The board's number, once known. Without one nothing is forwarded.
    pub index: Option<NodeIndex>,
    /// Boards that tunnels lead to.
    pub peers: &'a [Peer],
    /// Connections with an end here.
    pub connections: &'a [Connection],
    /// Containers here that may ask the web endpoint through the board.
    pub callers: &'a [WebCaller],
    /// Containers here, with their addresses.
    pub containers: &'a BTreeMap<ContainerId, Ipv4Addr>,
    /// Where those of them may send outside the cluster for whom it is not just the internet.
    pub egress: &'a BTreeMap<ContainerId, Vec<Egress>>,
}

/// A port that leads from outside to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// With this protocol.
    pub transport: Transport,
    /// On the board.
    pub port: u16,
    /// From these networks only; from anywhere if there are none.
    pub allow: Vec<Prefix>,
    /// Address and port of the container, on a node.
    pub to: Option<(Ipv4Addr, u16)>,
}

/// The board's ruleset: one table for packets, one for the frames that containers send.
#[must_use]
pub fn board(of: &Board<'_>) -> Ruleset {
    Ruleset { tables: vec![packets(of), frames(of)] }
}

fn tunnels() -> String {
    format!("{TUNNEL_PREFIX}*")
}

fn packets(of: &Board<'_>) -> Table {
    let peers: Vec<_> = of.peers.iter().map(|peer| peer.underlay).collect();
    let ends: Vec<_> = of.peers.iter().map(|peer| of.overlay.tunnel_end(peer.index).address).collect();
    let mut sets = vec![addresses("peers", &peers), addresses("tunnel_ends", &ends)];
    sets.extend(VERSIONS.map(|version| connections(of, version)));
    sets.push(addresses("offline", &offline(of)));
    sets.push(addresses("callers", &callers(of)));
    let mut chains = vec![Chain::at(Hook::Input, Policy::Drop, "input", input(of))];
    match of.index {
        Some(index) => chains.extend(forwarding(of, index)),
        None => chains.push(Chain::at(Hook::Forward, Policy::Drop, "forward", vec![])),
    }
    Table { family: Family::Inet, name: TABLE, sets, chains }
}

/// Containers that may not reach the internet.
fn offline(of: &Board<'_>) -> Vec<Ipv4Addr> {
    let closed = of.egress.iter().filter(|(_, egress)| !egress.contains(&Egress::Internet));
    closed.filter_map(|(id, _)| of.containers.get(id)).copied().collect()
}

/// Containers that may ask the web endpoint, if they have their addresses now.
fn callers(of: &Board<'_>) -> Vec<Ipv4Addr> {
    let here = |caller: &&WebCaller| of.containers.get(&caller.container) == Some(&caller.address);
    of.callers.iter().filter(here).map(|caller| caller.address).collect()
}

/// Names of sets.
const CONNECTIONS: [&str; 2] = ["connections", "connections6"];
const OWNERS: [&str; 2] = ["owners", "owners6"];

impl Board<'_> {
    /// What changes in the rules when connections go and others come and nothing else changes. `self` has those that are there
    /// afterwards.
    #[must_use]
    pub fn change(&self, gone: &[Connection], new: &[Connection]) -> Vec<SetChange> {
        // Another one of the same addresses, which the rules cannot tell from it.
        let stays = |gone: &Connection| {
            let same = |c: &&Connection| {
                (c.from_address, c.to_address, c.port, c.transport)
                    == (gone.from_address, gone.to_address, gone.port, gone.transport)
            };
            self.connections.iter().filter(same).any(|c| ends_are_ours(self, c))
        };
        let gone: Vec<_> = gone.iter().filter(|c| ends_are_ours(self, c) && !stays(c)).collect();
        let new: Vec<_> = new.iter().filter(|c| ends_are_ours(self, c)).collect();
        let change = |version: Version| SetChange {
            set: version.set(CONNECTIONS),
            gone: gone.iter().map(|c| element(self, version, c)).collect(),
            new: new.iter().map(|c| element(self, version, c)).collect(),
        };
        VERSIONS.map(change).into()
    }
}

fn element(of: &Board<'_>, version: Version, c: &Connection) -> Element {
    let [from, to] = [c.from_address, c.to_address].map(|address| version.value(of.overlay, address));
    Element::new([from, to, Value::Protocol(c.transport.into()), Value::Port(c.port)])
}

fn connections(of: &Board<'_>, version: Version) -> Set {
    Set {
        name: version.set(CONNECTIONS),
        key: vec![version.key_type(), version.key_type(), KeyType::Protocol, KeyType::Port],
        elements: of
            .connections
            .iter()
            .filter(|connection| ends_are_ours(of, connection))
            .map(|connection| element(of, version, connection))
            .collect(),
    }
}

/// Whether each end that lies on this board is the container that has the address now: an address that went on to
/// another container takes no connection along.
fn ends_are_ours(of: &Board<'_>, connection: &Connection) -> bool {
    let ours = |id, address| {
        let here = of.index.is_some_and(|index| of.overlay.subnet(index).contains(address));
        !here || of.containers.get(id) == Some(&address)
    };
    ours(&connection.from, connection.from_address) && ours(&connection.to, connection.to_address)
}

/// What may reach the board itself.
fn input(of: &Board<'_>) -> Vec<Rule> {
    let mut rules = vec![Rule::new().input("lo").accept()];
    // What containers send comes in by the bridge. Frames for a bridge itself (IEEE 802.1D, 01:80:c2:00:00:0X) go past its
    // table, and show the port they came by.
    rules.push(Rule::new().input(&format!("{PORT_PREFIX}*")).drop(DropReason::Spoofed));
    // Before what belongs to a known flow: connection tracking does not ask by which interface a packet came, and whoever
    // is on the same network can write a tunnel's addresses on plain GRE.
    let gre = || Rule::new().when(Match::Protocol(Protocol::Gre));
    let sealed = |device| gre().input(device).lookup(&[Key::Source], "tunnel_ends").accept();
    rules.extend(WIREGUARD.map(sealed));
    rules.push(gre().drop(DropReason::Unencrypted));
    // The DNS server on the board, and for some the way to the web endpoint: nothing else of it is for containers.
    if let Some(gateway) = of.index.map(|index| of.overlay.gateway(index)) {
        let to_gateway = || Rule::new().input(BRIDGE).destination(Prefix::host(gateway));
        rules.extend([Transport::Udp, Transport::Tcp].map(|over| to_gateway().port(over, DNS).accept()));
        let callers = || to_gateway().lookup(&[Key::Source], "callers");
        rules.extend(WEB.map(|port| callers().port(Transport::Tcp, port).accept()));
    }
    // Nothing that the board does with others is any of their business: not even an error about it.
    rules.push(multicast());
    rules.push(Rule::new().input(BRIDGE).drop(DropReason::PrivateNetwork));
    rules.push(Rule::new().input(&tunnels()).drop(DropReason::PrivateNetwork));
    rules.extend(WIREGUARD.map(|device| Rule::new().input(device).drop(DropReason::PrivateNetwork)));
    rules.push(Rule::new().state(States::ESTABLISHED_RELATED).accept());
    let from_peers = || Rule::new().lookup(&[Key::Source], "peers");
    rules.extend(WIREGUARD_PORTS.map(|port| from_peers().port(Transport::Udp, port).accept()));
    rules.extend(offered(of.ports));
    if of.ports == Ports::Broker {
        let opened = of.published.iter().flat_map(|published| {
            from_allowed(&published.allow)
                .into_iter()
                .map(|rule| rule.port(published.transport, published.port).accept())
        });
        rules.extend(opened);
    }
    let lease =
        Rule::new().when(Match::SourcePort(Transport::Udp, DHCP_SERVER)).port(Transport::Udp, DHCP_CLIENT);
    rules.push(lease.accept());
    rules.push(Rule::new().when(Match::Icmp(Icmp::EchoRequest)).limit(PINGS_PER_SECOND).accept());
    rules.push(Rule::new().drop(DropReason::Unsolicited));
    rules
}

fn offered(ports: Ports) -> Vec<Rule> {
    match ports {
        Ports::Broker => {
            let sessions = BROKER_PORTS.map(|port| Rule::new().port(Transport::Tcp, port).accept());
            let discovery = Rule::new().port(Transport::Udp, DISCOVERY_PORT).accept();
            sessions.into_iter().chain([discovery]).collect()
        }
        // The broker's answer to a question that went to everybody: connection tracking does not see that it is one. It
        // goes to the port that nodes ask from, and to nothing else that listens here.
        Ports::Node => {
            let answer = Rule::new().when(Match::SourcePort(Transport::Udp, DISCOVERY_PORT));
            vec![answer.port(Transport::Udp, DISCOVERY_PORT).accept()]
        }
    }
}

/// What may pass through the board.
fn forwarding(of: &Board<'_>, index: NodeIndex) -> Vec<Chain> {
    let mut chains = vec![
        Chain::inner("overlay", overlay()),
        Chain::inner("outside", leaving(of)),
        Chain::inner("from_containers", from_containers(of, index)),
        Chain::inner("from_peers", from_peers(of, index)),
        Chain::at(Hook::Forward, Policy::Drop, "forward", forward(of)),
    ];
    if let Some(uplink) = of.uplink {
        let hide = Rule::new().source(of.overlay.subnet(index)).output(uplink).masquerade();
        chains.push(Chain::at(Hook::SourceNat, Policy::Accept, "postrouting", vec![hide]));
        let redirected = redirections(of, uplink);
        if !redirected.is_empty() {
            chains.push(Chain::at(Hook::DestinationNat, Policy::Accept, "prerouting", redirected));
        }
    }
    chains
}

/// Published ports of a node, with the container's address and port.
fn visitors<'a>(of: &'a Board<'a>) -> impl Iterator<Item = (&'a Published, Ipv4Addr, u16)> {
    of.published.iter().filter_map(|published| published.to.map(|(address, port)| (published, address, port)))
}

/// A rule for each network that may come, or one for all.
fn from_allowed(allow: &[Prefix]) -> Vec<Rule> {
    match allow {
        [] => vec![Rule::new()],
        allow => allow.iter().map(|network| Rule::new().source(*network)).collect(),
    }
}

/// … and it does not claim to come from a container: that would have come the wrong way.
fn outside(of: &Board<'_>, rule: Rule) -> Rule {
    rule.when(Match::Source(Not::IsNot, of.overlay.network()))
}

/// Sends visitors of published ports on to their containers. They keep their own address.
fn redirections(of: &Board<'_>, uplink: &str) -> Vec<Rule> {
    let own: Vec<Prefix> = of.lan.iter().map(|lan| Prefix::host(lan.address)).collect();
    let mut rules = Vec::new();
    for (published, address, port) in visitors(of) {
        for own in &own {
            rules.extend(from_allowed(&published.allow).into_iter().map(|rule| {
                let to_us = rule.input(uplink).destination(*own).port(published.transport, published.port);
                outside(of, to_us).redirect(address, port)
            }));
        }
    }
    rules
}

fn forward(of: &Board<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if let Some(uplink) = of.uplink {
        rules.extend(visitors(of).map(|(published, address, port)| {
            let to =
                Rule::new().input(uplink).destination(Prefix::host(address)).port(published.transport, port);
            outside(of, to).when(Match::Redirected).state(States::ESTABLISHED_NEW).accept()
        }));
        // Answers from the internet.
        let answers = outside(of, Rule::new().input(uplink));
        rules.push(answers.state(States::ESTABLISHED_RELATED).accept());
    }
    rules.push(Rule::new().input(BRIDGE).jump("from_containers"));
    rules.push(Rule::new().input(&tunnels()).jump("from_peers"));
    rules.push(Rule::new().drop(DropReason::Unsolicited));
    rules
}

/// Packets between containers, wherever they are.
fn overlay() -> Vec<Rule> {
    let connected = |version: Version| {
        let (from, to, set) = (version.source(), version.destination(), version.set(CONNECTIONS));
        let there = [from, to, Key::Protocol, Key::DestinationPort];
        let back = [to, from, Key::Protocol, Key::SourcePort];
        [
            Rule::new().lookup(&there, set).state(States::ESTABLISHED_NEW).accept(),
            Rule::new().lookup(&back, set).state(States::ESTABLISHED).accept(),
        ]
    };
    let mut rules: Vec<Rule> = VERSIONS.into_iter().flat_map(connected).collect();
    rules.extend(VERSIONS.map(Version::too_large));
    rules.push(Rule::new().drop(DropReason::NotConnected));
    rules
}

/// Packets of containers that leave the cluster.
fn leaving(of: &Board<'_>) -> Vec<Rule> {
    // Answers to those who came to a published port, wherever they came from.
    let answer = |(published, address, port): (&Published, Ipv4Addr, u16)| {
        let from = Rule::new().source(Prefix::host(address));
        let from = from.when(Match::SourcePort(published.transport, port)).when(Match::Redirected);
        from.state(States::ESTABLISHED).accept()
    };
    // Nothing hides containers' IPv6 addresses outside, and nobody there could answer them.
    let mut rules = vec![Rule::new().when(Match::Ipv6).drop(DropReason::Ipv6)];
    rules.extend(visitors(of).map(answer));
    for (id, egress) in of.egress {
        let Some(address) = of.containers.get(id) else { continue };
        let from = |network| Rule::new().source(Prefix::host(*address)).destination(network).accept();
        rules.extend(lan_of(of.overlay, egress).map(from));
    }
    rules.extend(only_internet(of.overlay, of.lan));
    rules.push(Rule::new().lookup(&[Key::Source], "offline").drop(DropReason::Egress));
    // What connection tracking cannot place would leave with a container's address on it.
    rules.push(Rule::new().state(States { established: true, related: true, new: true }).accept());
    rules.push(Rule::new().drop(DropReason::Unsolicited));
    rules
}

fn from_containers(of: &Board<'_>, index: NodeIndex) -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        foreign(of, index).map(|m| Rule::new().when(m).drop(DropReason::Spoofed)).into();
    if let Some(uplink) = of.uplink {
        rules.push(Rule::new().output(uplink).jump("outside"));
    }
    rules.push(Rule::new().jump("overlay"));
    rules
}

/// A source that is no container's of board `index`.
fn foreign(of: &Board<'_>, index: NodeIndex) -> [Match; 2] {
    let (v4, v6) = (of.overlay.subnet(index), of.overlay.subnet6(index));
    [Match::Source(Not::IsNot, v4), Match::Source6(Not::IsNot, v6)]
}

/// A tunnel carries only its board's containers' packets to ours.
fn from_peers(of: &Board<'_>, index: NodeIndex) -> Vec<Rule> {
    let spoofed = |peer: &Peer| {
        let wrong =
            |source| Rule::new().input(&tunnel_name(peer.index)).when(source).drop(DropReason::Spoofed);
        foreign(of, peer.index).map(wrong)
    };
    let mut rules: Vec<_> = of.peers.iter().flat_map(spoofed).collect();
    let elsewhere = [
        Match::Destination(Not::IsNot, of.overlay.subnet(index)),
        Match::Destination6(Not::IsNot, of.overlay.subnet6(index)),
    ];
    rules.extend(elsewhere.map(|m| Rule::new().when(m).drop(DropReason::NotConnected)));
    rules.push(Rule::new().output(BRIDGE).jump("overlay"));
    rules.push(Rule::new().drop(DropReason::NotConnected));
    rules
}

/// Frames from containers: each may use its own MAC and IP addresses and no others; so there is no posing as another, as a
/// DHCP server or as an IPv6 router. Nothing is looked for by NDP: boards and containers know each other's MAC addresses
/// beforehand, so whatever a container says there is a lie, and there is no other ICMPv6 that a container has to send.
fn frames(of: &Board<'_>) -> Table {
    let rules = vec![
        Rule::new().when(Match::Input(Not::IsNot, format!("{PORT_PREFIX}*"))).accept(),
        not_owner(&[Key::Input, Key::EtherSource, Key::ArpIp]),
        not_owner(&[Key::Input, Key::ArpEther, Key::ArpIp]),
        Rule::new().when(Match::Arp).accept(),
        Rule::new()
            .when(Match::Ipv4)
            .when(Match::SourcePort(Transport::Udp, DHCP_SERVER))
            .drop(DropReason::Spoofed),
        // Containers are no routers: no packet of another's was too large for one.
        Rule::new().when(Match::Icmp(Icmp::FragmentationNeeded)).drop(DropReason::Spoofed),
        Rule::new().lookup(&[Key::Input, Key::EtherSource, Key::Source], "owners").accept(),
        Rule::new().when(Match::Protocol(Protocol::Icmpv6)).drop(DropReason::Spoofed),
        Rule::new().lookup(&[Key::Input, Key::EtherSource, Key::Source6], "owners6").accept(),
        Rule::new().drop(DropReason::Spoofed),
    ];
    let chains = vec![Chain::at(Hook::BridgePrerouting, Policy::Drop, "prerouting", rules)];
    Table {
        family: Family::Bridge,
        name: TABLE,
        sets: VERSIONS.map(|version| owners(of, version)).into(),
        chains,
    }
}

fn not_owner(key: &[Key]) -> Rule {
    Rule::new().when(Match::Lookup(Not::IsNot, key.to_vec(), "owners")).drop(DropReason::Spoofed)
}

fn owners(of: &Board<'_>, version: Version) -> Set {
    let element = |(id, address): (&ContainerId, &Ipv4Addr)| {
        let own = version.value(of.overlay, *address);
        Some(Element::new([Value::Ifname(port_name(*id)?), Value::Ether(mac(*address)), own]))
    };
    let elements = of.containers.iter().filter_map(element).collect();
    let key = vec![KeyType::Ifname, KeyType::Ether, version.key_type()];
    Set { name: version.set(OWNERS), key, elements }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Container, container, golden};
    use std::collections::BTreeSet;

    static USUAL_EGRESS: BTreeMap<ContainerId, Vec<Egress>> = BTreeMap::new();

    fn closed(containers: &BTreeMap<ContainerId, Ipv4Addr>) -> Board<'_> {
        Board {
            ports: Ports::Node,
            published: &[],
            uplink: None,
            lan: &[],
            overlay: golden::overlay(),
            index: None,
            peers: &[],
            connections: &[],
            callers: &[],
            containers,
            egress: &USUAL_EGRESS,
        }
    }

    #[test]
    fn node_before_it_knows_anything() {
        golden::check("board-node-early.nft", &board(&closed(&BTreeMap::new())).to_string());
    }

    #[test]
    fn broker() {
        let containers = BTreeMap::new();
        let published = |transport, port, allow| Published { transport, port, allow, to: None };
        let published = [
            published(Transport::Tcp, 25, vec!["192.168.50.0/24".parse().unwrap()]),
            published(Transport::Tcp, 8080, vec![]),
            published(Transport::Udp, 53, vec![]),
        ];
        let of = Board {
            ports: Ports::Broker,
            published: &published,
            uplink: Some("eth0"),
            ..closed(&containers)
        };
        golden::check("board-broker.nft", &board(&of).to_string());
    }

    proptest::proptest! {
        /// Whatever goes and comes, the rules changed are those that would be made anew.
        #[test]
        fn changed_rules_are_those_made_anew(before: BTreeSet<(u8, u8, bool)>, after: BTreeSet<(u8, u8, bool)>) {
            let containers = [(ContainerId(1), Ipv4Addr::new(10, 1, 0, 1)), (ContainerId(2), Ipv4Addr::new(10, 1, 0, 2))];
            let containers = containers.into();
            // Of few containers and addresses, so that many connections have the same, or a container's of another life.
            let connections = |of: &BTreeSet<(u8, u8, bool)>| -> Vec<Connection> {
                let connection = |(ends, port, udp): &(u8, u8, bool)| Connection {
                    from: ContainerId(u64::from(ends & 3)),
                    from_address: Ipv4Addr::new(10, 1 + (ends >> 2 & 1), 0, ends >> 3 & 3),
                    to: ContainerId(u64::from(ends >> 5 & 1) + 1),
                    to_address: Ipv4Addr::new(10, 1, 0, 1 + (ends >> 6 & 1)),
                    port: u16::from(port & 3),
                    transport: if *udp { Transport::Udp } else { Transport::Tcp },
                };
                BTreeSet::from_iter(of.iter().map(connection)).into_iter().collect()
            };
            let (before, after) = (connections(&before), connections(&after));
            let only = |of: &[Connection], others: &[Connection]| -> Vec<Connection> {
                of.iter().filter(|c| !others.contains(c)).copied().collect()
            };
            let (gone, new) = (only(&before, &after), only(&after, &before));
            let of = |connections| Board { index: Some(NodeIndex(1)), connections, ..closed(&containers) };
            let mut rules = board(&of(&before));
            rules.change(&of(&after).change(&gone, &new));
            proptest::prop_assert_eq!(rules, board(&of(&after)));
            for (id, address) in &containers {
                let of = |connections| Container {
                    id: *id,
                    address: *address,
                    connections,
                    overlay: golden::overlay(),
                    callers: &[],
                    resolvers: &[],
                    lan: &[],
                    egress: &[],
                    published: &[],
                };
                let mut rules = container(&of(&before));
                rules.change(&of(&after).change(&gone, &new));
                proptest::prop_assert_eq!(rules, container(&of(&after)));
            }
        }
    }

    #[test]
    fn node_with_another_overlay() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let containers = [(ContainerId(7), address("172.20.4.2"))].into();
        let connection = Connection {
            from: ContainerId(7),
            from_address: address("172.20.4.2"),
            to: ContainerId(9),
            to_address: address("172.20.8.2"),
            port: 80,
            transport: Transport::Tcp,
        };
        let of = Board {
            uplink: Some("eth0"),
            lan: &["10.0.5.12/24".parse().unwrap()],
            overlay: "172.20.0.0/14".parse::<Overlay>().unwrap().with_global([0xab; 5]),
            index: Some(NodeIndex(1)),
            peers: &[Peer { index: NodeIndex(2), underlay: address("10.0.5.13"), wireguard: None }],
            connections: &[connection],
            ..closed(&containers)
        };
        golden::check("board-other-overlay.nft", &board(&of).to_string());
    }

    #[test]
    fn node_with_peers_and_connections() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let containers =
            [(ContainerId(7), address("10.1.0.2")), (ContainerId(8), address("10.1.0.3"))].into();
        let peer =
            |index, underlay| Peer { index: NodeIndex(index), underlay: address(underlay), wireguard: None };
        let connection = |to, to_address, port| Connection {
            from: ContainerId(7),
            from_address: address("10.1.0.2"),
            to: ContainerId(to),
            to_address: address(to_address),
            port,
            transport: Transport::Tcp,
        };
        let caller = |id, text: &str| WebCaller {
            container: ContainerId(id),
            address: address(text),
            hosts: vec!["www.example.org".into()],
        };
        let lan = |network: &str| Egress::Lan(network.parse().unwrap());
        let egress = [
            (ContainerId(7), vec![Egress::Internet, lan("192.168.50.9/32"), lan("172.20.0.0/16")]),
            (ContainerId(8), vec![Egress::None]),
            // Of a container that has gone.
            (ContainerId(6), vec![lan("192.168.50.0/24")]),
        ]
        .into();
        let published = |transport, port, allow, last, inside| {
            let to = Some((Ipv4Addr::new(10, 1, 0, last), inside));
            Published { transport, port, allow, to }
        };
        let published = [
            published(Transport::Tcp, 8080, vec![], 2, 80),
            published(Transport::Udp, 5353, vec!["192.168.50.0/24".parse().unwrap()], 3, 53),
        ];
        let of = Board {
            published: &published,
            egress: &egress,
            uplink: Some("eth0"),
            lan: &["192.168.50.12/24".parse().unwrap()],
            index: Some(NodeIndex(1)),
            peers: &[peer(2, "192.168.50.13"), peer(3, "192.168.50.14")],
            connections: &[
                connection(8, "10.1.0.3", 5432),
                connection(9, "10.2.0.2", 80),
                // Of containers that had these addresses before.
                connection(6, "10.1.0.3", 81),
                Connection { from: ContainerId(5), ..connection(9, "10.2.0.2", 82) },
            ],
            callers: &[
                caller(8, "10.1.0.3"),
                // Of a container that had this address before.
                caller(6, "10.1.0.2"),
            ],
            ..closed(&containers)
        };
        golden::check("board-node.nft", &board(&of).to_string());
    }
}
