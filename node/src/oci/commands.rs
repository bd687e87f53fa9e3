//! What each command does.
use super::bundle::Bundle;
use super::cli::{Command, Create, Global, HELP, Id, Invocation};
use super::error::OciError;
use super::launch::{Given, launch};
use super::log::Log;
use super::store::{Entry, Phase, Record, Status, Store};
use super::{SPEC_VERSION, cgroup, child, destroy, hooks, plan, run};
use crate::container::child::shield_with_environment;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;
use wherry_sys::process::pidfd_send_signal;

/// Longest sentence that `start` takes from the container, in bytes.
const MAX_ANSWER_BYTES: u64 = 8192;

/// The exit code of this process.
///
/// # Errors
/// [`OciError`].
pub(super) fn perform(invocation: Invocation, log: &Log) -> Result<u8, OciError> {
    let Invocation { global, command } = invocation;
    match &command {
        Command::Help => return say(HELP),
        Command::Version => return say(&version()),
        Command::Features => return say(&format!("{:#}\n", super::features::features())),
        Command::Create(_)
        | Command::Run { .. }
        | Command::Start(_)
        | Command::State(_)
        | Command::Kill { .. }
        | Command::Delete { .. }
        | Command::List { .. } => {}
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(OciError::NotRoot);
    }
    match command {
        Command::Create(options) => create(&global, &options, log).map(|_| 0),
        Command::Run { create: options, detach } => {
            let entry = create(&global, &options, log)?;
            run::run(&entry, detach, log)
        }
        Command::Start(id) => start(&Store::open(&global.root)?.find(&id)?, log).map(|()| 0),
        Command::State(id) => state(&global, &id),
        Command::Kill { id, signal, all } => kill(&global, &id, signal, all),
        Command::Delete { id, force } => delete(&global, &id, force, log),
        Command::List { only_ids, json } => list(&global, only_ids, json),
        Command::Help | Command::Version | Command::Features => Ok(0),
    }
}

fn say(text: &str) -> Result<u8, OciError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(OciError::io("writing to", Path::new("stdout")))?;
    Ok(0)
}

