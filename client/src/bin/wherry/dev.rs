//! `wherry dev`: a cluster of virtual machines on this computer.
use crate::context::{CliError, Context};
use crate::output;
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process, setsid};
use std::collections::BTreeSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wherry_client::dev::control::{self, Command};
use wherry_client::dev::place::{Place, Record};
use wherry_client::dev::{BoardReport, Cluster, DevError, Options, Report};
use wherry_client::{ClientError, JoinOptions, Location, StoredLocation, join};
use wherry_images::disk::Arch;
use wherry_protocol::{Name, Overlay, Token};
use wherry_qemu::patience;

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(100);
/// From switching on to the broker's first answer, with much to spare for a busy host that emulates.
const BOOT: Duration = Duration::from_secs(120);
/// How long switching off may take before it is forced.
const OFF: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Make a cluster and switch it on, or switch a kept one on again; then join it.
    Up(Up),
    /// Switch a cluster off and remove it.
    Down(Down),
    /// The machines: address, memory, console. Without a name, the clusters.
    Status {
        /// Which cluster.
        name: Option<Name>,
    },
    /// Cut a machine's power.
    PowerCut(Which),
    /// Switch a machine on.
    Boot(Which),
    /// Pull a machine's network plug.
    Unplug(Which),
    /// Put a machine's network plug in again.
    Plug(Which),
    /// Lose some of the frames on the cluster's network, by chance.
    Loss {
        /// How many of a million; 0 for none.
        per_million: u32,
        /// In which cluster.
        #[arg(long, default_value = "dev")]
        cluster: Name,
    },
    /// What a machine has printed.
    Console {
        #[command(flatten)]
        which: Which,
        /// Go on printing what comes.
        #[arg(short, long)]
        follow: bool,
    },
    /// Owns a cluster's machines until it is told to end.
    #[command(hide = true)]
    RunCluster {
        /// The cluster's directory.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// What to call it, also as a location.
    #[arg(default_value = "dev")]
    name: Name,
    /// The boards' processor: x86_64 or aarch64 [default: this computer's].
    #[arg(long, value_parser = parse_arch)]
    arch: Option<Arch>,
    /// How many nodes [default: 2].
    #[arg(long, value_name = "N")]
    nodes: Option<u8>,
    /// Memory of each board, in MiB [default: 256].
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// CPUs of each board [default: 1].
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Data partition of each board, in MiB; takes only what is used [default: 1024].
    #[arg(long, value_name = "MIB")]
    data: Option<u64>,
    /// The containers' network, as in 172.20.0.0/14 [default: 10.0.0.0/8].
    #[arg(long, value_name = "NETWORK")]
    overlay: Option<Overlay>,
    /// Directory of the built images.
    #[arg(long, env = "WHERRY_IMAGES", value_name = "DIR")]
    images: Option<PathBuf>,
    /// Boards that may be told to crash, for tests.
    #[arg(long)]
    test_image: bool,
    /// Print the token instead of joining.
    #[arg(long)]
    no_join: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Which cluster.
    #[arg(default_value = "dev")]
    name: Name,
    /// Keep its disks: `up` continues where it stopped.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Machine: broker, node1, node2, …
    machine: String,
    /// Of which cluster.
    #[arg(long, default_value = "dev")]
    cluster: Name,
}

fn parse_arch(text: &str) -> Result<Arch, String> {
    match text {
        "x86_64" | "amd64" => Ok(Arch::X86_64),
        "aarch64" | "arm64" => Ok(Arch::Aarch64),
        other => Err(format!("'{other}' is not an architecture: use x86_64 or aarch64")),
    }
}

impl From<DevError> for CliError {
    fn from(error: DevError) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            if !text.contains(&error.to_string()) {
                text = format!("{text}: {error}");
            }
            cause = error.source();
        }
        Self::Other(text)
    }
}

