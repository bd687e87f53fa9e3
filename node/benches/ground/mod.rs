//! What the benchmarks of containers stand on: a node's runtime without a broker, the other runtimes next to it, and figures.
#![allow(dead_code, unreachable_pub, reason = "each benchmark uses its part")]
mod board;
mod times;

pub use board::main;
#[allow(unused_imports, reason = "each benchmark uses its part")]
pub use times::{Times, milliseconds};

use super::support::blobs::Blobs;
use super::support::{self, ARCHITECTURE, cgroup_hierarchy, spec};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wherry_init::control::Endpoint;
use wherry_node::container::cgroup::Cgroups;
use wherry_node::container::execute::Execution;
use wherry_node::container::instance::Instance;
use wherry_node::container::runtime::{Happening, Runtime};
use wherry_protocol::message::{ContainerDesired, ContainerSpec, ExecSpec, ExitStatus, ImageManifest};
use wherry_protocol::{ContainerId, ContainerRef, Generation};

/// What a service that is a benchmark was started with.
pub type Words<'a> = &'a [String];
/// One benchmark, by its name.
pub type Part = (&'static str, fn(Words<'_>));

/// A node's runtime, with a supervisor in a process of its own.
pub struct Ground {
    runtime: Runtime,
    ends: mpsc::UnboundedReceiver<Happening>,
    pub tokio: tokio::runtime::Runtime,
    blobs: Blobs,
    image: ImageManifest,
    pub cgroup: PathBuf,
    // In memory, as a board's /run.
    _run: tempfile::TempDir,
    pub base: tempfile::TempDir,
}

impl Ground {
    /// There is one per process: it takes the control socket over. `name` tells benchmarks apart that run at the same time.
    pub fn new(name: &str) -> Self {
        let endpoint = Endpoint::from_env().unwrap();
        let base = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::default();
        let image = blobs.busybox(&base.path().join("root"));
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let cgroup = cgroup_hierarchy().join(format!("wherry-bench-{name}"));
        let cgroups = Cgroups::open(cgroup.clone(), 64 << 20).unwrap();
        let (sender, ends) = mpsc::unbounded_channel();
        let run = tempfile::tempdir_in("/dev/shm").unwrap();
        let data = base.path().join("data");
        let opened = Runtime::open((&data, run.path()), cgroups, ARCHITECTURE, endpoint, sender);
        let (runtime, _) = tokio.block_on(opened).unwrap();
        Self { runtime, ends, tokio, blobs, image, cgroup, _run: run, base }
    }

    pub fn start(&self, id: u64, spec: ContainerSpec) -> Arc<Instance> {
        let desired = ContainerDesired {
            container: container(id),
            image: self.image.clone(),
            ..support::desired(spec)
        };
        let start = self.runtime.start(&desired, &[], &self.blobs, |_| async { Ok(()) });
        self.tokio.block_on(start).unwrap();
        self.runtime.instance(container(id)).unwrap()
    }

    /// Waits until this container has ended by itself, with code 0.
    pub fn end_of(&mut self, id: u64) {
        loop {
            let Happening::Ended(exit) = self.tokio.block_on(self.ends.recv()).unwrap() else { continue };
            if exit.container == container(id) {
                assert_eq!(exit.ended.status, ExitStatus::Code(0));
                return;
            }
        }
    }

    pub fn remove(&self, id: u64) {
        self.tokio.block_on(self.runtime.remove(container(id))).unwrap();
    }

    /// From "start this" to "it has ended"; removed afterwards.
    pub fn start_to_end(&mut self, id: u64) -> Duration {
        let before = Instant::now();
        drop(self.start(id, spec(&["/bin/true"])));
        self.end_of(id);
        let taken = before.elapsed();
        self.remove(id);
        taken
    }

    /// One more process in a container that runs, from start to end.
    pub fn exec(&self, instance: &Instance) -> Duration {
        let spec = ExecSpec { command: vec!["/bin/true".into()], ..ExecSpec::default() };
        let before = Instant::now();
        self.tokio.block_on(async {
            let start = Execution::start(self.runtime.supervisor(), instance, &spec);
            let execution = start.await.unwrap();
            assert_eq!(execution.wait().await.unwrap(), ExitStatus::Code(0));
            let taken = before.elapsed();
            execution.release().await;
            taken
        })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.cgroup) {
            eprintln!("{} stays: {error}", self.cgroup.display());
        }
    }
}

fn container(id: u64) -> ContainerRef {
    ContainerRef { id: ContainerId(id), generation: Generation(1) }
}

/// An OCI runtime of Debian's.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub program: &'static str,
    flags: &'static [&'static str],
}

/// Without cgroups, because the machine of a test may lack the controllers.
pub const CRUN: Peer = Peer { program: "crun", flags: &["--cgroup-manager=disabled"] };
pub const RUNC: Peer = Peer { program: "runc", flags: &[] };

impl Peer {
    /// Runs it to its end, which must be good.
    pub fn ok(self, arguments: &[&str]) -> Duration {
        let before = Instant::now();
        let mut command = Command::new(self.program);
        let status = command.args(self.flags).args(arguments).stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "{} {arguments:?} failed", self.program);
        before.elapsed()
    }
}

/// An OCI bundle with the same root directory that runs `command`. Without a filter for system calls (crun's default) and
/// without cgroups, crun has less to do.
pub fn bundle(base: &Path, name: &str, command: &[&str]) -> String {
    let bundle = base.join(name);
    fs::create_dir(&bundle).unwrap();
    let made = Command::new("crun").arg("spec").current_dir(&bundle).status().unwrap();
    assert!(made.success(), "install crun");
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = command.into();
    config["root"]["path"] = base.join("root").to_str().unwrap().into();
    fs::write(&path, config.to_string()).unwrap();
    bundle.to_str().unwrap().to_owned()
}
