//! The eight steps.
use crate::show::{Show, print, remark};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wherry_images::disk::{Arch, BoardRole};
use wherry_qemu::console::tail;
use wherry_tests::http::{free_port, get};
use wherry_tests::scenario::{ContainerView, container, wait_for_state};
use wherry_tests::{Failure, ensure, wait};

const CLUSTER: &str = "demo";
const NODES: [&str; 2] = ["node1", "node2"];
/// From power-on to the first answer, with much to spare for a busy host that emulates.
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// A container that counts, so that a gap or a restart would show.
const COUNTER: &str = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.5; done";

/// Everything the story needs.
pub(crate) struct Story {
    show: Show,
    arch: Arch,
    artifacts: PathBuf,
    home: PathBuf,
}

/// What is left to do when the story is over, or has stopped in the middle.
pub(crate) struct Cleanup {
    show: Show,
    state: PathBuf,
    /// The home of all of it, removed last.
    _home: TempDir,
}

impl Cleanup {
    /// Stops the machines and removes their disks.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.state.exists() {
            self.show.cli.ok(&["dev", "down", CLUSTER])?;
        }
        Ok(())
    }

    /// The ends of all consoles.
    pub(crate) fn consoles(&self) -> String {
        let machines = std::iter::once("broker").chain(NODES);
        let console = |name: &str| {
            format!("--- console of {name} ---\n{}", tail(&self.state.join(format!("{name}.console"))))
        };
        machines.map(console).collect::<Vec<_>>().join("\n")
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn size(path: &Path) -> Result<u64, Failure> {
    fs::metadata(path).map(|meta| meta.len()).map_err(Failure::file("read", path))
}

impl Story {
    pub(crate) fn new(show: Show, arch: Arch, artifacts: PathBuf, home: PathBuf) -> Self {
        Self { show, arch, artifacts, home }
    }

    pub(crate) fn cleanup(&self, home: TempDir) -> Cleanup {
        let state = self.home.join("state/wherry/dev").join(CLUSTER);
        Cleanup { show: self.show.clone(), state, _home: home }
    }

    pub(crate) fn tell(&self) -> Result<(), Failure> {
        let started = Instant::now();
        println!("The story of a cluster: one broker, two nodes, {} images in QEMU.", self.arch.name());
        self.show.step(1, "Two static programs, two immutable images", || self.images())?;
        let mut token = String::new();
        self.show.step(2, "The boards boot, and the nodes enrol", || {
            token = self.boot()?;
            Ok(())
        })?;
        self.show.step(3, "The laptop joins", || self.join(&token))?;
        self.show.step(4, "Images are pushed: only missing layers travel", || self.push())?;
        let mut web = None;
        self.show.step(5, "Two containers on two nodes", || {
            web = Some(self.run()?);
            Ok(())
        })?;
        let web = web.ok_or_else(|| Failure::Unexpected("there is no container 'web'".into()))?;
        self.show.step(6, "Nothing talks until it is connected", || self.connect(&web))?;
        self.show.step(7, "Logs, a tunnel, and the end of a container", || self.tunnel_and_stop())?;
        self.show.step(8, "Crashes and power cuts", || self.survive())?;
        println!("\nAll of it came out right, in {:.1} s.", started.elapsed().as_secs_f64());
        Ok(())
    }

    fn images(&self) -> Result<(), Failure> {
        let built = self.artifacts.join(self.arch.name());
        for role in [BoardRole::Broker, BoardRole::Node] {
            let name = role.name();
            let program = size(&built.join("bin").join(format!("wherry-{name}")))?;
            let image = built.join("images").join(name);
            let (disk, packed) = (size(&image.join("disk.img"))?, size(&image.join("disk.img.zst"))?);
            remark(&format!(
                "wherry-{name:<7} {:>9}   image {name:<7} {:>9}, compressed {:>9}",
                megabytes(program),
                megabytes(disk),
                megabytes(packed)
            ));
        }
        Ok(())
    }

    fn boot(&self) -> Result<String, Failure> {
        let artifacts = self.artifacts.display().to_string();
        let nodes = NODES.len().to_string();
        let command = [
            "dev",
            "up",
            CLUSTER,
            "--arch",
            self.arch.name(),
            "--nodes",
            &nodes,
            "--images",
            &artifacts,
            "--test-image",
            "--no-join",
        ];
        let up = self.show.ok(&command)?;
        let token = up.stdout.split_whitespace().find(|word| word.starts_with("wry1-admin-"));
        token.map(str::to_owned).ok_or_else(|| up.failure("should have printed a token"))
    }

    fn join(&self, token: &str) -> Result<(), Failure> {
        self.show.until(BOOT, &["join", token], |_| true)?;
        self.private_keys()?;
        self.show.ok(&["locations"])?.expect_stdout(CLUSTER)?;
        self.wait_for_nodes()?;
        let seconds = self.seconds_since_power_on()?;
        remark(&format!("{seconds:.1} s after power-on everybody is there"));
        self.show.ok(&["resources"])?;
        self.show.fails(&["join", "wry1-user-aaaa"])?;
        self.show.ok(&["status"]).map(drop)
    }

    fn seconds_since_power_on(&self) -> Result<f64, Failure> {
        let report = self.show.cli.json(&["dev", "status", CLUSTER])?;
        let uptime = report["machines"][0]["uptime_ms"].as_f64();
        uptime.map(|ms| ms / 1e3).ok_or_else(|| Failure::Unexpected(format!("no uptime in {report}")))
    }

    fn wait_for_nodes(&self) -> Result<(), Failure> {
        let all_connected = || {
            let list = self.show.cli.json(&["resources"]).map_err(|failure| failure.to_string())?;
            let connected =
                list.as_array().into_iter().flatten().filter(|node| node["connected"] == true).count();
            if connected == NODES.len() { Ok(()) } else { Err(list.to_string()) }
        };
        wait::until("both nodes connected", BOOT, all_connected)
    }

    fn private_keys(&self) -> Result<(), Failure> {
        let mut pending = vec![self.home.join("config/wherry")];
        while let Some(path) = pending.pop() {
            let meta = path.metadata().map_err(Failure::file("read", &path))?;
            if meta.is_dir() {
                let entries = path.read_dir().map_err(Failure::file("read", &path))?;
                pending.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
                continue;
            }
            let mode = meta.permissions().mode() & 0o777;
            let shown = path.strip_prefix(&self.home).unwrap_or(&path).display();
            ensure(mode & 0o077 == 0, || format!("{shown} has mode {mode:o}"))?;
            remark(&format!("stored: {shown}, mode {mode:04o}"));
        }
        Ok(())
    }

    fn push(&self) -> Result<(), Failure> {
        for archive in ["web.tar", "client.tar"] {
            let path = self.artifacts.join(self.arch.name()).join("fixtures").join(archive);
            self.show.ok(&["image", "push", &path.display().to_string()])?;
            self.show.ok(&["image", "push", &path.display().to_string()])?.expect_stdout("already")?;
        }
        self.show.ok(&["images"]).map(drop)
    }

    fn run(&self) -> Result<ContainerView, Failure> {
        self.show.ok(&["run", "-d", "--name", "web", "web"])?;
        let web = wait_for_state(&self.show.cli, "web", "running", SOON)?;
        let other = NODES.into_iter().find(|node| *node != web.node).unwrap_or_default();
        self.show.ok(&["run", "-d", "--name", "probe", "--node", other, "client", "sleep", "1d"])?;
        let probe = wait_for_state(&self.show.cli, "probe", "running", SOON)?;
        ensure(probe.node == other && probe.node != web.node, || {
            format!("placed wrongly: {web:?} {probe:?}")
        })?;
        self.show.ok(&["ps"])?;
        Ok(web)
    }

    fn connect(&self, web: &ContainerView) -> Result<(), Failure> {
        let url = format!("http://{}/", web.address);
        // Dropped packets are not answered, so the fetch needs a limit. (The -T of this busybox's wget crashes.)
        let fetch = ["exec", "probe", "--", "busybox", "timeout", "3", "wget", "-qO-", &url];
        self.show.fails(&fetch)?;
        self.show.ok(&["connect", "probe", "web:80"])?;
        let page = self.show.until(SOON, &fetch, |outcome| !outcome.stdout.is_empty())?;
        page.expect_stdout("Wherry")?;
        self.show.ok(&["connections"])?;
        self.show.ok(&["disconnect", "probe", "web:80"])?;
        self.show.fails(&fetch).map(drop)
    }

    fn tunnel_and_stop(&self) -> Result<(), Failure> {
        self.tunnel()?;
        let logs = self.show.cli.start(&["logs", "-f", "web"])?;
        wait::until("the fetches in the web server's log", SOON, || {
            let text = logs.stdout() + &logs.stderr();
            if text.contains("GET /") { Ok(()) } else { Err(text) }
        })?;
        print(&logs.interrupt()?);
        self.show.ends_with(42, &["exec", "probe", "--", "sh", "-c", "exit 42"])?;
        self.show.fails(&["rm", "probe"])?;
        self.show.ok(&["stop", "-t", "1", "probe"])?;
        self.show.ok(&["ps", "-a"])?;
        self.show.ok(&["rm", "probe"])?;
        self.show.fails(&["logs", "probe"])?;
        self.show.ends_with(3, &["run", "--rm", "client", "sh", "-c", "echo bye; exit 3"]).map(drop)
    }

    fn tunnel(&self) -> Result<(), Failure> {
        let port = free_port()?;
        let tunnel = self.show.cli.start(&["tunnel", &port.to_string(), "web:80"])?;
        let page = wait::until("the page through the tunnel", SOON, || {
            match get((Ipv4Addr::LOCALHOST, port).into()) {
                Ok(page) if page.contains("Wherry") => Ok(page),
                Ok(page) => Err(page),
                Err(error) => Err(format!("{error}; {}", tunnel.stderr())),
            }
        })?;
        print(&tunnel.interrupt()?);
        remark(&format!("meanwhile, from this machine: GET http://127.0.0.1:{port}/"));
        let body = page.split("\r\n\r\n").nth(1).unwrap_or(&page);
        body.lines().for_each(|line| println!("     {line}"));
        Ok(())
    }

    fn survive(&self) -> Result<(), Failure> {
        let show = &self.show;
        show.ok(&["run", "-d", "--name", "counter", "--node", NODES[0], "client", "sh", "-c", COUNTER])?;
        let before = wait_for_state(&show.cli, "counter", "running", SOON)?;
        self.ticks_beyond(2)?;
        show.ok(&["debug", "crash-node", NODES[0]])?;
        self.wait_for_nodes()?;
        self.still_counting(&before)?;
        remark(&format!(
            "the node's service was gone; pid {} and its output were not",
            before.pid.unwrap_or_default()
        ));
        let (images, accounts) = (show.cli.json(&["images"])?, self.accounts()?);
        show.ok(&["dev", "power-cut", "broker", "--cluster", CLUSTER])?;
        show.fails(&["ps"])?;
        show.ok(&["dev", "boot", "broker", "--cluster", CLUSTER])?;
        let booted = Instant::now();
        show.until(BOOT, &["images"], |_| true)?;
        self.wait_for_nodes()?;
        remark(&format!(
            "everybody was back {:.1} s after the broker's power",
            booted.elapsed().as_secs_f64()
        ));
        self.still_counting(&before)?;
        ensure(show.cli.json(&["images"])? == images, || "images changed".into())?;
        ensure(self.accounts()? == accounts, || "accounts changed".into())?;
        show.ok(&["accounts"])?;
        show.ok(&["ps"])?;
        show.ok(&["rm", "-f", "counter", "web"]).map(drop)
    }

    /// Labels and keys of all accounts.
    fn accounts(&self) -> Result<Vec<(String, String)>, Failure> {
        let list = self.show.cli.json(&["accounts"])?;
        let field =
            |account: &serde_json::Value, key: &str| account[key].as_str().unwrap_or_default().to_owned();
        Ok(list.as_array().into_iter().flatten().map(|a| (field(a, "label"), field(a, "key"))).collect())
    }

    /// The same process, still counting, without a gap.
    fn still_counting(&self, before: &ContainerView) -> Result<(), Failure> {
        let now = wait_for_state(&self.show.cli, "counter", "running", SOON)?;
        ensure(now.pid == before.pid, || format!("it was {before:?}, now it is {now:?}"))?;
        let count = self.ticks_beyond(0)?;
        self.ticks_beyond(count + 1)?;
        ensure(container(&self.show.cli, "web")?.state == "running", || "the web server has ended".into())
    }

    fn ticks_beyond(&self, least: usize) -> Result<usize, Failure> {
        wait::until(&format!("tick {least}"), SOON, || {
            let text = self.show.cli.ok(&["logs", "counter"]).map_err(|failure| failure.to_string())?;
            let lines: Vec<&str> = text.lines().collect();
            let in_order = lines.iter().enumerate().all(|(number, line)| **line == format!("tick {number}"));
            if in_order && lines.len() > least { Ok(lines.len()) } else { Err(text) }
        })
    }
}
