//! Carries out what the state decides: containers through the runtime, addresses and rules through the network.
use crate::blobs::BrokerBlobs;
use crate::container::runtime::{Exit, Happening, Runtime};
use crate::dns::{self, Directory, DnsLimits, Upstream};
use crate::net::{LocalContainer, Network};
use crate::probe::Prober;
use crate::state::{Input, Output};
use crate::web::{self, Callers};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use wherry_protocol::io::Mux;
use wherry_protocol::message::{ContainerDesired, Drops, NetworkDesired, WireguardKeys};
use wherry_protocol::{ContainerId, ContainerRef, ErrorCode, NodeIndex, Overlay, WireError};

/// What the agent's orders act on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Executor {
    runtime: Runtime,
    network: Network,
    prober: Prober,
    blobs: BrokerBlobs,
    /// What the board's DNS server answers about the cluster, and whom it asks about the rest.
    names: Names,
    /// Orders for the network, which must stay in order.
    network_orders: mpsc::UnboundedSender<NetworkOrder>,
    /// The board's number, once it and with it the overlay network is known.
    numbered: watch::Receiver<Option<(NodeIndex, Overlay)>>,
}

/// Both ends of what the board's DNS server knows.
#[derive(Debug, Clone)]
struct Names {
    directory: watch::Sender<Arc<Directory>>,
    upstream: watch::Sender<Upstream>,
    /// Who may ask the web endpoint by way of the board.
    callers: watch::Sender<Arc<Callers>>,
}

impl Names {
    fn new() -> Self {
        Self {
            directory: watch::channel(Arc::default()).0,
            upstream: watch::channel(Upstream::default()).0,
            callers: watch::channel(Arc::default()).0,
        }
    }

    /// A container that starts may ask from its first moment.
    fn admit(&self, container: &LocalContainer) {
        self.directory.send_modify(|directory| Arc::make_mut(directory).admit(container));
    }

    async fn serve(self, index: NodeIndex, overlay: Overlay) {
        let (directory, upstream) = (self.directory.subscribe(), self.upstream.subscribe());
        dns::serve(overlay.gateway(index), directory, upstream, DnsLimits::BOARD).await;
    }
}

#[derive(Debug)]
enum NetworkOrder {
    Start(NodeIndex, Overlay),
    Apply(NetworkDesired, Vec<LocalContainer>),
    Rekey(u8),
    Plane(u8),
}

impl Executor {
    /// Acts on `runtime` and `network`; answers about the network go to `inputs`.
    #[must_use]
    pub fn new(runtime: Runtime, network: Network, blobs: BrokerBlobs, inputs: mpsc::Sender<Input>) -> Self {
        let (network_orders, queue) = mpsc::unbounded_channel();
        let (now_numbered, numbered) = watch::channel(None);
        let names = Names::new();
        let prober = Prober::new(runtime.clone(), network.clone());
        // Those that outlived a former life of the service.
        runtime.all().into_iter().for_each(|instance| prober.watch(instance));
        let keeper = Keeper {
            runtime: runtime.clone(),
            network: network.clone(),
            names: names.clone(),
            sessions: blobs.sessions(),
            numbered: now_numbered,
        };
        tokio::spawn(keeper.run(queue, inputs));
        Self { runtime, network, prober, blobs, names, network_orders, numbered }
    }

    /// The board's WireGuard keys, if the kernel can do that and GRE.
    #[must_use]
    pub fn overlay(&self) -> Option<WireguardKeys> {
        self.network.keys()
    }

    /// Packets that the board's rules have dropped.
    #[must_use]
    pub fn dropped(&self) -> Drops {
        self.network.board_drops()
    }

    /// What unused layers take of the disk, in bytes.
    #[must_use]
    pub fn removable_bytes(&self) -> u64 {
        self.runtime.removable_bytes()
    }

