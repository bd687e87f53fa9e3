//! The life of containers, from `run` to the moment when nothing is left of one.
use super::access::Reach;
use super::ask::Now;
use super::bounds::{AUTO_REMOVE_MS, MAX_DESIRED_BYTES, SETTLE_MS, WEB_PORTS};
use super::legal::{Action, Verdict, legal, situation};
use super::placement::{self, Candidate, Choice, Need};
use super::waiting::{Until, Waiter};
use super::{Broker, Fresh, RequestId, SessionId, Timer, accounts, error, names, not_found, spec};
use crate::record::{Container, Phase};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use wherry_protocol::limits::MAX_CONTAINERS_PER_NODE;
use wherry_protocol::message::{
    ContainerDesired, ContainerSelector, ContainerSpec, ContainerState, Egress, Event, PublishedOn,
    PublishedPort, Reply, RunRequest, Setting, ToNode, Transport, WaitUntil, Want,
};
use wherry_protocol::{
    AccountId, Constraint, ContainerId, ContainerRef, ErrorCode, Generation, Name, NodeIndex, Role, WireError,
};

/// The signal of a stop request (signal(7)).
const SIGTERM: u8 = 15;
/// The signal that needs no consent.
const SIGKILL: u8 = 9;

/// Who asks, and how far they reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) request: RequestId,
    pub(super) session: SessionId,
    pub(super) account: AccountId,
    pub(super) reach: Reach,
}

/// What becomes of the files that former lives of a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    Kept,
    Fresh,
}

/// A legal way on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Go,
    Already,
    WhenStarted,
}

impl Broker {
    /// The container that `selector` means to the asker.
    pub(super) fn find(
        &self,
        asker: &Asker,
        selector: &ContainerSelector,
    ) -> Result<(ContainerId, &Container), WireError> {
        let visible =
            |c: &Container| c.is_present() && (c.account == asker.account || asker.reach == Reach::Any);
        let hint = "list yours with `wherry ps`";
        match selector {
            ContainerSelector::Id(id) => self
                .tables
                .container(*id)
                .filter(|c| visible(c))
                .map(|c| (*id, c))
                .ok_or_else(|| not_found("container", id, hint)),
            ContainerSelector::Name(name) => {
                self.by_name(asker.account, name).ok_or_else(|| not_found("container", name, hint))
            }
        }
    }

    fn by_name(&self, account: AccountId, name: &Name) -> Option<(ContainerId, &Container)> {
        self.tables.containers().find(|(_, c)| c.account == account && c.name == *name && c.is_present())
    }

    pub(super) fn permitted(&self, id: ContainerId, action: Action) -> Result<Step, WireError> {
        let container = self.present(id)?;
        match legal(action, situation(container)) {
            Verdict::Go => Ok(Step::Go),
            Verdict::Already => Ok(Step::Already),
            Verdict::WhenStarted => Ok(Step::WhenStarted),
            Verdict::NotThere => Err(not_found("container", id, "it was removed")),
            Verdict::Refuse(why) => {
                Err(error(ErrorCode::WrongState, format!("container '{}' {why}", container.name)))
            }
            Verdict::TellFailure => match &container.state {
                ContainerState::Failed(failure) => Err(failure.clone()),
                ContainerState::Pending
                | ContainerState::Preparing
                | ContainerState::Running { .. }
                | ContainerState::Restarting { .. }
                | ContainerState::Exited { .. } => {
                    Err(error(ErrorCode::WrongState, format!("container '{}' did not start", container.name)))
                }
            },
        }
    }

    pub(super) fn present(&self, id: ContainerId) -> Result<&Container, WireError> {
        self.tables
            .container(id)
            .filter(|c| c.is_present())
            .ok_or_else(|| not_found("container", id, "it was removed"))
    }

    pub(super) fn reference(&self, id: ContainerId) -> Result<(NodeIndex, ContainerRef), WireError> {
        let container = self.present(id)?;
        Ok((container.node, ContainerRef { id, generation: container.generation }))
    }

