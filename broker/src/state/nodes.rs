//! Boards: their sessions, what they report, and what they are sent when they come.
use super::bounds::{MAX_FACT_BYTES, NODE_SILENCE_MS};
use super::{Answer, Broker, Output, RequestId, SessionId, Timer, error};
use crate::record::{Container, Phase};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use wherry_protocol::message::{
    ContainerReport, ContainerState, Event, ExitStatus, FromNode, NodeDesired, NodeFacts, NodeHello,
    NodeLoad, Routed, RoutedRequest, ToNode, WireguardKeys,
};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, Generation, NodeIndex, WireError};

/// What the broker knows of a board while it is connected.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    pub(super) session: SessionId,
    pub(super) load: NodeLoad,
    /// When it last said anything, monotonic milliseconds.
    heard_ms: u64,
    /// Memory promised to containers that were placed since its last load report and have not ended, in bytes.
    pub(super) promises: BTreeMap<ContainerId, u64>,
}

impl Connected {
    pub(super) fn promised_bytes(&self) -> u64 {
        self.promises.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// How far a container has come between two starts; within one generation it only ever goes forward.
fn progress(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Pending => 0,
        ContainerState::Preparing => 1,
        ContainerState::Running { .. } => 2,
        ContainerState::Restarting { .. } => 3,
        ContainerState::Exited { .. } | ContainerState::Failed(_) => 4,
    }
}

/// What other boards' tunnels to a board depend on.
fn outer_end(facts: &NodeFacts) -> (Ipv4Addr, bool, Option<WireguardKeys>) {
    (facts.underlay, facts.overlay, facts.wireguard)
}

impl Broker {
    /// Which board a session is.
    pub(super) fn board_of(&self, session: SessionId) -> Result<NodeIndex, WireError> {
        let account = self.session_of(session)?.account;
        self.tables
            .accounts
            .get(&account)
            .and_then(|account| account.node)
            .ok_or_else(|| error(ErrorCode::Forbidden, "only a board may do this"))
    }

    pub(super) fn hello(&mut self, session: SessionId, hello: NodeHello) {
        let Ok(index) = self.board_of(session) else {
            return self.out.push(Output::Close(session));
        };
        if let Some(old) = self.connected.get(&index).map(|old| old.session).filter(|old| *old != session) {
            // The same key again: its earlier connection is a dead one that TCP has not given up yet.
            self.close(old);
            self.out.push(Output::Close(old));
        }
        let (heard_ms, load) = (self.now.mono_ms, hello.load);
        self.connected.insert(index, Connected { session, load, heard_ms, promises: BTreeMap::new() });
        self.set_timer(self.after(NODE_SILENCE_MS), Timer::Silence(index));
        let rebooted = self.take_facts(index, hello.facts);
        self.take_inventory(index, hello.inventory, rebooted);
        self.send_sync(index);
        self.event(None, Event::Node { index, connected: true });
    }

    /// Notes what the board is; whether it has booted since it was last here.
    fn take_facts(&mut self, index: NodeIndex, mut facts: NodeFacts) -> bool {
        for text in [&mut facts.hostname, &mut facts.architecture, &mut facts.kernel, &mut facts.software] {
            let clean = text.chars().filter(|c| !c.is_control()).collect::<String>();
            *text = clean.chars().take(MAX_FACT_BYTES / 4).collect();
        }
        let Some(node) = self.tables.nodes.get(&index) else { return false };
        let rebooted = node.facts.as_ref().is_some_and(|old| old.boot_id != facts.boot_id);
        let moved = node.facts.as_ref().is_none_or(|old| outer_end(old) != outer_end(&facts));
        if node.facts.as_ref() != Some(&facts)
            && let Some(node) = self.tables.nodes.edit(&index)
        {
            node.facts = Some(facts);
        }
        if moved {
            self.refresh_all();
        }
        rebooted
    }

