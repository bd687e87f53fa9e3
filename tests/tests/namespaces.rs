//! The scenarios with the boards' programs as processes in network namespaces. Needs root.
use std::net::Ipv4Addr;
use std::time::Duration;
use wherry_tests::impostor::Impostor;
use wherry_tests::wait::until;
use wherry_tests::{Failure, Netns, World as _, ensure, netns, scenario};

#[test]
fn scenarios_in_namespaces() {
    let outcome = netns::inside("scenarios_in_namespaces", || {
        let mut world = Netns::start(2)?;
        scenario::run(&mut world, scenario::ALL)?;
        scenario::run(&mut world, scenario::OF_PROCESSES)
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// The laptop's address is the impostor's.
const IMPOSTOR: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 254);

#[test]
fn nodes_find_their_broker_past_an_impostor() {
    let outcome = netns::inside("nodes_find_their_broker_past_an_impostor", || {
        let world =
            Netns::start_finding(2, |broker| Impostor::start(broker, IMPOSTOR)?.wait_for_questions(2, 4))?;
        lies_are_counted(&world)
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn a_node_with_another_address_comes_back() {
    let outcome = netns::inside("a_node_with_another_address_comes_back", || {
        let mut world = Netns::start(1)?;
        let (old, new) = (underlay(&world)?, Ipv4Addr::new(192, 168, 50, 77));
        world.renumber("node1", old, new)?;
        until("the node at its new address", Duration::from_secs(60), || match underlay(&world) {
            Ok(now) if now == new => Ok(()),
            other => Err(format!("{other:?}")),
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn underlay(world: &Netns) -> Result<Ipv4Addr, Failure> {
    let nodes = world.admin().json(&["resources"])?;
    let text = nodes[0]["underlay"].as_str().unwrap_or_default();
    text.parse().map_err(|_| Failure::Unexpected(format!("no address in {nodes}")))
}

fn lies_are_counted(world: &Netns) -> Result<(), Failure> {
    let nodes = world.admin().json(&["resources"])?;
    for node in nodes.as_array().into_iter().flatten() {
        let refused = &node["refused_answers"];
        let count = |reason: &str| refused[reason].as_u64().unwrap_or_default();
        let counted = ["forged", "stale", "malformed"].iter().all(|reason| count(reason) > 0);
        ensure(counted && count("elsewhere") == 0, || format!("{node}"))?;
    }
    let report = world.report();
    ensure(report.contains("in the broker's place and is not believed"), || report.clone())
}
