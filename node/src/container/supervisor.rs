//! The service's side of the control socket: launches, signals, releases, and the inventory after a restart.
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use wherry_init::control::{
    ControlError, Descriptors, Endpoint, EntryState, FromSupervisor, Launch, LaunchStep, Power, ProcessKey,
    RawStatus, ToSupervisor,
};
use wherry_protocol::{ErrorCode, WireError};

/// How often the supervisor hears that the service still serves.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// A process that the supervisor knew before this service started.
#[derive(Debug)]
pub struct Survivor {
    /// Which.
    pub key: ProcessKey,
    /// Its process id.
    pub pid: u32,
    /// When it was launched, milliseconds since boot.
    pub started_ms: u64,
    /// Its pidfd if it runs, its status if not.
    pub state: Result<OwnedFd, RawStatus>,
    /// What was kept for it, by label.
    pub kept: HashMap<String, OwnedFd>,
}

/// A process just launched.
#[derive(Debug)]
pub struct Launched {
    /// Its process id.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Becomes its status when it has ended.
    pub exit: ExitWatch,
}

/// Shows how a process ended, once it has.
pub type ExitWatch = watch::Receiver<Option<RawStatus>>;

type Answer = Result<(u32, OwnedFd), (LaunchStep, i32)>;

#[derive(Debug, Default)]
struct Tables {
    launching: HashMap<ProcessKey, oneshot::Sender<Answer>>,
    exits: HashMap<ProcessKey, watch::Sender<Option<RawStatus>>>,
}

/// The supervisor, as seen from the service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    endpoint: Arc<AsyncFd<Endpoint>>,
    tables: Arc<Mutex<Tables>>,
}

impl Supervisor {
    /// Takes the control socket over: reads the inventory, then serves it in the background until the supervisor is gone.
    ///
    /// # Errors
    /// When the socket fails before the inventory is complete.
    pub async fn connect(endpoint: Endpoint) -> Result<(Self, Vec<Survivor>), ControlError> {
        endpoint.set_nonblocking(true)?;
        let endpoint = pollable(endpoint)?;
        let supervisor = Self { endpoint: Arc::new(endpoint), tables: Arc::default() };
        let mut survivors = Vec::new();
        loop {
            match supervisor.receive().await? {
                (FromSupervisor::InventoryEnd, _) => break,
                (FromSupervisor::Entry { key, pid, started_ms, state, kept }, descriptors) => {
                    survivors.extend(survivor(key, pid, started_ms, state, kept, descriptors));
                }
                (other, descriptors) => supervisor.dispatch(other, descriptors),
            }
        }
        tokio::spawn(supervisor.clone().listen());
        tokio::spawn(supervisor.clone().beat());
        Ok((supervisor, survivors))
    }

    /// Forks a process.
    ///
    /// # Errors
    /// One sentence when it could not be forked.
    pub async fn launch<F: AsFd>(
        &self,
        launch: Launch,
        descriptors: &Descriptors<F>,
    ) -> Result<Launched, WireError> {
        let key = launch.key;
        let (answer, result) = oneshot::channel();
        let exit = self.watch(key);
        self.tables().launching.insert(key, answer);
        let sent = self.send(&ToSupervisor::Launch(launch), &descriptors.in_order()).await;
        if let Err(error) = sent {
            self.forget(key);
            return Err(internal(format!(
                "the supervisor could not be asked to start the container: {error}"
            )));
        }
        match result.await {
            Ok(Ok((pid, pidfd))) => Ok(Launched { pid, pidfd, exit }),
            Ok(Err((step, errno))) => {
                self.forget(key);
                Err(launch_failed(step, Errno::from_raw(errno)))
            }
            Err(_) => Err(internal("the supervisor is gone".into())),
        }
    }

    /// Watches a process that runs already.
    #[must_use]
    pub fn watch(&self, key: ProcessKey) -> ExitWatch {
        self.tables().exits.entry(key).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    /// Shows the watchers of `key` how it ended: for processes of the inventory, whose end is told only once.
    pub fn tell_exit(&self, key: ProcessKey, status: RawStatus) {
        if let Some(exit) = self.tables().exits.get(&key) {
            exit.send_replace(Some(status));
        }
    }

    /// Sends a signal; one to a process that has ended is lost.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn signal(&self, key: ProcessKey, signal: i32) -> Result<(), ControlError> {
        self.send(&ToSupervisor::Signal { key, signal }, &[]).await
    }

