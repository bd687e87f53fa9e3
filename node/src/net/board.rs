//! The state behind [`super::Network`]: what is wanted, which namespaces are held, and what was last told to the kernel.
//! Lives on one thread, which does all the talking with the kernel.
use super::apply::{Namespaces, apply, tunnel};
use super::error::NetError;
use super::inside::{Inside, connect, prepare};
use super::namespace::within;
use super::network::LocalContainer;
use super::observe::{mtu_of, observe};
use super::plan::{Desired, Facts, NetOp, desired, has_ipv6, plan, tunnel_mtu};
use super::route::RouteSocket;
use super::rules::{Difference, Rules};
use super::settings;
use super::underlay::{Underlay, Wish};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::stat::fstat;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wherry_net::address::{CONTAINER_INTERFACE, Overlay, Prefix, port_name, tunnel_name};
use wherry_net::firewall::{self, Ports, Published};
use wherry_net::nft::{Family, NftSocket, Ruleset};
use wherry_net::setup::Uplink;
use wherry_protocol::message::{Drops, Egress, NetworkDesired, PublishedPort, WireguardKeys};
use wherry_protocol::{ContainerId, NodeIndex};

/// Ethernet's, until the interface to the outside is known.
const DEFAULT_MTU: u32 = 1500;

/// A container whose namespace we hold.
#[derive(Debug)]
struct Attached {
    container: LocalContainer,
    namespace: OwnedFd,
    rules: Rules,
    /// What its `eth0` was last made.
    inside: Option<Inside>,
}

/// What the board's rules depend on besides what it was told.
struct BoardFacts {
    containers: BTreeMap<ContainerId, Ipv4Addr>,
    egress: BTreeMap<ContainerId, Vec<Egress>>,
    published: Vec<Published>,
    lan: Vec<Prefix>,
}

impl BoardFacts {
    fn of(board: &Board) -> Self {
        let attached = || board.attached.values().map(|attached| &attached.container);
        let all = board.listed.values().chain(attached());
        let egress = all.filter(|container| container.egress != [Egress::Internet]);
        Self {
            containers: board.addresses(),
            egress: egress.map(|container| (container.id, container.egress.clone())).collect(),
            // Of containers that are there, once each.
            published: attached().flat_map(published).collect(),
            lan: board.lan(),
        }
    }
}

/// One board's network.
#[derive(Debug)]
pub(super) struct Board {
    uplink: Option<Uplink>,
    index: Option<NodeIndex>,
    overlay: Overlay,
    wanted: NetworkDesired,
    /// Whether the kernel's state is a former life's, and not enough is known yet to say what it should be: then it stays
    /// as it is.
    adopted: bool,
    /// Whether the broker has said what it wants.
    told: bool,
    listed: BTreeMap<ContainerId, LocalContainer>,
    attached: BTreeMap<ContainerId, Attached>,
    route: RouteSocket,
    rules: Rules,
    /// `None` where there can be no tunnels: without WireGuard they would be open to read and to forge.
    underlay: Option<Underlay>,
    /// How making it what it should be went the last time.
    sealed: Result<(), Errno>,
    /// Whether the kernel has IPv6.
    ipv6: bool,
    /// Largest packet of the interface to the outside, in bytes.
    mtu: u32,
}

fn kernel(what: &'static str) -> impl Fn(Errno) -> NetError {
    move |errno| NetError::Kernel { what, errno }
}

impl Board {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetError> {
        let mut route = RouteSocket::open().map_err(kernel("reach rtnetlink"))?;
        let mut nft = NftSocket::open().map_err(NetError::Firewall)?;
        let adopted = nft.has_table(Family::Inet, firewall::TABLE).map_err(NetError::Firewall)?;
        let underlay = underlay(&mut route)?;
        let mut board = Self {
            uplink: None,
            index: None,
            overlay: Overlay::default(),
            wanted: NetworkDesired::default(),
            adopted,
            told: false,
            listed: BTreeMap::new(),
            attached: BTreeMap::new(),
            route,
            rules: Rules::of(nft),
            underlay,
            sealed: Ok(()),
            ipv6: settings::read("ipv6/conf/all/forwarding").is_some(),
            mtu: DEFAULT_MTU,
        };
        board.converge()?;
        Ok(board)
    }

    /// The board's WireGuard keys, if there can be tunnels.
    pub(super) fn keys(&self) -> Option<WireguardKeys> {
        self.underlay.as_ref().map(Underlay::keys)
    }

