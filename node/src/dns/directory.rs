//! Who may know which names.
use crate::net::LocalContainer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wherry_protocol::message::{Called, Egress, NetworkDesired, WebCaller};
use wherry_protocol::{ContainerId, Overlay};

/// The cluster's own domain. It is nobody's on the internet: no such top-level domain is delegated.
const DOMAIN: &str = "wherry";
/// Where names of addresses are looked for (RFC 1035 §3.5).
const REVERSE: &str = ".in-addr.arpa";
/// The same for IPv6 (RFC 3596 §2.5).
const REVERSE6: &str = ".ip6.arpa";

/// What one container may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asker {
    /// Who has the address now.
    is: Option<ContainerId>,
    /// Whether it may ask about the world outside.
    outside: bool,
    /// Names without the final dot, in lower case, and their addresses.
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Names on the web that it may ask for, and the board's address, where the way there begins.
    web: BTreeMap<String, Ipv4Addr>,
    /// The full name behind an address.
    reverse: BTreeMap<IpAddr, String>,
}

/// What all containers of a board may ask, by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    overlay: Overlay,
    askers: BTreeMap<Ipv4Addr, Asker>,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A name of the cluster: these addresses, in ascending order.
    Addresses(Vec<Ipv4Addr>),
    /// A name on the web: the board itself, over IPv4.
    Board(Ipv4Addr),
    /// An address of the cluster: this name.
    Name(String),
    /// It would be the cluster's, and is not one that the asker may know.
    Unknown,
    /// It is not the cluster's.
    Elsewhere,
    /// The asker may not know of anything outside, or is nobody known.
    Refused,
}

impl Directory {
    /// From what the broker wants of the board.
    #[must_use]
    pub fn of(overlay: Overlay, network: &NetworkDesired, containers: &[LocalContainer]) -> Self {
        let called: BTreeMap<ContainerId, &Called> =
            network.names.iter().map(|called| (called.container, called)).collect();
        let mut directory = Self { overlay, askers: BTreeMap::new() };
        containers.iter().for_each(|container| directory.admit(container));
        let askers = &mut directory.askers;
        let ours: BTreeMap<ContainerId, Ipv4Addr> =
            containers.iter().map(|container| (container.id, container.address)).collect();
        for connection in &network.connections {
            // The address may be a former container's.
            let is_ours = ours.get(&connection.from) == Some(&connection.from_address);
            let asker = askers.get_mut(&connection.from_address).filter(|_| is_ours);
            if let (Some(asker), Some(called)) = (asker, called.get(&connection.to)) {
                asker.learn(called, connection.to_address, overlay);
            }
        }
        directory
    }

    /// Leads containers that rules of the web endpoint name to the board's own `gateway`, where their way there begins.
    pub fn lead_to_web(&mut self, callers: &[WebCaller], gateway: Ipv4Addr) {
        for caller in callers {
            // Of one that has gone, whose address another may have by now: that one is not named.
            if let Some(asker) =
                self.askers.get_mut(&caller.address).filter(|a| a.is == Some(caller.container))
            {
                asker.web.extend(caller.hosts.iter().map(|host| (host.clone(), gateway)));
            }
        }
    }

    /// A container that has just come; what it may know about the cluster follows with the next network.
    pub fn admit(&mut self, container: &LocalContainer) {
        let outside = !container.egress.contains(&Egress::None);
        let asker = self.askers.entry(container.address).or_default();
        (asker.outside, asker.is) = (outside, Some(container.id));
    }

    /// The IPv6 address of whoever has `address`.
    #[must_use]
    pub fn address6(&self, address: Ipv4Addr) -> Ipv6Addr {
        self.overlay.address6(address)
    }

    /// What `asker` may know of `name` (in lower case, without the final dot).
    #[must_use]
    pub fn find(&self, asker: Ipv4Addr, name: &str) -> Finding {
        let Some(asker) = self.askers.get(&asker) else { return Finding::Refused };
        if let Some(addresses) = asker.names.get(name) {
            return Finding::Addresses(addresses.iter().copied().collect());
        }
        let wildcard = || asker.web.get(&format!("*.{}", name.split_once('.')?.1));
        if let Some(board) = asker.web.get(name).or_else(wildcard) {
            return Finding::Board(*board);
        }
        if is_address_of(self.overlay, name) || is_address6_of(self.overlay, name) {
            let known = reversed(name).and_then(|address| asker.reverse.get(&address));
            return known.map_or(Finding::Unknown, |name| Finding::Name(name.clone()));
        }
        // A name without a dot is nobody's outside either; what asks for it means the cluster.
        match (is_within(name, DOMAIN) || !name.contains('.'), asker.outside) {
            // But the root itself, and so the list of top-level domains, is the world's.
            (true, _) if !name.is_empty() => Finding::Unknown,
            (_, true) => Finding::Elsewhere,
            (_, false) => Finding::Refused,
        }
    }
}

