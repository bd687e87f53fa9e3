//! The addresses of the cluster's containers: chosen at the first start, and kept while anybody has one of them.
use super::{Broker, Output, error};
use std::net::Ipv4Addr;
use wherry_protocol::message::{ContainerSpec, Egress};
use wherry_protocol::overlay::GlobalId;
use wherry_protocol::{ErrorCode, NodeIndex, Overlay, WireError};

/// The configuration wants other addresses for containers than those that some have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "containers have addresses in {stored} ({containers} of them), and the configuration says {wanted}: put overlay = \"{stored}\" back, remove the containers, and then change it"
)]
pub struct OverlayChange {
    /// Where they have them.
    pub stored: Overlay,
    /// Where they should.
    pub wanted: Overlay,
    /// How many, counting those that are being removed.
    pub containers: usize,
}

impl Broker {
    /// Says at the start which addresses containers should have; `None`: those that were chosen before, or else the usual
    /// ones. `fresh` is what the IPv6 addresses are known by from the first start on.
    ///
    /// # Errors
    /// When there are containers with other addresses; nothing is changed then.
    pub fn settle_overlay(
        &mut self,
        wanted: Option<Overlay>,
        fresh: GlobalId,
    ) -> Result<Vec<Output>, OverlayChange> {
        let stored = self.tables.meta().overlay;
        let global = stored.map_or(fresh, |stored| stored.global());
        let chosen = wanted.or(stored).unwrap_or_default().with_global(global);
        let containers = self.tables.containers().count();
        match stored {
            Some(stored) if stored == chosen => return Ok(Vec::new()),
            Some(stored) if containers > 0 => {
                return Err(OverlayChange { stored, wanted: chosen, containers });
            }
            Some(_) | None => self.tables.edit_meta().overlay = Some(chosen),
        }
        Ok(self.finish())
    }

    /// The addresses of all containers.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        self.tables.meta().overlay.unwrap_or_default()
    }

    /// A board's address on its own network, if it cannot be told from a container's.
    pub(super) fn address_among_containers(&self, index: NodeIndex) -> Option<(Ipv4Addr, Overlay)> {
        let underlay = self.tables.nodes.get(&index)?.facts.as_ref()?.underlay;
        let overlay = self.overlay();
        overlay.network().contains(underlay).then_some((underlay, overlay))
    }

    /// Between containers, connections decide.
    pub(super) fn check_egress(&self, spec: &ContainerSpec) -> Result<(), WireError> {
        let overlay = self.overlay();
        let inside = spec.egress().into_iter().find_map(|egress| match egress {
            Egress::Lan(network) if network.overlaps(overlay.network()) => Some(network),
            Egress::Lan(_) | Egress::None | Egress::Internet => None,
        });
        match inside {
            Some(network) => {
                let text = format!(
                    "'lan:{network}' reaches into {overlay}, which is not the network of a board: allow containers one another with `wherry connect`"
                );
                Err(error(ErrorCode::Invalid, text))
            }
            None => Ok(()),
        }
    }
}