    /// Whether bounds are enforced.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.runtime.limits()
    }

    /// What containers ask about the world outside goes to these.
    pub fn set_nameservers(&self, nameservers: &[Ipv4Addr]) {
        self.names.upstream.send_replace(Upstream::of(nameservers));
    }

    /// Carries out `order`; what comes of it goes to `inputs`, later.
    pub fn perform(&self, order: Output, inputs: &mpsc::Sender<Input>) {
        match order {
            Output::Join(index, overlay) => {
                self.network_orders.send(NetworkOrder::Start(index, overlay)).ok();
            }
            Output::ApplyNetwork { network, containers } => {
                self.network_orders.send(NetworkOrder::Apply(network, containers)).ok();
            }
            Output::Rekey(plane) => {
                self.network_orders.send(NetworkOrder::Rekey(plane)).ok();
            }
            Output::Plane(plane) => {
                self.network_orders.send(NetworkOrder::Plane(plane)).ok();
            }
            Output::Start(desired) => self.background(inputs, |executor| executor.start(*desired)),
            Output::Remove(container) => self.background(inputs, move |executor| executor.remove(container)),
            Output::Signal { container, signal } => {
                let runtime = self.runtime.clone();
                tokio::spawn(async move {
                    if let Err(error) = runtime.ask_to_stop(container, signal).await {
                        tracing::debug!(%container, "signal {signal}: {error}");
                    }
                });
            }
            Output::Wake(container) => {
                let runtime = self.runtime.clone();
                tokio::spawn(async move {
                    if let Err(error) = runtime.wake(container).await {
                        tracing::warn!(%container, "cannot be woken: {error}");
                    }
                });
            }
            // The agent keeps reports to itself.
            Output::Report(_) => {}
        }
    }

    fn background<F: Future<Output = Input> + Send + 'static>(
        &self,
        inputs: &mpsc::Sender<Input>,
        work: impl FnOnce(Self) -> F,
    ) {
        let (work, inputs) = (work(self.clone()), inputs.clone());
        tokio::spawn(async move {
            inputs.send(work.await).await.ok();
        });
    }

    async fn start(mut self, desired: ContainerDesired) -> Input {
        let container = desired.container;
        let local = LocalContainer::of(&desired);
        let network = self.network.clone();
        // The order with the number was given before this one, but is carried out elsewhere.
        let place = self.numbered.wait_for(Option::is_some).await.ok().and_then(|place| *place);
        let nameservers: Vec<Ipv4Addr> =
            place.map(|(index, overlay)| overlay.gateway(index)).into_iter().collect();
        self.names.admit(&local);
        let connect = async move |pidfd| {
            network.attach(local, pidfd).await.map_err(|error| {
                let message = format!("the container's network could not be set up: {error}");
                WireError::new(ErrorCode::StartFailed, message)
            })
        };
        match self.runtime.start(&desired, &nameservers, &self.blobs, connect).await {
            Ok(started) => {
                if let Some(instance) = self.runtime.instance(container) {
                    self.prober.watch(instance);
                }
                Input::Started { container, pid: started.pid, started_ms: started.started_ms }
            }
            Err(error) => {
                tracing::warn!(%container, "cannot be started: {error}");
                self.detach(container.id).await;
                Input::StartFailed { container, error }
            }
        }
    }

    async fn remove(self, container: ContainerRef) -> Input {
        self.detach(container.id).await;
        if let Err(error) = self.runtime.remove(container).await {
            // Its process is gone and its name may be used again; what is left on the disk goes when the service restarts.
            tracing::error!(%container, "not all traces could be removed: {error}");
        }
        Input::Removed(container)
    }

    async fn detach(&self, id: ContainerId) {
        if let Err(error) = self.network.detach(id).await {
            tracing::error!(container = %id, "detaching the network: {error}");
        }
    }
}

