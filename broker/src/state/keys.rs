//! New keys for the boards' tunnels, every hour, without a packet lost.
//!
//! Each board has two WireGuard devices with a key each, and takes packets from both. All of them send through the same one, the
//! plane. The devices of the other one get new keys; when all boards have had time to hear of them, the planes change places.
//! Boards that are away keep their keys until the next time.
use super::bounds::{REKEY_MS, REKEY_SETTLE_MS};
use super::{Broker, Timer};
use wherry_protocol::NodeIndex;
use wherry_protocol::message::{ToNode, WireguardKeys};

impl Broker {
    fn other_plane(&self) -> u8 {
        1 - self.plane.min(1)
    }

    /// Boards that have tunnels get a new key for the plane that nobody sends through.
    pub(super) fn rekey_due(&mut self) {
        let other = self.other_plane();
        let boards: Vec<NodeIndex> =
            self.connected.keys().copied().filter(|board| self.may_rekey(*board)).collect();
        for board in &boards {
            self.tell_node(*board, ToNode::Rekey(other));
        }
        if !boards.is_empty() {
            self.set_timer(self.after(REKEY_SETTLE_MS), Timer::Plane);
        }
        self.set_timer(self.after(REKEY_MS), Timer::Rekey);
    }

    /// One whose peers would not hear of a new key keeps the old one: their tunnels may live without the broker.
    fn may_rekey(&self, board: NodeIndex) -> bool {
        let peers = self.networks.get(&board).map(|network| network.peers.as_slice()).unwrap_or_default();
        !peers.is_empty() && peers.iter().all(|peer| self.connected.contains_key(&peer.index))
    }

    /// Everybody has heard of the new keys: now they are used.
    pub(super) fn plane_due(&mut self) {
        self.plane = self.other_plane();
        let boards: Vec<NodeIndex> = self.connected.keys().copied().collect();
        for board in boards {
            self.tell_node(board, ToNode::Plane(self.plane));
        }
    }

    /// A board has made its keys anew.
    pub(super) fn keys_report(&mut self, board: NodeIndex, keys: WireguardKeys) {
        let known = self.tables.nodes.get(&board).and_then(|node| node.facts.as_ref()?.wireguard);
        // One that could make no tunnels when it said hello cannot now.
        if known.is_none_or(|known| known == keys) {
            return;
        }
        if let Some(facts) = self.tables.nodes.edit(&board).and_then(|node| node.facts.as_mut()) {
            facts.wireguard = Some(keys);
        }
        self.refresh_all();
    }
}
