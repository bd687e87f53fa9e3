//! What must change so that the board's devices, addresses and routes are as they should be. Pure: the executor in
//! `apply` does what this says, one step after the other, and nothing else.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wherry_net::address::{
    BRIDGE, GRE_OVERHEAD_BYTES, IPV6_MIN_MTU, IpPrefix, Overlay, Prefix, Prefix6, WIREGUARD_OVERHEAD_BYTES,
    mac, port_name, tunnel_name,
};
use wherry_protocol::{ContainerId, NodeIndex};

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The bridge.
    Bridge,
    /// The board's end of a container's veth pair; the other end is `eth0` in the container's namespace.
    Port {
        /// The container's address, from which its MAC address follows.
        container: Ipv4Addr,
    },
    /// A GRE tunnel.
    Tunnel {
        /// This board's end: its address within WireGuard.
        local: Ipv4Addr,
        /// The other board's.
        remote: Ipv4Addr,
    },
}

/// A device as it should be; it should also be up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: Kind,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// What the kernel has under a name that is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenLink {
    /// What it is; `None`: nothing we would make.
    pub kind: Option<SeenKind>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// What a device turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenKind {
    /// A bridge with this MAC address.
    Bridge {
        /// Its MAC address.
        mac: [u8; 6],
    },
    /// One end of a veth pair.
    Port {
        /// Whether it hangs on our bridge, and may speak to the bridge only, not to the other ports.
        isolated: bool,
    },
    /// A GRE tunnel.
    Tunnel {
        /// This end.
        local: Ipv4Addr,
        /// The other end.
        remote: Ipv4Addr,
    },
}

/// A route to a network through a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpPrefix,
    /// Through which device.
    pub link: String,
    /// Which of the board's addresses its own packets carry.
    pub source: Option<IpAddr>,
}

/// A kernel setting below /proc/sys/net.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Path below /proc/sys/net.
    pub path: String,
    /// Its value.
    pub value: &'static str,
    /// Of this device: the setting comes and goes with it.
    pub link: Option<String>,
}

/// The board as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Devices.
    pub links: BTreeMap<String, Link>,
    /// Devices that may stay as they are if they are there: those of containers whose namespace we do not hold yet.
    pub keep: BTreeSet<String>,
    /// The bridge's addresses.
    pub addresses: BTreeSet<IpPrefix>,
    /// Whose MAC address is known on the bridge beforehand: nobody is looked for by NDP, and nobody's answer is believed.
    pub neighbours: BTreeMap<Ipv6Addr, [u8; 6]>,
    /// Routes through our devices.
    pub routes: BTreeSet<Route>,
    /// Settings.
    pub settings: BTreeSet<Setting>,
}

/// The board as it is, as far as it is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Devices with a name of ours.
    pub links: BTreeMap<String, SeenLink>,
    /// The bridge's addresses.
    pub addresses: BTreeSet<IpPrefix>,
    /// Those of them whose network the kernel no longer leads to the bridge: somebody took the way away that came with them.
    pub cut_off: BTreeSet<IpPrefix>,
    /// Permanent neighbours on the bridge.
    pub neighbours: BTreeMap<Ipv6Addr, [u8; 6]>,
    /// Routes through tunnels.
    pub routes: BTreeSet<Route>,
    /// Values of the desired settings, by path; a setting the kernel does not have is missing.
    pub settings: BTreeMap<String, String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOp {
    /// Makes a device.
    CreateLink {
        /// Its name.
        name: String,
        /// What it should be.
        link: Link,
    },
    /// Removes a device, with all addresses and routes on it.
    DeleteLink {
        /// Its name.
        name: String,
    },
    /// Sets how large packets may be.
    SetMtu {
        /// Of this device.
        name: String,
        /// Now, in bytes.
        from: u32,
        /// Then, in bytes.
        to: u32,
    },
    /// Gives the bridge its MAC address: left to the kernel it would change with the ports.
    SetMac {
        /// Of this device.
        name: String,
        /// This one.
        mac: [u8; 6],
    },
    /// Hangs a port on the bridge, isolated from the other ports.
    AttachPort {
        /// This one.
        name: String,
    },
    /// Switches a device on.
    SetUp {
        /// This one.
        name: String,
    },
    /// Gives the bridge an address.
    AddAddress(IpPrefix),
    /// Takes an address from the bridge.
    RemoveAddress(IpPrefix),
    /// Adds a route.
    AddRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Says which MAC address somebody on the bridge has.
    SetNeighbour {
        /// Somebody.
        address: Ipv6Addr,
        /// This one.
        mac: [u8; 6],
    },
    /// Forgets somebody on the bridge.
    RemoveNeighbour {
        /// Somebody.
        address: Ipv6Addr,
    },
    /// Writes a setting.
    Set {
        /// Which, and the value.
        setting: Setting,
        /// Its value now, if it is there.
        from: Option<String>,
    },
}

