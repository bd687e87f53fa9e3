//! `resources`, `node`, and the hidden `debug`.
use crate::context::{CliError, Context};
use crate::{output, view};
use clap::Subcommand;
use wherry_client::Node;
use wherry_protocol::message::NodeInfo;

/// `wherry node`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Give a board labels, or take them away; `run --constraint node.labels.NAME==VALUE` goes by them.
    Label {
        /// Its name or number (n2).
        node: String,
        /// Labels: name=value.
        #[arg(value_name = "NAME=VALUE", value_parser = wherry_protocol::constraint::label, required_unless_present = "remove")]
        labels: Vec<(String, String)>,
        /// Take this label away.
        #[arg(long = "rm", value_name = "NAME")]
        remove: Vec<String>,
    },
}

/// Says things about boards.
pub(crate) async fn node(context: &Context, command: NodeCommand) -> Result<u8, CliError> {
    match command {
        NodeCommand::Label { node, labels, remove } => {
            let labelled = context.location()?.label_node(&node, labels, remove).await?;
            match context.json {
                true => output::json(&view::Node::of(labelled.info()))?,
                false => output::line(&format!("{} {}", labelled.info().name, labels_of(labelled.info())))?,
            }
            Ok(0)
        }
    }
}

fn labels_of(info: &NodeInfo) -> String {
    let labels: Vec<String> =
        info.labels.iter().map(|(name, value)| format!("{name}={}", output::printable(value))).collect();
    if labels.is_empty() { "has no labels".into() } else { labels.join(" ") }
}

/// The boards.
pub(crate) async fn resources(context: &Context) -> Result<u8, CliError> {
    let nodes = context.location()?.nodes().await?;
    if context.json {
        output::json(&nodes.iter().map(|node| view::Node::of(node.info())).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut heading = HEADING.to_vec();
    let mut rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node.info())).collect();
    if nodes.iter().any(|node| !node.info().labels.is_empty()) {
        heading.push("LABELS");
        for (row, node) in rows.iter_mut().zip(&nodes) {
            row.push(if node.info().labels.is_empty() { "-".into() } else { labels_of(node.info()) });
        }
    }
    output::table(&heading, &rows)?;
    Ok(0)
}

const HEADING: [&str; 11] =
    ["NODE", "INDEX", "ARCH", "CPUS", "MEMORY FREE", "LOAD", "CPU", "DISK FREE", "CONTAINERS", "STATE", "UP"];

fn row(info: &NodeInfo) -> Vec<String> {
    let unknown = || "-".to_owned();
    let facts = info.facts.as_ref();
    let load = info.load.as_ref();
    let part = |free: u64, total: u64| format!("{} / {}", output::bytes(free), output::bytes(total));
    vec![
        info.name.to_string(),
        info.index.to_string(),
        facts.map_or_else(unknown, |facts| facts.architecture.clone()),
        facts.map_or_else(unknown, |facts| facts.cpus.to_string()),
        load.zip(facts)
            .map_or_else(unknown, |(load, facts)| part(load.memory_available_bytes, facts.memory_bytes)),
        load.map_or_else(unknown, |load| format!("{:.2}", f64::from(load.load_milli) / 1000.0)),
        load.map_or_else(unknown, |load| format!("{:.0}%", f64::from(load.cpu_busy_milli) / 10.0)),
        load.map_or_else(unknown, |load| part(load.disk_free_bytes, load.disk_bytes)),
        info.containers.to_string(),
        if info.connected { "up" } else { "away" }.into(),
        load.map_or_else(unknown, |load| output::span(load.uptime_seconds)),
    ]
}

/// `wherry debug`
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Make a node's service abort; only test images obey.
    CrashNode {
        /// Its name or number (n2).
        node: String,
    },
}

/// Drives test images.
pub(crate) async fn debug(context: &Context, command: &DebugCommand) -> Result<u8, CliError> {
    match command {
        DebugCommand::CrashNode { node } => {
            let missing =
                || CliError::Other(format!("no node is called '{node}': `wherry resources` lists them"));
            let found: Node = context.location()?.node(node).await?.ok_or_else(missing)?;
            found.crash().await?;
            match context.json {
                true => output::json(&serde_json::json!({ "crashed": found.info().name }))?,
                false => output::line(found.info().name.as_str())?,
            }
            Ok(0)
        }
    }
}
