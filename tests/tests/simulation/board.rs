//! A board: its service's real decisions, and a kernel that is made up.
use crate::dice::Dice;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use wherry_broker::state::SessionId;
use wherry_node::state::{Input, Output, State};
use wherry_protocol::message::*;
use wherry_protocol::*;

/// What is not the service: it survives its crash, but not a power cut.
#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) processes: BTreeMap<ContainerRef, Process>,
    pub(crate) ended: BTreeMap<ContainerRef, (ExitStatus, u64)>,
    pub(crate) network: NetworkDesired,
}

pub(crate) struct Process {
    pub(crate) address: Ipv4Addr,
    pub(crate) started_ms: u64,
    /// Does not care for SIGTERM.
    pub(crate) stubborn: bool,
}

pub(crate) struct Board {
    pub(crate) number: usize,
    pub(crate) state: State,
    pub(crate) kernel: Kernel,
    /// Counts boots; what was begun in an earlier one does not happen any more.
    pub(crate) boot: u32,
    /// Counts starts of the service; likewise.
    pub(crate) service: u32,
    pub(crate) session: Option<SessionId>,
    /// Cut off from the broker until then.
    pub(crate) cut_until_ms: u64,
    /// Changes of the network are made one after the other: when the last one will be.
    network_ms: u64,
    /// Of both planes; new with each boot.
    pub(crate) keys: WireguardKeys,
    /// The plane that packets go through.
    pub(crate) plane: u8,
}

/// What the kernel will have done, and when, in milliseconds from now.
pub(crate) enum Later {
    /// The service learns of it if it is still the same.
    Service(u64, Input),
    /// A process is there from then on.
    Born(u64, ContainerRef, Process),
    /// A process ends.
    Dies(u64, ContainerRef, ExitStatus),
    /// The network is changed.
    Network(u64, NetworkDesired),
    /// Nothing is left of it.
    Gone(u64, ContainerRef),
}

impl Board {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            state: State::default(),
            kernel: Kernel::default(),
            boot: 1,
            service: 1,
            session: None,
            cut_until_ms: 0,
            network_ms: 0,
            keys: [[1; 32]; 2],
            plane: 0,
        }
    }

    pub(crate) fn facts(&self) -> NodeFacts {
        let mut boot_id = [0; 16];
        boot_id[..4].copy_from_slice(&self.boot.to_le_bytes());
        let [high, low] = u16::try_from(self.number).expect("few boards").to_be_bytes();
        NodeFacts {
            hostname: format!("board{}", self.number),
            architecture: "amd64".into(),
            cpus: 4,
            memory_bytes: 1 << 30,
            kernel: "6.1".into(),
            software: "simulated".into(),
            boot_id,
            underlay: Ipv4Addr::new(172, 16, high, low),
            overlay: true,
            limits: true,
            wireguard: Some(self.keys),
        }
    }

    pub(crate) fn load(&self) -> NodeLoad {
        let used = u64::try_from(self.kernel.processes.len()).expect("few") * (24 << 20);
        NodeLoad { memory_available_bytes: (900_u64 << 20).saturating_sub(used), ..NodeLoad::default() }
    }

    /// One input of the service: what to tell the broker, and what the kernel makes of the rest.
    pub(crate) fn decide(
        &mut self,
        now_ms: u64,
        input: Input,
        dice: &mut Dice,
    ) -> (Vec<FromNode>, Vec<Later>) {
        let mut out = Vec::new();
        self.state.handle(now_ms, input, &mut out);
        let (mut reports, mut later) = (Vec::new(), Vec::new());
        for output in out {
            match output {
                Output::Report(report) => reports.push(report),
                Output::Join(..) => {}
                Output::Start(desired) => later.push(start(now_ms, &desired, dice)),
                Output::Signal { container, signal } => later.extend(self.signal(container, signal, dice)),
                Output::Wake(container) => {
                    let condition = Condition::default();
                    later
                        .push(Later::Service(dice.between(1, 50), Input::Condition { container, condition }));
                }
                Output::Remove(container) => later.push(Later::Gone(dice.between(5, 200), container)),
                Output::Rekey(plane) => {
                    assert_ne!(plane, self.plane, "a new key for the way that packets go");
                    self.keys[usize::from(plane)][31] += 1;
                    later.push(Later::Service(dice.between(1, 20), Input::Rekeyed(self.keys)));
                }
                Output::Plane(plane) => self.plane = plane,
                Output::ApplyNetwork { network, .. } => {
                    self.network_ms = self.network_ms.max(now_ms) + dice.between(5, 60);
                    let delay = self.network_ms - now_ms;
                    let revision = network.revision;
                    if dice.percent(1) {
                        let error = Some("out of memory".into());
                        later.push(Later::Service(delay, Input::NetworkApplied { revision, error }));
                    } else {
                        later.push(Later::Network(delay, network));
                    }
                }
            }
        }
        (reports, later)
    }

    fn signal(&self, container: ContainerRef, signal: u8, dice: &mut Dice) -> Option<Later> {
        let process = self.kernel.processes.get(&container)?;
        let dies = signal == 9 || !process.stubborn;
        dies.then(|| Later::Dies(dice.between(1, 50), container, ExitStatus::Signal(signal)))
    }

    /// The service has crashed, or the board has lost power: a new service, which finds what is left.
    pub(crate) fn begin_again(&mut self, now_ms: u64, dice: &mut Dice) {
        self.service += 1;
        self.state = State::default();
        let running = self.kernel.processes.iter().map(|(container, process)| {
            (*container, ContainerState::Running { pid: 1, started_ms: process.started_ms })
        });
        let ended = self.kernel.ended.iter().map(|(container, (status, finished_ms))| {
            (*container, ContainerState::Exited { status: *status, finished_ms: *finished_ms })
        });
        let found: Vec<_> = running.chain(ended).collect();
        for (container, state) in found {
            let (reports, later) =
                self.decide(now_ms, Input::Adopted(ContainerReport { container, state, restarts: 0 }), dice);
            assert!(
                reports.is_empty() && later.is_empty(),
                "nothing is decided before the broker has spoken"
            );
        }
    }
}

fn start(now_ms: u64, desired: &ContainerDesired, dice: &mut Dice) -> Later {
    let (delay, container) = (dice.between(30, 600), desired.container);
    if dice.percent(2) {
        let error = WireError::new(ErrorCode::StartFailed, "cannot start sh: no such file");
        return Later::Service(delay, Input::StartFailed { container, error });
    }
    let process =
        Process { address: desired.address, started_ms: now_ms + delay, stubborn: dice.percent(10) };
    Later::Born(delay, container, process)
}