fn version() -> String {
    format!("wherry-node oci version {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

fn create(global: &Global, options: &Create, log: &Log) -> Result<Entry, OciError> {
    // Before anything is opened: it executes this program once more, with all descriptors.
    shield_with_environment().map_err(|failure| OciError::Child(failure.to_string()))?;
    let (preserved, listening) = preserved(options)?;
    let bundle = Bundle::open(&options.bundle)?;
    let plan = plan::plan(&options.id, &bundle)?;
    if !plan.root.path.is_dir() {
        let path = plan.root.path.display();
        return Err(OciError::Config(format!("root.path {path} is no directory")));
    }
    plan.warnings().for_each(|warning| log.warn(&warning));
    let record = record(options, &bundle, &plan);
    let entry = Store::open(&global.root)?.create(&options.id, &record)?;
    let given = Given { options, cgroups: global.cgroups, preserved, listening };
    launch(&entry, record, &plan, &given, log)?;
    Ok(entry)
}

/// Sockets of sd_listen_fds(3), then those of `--preserve-fds`. Everything else closes when the program is executed.
fn preserved(options: &Create) -> Result<(Vec<OwnedFd>, u32), OciError> {
    const FIRST: u32 = 3;
    let listening = match std::env::var("LISTEN_FDS") {
        Ok(text) => text.parse().ok().filter(|&number: &u32| number <= 1024).ok_or_else(|| {
            OciError::Usage(format!("LISTEN_FDS is '{}' and no number up to 1024", text.escape_debug()))
        })?,
        Err(_) => 0,
    };
    let numbers = FIRST..FIRST + listening + options.preserve;
    let adopt = |number: u32| {
        let number = i32::try_from(number).unwrap_or(-1);
        wherry_sys::fd::inherited(number).map_err(|_| {
            OciError::Usage(format!(
                "descriptor {number} is to be preserved (LISTEN_FDS, --preserve-fds) but not open"
            ))
        })
    };
    let preserved = numbers.map(adopt).collect::<Result<_, _>>()?;
    wherry_sys::fd::close_on_exec_from(FIRST).map_err(OciError::sys("closing descriptors"))?;
    Ok((preserved, listening))
}

fn record(options: &Create, bundle: &Bundle, plan: &plan::Plan) -> Record {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Record {
        id: options.id.to_string(),
        oci_version: bundle.spec.version().clone(),
        bundle: bundle.path.clone(),
        annotations: bundle
            .spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        created: since.map_or(0, |since| since.as_secs()),
        phase: Phase::Creating,
        first: None,
        startable: plan.process.is_some(),
        cgroup: None,
        mounted: None,
        poststart: plan.hooks.poststart.clone(),
        poststop: plan.hooks.poststop.clone(),
    }
}

fn wrong_status(entry: &Entry, status: Status, operation: &'static str) -> OciError {
    OciError::Status { id: entry.id().to_string(), status, operation }
}

/// # Errors
/// [`OciError::Status`]; what the container's first process says.
pub(super) fn start(entry: &Entry, log: &Log) -> Result<(), OciError> {
    entry.lock()?;
    let mut record = entry.read()?;
    let status = record.status();
    if status != Status::Created {
        return Err(wrong_status(entry, status, "start"));
    }
    if !record.startable {
        return Err(OciError::Config("there is no process to start".into()));
    }
    let socket = entry.socket();
    let fail = || OciError::io("starting by", Path::new("start.sock"));
    let mut connection = UnixStream::connect(&socket).map_err(fail())?;
    // Before it is done, so that nobody can do it twice.
    record.phase = Phase::Started;
    entry.write(&record)?;
    connection.write_all(&[child::START]).map_err(fail())?;
    let mut answer = String::new();
    connection.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).map_err(fail())?;
    if !answer.is_empty() {
        return Err(OciError::Child(answer));
    }
    let state = record.to_json(Status::Running).to_string();
    let warn = |error: OciError| log.warn(&error.to_string());
    hooks::call_each("poststart", &record.poststart, &state, &record.bundle, warn);
    Ok(())
}

fn state(global: &Global, id: &Id) -> Result<u8, OciError> {
    let record = Store::open(&global.root)?.find(id)?.read()?;
    say(&format!("{:#}\n", record.to_json(record.status())))
}

fn kill(global: &Global, id: &Id, signal: i32, all: bool) -> Result<u8, OciError> {
    let entry = Store::open(&global.root)?.find(id)?;
    let record = entry.read()?;
    let status = record.status();
    if let (true, Some(cgroup)) = (all, &record.cgroup) {
        return cgroup::signal_all(cgroup, signal).map(|()| 0);
    }
    match (status, record.first.and_then(destroy::find)) {
        (Status::Created | Status::Running, Some(pidfd)) => {
            pidfd_send_signal(pidfd, signal).map_err(OciError::sys("sending the signal"))?;
            Ok(0)
        }
        // It has ended between two looks.
        (Status::Created | Status::Running, None) => Err(wrong_status(&entry, Status::Stopped, "kill")),
        (Status::Creating | Status::Stopped, _) => Err(wrong_status(&entry, status, "kill")),
    }
}

fn delete(global: &Global, id: &Id, force: bool, log: &Log) -> Result<u8, OciError> {
    let entry = match Store::open(&global.root)?.find(id) {
        // Programs call this to be sure.
        Err(OciError::NoSuchContainer(_)) if force => return Ok(0),
        found => found?,
    };
    entry.lock()?;
    let record = entry.read()?;
    let status = record.status();
    if status != Status::Stopped && !force {
        return Err(wrong_status(&entry, status, "delete"));
    }
    destroy::destroy(&entry, &record, log).map(|()| 0)
}

fn list(global: &Global, only_ids: bool, json: bool) -> Result<u8, OciError> {
    let store = Store::open(&global.root)?;
    let ids = store.ids()?;
    if only_ids {
        return say(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
    }
    let mut states = Vec::new();
    for id in &ids {
        match store.find(id).and_then(|entry| entry.read()) {
            Ok(record) => states.push((record.status(), record)),
            // Deleted meanwhile.
            Err(OciError::NoSuchContainer(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if json {
        let list: Vec<_> = states.iter().map(|(status, record)| with_time(record, *status)).collect();
        return say(&format!("{:#}\n", serde_json::Value::from(list)));
    }
    let mut table = format!("{:24} {:>9} {:9} {:20} BUNDLE\n", "ID", "PID", "STATUS", "CREATED");
    for (status, record) in &states {
        let pid = record.first.filter(|_| *status != Status::Stopped).map_or(0, |first| first.pid);
        let line = format!(
            "{:24} {pid:>9} {:9} {:20} {}\n",
            record.id,
            status.to_string(),
            created(record),
            record.bundle.display()
        );
        table.push_str(&line);
    }
    say(&table)
}

fn created(record: &Record) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(record.created));
    time.map_or_else(|| "-".into(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

fn with_time(record: &Record, status: Status) -> serde_json::Value {
    let mut value = record.to_json(status);
    if let Some(object) = value.as_object_mut() {
        object.insert("created".into(), created(record).into());
    }
    value
}