    /// A new key for one plane. It holds at once, or from the moment on that the devices may be touched.
    pub(super) fn rekey(&mut self, plane: u8) -> Result<Option<WireguardKeys>, NetError> {
        if let Some(underlay) = &mut self.underlay {
            underlay.rekey(plane);
        }
        self.converge()?;
        Ok(self.keys())
    }

    pub(super) fn set_plane(&mut self, plane: u8) -> Result<(), NetError> {
        if let Some(underlay) = &mut self.underlay {
            underlay.set_plane(plane);
        }
        self.converge()
    }

    pub(super) fn set_uplink(&mut self, uplink: Option<Uplink>) -> Result<(), NetError> {
        self.uplink = uplink;
        self.take_charge();
        self.converge()
    }

    pub(super) fn start(&mut self, index: NodeIndex, overlay: Overlay) -> Result<(), NetError> {
        (self.index, self.overlay) = (Some(index), overlay);
        self.converge()
    }

    pub(super) fn apply(
        &mut self,
        mut wanted: NetworkDesired,
        containers: &[LocalContainer],
    ) -> Result<(), NetError> {
        let index = self.index.ok_or(NetError::NotStarted)?;
        let (mut listed, mut taken) = (BTreeMap::new(), BTreeMap::new());
        for container in containers {
            self.check(index, container, &taken)?;
            taken.insert(container.id, container.address);
            listed.insert(container.id, container.clone());
        }
        wanted.connections.sort();
        let difference = self.difference(&wanted, &listed);
        (self.wanted, self.listed, self.told) = (wanted, listed, true);
        self.take_charge();
        match difference {
            Some(difference) => self.change(&difference)?,
            None => self.converge()?,
        }
        self.lan_apart()?;
        self.sealed()?;
        self.tunnels_missing()
    }

    /// How the connections differ from those that are there, if they are all that differs and little of them does.
    fn difference(
        &self,
        wanted: &NetworkDesired,
        listed: &BTreeMap<ContainerId, LocalContainer>,
    ) -> Option<Difference> {
        let now = &self.wanted;
        let same = (&now.peers, &now.callers, &self.listed) == (&wanted.peers, &wanted.callers, listed);
        if !same || !self.told || self.adopted {
            return None;
        }
        Difference::between(&now.connections, &wanted.connections)
    }

    /// What [`Self::converge`] does when only these connections went and came: it takes as long as there are of these, however
    /// many others there are.
    fn change(&mut self, difference: &Difference) -> Result<(), NetError> {
        let Difference { gone, new } = difference;
        let facts = BoardFacts::of(self);
        let changes = self.board_of(&facts).change(gone, new);
        if !self.rules.change(&changes).map_err(NetError::Firewall)? {
            return self.converge();
        }
        let ends: Vec<_> = self.attached.keys().filter(|id| difference.is_about(**id)).copied().collect();
        let lan = self.lan();
        let mut closed = Ok(());
        for id in ends {
            let Some(attached) = self.attached.get(&id) else { continue };
            let changes = self.with_container(&attached.container, &lan, |of| of.change(gone, new));
            let Some(attached) = self.attached.get_mut(&id) else { continue };
            let changed = match attached.rules.change(&changes) {
                Ok(true) => Ok(()),
                Ok(false) => self.rules_within(Some(id)),
                Err(source) => Err(NetError::ContainerFirewall { id, source }),
            };
            closed = closed.and(changed);
        }
        let Some(index) = self.index else { return closed };
        self.devices(index)?;
        closed.and(self.insides(index))
    }

    /// Puts right what has been changed by others, or could not be done before.
    pub(super) fn look_after(&mut self) -> Result<(), NetError> {
        self.converge()?;
        self.sealed()
    }

    fn sealed(&self) -> Result<(), NetError> {
        self.sealed.map_err(kernel("set up WireGuard"))
    }

    /// After a restart the broker may be there before the uplink is known again. Rules and tunnels without it would cut
    /// off what works, so the former life's stay until both are known.
    fn take_charge(&mut self) {
        self.adopted &= !self.told || self.uplink.is_none();
    }

    /// Said last, because everything else holds all the same.
    fn tunnels_missing(&self) -> Result<(), NetError> {
        match (self.wanted.peers.len(), self.underlay.is_some(), &self.uplink) {
            (peers, _, None) if self.adopted || peers > 0 => Err(NetError::NoUplink),
            (0, _, _) | (_, true, _) => Ok(()),
            (peers, false, _) => Err(NetError::NoTunnels { peers }),
        }
    }

    /// Containers could not be told apart from neighbours of the board.
    fn lan_apart(&self) -> Result<(), NetError> {
        let mut lan = self.lan().into_iter();
        lan.try_for_each(|lan| self.overlay.check_apart("the board's own network", lan))
            .map_err(NetError::Overlap)
    }

