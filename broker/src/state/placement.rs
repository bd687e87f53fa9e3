//! Where a container goes, and why. Pure: candidates in, choice and reason out.
use super::bounds::EXPECTED_MEMORY_BYTES;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use wherry_protocol::Constraint;
use wherry_protocol::constraint::Board;
use wherry_protocol::message::NodeLoad;
use wherry_protocol::{ErrorCode, Name, NodeIndex, Overlay, WireError};

/// One connected board.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) index: NodeIndex,
    pub(super) name: Name,
    pub(super) architecture: String,
    pub(super) cpus: u16,
    pub(super) load: NodeLoad,
    /// Memory promised since the board last reported, in bytes.
    pub(super) promised_bytes: u64,
    /// Containers promised since then.
    pub(super) promised: u32,
    /// Whether its list of containers and its address range have room.
    pub(super) has_slot: bool,
    /// Its address on its own network, if that lies among the containers'.
    pub(super) own_address: Option<(Ipv4Addr, Overlay)>,
    /// A port that is to be published on the board, and that another container there has.
    pub(super) taken_port: Option<u16>,
    /// Whether a container of the same image is there already, so that it takes no more disk.
    pub(super) has_image: bool,
    /// What an admin has said about it.
    pub(super) labels: BTreeMap<String, String>,
}

/// What the container needs.
#[derive(Debug, Clone)]
pub(super) struct Need<'a> {
    pub(super) image: String,
    pub(super) architecture: &'a str,
    /// Bytes of the image, which may have to be unpacked there.
    pub(super) image_bytes: u64,
    pub(super) memory_bytes: Option<u64>,
    /// What the board must be.
    pub(super) constraints: Vec<&'a Constraint>,
}

/// The board and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) index: NodeIndex,
    pub(super) reason: String,
}

impl Candidate {
    fn free_bytes(&self) -> u64 {
        self.load.memory_available_bytes.saturating_sub(self.promised_bytes)
    }

    /// Load per CPU in thousandths, with every promised container counted as a tenth of a CPU.
    fn load_per_cpu(&self) -> u64 {
        (u64::from(self.load.load_milli) + u64::from(self.promised) * 100) / u64::from(self.cpus.max(1))
    }

    /// Free memory, divided by how busy the CPUs are: an idle board with half the memory wins against a board with a
    /// full queue.
    fn score(&self) -> u64 {
        self.free_bytes().saturating_mul(1000) / (1000 + self.load_per_cpu())
    }

    fn meets(&self, constraint: &Constraint) -> bool {
        let id = self.index.to_string();
        let board = Board { id: &id, name: self.name.as_str(), architecture: &self.architecture };
        constraint.is_met(board, |name| self.labels.get(name).map(String::as_str))
    }

    fn obstacle(&self, need: &Need<'_>) -> Option<String> {
        let wanted = need.memory_bytes.unwrap_or(0);
        if let Some(unmet) = need.constraints.iter().find(|constraint| !self.meets(constraint)) {
            Some(format!("does not meet {unmet}"))
        } else if self.architecture != need.architecture {
            Some(format!("is {}, {} is {}", self.architecture, need.image, need.architecture))
        } else if let Some((address, overlay)) = self.own_address {
            Some(format!(
                "has its own address {address} in the containers' network {overlay} (`overlay` in the broker's configuration chooses another)"
            ))
        } else if !self.has_slot {
            Some("holds as many containers as one board may".into())
        } else if let Some(port) = self.taken_port {
            Some(format!("has its port {port} published for another container"))
        } else if wanted > self.free_bytes() {
            Some(format!("has {} MiB of memory free, {} are asked for", mib(self.free_bytes()), mib(wanted)))
        } else if !self.has_image && self.load.disk_bytes > 0 && self.load.disk_free_bytes < need.image_bytes
        {
            let (free, size) = (mib(self.load.disk_free_bytes), mib(need.image_bytes));
            Some(format!("has {free} MiB of disk free, the image takes {size}"))
        } else {
            None
        }
    }
}

fn mib(bytes: u64) -> u64 {
    bytes / (1024 * 1024)
}

/// Memory to count for a container until its board reports its new load, in bytes.
pub(super) fn expected_memory(bound: Option<u64>) -> u64 {
    bound.map_or(EXPECTED_MEMORY_BYTES, |bound| bound.min(EXPECTED_MEMORY_BYTES))
}

/// The board that was asked for, if it can take it.
pub(super) fn named(candidate: &Candidate, need: &Need<'_>) -> Result<Choice, WireError> {
    match candidate.obstacle(need) {
        None => Ok(Choice { index: candidate.index, reason: "asked for".into() }),
        Some(obstacle) => {
            let text = format!(
                "{} {obstacle}: choose another node, or leave the choice to the broker",
                candidate.name
            );
            Err(WireError::new(ErrorCode::NoCapacity, text))
        }
    }
}

