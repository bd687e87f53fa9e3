//! Carries out what the state decides: containers through the runtime, addresses and rules through the network.
use crate::blobs::BrokerBlobs;
use crate::container::runtime::{Exit, Happening, Runtime};
use crate::net::{LocalContainer, Network};
use crate::probe::Prober;
use crate::state::{Input, Output};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use wherry_protocol::message::{ContainerDesired, NetworkDesired};
use wherry_protocol::{ContainerId, ContainerRef, ErrorCode, NodeIndex, PublicKey, WireError};

/// What the agent's orders act on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Executor {
    runtime: Runtime,
    network: Network,
    prober: Prober,
    blobs: BrokerBlobs,
    /// Name servers of the board; containers ask them.
    nameservers: Arc<Mutex<Vec<Ipv4Addr>>>,
    /// Orders for the network, which must stay in order.
    network_orders: mpsc::UnboundedSender<NetworkOrder>,
    /// Whether the board's number, and with it its overlay network, is known.
    numbered: watch::Receiver<bool>,
}

#[derive(Debug)]
enum NetworkOrder {
    Index(NodeIndex),
    Apply(NetworkDesired, Vec<LocalContainer>),
}

impl Executor {
    /// Acts on `runtime` and `network`; answers about the network go to `inputs`.
    #[must_use]
    pub fn new(runtime: Runtime, network: Network, blobs: BrokerBlobs, inputs: mpsc::Sender<Input>) -> Self {
        let (network_orders, queue) = mpsc::unbounded_channel();
        let (now_numbered, numbered) = watch::channel(false);
        let prober = Prober::new(runtime.clone(), network.clone());
        // Those that outlived a former life of the service.
        runtime.all().into_iter().for_each(|instance| prober.watch(instance));
        tokio::spawn(keep_network(runtime.clone(), network.clone(), queue, inputs, now_numbered));
        Self { runtime, network, prober, blobs, nameservers: Arc::default(), network_orders, numbered }
    }

    /// The board's WireGuard key, if the kernel can do that and GRE.
    #[must_use]
    pub fn overlay(&self) -> Option<PublicKey> {
        self.network.facts().overlay
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

    /// Containers started from now on ask these.
    pub fn set_nameservers(&self, nameservers: Vec<Ipv4Addr>) {
        *self.nameservers.lock().unwrap_or_else(PoisonError::into_inner) = nameservers;
    }

    /// Carries out `order`; what comes of it goes to `inputs`, later.
    pub fn perform(&self, order: Output, inputs: &mpsc::Sender<Input>) {
        match order {
            Output::SetIndex(index) => {
                self.network_orders.send(NetworkOrder::Index(index)).ok();
            }
            Output::ApplyNetwork { network, addresses } => {
                let containers = locals(&addresses);
                self.network_orders.send(NetworkOrder::Apply(network, containers)).ok();
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
        let local = LocalContainer { id: container.id, address: desired.address };
        let nameservers = self.nameservers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let network = self.network.clone();
        // The order with the number was given before this one, but is carried out elsewhere.
        self.numbered.wait_for(|numbered| *numbered).await.ok();
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

fn locals(addresses: &BTreeMap<ContainerId, Ipv4Addr>) -> Vec<LocalContainer> {
    addresses.iter().map(|(&id, &address)| LocalContainer { id, address }).collect()
}

async fn keep_network(
    runtime: Runtime,
    network: Network,
    mut orders: mpsc::UnboundedReceiver<NetworkOrder>,
    inputs: mpsc::Sender<Input>,
    numbered: watch::Sender<bool>,
) {
    while let Some(order) = orders.recv().await {
        match order {
            NetworkOrder::Index(index) => {
                if let Err(error) = network.start(index).await {
                    tracing::error!("the network of board {index} could not be set up: {error}");
                }
                numbered.send_replace(true);
            }
            NetworkOrder::Apply(desired, containers) => {
                reattach(&runtime, &network, &containers).await;
                let error = network.apply(&desired, &containers).await.err().map(|error| error.to_string());
                if let Some(error) = &error {
                    tracing::warn!(revision = desired.revision, "the network is not as wanted: {error}");
                }
                let input = Input::NetworkApplied { revision: desired.revision, error };
                if inputs.send(input).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Containers that outlived a former life of the service are made known to the network again; for the others this is
/// nothing new.
async fn reattach(runtime: &Runtime, network: &Network, containers: &[LocalContainer]) {
    for instance in runtime.all() {
        let known = containers.iter().find(|container| container.id == instance.container.id);
        if let (Some(container), Some(pidfd)) = (known, instance.pidfd())
            && let Err(error) = network.attach(*container, pidfd).await
        {
            tracing::error!(container = %container.id, "its network could not be taken over: {error}");
        }
    }
}