impl NetOp {
    /// What takes the step back, where that makes sense.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        match self {
            Self::CreateLink { name, .. } => Some(Self::DeleteLink { name: name.clone() }),
            Self::SetMtu { name, from, to } => {
                Some(Self::SetMtu { name: name.clone(), from: *to, to: *from })
            }
            Self::AddAddress(address) => Some(Self::RemoveAddress(*address)),
            Self::RemoveAddress(address) => Some(Self::AddAddress(*address)),
            Self::AddRoute(route) => Some(Self::RemoveRoute(route.clone())),
            Self::RemoveRoute(route) => Some(Self::AddRoute(route.clone())),
            Self::SetNeighbour { address, .. } => Some(Self::RemoveNeighbour { address: *address }),
            // What was deleted was wrong, and the others only bring a device nearer to what it must be in any case.
            Self::DeleteLink { .. }
            | Self::RemoveNeighbour { .. }
            | Self::SetMac { .. }
            | Self::AttachPort { .. }
            | Self::SetUp { .. }
            | Self::Set { .. } => None,
        }
    }
}

impl fmt::Display for NetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink { name, .. } => write!(f, "create {name}"),
            Self::DeleteLink { name } => write!(f, "delete {name}"),
            Self::SetMtu { name, to, .. } => write!(f, "set the MTU of {name} to {to}"),
            Self::SetMac { name, .. } => write!(f, "set the MAC address of {name}"),
            Self::AttachPort { name } => write!(f, "attach {name} to {BRIDGE}"),
            Self::SetUp { name } => write!(f, "switch {name} on"),
            Self::AddAddress(address) => write!(f, "add {address} to {BRIDGE}"),
            Self::RemoveAddress(address) => write!(f, "remove {address} from {BRIDGE}"),
            Self::AddRoute(route) => {
                write!(f, "add the route to {} through {}", route.destination, route.link)
            }
            Self::RemoveRoute(route) => {
                write!(f, "remove the route to {} through {}", route.destination, route.link)
            }
            Self::SetNeighbour { address, .. } => write!(f, "tell {BRIDGE} where {address} is"),
            Self::RemoveNeighbour { address } => write!(f, "let {BRIDGE} forget {address}"),
            Self::Set { setting, .. } => write!(f, "set net/{} to {}", setting.path, setting.value),
        }
    }
}

/// What a board needs to know to say what it should be.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its number.
    pub index: NodeIndex,
    /// The addresses of all containers.
    pub overlay: Overlay,
    /// Largest packet of the interface to the outside, in bytes.
    pub mtu: u32,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// Whether there can be tunnels.
    pub tunnels: bool,
    /// Containers, each with whether its namespace is at hand.
    pub containers: &'a BTreeMap<ContainerId, (Ipv4Addr, bool)>,
    /// Boards to have tunnels to.
    pub peers: &'a BTreeSet<NodeIndex>,
}

/// Largest packet within WireGuard over an interface whose largest is `uplink` bytes: 1440 for Ethernet's 1500.
#[must_use]
pub fn underlay_mtu(uplink: u32) -> u32 {
    // RFC 791 §3.2: every IPv4 host must take 68 bytes; a tunnel within needs some more.
    uplink.saturating_sub(WIREGUARD_OVERHEAD_BYTES).max(68 + GRE_OVERHEAD_BYTES)
}

/// The same within a tunnel: 1416 for Ethernet's 1500.
#[must_use]
pub fn tunnel_mtu(uplink: u32) -> u32 {
    underlay_mtu(uplink) - GRE_OVERHEAD_BYTES
}

/// Whether there is IPv6 between containers: where one of their packets need not be smaller than it allows.
#[must_use]
pub fn has_ipv6(kernel: bool, uplink: u32) -> bool {
    kernel && tunnel_mtu(uplink) >= IPV6_MIN_MTU
}

