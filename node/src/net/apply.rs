//! Takes the steps of a plan, one after the other; on failure it takes the ones done back, in reverse.
use super::plan::{Kind, Link, NetOp, Route};
use super::route::{Existing, RouteSocket, RouteSpec};
use super::settings;
use netlink_packet_route::link::{
    BridgeBooleanOptionFlags, BridgeBooleanOptions, InfoBridge, InfoBridgePort, InfoData, InfoGre, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use wherry_net::address::{BRIDGE, CONTAINER_INTERFACE, mac};

/// Network namespaces of containers, by the name of the board's end of their veth pair.
pub(crate) type Namespaces<'a> = BTreeMap<String, BorrowedFd<'a>>;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    /// Which.
    pub step: NetOp,
    /// Why.
    pub errno: Errno,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.step, self.errno)
    }
}

impl std::error::Error for StepError {}

/// A plan that failed, with what went wrong while taking it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyError {
    /// The step that failed.
    pub failed: StepError,
    /// Steps that could not be taken back; the next look at the kernel finds them.
    pub undo: Vec<StepError>,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failed)?;
        self.undo.iter().try_for_each(|error| write!(f, "; then {error}"))
    }
}

impl std::error::Error for ApplyError {}

/// Takes `steps` in order.
pub(crate) fn apply(
    route: &mut RouteSocket,
    namespaces: &Namespaces<'_>,
    steps: Vec<NetOp>,
) -> Result<(), ApplyError> {
    let mut done = Vec::new();
    for step in steps {
        tracing::debug!(%step, "network");
        if let Err(errno) = take(route, namespaces, &step) {
            return Err(ApplyError {
                failed: StepError { step, errno },
                undo: undo(route, namespaces, &done),
            });
        }
        done.push(step);
    }
    Ok(())
}

fn undo(route: &mut RouteSocket, namespaces: &Namespaces<'_>, done: &[NetOp]) -> Vec<StepError> {
    let back = done.iter().rev().filter_map(NetOp::undo);
    let failed = back.filter_map(|step| {
        let errno = take(route, namespaces, &step).err()?;
        Some(StepError { step, errno })
    });
    failed.collect()
}

fn take(route: &mut RouteSocket, namespaces: &Namespaces<'_>, step: &NetOp) -> Result<(), Errno> {
    match step {
        NetOp::CreateLink { name, link } => create(route, namespaces, name, *link),
        NetOp::DeleteLink { name } => gone(route.delete_link(name)),
        NetOp::SetMtu { name, to, .. } => route.set_link(name, vec![LinkAttribute::Mtu(*to)]),
        NetOp::SetMac { name, mac } => route.set_link(name, vec![LinkAttribute::Address(mac.to_vec())]),
        NetOp::AttachPort { name } => attach_port(route, name),
        NetOp::SetUp { name } => route.set_up(name),
        NetOp::AddAddress(address) => route.add_address(BRIDGE, *address, Existing::Refuse),
        NetOp::RemoveAddress(address) => route.remove_address(BRIDGE, *address),
        NetOp::AddRoute(wanted) => route.add_route(&wanted.link, spec(wanted), Existing::Replace),
        NetOp::RemoveRoute(wrong) => gone(route.remove_route(&wrong.link, spec(wrong))),
        NetOp::SetNeighbour { address, mac } => route.set_neighbour(BRIDGE, *address, *mac),
        NetOp::RemoveNeighbour { address } => gone(route.remove_neighbour(BRIDGE, *address)),
        NetOp::Set { setting, .. } => settings::write(&setting.path, setting.value).map_err(errno),
    }
}

/// What is to be removed may be gone already: a container's end of the pair goes with its namespace.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::ENODEV | Errno::ESRCH | Errno::ENXIO | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn spec(route: &Route) -> RouteSpec {
    RouteSpec { source: route.source, ..RouteSpec::direct(route.destination) }
}

fn create(route: &mut RouteSocket, namespaces: &Namespaces<'_>, name: &str, link: Link) -> Result<(), Errno> {
    let mtu = LinkAttribute::Mtu(link.mtu);
    match link.kind {
        Kind::Bridge => route.create_link(name, bridge(), vec![mtu]),
        Kind::Port { container } => {
            let namespace = namespaces.get(name).ok_or(Errno::ENOENT)?;
            route.create_link(name, pair(*namespace, container, link.mtu), vec![mtu])
        }
        Kind::Tunnel { local, remote } => route.create_link(name, tunnel(local, remote), vec![mtu]),
    }
}

/// A bridge that learns nothing from frames for bridges themselves (IEEE 802.1D, 01:80:c2:00:00:0X): the rules do not see them,
/// and whose address they show could be anybody's.
fn bridge() -> Vec<LinkInfo> {
    let flag = BridgeBooleanOptionFlags::NoLinkLocalLearn;
    let options = InfoBridge::MultiBoolOpt(BridgeBooleanOptions { value: flag, mask: flag });
    vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(vec![options]))]
}

/// A veth pair whose other end appears as `eth0` in the container's namespace at once, switched off.
fn pair(namespace: BorrowedFd<'_>, container: Ipv4Addr, mtu: u32) -> Vec<LinkInfo> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(CONTAINER_INTERFACE.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        LinkAttribute::Address(mac(container).to_vec()),
        LinkAttribute::Mtu(mtu),
    ];
    vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]
}

/// Hops a packet may take between two boards: Linux's default for IP. Zero would mean "as the inner packet's", and then
/// traceroute in a container could count the hops of the board's network.
const TUNNEL_TTL: u8 = 64;

/// GRE without key, checksum or sequence numbers. With path MTU discovery on, a smaller MTU on the way between two
/// boards reaches the containers as "fragmentation needed".
pub(super) fn tunnel(local: Ipv4Addr, remote: Ipv4Addr) -> Vec<LinkInfo> {
    let data = vec![
        InfoGre::Local(local),
        InfoGre::Remote(remote),
        InfoGre::Ttl(TUNNEL_TTL),
        InfoGre::PathMTUDiscovery(true),
    ];
    vec![LinkInfo::Kind(InfoKind::GreTun), LinkInfo::Data(InfoData::GreTun(data))]
}

/// The kernel takes settings of a port only once it is one.
fn attach_port(route: &mut RouteSocket, name: &str) -> Result<(), Errno> {
    route.set_link(name, vec![LinkAttribute::Controller(if_nametoindex(BRIDGE)?)])?;
    let isolated = vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
    ];
    route.set_link(name, vec![LinkAttribute::LinkInfo(isolated)])
}
