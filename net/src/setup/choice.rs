//! Which of a board's networks leads to the cluster: pure, with the time passed in.
//!
//! Without a wish it is the first that has an address, and stays so while it is of use. One whose cable is out for longer than
//! [`PATIENCE`] gives way to another that has an address; with no other, the board keeps what it has and waits.
use super::Uplink;
use crate::dhcp::Lease;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Switches that restart and plugs that are put elsewhere take less; sessions outlive it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of each network, and which one is chosen.
#[derive(Debug, Default)]
pub(super) struct Choice {
    restricted: bool,
    only: Option<String>,
    networks: BTreeMap<String, Network>,
    chosen: Option<String>,
}

#[derive(Debug, Default)]
struct Network {
    lease: Option<Lease>,
    /// Since when there is no signal on the wire.
    silent_since: Option<Instant>,
}

impl Network {
    fn silent_too_long(&self, now: Instant) -> bool {
        self.silent_since.is_some_and(|since| now.duration_since(since) >= PATIENCE)
    }
}

impl Choice {
    /// With a wish for one interface there is nothing to choose, also before that is found.
    pub(super) fn new(restricted: bool) -> Self {
        Self { restricted, ..Self::default() }
    }

    /// This is the one that was wished for.
    pub(super) fn require(&mut self, name: &str) {
        self.only = Some(name.to_owned());
    }

    /// It has this address now, or none.
    pub(super) fn lease(&mut self, name: &str, lease: Option<Lease>) {
        self.networks.entry(name.to_owned()).or_default().lease = lease;
    }

    /// What it has.
    pub(super) fn lease_of(&self, name: &str) -> Option<&Lease> {
        self.networks.get(name)?.lease.as_ref()
    }

    /// Whether there is a signal on its wire.
    pub(super) fn carrier(&mut self, name: &str, carrier: bool, now: Instant) {
        let network = self.networks.entry(name.to_owned()).or_default();
        network.silent_since = if carrier { None } else { network.silent_since.or(Some(now)) };
    }

    /// The interface is gone, with all that it had.
    pub(super) fn gone(&mut self, name: &str) {
        self.networks.remove(name);
    }

    /// Chooses.
    pub(super) fn uplink(&mut self, now: Instant) -> Option<Uplink> {
        self.chosen = self.best(now);
        let interface = self.chosen.clone()?;
        let lease = self.lease_of(&interface)?.clone();
        Some(Uplink { interface, lease })
    }

    fn best(&self, now: Instant) -> Option<String> {
        let has_address = |name: &String| self.lease_of(name).is_some();
        if self.restricted {
            return self.only.clone().filter(has_address);
        }
        let addressed = || self.networks.iter().filter(|(_, network)| network.lease.is_some());
        let chosen = self.chosen.clone().filter(has_address);
        let present = |name: &String| self.networks.get(name).is_some_and(|n| !n.silent_too_long(now));
        let alive = || addressed().find(|(_, network)| network.silent_since.is_none());
        let kept = chosen.clone().filter(present);
        let other = || alive().map(|(name, _)| name.clone());
        kept.or_else(other).or(chosen).or_else(|| addressed().next().map(|(name, _)| name.clone()))
    }

    /// Whether there has been no signal for so long that others should be used instead.
    pub(super) fn is_silent(&self, name: &str, now: Instant) -> bool {
        self.networks.get(name).is_some_and(|network| network.silent_too_long(now))
    }

    /// When the choice may change by itself.
    pub(super) fn poll_at(&self, now: Instant) -> Option<Instant> {
        let network = self.networks.get(self.chosen.as_ref()?)?;
        network.silent_since.map(|since| since + PATIENCE).filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn lease(net: u8) -> Lease {
        let address = Ipv4Addr::new(192, 168, net, 2);
        Lease { address, prefix: 24, gateway: None, dns: Vec::new(), ntp: Vec::new() }
    }

    fn chosen(choice: &mut Choice, now: Instant) -> Option<String> {
        choice.uplink(now).map(|uplink| uplink.interface)
    }

    #[test]
    fn the_first_address_counts_and_stays() {
        let (now, mut choice) = (Instant::now(), Choice::default());
        assert_eq!(chosen(&mut choice, now), None);
        choice.lease("eth1", Some(lease(1)));
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth1"));
        choice.lease("eth0", Some(lease(0)));
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth1"), "no change without need");
        choice.lease("eth1", None);
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth0"));
        choice.gone("eth0");
        assert_eq!(chosen(&mut choice, now), None);
    }

    #[test]
    fn a_cable_that_is_out_for_long_gives_way() {
        let (now, mut choice) = (Instant::now(), Choice::default());
        choice.lease("eth0", Some(lease(0)));
        choice.lease("eth1", Some(lease(1)));
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth0"));
        choice.carrier("eth0", false, now);
        choice.carrier("eth0", false, now + PATIENCE / 2);
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth0"));
        let due = choice.poll_at(now).unwrap();
        assert_eq!(due, now + PATIENCE, "counted from the first word of it");
        assert_eq!(chosen(&mut choice, due).as_deref(), Some("eth1"));
        choice.carrier("eth0", true, due);
        assert_eq!(chosen(&mut choice, due).as_deref(), Some("eth1"), "and does not come back by itself");
    }

    #[test]
    fn with_nothing_better_it_waits() {
        let (now, mut choice) = (Instant::now(), Choice::default());
        choice.lease("eth0", Some(lease(0)));
        choice.carrier("eth1", true, now);
        assert_eq!(chosen(&mut choice, now).as_deref(), Some("eth0"));
        choice.carrier("eth0", false, now);
        let later = now + PATIENCE * 9;
        assert_eq!(chosen(&mut choice, later).as_deref(), Some("eth0"));
        assert_eq!(choice.poll_at(later), None, "no busy waiting");
        choice.lease("eth1", Some(lease(1)));
        assert_eq!(chosen(&mut choice, later).as_deref(), Some("eth1"));
    }

    #[test]
    fn only_the_one_wished_for_will_do() {
        let (now, mut choice) = (Instant::now(), Choice::new(true));
        choice.lease("eth0", Some(lease(0)));
        assert_eq!(chosen(&mut choice, now), None, "it is not there yet");
        choice.require("eth1");
        assert_eq!(chosen(&mut choice, now), None);
        choice.lease("eth1", Some(lease(1)));
        choice.carrier("eth1", false, now);
        assert_eq!(chosen(&mut choice, now + PATIENCE * 2).as_deref(), Some("eth1"));
    }
}
