//! `ps`, `inspect`, `logs`, `stop`, `start`, `restart`, `rename`, `kill`, `rm`, `wait`.
use crate::context::{CliError, Context, for_each};
use crate::probe_flags::Readiness;
use crate::{output, parse, pump, signals, view};
use clap::Args;
use wherry_client::Container;
use wherry_protocol::Name;
use wherry_protocol::message::{Condition, ContainerInfo, ContainerState, LogQuery, LogSince};

/// `wherry ps`
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that have ended.
    #[arg(short, long)]
    all: bool,
    /// Those of all accounts (admins only).
    #[arg(long)]
    all_accounts: bool,
    /// Print only ids.
    #[arg(short, long)]
    quiet: bool,
}

/// `wherry inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry logs`
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
    /// Only what came later: 10m for the last ten minutes, or a time as in 2026-11-25T18:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse::since)]
    since: Option<LogSince>,
    /// Begin each line with the time when it came, by the board's clock.
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id.
    container: String,
}

/// `wherry stop`
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds until SIGKILL; the container's own setting otherwise, or 10.
    #[arg(short, long, value_name = "SECONDS", value_parser = parse::seconds)]
    time: Option<u16>,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry restart`
#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Seconds until SIGKILL; the container's own setting otherwise, or 10.
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u16>,
    /// Throw away what they have written to their own disks; volumes and addresses stay.
    #[arg(long)]
    reset: bool,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry rename`
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Name or id.
    container: String,
    /// Its new name.
    name: Name,
}

/// `wherry start`
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Throw away what they have written to their own disks; volumes stay.
    #[arg(long)]
    reset: bool,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry kill`
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Which signal, by name or number.
    #[arg(short, long, default_value = "KILL", value_parser = signals::parse)]
    signal: u8,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry rm`
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Also if it runs.
    #[arg(short, long)]
    force: bool,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `wherry wait`
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    readiness: Readiness,
    /// Names or ids.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// The containers there are.
pub(crate) async fn ps(context: &Context, args: &Ps) -> Result<u8, CliError> {
    let mut containers = context.location()?.containers(args.all_accounts).await?;
    containers.retain(|container| args.all || !container.state.is_finished());
    containers.sort_by_key(|container| std::cmp::Reverse(container.id));
    if args.quiet {
        for container in &containers {
            output::line(&container.id.to_string())?;
        }
    } else if context.json {
        output::json(&containers.iter().map(view::Container::of).collect::<Vec<_>>())?;
    } else {
        let mut heading = vec!["ID", "NAME", "IMAGE", "NODE", "ADDRESS", "STATE", "CREATED", "PORTS"];
        let mut rows: Vec<Vec<String>> = containers.iter().map(row).collect();
        if args.all_accounts {
            heading.push("ACCOUNT");
            for (row, container) in rows.iter_mut().zip(&containers) {
                row.push(container.account.to_string());
            }
        }
        output::table(&heading, &rows)?;
    }
    Ok(0)
}

fn row(info: &ContainerInfo) -> Vec<String> {
    let ports: Vec<String> = info.publish.iter().map(ToString::to_string).collect();
    let away = if info.node_connected { "" } else { " (away)" };
    vec![
        info.id.to_string(),
        info.name.to_string(),
        info.image.to_string(),
        format!("{}{away}", info.node_name),
        info.address.to_string(),
        format!("{}{}", state(&info.state), condition(&info.condition)),
        output::ago(info.created_seconds),
        ports.join(", "),
    ]
}

/// A state as people say it.
fn state(state: &ContainerState) -> String {
    let ago = |ms: u64| output::ago(ms / 1000);
    match state {
        ContainerState::Pending => "pending".into(),
        ContainerState::Preparing => "preparing".into(),
        ContainerState::Running { started_ms, .. } => {
            format!("up {}", output::span(output::now_seconds().saturating_sub(started_ms / 1000)))
        }
        ContainerState::Exited { status, finished_ms } => format!("{status} {}", ago(*finished_ms)),
        ContainerState::Failed(error) => format!("failed: {error}"),
        ContainerState::Restarting { status, finished_ms } => {
            format!("restarting, {status} {}", ago(*finished_ms))
        }
    }
}