/// The board as it should be.
#[must_use]
pub fn desired(facts: &Facts<'_>) -> Desired {
    let ipv6 = has_ipv6(facts.ipv6, facts.mtu);
    let mut desired = Desired {
        links: [(BRIDGE.to_owned(), Link { kind: Kind::Bridge, mtu: facts.mtu })].into(),
        addresses: on_bridge(facts, ipv6),
        settings: settings(),
        ..Desired::default()
    };
    for (id, (address, at_hand)) in facts.containers {
        let Some(name) = port_name(*id) else { continue };
        if ipv6 {
            desired.neighbours.insert(facts.overlay.address6(*address), mac(*address));
        }
        if *at_hand {
            let port = name.clone();
            desired.links.insert(name, Link { kind: Kind::Port { container: *address }, mtu: facts.mtu });
            desired.settings.extend(facts.ipv6.then(|| on_device6(&port, "disable_ipv6", "1")));
        } else {
            desired.keep.insert(name);
        }
    }
    if facts.tunnels {
        facts.peers.iter().for_each(|peer| tunnel(&mut desired, facts, *peer, ipv6));
    }
    if ipv6 {
        desired.settings.insert(Setting { path: "ipv6/conf/all/forwarding".into(), value: "1", link: None });
        desired.settings.extend(speaks_ipv6(BRIDGE));
    }
    desired
}

/// The board's addresses, with the networks of its containers.
fn on_bridge(facts: &Facts<'_>, ipv6: bool) -> BTreeSet<IpPrefix> {
    let (overlay, index) = (facts.overlay, facts.index);
    let gateway = overlay.gateway(index);
    let v4 = Prefix::new(gateway, overlay.subnet(index).bits);
    let v6 = ipv6.then(|| Prefix6::new(overlay.address6(gateway), overlay.subnet6(index).bits));
    v6.into_iter().map(IpPrefix::from).chain([v4.into()]).collect()
}

fn tunnel(desired: &mut Desired, facts: &Facts<'_>, peer: NodeIndex, ipv6: bool) {
    let name = tunnel_name(peer);
    let end = |index| facts.overlay.tunnel_end(index).address;
    let kind = Kind::Tunnel { local: end(facts.index), remote: end(peer) };
    desired.links.insert(name.clone(), Link { kind, mtu: tunnel_mtu(facts.mtu) });
    desired.settings.insert(reverse_path_filter(&name));
    let gateway = facts.overlay.gateway(facts.index);
    let destination = facts.overlay.subnet(peer).into();
    desired.routes.insert(Route { destination, link: name.clone(), source: Some(gateway.into()) });
    if ipv6 {
        desired.settings.extend(speaks_ipv6(&name));
        let (destination, source) = (facts.overlay.subnet6(peer).into(), facts.overlay.address6(gateway));
        desired.routes.insert(Route { destination, link: name, source: Some(source.into()) });
    }
}

/// A packet is dropped unless its answer would leave through the device it came in by (RFC 3704 §2.2, strict).
fn reverse_path_filter(name: &str) -> Setting {
    of_device(name, "rp_filter", "1")
}

fn of_device(name: &str, setting: &str, value: &'static str) -> Setting {
    Setting { path: format!("ipv4/conf/{name}/{setting}"), value, link: Some(name.to_owned()) }
}

fn on_device6(name: &str, setting: &str, value: &'static str) -> Setting {
    Setting { path: format!("ipv6/conf/{name}/{setting}"), value, link: Some(name.to_owned()) }
}

/// IPv6 with the addresses that we give and no others: without one of the link's own nothing is said there unasked.
fn speaks_ipv6(name: &str) -> [Setting; 2] {
    [on_device6(name, "disable_ipv6", "0"), on_device6(name, "addr_gen_mode", "1")]
}

fn settings() -> BTreeSet<Setting> {
    let global = |path: &str, value| Setting { path: path.to_owned(), value, link: None };
    [
        global("ipv4/ip_forward", "1"),
        // Containers reach one another through the board on purpose; telling them of a shorter way would be wrong. Either
        // of the two being on means on.
        global("ipv4/conf/all/send_redirects", "0"),
        of_device(BRIDGE, "send_redirects", "0"),
        reverse_path_filter(BRIDGE),
        // Frames that stay on the bridge are the bridge table's business alone. Missing without br_netfilter.
        global("bridge/bridge-nf-call-iptables", "0"),
        global("bridge/bridge-nf-call-arptables", "0"),
        global("bridge/bridge-nf-call-ip6tables", "0"),
        // Saves making gre0, gretap0 and the like in each container's namespace. Only the first namespace has it.
        global("core/fb_tunnels_only_for_init_net", "1"),
    ]
    .into()
}