/// Does what the command line says.
pub(crate) async fn dev(context: &Context, command: DevCommand) -> Result<u8, CliError> {
    match command {
        DevCommand::Up(args) => up(context, args).await?,
        DevCommand::Down(args) => down(context, &args).await?,
        DevCommand::Status { name: None } => list(context)?,
        DevCommand::Status { name: Some(name) } => show(context, &tell(&name, &Command::Status).await?)?,
        DevCommand::PowerCut(Which { machine, cluster }) => {
            quietly(&cluster, Command::PowerCut { machine }).await?
        }
        DevCommand::Boot(Which { machine, cluster }) => quietly(&cluster, Command::Boot { machine }).await?,
        DevCommand::Unplug(Which { machine, cluster }) => {
            quietly(&cluster, Command::Plug { machine, connected: false }).await?;
        }
        DevCommand::Plug(Which { machine, cluster }) => {
            quietly(&cluster, Command::Plug { machine, connected: true }).await?;
        }
        DevCommand::Loss { per_million, cluster } => quietly(&cluster, Command::Loss { per_million }).await?,
        DevCommand::Console { which, follow } => console(&which, follow).await?,
        DevCommand::RunCluster { directory } => run_cluster(directory).await?,
    }
    Ok(0)
}

async fn tell(name: &Name, command: &Command) -> Result<Report, CliError> {
    Ok(control::ask(&Place::of(name)?, name, command).await?)
}

async fn quietly(name: &Name, command: Command) -> Result<(), CliError> {
    tell(name, &command).await.map(drop)
}

async fn run_cluster(directory: PathBuf) -> Result<(), CliError> {
    // A session of its own: closing the terminal that `up` was typed in does not end it. It fails only for the leader
    // of a process group, that is when somebody runs this by hand.
    let _leader = setsid();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    Ok(control::run(&Place::at(directory)).await?)
}

async fn up(context: &Context, args: Up) -> Result<(), CliError> {
    let place = Place::of(&args.name)?;
    if place.owner().is_some() {
        return Err(DevError::Running(args.name).into());
    }
    let record = match place.exists() {
        true => unchanged(&args, place.record()?)?,
        false => {
            note("making disks");
            Cluster::create(&place, options(&args)?).await?
        }
    };
    note("switching on");
    let report = start_owner(&place, &args.name).await?;
    if args.no_join {
        show(context, &report)?;
        return output::line(&format!("join it with:  wherry join {}", record.admin_token));
    }
    note("joining");
    let stored = join_when_up(context, &record).await?;
    note("waiting for the nodes");
    wait_for_nodes(&stored, record.options.nodes, &report).await?;
    show(context, &tell(&args.name, &Command::Status).await?)?;
    if !context.json {
        next_steps(&stored.name)?;
    }
    Ok(())
}

fn note(text: &str) {
    eprintln!("{text} …");
}

fn next_steps(location: &Name) -> Result<(), CliError> {
    output::line(&format!(
        "\nThe cluster is joined as location '{location}'. Next:
  wherry --location {location} resources
  wherry --location {location} image push IMAGE.tar
  wherry --location {location} run IMAGE
  wherry dev down {location}"
    ))
}

fn options(args: &Up) -> Result<Options, CliError> {
    let here = || parse_arch(std::env::consts::ARCH).map_err(CliError::Usage);
    let arch = args.arch.map_or_else(here, Ok)?;
    let images = args.images.clone().ok_or_else(|| {
        CliError::Usage("where are the images? name their directory with --images or WHERRY_IMAGES".into())
    })?;
    let images = std::path::absolute(&images).map_err(|error| CliError::Other(error.to_string()))?;
    let usual = Options::new(args.name.clone(), arch, images);
    Ok(Options {
        nodes: args.nodes.unwrap_or(usual.nodes),
        memory_mib: args.memory.unwrap_or(usual.memory_mib),
        cpus: args.cpus.unwrap_or(usual.cpus),
        data_mib: args.data.unwrap_or(usual.data_mib),
        test_image: args.test_image,
        overlay: args.overlay,
        ..usual
    })
}

