//! The world of virtual machines: real images in QEMU on a segment of this process.
use crate::cli::Wherry;
use crate::failure::Failure;
use crate::given;
use crate::wait::until;
use crate::world::{Abilities, DATA_MIB, World};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wherry_client::dev::place::Place;
use wherry_client::dev::{Cluster, Options};
use wherry_images::disk::Arch;
use wherry_qemu::console::tail;

/// From power-on to the broker's first answer, and from there until all nodes are there, on a busy host that emulates.
pub const BOOT: Duration = Duration::from_secs(90);

/// A cluster of virtual machines.
#[derive(Debug)]
pub struct Vm {
    // Dropped in this order: machines, their runtime, their files.
    cluster: Option<Cluster>,
    runtime: Runtime,
    admin: Wherry,
    arch: Arch,
    token: String,
    address: Ipv4Addr,
    directory: TempDir,
}

impl Vm {
    /// Boots a broker and `nodes` nodes, joins, and waits until all nodes are there.
    pub fn start(arch: Arch, nodes: u8) -> Result<Self, Failure> {
        let mut world = Self::boot_only(arch, nodes)?;
        if let Err(failure) = world.join_and_wait() {
            return Err(Failure::Unexpected(format!("{failure}\n{}", world.report())));
        }
        Ok(world)
    }

    /// Boots a broker and `nodes` nodes, nothing else.
    pub fn boot_only(arch: Arch, nodes: u8) -> Result<Self, Failure> {
        let directory = TempDir::new().map_err(Failure::io("make a temporary directory"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Failure::io("start a runtime"))?;
        let place = Place::at(directory.path().join("cluster"));
        let name = "test".parse().map_err(|error| Failure::Unexpected(format!("{error}")))?;
        let options = Options {
            nodes,
            data_mib: DATA_MIB,
            test_image: true,
            ..Options::new(name, arch, given::artifacts()?)
        };
        let sockets = directory.path().join("lan");
        let (record, cluster) = runtime.block_on(async {
            let record = Cluster::create(&place, options).await?;
            let mut cluster = Cluster::open(&place, &sockets).await?;
            cluster.boot_all().await?;
            Ok::<_, Failure>((record, cluster))
        })?;
        let admin = Wherry::new(given::wherry()?, directory.path().join("admin"));
        let (token, address) = (record.admin_token, record.address);
        Ok(Self { cluster: Some(cluster), runtime, admin, arch, token, address, directory })
    }

    fn join_and_wait(&mut self) -> Result<(), Failure> {
        until("the broker's answer", BOOT, || match self.admin.run(&["join", &self.token]) {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => Err(outcome.stderr),
            Err(error) => Err(error.to_string()),
        })?;
        crate::scenario::wait_for_nodes(self, BOOT)
    }

    /// The cluster itself.
    pub fn cluster(&mut self) -> Result<&mut Cluster, Failure> {
        self.cluster.as_mut().ok_or_else(|| Failure::Unexpected("the cluster is switched off".into()))
    }

    /// Where this world keeps its files.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // QEMU processes end with the runtime's view of them; what they still had to write is of no interest.
        let _inside = self.runtime.enter();
        self.cluster = None;
    }
}

impl World for Vm {
    fn abilities(&self) -> Abilities {
        Abilities { overlay: true, limits: true, cgroups: true }
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
        let count = self.cluster.as_ref().map_or(0, |cluster| cluster.record().options.nodes);
        (1..=count).map(|number| format!("node{number}")).collect()
    }

    fn broker(&self) -> Ipv4Addr {
        self.address
    }

    fn archive(&self, name: &str) -> Result<PathBuf, Failure> {
        given::fixture(self.arch, name)
    }

    fn crash_service(&mut self, board: &str) -> Result<(), Failure> {
        self.admin.ok(&["debug", "crash-node", board]).map(drop)
    }

    fn power_cut(&mut self, board: &str) -> Result<(), Failure> {
        let Self { cluster: Some(cluster), runtime, .. } = self else { return Ok(()) };
        Ok(runtime.block_on(cluster.power_cut(board))?)
    }

    fn boot(&mut self, board: &str) -> Result<(), Failure> {
        let Self { cluster: Some(cluster), runtime, .. } = self else { return Ok(()) };
        Ok(runtime.block_on(cluster.boot(board))?)
    }

    fn set_plugged(&mut self, board: &str, plugged: bool) -> Result<(), Failure> {
        Ok(self.cluster()?.set_cut(board, !plugged)?)
    }

    fn report(&self) -> String {
        let Some(cluster) = &self.cluster else { return "the cluster is switched off".into() };
        let boards = wherry_client::dev::boards(cluster.record().options.nodes);
        let console = |name: &str| {
            let path = cluster.place().directory().join(format!("{name}.console"));
            format!("--- console of {name} ---\n{}", tail(&path))
        };
        boards.iter().map(|board| console(&board.name)).collect::<Vec<_>>().join("\n")
    }
}
