//! rtnetlink: devices, addresses and routes of one network namespace, with typed messages over our blocking socket.
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wherry_net::address::{IpPrefix, Prefix, Prefix6};
use wherry_net::netlink::{Socket, messages};

/// NLMSG_DONE: the end of a dump.
const KIND_DONE: u16 = 3;

/// A socket to rtnetlink of one network namespace.
#[derive(Debug)]
pub(crate) struct RouteSocket(Socket);

/// A route as we set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteSpec {
    pub(crate) destination: IpPrefix,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    /// Largest packet towards there, in bytes, where it is not the device's.
    pub(crate) mtu: Option<u32>,
}

impl RouteSpec {
    /// Everything within `destination` is on the device's own wire.
    pub(crate) fn direct(destination: impl Into<IpPrefix>) -> Self {
        Self { destination: destination.into(), gateway: None, source: None, mtu: None }
    }

    /// Everything without a better route goes to `gateway`.
    pub(crate) fn default_through(gateway: Ipv4Addr) -> Self {
        Self { gateway: Some(gateway.into()), ..Self::direct(Prefix::new(Ipv4Addr::UNSPECIFIED, 0)) }
    }
}

/// Whether something must not be there yet, or may be and is then replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Refuse,
    Replace,
}

impl Existing {
    fn flags(self) -> u16 {
        match self {
            Self::Refuse => NLM_F_CREATE | NLM_F_EXCL,
            Self::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

impl RouteSocket {
    /// A socket for the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Errno> {
        Socket::open(SockProtocol::NetlinkRoute).map(Self)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<u32, Errno> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.0.next_sequence();
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes).map(|()| message.header.sequence_number)
    }

    /// Asks for a change and waits for the kernel's word on it.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        let sequence = self.send(message, NLM_F_ACK | flags)?;
        loop {
            let datagram = self.0.receive()?;
            let mut answers = messages(&datagram).filter(|message| message.sequence == sequence);
            if let Some(answer) = answers.find_map(|message| message.answer()) {
                return answer;
            }
        }
    }

