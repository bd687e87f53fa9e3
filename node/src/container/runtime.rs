//! Starts containers, finds them again, and cleans up after them.
use super::cgroup::{Cgroup, CgroupError, Cgroups};
use super::child;
use super::device;
use super::execute::EXEC_BIT;
use super::files;
use super::gate::Gate;
use super::instance::{
    Ended, Instance, KEPT_GO, KEPT_LOG, KEPT_PLAN, KEPT_REPORT, KEPT_STDERR, KEPT_STDIN, KEPT_STDOUT,
    KEPT_TERMINAL, Parts, key, not_running, unusable,
};
use super::layers::{BlobSource, Layers, ReadyImage};
use super::logs::{DEFAULT_CAPACITY, Log, Ring};
use super::plan::{self, Plan, Surroundings};
use super::pump::unix_ms;
use super::rootfs::{DataDir, RootfsError};
use super::seccomp::Filter;
use super::supervisor::{Launched, Supervisor, Survivor};
use super::user_namespace::{self, Fresh, IdRange, UserNamespaces};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use wherry_init::control::{ControlError, Descriptors, Endpoint, Launch, Namespaces, ProcessKey};
use wherry_protocol::message::{
    Condition, ContainerDesired, ContainerReport, ContainerState, Descriptor, Setting,
};
use wherry_protocol::{ContainerId, ContainerRef, ErrorCode, WireError};
use wherry_sys::terminal::{WindowSize, open_pty};

/// How long a child may take from clone to its program; the slowest step is an overlay of 128 layers on a slow card.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the processes of a failed or removed container may take to vanish after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long other starts may take until layers are removed.
const OTHERS_FINISH: Duration = Duration::from_secs(2);
/// How long it may take until all processes of a container are frozen.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
/// SIGKILL (signal(7)).
const SIGKILL: i32 = 9;
const SIGKILL_U8: u8 = 9;
/// A terminal's size until somebody who has one attaches.
const FIRST_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// A container's process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// When, Unix milliseconds.
    pub started_ms: u64,
}

/// The end of a container's process, told to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Which.
    pub container: ContainerRef,
    /// How and when.
    pub ended: Ended,
}

/// What is told to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A container's process has ended.
    Ended(Exit),
    /// A container that runs is otherwise than before.
    Condition(ContainerRef, Condition),
}

/// All containers of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data: DataDir,
    layers: Layers,
    cgroups: Cgroups,
    filter: Filter,
    /// `None` where there can be none.
    user_namespaces: Option<UserNamespaces>,
    architecture: &'static str,
    supervisor: Supervisor,
    happenings: mpsc::UnboundedSender<Happening>,
    instances: Mutex<HashMap<ContainerId, Arc<Instance>>>,
    /// Of containers between two starts: what the next one goes on with, and what must stay on the disk for it.
    retired: Mutex<HashMap<ContainerId, Retired>>,
    /// Held by those who use layers on behalf of containers that are not known yet; alone by who removes layers.
    in_use: tokio::sync::RwLock<()>,
}

/// What is left of a life that has ended when the next one begins.
#[derive(Debug)]
struct Retired {
    container: ContainerRef,
    log: Arc<Log>,
    layers: Vec<PathBuf>,
}

impl Runtime {
    /// Opens the runtime on `data` and, for what need not outlive the board's power, `run`; and takes over the containers that outlived a former life of this service. `happenings`
    /// hears of each end once.
    ///
    /// # Errors
    /// One sentence when the node cannot run containers at all.
    pub async fn open(
        (data, run): (&Path, &Path),
        cgroups: Cgroups,
        architecture: &'static str,
        endpoint: Endpoint,
        happenings: mpsc::UnboundedSender<Happening>,
    ) -> Result<(Self, Vec<ContainerReport>), WireError> {
        let (supervisor, survivors) = Supervisor::connect(endpoint).await.map_err(control_error)?;
        let directories = DataDir::open(data, run).map_err(rootfs_error)?;
        let inner = Inner {
            user_namespaces: user_namespace::if_possible(&directories),
            data: directories,
            layers: Layers::open(data)?,
            cgroups,
            filter: Filter::compile(),
            architecture,
            supervisor,
            happenings,
            instances: Mutex::default(),
            retired: Mutex::default(),
            in_use: tokio::sync::RwLock::default(),
        };
        inner.layers.measure();
        let runtime = Self { inner: Arc::new(inner) };
        let mut reports = Vec::new();
        for survivor in survivors {
            if survivor.key.id & EXEC_BIT != 0 {
                runtime.inner.supervisor.release(survivor.key).await.ok();
                continue;
            }
            reports.extend(runtime.adopt(survivor).await);
        }
        // Not before it is known which ids are taken.
        if let Some(namespaces) = &runtime.inner.user_namespaces {
            namespaces.refill();
        }
        Ok((runtime, reports))
    }

