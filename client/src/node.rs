//! A board.
use crate::error::ClientError;
use crate::location::Location;
use wherry_protocol::message::{ContainerInfo, NodeInfo};

/// A node of a cluster, as it was when asked for.
#[derive(Debug, Clone)]
pub struct Node {
    location: Location,
    info: NodeInfo,
}

impl Node {
    pub(crate) fn new(location: Location, info: NodeInfo) -> Self {
        Self { location, info }
    }

    /// What the broker says about it.
    #[must_use]
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// This account's containers on it.
    pub async fn containers(&self) -> Result<Vec<ContainerInfo>, ClientError> {
        let mut containers = self.location.containers(false).await?;
        containers.retain(|container| container.node == self.info.index);
        Ok(containers)
    }

    /// Makes its service abort; only test images obey (admins only).
    pub async fn crash(&self) -> Result<(), ClientError> {
        self.location.crash_node(self.info.index).await
    }
}
