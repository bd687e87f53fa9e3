//! A running cluster: the network segment and the machines, owned by this process.
use super::error::DevError;
use super::place::{Place, Record};
use super::plan::{self, Board, Files, Options};
use crate::seed::{BoardNetwork, ClusterSeed, SeedOptions};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use wherry_images::disk::{self, BoardConfig};
use wherry_protocol::{OsRandom, Token};
use wherry_qemu::{Faults, Host, Machine, Port, Running, Segment, accelerator_for};

const MIB: u64 = 1024 * 1024;

/// One machine, as told to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardReport {
    /// `broker`, `node1`, …
    pub name: String,
    /// `broker` or `node`.
    pub role: String,
    /// Address on the virtual LAN.
    pub address: Ipv4Addr,
    /// Process id of its QEMU, if it runs.
    pub pid: Option<u32>,
    /// `KVM` or `TCG`, if it runs.
    pub accelerator: Option<String>,
    /// Milliseconds since it was switched on.
    pub uptime_ms: Option<u64>,
    /// What QEMU takes of this host's memory, in bytes; unknown where the system does not tell.
    pub host_memory_bytes: Option<u64>,
    /// Memory that the machine has, in MiB.
    pub memory_mib: u32,
    /// File with everything it printed.
    pub console: PathBuf,
}

/// A cluster, as told to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What it is called.
    pub name: String,
    /// The boards' processor.
    pub arch: String,
    /// Loopback address of this host that leads to the broker.
    pub address: Ipv4Addr,
    /// Broker first.
    pub machines: Vec<BoardReport>,
}

#[derive(Debug)]
struct Slot {
    board: Board,
    machine: Machine,
    port: Port,
    running: Option<Running>,
}

/// A cluster whose machines this process owns: they end with it.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    record: Record,
    segment: Segment,
    slots: Vec<Slot>,
}

impl Cluster {
    /// Makes keys, tokens and disks of a new cluster in `place`; nothing runs yet.
    pub async fn create(place: &Place, options: Options) -> Result<Record, DevError> {
        options.check()?;
        for role in [disk::BoardRole::Broker, disk::BoardRole::Node] {
            options.template(role)?;
        }
        place.create()?;
        let address = free_way_in(&place.directory().display().to_string())?;
        let seed = seed(&options, address)?;
        let record = Record { options, address, admin_token: seed.admin_token.to_string() };
        let (directory, options) = (place.directory().to_owned(), record.options.clone());
        let work = tokio::task::spawn_blocking(move || make_disks(&directory, &options, &seed));
        work.await.map_err(|error| DevError::Owner(error.to_string()))??;
        place.save_record(&record)?;
        Ok(record)
    }

    /// The cluster in `place`, all switched off. Its network's sockets go into `runtime`, which must not exist.
    pub async fn open(place: &Place, runtime: &Path) -> Result<Self, DevError> {
        let record = place.record()?;
        let boards = plan::boards(record.options.nodes);
        let mut segment = Segment::in_directory(runtime, 0)?;
        segment.serve(plan::lan(&boards));
        let mut slots = Vec::with_capacity(boards.len());
        for board in boards {
            let (_, template) = record.options.template(board.role)?;
            let (port, nic) = segment.plug(board.mac)?;
            let files = Files::of(place.directory(), &board);
            let image = (template.manifest(), template.kernel_path());
            let machine = plan::machine(&record.options, &board, image, files, nic, record.address);
            slots.push(Slot { board, machine, port, running: None });
        }
        Ok(Self { place: place.clone(), record, segment, slots })
    }

    /// Where it lives.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it was made with.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The token that makes its first user the administrator.
    pub fn admin_token(&self) -> Result<Token, wherry_protocol::token::TokenError> {
        self.record.admin_token.parse()
    }

    /// Switches on all that are off, broker first.
    pub async fn boot_all(&mut self) -> Result<(), DevError> {
        let names: Vec<String> = self
            .slots
            .iter()
            .filter(|slot| slot.running.is_none())
            .map(|slot| slot.board.name.clone())
            .collect();
        for name in names {
            self.boot(&name).await?;
        }
        Ok(())
    }

    /// Switches a machine on.
    pub async fn boot(&mut self, name: &str) -> Result<(), DevError> {
        let slot = self.slot(name)?;
        if slot.running.as_mut().is_some_and(Running::is_running) {
            return Err(DevError::MachineRuns(name.to_owned()));
        }
        let accelerator = accelerator_for(slot.machine.arch, &slot.machine.kernel).await;
        slot.running = Some(Running::start(&slot.machine, accelerator, &Host::detect()).await?);
        Ok(())
    }

