//! What the board is and what it can spare, read from /proc.
use nix::sys::statvfs::statvfs;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use wherry_protocol::message::{Drops, NodeFacts, NodeLoad, RefusedAnswers, WireguardKeys};

/// The name and version of this software.
pub const SOFTWARE: &str = concat!("wherry-node ", env!("CARGO_PKG_VERSION"));

/// What the caller knows and /proc does not.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Address on the private network.
    pub underlay: Ipv4Addr,
    /// The kernel can do GRE and WireGuard: with this public key.
    pub overlay: Option<WireguardKeys>,
    /// cgroup limits are enforced.
    pub limits: bool,
}

/// Reads what does not change while the board is up.
#[must_use]
pub fn facts(hostname: &str, abilities: Abilities) -> NodeFacts {
    NodeFacts {
        hostname: hostname.to_owned(),
        architecture: architecture().to_owned(),
        cpus: cpus(),
        memory_bytes: memory_bytes(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        software: SOFTWARE.to_owned(),
        boot_id: boot_id(&read("/proc/sys/kernel/random/boot_id")),
        underlay: abilities.underlay,
        overlay: abilities.overlay.is_some(),
        limits: abilities.limits,
        wireguard: abilities.overlay,
    }
}

/// Memory of the board, in bytes.
#[must_use]
pub fn memory_bytes() -> u64 {
    meminfo(&read("/proc/meminfo"), "MemTotal:")
}

/// The board's architecture in OCI's words (image-spec, image-index.md: GOARCH).
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Samples the load; remembers the last CPU counters.
#[derive(Debug, Default)]
pub struct LoadMeter {
    last: CpuTime,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTime {
    busy: u64,
    total: u64,
}

impl LoadMeter {
    /// What the board can spare now; `data` is on the data partition.
    pub fn sample(&mut self, data: &Path) -> NodeLoad {
        let now = cpu_time(&read("/proc/stat"));
        let busy = now.busy.saturating_sub(self.last.busy) * 1000;
        let total = now.total.saturating_sub(self.last.total).max(1);
        self.last = now;
        let (disk_free_bytes, disk_bytes) = disk(data);
        NodeLoad {
            dropped: Drops::default(),
            refused_answers: RefusedAnswers::default(),
            memory_available_bytes: meminfo(&read("/proc/meminfo"), "MemAvailable:"),
            load_milli: load_milli(&read("/proc/loadavg")),
            cpu_busy_milli: u16::try_from((busy / total).min(1000)).unwrap_or(1000),
            disk_free_bytes,
            disk_bytes,
            uptime_seconds: uptime(&read("/proc/uptime")),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// CPUs online.
#[must_use]
pub fn cpus() -> u16 {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// A field of /proc/meminfo, in bytes (proc_meminfo(5): values are in KiB).
fn meminfo(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

/// The 16 bytes of a UUID's text; zeros if it is none.
fn boot_id(text: &str) -> [u8; 16] {
    let hex: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).map(u128::to_be_bytes).unwrap_or_default()
}

/// The first number of /proc/loadavg, in thousandths.
fn load_milli(text: &str) -> u32 {
    let first = text.split_whitespace().next().unwrap_or_default();
    let (whole, hundredths) = first.split_once('.').unwrap_or((first, "0"));
    let whole: u32 = whole.parse().unwrap_or(0);
    let hundredths: u32 = hundredths.parse().unwrap_or(0);
    whole.saturating_mul(1000).saturating_add(hundredths.saturating_mul(10))
}

fn uptime(text: &str) -> u64 {
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

/// The `cpu` line of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal.
fn cpu_time(text: &str) -> CpuTime {
    let line = text.lines().next().unwrap_or_default();
    let numbers: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|number| number.parse().ok()).collect();
    let total = numbers.iter().sum();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    CpuTime { busy: u64::saturating_sub(total, idle), total }
}

/// Free and total bytes of the file system that holds `path`.
fn disk(path: &Path) -> (u64, u64) {
    match statvfs(path) {
        Ok(stat) => {
            let unit: u64 = stat.fragment_size();
            (unit.saturating_mul(stat.blocks_available()), unit.saturating_mul(stat.blocks()))
        }
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_texts_are_understood() {
        let text = "MemTotal:       16316412 kB\nMemFree:         1000 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), 2048 * 1024);
        assert_eq!(load_milli("1.25 0.5 0.1 1/2 3"), 1250);
        assert_eq!(uptime("12.34 56.7"), 12);
        let stat = "cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 2 3";
        assert_eq!(cpu_time(stat), CpuTime { busy: 20, total: 100 });
        assert_eq!(boot_id("00000000-0000-0000-0000-0000000000ff\n")[15], 0xff);
    }

    #[test]
    fn nonsense_is_zero_not_a_panic() {
        for text in ["", "cpu", "x.y", "-", "9999999999999999999999999"] {
            assert_eq!(meminfo(text, "MemTotal:"), 0);
            assert_eq!(load_milli(text), 0);
            assert_eq!(cpu_time(text), CpuTime::default());
            let _ = (uptime(text), boot_id(text));
        }
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let load = LoadMeter::default().sample(Path::new("/"));
        assert!(load.memory_available_bytes > 0 && load.disk_bytes > 0);
        assert!(load.cpu_busy_milli <= 1000);
    }
}
