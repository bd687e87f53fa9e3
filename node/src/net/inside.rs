//! A container's end: what is set up within its namespace. Everything may be done twice.
use super::route::{Existing, RouteSocket, RouteSpec};
use super::settings;
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use std::net::Ipv4Addr;
use wherry_net::address::{CONTAINER_INTERFACE, Overlay, Prefix, Prefix6, mac};
use wherry_net::nft::{NftError, NftSocket, Ruleset};
use wherry_protocol::NodeIndex;

/// What the inside of a container's namespace depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inside {
    /// The container's address.
    pub(crate) address: Ipv4Addr,
    /// The addresses of all containers.
    pub(crate) overlay: Overlay,
    /// The board, whose address on the bridge is the gateway.
    pub(crate) index: NodeIndex,
    /// Largest packet, in bytes.
    pub(crate) mtu: u32,
    /// Whether it has an IPv6 address.
    pub(crate) ipv6: bool,
    /// Largest packet to other containers, in bytes: they may be behind a tunnel.
    pub(crate) overlay_mtu: u32,
}

/// What can go wrong in there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InsideError {
    /// The rules.
    #[error(transparent)]
    Firewall(#[from] NftError),
    /// The interface.
    #[error("could not {what}: {errno}")]
    Interface {
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
}

fn doing(what: &'static str) -> impl Fn(Errno) -> InsideError {
    move |errno| InsideError::Interface { what, errno }
}

/// Before there is an interface: the rules, and what the kernel would otherwise do by itself. The socket goes on
/// speaking to the container's namespace, from any thread.
pub(crate) fn prepare(rules: &Ruleset) -> Result<NftSocket, InsideError> {
    let mut nft = NftSocket::open()?;
    nft.replace(rules)?;
    // Interfaces have the addresses that they are given; without this each makes itself one more, talks on its own and believes
    // routers.
    for (setting, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")] {
        let path = format!("ipv6/conf/default/{setting}");
        settings::write_if_there(&path, value).map_err(|_| doing("tame IPv6")(Errno::EACCES))?;
    }
    // The namespace is the container's alone, so its port numbers below 1024 need no privilege; Docker does the same.
    settings::write_if_there("ipv4/ip_unprivileged_port_start", "0")
        .map_err(|_| doing("open the low ports")(Errno::EACCES))?;
    let mut route = RouteSocket::open().map_err(doing("reach rtnetlink"))?;
    route.set_up("lo").map_err(doing("switch lo on"))?;
    Ok(nft)
}

/// Once `eth0` is there: address and routes. The address stands alone (/32) and everything goes through the board, so
/// containers of one board share no wire that one could pose as another on.
pub(crate) fn connect(inside: Inside) -> Result<(), InsideError> {
    let mut route = RouteSocket::open().map_err(doing("reach rtnetlink"))?;
    let eth0 = CONTAINER_INTERFACE;
    let address = Prefix::host(inside.address);
    let mtu = vec![LinkAttribute::Mtu(inside.mtu)];
    route.set_link(eth0, mtu).map_err(doing("set the MTU of eth0"))?;
    route.add_address(eth0, address, Existing::Replace).map_err(doing("set the address of eth0"))?;
    route.set_up(eth0).map_err(doing("switch eth0 on"))?;
    let gateway = inside.overlay.gateway(inside.index);
    let overlay = RouteSpec {
        destination: inside.overlay.network().into(),
        mtu: Some(inside.overlay_mtu),
        ..RouteSpec::default_through(gateway)
    };
    let routes = [RouteSpec::direct(Prefix::host(gateway)), RouteSpec::default_through(gateway), overlay];
    routes
        .into_iter()
        .try_for_each(|spec| route.add_route(eth0, spec, Existing::Replace))
        .map_err(doing("set the routes of eth0"))?;
    match inside.ipv6 {
        true => connect6(&mut route, inside).map_err(doing("set up IPv6 on eth0")),
        false => disconnect6(&mut route, inside).map_err(doing("take IPv6 from eth0")),
    }
}

/// Where packets have become too small for IPv6, an address would only make others try.
fn disconnect6(route: &mut RouteSocket, inside: Inside) -> Result<(), Errno> {
    let own = Prefix6::host(inside.overlay.address6(inside.address));
    match route.remove_address(CONTAINER_INTERFACE, own.into()) {
        // It had none, or the kernel has no IPv6 at all.
        Err(Errno::EADDRNOTAVAIL | Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Ok(()),
        other => other,
    }
}

/// The same for IPv6, but with a way to other containers only, and to the board, whose MAC address is known beforehand.
fn connect6(route: &mut RouteSocket, inside: Inside) -> Result<(), Errno> {
    let (eth0, overlay) = (CONTAINER_INTERFACE, inside.overlay);
    let gateway = overlay.gateway(inside.index);
    let gateway6 = overlay.address6(gateway);
    route.add_address(eth0, Prefix6::host(overlay.address6(inside.address)), Existing::Replace)?;
    route.set_neighbour(eth0, gateway6, mac(gateway))?;
    route.add_route(eth0, RouteSpec::direct(Prefix6::host(gateway6)), Existing::Replace)?;
    let others = RouteSpec {
        gateway: Some(gateway6.into()),
        mtu: Some(inside.overlay_mtu),
        ..RouteSpec::direct(overlay.network6())
    };
    route.add_route(eth0, others, Existing::Replace)
}
