//! From "start this" to "it has ended", for a program that does nothing: the node's runtime next to Debian's crun and
//! runc with the same root directory, and next to what the kernel alone takes (`bare.c`). In turns, so that whatever else
//! the machine does disturbs all alike. Then what many idle containers cost.
//! `cargo bench -p wherry-node --bench container_start [-- RUNS]`, as root.
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
use wherry_node::container::runtime::{Exit, Runtime};
use wherry_protocol::message::{ContainerDesired, ExecSpec, ExitStatus, ImageManifest};
use wherry_protocol::{ContainerId, ContainerRef, Generation};

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
    let base = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::default();
    let image = blobs.busybox(&base.path().join("root"));
    let cgroup = cgroup_hierarchy().join("wherry-bench");
    let bundle = bundle(base.path());
    let mut bare = Bare::start(base.path());
    with_runtime(&base.path().join("data"), &cgroup, |tokio, runtime, exits| {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for id in 1..=runs {
            times[0].push(bare.once());
            times[1].push(tokio.block_on(wherry(runtime, exits, &blobs, &image, id)));
            times[2].push(oci("crun", &["--cgroup-manager=disabled"], &bundle, id));
            times[3].push(oci("runc", &[], &bundle, id));
        }
        starts(times);
        let many = Many { runtime, blobs: &blobs, image: &image };
        tokio.block_on(many.measure(exits));
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
    let ours = at(&times[1], 50);
    for (name, times) in ["bare kernel", "wherry", "crun", "runc"].into_iter().zip(&times) {
        println!(
            "{name:12} start to end of `true`: median {:6.2} ms, 10 % {:6.2}, 90 % {:6.2}; {:5.2} x wherry",
            at(times, 50),
            at(times, 10),
            at(times, 90),
            at(times, 50) / ours,
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
    async fn measure(&self, exits: &mut mpsc::UnboundedReceiver<Exit>) {
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
            let execution =
                Execution::start(self.runtime.supervisor(), &instance, &spec, false).await.unwrap();
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

fn with_runtime(
    data: &Path,
    cgroup: &Path,
    body: impl FnOnce(&tokio::runtime::Runtime, &Runtime, &mut mpsc::UnboundedReceiver<Exit>),
) {
    let supervisor = Supervisor::new(PROGRAM.as_ref());
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let cgroups = Cgroups::open(cgroup.to_owned(), 64 << 20).unwrap();
    let (sender, mut exits) = mpsc::unbounded_channel();
    let opened = Runtime::open(data, cgroups, ARCHITECTURE, supervisor.connect(), sender);
    let (runtime, _) = tokio.block_on(opened).unwrap();
    body(&tokio, &runtime, &mut exits);
}

async fn wherry(
    runtime: &Runtime,
    exits: &mut mpsc::UnboundedReceiver<Exit>,
    blobs: &Blobs,
    image: &ImageManifest,
    id: u64,
) -> Duration {
    let container = container(id);
    let desired =
        ContainerDesired { container, image: image.clone(), ..support::desired(spec(&["/bin/true"])) };
    let before = Instant::now();
    runtime.start(&desired, &[], blobs, |_| async { Ok(()) }).await.unwrap();
    let exit = exits.recv().await.unwrap();
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