/// The steps from `observed` to `desired`. Taking them and looking again gives a plan without steps.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<NetOp> {
    let mut observed = observed.clone();
    let mut steps = removals(desired, &mut observed);
    // They go with the address.
    let without: BTreeSet<IpAddr> = observed.cut_off.iter().map(|address| address.address()).collect();
    observed.routes.retain(|route| route.source.is_none_or(|source| !without.contains(&source)));
    steps.extend(change_settings(desired, &observed, |setting| setting.link.is_none()));
    for (name, link) in in_order(desired) {
        let seen = observed.links.get(name);
        steps.extend(make(name, *link, seen));
        let of_this = |setting: &Setting| setting.link.as_deref() == Some(name);
        let settings = if seen.is_none() { &Observed::default() } else { &observed };
        steps.extend(change_settings(desired, settings, of_this));
        if name == BRIDGE {
            steps.extend(change_addresses(desired, &observed));
        }
        // Last, so that no packet passes before everything else is right.
        if !seen.is_some_and(|seen| seen.up) {
            steps.push(NetOp::SetUp { name: name.clone() });
        }
    }
    steps.extend(change_neighbours(desired, &observed));
    steps.extend(change_routes(desired, &observed));
    steps
}

/// The bridge first: ports hang on it, and the source address of routes is its.
fn in_order(desired: &Desired) -> impl Iterator<Item = (&String, &Link)> {
    let (bridge, others): (Vec<_>, Vec<_>) = desired.links.iter().partition(|(name, _)| *name == BRIDGE);
    bridge.into_iter().chain(others)
}

/// Removes devices that nobody wants or that are not what they should be, and forgets what hangs on them.
fn removals(desired: &Desired, observed: &mut Observed) -> Vec<NetOp> {
    let wrong = |name: &String, seen: &SeenLink| match desired.links.get(name) {
        Some(link) => !same_kind(link.kind, seen.kind),
        None => !desired.keep.contains(name),
    };
    let names: Vec<_> = observed
        .links
        .iter()
        .filter(|(name, seen)| wrong(name, seen))
        .map(|(name, _)| name.clone())
        .collect();
    for name in &names {
        observed.links.remove(name);
        observed.routes.retain(|route| route.link != *name);
        if name == BRIDGE {
            observed.addresses.clear();
            observed.cut_off.clear();
            observed.neighbours.clear();
        }
    }
    names.into_iter().map(|name| NetOp::DeleteLink { name }).collect()
}

/// Whether a device can become what it should be without being made anew.
fn same_kind(kind: Kind, seen: Option<SeenKind>) -> bool {
    match (kind, seen) {
        (Kind::Bridge, Some(SeenKind::Bridge { .. })) | (Kind::Port { .. }, Some(SeenKind::Port { .. })) => {
            true
        }
        (
            Kind::Tunnel { local, remote },
            Some(SeenKind::Tunnel { local: seen_local, remote: seen_remote }),
        ) => (local, remote) == (seen_local, seen_remote),
        (Kind::Bridge | Kind::Port { .. } | Kind::Tunnel { .. }, Some(_) | None) => false,
    }
}

fn make(name: &str, link: Link, seen: Option<&SeenLink>) -> Vec<NetOp> {
    let mut steps = Vec::new();
    let name = || name.to_owned();
    match seen {
        None => steps.push(NetOp::CreateLink { name: name(), link }),
        Some(seen) if seen.mtu != link.mtu => {
            steps.push(NetOp::SetMtu { name: name(), from: seen.mtu, to: link.mtu });
        }
        Some(_) => {}
    }
    match (link.kind, seen.and_then(|seen| seen.kind)) {
        (Kind::Port { .. }, Some(SeenKind::Port { isolated: true })) => {}
        (Kind::Port { .. }, _) => steps.push(NetOp::AttachPort { name: name() }),
        (Kind::Bridge | Kind::Tunnel { .. }, _) => {}
    }
    steps
}