impl Asker {
    fn learn(&mut self, called: &Called, address: Ipv4Addr, overlay: Overlay) {
        let service = called.service.iter().map(|service| service.as_str());
        for short in std::iter::once(called.name.as_str()).chain(service) {
            for name in [short.to_owned(), format!("{short}.{}.{DOMAIN}", called.account)] {
                self.names.entry(name).or_default().insert(address);
            }
        }
        let full = format!("{}.{}.{DOMAIN}", called.name, called.account);
        self.reverse.insert(overlay.address6(address).into(), full.clone());
        self.reverse.insert(address.into(), full);
    }
}

fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a name stands for addresses of the overlay and for no others: 10.in-addr.arpa and all below, if that is the overlay.
fn is_address_of(overlay: Overlay, name: &str) -> bool {
    let Some(labels) = name.strip_suffix(REVERSE) else { return false };
    let (mut address, mut bits) = ([0; 4], 0);
    for (octet, label) in address.iter_mut().zip(labels.rsplit('.')) {
        let Ok(number) = label.parse() else { break };
        (*octet, bits) = (number, bits + 8);
    }
    bits >= overlay.network().bits && overlay.network().contains(Ipv4Addr::from(address))
}

/// The same for IPv6: a label is a digit of sixteen.
fn is_address6_of(overlay: Overlay, name: &str) -> bool {
    let Some(labels) = name.strip_suffix(REVERSE6) else { return false };
    let (mut address, mut bits) = (0_u128, 0_u8);
    for digit in labels.rsplit('.').map_while(digit).take(32) {
        (address, bits) = (address << 4 | u128::from(digit), bits + 4);
    }
    let ours = overlay.network6();
    let address = address.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    bits >= ours.bits && ours.contains(Ipv6Addr::from_bits(address))
}

fn digit(label: &str) -> Option<u8> {
    u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)
}

fn reversed(name: &str) -> Option<IpAddr> {
    reversed4(name).map(IpAddr::from).or_else(|| reversed6(name).map(IpAddr::from))
}

fn reversed6(name: &str) -> Option<Ipv6Addr> {
    let digits: Vec<u8> = name.strip_suffix(REVERSE6)?.split('.').map(digit).collect::<Option<_>>()?;
    let address = digits.iter().rev().fold(0_u128, |address, digit| address << 4 | u128::from(*digit));
    (digits.len() == 32).then(|| Ipv6Addr::from_bits(address))
}

