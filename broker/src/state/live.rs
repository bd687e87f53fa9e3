//! What changes while a container runs, and what is said about boards.
use super::bounds::{MAX_NODE_LABELS, SETTLE_MS};
use super::containers::Asker;
use super::legal::Action;
use super::waiting::Waiter;
use super::{Broker, ask::Now, error};
use std::collections::BTreeMap;
use wherry_protocol::message::{Condition, ContainerSelector, ContainerState, HealthReport, Reply};
use wherry_protocol::text::shown;
use wherry_protocol::{ContainerId, ContainerRef, ErrorCode, NodeIndex, WireError, constraint};

impl Broker {
    /// A container that is asleep has all but its program; the wish to sleep is forgotten for good.
    pub(super) fn wake(&mut self, asker: &Asker, selector: &ContainerSelector) -> Now {
        let (id, container) = self.find(asker, selector)?;
        let (node, running) = (container.node, matches!(container.state, ContainerState::Running { .. }));
        let asleep = container.spec.is_asleep() || self.conditions.get(&id).is_some_and(|c| c.asleep);
        self.permitted(id, Action::Wake)?;
        if !asleep {
            return Ok(Some(self.container_reply(self.present(id)?, id)));
        }
        self.tables.wake(id);
        self.send_desired(id);
        if !self.connected.contains_key(&node) {
            let text =
                format!("{} is not connected: the container wakes when it returns", self.node_name(node));
            return Err(error(ErrorCode::NodeUnreachable, text));
        }
        if running {
            self.wait_for(asker.request, Waiter::Awake { id }, Some(SETTLE_MS));
            return Ok(None);
        }
        Ok(Some(self.container_reply(self.present(id)?, id)))
    }

    /// A board says how a container is.
    pub(super) fn condition_report(
        &mut self,
        index: NodeIndex,
        which: ContainerRef,
        mut condition: Condition,
    ) {
        let id = which.id;
        let current = self.tables.container(id).is_some_and(|c| {
            c.node == index && c.is_present() && c.generation == which.generation && !c.state.is_finished()
        });
        if !current {
            return;
        }
        // A board's words are kept for every container: no more of them than a sentence.
        if let Some(health) = &mut condition.health {
            health.output = HealthReport::kept(&health.output);
        }
        let awake = !condition.asleep;
        self.conditions.insert(id, condition);
        self.container_event(id);
        if awake {
            self.waiters_awake(id);
        }
    }

    /// Changes what is said about a board. Containers that are there stay there.
    pub(super) fn label_node(
        &mut self,
        node: &str,
        set: Vec<(String, String)>,
        remove: &[String],
    ) -> Result<Reply, WireError> {
        let index = self.node_called(node)?;
        let invalid = |text: String| error(ErrorCode::Invalid, text);
        let mut labels: BTreeMap<String, String> =
            self.tables.labels.get(&index).cloned().unwrap_or_default();
        for name in remove {
            if labels.remove(name).is_none() {
                let text = format!("the board has no label '{}'", shown(name, 80));
                return Err(error(ErrorCode::NotFound, text));
            }
        }
        for (name, value) in set {
            constraint::check_label(&name, &value).map_err(|refused| invalid(refused.to_string()))?;
            labels.insert(name, value);
        }
        if labels.len() > MAX_NODE_LABELS {
            return Err(invalid(format!(
                "{} labels on one board, the limit is {MAX_NODE_LABELS}",
                labels.len()
            )));
        }
        if labels.is_empty() {
            self.tables.labels.remove(&index);
        } else {
            self.tables.labels.insert(index, labels);
        }
        Ok(self.nodes(|number| number == index))
    }

    pub(super) fn forget_condition(&mut self, id: ContainerId) {
        self.conditions.remove(&id);
    }
}