fn change_addresses(desired: &Desired, observed: &Observed) -> Vec<NetOp> {
    // Given again, an address brings the way to its network back.
    let kept =
        |address: &&IpPrefix| desired.addresses.contains(*address) && !observed.cut_off.contains(*address);
    let wrong = observed.addresses.iter().filter(|address| !kept(address));
    let mut steps: Vec<_> = wrong.map(|address| NetOp::RemoveAddress(*address)).collect();
    for address in &desired.addresses {
        let IpPrefix::V4(own) = address else { continue };
        let wanted = mac(own.address);
        let has = matches!(observed.links.get(BRIDGE).and_then(|seen| seen.kind),
            Some(SeenKind::Bridge { mac }) if mac == wanted);
        if !has {
            steps.push(NetOp::SetMac { name: BRIDGE.to_owned(), mac: wanted });
        }
    }
    let missing =
        desired.addresses.iter().filter(|address| !(observed.addresses.contains(*address) && kept(address)));
    steps.extend(missing.map(|address| NetOp::AddAddress(*address)));
    steps
}

fn change_neighbours(desired: &Desired, observed: &Observed) -> Vec<NetOp> {
    let gone = observed.neighbours.keys().filter(|address| !desired.neighbours.contains_key(address));
    let gone = gone.map(|address| NetOp::RemoveNeighbour { address: *address });
    let new =
        desired.neighbours.iter().filter(|(address, mac)| observed.neighbours.get(address) != Some(mac));
    gone.chain(new.map(|(address, mac)| NetOp::SetNeighbour { address: *address, mac: *mac })).collect()
}

fn change_routes(desired: &Desired, observed: &Observed) -> Vec<NetOp> {
    let kept = |route: &&Route| !desired.keep.contains(&route.link);
    let gone = observed.routes.difference(&desired.routes).filter(kept).cloned().map(NetOp::RemoveRoute);
    let new = desired.routes.difference(&observed.routes).cloned().map(NetOp::AddRoute);
    gone.chain(new).collect()
}