/// `2.0.1.10.in-addr.arpa` is 10.1.0.2.
fn reversed4(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name.strip_suffix(REVERSE)?.split('.');
    let mut octet = || parts.next()?.parse::<u8>().ok();
    let [d, c, b, a] = [octet()?, octet()?, octet()?, octet()?];
    parts.next().is_none().then(|| Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::message::{Connection, Transport};

    const ME: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    const CLOSED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
    const WEB: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 2);

    fn connection(from: u64, from_address: Ipv4Addr, to: u64, to_address: Ipv4Addr) -> Connection {
        let (from, to) = (ContainerId(from), ContainerId(to));
        Connection { from, from_address, to, to_address, port: 80, transport: Transport::Tcp }
    }

    fn called(id: u64, name: &str, service: Option<&str>) -> Called {
        let account = "ada".parse().unwrap();
        let service = service.map(|service| service.parse().unwrap());
        Called { container: ContainerId(id), name: name.parse().unwrap(), account, service }
    }

    fn directory() -> Directory {
        let local =
            |id, address, egress| LocalContainer { id: ContainerId(id), address, egress, published: vec![] };
        let containers = [local(1, ME, vec![Egress::Internet]), local(2, CLOSED, vec![Egress::None])];
        let network = NetworkDesired {
            connections: vec![
                connection(1, ME, 3, WEB),
                connection(1, ME, 4, OTHER),
                // Somebody who had the address before.
                connection(9, ME, 5, Ipv4Addr::new(10, 4, 0, 2)),
                connection(7, WEB, 1, ME),
            ],
            names: vec![
                called(3, "web-1", Some("web")),
                called(4, "web-2", Some("web")),
                called(5, "secret", None),
                called(1, "me", None),
            ],
            ..NetworkDesired::default()
        };
        Directory::of(Overlay::default(), &network, &containers)
    }

    #[test]
    fn names_are_for_those_who_may_connect() {
        let directory = directory();
        let find = |name: &str| directory.find(ME, name);
        assert_eq!(find("web-1"), Finding::Addresses(vec![WEB]));
        assert_eq!(find("web-1.ada.wherry"), Finding::Addresses(vec![WEB]));
        assert_eq!(find("web"), Finding::Addresses(vec![WEB, OTHER]));
        assert_eq!(find("web.ada.wherry"), Finding::Addresses(vec![WEB, OTHER]));
        for unknown in
            ["secret", "secret.ada.wherry", "web-1.bob.wherry", "ada.wherry", "wherry", "nosuch", "me"]
        {
            assert_eq!(find(unknown), Finding::Unknown, "{unknown}");
        }
        assert_eq!(directory.find(CLOSED, "web-1"), Finding::Unknown);
        assert_eq!(directory.find(WEB, "web-1"), Finding::Refused, "nobody of this board");
    }

    #[test]
    fn addresses_are_for_those_who_may_connect_too() {
        let directory = directory();
        let find = |name: &str| directory.find(ME, name);
        assert_eq!(find("2.0.2.10.in-addr.arpa"), Finding::Name("web-1.ada.wherry".into()));
        let unknown = [
            "2.0.4.10.in-addr.arpa",
            "10.in-addr.arpa",
            "x.2.0.2.10.in-addr.arpa",
            "999.0.2.10.in-addr.arpa",
        ];
        for name in unknown {
            assert_eq!(find(name), Finding::Unknown, "{name}");
        }
        assert_eq!(find("8.8.8.8.in-addr.arpa"), Finding::Elsewhere);
    }

    #[test]
    fn ipv6_addresses_have_names_too() {
        let overlay = Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]);
        let directory = Directory { overlay, ..directory() };
        let mut asker = Asker::default();
        asker.learn(&called(3, "web-1", None), WEB, overlay);
        let directory = Directory { askers: [(ME, asker)].into(), ..directory };
        let zone = "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa";
        let name = format!("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.{zone}");
        assert_eq!(directory.find(ME, &name), Finding::Name("web-1.ada.wherry".into()));
        for unknown in [zone.to_owned(), format!("x.{zone}"), format!("3{}", &name[1..]), format!("1.{name}")]
        {
            assert_eq!(directory.find(ME, &unknown), Finding::Unknown, "{unknown}");
        }
        for other in ["8.b.d.0.1.0.0.2.ip6.arpa", "2.1.d.f.ip6.arpa", "ip6.arpa", "12.34.ip6.arpa"] {
            assert!(!is_address6_of(overlay, other), "{other}");
        }
    }

    #[test]
    fn the_overlay_s_reverse_zone_is_where_the_overlay_is() {
        let overlay: Overlay = "172.20.0.0/14".parse().unwrap();
        let ours = |name: &str| is_address_of(overlay, name);
        assert!(
            ours("2.0.20.172.in-addr.arpa") && ours("23.172.in-addr.arpa") && ours("x.22.172.in-addr.arpa")
        );
        for other in
            ["2.0.1.10.in-addr.arpa", "24.172.in-addr.arpa", "172.in-addr.arpa", "in-addr.arpa", "172.20"]
        {
            assert!(!ours(other), "{other}");
        }
    }

    #[test]
    fn names_of_the_web_lead_callers_to_their_board() {
        let mut directory = directory();
        let gateway = Ipv4Addr::new(10, 1, 0, 1);
        let caller = |id, address, hosts: &[&str]| WebCaller {
            container: ContainerId(id),
            address,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        directory.lead_to_web(
            &[
                caller(2, CLOSED, &["www.example.org", "*.example.com"]),
                // Somebody who had the address before.
                caller(9, ME, &["secret.example.org"]),
            ],
            gateway,
        );
        let found = Finding::Board(gateway);
        assert_eq!(directory.find(CLOSED, "www.example.org"), found);
        assert_eq!(directory.find(CLOSED, "any.example.com"), found);
        for other in ["example.com", "a.b.example.com", "api.example.org"] {
            assert_eq!(directory.find(CLOSED, other), Finding::Refused, "{other}");
        }
        assert_eq!(directory.find(ME, "www.example.org"), Finding::Elsewhere);
        assert_eq!(directory.find(ME, "secret.example.org"), Finding::Elsewhere);
    }

    #[test]
    fn the_world_is_for_those_who_may_send_there() {
        let directory = directory();
        for name in ["example.org", "notwherry.example", "a.notwherry", ""] {
            assert_eq!(directory.find(ME, name), Finding::Elsewhere, "{name}");
            assert_eq!(directory.find(CLOSED, name), Finding::Refused, "{name}");
        }
    }
}
