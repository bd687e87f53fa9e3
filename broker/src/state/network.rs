//! Allowed connections, and what follows from them for each board.
use super::ask::Now;
use super::bounds::{MAX_NETWORK_BYTES, NETWORK_MS, NETWORK_RETRY_MS};
use super::containers::Asker;
use super::waiting::{Goal, Waiter, still_open};
use super::{Broker, Timer, error, not_found};
use crate::record::{Link, Phase};
use std::collections::{BTreeMap, BTreeSet};
use wherry_protocol::message::{
    Called, ConnectRequest, ConnectionInfo, NetworkDesired, Party, Peer, Reply, ToNode,
};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, NodeIndex, WireError};

impl Broker {
    pub(super) fn connect(&mut self, asker: &Asker, wanted: &ConnectRequest) -> Now {
        if Self::is_rule(wanted) {
            return self.add_rule(asker, wanted);
        }
        let link = self.link(asker, wanted)?;
        let boards = self.boards(&link);
        for board in &boards {
            self.board_session(*board)?;
        }
        self.check_overlay(&boards)?;
        let undo = if self.tables.has_single_link(&link) { None } else { Some(link) };
        if undo.is_some() {
            self.tables.insert_link(link);
            if let Some(full) = boards.iter().find(|board| self.network_is_full(**board)) {
                let text =
                    format!("{} has as many connections as a board may: close some", self.node_name(*full));
                self.take_back_link(&link);
                return Err(error(ErrorCode::NoCapacity, text));
            }
            self.refresh(&boards);
        }
        self.until_applied(asker, &boards, Goal::Connect { undo })
    }

    pub(super) fn disconnect(&mut self, asker: &Asker, wanted: &ConnectRequest) -> Now {
        if Self::is_rule(wanted) {
            return self.remove_rule(asker, wanted);
        }
        let link = self.link(asker, wanted)?;
        if !self.tables.has_link(&link) {
            let text = format!("there is no such connection from {} to {}:{}", link.from, link.to, link.port);
            return Err(error(ErrorCode::NotFound, text));
        }
        if let Some(rule) = self.rule_for(&link) {
            let text = format!(
                "it follows from the rule {} {}:{}: take that back",
                self.member_text(&rule.from),
                self.member_text(&rule.to),
                rule.port
            );
            return Err(error(ErrorCode::WrongState, text));
        }
        let boards = self.boards(&link);
        self.unlink(&link);
        let here = self.connected_among(&boards);
        match (boards.first(), here.is_empty()) {
            (Some(away), true) => Err(still_open(&self.node_name(*away))),
            (Some(_) | None, _) => self.until_applied(asker, &here, Goal::Disconnect { closed: false }),
        }
    }

    fn link(&self, asker: &Asker, wanted: &ConnectRequest) -> Result<Link, WireError> {
        let (from, to) = (self.single(asker, &wanted.from)?, self.single(asker, &wanted.to)?);
        if from == to {
            return Err(error(
                ErrorCode::Invalid,
                "a container reaches itself without a connection: name two",
            ));
        }
        if wanted.port == 0 {
            return Err(error(ErrorCode::Invalid, "a port is 1 to 65535, not 0"));
        }
        Ok(Link { from, to, port: wanted.port, transport: wanted.transport })
    }

    fn single(&self, asker: &Asker, party: &Party) -> Result<ContainerId, WireError> {
        match party {
            Party::Container(selector) => self.find(asker, selector).map(|(id, _)| id),
            Party::Labelled { .. } => Err(error(ErrorCode::Invalid, "a label is no single container")),
        }
    }

    fn boards(&self, link: &Link) -> BTreeSet<NodeIndex> {
        [link.from, link.to].iter().filter_map(|id| self.tables.container(*id).map(|c| c.node)).collect()
    }

    fn check_overlay(&self, boards: &BTreeSet<NodeIndex>) -> Result<(), WireError> {
        if boards.len() < 2 {
            return Ok(());
        }
        match boards.iter().find(|board| self.outer_end(**board).is_none()) {
            Some(board) => {
                let name = self.node_name(*board);
                let text = format!(
                    "the kernel of {name} has no GRE or no WireGuard, its containers reach only one another: run both on one node"
                );
                Err(error(ErrorCode::WrongState, text))
            }
            None => Ok(()),
        }
    }

