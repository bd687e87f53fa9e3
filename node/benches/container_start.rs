//! From "start this" to "it has ended", for a program that does nothing: the node's runtime next to crun, same root
//! directory. `cargo bench -p wherry-node --bench container_start [-- RUNS]`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::blobs::Blobs;
use support::supervisor::Supervisor;
use support::{ARCHITECTURE, PROGRAM, cgroup_hierarchy, spec};
use tokio::sync::mpsc;
use wherry_node::container::cgroup::Cgroups;
use wherry_node::container::runtime::{Exit, Runtime};
use wherry_protocol::message::{ContainerDesired, ExitStatus, ImageManifest};
use wherry_protocol::{ContainerId, ContainerRef, Generation};

const RUNS: u64 = 100;

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
    // In turns, so that whatever else the machine does disturbs both alike.
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let bundle = bundle(base.path());
    with_runtime(&base.path().join("data"), &cgroup, |tokio, runtime, exits| {
        for id in 1..=runs {
            ours.push(tokio.block_on(wherry(runtime, exits, &blobs, &image, id)));
            theirs.push(crun(&bundle, id));
        }
    });
    fs::remove_dir(&cgroup).unwrap();
    for (name, times) in [("wherry", &mut ours), ("crun", &mut theirs)] {
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
        println!(
            "{name:8} start to end of `true`: median {:6.2} ms, 10 % {:6.2}, 90 % {:6.2}",
            at(50),
            at(10),
            at(90)
        );
    }
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
    let container = ContainerRef { id: ContainerId(id), generation: Generation(1) };
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

fn crun(bundle: &Path, id: u64) -> Duration {
    let before = Instant::now();
    let name = format!("wherry-bench-{id}");
    let status = Command::new("crun")
        .args(["--cgroup-manager=disabled", "run", "--bundle"])
        .arg(bundle)
        .arg(name)
        .status()
        .unwrap();
    assert!(status.success(), "crun failed");
    before.elapsed()
}