    /// Whether bounds are enforced.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.inner.cgroups.limits()
    }

    /// One life of a container, running or ended.
    #[must_use]
    pub fn instance(&self, container: ContainerRef) -> Option<Arc<Instance>> {
        self.instances().get(&container.id).filter(|instance| instance.container == container).cloned()
    }

    /// The output of one life of a container, also between two starts of it.
    #[must_use]
    pub fn log(&self, container: ContainerRef) -> Option<Arc<Log>> {
        // Held meanwhile: the log leaves here only after its next life is known.
        let retired = self.retired();
        if let Some(instance) = self.instance(container) {
            return Some(Arc::clone(&instance.log));
        }
        let same = retired.get(&container.id).filter(|retired| retired.container == container);
        same.map(|retired| Arc::clone(&retired.log))
    }

    /// Every container known, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Instance>> {
        self.instances().values().cloned().collect()
    }

    /// The supervisor.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.inner.supervisor
    }

    /// Starts a container: fetches what is missing from `blobs`, and gives `connect` its new network namespace, or
    /// a process in it, before the container's program runs.
    ///
    /// # Errors
    /// One sentence; nothing of the attempt is left running.
    pub async fn start<F: Future<Output = Result<(), WireError>>>(
        &self,
        desired: &ContainerDesired,
        nameservers: &[Ipv4Addr],
        blobs: &impl BlobSource,
        connect: impl FnOnce(OwnedFd) -> F,
    ) -> Result<Started, WireError> {
        let ring = self.forget_former_life(desired.container).await?;
        // From here until the container is known, its layers belong to nobody but must stay.
        let mut held = self.inner.in_use.read().await;
        let prepared = match self.prepare(desired, nameservers, blobs).await {
            Err(error) if error.code == ErrorCode::DiskFull => {
                drop(held);
                let removed = self.remove_unused_layers().await;
                held = self.inner.in_use.read().await;
                if removed == 0 {
                    return Err(error);
                }
                self.prepare(desired, nameservers, blobs).await
            }
            result => result,
        };
        let (plan, cgroup, fresh) = prepared?;
        let launched = self.launch(desired, (&plan, ring, fresh), &cgroup, connect).await;
        drop(held);
        match launched {
            Ok(started) => Ok(started),
            Err(error) => {
                self.clear(desired.container, &cgroup).await;
                Err(error)
            }
        }
    }

    async fn prepare(
        &self,
        desired: &ContainerDesired,
        nameservers: &[Ipv4Addr],
        blobs: &impl BlobSource,
    ) -> Result<(Plan, Cgroup, Option<Fresh>), WireError> {
        let inner = &self.inner;
        let image = inner.layers.ensure(blobs, &desired.image, inner.architecture).await?;
        let files =
            files::ensure(blobs, desired.spec.files(), &inner.data.container(desired.container.id)).await?;
        let fresh = match &inner.user_namespaces {
            Some(namespaces) => Some(namespaces.take().await.map_err(unusable)?),
            None => None,
        };
        let plan = self.plan(desired, &image, (&files, nameservers), fresh.as_ref())?;
        let cgroup =
            inner.cgroups.create(desired.container.id, &desired.spec.resources).map_err(cgroup_error)?;
        Ok((plan, cgroup, fresh))
    }

    /// What layers take of the disk that would go if the room were needed, in bytes.
    #[must_use]
    pub fn removable_bytes(&self) -> u64 {
        self.inner.layers.removable_bytes(&self.used_layers())
    }

    fn used_layers(&self) -> BTreeSet<PathBuf> {
        let known = self.all().into_iter().flat_map(|instance| instance.root.layers.clone());
        let retired: Vec<PathBuf> =
            self.retired().values().flat_map(|retired| retired.layers.clone()).collect();
        known.chain(retired).collect()
    }

    /// Makes room: layers stay on the disk for the next container until the room is needed. Those of containers that are
    /// known here, running or ended, are kept.
    async fn remove_unused_layers(&self) -> usize {
        // Others may be fetching layers for a long time: whoever waits for them would hold up everybody else.
        let Ok(alone) = tokio::time::timeout(OTHERS_FINISH, self.inner.in_use.write()).await else {
            return 0;
        };
        let removed = self.inner.layers.remove_all_but(self.used_layers()).await;
        drop(alone);
        match removed {
            Ok(removed) => {
                tracing::info!("the disk is full: {removed} layers that no container uses are gone");
                removed
            }
            Err(error) => {
                tracing::error!("the disk is full, and unused layers cannot be removed: {error}");
                0
            }
        }
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn signal(&self, container: ContainerRef, signal: u8) -> Result<(), WireError> {
        self.running(container)?;
        self.inner.supervisor.signal(key(container), i32::from(signal)).await.map_err(control_error)
    }

    /// Asks a container to stop: SIGTERM stands for its own stop signal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn ask_to_stop(&self, container: ContainerRef, signal: u8) -> Result<(), WireError> {
        /// What the broker sends unless somebody wants otherwise (signal(7)).
        const SIGTERM: u8 = 15;
        let instance = self.running(container)?;
        // One that is frozen could not end in peace, and one that is asleep has nothing to end.
        if instance.condition().borrow().paused {
            self.pause(container, false).await?;
        }
        let own =
            if instance.condition().borrow().asleep { SIGKILL_U8 } else { instance.process.stop_signal };
        self.signal(container, if signal == SIGTERM { own } else { signal }).await
    }

    /// Freezes a container's processes, or lets them go on; returns once it is so.
    ///
    /// # Errors
    /// When it does not run, or this node has no cgroups to freeze it with.
    pub async fn pause(&self, container: ContainerRef, paused: bool) -> Result<(), WireError> {
        let instance = self.running(container)?;
        if !instance.cgroup.is_real() {
            let message = "the kernel of this node has no cgroup v2, so containers cannot be paused on it";
            return Err(WireError::new(ErrorCode::WrongState, message));
        }
        instance.cgroup.freeze(paused).map_err(cgroup_error)?;
        let deadline = tokio::time::Instant::now() + FREEZE_DEADLINE;
        while !instance.cgroup.has_settled(paused) {
            if tokio::time::Instant::now() > deadline {
                instance.cgroup.freeze(!paused).map_err(cgroup_error)?;
                let message = format!("container {} could not be frozen in time: try again", container.id);
                return Err(WireError::new(ErrorCode::Timeout, message));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        instance.change(|condition| condition.paused = paused);
        Ok(())
    }

    /// Starts the program of a container that is asleep.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn wake(&self, container: ContainerRef) -> Result<(), WireError> {
        let instance = self.running(container)?;
        let woken = instance.wake().await;
        for label in [KEPT_GO, KEPT_REPORT] {
            self.inner.supervisor.close_kept(key(container), label).await.ok();
        }
        woken
    }

    /// A container that has not ended.
    ///
    /// # Errors
    /// When it has, or was never started.
    pub fn running(&self, container: ContainerRef) -> Result<Arc<Instance>, WireError> {
        let running = self.instance(container).filter(|instance| instance.ended().is_none());
        running.ok_or_else(|| not_running(container))
    }

    /// The configuration of an image that a container was made from.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn image_config(&self, config: &Descriptor) -> Result<Vec<u8>, WireError> {
        self.inner.layers.config_bytes(config)
    }

    /// The user has no more input for a container: its stdin comes to an end, also the supervisor's copy.
    pub async fn end_input(&self, instance: &Instance) {
        if let Ok(true) = instance.input().end().await {
            self.inner.supervisor.close_kept(key(instance.container), KEPT_STDIN).await.ok();
        }
    }

    /// Deletes every trace of a container, killing it if it runs.
    ///
    /// # Errors
    /// When something resists; asking again is fine.
    pub async fn remove(&self, container: ContainerRef) -> Result<(), WireError> {
        if self.instances().get(&container.id).is_some_and(|instance| instance.container != container) {
            // A late word about a former life; what is on the disk belongs to the present one.
            return Ok(());
        }
        self.clear(container, &self.inner.cgroups.of(container.id)).await;
        self.retired().remove(&container.id);
        let directory = self.inner.data.container(container.id);
        let removed = tokio::task::spawn_blocking(move || directory.remove()).await;
        removed.map_err(|error| internal(error.to_string()))?.map_err(rootfs_error)
    }

    /// Containers that have left something on the disk.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn on_disk(&self) -> Result<Vec<ContainerId>, WireError> {
        self.inner.data.container_ids().map_err(rootfs_error)
    }

    fn plan(
        &self,
        desired: &ContainerDesired,
        image: &ReadyImage,
        (files, nameservers): (&[PathBuf], &[Ipv4Addr]),
        fresh: Option<&Fresh>,
    ) -> Result<Plan, WireError> {
        let inner = &self.inner;
        let shows_core = inner.user_namespaces.as_ref().is_none_or(UserNamespaces::shows_core_parameters);
        let owns_network = fresh.is_some() && (shows_core || !sets_core_parameters(desired)?);
        let dir = inner.data.container(desired.container.id);
        let devices = device::devices(&desired.spec.settings)?;
        let plan = plan::plan(
            desired,
            &Surroundings {
                image: &image.config,
                layers: &image.layers,
                dir: &dir,
                volumes: &inner.data.volumes_of(desired.account),
                nameservers,
                filter: &inner.filter,
                devices: &devices,
                files,
                first_id: fresh.map(|fresh| fresh.ids.first()),
                owns_network,
            },
        )?;
        dir.prepare(desired.clean_since).map_err(rootfs_error)?;
        for mount in &desired.spec.mounts {
            inner.data.make_volume(desired.account, &mount.volume).map_err(rootfs_error)?;
        }
        Ok(plan)
    }

    async fn launch<F: Future<Output = Result<(), WireError>>>(
        &self,
        desired: &ContainerDesired,
        (plan, ring, fresh): (&Plan, Option<Ring>, Option<Fresh>),
        cgroup: &Cgroup,
        connect: impl FnOnce(OwnedFd) -> F,
    ) -> Result<Started, WireError> {
        let cgroup_entered = cgroup.is_real().then_some(cgroup);
        let prepared = Prepared::new(desired, (plan, fresh), ring, cgroup_entered).map_err(unusable)?;
        let Prepared { descriptors, ends, ring, go, report, network, ids } = prepared;
        let launch = Launch {
            key: key(desired.container),
            namespaces: match (&ids, plan.owns_network) {
                (None, _) => Namespaces::ALL,
                (Some(_), true) => Namespaces::MOUNT | Namespaces::PID,
                (Some(_), false) => Namespaces::MOUNT | Namespaces::PID | Namespaces::NET,
            },
            argument: if plan.init { child::ARGUMENT_INIT } else { child::ARGUMENT }.into(),
            cgroup: descriptors.cgroup.is_some(),
            extra: u8::try_from(descriptors.extra.len()).unwrap_or(u8::MAX),
            kept: descriptors.labels(),
        };
        let launched = self.inner.supervisor.launch(launch, &descriptors).await?;
        // The child's ends must be nobody's but the child's, or their readers never see the end.
        drop(descriptors);
        let gate = Gate::new(go, report)?;
        let network = network.map_or_else(|| launched.pidfd.try_clone(), Ok).map_err(unusable)?;
        let passed = async {
            match plan.asleep {
                true => gate.hold(connect(network)).await.map(Some),
                false => gate.pass(connect(network)).await.map(|()| None),
            }
        };
        let opened = tokio::time::timeout(START_DEADLINE, passed).await;
        let opened = opened.unwrap_or_else(|_| {
            let message = format!("the container did not start within {} s", START_DEADLINE.as_secs());
            Err(WireError::new(ErrorCode::StartFailed, message))
        });
        let gate = match opened {
            Ok(gate) => gate,
            Err(error) => {
                let mut exit = launched.exit;
                self.kill(key(desired.container), exit.wait_for(Option::is_some)).await;
                return Err(error);
            }
        };
        let attended = desired.spec.settings.contains(&Setting::Attended);
        self.keep(desired.container, (launched, gate, ids), (plan, attended), cgroup, ring, ends)
    }

    fn keep(
        &self,
        container: ContainerRef,
        (launched, gate, ids): (Launched, Option<Gate>, Option<IdRange>),
        (plan, attended): (&Plan, bool),
        cgroup: &Cgroup,
        ring: Ring,
        ends: HashMap<String, OwnedFd>,
    ) -> Result<Started, WireError> {
        let started = Started { pid: launched.pid, started_ms: unix_ms() };
        let parts = Parts {
            container,
            pid: launched.pid,
            pidfd: Some(launched.pidfd),
            started_ms: started.started_ms,
            // A restart is nothing that somebody came for.
            attended: attended && ring.is_empty(),
            ring,
            process: plan.process.clone(),
            root: plan.root.clone(),
            health: plan.health.clone(),
            image: plan.image.clone(),
            ids,
            gate,
            cgroup: cgroup.clone(),
            ends,
            exit: launched.exit,
        };
        self.watch(parts).map_err(unusable)?;
        self.retired().remove(&container.id);
        Ok(started)
    }

    fn watch(&self, parts: Parts) -> io::Result<Arc<Instance>> {
        let happenings = self.inner.happenings.clone();
        let id = parts.container.id;
        let instance = Instance::watch(parts, move |container, ended| {
            // The agent is gone only when the whole service ends.
            happenings.send(Happening::Ended(Exit { container, ended })).ok();
        })?;
        self.instances().insert(id, Arc::clone(&instance));
        tokio::spawn(tell_conditions(Arc::clone(&instance), self.inner.happenings.clone()));
        Ok(instance)
    }

    async fn adopt(&self, survivor: Survivor) -> Option<ContainerReport> {
        let survivor_key = survivor.key;
        let (pid, ended) = (survivor.pid, survivor.state.as_ref().err().copied());
        let cgroup = self.inner.cgroups.of(ContainerId(survivor.key.id));
        let exit = self.inner.supervisor.watch(survivor.key);
        let parts = Instance::adopt_parts(survivor, cgroup, exit, booted_ms());
        let claimed = parts.map(|parts| Parts { ids: self.claim(&parts), ..parts });
        let instance = match claimed.and_then(|parts| self.watch(parts)) {
            Ok(instance) => instance,
            Err(error) => {
                tracing::error!("container c{} cannot be taken over and is ended: {error}", survivor_key.id);
                self.inner.supervisor.release(survivor_key).await.ok();
                return None;
            }
        };
        let started_ms = instance.started_ms;
        let state = match ended {
            None => ContainerState::Running { pid, started_ms },
            Some(status) => {
                self.inner.supervisor.tell_exit(survivor_key, status);
                let ended = instance.wait().await;
                ContainerState::Exited { status: ended.status, finished_ms: ended.finished_ms }
            }
        };
        // How often it was started again the broker knows.
        Some(ContainerReport { container: instance.container, state, restarts: 0 })
    }

    /// The ids that a container runs with already.
    fn claim(&self, parts: &Parts) -> Option<IdRange> {
        let (namespaces, first) = (self.inner.user_namespaces.as_ref()?, parts.process.first_id?);
        let claimed = namespaces.claim(first);
        if claimed.is_none() {
            tracing::error!("container {} has ids that another one has too", parts.container);
        }
        claimed
    }

    /// A new generation begins with nothing of the last one but its files; a restart keeps the log too, which is returned.
    async fn forget_former_life(&self, container: ContainerRef) -> Result<Option<Ring>, WireError> {
        let former = self.instances().get(&container.id).cloned();
        if let Some(former) = former {
            if former.ended().is_none() {
                let message = format!("container {} is still running", container.id);
                return Err(WireError::new(ErrorCode::WrongState, message));
            }
            let (log, layers) = (Arc::clone(&former.log), former.root.layers.clone());
            self.retired().insert(container.id, Retired { container: former.container, log, layers });
            self.clear(former.container, &former.cgroup).await;
        }
        // Also after a start that failed. Nobody writes to it any more: all output was read before the end was told.
        let retired = self.retired();
        let same = retired.get(&container.id).filter(|retired| retired.container == container);
        same.map(|retired| retired.log.descriptor().and_then(Ring::open).map_err(unusable)).transpose()
    }

    /// Ends and forgets the processes of a container; its files stay.
    async fn clear(&self, container: ContainerRef, cgroup: &Cgroup) {
        let instance = self.take_instance(container);
        if let Some(instance) = instance.filter(|instance| instance.ended().is_none()) {
            // The end comes before the release: who follows its output or waits for it is told.
            self.kill(key(container), instance.wait()).await;
        }
        if let Err(error) = self.inner.supervisor.release(key(container)).await {
            tracing::error!("container {container}: {error}");
        }
        if let Err(error) = cgroup.kill() {
            tracing::warn!("container {container}: {error}");
        }
        let deadline = tokio::time::Instant::now() + KILL_DEADLINE;
        // A killed process leaves its cgroup a moment later.
        while let Err(error) = cgroup.remove() {
            if tokio::time::Instant::now() > deadline {
                tracing::error!("container {container}: {error}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills a process and waits until `end` shows that it is gone, and its mounts with it.
    async fn kill<T>(&self, key: ProcessKey, end: impl Future<Output = T>) {
        if let Err(error) = self.inner.supervisor.signal(key, SIGKILL).await {
            tracing::error!("container c{}: {error}", key.id);
        }
        if tokio::time::timeout(KILL_DEADLINE, end).await.is_err() {
            tracing::error!("container c{} does not end after SIGKILL", key.id);
        }
    }

    /// Forgets this life of a container; another one that has taken its place stays.
    fn take_instance(&self, container: ContainerRef) -> Option<Arc<Instance>> {
        let mut instances = self.instances();
        let this = instances.get(&container.id).is_some_and(|instance| instance.container == container);
        if this { instances.remove(&container.id) } else { None }
    }

    fn retired(&self) -> MutexGuard<'_, HashMap<ContainerId, Retired>> {
        self.inner.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Instance>>> {
        self.inner.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that exists before the clone.
struct Prepared {
    descriptors: Descriptors<OwnedFd>,
    ends: HashMap<String, OwnedFd>,
    ring: Ring,
    go: OwnedFd,
    report: OwnedFd,
    network: Option<OwnedFd>,
    ids: Option<IdRange>,
}

impl Prepared {
    fn new(
        desired: &ContainerDesired,
        (plan, fresh): (&Plan, Option<Fresh>),
        ring: Option<Ring>,
        cgroup: Option<&Cgroup>,
    ) -> io::Result<Self> {
        let owns_network = plan.owns_network;
        let bytes = postcard::to_stdvec(plan).map_err(io::Error::other)?;
        let plan = wherry_sys::fd::sealed_memfd(c"wherry-plan", &bytes).map_err(from_sys)?;
        let (go_child, go) = pipe()?;
        let (report, report_child) = pipe()?;
        let ring = ring.map_or_else(|| Ring::create(DEFAULT_CAPACITY), Ok)?;
        let (stdio, ends) = standard_streams(desired)?;
        let mut kept = vec![
            (KEPT_LOG.to_owned(), ring.descriptor().try_clone_to_owned()?),
            (KEPT_PLAN.to_owned(), plan.try_clone()?),
        ];
        for (label, end) in &ends {
            kept.push((label.clone(), end.try_clone()?));
        }
        if desired.spec.is_asleep() {
            kept.push((KEPT_GO.to_owned(), go.try_clone()?));
            kept.push((KEPT_REPORT.to_owned(), report.try_clone()?));
        }
        let cgroup = cgroup.map(Cgroup::directory).transpose().map_err(io::Error::other)?;
        let (mut extra, mut network, mut ids) = (Vec::new(), None, None);
        if let Some(fresh) = fresh {
            extra = vec![fresh.user, fresh.uts, fresh.ipc];
            if owns_network {
                network = Some(fresh.net.try_clone()?);
                extra.push(fresh.net);
            }
            ids = Some(fresh.ids);
        }
        let descriptors =
            Descriptors { plan, go: go_child, report: report_child, stdio, cgroup, extra, kept };
        Ok(Self { descriptors, ends, ring, go, report, network, ids })
    }
}

/// Whether it has wishes that a kernel which hides them can fulfil only in a network namespace of the node's. A capability
/// over the network would be worth nothing there.
fn sets_core_parameters(desired: &ContainerDesired) -> Result<bool, WireError> {
    let settings = &desired.spec.settings;
    let core = settings.iter().find_map(|setting| match setting {
        Setting::Sysctl { name, .. } if name.starts_with("net.core.") => Some(name),
        _ => None,
    });
    let raw = |setting: &Setting| matches!(setting, Setting::AddCapability(name) if name == "NET_RAW");
    match core {
        Some(name) if settings.iter().any(raw) => {
            let message = format!(
                "the kernel of this node cannot give a container both NET_RAW and {name}: leave one out"
            );
            Err(WireError::new(ErrorCode::Invalid, message))
        }
        core => Ok(core.is_some()),
    }
}

/// The container's three descriptors, and the node's ends by label.
fn standard_streams(desired: &ContainerDesired) -> io::Result<([OwnedFd; 3], HashMap<String, OwnedFd>)> {
    let mut ends = HashMap::new();
    if desired.spec.tty {
        let pty = open_pty(FIRST_SIZE).map_err(from_sys)?;
        ends.insert(KEPT_TERMINAL.to_owned(), pty.controller);
        return Ok(([pty.terminal.try_clone()?, pty.terminal.try_clone()?, pty.terminal], ends));
    }
    let stdin = if desired.spec.stdin_open {
        let (reader, writer) = pipe()?;
        ends.insert(KEPT_STDIN.to_owned(), writer);
        reader
    } else {
        File::open("/dev/null")?.into()
    };
    let (stdout_reader, stdout) = pipe()?;
    let (stderr_reader, stderr) = pipe()?;
    ends.insert(KEPT_STDOUT.to_owned(), stdout_reader);
    ends.insert(KEPT_STDERR.to_owned(), stderr_reader);
    Ok(([stdin, stdout, stderr], ends))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Until it ends. That it is as usual needs not be told at its start.
async fn tell_conditions(instance: Arc<Instance>, happenings: mpsc::UnboundedSender<Happening>) {
    let mut conditions = instance.condition();
    if *conditions.borrow() != Condition::default() {
        conditions.mark_changed();
    }
    loop {
        tokio::select! {
            changed = conditions.changed() => {
                let condition = conditions.borrow_and_update().clone();
                if changed.is_err() || happenings.send(Happening::Condition(instance.container, condition)).is_err() {
                    return;
                }
            }
            _ = instance.wait() => return,
        }
    }
}

/// When this machine booted, Unix milliseconds.
fn booted_ms() -> u64 {
    use nix::sys::time::TimeValLike;
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(|time| time.num_milliseconds());
    unix_ms().saturating_sub(up.ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0))
}

fn internal(message: String) -> WireError {
    WireError::new(ErrorCode::Internal, message)
}

fn from_sys(error: wherry_sys::SysError) -> io::Error {
    io::Error::from(error.errno())
}

fn control_error(error: ControlError) -> WireError {
    internal(format!("the node's supervisor: {error}"))
}

fn cgroup_error(error: CgroupError) -> WireError {
    internal(error.to_string())
}

fn rootfs_error(error: RootfsError) -> WireError {
    let code = if error.is_disk_full() { ErrorCode::DiskFull } else { ErrorCode::Internal };
    WireError::new(code, format!("the node's disk: {error}"))
}
