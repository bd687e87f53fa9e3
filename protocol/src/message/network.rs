//! What containers may reach outside the cluster, what their firewalls held up, and what they are called by others.
use crate::Prefix;
use crate::id::{ContainerId, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a container may send packets that leave the cluster. Several add up; without any it is [`Egress::Internet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    /// Nowhere. Names outside the cluster are not resolved for it either.
    None,
    /// To public addresses: not to the board's networks, not to private ones (RFC 6890).
    Internet,
    /// To this network, which the board can reach (admins only).
    Lan(Prefix),
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Internet => f.write_str("internet"),
            Self::Lan(network) => write!(f, "lan:{network}"),
        }
    }
}

/// Why a firewall dropped a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Between containers, and no connection allows it.
    NotConnected,
    /// To the board's own networks or other private ones.
    PrivateNetwork,
    /// To the internet, which the container may not reach.
    Egress,
    /// With an address that is not the sender's own, or in a role that it does not have (a DHCP server's).
    Spoofed,
    /// Nobody asked for it.
    Unsolicited,
    /// GRE outside of WireGuard.
    Unencrypted,
    /// IPv6 to outside the cluster.
    Ipv6,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NotConnected,
        Self::PrivateNetwork,
        Self::Egress,
        Self::Spoofed,
        Self::Unsolicited,
        Self::Unencrypted,
        Self::Ipv6,
    ];

    /// As rulesets, people and metrics call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotConnected => "not-connected",
            Self::PrivateNetwork => "private-network",
            Self::Egress => "egress",
            Self::Spoofed => "spoofed",
            Self::Unsolicited => "unsolicited",
            Self::Unencrypted => "unencrypted",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// [`DropReason::NotConnected`].
    pub not_connected: u64,
    /// [`DropReason::PrivateNetwork`].
    pub private_network: u64,
    /// [`DropReason::Egress`].
    pub egress: u64,
    /// [`DropReason::Spoofed`].
    pub spoofed: u64,
    /// [`DropReason::Unsolicited`].
    pub unsolicited: u64,
    /// [`DropReason::Unencrypted`].
    pub unencrypted: u64,
    /// [`DropReason::Ipv6`].
    pub ipv6: u64,
}

impl Drops {
    /// How many for `reason`.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        match reason {
            DropReason::NotConnected => self.not_connected,
            DropReason::PrivateNetwork => self.private_network,
            DropReason::Egress => self.egress,
            DropReason::Spoofed => self.spoofed,
            DropReason::Unsolicited => self.unsolicited,
            DropReason::Unencrypted => self.unencrypted,
            DropReason::Ipv6 => self.ipv6,
        }
    }

    /// Counts `packets` more for `reason`.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        let count = match reason {
            DropReason::NotConnected => &mut self.not_connected,
            DropReason::PrivateNetwork => &mut self.private_network,
            DropReason::Egress => &mut self.egress,
            DropReason::Spoofed => &mut self.spoofed,
            DropReason::Unsolicited => &mut self.unsolicited,
            DropReason::Unencrypted => &mut self.unencrypted,
            DropReason::Ipv6 => &mut self.ipv6,
        };
        *count = count.saturating_add(packets);
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        DropReason::ALL.into_iter().for_each(|reason| self.add(reason, other.of(reason)));
        self
    }

    /// All of them, for whatever reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        DropReason::ALL.into_iter().fold(0, |total, reason| total.saturating_add(self.of(reason)))
    }
}

/// Answers to LAN discovery that a node did not believe, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAnswers {
    /// Wrong length or beginning.
    pub malformed: u64,
    /// To another question: late, or recorded and sent again.
    pub stale: u64,
    /// Not sealed with the broker's key.
    pub forged: u64,
    /// The broker's, but not from where it says that it is.
    pub elsewhere: u64,
}

impl fmt::Display for RefusedAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { malformed, stale, forged, elsewhere } = self;
        write!(
            f,
            "{forged} answers with a wrong key, {stale} to other questions, {elsewhere} from another address, {malformed} that were none"
        )
    }
}

/// What a container is called by those that may connect to it, and by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// Which.
    pub container: ContainerId,
    /// Its name.
    pub name: Name,
    /// Its owner's.
    pub account: Name,
    /// The service that it is part of: its label `service`, where that is a name.
    pub service: Option<Name>,
}