/// A kept cluster is what it is: options that say otherwise are an error, not ignored.
fn unchanged(args: &Up, record: Record) -> Result<Record, CliError> {
    let is = &record.options;
    let differs = args.arch.is_some_and(|arch| arch != is.arch)
        || args.nodes.is_some_and(|nodes| nodes != is.nodes)
        || args.memory.is_some_and(|memory| memory != is.memory_mib)
        || args.cpus.is_some_and(|cpus| cpus != is.cpus)
        || args.data.is_some_and(|data| data != is.data_mib)
        || args.overlay.is_some_and(|overlay| overlay != is.overlay.unwrap_or_default())
        || (args.test_image && !is.test_image);
    if differs { Err(DevError::Differs(is.name.clone()).into()) } else { Ok(record) }
}

/// Starts the process that owns the machines, and waits until they run.
async fn start_owner(place: &Place, name: &Name) -> Result<Report, CliError> {
    let other =
        |error: std::io::Error| CliError::Other(format!("cannot start the cluster's process: {error}"));
    let log = std::fs::File::create(place.log()).map_err(other)?;
    let mut child = std::process::Command::new(std::env::current_exe().map_err(other)?)
        .args(["dev".as_ref(), "run-cluster".as_ref(), place.directory().as_os_str()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(other)?)
        .stderr(log)
        .spawn()
        .map_err(other)?;
    loop {
        if place.owner().is_some() {
            return tell(name, &Command::Status).await;
        }
        if child.try_wait().map_err(other)?.is_some() {
            let said = std::fs::read_to_string(place.log()).unwrap_or_default();
            return Err(DevError::Owner(said.trim().trim_start_matches("wherry: ").to_owned()).into());
        }
        sleep(POLL).await;
    }
}

/// Joins as soon as the broker answers. A refusal is final, everything else may be a broker that still boots.
async fn join_when_up(context: &Context, record: &Record) -> Result<StoredLocation, CliError> {
    let token: Token =
        record.admin_token.parse().map_err(|_| CliError::Other("the cluster's token is damaged".into()))?;
    let name = record.options.name.clone();
    if let Ok(stored) = context.config.load(&name)
        && stored.broker == token.broker
    {
        return Ok(stored);
    }
    let options = JoinOptions { address: None, name: Some(name), label: account_label()? };
    let deadline = Instant::now() + patience(BOOT);
    loop {
        match join(&context.config, &token, &options).await {
            Ok(stored) => return Ok(stored),
            Err(error @ (ClientError::Refused(_) | ClientError::Store(_))) => return Err(error.into()),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => sleep(POLL).await,
        }
    }
}

fn account_label() -> Result<Name, CliError> {
    let unnamed = || CliError::Other("cannot make an account name of user and computer".into());
    crate::locations::default_label().ok_or_else(unnamed)
}

async fn wait_for_nodes(stored: &StoredLocation, wanted: u8, report: &Report) -> Result<(), CliError> {
    let deadline = Instant::now() + patience(BOOT);
    let mut present = BTreeSet::new();
    loop {
        let location = Location::stored(stored.clone());
        if let Ok(nodes) = location.nodes().await {
            present = nodes
                .iter()
                .filter(|node| node.info().connected)
                .map(|node| node.info().name.to_string())
                .collect();
        }
        location.close().await;
        if present.len() >= usize::from(wanted) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CliError::Other(absent(&present, wanted, report)));
        }
        sleep(POLL).await;
    }
}

fn absent(present: &BTreeSet<String>, wanted: u8, report: &Report) -> String {
    let missing =
        report.machines.iter().filter(|machine| machine.role == "node" && !present.contains(&machine.name));
    let consoles: Vec<String> = missing.map(|machine| machine.console.display().to_string()).collect();
    format!("only {} of {wanted} nodes have joined; see {}", present.len(), consoles.join(" and "))
}

async fn down(context: &Context, args: &Down) -> Result<(), CliError> {
    let place = Place::of(&args.name)?;
    let runs = place.owner().is_some();
    if !place.directory().exists() {
        return Err(DevError::Unknown(args.name.clone()).into());
    }
    if runs {
        stop_owner(&place, &args.name).await?;
    }
    if !args.keep {
        forget_location(context, &place);
        place.remove()?;
    }
    Ok(())
}

