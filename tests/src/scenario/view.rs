//! What the command line says about the cluster.
use crate::cli::Wherry;
use crate::failure::Failure;
use crate::wait::until;
use crate::world::World;
use serde_json::Value;
use std::time::Duration;

/// One container, as `wherry --json ps -a` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// The board it is on.
    pub node: String,
    /// Its address on the overlay.
    pub address: String,
    /// Its IPv6 address.
    pub address6: String,
    /// `running`, `exited`, …
    pub state: String,
    /// Process id on its node, while it runs.
    pub pid: Option<u64>,
    /// How it ended, as a shell has it.
    pub exit_code: Option<i64>,
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// All containers that `who` sees.
pub fn containers(who: &Wherry) -> Result<Vec<ContainerView>, Failure> {
    let list = who.json(&["ps", "-a"])?;
    let list = list
        .as_array()
        .ok_or_else(|| Failure::Unexpected(format!("`wherry --json ps -a` is no list: {list}")))?;
    let view = |value: &Value| ContainerView {
        name: text(value, "name"),
        node: text(value, "node"),
        address: text(value, "address"),
        address6: text(value, "address6"),
        state: text(value, "state"),
        pid: value.get("pid").and_then(Value::as_u64),
        exit_code: value.get("exit_code").and_then(Value::as_i64),
    };
    Ok(list.iter().map(view).collect())
}

/// One container by its name.
pub fn container(who: &Wherry, name: &str) -> Result<ContainerView, Failure> {
    let all = containers(who)?;
    let found = all.iter().find(|container| container.name == name).cloned();
    found.ok_or_else(|| Failure::Unexpected(format!("there is no container '{name}' among {all:?}")))
}

/// Waits until a container is in `state`.
pub fn wait_for_state(
    who: &Wherry,
    name: &str,
    state: &str,
    timeout: Duration,
) -> Result<ContainerView, Failure> {
    until(&format!("container '{name}' {state}"), timeout, || match container(who, name) {
        Ok(view) if view.state == state => Ok(view),
        Ok(view) => Err(format!("{view:?}")),
        Err(error) => Err(error.to_string()),
    })
}

/// Waits until every node of the world is connected.
pub fn wait_for_nodes(world: &dyn World, timeout: Duration) -> Result<(), Failure> {
    let wanted = world.nodes();
    until("all nodes connected", timeout, || {
        let list = world.admin().json(&["resources"]).map_err(|error| error.to_string())?;
        let connected = |node: &Value| node.get("connected").and_then(Value::as_bool) == Some(true);
        let present: Vec<String> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter(|node| connected(node))
            .map(|node| text(node, "name"))
            .collect();
        if wanted.iter().all(|name| present.contains(name)) {
            Ok(())
        } else {
            Err(format!("connected: {present:?}"))
        }
    })
}
