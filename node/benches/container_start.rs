//! From "start this" to "it has ended", for a program that does nothing: the node's runtime next to Debian's crun and
//! runc with the same root directory, and next to what the kernel alone takes (`bare.c`). In turns, so that whatever else
//! the machine does disturbs all alike. Then what many idle containers cost.
//! `cargo bench -p wherry-node --bench container_start [-- RUNS] [bare|wherry|crun|runc|many …]`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use support::blobs::Blobs;
use support::supervisor::Supervisor;
use support::{ARCHITECTURE, PROGRAM, cgroup_hierarchy, spec};
use tokio::sync::mpsc;
use wherry_node::container::cgroup::Cgroups;
use wherry_node::container::execute::Execution;
use wherry_node::container::runtime::{Happening, Runtime};
use wherry_protocol::message::{ContainerDesired, ExecSpec, ExitStatus, ImageManifest};
use wherry_protocol::{ContainerId, ContainerRef, Generation};

/// Bare is the kernel alone.
const NAMES: [&str; 4] = ["bare", "wherry", "crun", "runc"];
const RUNS: u64 = 100;
/// So many idle containers at once.
const MANY: u64 = 200;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if !words.iter().any(|word| word == "--bench") {
        return;
    }
    only_cgroup_v2();
    let runs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(RUNS);
    let named = || words.iter().filter(|word| NAMES.contains(&word.as_str()) || *word == "many");
    let wanted = |name: &str| named().count() == 0 || named().any(|word| word == name);
    let base = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::default();
    let image = blobs.busybox(&base.path().join("root"));
    let cgroup = cgroup_hierarchy().join("wherry-bench");
    let bundle = bundle(base.path());
    let mut bare = Bare::start(base.path());
    with_runtime(base.path(), &cgroup, |tokio, runtime, exits| {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for id in 1..=runs {
            let mut once = |place: usize, run: &mut dyn FnMut() -> Duration| {
                if wanted(NAMES[place]) {
                    times[place].push(run());
                }
            };
            once(0, &mut || bare.once());
            once(1, &mut || tokio.block_on(wherry(runtime, exits, &blobs, &image, id)));
            once(2, &mut || oci("crun", &["--cgroup-manager=disabled"], &bundle, id));
            once(3, &mut || oci("runc", &[], &bundle, id));
        }
        starts(times);
        if wanted("many") {
            let many = Many { runtime, blobs: &blobs, image: &image };
            tokio.block_on(many.measure(exits));
        }
    });
    fs::remove_dir(&cgroup).unwrap();
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn at(times: &[Duration], part: usize) -> f64 {
    times.get((times.len() - 1) * part / 100).copied().map(milliseconds).unwrap()
}

fn starts(mut times: [Vec<Duration>; 4]) {
    times.iter_mut().for_each(|times| times.sort_unstable());
    let ours = times[1].get(times[1].len() / 2).copied();
    for (name, times) in NAMES.into_iter().zip(&times).filter(|(_, times)| !times.is_empty()) {
        let [middle, low, high] = [50, 10, 90].map(|part| at(times, part));
        let ratio = ours.map(|ours| format!("; {:5.2} x wherry", middle / milliseconds(ours)));
        println!(
            "{name:7} start to end of `true`: median {middle:6.2} ms, 10 % {low:6.2}, 90 % {high:6.2}{}",
            ratio.unwrap_or_default()
        );
    }
}