/// Asks the owner to end, then insists.
async fn stop_owner(place: &Place, name: &Name) -> Result<(), CliError> {
    // Whether it answers does not matter: what counts is that it goes.
    drop(tell(name, &Command::Down).await);
    for signal in [None, Some(Signal::TERM), Some(Signal::KILL)] {
        let Some(owner) = place.owner() else { return Ok(()) };
        let pid = i32::try_from(owner.pid).ok().and_then(Pid::from_raw);
        if let (Some(signal), Some(pid)) = (signal, pid) {
            // It may just have gone.
            let _gone = kill_process(pid, signal);
        }
        let deadline = Instant::now() + OFF;
        while place.owner().is_some() && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }
    match place.owner() {
        None => Ok(()),
        Some(owner) => Err(CliError::Other(format!("process {} does not end; kill it by hand", owner.pid))),
    }
}

/// The keys of a cluster that is no more are of no use. Another cluster may have that name by now: then they stay.
fn forget_location(context: &Context, place: &Place) {
    let Ok(record) = place.record() else { return };
    let Ok(token) = record.admin_token.parse::<Token>() else { return };
    if let Ok(stored) = context.config.load(&record.options.name)
        && stored.broker == token.broker
        && let Err(error) = context.config.remove(&record.options.name)
    {
        eprintln!("wherry: the location could not be removed: {error}");
    }
}

fn list(context: &Context) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for name in Place::all()? {
        let place = Place::of(&name)?;
        let state = if place.owner().is_some() { "running" } else { "off" };
        rows.push(vec![name.to_string(), state.to_owned(), place.directory().display().to_string()]);
    }
    if context.json {
        let value = |row: &Vec<String>| serde_json::json!({ "name": row.first(), "state": row.get(1), "directory": row.get(2) });
        return output::json(&rows.iter().map(value).collect::<Vec<_>>());
    }
    output::table(&["CLUSTER", "STATE", "DIRECTORY"], &rows)
}

fn show(context: &Context, report: &Report) -> Result<(), CliError> {
    if context.json {
        return output::json(report);
    }
    let rows: Vec<Vec<String>> = report.machines.iter().map(row).collect();
    output::line(&format!("{} ({}), broker at {}", report.name, report.arch, report.address))?;
    output::table(&["MACHINE", "STATE", "ADDRESS", "MEMORY", "ON THIS HOST", "CONSOLE"], &rows)
}

fn row(machine: &BoardReport) -> Vec<String> {
    let state = match (&machine.accelerator, machine.uptime_ms) {
        (Some(accelerator), Some(uptime)) => format!("{} ({accelerator})", output::span(uptime / 1000)),
        _ => "off".to_owned(),
    };
    vec![
        machine.name.clone(),
        state,
        machine.address.to_string(),
        format!("{} MiB", machine.memory_mib),
        machine.host_memory_bytes.map_or_else(|| "-".to_owned(), output::bytes),
        machine.console.display().to_string(),
    ]
}

async fn console(which: &Which, follow: bool) -> Result<(), CliError> {
    let report = tell(&which.cluster, &Command::Status).await?;
    let machine = report.machines.iter().find(|machine| machine.name == which.machine);
    let machine = machine.ok_or_else(|| DevError::UnknownMachine(which.machine.clone()))?;
    let unreadable = |error| CliError::Other(format!("cannot read {}: {error}", machine.console.display()));
    let mut offset = 0;
    loop {
        let mut file = std::fs::File::open(&machine.console).map_err(unreadable)?;
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let mut bytes = Vec::new();
        let count = file.read_to_end(&mut bytes).map_err(unreadable)?;
        offset = offset.saturating_add(u64::try_from(count).unwrap_or_default());
        output::raw(&bytes)?;
        if !follow {
            return Ok(());
        }
        sleep(POLL).await;
    }
}