    fn take_inventory(&mut self, index: NodeIndex, inventory: Vec<ContainerReport>, rebooted: bool) {
        let known: BTreeMap<ContainerId, (Generation, ContainerState)> = inventory
            .iter()
            .map(|report| (report.container.id, (report.container.generation, report.state.clone())))
            .collect();
        let placed: Vec<ContainerId> = self.tables.containers_on(index).map(|(id, _)| id).collect();
        for id in placed {
            let Some(container) = self.tables.container(id) else { continue };
            let seen = known.get(&id).filter(|(generation, _)| *generation == container.generation);
            match fate(container, seen.map(|(_, state)| state), rebooted) {
                Fate::AsReported => {}
                Fate::StartAgain => {
                    self.next_generation(id);
                    self.container_event(id);
                }
                Fate::Killed => {
                    let finished_ms = self.now.unix_ms;
                    let restarts = container.restarts;
                    let state = ContainerState::Exited { status: ExitStatus::Signal(9), finished_ms };
                    self.new_state(id, state, restarts);
                }
            }
        }
        for report in inventory {
            self.container_report(index, report);
        }
    }

    fn send_sync(&mut self, index: NodeIndex) {
        let network = self.network_of(index);
        self.networks.insert(index, network.clone());
        let containers = self.tables.containers_on(index).filter_map(|(id, c)| self.desired(id, c)).collect();
        let (overlay, plane) = (self.overlay(), self.plane);
        self.tell_node(index, ToNode::Sync(NodeDesired { index, overlay, containers, network, plane }));
        // The board removes by itself what is not in the list; asked, it also says so about what it does not have.
        let leaving: Vec<ContainerId> =
            self.tables.containers_on(index).filter(|(_, c)| !c.is_present()).map(|(id, _)| id).collect();
        for id in leaving {
            self.tell_node(index, ToNode::Remove(id));
        }
    }

    pub(super) fn report(&mut self, session: SessionId, message: FromNode) {
        let Ok(index) = self.board_of(session) else { return };
        let now = self.now.mono_ms;
        let Some(node) = self.connected.get_mut(&index).filter(|node| node.session == session) else {
            return;
        };
        node.heard_ms = now;
        match message {
            FromNode::Load(load) => {
                node.load = load;
                node.promises.clear();
            }
            FromNode::Container(report) => self.container_report(index, report),
            FromNode::Removed(container) => self.container_removed(index, container.id),
            FromNode::Condition { container, condition } => {
                self.condition_report(index, container, condition)
            }
            FromNode::Keys(keys) => self.keys_report(index, keys),
            FromNode::Network { revision, error } => self.network_report(index, revision, error.as_deref()),
        }
    }

    fn container_report(&mut self, index: NodeIndex, report: ContainerReport) {
        let id = report.container.id;
        match self.tables.container(id).filter(|c| c.node == index) {
            // Nothing of the kind should be there.
            None => self.tell_node(index, ToNode::Remove(id)),
            Some(container) => {
                let current = container.is_present() && container.generation == report.container.generation;
                let state = as_it_will_be(container, report.state, report.restarts);
                let reported = (report.restarts, progress(&state));
                let forward = match reported.cmp(&(container.restarts, progress(&container.state))) {
                    std::cmp::Ordering::Greater => true,
                    std::cmp::Ordering::Equal => !container.state.is_finished() && container.state != state,
                    std::cmp::Ordering::Less => false,
                };
                if current && forward {
                    self.new_state(id, state, report.restarts);
                }
            }
        }
    }

    fn new_state(&mut self, id: ContainerId, mut state: ContainerState, restarts: u32) {
        if let ContainerState::Failed(failure) = &mut state {
            // A sentence, not a place to store things in the broker's memory.
            failure.message = failure.message.chars().take(500).collect();
        }
        let finished = state.is_finished();
        if !matches!(state, ContainerState::Running { .. }) {
            self.forget_condition(id);
        }
        self.tables.set_state(id, state, restarts);
        self.container_event(id);
        self.waiters_state(id);
        if finished {
            self.take_back_promise(id);
            self.waiters_awake(id);
            self.schedule_auto_remove(id);
        }
    }

    /// What has ended needs no memory: many short containers in a row do not fill a board until its next load report.
    pub(super) fn take_back_promise(&mut self, id: ContainerId) {
        let node = self.tables.container(id).map(|container| container.node);
        if let Some(connected) = node.and_then(|node| self.connected.get_mut(&node)) {
            connected.promises.remove(&id);
        }
    }