/// The kernel's share.
struct Bare {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Bare {
    fn start(base: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bare.c");
        let program = base.join("bare");
        let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(source).status();
        assert!(built.unwrap().success(), "cc failed");
        let directory = |name: &str| {
            let path: PathBuf = base.join("bare-").join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let mut child = Command::new(&program)
            .args([base.join("root"), directory("upper"), directory("work"), directory("mounted")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn once(&mut self) -> Duration {
        self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        Duration::from_nanos(line.trim().parse().expect("bare.c failed"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// Many containers that sleep.
struct Many<'a> {
    runtime: &'a Runtime,
    blobs: &'a Blobs,
    image: &'a ImageManifest,
}

impl Many<'_> {
    async fn measure(&self, exits: &mut mpsc::UnboundedReceiver<Happening>) {
        const FIRST: u64 = 1_000_000;
        let before = resident_kib();
        let started = Instant::now();
        for id in FIRST..FIRST + MANY {
            let desired = ContainerDesired {
                container: container(id),
                image: self.image.clone(),
                ..support::desired(spec(&["/bin/sleep", "1000"]))
            };
            self.runtime.start(&desired, &[], self.blobs, |_| async { Ok(()) }).await.unwrap();
        }
        let each = started.elapsed() / u32::try_from(MANY).unwrap();
        println!("{MANY} containers, one after the other: {:.2} ms each", milliseconds(each));
        let grown = resident_kib() - before;
        println!("memory of this service, per idle container: {:.1} KiB", grown as f64 / MANY as f64);
        self.exec(container(FIRST)).await;
        for id in FIRST..FIRST + MANY {
            self.runtime.remove(container(id)).await.unwrap();
        }
        // Their ends were heard; nobody wants to know.
        while exits.try_recv().is_ok() {}
    }

    async fn exec(&self, container: ContainerRef) {
        let instance = self.runtime.instance(container).unwrap();
        let spec = ExecSpec { command: vec!["/bin/true".into()], ..ExecSpec::default() };
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let before = Instant::now();
            let execution = Execution::start(self.runtime.supervisor(), &instance, &spec).await.unwrap();
            assert_eq!(execution.wait().await.unwrap(), ExitStatus::Code(0));
            times.push(before.elapsed());
            execution.release().await;
        }
        times.sort_unstable();
        println!("exec of `true`, start to end: median {:.2} ms, 90 % {:.2}", at(&times, 50), at(&times, 90));
    }
}

/// Of this process, which is supervisor and service in one.
fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn container(id: u64) -> ContainerRef {
    ContainerRef { id: ContainerId(id), generation: Generation(1) }
}

/// crun refuses a machine that has both versions of cgroups mounted: in a mount namespace of this process there is one.
fn only_cgroup_v2() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::unmount("/sys/fs/cgroup", rustix::mount::UnmountFlags::DETACH).unwrap();
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
}

/// The boards' static program if it has been built (`cargo xtask bench` does), on a read-only mount as on a board.
fn program(base: &Path) -> PathBuf {
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    let artifacts = std::env::var_os("WHERRY_ARTIFACTS").map(PathBuf::from).unwrap_or_default();
    let built = artifacts.join(std::env::consts::ARCH).join("bin/wherry-node");
    let from = if built.exists() { built } else { PROGRAM.into() };
    println!("the node's program: {}", from.strip_prefix(artifacts).unwrap_or(&from).display());
    let root = base.join("board");
    fs::create_dir(&root).unwrap();
    fs::copy(from, root.join("wherry-node")).unwrap();
    mount_bind(&root, &root).unwrap();
    mount_remount(&root, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    root.join("wherry-node")
}

fn with_runtime(
    base: &Path,
    cgroup: &Path,
    body: impl FnOnce(&tokio::runtime::Runtime, &Runtime, &mut mpsc::UnboundedReceiver<Happening>),
) {
    let supervisor = Supervisor::new(&program(base));
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let cgroups = Cgroups::open(cgroup.to_owned(), 64 << 20).unwrap();
    let (sender, mut exits) = mpsc::unbounded_channel();
    let data = base.join("data");
    // In memory, as a board's /run.
    let run = tempfile::tempdir_in("/dev/shm").unwrap();
    let opened = Runtime::open((&data, run.path()), cgroups, ARCHITECTURE, supervisor.connect(), sender);
    let (runtime, _) = tokio.block_on(opened).unwrap();
    body(&tokio, &runtime, &mut exits);
}

async fn wherry(
    runtime: &Runtime,
    exits: &mut mpsc::UnboundedReceiver<Happening>,
    blobs: &Blobs,
    image: &ImageManifest,
    id: u64,
) -> Duration {
    let container = container(id);
    let desired =
        ContainerDesired { container, image: image.clone(), ..support::desired(spec(&["/bin/true"])) };
    let before = Instant::now();
    runtime.start(&desired, &[], blobs, |_| async { Ok(()) }).await.unwrap();
    let exit = loop {
        if let Happening::Ended(exit) = exits.recv().await.unwrap() {
            break exit;
        }
    };
    let taken = before.elapsed();
    assert_eq!(exit.ended.status, ExitStatus::Code(0));
    runtime.remove(container).await.unwrap();
    taken
}

/// An OCI bundle of the same root directory. Without a filter for system calls (crun's default) and without cgroups (the
/// machine of a test may lack the controllers), crun has less to do.
fn bundle(base: &Path) -> std::path::PathBuf {
    let bundle = base.join("bundle");
    fs::create_dir(&bundle).unwrap();
    std::os::unix::fs::symlink(base.join("root"), bundle.join("rootfs")).unwrap();
    assert!(
        Command::new("crun").arg("spec").current_dir(&bundle).status().unwrap().success(),
        "install crun"
    );
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = vec!["/bin/true"].into();
    config["root"]["path"] = base.join("root").to_str().unwrap().into();
    fs::write(&path, config.to_string()).unwrap();
    bundle
}

fn oci(program: &str, flags: &[&str], bundle: &Path, id: u64) -> Duration {
    let before = Instant::now();
    let name = format!("wherry-bench-{id}");
    let status = Command::new(program)
        .args(flags)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(name)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{program} failed");
    before.elapsed()
}
