//! What a container uses, and what runs in it: read from /proc and its cgroup when somebody asks.
use super::instance::{Instance, not_running};
use super::pump::unix_ms;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use wherry_protocol::WireError;
use wherry_protocol::message::{ContainerStats, ProcessInfo};

/// Processes told at most; a container has 512 unless it asked for more.
const MAX_PROCESSES: usize = 4096;
/// Bytes of one command line that are told. All of them fit one message.
const MAX_COMMAND_BYTES: usize = 200;
/// USER_HZ of x86 and ARM: clock ticks a second in /proc (proc(5)).
const TICKS_PER_SECOND: u64 = 100;
/// The container's interface.
const INTERFACE: &str = "eth0";

/// What `instance` uses now.
///
/// # Errors
/// When it has ended.
pub fn stats(instance: &Instance) -> Result<ContainerStats, WireError> {
    let cgroup = instance.cgroup.path();
    let number = |name: &str| read(&cgroup.join(name)).trim().parse::<u64>().ok();
    let inactive = field(&read(&cgroup.join("memory.stat")), "inactive_file").unwrap_or(0);
    let (received_bytes, sent_bytes) = traffic(&read(&proc(instance.pid, "net/dev"))).unzip();
    let stats = ContainerStats {
        time_ms: unix_ms(),
        cpu_us: field(&read(&cgroup.join("cpu.stat")), "usage_usec"),
        memory_bytes: number("memory.current").map(|current| current.saturating_sub(inactive)),
        memory_limit_bytes: number("memory.max"),
        pids: number("pids.current"),
        received_bytes,
        sent_bytes,
        dropped: None,
    };
    still_running(instance).map(|()| stats)
}

/// What runs in `instance` now, by number.
///
/// # Errors
/// When it has ended.
pub fn processes(instance: &Instance) -> Result<Vec<ProcessInfo>, WireError> {
    let namespace = |pid: u32| fs::read_link(proc(pid, "ns/pid")).ok();
    let own = namespace(instance.pid);
    // Whatever number the first process had, it means the container only while it has not ended.
    still_running(instance)?;
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| own.is_some() && namespace(*pid) == own)
        .take(MAX_PROCESSES);
    // Between two looks a process may have gone: then there is nothing to tell of it.
    let first = instance.process.first_id.unwrap_or(0);
    let found: Vec<Process> = pids.filter_map(|pid| Process::read(pid, first)).collect();
    let inside: BTreeMap<u32, u32> = found.iter().map(|process| (process.pid, process.info.pid)).collect();
    let mut infos: Vec<ProcessInfo> = found
        .into_iter()
        .map(|Process { parent, info, .. }| ProcessInfo {
            parent: inside.get(&parent).copied().unwrap_or(0),
            ..info
        })
        .collect();
    infos.sort_unstable_by_key(|info| info.pid);
    Ok(infos)
}

fn still_running(instance: &Instance) -> Result<(), WireError> {
    if instance.ended().is_none() { Ok(()) } else { Err(not_running(instance.container)) }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `name value`, one per line.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

/// Bytes received and sent (proc_pid_net(5), dev).
fn traffic(dev: &str) -> Option<(u64, u64)> {
    let (_, counters) = dev
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(interface, _)| interface.trim() == INTERFACE)?;
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some((*counters.first()?, *counters.get(8)?))
}

/// A process with its numbers on the node.
struct Process {
    pid: u32,
    parent: u32,
    info: ProcessInfo,
}

impl Process {
    /// `first` is the node's id of the container's root.
    fn read(pid: u32, first: u32) -> Option<Self> {
        Self::parse(
            (pid, first),
            &read(&proc(pid, "status")),
            &read(&proc(pid, "stat")),
            &fs::read(proc(pid, "cmdline")).ok()?,
        )
    }

    fn parse((pid, first): (u32, u32), status: &str, stat: &str, command_line: &[u8]) -> Option<Self> {
        let words = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().split_whitespace()
        };
        // The name in brackets may itself hold brackets and blanks; what follows the last one does not.
        let (head, rest) = stat.rsplit_once(')')?;
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let rest: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |index: usize| rest.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let kib: u64 = words("VmRSS").next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let info = ProcessInfo {
            pid: words("NSpid").last()?.parse().ok()?,
            parent: 0,
            uid: words("Uid").next()?.parse::<u32>().ok()?.saturating_sub(first),
            state: rest.first()?.chars().next()?,
            cpu_ms: ticks(11).saturating_add(ticks(12)).saturating_mul(1000 / TICKS_PER_SECOND),
            resident_bytes: kib.saturating_mul(1024),
            command: command(command_line, name),
        };
        Some(Self { pid, parent: words("PPid").next()?.parse().ok()?, info })
    }
}

fn command(line: &[u8], name: &str) -> String {
    let line = line.get(..line.len().min(MAX_COMMAND_BYTES)).unwrap_or_default();
    // What is no text takes more bytes as such than it had.
    let mut text = String::from_utf8_lossy(line).into_owned();
    while text.len() > MAX_COMMAND_BYTES {
        text.pop();
    }
    let words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
    let shown = if words.is_empty() { format!("[{name}]") } else { words.join(" ") };
    shown.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found() {
        let dev = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  \
                   eth0: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n";
        assert_eq!(traffic(dev), Some((100, 300)));
        assert_eq!(traffic("eth0: 1 2"), None);
        assert_eq!(field("usage_usec 5\nuser_usec 3\n", "user_usec"), Some(3));
        assert_eq!(field("user_usec_x 3\n", "user_usec"), None);
    }

    #[test]
    fn a_process_that_names_itself_to_deceive_is_read_right() {
        let status = "Name:\tx) R 1\nPPid:\t40\nUid:\t33\t0\t0\t0\nVmRSS:\t  12 kB\nNSpid:\t41\t2\n";
        let stat = "41 (x) R 1 (y) S 40 41 41 0 -1 0 1 1 1 1 7 8 0 0 20 0 1 0 5 1 1";
        let process = Process::parse((41, 0), status, stat, b"prog\0a\nb\0").unwrap();
        assert_eq!((process.pid, process.parent, process.info.pid), (41, 40, 2));
        assert_eq!((process.info.state, process.info.cpu_ms, process.info.uid), ('S', 150, 33));
        assert_eq!((process.info.resident_bytes, process.info.command.as_str()), (12 * 1024, "prog a?b"));
        assert_eq!(Process::parse((41, 0), status, stat, b"").unwrap().info.command, "[x) R 1 (y]");
        assert!(command(&[0xff; 5000], "x").len() <= MAX_COMMAND_BYTES);
        let mapped = status.replace("33", "1879048225");
        assert_eq!(Process::parse((41, 1_879_048_192), &mapped, stat, b"").unwrap().info.uid, 33);
        assert!(Process::parse((41, 0), "", stat, b"").is_none());
        assert!(Process::parse((41, 0), status, "", b"").is_none());
    }
}
