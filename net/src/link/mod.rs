//! Ethernet interfaces through rtnetlink.
mod host;
mod watch;

pub use host::{is_gateway_of, is_host, is_host_of};
pub use watch::{LinkNews, LinkState, watch};

use crate::address::{BRIDGE, PORT_PREFIX, TUNNEL_PREFIX, WIREGUARD};
use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkUnspec, LinkVlan, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Why an interface could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused.
    #[error("{what} on {interface}: {source}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Where.
        interface: String,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// No such interface.
    #[error("there is no interface {0}")]
    Missing(String),
}

/// One Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ethernet {
    /// Kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// It is switched on.
    pub up: bool,
    /// There is a signal on its wire.
    pub carrier: bool,
}

/// Whether this is an interface of the board's own: bridges, veths and tunnels have no device behind them.
#[must_use]
pub fn is_hardware(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("device").exists()
}

/// Talks to the kernel about links, addresses and routes.
#[derive(Debug, Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens a netlink socket, served by a task of the present runtime.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The Ethernet interfaces among `candidates`, by name.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn ethernets(&self, candidates: fn(&str) -> bool) -> Result<Vec<Ethernet>, LinkError> {
        let mut found = Vec::new();
        let mut links = self.handle.link().get().execute();
        let fail = |source| LinkError::Netlink { what: "listing", interface: "links".into(), source };
        while let Some(link) = links.try_next().await.map_err(fail)? {
            if link.header.link_layer_type != LinkLayerType::Ether {
                continue;
            }
            let mut name = None;
            let mut mac = None;
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = Some(text),
                    LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes).ok(),
                    _ => {}
                }
            }
            if let (Some(name), Some(mac)) = (name, mac)
                && candidates(&name)
            {
                let is = |flag| link.header.flags.contains(flag);
                let (up, carrier) = (is(LinkFlags::Up), is(LinkFlags::LowerUp));
                found.push(Ethernet { index: link.header.index, name, mac, up, carrier });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The first address that is good beyond this machine and is not of the overlay: interface, address, prefix length.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn first_address(&self) -> Result<Option<(String, Ipv4Addr, u8)>, LinkError> {
        Ok(self.addresses().await?.into_iter().next())
    }

    /// All addresses like that, in the kernel's order.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub async fn addresses(&self) -> Result<Vec<(String, Ipv4Addr, u8)>, LinkError> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        let fail = |source| LinkError::Netlink { what: "listing", interface: "addresses".into(), source };
        while let Some(message) = addresses.try_next().await.map_err(fail)? {
            if message.header.scope != AddressScope::Universe {
                continue;
            }
            let (mut name, mut address) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Label(label) => name = Some(label),
                    AddressAttribute::Local(IpAddr::V4(local)) => address = Some(local),
                    _ => {}
                }
            }
            if let (Some(name), Some(address)) = (name, address)
                && !is_ours(&name)
            {
                found.push((name, address, message.header.prefix_len));
            }
        }
        Ok(found)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn up(&self, ethernet: &Ethernet) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(ethernet.index).up().build();
        self.handle.link().set(message).execute().await.map_err(netlink("switching on", ethernet))
    }

    /// Makes `address/prefix` the only IPv4 address. Writes only what is not so yet; tells whether it did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_address(
        &self,
        ethernet: &Ethernet,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<bool, LinkError> {
        let mut changed = false;
        // Twice: an address that is younger than another one of its network goes with it, and has to be set again.
        for _ in 0..2 {
            let (right, stale): (Vec<_>, Vec<_>) = self
                .addresses_of(ethernet)
                .await?
                .into_iter()
                .partition(|message| is_for_ever(message, address, prefix));
            if !right.is_empty() && stale.is_empty() {
                break;
            }
            changed = true;
            if right.is_empty() {
                let request = self.handle.address().add(ethernet.index, IpAddr::V4(address), prefix);
                request.replace().execute().await.map_err(netlink("setting the address", ethernet))?;
            }
            // What was only given an end is replaced already.
            let same = |message: &AddressMessage| {
                message.header.prefix_len == prefix && local(message) == Some(address)
            };
            self.remove(ethernet, stale.into_iter().filter(|message| !same(message))).await?;
        }
        Ok(changed)
    }

    /// Takes all IPv4 addresses away, and with them all routes; tells whether there were any.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_addresses(&self, ethernet: &Ethernet) -> Result<bool, LinkError> {
        let all = self.addresses_of(ethernet).await?;
        let any = !all.is_empty();
        self.remove(ethernet, all.into_iter()).await?;
        Ok(any)
    }

    async fn remove(
        &self,
        ethernet: &Ethernet,
        addresses: impl Iterator<Item = AddressMessage>,
    ) -> Result<(), LinkError> {
        for message in addresses {
            match self.handle.address().del(message).execute().await {
                // It went with an elder one.
                Err(error) if is_errno(&error, Errno::EADDRNOTAVAIL) => {}
                done => done.map_err(netlink("removing an address", ethernet))?,
            }
        }
        Ok(())
    }

    /// The IPv4 addresses of an interface.
    async fn addresses_of(&self, ethernet: &Ethernet) -> Result<Vec<AddressMessage>, LinkError> {
        let mut addresses = self.handle.address().get().set_link_index_filter(ethernet.index).execute();
        let mut found = Vec::new();
        while let Some(message) =
            addresses.try_next().await.map_err(netlink("listing addresses", ethernet))?
        {
            if local(&message).is_some() {
                found.push(message);
            }
        }
        Ok(found)
    }

    /// The interface for VLAN `number` on `base`, made if it is not there.
    ///
    /// # Errors
    /// When the kernel refuses, as one without 802.1Q does.
    pub async fn vlan(&self, base: &Ethernet, number: u16) -> Result<Ethernet, LinkError> {
        let name = vlan_name(number);
        // One that was made by a service before may be on another interface.
        if let Some(old) = self.named(&name).await? {
            let fail = netlink("removing an old VLAN", &old);
            self.handle.link().del(old.index).execute().await.map_err(fail)?;
        }
        let message = LinkVlan::new(&name, base.index, number).build();
        self.handle.link().add(message).execute().await.map_err(netlink("making a VLAN", base))?;
        self.named(&name).await?.ok_or(LinkError::Missing(name))
    }

    async fn named(&self, name: &str) -> Result<Option<Ethernet>, LinkError> {
        Ok(self.ethernets(|_| true).await?.into_iter().find(|ethernet| ethernet.name == name))
    }

    /// Makes `gateway` the default route, through `ethernet`; if there is none, there is no default route through that. Takes
    /// away other ones through `ethernet` and the interfaces with the numbers `others`. Writes only what is not so yet; tells whether
    /// it did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_gateway(
        &self,
        ethernet: &Ethernet,
        gateway: Option<Ipv4Addr>,
        others: &[u32],
    ) -> Result<bool, LinkError> {
        let mut routes = self.default_routes(ethernet).await?;
        let right = |route: &RouteMessage| {
            gateway.is_some_and(|gateway| leaves_through(route, ethernet.index) && leads_to(route, gateway))
        };
        let mut changed = false;
        if let Some(gateway) = gateway
            && !routes.iter().any(right)
        {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
            let request = self.handle.route().add(route.output_interface(ethernet.index).build()).replace();
            request.execute().await.map_err(netlink("setting the default route", ethernet))?;
            changed = true;
            routes = self.default_routes(ethernet).await?;
        }
        let ours = |route: &RouteMessage| {
            leaves_through(route, ethernet.index) || others.iter().any(|index| leaves_through(route, *index))
        };
        for route in routes.into_iter().filter(|route| ours(route) && !right(route)) {
            let fail = netlink("removing a default route", ethernet);
            self.handle.route().del(route).execute().await.map_err(fail)?;
            changed = true;
        }
        Ok(changed)
    }

    /// The default routes of the table that all packets are routed by.
    async fn default_routes(&self, ethernet: &Ethernet) -> Result<Vec<RouteMessage>, LinkError> {
        let every = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(every).execute();
        let mut found = Vec::new();
        while let Some(route) = routes.try_next().await.map_err(netlink("listing routes", ethernet))? {
            if is_default(&route) {
                found.push(route);
            }
        }
        Ok(found)
    }
}

