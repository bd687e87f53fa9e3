//! The scenarios with the boards' programs as processes in network namespaces. Needs root.
use wherry_tests::{Netns, netns, scenario};

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
