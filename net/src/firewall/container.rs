//! The rules inside one container's network namespace. The container has no CAP_NET_ADMIN and cannot change them.
use super::{DNS, TABLE, VERSIONS, Version, WEB, addresses, lan_of, multicast, only_internet, to_resolvers};
use crate::address::{Overlay, Prefix};
use crate::nft::{
    Chain, Element, Elements, Family, Hook, Key, KeyType, Match, Not, Policy, Rule, Ruleset, Set, SetChange,
    States, Table, Value,
};
use std::net::Ipv4Addr;
use wherry_protocol::ContainerId;
use wherry_protocol::message::{Connection, DropReason, Egress, Transport, WebCaller};

/// What the rules of one container depend on.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Which container.
    pub id: ContainerId,
    /// Its address. A connection that names the container with another address is not its own.
    pub address: Ipv4Addr,
    /// All connections the board knows of; those of others are left out.
    pub connections: &'a [Connection],
    /// The addresses of all containers.
    pub overlay: Overlay,
    /// Those of the board that may ask the web endpoint; the others are left out.
    pub callers: &'a [WebCaller],
    /// DNS servers it may ask: its board, where the way to the web endpoint begins as well.
    pub resolvers: &'a [Ipv4Addr],
    /// The board's own networks, closed to containers.
    pub lan: &'a [Prefix],
    /// Where it may send outside the cluster.
    pub egress: &'a [Egress],
    /// Ports of its own that are published on the board: somebody from outside may come there.
    pub published: &'a [(Transport, u16, Vec<Prefix>)],
}

/// The container's ruleset.
#[must_use]
pub fn container(of: &Container<'_>) -> Ruleset {
    let chains = vec![
        Chain::at(Hook::Input, Policy::Drop, "input", input(of)),
        Chain::at(Hook::Output, Policy::Drop, "output", output(of)),
    ];
    let mut sets: Vec<Set> =
        VERSIONS.iter().flat_map(|version| [inbound(of, *version), outbound(of, *version)]).collect();
    sets.push(addresses("resolvers", of.resolvers));
    Ruleset { tables: vec![Table { family: Family::Inet, name: TABLE, sets, chains }] }
}

/// Names of the sets.
const INBOUND: [&str; 2] = ["inbound", "inbound6"];
const OUTBOUND: [&str; 2] = ["outbound", "outbound6"];

impl Container<'_> {
    /// What changes in the rules when connections go and others come and nothing else changes. `self` has those that are there
    /// afterwards.
    #[must_use]
    pub fn change(&self, gone: &[Connection], new: &[Connection]) -> Vec<SetChange> {
        let change = |version: Version,
                      names: [&'static str; 2],
                      end: fn(&Self, &Connection) -> Option<Ipv4Addr>| {
            let elements = |connections: &[Connection]| -> Elements {
                let peers = connections.iter().filter_map(|c| Some((end(self, c)?, c)));
                peers.map(|(peer, c)| key(version.value(self.overlay, peer), c.transport, c.port)).collect()
            };
            // Another one of the same addresses, which the rules cannot tell from it.
            let stays = |gone: &Connection| {
                let of = |c: &Connection| (end(self, c), c.port, c.transport);
                self.connections.iter().any(|c| end(self, c).is_some() && of(c) == of(gone))
            };
            let gone: Vec<_> = gone.iter().filter(|c| end(self, c).is_some() && !stays(c)).copied().collect();
            SetChange { set: version.set(names), gone: elements(&gone), new: elements(new) }
        };
        let of = |version| [change(version, INBOUND, Self::caller), change(version, OUTBOUND, Self::called)];
        VERSIONS.into_iter().flat_map(of).collect()
    }

    /// Who may reach the container by this connection, if it is one to it.
    fn caller(&self, c: &Connection) -> Option<Ipv4Addr> {
        (c.to == self.id && c.to_address == self.address).then_some(c.from_address)
    }

    /// Whom the container may reach by this connection, if it is one of its own.
    fn called(&self, c: &Connection) -> Option<Ipv4Addr> {
        (c.from == self.id && c.from_address == self.address).then_some(c.to_address)
    }
}

/// Who may reach the container, over which protocol, on which of its ports.
fn inbound(of: &Container<'_>, version: Version) -> Set {
    peers(of, version, INBOUND, of.connections.iter().filter_map(|c| Some((of.caller(c)?, c))), [])
}

/// Whom the container may reach, over which protocol, on which of their ports.
fn outbound(of: &Container<'_>, version: Version) -> Set {
    let mine = of.connections.iter().filter_map(|c| Some((of.called(c)?, c)));
    // The way to the web endpoint begins at the board's IPv4 address.
    let calls = version == Version::V4
        && of.callers.iter().any(|caller| caller.container == of.id && caller.address == of.address);
    let boards = of.resolvers.iter().filter(|_| calls);
    let web = boards.flat_map(|board| WEB.map(|port| key(Value::Ipv4(*board), Transport::Tcp, port)));
    peers(of, version, OUTBOUND, mine, web)
}