/// The board with most room.
pub(super) fn best(candidates: &[Candidate], need: &Need<'_>) -> Result<Choice, WireError> {
    let fitting: Vec<&Candidate> = candidates.iter().filter(|c| c.obstacle(need).is_none()).collect();
    // The lowest number wins a tie, so that the choice can be foretold.
    let best = fitting.iter().max_by_key(|c| (c.score(), std::cmp::Reverse(c.index)));
    match best {
        Some(best) => Ok(Choice { index: best.index, reason: reason(best, fitting.len(), candidates.len()) }),
        None => Err(WireError::new(ErrorCode::NoCapacity, nowhere(candidates, need))),
    }
}

fn reason(best: &Candidate, fitting: usize, connected: usize) -> String {
    let load = best.load.load_milli;
    let room = format!("{} MiB free, load {}.{:02}", mib(best.free_bytes()), load / 1000, load % 1000 / 10);
    match (fitting, connected) {
        (1, 1) => format!("only node: {room}"),
        (1, _) => format!("only node that fits: {room}"),
        (_, _) => format!("most room of {fitting}: {room}"),
    }
}

fn nowhere(candidates: &[Candidate], need: &Need<'_>) -> String {
    /// Boards named in the sentence; more would not be read.
    const SHOWN: usize = 3;
    if candidates.is_empty() {
        return "no node is connected: start one, or look with `wherry resources`".into();
    }
    let obstacles: Vec<String> = candidates
        .iter()
        .filter_map(|c| c.obstacle(need).map(|obstacle| format!("{} {obstacle}", c.name)))
        .take(SHOWN)
        .collect();
    let more = candidates.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!("; {more} more do not fit either") } else { String::new() };
    format!("no node can take it: {}{rest}", obstacles.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn board(index: u8, free_mib: u64, load_milli: u32) -> Candidate {
        Candidate {
            index: NodeIndex(index),
            name: format!("node{index}").parse().unwrap(),
            architecture: "amd64".into(),
            cpus: 1,
            load: NodeLoad {
                memory_available_bytes: free_mib * MIB,
                load_milli,
                disk_bytes: 1000 * MIB,
                disk_free_bytes: 500 * MIB,
                ..NodeLoad::default()
            },
            promised_bytes: 0,
            promised: 0,
            has_slot: true,
            own_address: None,
            taken_port: None,
            has_image: false,
            labels: BTreeMap::new(),
        }
    }

    fn need(memory_mib: Option<u64>) -> Need<'static> {
        Need {
            image: "web:latest".into(),
            architecture: "amd64",
            image_bytes: 10 * MIB,
            memory_bytes: memory_mib.map(|mib| mib * MIB),
            constraints: Vec::new(),
        }
    }

    #[test]
    fn most_room_wins_and_says_why() {
        let choice = best(&[board(1, 100, 100), board(2, 200, 130)], &need(None)).unwrap();
        assert_eq!(
            choice,
            Choice { index: NodeIndex(2), reason: "most room of 2: 200 MiB free, load 0.13".into() }
        );
        let choice = best(&[board(1, 100, 0), board(2, 150, 4000)], &need(None)).unwrap();
        assert_eq!(choice.index, NodeIndex(1), "a busy board loses against one with less memory");
        let choice = best(&[board(1, 100, 0), board(2, 100, 0)], &need(None)).unwrap();
        assert_eq!(choice.index, NodeIndex(1), "a tie goes to the lower number");
    }

    #[test]
    fn promises_spread_a_burst() {
        let mut first = board(1, 200, 0);
        first.promised_bytes = 150 * MIB;
        first.promised = 3;
        assert_eq!(best(&[first, board(2, 100, 0)], &need(None)).unwrap().index, NodeIndex(2));
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut arm = board(1, 900, 0);
        arm.architecture = "arm64".into();
        let mut full = board(2, 900, 0);
        full.load.disk_free_bytes = MIB;
        let mut crowded = board(3, 900, 0);
        crowded.has_slot = false;
        let all = [arm.clone(), full, crowded, board(4, 64, 0)];
        assert_eq!(
            best(&all, &need(Some(32))).unwrap().reason,
            "only node that fits: 64 MiB free, load 0.00"
        );
        let error = best(&all, &need(Some(128))).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoCapacity);
        assert_eq!(
            error.message,
            "no node can take it: node1 is arm64, web:latest is amd64; node2 has 1 MiB of disk free, the image takes \
             10; node3 holds as many containers as one board may; 1 more do not fit either"
        );
        let error = named(&arm, &need(None)).unwrap_err();
        assert!(error.message.starts_with("node1 is arm64, web:latest is amd64"), "{error}");
        assert!(best(&[], &need(None)).unwrap_err().message.starts_with("no node is connected"));
    }

    #[test]
    fn constraints_choose_and_are_named() {
        let top: Constraint = "node.labels.shelf==top".parse().unwrap();
        let need = Need { constraints: vec![&top], ..need(None) };
        let mut small = board(1, 64, 0);
        small.labels.insert("shelf".into(), "Top".into());
        assert_eq!(best(&[small, board(2, 900, 0)], &need).unwrap().index, NodeIndex(1));
        let error = best(&[board(2, 900, 0)], &need).unwrap_err();
        assert_eq!(error.message, "no node can take it: node2 does not meet node.labels.shelf==top");
        assert!(named(&board(2, 900, 0), &need).unwrap_err().message.contains("does not meet"));
    }
}