/// Passes on what containers do by themselves. The interfaces of those that have ended went with their namespaces.
pub async fn forward(
    mut happenings: mpsc::UnboundedReceiver<Happening>,
    network: Network,
    inputs: mpsc::Sender<Input>,
) {
    while let Some(happening) = happenings.recv().await {
        let input = match happening {
            Happening::Ended(Exit { container, ended }) => {
                if let Err(error) = network.detach(container.id).await {
                    tracing::warn!(%container, "detaching the network: {error}");
                }
                Input::Exited { container, status: ended.status, finished_ms: ended.finished_ms }
            }
            Happening::Condition(container, condition) => Input::Condition { container, condition },
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

/// Carries out orders for the network, one after the other.
struct Keeper {
    runtime: Runtime,
    network: Network,
    names: Names,
    sessions: watch::Receiver<Option<Mux>>,
    numbered: watch::Sender<Option<(NodeIndex, Overlay)>>,
}

impl Keeper {
    async fn run(self, mut orders: mpsc::UnboundedReceiver<NetworkOrder>, inputs: mpsc::Sender<Input>) {
        let mut server = JoinSet::new();
        while let Some(order) = orders.recv().await {
            match order {
                NetworkOrder::Start(index, overlay) => {
                    if let Err(error) = self.network.start(index, overlay).await {
                        tracing::error!("the network of board {index} could not be set up: {error}");
                    }
                    // The board's address follows from these, and there is one server.
                    if *self.numbered.borrow() != Some((index, overlay)) {
                        server.abort_all();
                        let callers = self.names.callers.subscribe();
                        server.spawn(self.names.clone().serve(index, overlay));
                        server.spawn(web::serve(overlay.gateway(index), callers, self.sessions.clone()));
                    }
                    self.numbered.send_replace(Some((index, overlay)));
                }
                NetworkOrder::Rekey(plane) => match self.network.rekey(plane).await {
                    Ok(Some(keys)) if inputs.send(Input::Rekeyed(keys)).await.is_err() => return,
                    Ok(_) => {}
                    Err(error) => tracing::error!("there is no new key for the tunnels: {error}"),
                },
                NetworkOrder::Plane(plane) => {
                    if let Err(error) = self.network.set_plane(plane).await {
                        tracing::error!("tunnels do not change their way: {error}");
                    }
                }
                NetworkOrder::Apply(desired, containers) => {
                    let error = self.apply(&desired, &containers).await;
                    let input = Input::NetworkApplied { revision: desired.revision, error };
                    if inputs.send(input).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Names last: what they lead to can be reached by then.
    async fn apply(&self, desired: &NetworkDesired, containers: &[LocalContainer]) -> Option<String> {
        reattach(&self.runtime, &self.network, containers).await;
        let error = self.network.apply(desired, containers).await.err().map(|error| error.to_string());
        if let Some(error) = &error {
            tracing::warn!(revision = desired.revision, "the network is not as wanted: {error}");
        }
        let numbered = *self.numbered.borrow();
        let overlay = numbered.map(|(_, overlay)| overlay).unwrap_or_default();
        let mut directory = Directory::of(overlay, desired, containers);
        if let Some((index, overlay)) = numbered {
            directory.lead_to_web(&desired.callers, overlay.gateway(index));
        }
        self.names.directory.send_replace(Arc::new(directory));
        let here = containers.iter().map(|container| (container.address, container.id)).collect();
        self.names.callers.send_replace(Arc::new(Callers::of(desired, &here)));
        error
    }
}

/// Containers that outlived a former life of the service are made known to the network again; for the others this is
/// nothing new.
async fn reattach(runtime: &Runtime, network: &Network, containers: &[LocalContainer]) {
    for instance in runtime.all() {
        let known = containers.iter().find(|container| container.id == instance.container.id);
        if let (Some(container), Some(pidfd)) = (known, instance.pidfd())
            && let Err(error) = network.attach(container.clone(), pidfd).await
        {
            tracing::error!(container = %container.id, "its network could not be taken over: {error}");
        }
    }
}