    pub(super) fn until_applied(&mut self, asker: &Asker, boards: &BTreeSet<NodeIndex>, goal: Goal) -> Now {
        let pending: BTreeMap<NodeIndex, u64> = boards
            .iter()
            .map(|board| (*board, self.revision(*board)))
            .filter(|(board, revision)| !self.has_applied(*board, *revision))
            .collect();
        if pending.is_empty() {
            return Ok(Some(Reply::Done));
        }
        self.wait_for(asker.request, Waiter::Network { pending, goal }, Some(NETWORK_MS));
        Ok(None)
    }

    fn revision(&self, board: NodeIndex) -> u64 {
        self.tables.nodes.get(&board).map_or(0, |node| node.revision)
    }

    /// A board that does not exist any more has no rules.
    pub(super) fn has_applied(&self, board: NodeIndex, revision: u64) -> bool {
        !self.tables.nodes.contains(&board)
            || self.applied.get(&board).is_some_and(|applied| *applied >= revision)
    }

    /// The outer end of a board's tunnels, if it can have any.
    fn outer_end(&self, board: NodeIndex) -> Option<Peer> {
        let facts = self.tables.nodes.get(&board)?.facts.as_ref()?;
        let wireguard = Some(facts.wireguard?);
        facts.overlay.then_some(Peer { index: board, underlay: facts.underlay, wireguard })
    }

    /// A board's network as it should be: its connections, and a peer for each board they lead to.
    pub(super) fn network_of(&self, board: NodeIndex) -> NetworkDesired {
        let links: BTreeSet<_> =
            self.tables.containers_on(board).flat_map(|(id, _)| self.tables.links_of(id)).collect();
        let mut network = NetworkDesired { revision: self.revision(board), ..NetworkDesired::default() };
        let mut peers = BTreeSet::new();
        for link in links {
            let ends = (self.tables.container(link.from), self.tables.container(link.to));
            if let (Some(from), Some(to)) = ends {
                network.connections.push(link.with_addresses(from.address, to.address));
                peers.extend([from.node, to.node]);
            }
        }
        network.names = self.names_for(board, &network);
        network.callers = self.callers_on(board);
        peers.remove(&board);
        if self.outer_end(board).is_some() {
            network.peers = peers.into_iter().filter_map(|peer| self.outer_end(peer)).collect();
        }
        network
    }

    /// What those are called that containers of `board` may connect to.
    fn names_for(&self, board: NodeIndex, network: &NetworkDesired) -> Vec<Called> {
        let here = |id: &ContainerId| self.tables.container(*id).is_some_and(|c| c.node == board);
        let targets: BTreeSet<ContainerId> = network
            .connections
            .iter()
            .filter(|connection| here(&connection.from))
            .map(|connection| connection.to)
            .collect();
        targets.into_iter().filter_map(|id| self.called(id)).collect()
    }

    fn called(&self, id: ContainerId) -> Option<Called> {
        let container = self.tables.container(id)?;
        let account = self.tables.accounts.get(&container.account)?.label.clone();
        let service = container.spec.service();
        Some(Called { container: id, name: container.name.clone(), account, service })
    }

    fn network_is_full(&self, board: NodeIndex) -> bool {
        let size = postcard::experimental::serialized_size(&self.network_of(board));
        size.is_ok_and(|bytes| bytes > MAX_NETWORK_BYTES)
    }

    /// Computes these boards' networks anew and tells those for which something has changed.
    pub(super) fn refresh(&mut self, boards: &BTreeSet<NodeIndex>) {
        for board in boards {
            let mut network = self.network_of(*board);
            if self.networks.get(board).is_some_and(|old| *old == network) {
                continue;
            }
            if let Some(node) = self.tables.nodes.edit(board) {
                node.revision = node.revision.saturating_add(1);
                network.revision = node.revision;
                self.networks.insert(*board, network.clone());
                self.tell_node(*board, ToNode::Network(network));
            }
        }
    }

    /// A container's name has changed: boards tell it to those that may connect to it.
    pub(super) fn refresh_names(&mut self, id: ContainerId) {
        let boards: BTreeSet<NodeIndex> = self
            .tables
            .links_of(id)
            .filter(|link| link.to == id)
            .flat_map(|link| self.boards(link))
            .collect();
        self.refresh(&boards);
    }

    /// Every board that has connections: the outer end of one of them may have moved.
    pub(super) fn refresh_all(&mut self) {
        let boards: BTreeSet<NodeIndex> = self.tables.links().flat_map(|link| self.boards(link)).collect();
        self.refresh(&boards);
    }

    pub(super) fn unlink(&mut self, link: &Link) {
        self.unlink_all(&[*link]);
    }