    /// All that the kernel has of a kind. What this version cannot read is not ours and is left out.
    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        let sequence = self.send(message, NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            let datagram = self.0.receive()?;
            for message in messages(&datagram).filter(|message| message.sequence == sequence) {
                if let Some(Err(errno)) = message.answer() {
                    return Err(errno);
                }
                if message.kind == KIND_DONE {
                    return Ok(found);
                }
                let mut header = NetlinkHeader::default();
                header.message_type = message.kind;
                found.extend(RouteNetlinkMessage::deserialize(&header, message.payload));
            }
        }
    }

    /// Every device.
    pub(crate) fn links(&mut self) -> Result<Vec<LinkMessage>, Errno> {
        let all = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(links.collect())
    }

    /// IP addresses of the device numbered `index`.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpPrefix>, Errno> {
        let question = AddressMessage::default();
        let all = self.dump(RouteNetlinkMessage::GetAddress(question))?;
        let addresses = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == index => {
                own_address(&address)
            }
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// IP routes of the main table.
    pub(crate) fn routes(&mut self) -> Result<Vec<RouteMessage>, Errno> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            all.extend(self.dump(RouteNetlinkMessage::GetRoute(question))?);
        }
        let routes = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
                Some(route)
            }
            _ => None,
        });
        Ok(routes.collect())
    }

    /// Permanent IPv6 neighbours on the device numbered `index`.
    pub(crate) fn neighbours(&mut self, index: u32) -> Result<Vec<(Ipv6Addr, [u8; 6])>, Errno> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Inet6;
        let all = self.dump(RouteNetlinkMessage::GetNeighbour(question))?;
        let neighbours = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) if neighbour.header.ifindex == index => {
                permanent(&neighbour)
            }
            _ => None,
        });
        Ok(neighbours.collect())
    }

    /// Says which MAC address somebody behind a device has, for good.
    pub(crate) fn set_neighbour(&mut self, name: &str, address: Ipv6Addr, mac: [u8; 6]) -> Result<(), Errno> {
        let mut message = neighbour_message(name, address)?;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), Existing::Replace.flags())
    }

    /// Forgets somebody behind a device.
    pub(crate) fn remove_neighbour(&mut self, name: &str, address: Ipv6Addr) -> Result<(), Errno> {
        self.change(RouteNetlinkMessage::DelNeighbour(neighbour_message(name, address)?), 0)
    }

    /// Makes a device that must not be there yet.
    pub(crate) fn create_link(
        &mut self,
        name: &str,
        info: Vec<LinkInfo>,
        more: Vec<LinkAttribute>,
    ) -> Result<(), Errno> {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::LinkInfo(info));
        link.attributes.extend(more);
        self.change(RouteNetlinkMessage::NewLink(link), Existing::Refuse.flags())
    }

    /// Changes attributes of a device.
    pub(crate) fn set_link(&mut self, name: &str, attributes: Vec<LinkAttribute>) -> Result<(), Errno> {
        let mut link = named(name);
        link.attributes.extend(attributes);
        // RTM_NEWLINK without NLM_F_CREATE changes; unlike RTM_SETLINK it also takes a port's settings.
        self.change(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Switches a device on.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<(), Errno> {
        let mut link = named(name);
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Removes a device.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<(), Errno> {
        self.change(RouteNetlinkMessage::DelLink(named(name)), 0)
    }

    /// Gives a device an address.
    pub(crate) fn add_address(
        &mut self,
        name: &str,
        address: impl Into<IpPrefix>,
        existing: Existing,
    ) -> Result<(), Errno> {
        let message = address_message(name, address.into())?;
        self.change(RouteNetlinkMessage::NewAddress(message), existing.flags())
    }

    /// Takes an address from a device.
    pub(crate) fn remove_address(&mut self, name: &str, address: IpPrefix) -> Result<(), Errno> {
        let message = address_message(name, address)?;
        self.change(RouteNetlinkMessage::DelAddress(message), 0)
    }

    /// Adds a route through a device.
    pub(crate) fn add_route(
        &mut self,
        name: &str,
        route: RouteSpec,
        existing: Existing,
    ) -> Result<(), Errno> {
        let message = route_message(name, route)?;
        self.change(RouteNetlinkMessage::NewRoute(message), existing.flags())
    }

    /// Removes a route through a device.
    pub(crate) fn remove_route(&mut self, name: &str, route: RouteSpec) -> Result<(), Errno> {
        let message = route_message(name, route)?;
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn own_address(message: &AddressMessage) -> Option<IpPrefix> {
    let bits = message.header.prefix_len;
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(Prefix::new(*address, bits).into()),
        // IPv6 addresses have no other end.
        AddressAttribute::Address(IpAddr::V6(address)) => Some(Prefix6::new(*address, bits).into()),
        _ => None,
    })
}

fn address_message(name: &str, address: IpPrefix) -> Result<AddressMessage, Errno> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = address.bits();
    message.header.index = if_nametoindex(name)?;
    message.attributes.push(AddressAttribute::Local(address.address()));
    message.attributes.push(AddressAttribute::Address(address.address()));
    match address {
        IpPrefix::V4(v4) if v4.bits < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpPrefix::V4(_) => {}
        // Nobody else can have it, so there is no need to ask around before it is used.
        IpPrefix::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    Ok(message)
}

fn family(address: IpPrefix) -> AddressFamily {
    match address {
        IpPrefix::V4(_) => AddressFamily::Inet,
        IpPrefix::V6(_) => AddressFamily::Inet6,
    }
}

fn neighbour_message(name: &str, address: Ipv6Addr) -> Result<NeighbourMessage, Errno> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = if_nametoindex(name)?;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)));
    Ok(message)
}

fn permanent(message: &NeighbourMessage) -> Option<(Ipv6Addr, [u8; 6])> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(*found),
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((address?, mac?)).filter(|_| message.header.state == NeighbourState::Permanent)
}

fn route_message(name: &str, route: RouteSpec) -> Result<RouteMessage, Errno> {
    let inet = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination);
    message.header.destination_prefix_length = route.destination.bits();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(inet(route.destination.network().address())));
    message.attributes.push(RouteAttribute::Oif(if_nametoindex(name)?));
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(inet(gateway))));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(inet(source))));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    Ok(message)
}
