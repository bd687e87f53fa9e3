//! What people are shown.
use super::bounds::MAX_LIST_BYTES;
use super::{Broker, error};
use crate::record::{Account, Container};
use wherry_protocol::message::{AccountInfo, ContainerInfo, ContainerSpec, NodeInfo, Reply, StatusInfo};
use wherry_protocol::{AccountId, ContainerId, ErrorCode, Name, NodeIndex, WireError};

impl Broker {
    pub(super) fn info(&self, id: ContainerId, container: &Container) -> ContainerInfo {
        ContainerInfo {
            id,
            generation: container.generation,
            name: container.name.clone(),
            account: container.account,
            image: container.image.clone(),
            node: container.node,
            node_name: self.board_label(container.node, container),
            node_connected: self.connected.contains_key(&container.node),
            placement: container.placement.clone(),
            address: container.address,
            address6: self.overlay().address6(container.address),
            state: container.state.clone(),
            restarts: container.restarts,
            created_seconds: container.created_seconds,
            detached: container.detached,
            publish: container.spec.publish.clone(),
            spec: container.spec.clone(),
            condition: self.conditions.get(&id).cloned().unwrap_or_default(),
        }
    }

    // A container's board always has a record; its own name stands in if that should ever be wrong.
    pub(super) fn board_label(&self, index: NodeIndex, container: &Container) -> Name {
        self.tables.nodes.get(&index).map_or_else(|| container.name.clone(), |node| node.name.clone())
    }

    pub(super) fn container_reply(&self, container: &Container, id: ContainerId) -> Reply {
        Reply::Container(Box::new(self.info(id, container)))
    }

    pub(super) fn containers(&self, account: AccountId, all: bool) -> Reply {
        let mut infos: Vec<ContainerInfo> = self
            .tables
            .containers()
            .filter(|(_, c)| c.is_present() && (all || c.account == account))
            .map(|(id, c)| self.info(id, c))
            .collect();
        // Long lists of long command lines would not fit one message; each can still be inspected by itself.
        if postcard::experimental::serialized_size(&infos).is_ok_and(|bytes| bytes > MAX_LIST_BYTES) {
            for info in &mut infos {
                info.spec = ContainerSpec::default();
            }
        }
        Reply::Containers(infos)
    }

    /// Those boards that are `wanted`.
    pub(super) fn nodes(&self, wanted: impl Fn(NodeIndex) -> bool) -> Reply {
        let infos = self.tables.nodes.iter().filter(|(index, _)| wanted(**index)).map(|(index, node)| {
            let live = self.connected.get(index);
            let containers = self.tables.containers_on(*index).filter(|(_, c)| c.is_present()).count();
            NodeInfo {
                index: *index,
                name: node.name.clone(),
                connected: live.is_some(),
                facts: node.facts.clone(),
                load: live.map(|live| live.load),
                containers: u32::try_from(containers).unwrap_or(u32::MAX),
                labels: self.tables.labels.get(index).cloned().unwrap_or_default().into_iter().collect(),
            }
        });
        Reply::Nodes(infos.collect())
    }

    fn account_info(&self, id: AccountId, account: &Account) -> AccountInfo {
        AccountInfo {
            id,
            label: account.label.clone(),
            role: account.role,
            key: account.key,
            created_seconds: account.created_seconds,
            sessions: self.sessions_of(id),
        }
    }

    pub(super) fn accounts(&self) -> Reply {
        Reply::Accounts(
            self.tables.accounts.iter().map(|(id, account)| self.account_info(*id, account)).collect(),
        )
    }

    pub(super) fn status(&self, account: AccountId) -> Result<Reply, WireError> {
        let record = self
            .tables
            .accounts
            .get(&account)
            .ok_or_else(|| error(ErrorCode::Unauthenticated, "this account was removed"))?;
        Ok(Reply::Status(StatusInfo {
            account: self.account_info(account, record),
            location: self.identity.location.clone(),
            software: self.identity.software.clone(),
            uptime_seconds: self.now.mono_ms.saturating_sub(self.started_ms) / 1000,
            now_seconds: self.now_seconds(),
        }))
    }
}
