//! What must hold, always or at rest.
use crate::cluster::Cluster;
use std::collections::{BTreeMap, BTreeSet};
use wherry_broker::record::{Container, Key, Link, Phase, Record};
use wherry_protocol::message::{Connection, ContainerState};
use wherry_protocol::*;

fn containers(cluster: &Cluster) -> BTreeMap<ContainerId, &Container> {
    let pairs = cluster.store.iter().filter_map(|(key, record)| match (key, record) {
        (Key::Container(id), Record::Container(container)) => Some((*id, &**container)),
        _ => None,
    });
    pairs.collect()
}

/// No board ever lets anybody through under an address that used to be somebody else's.
pub(crate) fn no_rule_for_another(cluster: &Cluster) {
    let mut holders = BTreeMap::new();
    for board in &cluster.boards {
        for (container, process) in &board.kernel.processes {
            let other = holders.insert(process.address, container.id);
            assert!(other.is_none_or(|other| other == container.id), "{} is in use twice", process.address);
        }
    }
    for board in &cluster.boards {
        for rule in &board.kernel.network.connections {
            for (id, address) in [(rule.from, rule.from_address), (rule.to, rule.to_address)] {
                let holder = holders.get(&address);
                assert!(
                    holder.is_none_or(|holder| *holder == id),
                    "board {} has a rule for {id} at {address}, where {holder:?} is now",
                    board.number
                );
            }
        }
    }
}

/// A container runs once, on one board.
pub(crate) fn one_life_at_a_time(cluster: &Cluster, container: ContainerRef) {
    let lives = cluster
        .boards
        .iter()
        .flat_map(|board| board.kernel.processes.keys())
        .filter(|c| c.id == container.id);
    assert_eq!(lives.count(), 1, "{container} runs more than once");
}

/// Nothing is under way any more: then the boards are what the broker remembers, exactly.
pub(crate) fn at_rest(cluster: &Cluster) {
    let broker = cluster.broker.as_ref().expect("it is up");
    assert_eq!(broker.durable(), cluster.store);
    assert!(cluster.boards.iter().all(|board| board.session.is_some()), "every board has come back");
    let containers = containers(cluster);
    for (id, container) in &containers {
        assert!(!matches!(container.phase, Phase::Removing { .. }), "{id} is still being removed");
        let board = &cluster.boards[usize::from(container.node.0) - 1];
        let life = ContainerRef { id: *id, generation: container.generation };
        let runs = board.kernel.processes.contains_key(&life);
        match container.state {
            ContainerState::Running { .. } => assert!(runs, "{life} should run on {}", container.node),
            ContainerState::Exited { .. } | ContainerState::Failed(_) | ContainerState::Restarting { .. } => {
                assert!(!runs, "{life} should not run")
            }
            ContainerState::Pending | ContainerState::Preparing => {
                panic!("{life} never started: {container:?}")
            }
        }
    }
    for board in &cluster.boards {
        for life in board.kernel.processes.keys() {
            assert!(
                containers.contains_key(&life.id),
                "{life} runs on board {}, unknown to the broker",
                board.number
            );
        }
    }
    networks(cluster, &containers);
}

fn networks(cluster: &Cluster, containers: &BTreeMap<ContainerId, &Container>) {
    let links: Vec<Link> = cluster
        .store
        .keys()
        .filter_map(|key| match key {
            Key::Link(link) => Some(*link),
            _ => None,
        })
        .collect();
    for (position, board) in cluster.boards.iter().enumerate() {
        let index = NodeIndex(u8::try_from(position + 1).expect("254 at most"));
        let Some(Record::Node(node)) = cluster.store.get(&Key::Node(index)) else {
            panic!("{index} is unknown")
        };
        let applied = &board.kernel.network;
        // One that never had a connection was told so when it came, in revision 0.
        assert_eq!(applied.revision, node.revision, "network of {index}");
        let wanted: BTreeSet<Connection> = links
            .iter()
            .filter(|link| [link.from, link.to].iter().any(|end| containers[end].node == index))
            .map(|link| link.with_addresses(containers[&link.from].address, containers[&link.to].address))
            .collect();
        let found: BTreeSet<Connection> = applied.connections.iter().copied().collect();
        assert_eq!(wanted, found, "connections of {index}");
        let peers: BTreeSet<NodeIndex> = links
            .iter()
            .flat_map(|link| [containers[&link.from].node, containers[&link.to].node])
            .collect::<BTreeSet<_>>();
        assert!(applied.peers.iter().all(|peer| peers.contains(&peer.index) && peer.index != index));
    }
}

/// Without a broker that falls every question has an answer.
pub(crate) fn everything_answered(cluster: &Cluster) {
    assert_eq!(cluster.asked.len(), 0);
    assert_eq!(cluster.figures.lost, 0);
}