    /// Forgets a process and everything kept for it; kills it if it runs.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn release(&self, key: ProcessKey) -> Result<(), ControlError> {
        self.forget(key);
        self.send(&ToSupervisor::Release(key), &[]).await
    }

    /// Closes one kept descriptor (a pipe whose reader should see its end).
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn close_kept(&self, key: ProcessKey, label: &str) -> Result<(), ControlError> {
        self.send(&ToSupervisor::CloseKept { key, label: label.to_owned() }, &[]).await
    }

    /// Takes the machine down.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn power(&self, power: Power) -> Result<(), ControlError> {
        self.send(&ToSupervisor::Power(power), &[]).await
    }

    fn forget(&self, key: ProcessKey) {
        let mut tables = self.tables();
        tables.launching.remove(&key);
        tables.exits.remove(&key);
    }

    async fn send(
        &self,
        message: &ToSupervisor,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        loop {
            let mut ready = self.endpoint.writable().await.map_err(|_| ControlError::Closed)?;
            match self.endpoint.get_ref().send(message, descriptors) {
                Err(ControlError::WouldBlock) => ready.clear_ready(),
                result => return result,
            }
        }
    }

    async fn receive(&self) -> Result<(FromSupervisor, Vec<OwnedFd>), ControlError> {
        loop {
            let mut ready =
                self.endpoint.ready(Interest::READABLE).await.map_err(|_| ControlError::Closed)?;
            match self.endpoint.get_ref().recv() {
                Err(ControlError::WouldBlock) => ready.clear_ready(),
                result => return result,
            }
        }
    }

    async fn listen(self) {
        loop {
            match self.receive().await {
                Ok((message, descriptors)) => self.dispatch(message, descriptors),
                // One datagram is gone, the socket is sound.
                Err(error @ (ControlError::Garbage { .. } | ControlError::TooLarge)) => {
                    tracing::error!("from the supervisor: {error}");
                }
                Err(error) => {
                    tracing::error!("the supervisor is gone: {error}");
                    return;
                }
            }
        }
    }

    async fn beat(self) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            beat.tick().await;
            if self.send(&ToSupervisor::Alive, &[]).await.is_err() {
                return;
            }
        }
    }

    fn dispatch(&self, message: FromSupervisor, descriptors: Vec<OwnedFd>) {
        match message {
            FromSupervisor::Launched { key, pid } => {
                if let (Some(answer), Some(pidfd)) =
                    (self.tables().launching.remove(&key), descriptors.into_iter().next())
                {
                    answer.send(Ok((u32::try_from(pid).unwrap_or(0), pidfd))).ok();
                }
            }
            FromSupervisor::LaunchFailed { key, errno, step } => {
                if let Some(answer) = self.tables().launching.remove(&key) {
                    answer.send(Err((step, errno))).ok();
                }
            }
            FromSupervisor::Exited { key, status } => self.tell_exit(key, status),
            FromSupervisor::Entry { .. } | FromSupervisor::InventoryEnd => {
                tracing::error!("the supervisor sent an inventory out of turn");
            }
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe because some types give up their descriptor; an Endpoint owns its for life"
)]
fn pollable(endpoint: Endpoint) -> Result<AsyncFd<Endpoint>, ControlError> {
    AsyncFd::new(endpoint).map_err(|_| ControlError::NotSupervised)
}

fn survivor(
    key: ProcessKey,
    pid: i32,
    started_ms: u64,
    state: EntryState,
    labels: Vec<String>,
    descriptors: Vec<OwnedFd>,
) -> Option<Survivor> {
    let mut descriptors = descriptors.into_iter();
    let state = match state {
        EntryState::Running => Ok(descriptors.next()?),
        EntryState::Exited(status) => Err(status),
    };
    let kept = labels.into_iter().zip(descriptors).collect();
    Some(Survivor { key, pid: u32::try_from(pid).unwrap_or(0), started_ms, state, kept })
}

fn launch_failed(step: LaunchStep, errno: Errno) -> WireError {
    let what = match step {
        LaunchStep::Key => "an earlier process of it is still known",
        LaunchStep::Table => "the node has as many processes as it can keep, or is going down",
        LaunchStep::Request => "the supervisor did not take the request",
        LaunchStep::Clone => "the kernel did not make its process",
        LaunchStep::Child | LaunchStep::Exec => "its process could not be set up",
    };
    WireError::new(ErrorCode::StartFailed, format!("the container could not be started: {what} ({errno})"))
}

fn internal(message: String) -> WireError {
    WireError::new(ErrorCode::Internal, message)
}