    /// Cuts a machine's power: it gets no chance to write anything.
    pub async fn power_cut(&mut self, name: &str) -> Result<(), DevError> {
        let slot = self.slot(name)?;
        let running = slot.running.take().ok_or_else(|| DevError::MachineIsOff(name.to_owned()))?;
        Ok(running.power_cut().await?)
    }

    /// Waits for `pattern` on a machine's console and returns its line.
    pub async fn expect(&mut self, name: &str, pattern: &str, timeout: Duration) -> Result<String, DevError> {
        let slot = self.slot(name)?;
        let running = slot.running.as_mut().ok_or_else(|| DevError::MachineIsOff(name.to_owned()))?;
        Ok(running.expect(pattern, timeout).await?)
    }

    /// Unplugs a machine from the LAN, or plugs it in again.
    pub fn set_cut(&mut self, name: &str, cut: bool) -> Result<(), DevError> {
        let port = self.slot(name)?.port;
        self.segment.set_cut(port, cut);
        Ok(())
    }

    /// Makes the LAN better or worse.
    pub fn set_faults(&self, faults: Faults) {
        self.segment.set_faults(faults);
    }

    /// The LAN.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// What there is and how it does.
    pub fn report(&mut self) -> Report {
        let options = &self.record.options;
        Report {
            name: options.name.to_string(),
            arch: options.arch.name().to_owned(),
            address: self.record.address,
            machines: self.slots.iter_mut().map(|slot| slot.report(options.memory_mib)).collect(),
        }
    }

    /// Switches everything off, disks written out.
    pub async fn shut_down(mut self) -> Result<(), DevError> {
        let mut outcome = Ok(());
        for running in self.slots.iter_mut().filter_map(|slot| slot.running.take()) {
            // One machine that will not end must not keep the others running.
            if let Err(error) = running.quit().await {
                outcome = Err(error.into());
            }
        }
        outcome
    }

    fn slot(&mut self, name: &str) -> Result<&mut Slot, DevError> {
        let found = self.slots.iter_mut().find(|slot| slot.board.name == name);
        found.ok_or_else(|| DevError::UnknownMachine(name.chars().take(80).collect()))
    }
}

impl Slot {
    fn report(&mut self, memory_mib: u32) -> BoardReport {
        let running = live(&mut self.running);
        BoardReport {
            name: self.board.name.clone(),
            role: self.board.role.name().to_owned(),
            address: self.board.address,
            pid: running.map(|r| r.pid()),
            accelerator: running.map(|r| r.accelerator().to_string()),
            uptime_ms: running.map(|r| u64::try_from(r.uptime().as_millis()).unwrap_or(u64::MAX)),
            host_memory_bytes: running.and_then(Running::memory).map(|memory| memory.rss_bytes),
            memory_mib,
            console: self.machine.console.clone(),
        }
    }
}

/// The machine, unless it is off or has ended by itself.
fn live(running: &mut Option<Running>) -> Option<&Running> {
    running.as_mut().and_then(|running| running.is_running().then_some(&*running))
}

fn seed(options: &Options, address: Ipv4Addr) -> Result<ClusterSeed, DevError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let network = BoardNetwork {
        interface: Some("eth0".to_owned()),
        address: Some(plan::broker_cidr()),
        ..BoardNetwork::default()
    };
    // The nodes look for the broker on their LAN, as flashed boards do.
    let wanted = SeedOptions {
        admin_address: Some(address.to_string()),
        broker_network: network,
        test_image: options.test_image,
        overlay: options.overlay,
        ..SeedOptions::new(options.name.clone(), usize::from(options.nodes))
    };
    Ok(ClusterSeed::generate(&wanted, now.as_secs(), &mut OsRandom)?)
}

fn make_disks(directory: &Path, options: &Options, seed: &ClusterSeed) -> Result<(), DevError> {
    let texts = std::iter::once(&seed.broker_toml).chain(&seed.node_tomls);
    for (board, text) in plan::boards(options.nodes).iter().zip(texts) {
        let config = BoardConfig::new(text.clone())?;
        let out = Files::of(directory, board).disk;
        let data_bytes = options.data_mib.saturating_mul(MIB);
        disk::personalise(&options.template(board.role)?.0, &out, &config, data_bytes)?;
    }
    Ok(())
}

/// A loopback address on which the broker's ports are free. Somebody else may take them before QEMU does; then QEMU
/// says so and nothing runs.
fn free_way_in(seed: &str) -> Result<Ipv4Addr, DevError> {
    let free = |address: &Ipv4Addr| {
        plan::broker_ports().iter().all(|port| TcpListener::bind((*address, *port)).is_ok())
    };
    plan::way_in_candidates(seed).find(free).ok_or(DevError::NoAddress)
}
