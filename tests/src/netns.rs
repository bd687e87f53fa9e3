//! The world of network namespaces: the boards' real programs as ordinary processes, each board in a network namespace
//! of its own, joined by a bridge; this process is the laptop on the same LAN.
//!
//! Everything happens inside namespaces that [`inside`] makes for the test process: network, mounts and process ids. So
//! nothing of the host is touched, and nothing is left behind however the test ends.
use crate::cli::Wherry;
use crate::failure::Failure;
use crate::given;
use crate::vm::BOOT;
use crate::wait::until;
use crate::world::{Abilities, DATA_MIB, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;
use tempfile::TempDir;
use wherry_client::{ClusterSeed, SeedOptions};
use wherry_images::disk::Arch;
use wherry_protocol::{OsRandom, PublicKey};
use wherry_qemu::console::tail;
use wherry_qemu::running::Memory;

const INSIDE: &str = "WHERRY_INSIDE_NAMESPACES";
const LAPTOP: &str = "192.168.50.254/24";

/// Runs `body` in namespaces of its own: this test's program is started again inside them, for the test called
/// `test` only.
pub fn inside(test: &str, body: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let program = std::env::current_exe().map_err(Failure::io("find the running program"))?;
    let status = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .map_err(Failure::io("run unshare (util-linux); namespaces need root"))?;
    if status.success() { Ok(()) } else { Err(Failure::Unexpected(format!("in its namespaces: {status}"))) }
}

/// Runs a program to its end, which must be good; words are separated by blanks.
pub fn system(line: &str) -> Result<(), Failure> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .map_err(Failure::io(format!("run `{line}`")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::Unexpected(format!("`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[derive(Debug)]
struct Board {
    name: String,
    program: PathBuf,
    root: PathBuf,
    supervisor: Option<Child>,
}

impl Board {
    fn start(&mut self) -> Result<(), Failure> {
        let log = self.log();
        let log =
            File::options().create(true).append(true).open(&log).map_err(Failure::file("open", &log))?;
        let second = log.try_clone().map_err(Failure::io("share a log"))?;
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .arg(&self.program)
            .args(["init", "--process", "--root"])
            .arg(&self.root)
            .env("WHERRY_TEST", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second)
            .spawn()
            .map_err(Failure::io(format!("start {}", self.program.display())))?;
        self.supervisor = Some(child);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    fn pid(&self) -> Result<u32, Failure> {
        self.supervisor
            .as_ref()
            .map(Child::id)
            .ok_or_else(|| Failure::Unexpected(format!("{} is off", self.name)))
    }

    /// The service is the supervisor's child that runs `serve`.
    fn service(&self) -> Result<Pid, Failure> {
        let parent = self.pid()?;
        let found =
            children(parent).into_iter().find(|pid| arguments(*pid).iter().any(|word| word == "serve"));
        found.map(raw_pid).ok_or_else(|| Failure::Unexpected(format!("{} has no service running", self.name)))
    }
}

fn raw_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn descendants(pid: u32) -> Vec<u32> {
    children(pid).into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

/// A cluster of processes.
#[derive(Debug)]
pub struct Netns {
    boards: Vec<Board>,
    admin: Wherry,
    arch: Arch,
    token: String,
    key: PublicKey,
    address: Ipv4Addr,
    limits: bool,
    _directory: TempDir,
}

impl Netns {
    /// Starts a broker and `nodes` nodes, joins, and waits until all nodes are there. Only within [`inside`].
    pub fn start(nodes: u8) -> Result<Self, Failure> {
        let mut world = Self::prepare(nodes, true)?;
        let up = world.boards.iter_mut().try_for_each(Board::start).and_then(|()| world.joined());
        world.told(up)
    }

    /// The same with nodes that have to find their broker on the LAN. The broker comes last, after `meanwhile`.
    pub fn start_finding(
        nodes: u8,
        meanwhile: impl FnOnce(PublicKey) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let mut world = Self::prepare(nodes, false)?;
        let up = world.boards.iter_mut().skip(1).try_for_each(Board::start);
        let up = up.and_then(|()| meanwhile(world.key));
        let up = up.and_then(|()| world.boards.iter_mut().take(1).try_for_each(Board::start));
        let up = up.and_then(|()| world.joined());
        world.told(up)
    }

    fn told(self, up: Result<(), Failure>) -> Result<Self, Failure> {
        match up {
            Ok(()) => Ok(self),
            Err(failure) => Err(Failure::Unexpected(format!("{failure}\n{}", self.report()))),
        }
    }

    fn prepare(nodes: u8, told_address: bool) -> Result<Self, Failure> {
        let directory = TempDir::new().map_err(Failure::io("make a temporary directory"))?;
        let arch = given::host_arch()?;
        make_lan()?;
        let plan = wherry_client::dev::boards(nodes);
        let address = plan.first().map_or(Ipv4Addr::UNSPECIFIED, |broker| broker.address);
        let seed = seed(nodes, address, told_address)?;
        let texts = std::iter::once(&seed.broker_toml).chain(&seed.node_tomls);
        let mut boards = Vec::new();
        for (board, text) in plan.iter().zip(texts) {
            let root = directory.path().join(&board.name);
            write_config(&root, text)?;
            limit_disk(&root)?;
            plug_in(&board.name, board.address)?;
            let program = given::board_binary(arch, &format!("wherry-{}", board.role.name()))?;
            boards.push(Board { name: board.name.clone(), program, root, supervisor: None });
        }
        let admin = Wherry::new(given::wherry()?, directory.path().join("admin"));
        let token = seed.admin_token.to_string();
        let (key, limits) = (seed.broker_key, has_limits());
        Ok(Self { boards, admin, arch, token, key, address, limits, _directory: directory })
    }

    fn joined(&self) -> Result<(), Failure> {
        until("the broker's answer", BOOT, || match self.admin.run(&["join", &self.token]) {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => Err(outcome.stderr),
            Err(error) => Err(error.to_string()),
        })?;
        crate::scenario::wait_for_nodes(self, BOOT)
    }

    /// Gives a board another address on the LAN instead of the one that it has.
    pub fn renumber(&mut self, board: &str, old: Ipv4Addr, new: Ipv4Addr) -> Result<(), Failure> {
        system(&format!("ip -n {board} address add {new}/24 dev eth0"))?;
        // Of several addresses of a network the kernel takes all away with the first, unless told otherwise.
        system(&format!("ip netns exec {board} sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1"))?;
        system(&format!("ip -n {board} address del {old}/24 dev eth0"))
    }

    /// Board, process and resident bytes of every supervisor and service.
    pub fn memory(&self) -> Result<Vec<(String, &'static str, u64)>, Failure> {
        let mut all = Vec::new();
        for board in &self.boards {
            let service = u32::try_from(board.service()?.as_raw()).unwrap_or_default();
            for (process, pid) in [("supervisor", board.pid()?), ("service", service)] {
                let memory = Memory::of_process(pid);
                let memory = memory.ok_or_else(|| Failure::Unexpected(format!("process {pid} is gone")))?;
                all.push((board.name.clone(), process, memory.rss_bytes));
            }
        }
        Ok(all)
    }

    fn board(&mut self, name: &str) -> Result<&mut Board, Failure> {
        let found = self.boards.iter_mut().find(|board| board.name == name);
        found.ok_or_else(|| Failure::Unexpected(format!("there is no board '{name}'")))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for board in &mut self.boards {
            if let Some(mut supervisor) = board.supervisor.take() {
                // The end of the process namespace takes whatever is left.
                drop(supervisor.kill());
                drop(supervisor.wait());
            }
        }
    }
}

/// Whether the kernel's cgroup v2 hierarchy, where this process sees it, has the controllers for bounds.
fn has_limits() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    ["memory", "cpu", "pids"].iter().all(|wanted| controllers.split_whitespace().any(|word| word == *wanted))
}

fn seed(nodes: u8, broker: Ipv4Addr, told_address: bool) -> Result<ClusterSeed, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Unexpected(error.to_string());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = "test".parse().map_err(|error| failed(&error))?;
    let options = SeedOptions {
        broker_address: told_address.then(|| broker.to_string()),
        admin_address: Some(broker.to_string()),
        test_image: true,
        ..SeedOptions::new(name, usize::from(nodes))
    };
    ClusterSeed::generate(&options, now.as_secs(), &mut OsRandom).map_err(|error| failed(&error))
}

fn write_config(root: &Path, text: &str) -> Result<(), Failure> {
    let config = root.join("config");
    fs::create_dir_all(&config).map_err(Failure::file("make", &config))?;
    fs::write(config.join("wherry.toml"), text).map_err(Failure::file("write", &config))
}

/// A data partition that can be filled.
fn limit_disk(root: &Path) -> Result<(), Failure> {
    let data = root.join("data");
    fs::create_dir_all(&data).map_err(Failure::file("make", &data))?;
    system(&format!("mount -t tmpfs -o size={DATA_MIB}m,mode=700 data {}", data.display()))
}

/// A bridge in this process's namespace, with the laptop's address on it.
fn make_lan() -> Result<(), Failure> {
    for line in [
        // Names of namespaces are mounts below here: ours are private.
        "mkdir -p /run/netns",
        "mount -t tmpfs netns /run/netns",
        "ip link set lo up",
        "ip link add lan type bridge",
        "ip link set lan up",
    ] {
        system(line)?;
    }
    system(&format!("ip address add {LAPTOP} dev lan"))
}

/// A namespace called `name` whose eth0 is on the bridge.
fn plug_in(name: &str, address: Ipv4Addr) -> Result<(), Failure> {
    for line in [
        format!("ip netns add {name}"),
        format!("ip link add {name} type veth peer name eth0 netns {name}"),
        format!("ip link set {name} master lan up"),
        format!("ip -n {name} link set lo up"),
        format!("ip -n {name} link set eth0 up"),
        format!("ip -n {name} address add {address}/24 dev eth0"),
    ] {
        system(&line)?;
    }
    Ok(())
}

impl World for Netns {
    fn abilities(&self) -> Abilities {
        let gre = Path::new("/sys/module/ip_gre").exists()
            || system("ip link add gre-trial type gre local 127.0.0.1 remote 127.0.0.2").is_ok();
        Abilities { overlay: gre, limits: self.limits, cgroups: false }
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn admin(&self) -> &Wherry {
        &self.admin
    }

    fn used_token(&self) -> &str {
        &self.token
    }

    fn nodes(&self) -> Vec<String> {
        self.boards.iter().skip(1).map(|board| board.name.clone()).collect()
    }

    fn broker(&self) -> Ipv4Addr {
        self.address
    }

    fn archive(&self, name: &str) -> Result<PathBuf, Failure> {
        given::fixture(self.arch, name)
    }

    fn crash_service(&mut self, board: &str) -> Result<(), Failure> {
        let service = self.board(board)?.service()?;
        kill(service, Signal::SIGKILL)
            .map_err(|error| Failure::Unexpected(format!("cannot kill {service}: {error}")))
    }

    /// Supervisor, service and containers end at once, without a word.
    fn power_cut(&mut self, board: &str) -> Result<(), Failure> {
        let board = self.board(board)?;
        let pid = board.pid()?;
        for victim in std::iter::once(pid).chain(descendants(pid)) {
            // It may have gone with its parent.
            let _gone = kill(raw_pid(victim), Signal::SIGKILL);
        }
        if let Some(mut supervisor) = board.supervisor.take() {
            supervisor.wait().map_err(Failure::io("wait for a board's end"))?;
        }
        Ok(())
    }

    fn boot(&mut self, board: &str) -> Result<(), Failure> {
        self.board(board)?.start()
    }

    fn set_plugged(&mut self, board: &str, plugged: bool) -> Result<(), Failure> {
        let state = if plugged { "up" } else { "down" };
        system(&format!("ip link set {board} {state}"))
    }

    fn report(&self) -> String {
        let log = |board: &Board| format!("--- log of {} ---\n{}", board.name, tail(&board.log()));
        self.boards.iter().map(log).collect::<Vec<_>>().join("\n")
    }
}
