//! A node service without a broker: its disk, its supervisor, its runtime.
use super::blobs::Blobs;
use super::supervisor::Supervisor;
use super::{ARCHITECTURE, PROGRAM, cgroup_hierarchy, spec};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Runtime as Tokio;
use tokio::sync::mpsc;
use wherry_node::container::cgroup::Cgroups;
use wherry_node::container::execute::Execution;
use wherry_node::container::instance::Instance;
use wherry_node::container::runtime::{Exit, Happening, Runtime};
use wherry_protocol::message::{
    ContainerDesired, ContainerReport, ContainerSpec, ExecSpec, ExitStatus, ImageManifest,
};
use wherry_protocol::{ContainerId, ContainerRef, Generation, WireError};

/// A node's disk, its supervisor, and an image.
pub struct World {
    pub base: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub supervisor: Supervisor,
    pub blobs: Blobs,
    pub image: ImageManifest,
}

impl World {
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests run as root, as the node does");
        let base = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::default();
        let image = blobs.busybox(&base.path().join("root"));
        let name = format!("wherry-test-{}", base.path().file_name().unwrap().to_string_lossy());
        let cgroup = cgroup_hierarchy().join(name);
        Self { base, cgroup, supervisor: Supervisor::new(PROGRAM.as_ref()), blobs, image }
    }

    pub fn data(&self) -> PathBuf {
        self.base.path().join("data")
    }

    pub fn desired(&self, id: u64, generation: u32, spec: ContainerSpec) -> ContainerDesired {
        let container = ContainerRef { id: ContainerId(id), generation: Generation(generation) };
        ContainerDesired { container, image: self.image.clone(), ..super::desired(spec) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            fs::remove_dir(entry.path()).ok();
        }
        fs::remove_dir(&self.cgroup).ok();
    }
}

/// One life of the node's service.
pub struct Service<'a> {
    pub world: &'a World,
    pub tokio: Tokio,
    pub runtime: Runtime,
    pub adopted: Vec<ContainerReport>,
    pub happenings: mpsc::UnboundedReceiver<Happening>,
}

impl<'a> Service<'a> {
    pub fn new(world: &'a World) -> Self {
        let tokio = Tokio::new().unwrap();
        let endpoint = world.supervisor.connect();
        let cgroups = Cgroups::open(world.cgroup.clone(), 64 << 20).unwrap();
        let (sender, happenings) = mpsc::unbounded_channel();
        let (data, run) = (world.data(), world.base.path().join("run"));
        let opened = tokio.block_on(Runtime::open((&data, &run), cgroups, ARCHITECTURE, endpoint, sender));
        let (runtime, adopted) = opened.unwrap();
        Self { world, tokio, runtime, adopted, happenings }
    }

    pub fn start(&self, desired: &ContainerDesired) -> Result<Arc<Instance>, WireError> {
        let connect = |_pidfd| async { Ok(()) };
        let started = self.tokio.block_on(async {
            let start = self.runtime.start(desired, &[Ipv4Addr::LOCALHOST], &self.world.blobs, connect);
            tokio::time::timeout(super::PATIENCE, start).await.expect("it starts in time")
        })?;
        let instance = self.runtime.instance(desired.container).unwrap();
        assert_eq!((started.pid, started.started_ms), (instance.pid, instance.started_ms));
        Ok(instance)
    }

    pub fn exit(&mut self) -> Exit {
        loop {
            if let Happening::Ended(exit) = self.happening() {
                return exit;
            }
        }
    }

    pub fn happening(&mut self) -> Happening {
        let happenings = &mut self.happenings;
        self.tokio
            .block_on(async { tokio::time::timeout(super::PATIENCE, happenings.recv()).await })
            .expect("it ends in time")
            .unwrap()
    }

    /// Runs to the end: output and status.
    pub fn run(&mut self, desired: &ContainerDesired) -> (String, ExitStatus) {
        let instance = self.start(desired).unwrap();
        let exit = self.exit();
        assert_eq!(exit.container, desired.container);
        (output(&instance), exit.ended.status)
    }

    pub fn remove(&self, container: ContainerRef) {
        self.tokio.block_on(self.runtime.remove(container)).unwrap();
    }

    pub fn exec(&self, instance: &Instance, script: &str) -> (String, Result<ExitStatus, WireError>) {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let spec = ExecSpec { command, ..ExecSpec::default() };
        self.tokio.block_on(async {
            let execution = Execution::start(self.runtime.supervisor(), instance, &spec);
            let execution = execution.await.unwrap();
            let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
            loop {
                match execution.stdout.read(&mut buffer).await.unwrap() {
                    0 => break,
                    length => text.extend_from_slice(&buffer[..length]),
                }
            }
            let ended = execution.wait().await;
            execution.release().await;
            (String::from_utf8(text).unwrap(), ended)
        })
    }
}

pub fn output(instance: &Instance) -> String {
    let entries = instance.log.read(0, usize::MAX).unwrap().entries;
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.bytes).into_owned()).collect()
}

pub fn sh(script: &str) -> ContainerSpec {
    spec(&["sh", "-c", script])
}
