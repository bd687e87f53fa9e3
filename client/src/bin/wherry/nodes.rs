//! `resources`, and the hidden `debug`.
use crate::context::{CliError, Context};
use crate::{output, view};
use clap::Subcommand;
use wherry_client::Node;
use wherry_protocol::message::NodeInfo;

/// The boards.
pub(crate) async fn resources(context: &Context) -> Result<u8, CliError> {
    let nodes = context.location()?.nodes().await?;
    if context.json {
        output::json(&nodes.iter().map(|node| view::Node::of(node.info())).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node.info())).collect();
    output::table(
        &[
            "NODE",
            "INDEX",
            "ARCH",
            "CPUS",
            "MEMORY FREE",
            "LOAD",
            "CPU",
            "DISK FREE",
            "CONTAINERS",
            "STATE",
            "UP",
        ],
        &rows,
    )?;
    Ok(0)
}

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