    /// Takes back what one request allowed; what follows from a rule stays.
    pub(super) fn take_back_link(&mut self, link: &Link) {
        match self.rule_for(link).is_some() {
            true => self.tables.keep_standing(link),
            false => self.unlink(link),
        }
    }

    /// Takes links away that followed from rules only.
    pub(super) fn unlink_standing(&mut self, links: &[Link]) {
        let gone: Vec<Link> =
            links.iter().copied().filter(|link| self.tables.remove_standing(link)).collect();
        self.withdraw(&gone);
    }

    /// Cuts all connections of a container.
    pub(super) fn cut_links(&mut self, id: ContainerId) {
        let links: Vec<Link> = self.tables.links_of(id).copied().collect();
        self.unlink_all(&links);
    }

    /// Takes connections away, and notes for both ends which boards may still let their addresses through.
    fn unlink_all(&mut self, links: &[Link]) {
        let gone: Vec<Link> = links.iter().copied().filter(|link| self.tables.remove_link(link)).collect();
        self.withdraw(&gone);
    }

    fn withdraw(&mut self, gone: &[Link]) {
        let boards: BTreeSet<NodeIndex> = gone.iter().flat_map(|link| self.boards(link)).collect();
        self.refresh(&boards);
        for link in gone {
            let revisions: Vec<(NodeIndex, u64)> =
                self.boards(link).into_iter().map(|board| (board, self.revision(board))).collect();
            for end in [link.from, link.to] {
                self.expose(end, &revisions);
            }
        }
    }

    fn expose(&mut self, id: ContainerId, revisions: &[(NodeIndex, u64)]) {
        let Some(container) = self.tables.container(id) else { return };
        let mut exposed = container.exposed.clone();
        exposed.retain(|board, revision| !self.has_applied(*board, *revision));
        exposed.extend(revisions.iter().copied());
        if let Some(container) = self.tables.edit_container(id) {
            container.exposed = exposed;
        }
    }

    pub(super) fn network_report(&mut self, board: NodeIndex, revision: u64, failure: Option<&str>) {
        if revision > self.revision(board) {
            return;
        }
        match failure {
            None => {
                let applied = self.applied.entry(board).or_default();
                *applied = revision.max(*applied);
            }
            Some(_) => self.set_timer(self.after(NETWORK_RETRY_MS), Timer::Network(board)),
        }
        self.waiters_network(board, revision, failure);
        let held: Vec<ContainerId> = self
            .tables
            .containers()
            .filter(|(_, c)| match &c.phase {
                Phase::Removing { confirmed: true } => c.exposed.contains_key(&board),
                Phase::Removing { confirmed: false } | Phase::Wanted | Phase::Stopping { .. } => false,
            })
            .map(|(id, _)| id)
            .collect();
        for id in held {
            self.finish_removal(id);
        }
    }

    /// A board could not apply its network a while ago: once more, unless it has done so since.
    pub(super) fn network_due(&mut self, board: NodeIndex) {
        if !self.has_applied(board, self.revision(board))
            && let Some(network) = self.networks.get(&board).cloned()
        {
            self.tell_node(board, ToNode::Network(network));
        }
    }

    pub(super) fn connections(&self, account: AccountId) -> Reply {
        let links: BTreeSet<&Link> = self.tables.links().collect();
        let infos = links.into_iter().filter_map(|link| {
            let from = self.tables.container(link.from)?;
            let to = self.tables.container(link.to)?;
            (from.account == account).then(|| ConnectionInfo {
                from: link.from,
                from_name: from.name.clone(),
                to: link.to,
                to_name: to.name.clone(),
                port: link.port,
                transport: link.transport,
            })
        });
        Reply::Connections { connections: infos.collect(), rules: self.rules(account) }
    }

    pub(super) fn node_name(&self, board: NodeIndex) -> String {
        self.tables.nodes.get(&board).map_or_else(|| board.to_string(), |node| node.name.to_string())
    }

    pub(super) fn unreachable(&self, board: NodeIndex) -> WireError {
        let text = format!(
            "{} is not connected: look with `wherry resources`, and try again",
            self.node_name(board)
        );
        error(ErrorCode::NodeUnreachable, text)
    }

    /// The session of a connected board.
    pub(super) fn board_session(&self, board: NodeIndex) -> Result<super::SessionId, WireError> {
        if !self.tables.nodes.contains(&board) {
            return Err(not_found("node", board, "list them with `wherry resources`"));
        }
        self.connected.get(&board).map(|node| node.session).ok_or_else(|| self.unreachable(board))
    }
}