    fn check(
        &self,
        index: NodeIndex,
        container: &LocalContainer,
        others: &BTreeMap<ContainerId, Ipv4Addr>,
    ) -> Result<(), NetError> {
        let LocalContainer { id, address, .. } = *container;
        port_name(id).ok_or(NetError::Id(id))?;
        if !self.overlay.usable(index, address) {
            return Err(NetError::Address { id, address, index });
        }
        match others.iter().find(|(other, taken)| **other != id && **taken == address) {
            Some((other, _)) => Err(NetError::AddressInUse { id, address, other: *other }),
            None => Ok(()),
        }
    }

    /// All containers with their addresses, and whether their namespaces are at hand.
    fn containers(&self) -> BTreeMap<ContainerId, (Ipv4Addr, bool)> {
        let listed = self.listed.iter().map(|(id, listed)| (*id, (listed.address, false)));
        let attached = self.attached.iter().map(|(id, attached)| (*id, (attached.container.address, true)));
        listed.chain(attached).collect()
    }

    fn addresses(&self) -> BTreeMap<ContainerId, Ipv4Addr> {
        self.containers().into_iter().map(|(id, (address, _))| (id, address)).collect()
    }

    /// Makes the kernel's state what is wanted. The rules come first: what is closed stays closed whatever fails later.
    pub(super) fn converge(&mut self) -> Result<(), NetError> {
        let mut closed = Ok(());
        if !self.adopted {
            self.rules.ensure(self.board_rules()).map_err(NetError::Firewall)?;
            // A container that cannot be told does not keep the others from their network.
            closed = self.rules_within(None);
        }
        let Some(index) = self.index else { return closed };
        self.devices(index)?;
        closed.and(self.insides(index))
    }

    /// The containers' ends. They change only when the network to the outside takes larger or smaller packets.
    fn insides(&mut self, index: NodeIndex) -> Result<(), NetError> {
        let (mtu, overlay_mtu, overlay) = (self.mtu, tunnel_mtu(self.mtu), self.overlay);
        let ipv6 = has_ipv6(self.ipv6, self.mtu);
        let mut result = Ok(());
        for (id, attached) in &mut self.attached {
            let address = attached.container.address;
            let wanted = Inside { address, overlay, index, mtu, ipv6, overlay_mtu };
            if attached.inside != Some(wanted) {
                let made = inside(*id, &attached.namespace, || connect(wanted));
                let made = made.and_then(|made| made.map_err(|source| NetError::Inside { id: *id, source }));
                attached.inside = made.is_ok().then_some(wanted);
                result = result.and(made);
            }
        }
        result
    }

    fn board_rules(&self) -> Ruleset {
        let facts = BoardFacts::of(self);
        firewall::board(&self.board_of(&facts))
    }

    fn board_of<'a>(&'a self, facts: &'a BoardFacts) -> firewall::Board<'a> {
        firewall::Board {
            ports: Ports::Node,
            published: &facts.published,
            uplink: self.uplink.as_ref().map(|uplink| uplink.interface.as_str()),
            lan: &facts.lan,
            overlay: self.overlay,
            index: self.index,
            peers: &self.wanted.peers,
            connections: &self.wanted.connections,
            callers: &self.wanted.callers,
            containers: &facts.containers,
            egress: &facts.egress,
        }
    }

    fn lan(&self) -> Vec<Prefix> {
        self.uplink.iter().map(|uplink| Prefix::new(uplink.lease.address, uplink.lease.prefix)).collect()
    }

    fn rules_of(&self, container: &LocalContainer) -> Ruleset {
        self.with_container(container, &self.lan(), firewall::container)
    }

