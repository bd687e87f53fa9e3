//! The scenarios, in the order in which they tell the story of a cluster. Each leaves it as it found it, but for
//! images that later ones use.
mod bad_input;
mod containers;
mod crashes;
mod disks;
mod enrolment;
mod images;
mod live;
mod network;
mod registry;
mod ssh;
mod view;
mod web;

pub use view::{ContainerView, container, containers, wait_for_nodes, wait_for_state};

use crate::failure::Failure;
use crate::world::World;
use std::time::Instant;

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What it shows, as a sentence.
    pub name: &'static str,
    run: fn(&mut dyn World) -> Result<(), Failure>,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn scenario(name: &'static str, run: fn(&mut dyn World) -> Result<(), Failure>) -> Scenario {
    Scenario { name, run }
}

/// All of them. Those that need what a world lacks show there what it does instead.
pub const ALL: &[Scenario] = &[
    scenario("resources show every node with what it is and has", enrolment::resources),
    scenario("a token is good once, and only if it is right", enrolment::tokens),
    scenario("an account sees and touches only its own", enrolment::isolation),
    scenario("pushing sends what is missing and nothing else", images::push),
    scenario("a real registry gives an image: openly, for a login, for a token", registry::pull),
    scenario("an image of podman's storage is pushed, and goes by its id", registry::storage),
    scenario("archives that are no images are refused in one sentence", bad_input::archives),
    scenario("run, logs, exec, stop and rm give the right exit codes", containers::lifecycle),
    scenario("output, arguments, environment and signals arrive", containers::streams),
    scenario("containers start with few rights", containers::confinement),
    scenario("a terminal is a terminal, from here to the program", containers::terminal),
    scenario("bounds of memory, processes and CPU hold", containers::limits),
    scenario("what should run is started again, what was stopped is not", containers::restarts),
    scenario("settings are as wished, or refused in one sentence", containers::settings),
    scenario("files go in and come out", containers::copies),
    scenario("a paused container stands still, one that sleeps is woken", live::pause_and_sleep),
    scenario("ready is who answers, and who is ill is started again", live::health),
    scenario("files are given, boards are chosen by labels", live::files_and_places),
    scenario("what a container writes is shown, kept as an image, or thrown away", live::files_over_time),
    scenario("unknown and taken names are refused in one sentence", bad_input::names),
    scenario(
        "what is not connected cannot talk, what is connected can, until it is taken back",
        network::connections,
    ),
    scenario("a tunnel leads from here into a container", network::tunnel),
    scenario("ssh, scp and sftp lead into a container, and nobody else in", ssh::bridge),
    scenario("a crash of the node's service leaves containers running", crashes::node_service),
    scenario("a broker that comes back knows everything", crashes::broker),
    scenario("a node that was cut off comes back with its containers", crashes::partition),
    scenario("garbage on the ports harms nobody", bad_input::garbage),
    scenario("a full disk of a node is told, and is well again", disks::full_node),
    scenario("a full disk of the broker is told, and is well again", disks::full_broker),
    scenario("a push survives power cuts of the broker", disks::cut_push),
];

/// Those that need the boards' processes within reach.
pub const OF_PROCESSES: &[Scenario] = &[
    scenario("a name on the web leads to containers, and to nobody but those who may", web::endpoint),
    scenario("a crash of the broker's service leaves everything as it was", crashes::broker_service),
];

/// A few that touch everything once, for worlds that are slow to emulate.
pub const RICH: &[Scenario] = &[
    scenario("resources show every node with what it is and has", enrolment::resources),
    scenario("pushing sends what is missing and nothing else", images::push),
    scenario("run, logs, exec, stop and rm give the right exit codes", containers::lifecycle),
    scenario(
        "what is not connected cannot talk, what is connected can, until it is taken back",
        network::connections,
    ),
    scenario("a crash of the node's service leaves containers running", crashes::node_service),
    scenario("a broker that comes back knows everything", crashes::broker),
];

/// Runs `scenarios` one after the other, printing each with its time. The first that fails ends it, with the consoles.
pub fn run(world: &mut dyn World, scenarios: &[Scenario]) -> Result<(), Failure> {
    for Scenario { name, run } in scenarios {
        let started = Instant::now();
        if let Err(failure) = run(world) {
            return Err(Failure::Unexpected(format!("'{name}' failed: {failure}\n{}", world.report())));
        }
        eprintln!("  {:6.2} s  {name}", started.elapsed().as_secs_f64());
    }
    Ok(())
}