fn peers<'a>(
    of: &Container<'_>,
    version: Version,
    names: [&'static str; 2],
    connections: impl Iterator<Item = (Ipv4Addr, &'a Connection)>,
    besides: impl IntoIterator<Item = Element>,
) -> Set {
    let element = |(peer, c): (Ipv4Addr, &Connection)| {
        let peer = version.value(of.overlay, peer);
        key(peer, c.transport, c.port)
    };
    Set {
        name: version.set(names),
        key: vec![version.key_type(), KeyType::Protocol, KeyType::Port],
        elements: connections.map(element).chain(besides).collect(),
    }
}

fn key(peer: Value, transport: Transport, port: u16) -> Element {
    Element::new([peer, Value::Protocol(transport.into()), Value::Port(port)])
}

/// Visitors from outside, never from the overlay.
fn visitors(of: &Container<'_>) -> impl Iterator<Item = Rule> {
    of.published.iter().flat_map(|(transport, port, allow)| {
        let outside = || Rule::new().when(Match::Source(Not::IsNot, of.overlay.network()));
        let rules = match allow.as_slice() {
            [] => vec![outside()],
            allow => allow.iter().map(|network| outside().source(*network)).collect(),
        };
        rules.into_iter().map(|rule| rule.port(*transport, *port).state(States::ESTABLISHED_NEW).accept())
    })
}

/// Answers to them.
fn answers(of: &Container<'_>) -> impl Iterator<Item = Rule> {
    of.published.iter().map(|(transport, port, _)| {
        let outside = Rule::new().when(Match::Destination(Not::IsNot, of.overlay.network()));
        outside.when(Match::SourcePort(*transport, *port)).state(States::ESTABLISHED).accept()
    })
}

fn input(of: &Container<'_>) -> Vec<Rule> {
    let overlay = of.overlay.network();
    let from_resolver = |over| {
        let rule = Rule::new().lookup(&[Key::Source], "resolvers").when(Match::SourcePort(over, DNS));
        rule.state(States::ESTABLISHED).accept()
    };
    let connected = |version: Version| {
        let there = [version.source(), Key::Protocol, Key::DestinationPort];
        let back = [version.source(), Key::Protocol, Key::SourcePort];
        [
            Rule::new().lookup(&there, version.set(INBOUND)).state(States::ESTABLISHED_NEW).accept(),
            Rule::new().lookup(&back, version.set(OUTBOUND)).state(States::ESTABLISHED).accept(),
        ]
    };
    let mut rules = vec![Rule::new().input("lo").accept()];
    rules.extend(VERSIONS.into_iter().flat_map(connected));
    rules.extend(VERSIONS.map(Version::too_large));
    rules.extend([from_resolver(Transport::Udp), from_resolver(Transport::Tcp), multicast()]);
    rules.push(Rule::new().source(overlay).drop(DropReason::NotConnected));
    let overlay6 = Match::Source6(Not::Is, of.overlay.network6());
    rules.push(Rule::new().when(overlay6).drop(DropReason::NotConnected));
    rules.extend(visitors(of));
    let elsewhere = Rule::new().when(Match::Source(Not::IsNot, overlay));
    rules.push(elsewhere.state(States::ESTABLISHED_RELATED).accept());
    rules.push(Rule::new().drop(DropReason::Unsolicited));
    rules
}

fn output(of: &Container<'_>) -> Vec<Rule> {
    let connected = |version: Version| {
        let there = [version.destination(), Key::Protocol, Key::DestinationPort];
        let back = [version.destination(), Key::Protocol, Key::SourcePort];
        [
            Rule::new().lookup(&there, version.set(OUTBOUND)).state(States::ESTABLISHED_NEW).accept(),
            Rule::new().lookup(&back, version.set(INBOUND)).state(States::ESTABLISHED).accept(),
        ]
    };
    let mut rules = vec![Rule::new().output("lo").accept()];
    rules.extend(VERSIONS.into_iter().flat_map(connected));
    rules.extend(to_resolvers());
    rules.extend(answers(of));
    rules.extend(lan_of(of.overlay, of.egress).map(|network| Rule::new().destination(network).accept()));
    rules.extend(only_internet(of.overlay, of.lan));
    let overlay6 = Match::Destination6(Not::Is, of.overlay.network6());
    rules.push(Rule::new().when(overlay6).drop(DropReason::NotConnected));
    rules.push(multicast());
    rules.push(Rule::new().when(Match::Ipv6).drop(DropReason::Ipv6));
    rules.push(match of.egress.contains(&Egress::Internet) {
        true => Rule::new().accept(),
        false => Rule::new().drop(DropReason::Egress),
    });
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::golden;

    fn connection(from: (u64, &str), to: (u64, &str), transport: Transport, port: u16) -> Connection {
        Connection {
            from: ContainerId(from.0),
            from_address: from.1.parse().unwrap(),
            to: ContainerId(to.0),
            to_address: to.1.parse().unwrap(),
            port,
            transport,
        }
    }

    fn rules(connections: &[Connection]) -> String {
        rules_with(connections, &[Egress::Internet], &[])
    }

    fn rules_with(
        connections: &[Connection],
        egress: &[Egress],
        published: &[(Transport, u16, Vec<Prefix>)],
    ) -> String {
        container(&Container {
            id: ContainerId(7),
            address: "10.1.0.2".parse().unwrap(),
            connections,
            callers: &[],
            overlay: golden::overlay(),
            resolvers: &["10.1.0.1".parse().unwrap()],
            lan: &["192.168.50.12/24".parse().unwrap()],
            egress,
            published,
        })
        .to_string()
    }

    #[test]
    fn closed() {
        golden::check("container-closed.nft", &rules(&[]));
    }

    #[test]
    fn without_a_way_out_or_only_to_one_network() {
        golden::check("container-egress-none.nft", &rules_with(&[], &[Egress::None], &[]));
        let lan = Egress::Lan("192.168.50.0/28".parse().unwrap());
        golden::check("container-egress-lan.nft", &rules_with(&[], &[lan], &[]));
    }

    #[test]
    fn with_published_ports() {
        let lan: Prefix = "192.168.50.0/24".parse().unwrap();
        let ports = [(Transport::Tcp, 80, vec![]), (Transport::Udp, 53, vec![lan])];
        golden::check("container-published.nft", &rules_with(&[], &[Egress::Internet], &ports));
    }

    #[test]
    fn of_another_overlay() {
        let of = Container {
            id: ContainerId(7),
            address: "172.20.4.2".parse().unwrap(),
            connections: &[connection((7, "172.20.4.2"), (9, "172.20.8.2"), Transport::Tcp, 80)],
            callers: &[],
            overlay: "172.20.0.0/14".parse::<Overlay>().unwrap().with_global([0xab; 5]),
            resolvers: &["172.20.4.1".parse().unwrap()],
            lan: &["10.0.5.12/24".parse().unwrap()],
            egress: &[Egress::Internet, Egress::Lan("10.0.5.0/28".parse().unwrap())],
            published: &[(Transport::Tcp, 80, vec![])],
        };
        golden::check("container-other-overlay.nft", &container(&of).to_string());
    }

    #[test]
    fn connected() {
        let (me, near, far) = ((7, "10.1.0.2"), (8, "10.1.0.3"), (9, "10.2.0.2"));
        golden::check(
            "container-connected.nft",
            &rules(&[
                connection(me, far, Transport::Tcp, 80),
                connection(me, far, Transport::Udp, 53),
                connection(near, me, Transport::Tcp, 5432),
                connection(near, far, Transport::Tcp, 81),
            ]),
        );
    }

    #[test]
    fn a_caller_of_the_web_endpoint() {
        let caller = |id, address: &str| WebCaller {
            container: ContainerId(id),
            address: address.parse().unwrap(),
            hosts: vec!["www.example.org".into()],
        };
        let with = |callers: &[WebCaller]| {
            container(&Container {
                id: ContainerId(7),
                address: "10.1.0.2".parse().unwrap(),
                connections: &[],
                callers,
                overlay: Overlay::default(),
                resolvers: &["10.1.0.1".parse().unwrap()],
                lan: &[],
                egress: &[Egress::None],
                published: &[],
            })
        };
        let open = with(&[caller(7, "10.1.0.2")]).to_string();
        let elements = "10.1.0.1 . tcp . 80,\n\t\t\t     10.1.0.1 . tcp . 443 }";
        assert!(open.contains(elements), "{open}");
        // Somebody else, or with an address that was its own before.
        let closed = with(&[]).to_string();
        assert_eq!(with(&[caller(8, "10.1.0.2"), caller(7, "10.1.0.3")]).to_string(), closed);
    }

    #[test]
    fn another_container_s_connection_opens_nothing() {
        let near_far = connection((8, "10.1.0.3"), (9, "10.2.0.2"), Transport::Tcp, 81);
        // The address was ours before, or the container had another one: neither is a connection of this life.
        let old_id = connection((6, "10.1.0.2"), (9, "10.2.0.2"), Transport::Tcp, 80);
        let old_address = connection((8, "10.1.0.3"), (7, "10.1.0.99"), Transport::Tcp, 80);
        assert_eq!(rules(&[near_far, old_id, old_address]), rules(&[]));
    }
}