    fn with_container<T>(
        &self,
        container: &LocalContainer,
        lan: &[Prefix],
        work: impl FnOnce(&firewall::Container<'_>) -> T,
    ) -> T {
        let port = |port: &PublishedPort| (port.transport, port.container_port, port.allow.clone());
        let inside: Vec<_> = container.published.iter().map(port).collect();
        let resolver: Vec<Ipv4Addr> =
            self.index.map(|index| self.overlay.gateway(index)).into_iter().collect();
        work(&firewall::Container {
            id: container.id,
            address: container.address,
            connections: &self.wanted.connections,
            callers: &self.wanted.callers,
            overlay: self.overlay,
            resolvers: &resolver,
            lan,
            egress: &container.egress,
            published: &inside,
        })
    }

    /// The rules of one container, or of all.
    fn rules_within(&mut self, only: Option<ContainerId>) -> Result<(), NetError> {
        let wanted: Vec<_> = self
            .attached
            .iter()
            .filter(|(id, _)| only.is_none_or(|only| only == **id))
            .map(|(id, attached)| (*id, self.rules_of(&attached.container)))
            .collect();
        let mut result = Ok(());
        for (id, wanted) in wanted {
            let Some(attached) = self.attached.get_mut(&id) else { continue };
            // One container's trouble must not leave another one open.
            let told = attached.rules.ensure(wanted);
            result = result.and(told.map_err(|source| NetError::ContainerFirewall { id, source }));
        }
        result
    }

    fn desired(&self, index: NodeIndex) -> Desired {
        let with_keys = self.wanted.peers.iter().filter(|peer| peer.wireguard.is_some());
        let peers = with_keys.map(|peer| peer.index).collect();
        let possible = self.uplink.is_some() && self.underlay.is_some();
        desired(&Facts {
            index,
            overlay: self.overlay,
            mtu: self.mtu,
            ipv6: self.ipv6,
            tunnels: possible,
            containers: &self.containers(),
            peers: &peers,
        })
    }

    fn devices(&mut self, index: NodeIndex) -> Result<(), NetError> {
        let links = self.route.links().map_err(kernel("read devices"))?;
        let uplink = self.uplink.as_ref().and_then(|uplink| mtu_of(&links, &uplink.interface));
        self.mtu = uplink.unwrap_or(self.mtu);
        // Below the tunnels, so before them. A former life's stays until it is known what it should be.
        self.sealed = Ok(());
        if let Some(underlay) = self.underlay.as_mut().filter(|_| !self.adopted && self.uplink.is_some()) {
            let wish = Wish { index, overlay: self.overlay, uplink: self.mtu, peers: &self.wanted.peers };
            // Containers of this board reach each other without it.
            self.sealed = underlay.ensure(&mut self.route, &links, wish);
        }
        let mut desired = self.desired(index);
        let observed =
            observe(&mut self.route, &links, &desired).map_err(kernel("read addresses and routes"))?;
        if self.adopted {
            let unknown = observed.links.keys().filter(|name| !desired.links.contains_key(*name));
            desired.keep.extend(unknown.cloned().collect::<Vec<_>>());
        }
        let steps = plan(&desired, &observed);
        self.forget_insides(&steps);
        let namespaces: Namespaces<'_> = self
            .attached
            .iter()
            .filter_map(|(id, attached)| Some((port_name(*id)?, attached.namespace.as_fd())))
            .collect();
        apply(&mut self.route, &namespaces, steps).map_err(NetError::Apply)
    }

    /// A new pair's other end knows nothing yet.
    fn forget_insides(&mut self, steps: &[NetOp]) {
        for step in steps {
            let NetOp::CreateLink { name, .. } = step else { continue };
            let mine = |(id, _): &(&ContainerId, &mut Attached)| port_name(**id).as_ref() == Some(name);
            if let Some((_, attached)) = self.attached.iter_mut().find(mine) {
                attached.inside = None;
            }
        }
    }

    /// Connects a container's namespace. A container that already is (after a restart of the service) is not touched.
    pub(super) fn attach(
        &mut self,
        container: LocalContainer,
        process: BorrowedFd<'_>,
    ) -> Result<(), NetError> {
        let index = self.index.ok_or(NetError::NotStarted)?;
        self.check(index, &container, &self.addresses())?;
        let id = container.id;
        let (namespace, connected) = look_into(id, process)?;
        if self.is_attached(&container, &namespace) {
            return Ok(());
        }
        let rules = match connected {
            true => Rules::of(inside(id, &namespace, NftSocket::open)?.map_err(NetError::Firewall)?),
            false => self.prepare(&container, &namespace)?,
        };
        self.attached.insert(id, Attached { container, namespace, rules, inside: None });
        self.settle(id, index).inspect_err(|_| self.forget(id))
    }

    /// What the arrival of a container changes; the others' rules do not.
    fn settle(&mut self, id: ContainerId, index: NodeIndex) -> Result<(), NetError> {
        if !self.adopted {
            self.rules.ensure(self.board_rules()).map_err(NetError::Firewall)?;
            self.rules_within(Some(id))?;
        }
        self.devices(index)?;
        self.insides(index)
    }

    fn is_attached(&self, container: &LocalContainer, namespace: &OwnedFd) -> bool {
        self.attached.get(&container.id).is_some_and(|attached| {
            attached.container == *container && same_file(&attached.namespace, namespace)
        })
    }

    fn prepare(&mut self, container: &LocalContainer, namespace: &OwnedFd) -> Result<Rules, NetError> {
        let id = container.id;
        let port = port_name(id).ok_or(NetError::Id(id))?;
        // A former life's end of the pair, if its namespace has not gone yet.
        match self.route.delete_link(&port) {
            Ok(()) | Err(Errno::ENODEV) => {}
            Err(errno) => return Err(kernel("remove a former life's port")(errno)),
        }
        let rules = self.rules_of(container);
        let nft =
            inside(id, namespace, || prepare(&rules))?.map_err(|source| NetError::Inside { id, source })?;
        Rules::told(nft, rules).map_err(|source| NetError::ContainerFirewall { id, source })
    }

    /// After a failed attach: the error being reported is the first one, what this leaves is found by the next look.
    fn forget(&mut self, id: ContainerId) {
        if let Err(error) = self.detach(id) {
            tracing::warn!(%id, %error, "after a failed attach");
        }
    }

    pub(super) fn detach(&mut self, id: ContainerId) -> Result<(), NetError> {
        self.attached.remove(&id);
        self.listed.remove(&id);
        if self.adopted {
            // Nothing else may be touched yet.
            let port = port_name(id).ok_or(NetError::Id(id))?;
            return match self.route.delete_link(&port) {
                Ok(()) | Err(Errno::ENODEV) => Ok(()),
                Err(errno) => Err(kernel("remove the container's port")(errno)),
            };
        }
        self.converge()
    }

    /// Packets that the board's own rules dropped so far.
    pub(super) fn drops(&mut self) -> Result<Drops, NetError> {
        self.rules.drops().map_err(NetError::Firewall)
    }

    /// Packets that a container's rules dropped so far, if it is attached.
    pub(super) fn drops_of(&mut self, id: ContainerId) -> Result<Option<Drops>, NetError> {
        let Some(attached) = self.attached.get_mut(&id) else { return Ok(None) };
        let drops = attached.rules.drops();
        drops.map(Some).map_err(|source| NetError::ContainerFirewall { id, source })
    }

    /// Address and namespace of an attached container.
    pub(super) fn place(&self, id: ContainerId) -> Result<(Ipv4Addr, OwnedFd), NetError> {
        let attached = self.attached.get(&id).ok_or(NetError::Unknown(id))?;
        let namespace = attached.namespace.try_clone();
        let namespace = namespace.map_err(|_| kernel("duplicate a namespace's descriptor")(Errno::EMFILE))?;
        Ok((attached.container.address, namespace))
    }
}

fn published(container: &LocalContainer) -> impl Iterator<Item = Published> {
    container.published.iter().map(|port| Published {
        transport: port.transport,
        port: port.port,
        allow: port.allow.clone(),
        to: Some((container.address, port.container_port)),
    })
}

fn inside<T: Send>(
    id: ContainerId,
    namespace: &OwnedFd,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetError> {
    within(namespace.as_fd(), work).map_err(|errno| NetError::Namespace { id, errno })
}

/// The namespace itself, for a pidfd would stop leading to it when the process ends; and whether it has its `eth0` already.
fn look_into(id: ContainerId, process: BorrowedFd<'_>) -> Result<(OwnedFd, bool), NetError> {
    let open = || {
        let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
        std::io::Result::Ok((OwnedFd::from(namespace), if_nametoindex(CONTAINER_INTERFACE).is_ok()))
    };
    let opened = within(process, open).map_err(|errno| NetError::Namespace { id, errno })?;
    opened.map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        NetError::Namespace { id, errno }
    })
}

/// Two descriptors of one namespace have the same inode (namespaces(7)).
fn same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// What tunnels need below them, if the kernel has that and GRE.
fn underlay(route: &mut RouteSocket) -> Result<Option<Underlay>, NetError> {
    if !can_tunnel(route) {
        return Ok(None);
    }
    match Underlay::open() {
        Ok(underlay) => Ok(Some(underlay)),
        Err(Errno::ENOENT) => {
            tracing::warn!("this kernel has no WireGuard: there are no tunnels to other boards");
            Ok(None)
        }
        Err(errno) => Err(kernel("read the WireGuard device")(errno)),
    }
}

/// Whether the kernel has GRE, found out by making a tunnel that leads nowhere. Its name is one of ours, so one that
/// stays behind is removed with the first plan.
fn can_tunnel(route: &mut RouteSocket) -> bool {
    let name = tunnel_name(NodeIndex(255));
    let nowhere = Ipv4Addr::LOCALHOST;
    match route.create_link(&name, tunnel(nowhere, nowhere), vec![]) {
        Ok(()) => route.delete_link(&name).is_ok(),
        Err(errno) => errno == Errno::EEXIST,
    }
}
