//! What survives what.
use super::view::{container, containers, wait_for_nodes, wait_for_state};
use crate::failure::{Failure, ensure};
use crate::vm::BOOT;
use crate::wait::until;
use crate::world::World;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A container that counts, so that a gap or a restart would show.
const COUNTER: &str = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done";

fn start_counter(world: &dyn World, node: &str) -> Result<u64, Failure> {
    let admin = world.admin();
    admin.ok(&["run", "-d", "--name", "counter", "--node", node, "client", "sh", "-c", COUNTER])?;
    let view = wait_for_state(admin, "counter", "running", SOON)?;
    ticks_beyond(world, 3)?;
    view.pid.ok_or_else(|| Failure::Unexpected(format!("a running container without pid: {view:?}")))
}

/// Waits until the counter is beyond `least`, checks that its output has no gap, and returns where it is.
fn ticks_beyond(world: &dyn World, least: usize) -> Result<usize, Failure> {
    until(&format!("tick {least} of the counter"), SOON, || {
        let text = world.admin().ok(&["logs", "counter"]).map_err(|error| error.to_string())?;
        let lines: Vec<&str> = text.lines().collect();
        let gap = lines.iter().enumerate().find(|(number, line)| **line != format!("tick {number}"));
        match gap {
            Some((number, line)) => Err(format!("line {number} is '{line}'")),
            None if lines.len() > least => Ok(lines.len()),
            None => Err(format!("{} lines", lines.len())),
        }
    })
}

fn same_process(world: &dyn World, pid: u64) -> Result<(), Failure> {
    let view = wait_for_state(world.admin(), "counter", "running", SOON)?;
    ensure(view.pid == Some(pid), || format!("it had pid {pid}, now {view:?}"))
}

fn first_node(world: &dyn World) -> String {
    world.nodes().first().cloned().unwrap_or_default()
}

pub(super) fn node_service(world: &mut dyn World) -> Result<(), Failure> {
    let node = first_node(world);
    let pid = start_counter(world, &node)?;
    for _ in 0..2 {
        let before = ticks_beyond(world, 0)?;
        world.crash_service(&node)?;
        wait_for_nodes(world, SOON)?;
        same_process(world, pid)?;
        ticks_beyond(world, before + 3)?;
        world.admin().run(&["exec", "counter", "--", "true"])?.expect_code(0)?;
    }
    world.admin().ok(&["rm", "-f", "counter"]).map(drop)
}

pub(super) fn broker(world: &mut dyn World) -> Result<(), Failure> {
    let node = first_node(world);
    let pid = start_counter(world, &node)?;
    let admin = world.admin();
    let (images, accounts) = (admin.json(&["images"])?, account_names(world)?);
    let before = ticks_beyond(world, 0)?;
    world.power_cut("broker")?;
    world.admin().refused(&["ps"], "broker")?;
    world.boot("broker")?;
    until("the broker's answer", BOOT, || world.admin().ok(&["ps"]).map_err(|error| error.to_string()))?;
    wait_for_nodes(world, BOOT)?;
    same_process(world, pid)?;
    ticks_beyond(world, before + 3)?;
    let admin = world.admin();
    ensure(admin.json(&["images"])? == images, || "images changed".into())?;
    let now = account_names(world)?;
    ensure(now == accounts, || format!("accounts were {accounts:?}, are {now:?}"))?;
    admin.ok(&["rm", "-f", "counter"]).map(drop)
}

fn account_names(world: &dyn World) -> Result<Vec<(String, String)>, Failure> {
    let list = world.admin().json(&["accounts"])?;
    let field = |account: &serde_json::Value, key: &str| account[key].as_str().unwrap_or_default().to_owned();
    Ok(list.as_array().into_iter().flatten().map(|a| (field(a, "label"), field(a, "key"))).collect())
}

/// Only where the broker's service can be killed without its board: sessions come back by themselves.
pub(super) fn broker_service(world: &mut dyn World) -> Result<(), Failure> {
    let node = first_node(world);
    let pid = start_counter(world, &node)?;
    let before = ticks_beyond(world, 0)?;
    world.crash_service("broker")?;
    until("the broker's answer", BOOT, || world.admin().ok(&["ps"]).map_err(|error| error.to_string()))?;
    wait_for_nodes(world, BOOT)?;
    same_process(world, pid)?;
    ticks_beyond(world, before + 3)?;
    world.admin().ok(&["rm", "-f", "counter"]).map(drop)
}

pub(super) fn partition(world: &mut dyn World) -> Result<(), Failure> {
    let node = world.nodes().last().cloned().unwrap_or_default();
    let pid = start_counter(world, &node)?;
    world.set_plugged(&node, false)?;
    until("the broker's notice", Duration::from_secs(90), || {
        let list = world.admin().json(&["resources"]).map_err(|error| error.to_string())?;
        let away =
            list.as_array().into_iter().flatten().any(|n| n["name"] == *node && n["connected"] == false);
        if away { Ok(()) } else { Err(list.to_string()) }
    })?;
    world.admin().refused(&["exec", "counter", "--", "true"], "node")?;
    ensure(container(world.admin(), "counter").is_ok(), || "a container of a lost node is forgotten".into())?;
    world.set_plugged(&node, true)?;
    wait_for_nodes(world, BOOT)?;
    same_process(world, pid)?;
    world.admin().ok(&["rm", "-f", "counter"])?;
    let left = containers(world.admin())?;
    ensure(left.is_empty(), || format!("containers are left over: {left:?}"))
}