/// Settings that the kernel has and that differ, or of a device that is about to be made.
fn change_settings(desired: &Desired, observed: &Observed, of: impl Fn(&Setting) -> bool) -> Vec<NetOp> {
    let needed = |setting: &&Setting| match observed.settings.get(&setting.path) {
        Some(value) => value != setting.value,
        None => setting.link.as_ref().is_some_and(|link| !observed.links.contains_key(link)),
    };
    let change = |setting: &Setting| NetOp::Set {
        setting: setting.clone(),
        from: observed.settings.get(&setting.path).cloned(),
    };
    desired.settings.iter().filter(|setting| of(setting)).filter(needed).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Those of every device.
    const DEVICE_SETTINGS: [&str; 4] = [
        "ipv4/conf/NAME/rp_filter",
        "ipv4/conf/NAME/send_redirects",
        "ipv6/conf/NAME/disable_ipv6",
        "ipv6/conf/NAME/addr_gen_mode",
    ];

    /// What the kernel would make of a step.
    fn take(board: &mut Observed, step: &NetOp) {
        match step {
            NetOp::CreateLink { name, link } => {
                let kind = match link.kind {
                    Kind::Bridge => SeenKind::Bridge { mac: [9; 6] },
                    Kind::Port { .. } => SeenKind::Port { isolated: false },
                    Kind::Tunnel { local, remote } => SeenKind::Tunnel { local, remote },
                };
                let seen = SeenLink { kind: Some(kind), mtu: link.mtu, up: false };
                assert!(board.links.insert(name.clone(), seen).is_none(), "{name} was there");
                for setting in DEVICE_SETTINGS {
                    board.settings.insert(setting.replace("NAME", name), "default".into());
                }
            }
            NetOp::DeleteLink { name } => {
                assert!(board.links.remove(name).is_some(), "{name} was not there");
                board.routes.retain(|route| route.link != *name);
                let conf = |version| format!("{version}/conf/{name}/");
                let own = [conf("ipv4"), conf("ipv6")];
                board.settings.retain(|path, _| !own.iter().any(|conf| path.starts_with(conf)));
                if name == BRIDGE {
                    board.addresses.clear();
                    board.neighbours.clear();
                }
            }
            NetOp::SetMtu { name, from, to } => {
                let link = board.links.get_mut(name).unwrap();
                assert_eq!(link.mtu, *from);
                link.mtu = *to;
            }
            NetOp::SetMac { name, mac } => {
                board.links.get_mut(name).unwrap().kind = Some(SeenKind::Bridge { mac: *mac });
            }
            NetOp::AttachPort { name } => {
                assert!(board.links.contains_key(BRIDGE), "no bridge to attach {name} to");
                board.links.get_mut(name).unwrap().kind = Some(SeenKind::Port { isolated: true });
            }
            NetOp::SetUp { name } => board.links.get_mut(name).unwrap().up = true,
            NetOp::AddAddress(address) => {
                assert!(board.links.contains_key(BRIDGE) && board.addresses.insert(*address));
            }
            NetOp::RemoveAddress(address) => assert!(board.addresses.remove(address)),
            NetOp::AddRoute(route) => {
                assert!(board.links[&route.link].up, "a route needs a device that is up");
                let ours = board.addresses.iter().map(|address| address.address()).collect::<Vec<_>>();
                assert!(route.source.is_none_or(|source| ours.contains(&source)));
                assert!(board.routes.insert(route.clone()));
            }
            NetOp::RemoveRoute(route) => assert!(board.routes.remove(route)),
            NetOp::SetNeighbour { address, mac } => {
                assert!(board.links[BRIDGE].up, "a neighbour needs a device that is up");
                board.neighbours.insert(*address, *mac);
            }
            NetOp::RemoveNeighbour { address } => assert!(board.neighbours.remove(address).is_some()),
            NetOp::Set { setting, .. } => {
                assert!(setting.link.as_ref().is_none_or(|link| board.links.contains_key(link)));
                board.settings.insert(setting.path.clone(), setting.value.into());
            }
        }
    }

    fn reached(board: &Observed, desired: &Desired) {
        for (name, link) in &desired.links {
            let seen = board.links[name];
            assert!(same_kind(link.kind, seen.kind) && seen.up && seen.mtu == link.mtu, "{name}: {seen:?}");
            assert_ne!(seen.kind, Some(SeenKind::Port { isolated: false }), "{name}");
        }
        assert!(
            board.links.keys().all(|name| desired.links.contains_key(name) || desired.keep.contains(name))
        );
        assert_eq!(board.addresses, desired.addresses);
        assert_eq!(board.routes, desired.routes);
        assert_eq!(board.neighbours, desired.neighbours);
        for setting in &desired.settings {
            let value = board.settings.get(&setting.path);
            assert!(value.is_none_or(|value| value == setting.value), "{setting:?} is {value:?}");
            assert!(setting.link.is_none() || value.is_some(), "{setting:?} is missing");
        }
    }

    fn converge(board: &mut Observed, desired: &Desired) {
        for step in plan(desired, board) {
            take(board, &step);
        }
        reached(board, desired);
        assert_eq!(plan(desired, board), []);
    }

    fn any_overlay() -> impl Strategy<Value = Overlay> {
        prop_oneof![Just("10.0.0.0/8"), Just("172.20.0.0/14")].prop_map(|text| text.parse().unwrap())
    }

    fn nth(overlay: Overlay, index: u8, nth: u8) -> Ipv4Addr {
        overlay.addresses(NodeIndex(index)).nth(usize::from(nth)).unwrap()
    }

    fn underlay(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 50, last)
    }

    prop_compose! {
        fn any_desired()(
            index in 1..4u8,
            mtu in prop_oneof![Just(1500u32), Just(9000), Just(1300)],
            ipv6 in any::<bool>(),
            tunnels in any::<bool>(),
            overlay in any_overlay(),
            containers in prop::collection::btree_map(1..6u64, (2..5u8, any::<bool>()), 0..4),
            peers in prop::collection::btree_set(4..8u8, 0..4),
        ) -> Desired {
            let containers = containers.into_iter()
                .map(|(id, (last, at_hand))| (ContainerId(id), (nth(overlay, index, last), at_hand)))
                .collect();
            let peers = peers.into_iter().map(NodeIndex).collect();
            desired(&Facts {
                index: NodeIndex(index), overlay, mtu, ipv6, tunnels, containers: &containers, peers: &peers,
            })
        }
    }

    fn any_seen_kind() -> impl Strategy<Value = Option<SeenKind>> {
        prop_oneof![
            Just(None),
            Just(Some(SeenKind::Bridge { mac: [1; 6] })),
            any::<bool>().prop_map(|isolated| Some(SeenKind::Port { isolated })),
            (10..12u8, 20..23u8).prop_map(|(local, remote)| {
                Some(SeenKind::Tunnel { local: underlay(local), remote: underlay(remote) })
            }),
        ]
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(BRIDGE.to_owned()),
            (4..8u8).prop_map(|peer| tunnel_name(NodeIndex(peer))),
            (1..6u64).prop_map(|id| port_name(ContainerId(id)).unwrap()),
        ]
    }

    prop_compose! {
        fn any_board()(
            links in prop::collection::btree_map(any_name(), (any_seen_kind(), any::<bool>(), 1476..1501u32), 0..6),
            octet in 1..4u8,
            forward in prop::option::of(Just("0".to_owned())),
        ) -> Observed {
            let mut board = Observed::default();
            for (name, (kind, up, mtu)) in links {
                if name == BRIDGE {
                    board.addresses.insert(Prefix::new(Overlay::default().gateway(NodeIndex(octet)), 16).into());
                    board.neighbours.insert(Ipv6Addr::LOCALHOST, [octet; 6]);
                }
                for setting in DEVICE_SETTINGS {
                    board.settings.insert(setting.replace("NAME", &name), "0".into());
                }
                if up && name.starts_with("gre-") {
                    let destination = Overlay::default().subnet(NodeIndex(octet + 3)).into();
                    board.routes.insert(Route { destination, link: name.clone(), source: None });
                }
                board.links.insert(name, SeenLink { kind, mtu, up });
            }
            board.settings.extend(forward.map(|value| ("ipv4/ip_forward".to_owned(), value)));
            board
        }
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_anywhere_to_the_goal(mut board in any_board(), first in any_desired(), then in any_desired()) {
            converge(&mut board, &first);
            converge(&mut board, &then);
        }
    }

    fn sample() -> Desired {
        let containers = [
            (ContainerId(7), (Ipv4Addr::new(10, 1, 0, 2), true)),
            (ContainerId(8), (Ipv4Addr::new(10, 1, 0, 3), false)),
        ];
        desired(&Facts {
            index: NodeIndex(1),
            overlay: Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]),
            mtu: 1500,
            ipv6: true,
            tunnels: true,
            containers: &containers.into(),
            peers: &[NodeIndex(2)].into(),
        })
    }

    #[test]
    fn a_fresh_board() {
        let mut board = Observed::default();
        board.settings.insert("ipv4/ip_forward".into(), "0".into());
        board.settings.insert("core/fb_tunnels_only_for_init_net".into(), "1".into());
        let steps = plan(&sample(), &board);
        let text: String = steps.iter().map(|step| format!("{step}\n")).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/plan-fresh.txt");
        if std::env::var_os("WHERRY_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, expected, "WHERRY_BLESS=1 accepts the change");
    }

    #[test]
    fn what_is_right_is_not_touched_when_a_peer_goes() {
        let mut board = Observed::default();
        converge(&mut board, &sample());
        let mut without = sample();
        without.links.remove("gre-2");
        without.routes.clear();
        without.settings.retain(|setting| setting.link.as_deref() != Some("gre-2"));
        assert_eq!(plan(&without, &board), [NetOp::DeleteLink { name: "gre-2".into() }]);
    }

    #[test]
    fn a_peer_that_moved_gets_a_new_tunnel() {
        let mut board = Observed::default();
        converge(&mut board, &sample());
        let mut moved = sample();
        let kind = Kind::Tunnel { local: underlay(12), remote: underlay(99) };
        moved.links.insert("gre-2".into(), Link { kind, mtu: 1416 });
        assert_eq!(plan(&moved, &board)[0], NetOp::DeleteLink { name: "gre-2".into() });
        converge(&mut board, &moved);
    }

    #[test]
    fn mtus_leave_room_for_the_outer_headers() {
        assert_eq!((underlay_mtu(1500), tunnel_mtu(1500)), (1440, 1416));
        assert_eq!(tunnel_mtu(9000), 8916);
        assert_eq!(tunnel_mtu(10), 68);
        assert!(has_ipv6(true, 1364) && !has_ipv6(true, 1363) && !has_ipv6(false, 1500));
    }
}
