//! `top`, `stats`: what runs in containers, and what they use.
use crate::context::{CliError, Context};
use crate::output;
use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;
use wherry_client::{ClientError, Container, Location};
use wherry_protocol::message::{ContainerState, ContainerStats, Drops, ProcessInfo};
use wherry_protocol::{ContainerId, ErrorCode};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is not counted.
const NONE: &str = "-";

/// `wherry top`
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Name or id.
    container: String,
}

/// `wherry stats`
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Look once, and end.
    #[arg(long)]
    no_stream: bool,
    /// Names or ids; all that run otherwise.
    containers: Vec<String>,
}

#[derive(Serialize)]
struct ProcessLine<'a> {
    pid: u32,
    parent: u32,
    uid: u32,
    state: char,
    cpu_ms: u64,
    resident_bytes: u64,
    command: &'a str,
}

impl<'a> ProcessLine<'a> {
    fn of(info: &'a ProcessInfo) -> Self {
        let &ProcessInfo { pid, parent, uid, state, cpu_ms, resident_bytes, ref command } = info;
        Self { pid, parent, uid, state, cpu_ms, resident_bytes, command }
    }
}

/// What runs in a container.
pub(crate) async fn top(context: &Context, args: &Top) -> Result<u8, CliError> {
    let processes = context.container(&args.container)?.processes().await?;
    if context.json {
        output::json(&processes.iter().map(ProcessLine::of).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let row = |info: &ProcessInfo| {
        vec![
            info.pid.to_string(),
            info.parent.to_string(),
            info.uid.to_string(),
            info.state.to_string(),
            format!("{:.2} s", info.cpu_ms as f64 / 1000.0),
            output::bytes(info.resident_bytes),
            info.command.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = processes.iter().map(row).collect();
    output::table(&["PID", "PARENT", "UID", "STATE", "CPU", "MEMORY", "COMMAND"], &rows)?;
    Ok(0)
}

/// One container's use at one moment.
struct Sample {
    id: ContainerId,
    name: String,
    stats: ContainerStats,
    /// CPU time per time since the last look, in hundredths of one CPU.
    cpu_percent: Option<f64>,
}

#[derive(Serialize)]
struct StatsLine<'a> {
    id: String,
    name: &'a str,
    time_ms: u64,
    cpu_percent: Option<f64>,
    cpu_us: Option<u64>,
    memory_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    pids: Option<u64>,
    received_bytes: Option<u64>,
    sent_bytes: Option<u64>,
    /// Packets, by reason.
    dropped: Option<Drops>,
}

/// What containers use, again and again.
pub(crate) async fn stats(context: &Context, args: &Stats) -> Result<u8, CliError> {
    let location = context.location()?;
    let mut before: HashMap<ContainerId, ContainerStats> = HashMap::new();
    let clear = !context.json && !args.no_stream && std::io::stdout().is_terminal();
    // A share of CPU needs two looks.
    look(&location, &args.containers, &mut before).await?;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let samples = look(&location, &args.containers, &mut before).await?;
        if clear {
            // Home, and clear to the end of the screen (ECMA-48, CUP and ED).
            output::raw(b"\x1b[H\x1b[J")?;
        }
        print(context, &samples)?;
        if args.no_stream {
            return Ok(0);
        }
    }
}

async fn look(
    location: &Location,
    named: &[String],
    before: &mut HashMap<ContainerId, ContainerStats>,
) -> Result<Vec<Sample>, CliError> {
    let wanted = running(location, named).await?;
    let asked = join_all(wanted.iter().map(|(_, _, container)| container.stats())).await;
    let mut samples = Vec::new();
    for ((id, name, _), stats) in wanted.into_iter().zip(asked) {
        let stats = match stats {
            Ok(stats) => stats,
            // It has ended, or its board has gone, since the list was made.
            Err(error) if named.is_empty() && is_passing(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let cpu_percent = before.insert(id, stats).and_then(|old| share(&old, &stats));
        samples.push(Sample { id, name, stats, cpu_percent });
    }
    Ok(samples)
}

fn is_passing(error: &ClientError) -> bool {
    matches!(error.code(), Some(ErrorCode::WrongState | ErrorCode::NotFound | ErrorCode::NodeUnreachable))
}

async fn running(
    location: &Location,
    named: &[String],
) -> Result<Vec<(ContainerId, String, Container)>, CliError> {
    let handle = |id| location.container(wherry_protocol::message::ContainerSelector::Id(id));
    if !named.is_empty() {
        let mut found = Vec::new();
        for text in named {
            let info = location.container(wherry_client::selector(text)?).inspect().await?;
            found.push((info.id, info.name.to_string(), handle(info.id)));
        }
        return Ok(found);
    }
    let mut all = location.containers(false).await?;
    all.retain(|info| matches!(info.state, ContainerState::Running { .. }) && info.node_connected);
    all.sort_by_key(|info| info.id);
    Ok(all.into_iter().map(|info| (info.id, info.name.to_string(), handle(info.id))).collect())
}

/// `None` after a restart, and where nothing is counted.
fn share(old: &ContainerStats, new: &ContainerStats) -> Option<f64> {
    let time_us = new.time_ms.checked_sub(old.time_ms).filter(|ms| *ms > 0)?.saturating_mul(1000);
    let cpu_us = new.cpu_us?.checked_sub(old.cpu_us?)?;
    Some(cpu_us as f64 * 100.0 / time_us as f64)
}

fn print(context: &Context, samples: &[Sample]) -> Result<(), CliError> {
    if context.json {
        return samples.iter().try_for_each(|sample| {
            let ContainerStats {
                time_ms,
                cpu_us,
                memory_bytes,
                memory_limit_bytes,
                pids,
                received_bytes,
                sent_bytes,
                dropped,
            } = sample.stats;
            output::json_line(&StatsLine {
                id: sample.id.to_string(),
                name: &sample.name,
                time_ms,
                cpu_percent: sample.cpu_percent,
                cpu_us,
                memory_bytes,
                memory_limit_bytes,
                pids,
                received_bytes,
                sent_bytes,
                dropped,
            })
        });
    }
    let rows: Vec<Vec<String>> = samples.iter().map(row).collect();
    output::table(&["ID", "NAME", "CPU", "MEMORY", "RECEIVED", "SENT", "DROPPED", "PROCESSES"], &rows)
}

fn row(sample: &Sample) -> Vec<String> {
    let stats = &sample.stats;
    let bytes = |count: Option<u64>| count.map_or_else(|| NONE.to_owned(), output::bytes);
    let memory = match stats.memory_limit_bytes {
        Some(limit) => format!("{} / {}", bytes(stats.memory_bytes), output::bytes(limit)),
        None => bytes(stats.memory_bytes),
    };
    vec![
        sample.id.to_string(),
        sample.name.clone(),
        sample.cpu_percent.map_or_else(|| NONE.to_owned(), |percent| format!("{percent:.1}%")),
        memory,
        bytes(stats.received_bytes),
        bytes(stats.sent_bytes),
        stats.dropped.map_or_else(|| NONE.to_owned(), |dropped| dropped.total().to_string()),
        stats.pids.map_or_else(|| NONE.to_owned(), |pids| pids.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_cpu_needs_two_looks_at_one_life() {
        let at = |time_ms, cpu_us| ContainerStats { time_ms, cpu_us, ..ContainerStats::default() };
        assert_eq!(share(&at(1000, Some(0)), &at(2000, Some(500_000))), Some(50.0));
        assert_eq!(share(&at(1000, Some(9)), &at(2000, Some(0))), None, "another life");
        assert_eq!(share(&at(1000, Some(0)), &at(1000, Some(5))), None, "no time has passed");
        assert_eq!(share(&at(1000, None), &at(2000, Some(5))), None, "not counted");
    }
}