    fn container_removed(&mut self, index: NodeIndex, id: ContainerId) {
        let Some(container) = self.tables.container(id).filter(|c| c.node == index) else { return };
        match container.phase {
            Phase::Removing { .. } => self.removal_confirmed(id),
            Phase::Wanted | Phase::Stopping { .. } if container.state.is_finished() => {}
            Phase::Wanted | Phase::Stopping { .. } => {
                let text = format!("{} has removed the container without being asked", self.node_name(index));
                let restarts = container.restarts;
                self.new_state(id, ContainerState::Failed(error(ErrorCode::Internal, text)), restarts);
            }
        }
    }

    pub(super) fn node_session_closed(&mut self, session: SessionId) {
        let index = self.connected.iter().find(|(_, node)| node.session == session).map(|(index, _)| *index);
        if let Some(index) = index {
            self.connected.remove(&index);
            self.waiters_board(index);
            self.event(None, Event::Node { index, connected: false });
        }
    }

    pub(super) fn silence_due(&mut self, index: NodeIndex) {
        let Some(node) = self.connected.get(&index) else { return };
        let (at, session) = (node.heard_ms.saturating_add(NODE_SILENCE_MS), node.session);
        if at > self.now.mono_ms {
            return self.set_timer(at, Timer::Silence(index));
        }
        self.close(session);
        self.out.push(Output::Close(session));
    }

    /// Forgets a board and everything on it.
    pub(super) fn remove_node(&mut self, index: NodeIndex) {
        let placed: Vec<ContainerId> = self.tables.containers_on(index).map(|(id, _)| id).collect();
        for id in placed {
            self.begin_removal(id);
            self.waiters_removed(id);
            self.tables.remove_container(id);
        }
        self.tables.nodes.remove(&index);
        self.tables.labels.remove(&index);
        self.networks.remove(&index);
        self.applied.remove(&index);
        let waiting: Vec<ContainerId> =
            self.tables.containers().filter(|(_, c)| !c.is_present()).map(|(id, _)| id).collect();
        for id in waiting {
            self.finish_removal(id);
        }
    }

    pub(super) fn send_route(
        &mut self,
        request: RequestId,
        session: SessionId,
        account: AccountId,
        routed: RoutedRequest,
    ) {
        self.answer(request, Answer::Route { session, routed: Routed { account, request: routed } });
    }
}

/// A node whose service has just started knows that a process has ended, and not yet that it should be started again.
fn as_it_will_be(container: &Container, state: ContainerState, restarts: u32) -> ContainerState {
    match (&container.phase, state) {
        (Phase::Wanted, ContainerState::Exited { status, finished_ms })
            if container.spec.restart().applies(status, restarts.max(container.restarts)) =>
        {
            ContainerState::Restarting { status, finished_ms }
        }
        (Phase::Wanted | Phase::Stopping { .. } | Phase::Removing { .. }, state) => state,
    }
}

/// What has become of a container while its board was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its report says it, or nothing has happened to it yet.
    AsReported,
    /// It was running and is not any more, through no doing of its own.
    StartAgain,
    /// It was to be stopped, and is gone.
    Killed,
}

fn fate(container: &Container, seen: Option<&ContainerState>, rebooted: bool) -> Fate {
    let runs = |state: &ContainerState| match state {
        ContainerState::Running { .. } | ContainerState::Restarting { .. } => true,
        ContainerState::Pending
        | ContainerState::Preparing
        | ContainerState::Exited { .. }
        | ContainerState::Failed(_) => false,
    };
    match container.phase {
        Phase::Removing { .. } => Fate::AsReported,
        Phase::Stopping { .. } if !container.state.is_finished() && seen.is_none() => Fate::Killed,
        Phase::Stopping { .. } => Fate::AsReported,
        Phase::Wanted if !runs(&container.state) => Fate::AsReported,
        Phase::Wanted => match seen {
            None => Fate::StartAgain,
            Some(state) if rebooted && !runs(state) => Fate::StartAgain,
            Some(_) => Fate::AsReported,
        },
    }
}