    pub(super) fn run(&mut self, asker: &Asker, run: RunRequest, fresh: Fresh) -> Result<Reply, WireError> {
        spec::check(&run.spec)?;
        self.check_granted(asker, &run.spec)?;
        let image = self.image(asker.account, &run.image)?.clone();
        self.check_ports(&run.spec)?;
        let id = ContainerId(self.tables.meta().last_container.saturating_add(1));
        let name = self.container_name(asker.account, run.name, fresh, id)?;
        let choice = self.place(&run.image, &image, &run.spec, run.node.as_deref())?;
        let address = self.free_address(choice.index)?;
        let container = Container {
            generation: Generation(1),
            name,
            account: asker.account,
            image: run.image,
            manifest: image.manifest,
            node: choice.index,
            address,
            placement: choice.reason,
            created_seconds: self.now_seconds(),
            detached: run.detached,
            spec: run.spec,
            phase: Phase::Wanted,
            state: ContainerState::Pending,
            restarts: 0,
            exposed: std::collections::BTreeMap::new(),
        };
        self.admit(asker, id, container)
    }

    fn admit(&mut self, asker: &Asker, id: ContainerId, container: Container) -> Result<Reply, WireError> {
        if let Some(node) = self.connected.get_mut(&container.node) {
            node.promises.insert(id, placement::expected_memory(container.spec.resources.memory_bytes));
        }
        if !container.detached {
            self.owners.insert(id, asker.session);
        }
        self.tables.edit_meta().last_container = id.0;
        self.tables.insert_container(id, container);
        self.adopt_ports(id);
        self.send_desired(id);
        self.apply_rules_to(id);
        self.container_event(id);
        Ok(self.container_reply(self.present(id)?, id))
    }

    fn container_name(
        &self,
        account: AccountId,
        wanted: Option<Name>,
        fresh: Fresh,
        id: ContainerId,
    ) -> Result<Name, WireError> {
        match wanted {
            Some(name) => match self.by_name(account, &name) {
                Some((other, _)) => {
                    let text =
                        format!("the name '{name}' is taken by {other}: choose another, or remove that one");
                    Err(error(ErrorCode::AlreadyExists, text))
                }
                None => Ok(name),
            },
            None => Ok(names::choose(&fresh, id, |name| self.by_name(account, name).is_some())),
        }
    }

