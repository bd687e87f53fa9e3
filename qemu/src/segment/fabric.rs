//! The switch itself: where does a frame go? No sockets, no clock; chance comes from a seed.
use crate::machine::Mac;
use std::collections::HashMap;

/// Most addresses learnt; beyond them frames are flooded. Stops a guest that invents source addresses from filling
/// our memory.
const MAX_LEARNT: usize = 1024;
/// Destination, source and type (IEEE 802.3 §3.1.1).
const HEADER_BYTES: usize = 14;
/// Largest frame carried, in bytes: 9000 of payload ("jumbo"), header and two VLAN tags.
pub(crate) const MAX_FRAME_BYTES: usize = 9000 + HEADER_BYTES + 8;
const MILLION: u32 = 1_000_000;

/// A port's number within its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub(crate) usize);

/// What is wrong with the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of a million deliveries so many are lost, by chance.
    pub loss_per_million: u32,
}

/// What a segment has carried since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in.
    pub received: u64,
    /// Bytes of those.
    pub received_bytes: u64,
    /// Copies that went out to a port.
    pub delivered: u64,
    /// Copies lost on purpose: by chance, or at a port that is cut off.
    pub lost: u64,
    /// Copies dropped because the port's queue was full.
    pub overflowed: u64,
    /// Frames refused: too short or too long for Ethernet.
    pub malformed: u64,
}

#[derive(Debug, Default)]
struct PortState {
    cut: bool,
}

/// A learning switch.
#[derive(Debug)]
pub(crate) struct Fabric {
    ports: Vec<PortState>,
    learnt: HashMap<Mac, Port>,
    faults: Faults,
    random: SplitMix,
    pub(crate) counters: Counters,
}

impl Fabric {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            ports: Vec::new(),
            learnt: HashMap::new(),
            faults: Faults::default(),
            random: SplitMix(seed),
            counters: Counters::default(),
        }
    }

    pub(crate) fn add_port(&mut self) -> Port {
        self.ports.push(PortState::default());
        Port(self.ports.len().saturating_sub(1))
    }

    pub(crate) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(crate) fn set_cut(&mut self, port: Port, cut: bool) {
        if let Some(state) = self.ports.get_mut(port.0) {
            state.cut = cut;
        }
    }

    /// Takes in a frame from `from` and says to which ports it goes.
    pub(crate) fn receive(&mut self, from: Port, frame: &[u8]) -> Vec<Port> {
        let counters = &mut self.counters;
        let Some((destination, source)) = addresses(frame).filter(|_| frame.len() <= MAX_FRAME_BYTES) else {
            counters.malformed = counters.malformed.saturating_add(1);
            return Vec::new();
        };
        counters.received = counters.received.saturating_add(1);
        counters.received_bytes = counters.received_bytes.saturating_add(frame.len() as u64);
        if self.is_cut(from) {
            self.counters.lost = self.counters.lost.saturating_add(1);
            return Vec::new();
        }
        self.learn(source, from);
        let mut targets = self.targets(destination, from);
        let wanted = targets.len();
        targets.retain(|port| !self.is_cut(*port));
        targets.retain(|_| !self.random.chance(self.faults.loss_per_million));
        let lost = wanted.saturating_sub(targets.len()) as u64;
        self.counters.lost = self.counters.lost.saturating_add(lost);
        targets
    }

    fn is_cut(&self, port: Port) -> bool {
        self.ports.get(port.0).is_none_or(|state| state.cut)
    }

    fn learn(&mut self, source: Mac, from: Port) {
        let room = self.learnt.len() < MAX_LEARNT || self.learnt.contains_key(&source);
        if !source.is_group() && room {
            self.learnt.insert(source, from);
        }
    }

    fn targets(&self, destination: Mac, from: Port) -> Vec<Port> {
        match self.learnt.get(&destination) {
            Some(port) if *port == from => Vec::new(),
            Some(port) => vec![*port],
            None => (0..self.ports.len()).map(Port).filter(|port| *port != from).collect(),
        }
    }
}

fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.first_chunk::<HEADER_BYTES>()?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, _, _] = *header;
    Some((Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5])))
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014): small, and the same on every machine.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.next() % u64::from(MILLION) < u64::from(per_million)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac::local(0, 1);
    const B: Mac = Mac::local(0, 2);

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to.0[..], &from.0, &[0x08, 0x00], &[0; 46]].concat()
    }

    fn fabric(ports: usize) -> (Fabric, Vec<Port>) {
        let mut fabric = Fabric::new(1);
        let ports = (0..ports).map(|_| fabric.add_port()).collect();
        (fabric, ports)
    }

    #[test]
    fn floods_until_it_has_learnt() {
        let (mut fabric, p) = fabric(3);
        assert_eq!(fabric.receive(p[0], &frame(B, A)), [p[1], p[2]]);
        assert_eq!(fabric.receive(p[1], &frame(A, B)), [p[0]]);
        assert_eq!(fabric.receive(p[0], &frame(B, A)), [p[1]]);
        assert_eq!(fabric.receive(p[0], &frame(Mac::BROADCAST, A)), [p[1], p[2]]);
        assert_eq!(fabric.receive(p[0], &frame(A, A)), [], "not back to where it came from");
    }

    #[test]
    fn a_station_that_moves_is_found_again() {
        let (mut fabric, p) = fabric(3);
        fabric.receive(p[0], &frame(Mac::BROADCAST, A));
        fabric.receive(p[2], &frame(Mac::BROADCAST, A));
        assert_eq!(fabric.receive(p[1], &frame(A, B)), [p[2]]);
    }

    #[test]
    fn a_cut_port_neither_sends_nor_receives() {
        let (mut fabric, p) = fabric(3);
        fabric.set_cut(p[1], true);
        assert_eq!(fabric.receive(p[0], &frame(Mac::BROADCAST, A)), [p[2]]);
        assert_eq!(fabric.receive(p[1], &frame(Mac::BROADCAST, B)), []);
        fabric.set_cut(p[1], false);
        assert_eq!(fabric.receive(p[1], &frame(A, B)), [p[0]]);
        assert_eq!(fabric.counters.lost, 2);
    }

    #[test]
    fn loss_is_what_was_asked_and_repeats_with_its_seed() {
        let run = || {
            let (mut fabric, p) = fabric(2);
            fabric.set_faults(Faults { loss_per_million: 250_000 });
            (0..4000).map(|_| fabric.receive(p[0], &frame(B, A)).len()).collect::<Vec<_>>()
        };
        let delivered: usize = run().iter().sum();
        assert!((2800..3200).contains(&delivered), "{delivered} of 4000 with a quarter lost");
        assert_eq!(run(), run());
    }

    #[test]
    fn malformed_frames_go_nowhere() {
        let (mut fabric, p) = fabric(2);
        for bad in [&[][..], &[0; 13], &[0; MAX_FRAME_BYTES + 1]] {
            assert_eq!(fabric.receive(p[0], bad), []);
        }
        assert_eq!(fabric.counters.malformed, 3);
        assert_eq!(fabric.counters.received, 0);
    }

    #[test]
    fn invented_addresses_are_bounded_and_groups_never_learnt() {
        let (mut fabric, p) = fabric(2);
        for number in 0..5000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            fabric.receive(p[0], &frame(B, Mac([0x02, 0, 0, a, b, c])));
        }
        fabric.receive(p[0], &frame(B, Mac([0x01, 0, 0x5e, 0, 0, 1])));
        assert_eq!(fabric.learnt.len(), MAX_LEARNT);
        assert!(fabric.learnt.keys().all(|mac| !mac.is_group()));
    }
}