/// What the interface for a VLAN is called.
#[must_use]
pub fn vlan_name(number: u16) -> String {
    format!("vlan{number}")
}

fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// Whether it is this address, with this prefix and no end of its own.
fn is_for_ever(message: &AddressMessage, address: Ipv4Addr, prefix: u8) -> bool {
    let header = &message.header;
    local(message) == Some(address)
        && header.prefix_len == prefix
        && header.flags.contains(AddressHeaderFlags::Permanent)
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
}

/// Whether this is the way out that comes before others (metric 0), to this gateway.
fn leads_to(route: &RouteMessage, gateway: Ipv4Addr) -> bool {
    let later = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Priority(1..));
    route.attributes.contains(&RouteAttribute::Gateway(RouteAddress::Inet(gateway)))
        && !route.attributes.iter().any(later)
}

fn leaves_through(route: &RouteMessage, index: u32) -> bool {
    route.attributes.contains(&RouteAttribute::Oif(index))
}

/// Devices of the overlay, which are on no network of their own.
fn is_ours(name: &str) -> bool {
    let made = [TUNNEL_PREFIX, PORT_PREFIX].iter().any(|prefix| name.starts_with(prefix));
    made || name == BRIDGE || WIREGUARD.contains(&name)
}

fn is_errno(error: &rtnetlink::Error, errno: Errno) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code() == -(errno as i32),
        _ => false,
    }
}

fn netlink(what: &'static str, ethernet: &Ethernet) -> impl Fn(rtnetlink::Error) -> LinkError {
    let interface = ethernet.name.clone();
    move |source| LinkError::Netlink { what, interface: interface.clone(), source }
}