    fn place(
        &self,
        name: &wherry_protocol::message::ImageName,
        image: &crate::record::Image,
        spec: &ContainerSpec,
        wanted: Option<&str>,
    ) -> Result<Choice, WireError> {
        let blobs = image.manifest.layers.iter();
        let need = Need {
            image: name.to_string(),
            architecture: &image.architecture,
            image_bytes: blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size)),
            memory_bytes: spec.resources.memory_bytes,
            constraints: constraints(spec).collect(),
        };
        match wanted {
            Some(text) => {
                let index = self.node_called(text)?;
                self.board_session(index)?;
                let candidate = self.candidate(index, image, spec);
                candidate
                    .ok_or_else(|| self.unreachable(index))
                    .and_then(|candidate| placement::named(&candidate, &need))
            }
            None => {
                let boards = self.connected.keys();
                let candidates: Vec<Candidate> =
                    boards.filter_map(|index| self.candidate(*index, image, spec)).collect();
                placement::best(&candidates, &need)
            }
        }
    }

    pub(super) fn node_called(&self, text: &str) -> Result<NodeIndex, WireError> {
        let by_name =
            self.tables.nodes.iter().find(|(_, node)| node.name.as_str() == text).map(|(index, _)| *index);
        let by_number = || accounts::number_of(text).filter(|index| self.tables.nodes.contains(index));
        by_name.or_else(by_number).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            not_found("node", shown, "list them with `wherry resources`")
        })
    }

    fn candidate(
        &self,
        index: NodeIndex,
        image: &crate::record::Image,
        spec: &ContainerSpec,
    ) -> Option<Candidate> {
        let weight = super::tables::weight(spec, &image.manifest);
        let live = self.connected.get(&index)?;
        let node = self.tables.nodes.get(&index)?;
        let facts = node.facts.as_ref()?;
        let used = self.tables.desired_bytes(index);
        let count = self.tables.containers_on(index).count();
        let most = MAX_CONTAINERS_PER_NODE.min(self.overlay().capacity());
        Some(Candidate {
            index,
            name: node.name.clone(),
            architecture: facts.architecture.clone(),
            cpus: facts.cpus,
            load: live.load,
            promised_bytes: live.promised_bytes(),
            promised: u32::try_from(live.promises.len()).unwrap_or(u32::MAX),
            own_address: self.address_among_containers(index),
            taken_port: self.taken_on(index, spec),
            has_slot: count < most && used.saturating_add(weight) <= MAX_DESIRED_BYTES,
            has_image: self.tables.containers_on(index).any(|(_, c)| c.manifest == image.manifest),
            labels: self.tables.labels.get(&index).cloned().unwrap_or_default(),
        })
    }

    /// The lowest address of the board that no container has, not even one that is being removed.
    fn free_address(&self, index: NodeIndex) -> Result<Ipv4Addr, WireError> {
        let used: BTreeSet<Ipv4Addr> = self.tables.containers_on(index).map(|(_, c)| c.address).collect();
        self.overlay().addresses(index).find(|address| !used.contains(address)).ok_or_else(|| {
            error(ErrorCode::NoCapacity, format!("{index} has no free address: remove containers"))
        })
    }

    /// What only some may wish, and only of what is theirs.
    fn check_granted(&self, asker: &Asker, spec: &ContainerSpec) -> Result<(), WireError> {
        let device = |setting: &Setting| matches!(setting, Setting::Device { .. });
        let admin = self.session_of(asker.session)?.role == Role::Admin;
        if !admin && spec.settings.iter().any(device) {
            let text = "only an admin may give a container a device of the board: ask one";
            return Err(error(ErrorCode::Forbidden, text));
        }
        let lan = |egress: &Egress| matches!(egress, Egress::Lan(_));
        if !admin && spec.egress().iter().any(lan) {
            let text = "only an admin may let a container into the boards' own networks: ask one";
            return Err(error(ErrorCode::Forbidden, text));
        }
        self.check_egress(spec)?;
        spec.files().try_for_each(|blob| self.check_held(asker.account, blob))
    }

    fn check_ports(&self, spec: &ContainerSpec) -> Result<(), WireError> {
        let on_broker = |port: &&PublishedPort| port.on == PublishedOn::Broker;
        let taken = |port: &&PublishedPort| self.published.contains_key(&port.key());
        let web = |port: &&PublishedPort| port.transport == Transport::Tcp && WEB_PORTS.contains(&port.port);
        if self.tables.endpoints.len() > 0
            && let Some(port) = spec.publish.iter().filter(on_broker).find(web)
        {
            let text = format!(
                "port {} of the broker is the web endpoint's: publish a name there with `wherry endpoint publish`, or choose another port",
                port.port
            );
            return Err(error(ErrorCode::AlreadyExists, text));
        }
        match spec.publish.iter().filter(on_broker).find(taken) {
            Some(taken) => {
                let text = format!("port {} of the broker is published already: choose another", taken.port);
                Err(error(ErrorCode::AlreadyExists, text))
            }
            None => Ok(()),
        }
    }

    /// A port that `spec` wants of the board and that another container there has.
    fn taken_on(&self, index: NodeIndex, spec: &ContainerSpec) -> Option<u16> {
        let on_node = |port: &&PublishedPort| port.on == PublishedOn::Node;
        let there = self.tables.containers_on(index).filter(|(_, c)| c.is_present());
        let taken: BTreeSet<_> =
            there.flat_map(|(_, c)| c.spec.publish.iter().filter(on_node).map(PublishedPort::key)).collect();
        spec.publish.iter().filter(on_node).find(|port| taken.contains(&port.key())).map(|port| port.port)
    }

    pub(super) fn adopt_ports(&mut self, id: ContainerId) {
        let ports = self.tables.container(id).map(|c| c.spec.publish.clone()).unwrap_or_default();
        for published in ports.into_iter().filter(|port| port.on == PublishedOn::Broker) {
            self.published.insert(published.key(), (id, published));
            self.publish_changed = true;
        }
    }

    /// Which container a published port leads to, and whose right that is.
    pub(super) fn visit(&mut self, request: RequestId, port: (Transport, u16)) {
        let target = self.published.get(&port).map(|(id, published)| (*id, published.container_port));
        let result = target
            .ok_or_else(|| error(ErrorCode::NotFound, format!("port {} is not published", port.1)))
            .and_then(|(id, inside)| self.visit_container(request, id, (port.0, inside)));
        if let Err(error) = result {
            self.reply(request, Reply::Error(error));
        }
    }

    pub(super) fn visit_container(
        &mut self,
        request: RequestId,
        id: ContainerId,
        port: (Transport, u16),
    ) -> Result<(), WireError> {
        self.permitted(id, Action::Enter)?;
        let account = self.present(id)?.account;
        let (node, container) = self.reference(id)?;
        let session = self.board_session(node)?;
        let routed =
            wherry_protocol::message::RoutedRequest::Tunnel { container, port: port.1, transport: port.0 };
        self.send_route(request, session, account, routed);
        Ok(())
    }

    pub(super) fn inspect(&self, asker: &Asker, selector: &ContainerSelector) -> Result<Reply, WireError> {
        let (id, container) = self.find(asker, selector)?;
        Ok(self.container_reply(container, id))
    }

    pub(super) fn wait(&mut self, asker: &Asker, selector: &ContainerSelector, until: WaitUntil) -> Now {
        let (id, container) = self.find(asker, selector)?;
        if until_reached(until, &container.state) {
            return Ok(Some(self.container_reply(container, id)));
        }
        let until = match until {
            WaitUntil::Started => Until::Started,
            WaitUntil::Ended => Until::Ended,
        };
        self.wait_for(asker.request, Waiter::Container { id, until }, None);
        Ok(None)
    }

    pub(super) fn stop(
        &mut self,
        asker: &Asker,
        selector: &ContainerSelector,
        grace_seconds: Option<u16>,
    ) -> Now {
        let (id, container) = self.find(asker, selector)?;
        let grace_seconds = grace_seconds.unwrap_or_else(|| container.spec.stop_seconds());
        spec::check_grace(grace_seconds)?;
        let node = container.node;
        match self.permitted(id, Action::Stop)? {
            Step::Already => Ok(Some(self.container_reply(self.present(id)?, id))),
            Step::Go | Step::WhenStarted => {
                self.set_phase(id, Phase::Stopping { signal: SIGTERM, grace_seconds });
                self.send_desired(id);
                if !self.connected.contains_key(&node) {
                    let name = self.node_name(node);
                    let text =
                        format!("{name} is not connected: the container will be stopped when it returns");
                    return Err(error(ErrorCode::NodeUnreachable, text));
                }
                let deadline = u64::from(grace_seconds) * 1000 + SETTLE_MS;
                self.wait_for(asker.request, Waiter::Container { id, until: Until::Stopped }, Some(deadline));
                Ok(None)
            }
        }
    }

    pub(super) fn rename(
        &mut self,
        asker: &Asker,
        selector: &ContainerSelector,
        name: Name,
    ) -> Result<Reply, WireError> {
        let (id, container) = self.find(asker, selector)?;
        let (account, same) = (container.account, container.name == name);
        if let Some((other, _)) = self.by_name(account, &name).filter(|_| !same) {
            let text = format!("the name '{name}' is taken by {other}: choose another, or remove that one");
            return Err(error(ErrorCode::AlreadyExists, text));
        }
        if let Some(container) = self.tables.edit_container(id).filter(|_| !same) {
            container.name = name;
            self.refresh_names(id);
            self.container_event(id);
        }
        Ok(self.container_reply(self.present(id)?, id))
    }

    pub(super) fn start(
        &mut self,
        asker: &Asker,
        selector: &ContainerSelector,
        files: Files,
    ) -> Result<Reply, WireError> {
        let (id, container) = self.find(asker, selector)?;
        let node = container.node;
        let action = match files {
            Files::Fresh => Action::StartClean,
            Files::Kept => Action::Start,
        };
        match self.permitted(id, action)? {
            Step::Already => {}
            Step::Go | Step::WhenStarted => {
                self.board_session(node)?;
                self.next_generation(id);
                if files == Files::Fresh
                    && let Some(generation) = self.tables.container(id).map(|c| c.generation)
                {
                    self.tables.clean.insert(id, generation);
                }
                if self.tables.container(id).is_some_and(|c| !c.detached) {
                    self.orphans.remove(&id);
                    self.owners.insert(id, asker.session);
                }
                self.send_desired(id);
                self.container_event(id);
            }
        }
        Ok(self.container_reply(self.present(id)?, id))
    }

    /// A new life: the board starts it anew.
    pub(super) fn next_generation(&mut self, id: ContainerId) {
        if let Some(container) = self.tables.edit_container(id) {
            container.generation = Generation(container.generation.0.saturating_add(1));
            container.phase = Phase::Wanted;
            container.state = ContainerState::Pending;
            container.restarts = 0;
        }
        self.forget_condition(id);
    }

    fn set_phase(&mut self, id: ContainerId, phase: Phase) {
        if let Some(container) = self.tables.edit_container(id) {
            container.phase = phase;
        }
    }

    pub(super) fn remove(&mut self, asker: &Asker, selector: &ContainerSelector, force: bool) -> Now {
        let (id, container) = self.find(asker, selector)?;
        let node = container.node;
        self.permitted(id, Action::Remove { force })?;
        self.begin_removal(id);
        if !self.connected.contains_key(&node) {
            return Ok(Some(Reply::Done));
        }
        self.wait_for(asker.request, Waiter::Removed { id }, Some(SETTLE_MS));
        Ok(None)
    }

    /// From here on nobody sees the container; its board is told to leave nothing of it.
    pub(super) fn begin_removal(&mut self, id: ContainerId) {
        let Some(container) = self.tables.container(id).filter(|c| c.is_present()) else { return };
        let (account, node) = (container.account, container.node);
        let blobs: Vec<_> = container.digests().collect();
        self.published.retain(|_, (owner, _)| {
            let keep = *owner != id;
            self.publish_changed |= !keep;
            keep
        });
        self.owners.remove(&id);
        self.orphans.remove(&id);
        self.forget_condition(id);
        self.forget_rules_of(id);
        self.cut_links(id);
        self.set_phase(id, Phase::Removing { confirmed: false });
        self.release(account, blobs);
        self.waiters_lost(id);
        self.event(Some(account), Event::ContainerRemoved(id));
        self.tell_node(node, ToNode::Remove(id));
    }

    /// The board says that nothing is left.
    pub(super) fn removal_confirmed(&mut self, id: ContainerId) {
        if let Some(container) = self.tables.edit_container(id)
            && let Phase::Removing { confirmed } = &mut container.phase
        {
            *confirmed = true;
        }
        self.take_back_promise(id);
        self.waiters_removed(id);
        self.finish_removal(id);
    }

    /// Forgets a container for good once no rule can let its address through any more.
    pub(super) fn finish_removal(&mut self, id: ContainerId) {
        let free = self.tables.container(id).is_some_and(|c| match &c.phase {
            Phase::Removing { confirmed: true } => {
                c.exposed.iter().all(|(index, revision)| self.has_applied(*index, *revision))
            }
            Phase::Removing { confirmed: false } | Phase::Wanted | Phase::Stopping { .. } => false,
        });
        if free {
            self.tables.remove_container(id);
        }
    }

    pub(super) fn schedule_auto_remove(&mut self, id: ContainerId) {
        let ended = self
            .tables
            .container(id)
            .is_some_and(|c| c.is_present() && c.spec.auto_remove && c.state.is_finished());
        if ended {
            self.set_timer(self.after(AUTO_REMOVE_MS), Timer::AutoRemove(id));
        }
    }

    pub(super) fn auto_remove_due(&mut self, id: ContainerId) {
        // It may have been started again meanwhile; then it is scheduled again when it ends.
        if self.tables.container(id).is_some_and(|c| c.state.is_finished()) {
            self.begin_removal(id);
        }
    }

    /// Sends a board what it should do with one container.
    pub(super) fn send_desired(&mut self, id: ContainerId) {
        if let Some(container) = self.tables.container(id) {
            let node = container.node;
            if let Some(desired) = self.desired(id, container) {
                self.tell_node(node, ToNode::Container(Box::new(desired)));
            }
        }
    }

    /// The container as its board should have it; `None` if nothing of it should be there.
    pub(super) fn desired(&self, id: ContainerId, container: &Container) -> Option<ContainerDesired> {
        let want = match container.phase {
            // One that has ended must not start again by itself, even on a board that has forgotten it.
            Phase::Wanted if container.state.is_finished() => {
                Want::Stopped { signal: SIGKILL, grace_seconds: 0 }
            }
            Phase::Wanted => Want::Running,
            Phase::Stopping { signal, grace_seconds } => Want::Stopped { signal, grace_seconds },
            Phase::Removing { .. } => return None,
        };
        Some(ContainerDesired {
            container: ContainerRef { id, generation: container.generation },
            account: container.account,
            name: container.name.clone(),
            spec: container.spec.clone(),
            image: container.manifest.clone(),
            address: container.address,
            want,
            restarts: container.restarts,
            clean_since: self.tables.clean.get(&id).copied().unwrap_or(Generation(0)),
        })
    }
}

fn constraints(spec: &ContainerSpec) -> impl Iterator<Item = &Constraint> {
    spec.settings.iter().filter_map(|setting| match setting {
        Setting::Constraint(constraint) => Some(constraint),
        _ => None,
    })
}

pub(super) fn until_reached(until: WaitUntil, state: &ContainerState) -> bool {
    match until {
        WaitUntil::Ended => state.is_finished(),
        WaitUntil::Started => match state {
            ContainerState::Pending | ContainerState::Preparing => false,
            ContainerState::Running { .. }
            | ContainerState::Restarting { .. }
            | ContainerState::Exited { .. }
            | ContainerState::Failed(_) => true,
        },
    }
}