/// What else is to be said of one that runs, in brackets.
fn condition(condition: &Condition) -> String {
    let health = condition.health.as_ref().map(|report| report.health.to_string());
    let words = [
        condition.paused.then(|| "paused".to_owned()),
        condition.asleep.then(|| "asleep".to_owned()),
        health.filter(|_| !condition.asleep),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

/// Everything about some containers.
pub(crate) async fn inspect(context: &Context, args: Inspect) -> Result<u8, CliError> {
    let location = context.location()?;
    let mut found = Vec::new();
    for text in &args.containers {
        let container = location.container(wherry_client::selector(text)?);
        let info = container.inspect().await?;
        // What its firewall has dropped only its board can say, while it runs.
        let asked = matches!(info.state, ContainerState::Running { .. }) && info.node_connected;
        let stats = if asked { container.stats().await.ok() } else { None };
        found.push((info, stats.and_then(|stats| stats.dropped)));
    }
    let shown: Vec<_> = found.iter().map(|(info, dropped)| view::Inspected::of(info, *dropped)).collect();
    output::json(&shown)?;
    Ok(0)
}

/// A container's output.
pub(crate) async fn logs(context: &Context, args: &Logs) -> Result<u8, CliError> {
    let query =
        LogQuery { follow: args.follow, tail_lines: args.tail, since: args.since, times: args.timestamps };
    let log = context.container(&args.container)?.logs(query).await?;
    pump::print(log, context.json).await?;
    Ok(0)
}

/// Does something with each of several containers, and prints what was typed for it, or the container as JSON.
pub(crate) async fn each<F, T>(
    context: &Context,
    containers: &[String],
    action: impl Fn(Container) -> F,
) -> Result<u8, CliError>
where
    F: Future<Output = Result<T, CliError>>,
    T: Outcome,
{
    let location = context.location()?;
    for_each(containers, |text| {
        let (location, text, action) = (location.clone(), text.clone(), &action);
        async move {
            let outcome = action(location.container(wherry_client::selector(&text)?)).await?;
            match context.json {
                true => output::json_line(&outcome.json(&text)),
                false => output::line(&outcome.text(&text)),
            }
        }
    })
    .await
}

/// What is left of an action to print.
pub(crate) trait Outcome {
    fn text(&self, typed: &str) -> String {
        typed.to_owned()
    }
    fn json(&self, typed: &str) -> serde_json::Value;
}

/// The container as it is after it.
impl Outcome for ContainerInfo {
    fn json(&self, _typed: &str) -> serde_json::Value {
        serde_json::to_value(view::Container::of(self)).unwrap_or_default()
    }
}

/// Nothing but that it was done.
pub(crate) struct Done(pub(crate) &'static str);

impl Outcome for Done {
    fn json(&self, typed: &str) -> serde_json::Value {
        serde_json::json!({ self.0: typed })
    }
}

/// How it ended.
struct Ended(ContainerInfo);

impl Outcome for Ended {
    fn text(&self, _typed: &str) -> String {
        match &self.0.state {
            ContainerState::Exited { status, .. } => status.shell_code().to_string(),
            state => self::state(state),
        }
    }
    fn json(&self, typed: &str) -> serde_json::Value {
        self.0.json(typed)
    }
}

/// Stops containers.
pub(crate) async fn stop(context: &Context, args: Stop) -> Result<u8, CliError> {
    let time = args.time;
    each(context, &args.containers, |container| async move { Ok(container.stop(time).await?) }).await
}

/// Stops containers and starts them again.
pub(crate) async fn restart(context: &Context, args: Restart) -> Result<u8, CliError> {
    let Restart { time, reset, containers } = args;
    each(context, &containers, |container| async move {
        container.stop(time).await?;
        start_one(&container, reset).await
    })
    .await
}

/// Gives a container another name.
pub(crate) async fn rename(context: &Context, args: Rename) -> Result<u8, CliError> {
    let info = context.container(&args.container)?.rename(args.name).await?;
    match context.json {
        true => output::json(&view::Container::of(&info))?,
        false => output::line(info.name.as_str())?,
    }
    Ok(0)
}

/// Starts containers again.
pub(crate) async fn start(context: &Context, args: Start) -> Result<u8, CliError> {
    let reset = args.reset;
    each(context, &args.containers, |container| async move { start_one(&container, reset).await }).await
}

async fn start_one(container: &Container, reset: bool) -> Result<ContainerInfo, CliError> {
    if reset {
        container.start_clean().await?;
    } else {
        container.start().await?;
    }
    let info = container.wait_started().await?;
    match &info.state {
        ContainerState::Failed(error) => Err(CliError::Other(error.message.clone())),
        _ => Ok(info),
    }
}

/// Sends a signal to containers.
pub(crate) async fn kill(context: &Context, args: Kill) -> Result<u8, CliError> {
    let signal = args.signal;
    each(context, &args.containers, |container| async move {
        container.signal(signal).await?;
        Ok(Done("signalled"))
    })
    .await
}

/// Removes containers.
pub(crate) async fn rm(context: &Context, args: Rm) -> Result<u8, CliError> {
    let force = args.force;
    each(context, &args.containers, |container| async move {
        container.remove(force).await?;
        Ok(Done("removed"))
    })
    .await
}

/// Waits for containers to end, or to be ready.
pub(crate) async fn wait(context: &Context, args: Wait) -> Result<u8, CliError> {
    let readiness = &args.readiness;
    if readiness.is_asked() {
        readiness.check()?;
        let patience = readiness.patience();
        return each(context, &args.containers, |container| async move {
            container.ready(readiness.probe(), patience).await?;
            Ok(Done("ready"))
        })
        .await;
    }
    each(context, &args.containers, |container| async move { Ok(Ended(container.wait_ended().await?)) }).await
}
