//! Reads from the kernel what a plan starts from.
use super::plan::{Desired, Observed, Route, SeenKind, SeenLink};
use super::route::RouteSocket;
use super::settings;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoGre, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wherry_net::address::{BRIDGE, IpPrefix, PORT_PREFIX, Prefix, Prefix6, TUNNEL_PREFIX};

/// The board as far as it is ours, and the values of the settings that `desired` names.
/// `links` are all devices.
pub(crate) fn observe(
    route: &mut RouteSocket,
    links: &[LinkMessage],
    desired: &Desired,
) -> Result<Observed, Errno> {
    let names: BTreeMap<u32, String> =
        links.iter().filter_map(|link| Some((link.header.index, name(link)?))).collect();
    let bridge = names.iter().find(|(_, name)| *name == BRIDGE).map(|(index, _)| *index);
    let ours = |link: &LinkMessage| Some((name(link).filter(|name| is_ours(name))?, seen(link, bridge)));
    let addresses = match bridge {
        Some(index) => route.addresses(index)?,
        None => Vec::new(),
    };
    let neighbours = match bridge {
        Some(index) => route.neighbours(index)?,
        None => Vec::new(),
    };
    let routes = route.routes()?;
    let up = links.iter().any(|link| Some(link.header.index) == bridge && is_up(link));
    let cut_off = bridge.filter(|_| up).map(|index| cut_off(&addresses, &routes, index)).unwrap_or_default();
    Ok(Observed {
        links: links.iter().filter_map(ours).collect(),
        addresses: addresses.into_iter().collect(),
        cut_off,
        neighbours: neighbours.into_iter().collect(),
        routes: routes.iter().filter_map(|route| through_tunnel(route, &names)).collect(),
        settings: desired
            .settings
            .iter()
            .filter_map(|setting| Some((setting.path.clone(), settings::read(&setting.path)?)))
            .collect(),
    })
}

/// Those of a device's addresses whose network no route leads to it any more. The kernel makes one with the address.
pub(crate) fn cut_off(addresses: &[IpPrefix], routes: &[RouteMessage], device: u32) -> BTreeSet<IpPrefix> {
    let led: BTreeSet<IpPrefix> = routes
        .iter()
        .map(parse)
        .filter(|parsed| parsed.through == Some(device))
        .map(|parsed| parsed.destination)
        .collect();
    addresses.iter().filter(|address| !led.contains(&address.network())).copied().collect()
}

/// The MTU of a device, in bytes, if there is such a device.
pub(crate) fn mtu_of(links: &[LinkMessage], device: &str) -> Option<u32> {
    find(links, device).and_then(mtu)
}

/// A device.
pub(crate) fn find<'a>(links: &'a [LinkMessage], device: &str) -> Option<&'a LinkMessage> {
    links.iter().find(|link| name(link).as_deref() == Some(device))
}

fn is_ours(name: &str) -> bool {
    name == BRIDGE || name.starts_with(TUNNEL_PREFIX) || name.starts_with(PORT_PREFIX)
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn mac(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn seen(link: &LinkMessage, bridge: Option<u32>) -> SeenLink {
    SeenLink { kind: kind(link, bridge), mtu: mtu(link).unwrap_or(0), up: is_up(link) }
}

pub(crate) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

fn infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    link.attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
}

fn kind(link: &LinkMessage, bridge: Option<u32>) -> Option<SeenKind> {
    let kind = infos(link).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind? {
        InfoKind::Bridge => Some(SeenKind::Bridge { mac: mac(link)? }),
        InfoKind::Veth => Some(SeenKind::Port { isolated: on_bridge(link, bridge) && is_isolated(link) }),
        InfoKind::GreTun => infos(link).find_map(tunnel),
        _ => None,
    }
}

fn on_bridge(link: &LinkMessage, bridge: Option<u32>) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Controller(master) => Some(*master) == bridge,
        _ => false,
    })
}

fn is_isolated(link: &LinkMessage) -> bool {
    infos(link).any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            settings.contains(&InfoBridgePort::Isolated(true))
        }
        _ => false,
    })
}

fn tunnel(info: &LinkInfo) -> Option<SeenKind> {
    let LinkInfo::Data(InfoData::GreTun(attributes)) = info else { return None };
    let mut ends = (None::<Ipv4Addr>, None::<Ipv4Addr>);
    for attribute in attributes {
        match attribute {
            InfoGre::Local(address) => ends.0 = Some(*address),
            InfoGre::Remote(address) => ends.1 = Some(*address),
            _ => {}
        }
    }
    Some(SeenKind::Tunnel { local: ends.0?, remote: ends.1? })
}

fn through_tunnel(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    // Those of the kernel's own come and go with addresses and devices.
    if message.header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let parsed = parse(message);
    let link = names.get(&parsed.through?).filter(|name| name.starts_with(TUNNEL_PREFIX))?.clone();
    Some(Route { destination: parsed.destination, link, source: parsed.source })
}

/// What matters of a route.
struct Parsed {
    destination: IpPrefix,
    through: Option<u32>,
    source: Option<IpAddr>,
}

fn parse(message: &RouteMessage) -> Parsed {
    let (mut destination, mut through, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Oif(index) => through = Some(*index),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    let bits = message.header.destination_prefix_length;
    // A default route names no destination.
    let everywhere: IpAddr = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let destination = match destination.unwrap_or(everywhere) {
        IpAddr::V4(address) => Prefix::new(address, bits).into(),
        IpAddr::V6(address) => Prefix6::new(address, bits).into(),
    };
    Parsed { destination, through, source }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
