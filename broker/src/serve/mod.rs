//! The shell around the state: sockets, sessions and streams.
//!
//! ```text
//! gate      bounds on strangers            listen    accept, handshake, version, role
//! user      requests of people             node      control and blobs of boards
//! upload    blobs coming in                route     streams spliced to boards
//! publish   broker ports that lead to containers
//! web       the web endpoint
//! ```
mod gate;
mod listen;
mod node;
mod publish;
mod route;
mod upload;
mod user;
mod web;

pub use gate::ServeLimits;
pub use web::{CERTIFICATE_PAUSE, WebSetup};

use crate::core::{Clock, Core, Parts};
use crate::sessions::Sessions;
use crate::state::{Broker, Identity, Input, LoadError, Output, OverlayChange, PublishedPorts, Time, Web};
use crate::store::{Store, StoreError};
use gate::Gate;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use web::WebShared;
use wherry_images::store::BlobStore;
use wherry_protocol::io::ServerKeys;
use wherry_protocol::overlay::GlobalId;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::{Digest, Name, OsRandom, Overlay, Random, Role, SecretKey, Token};

/// Name and version of this software, as peers are told.
pub const SOFTWARE: &str = concat!("wherry-broker ", env!("CARGO_PKG_VERSION"));
/// Life of the first admin token that a broker without any admin makes, in seconds: one day.
const FIRST_TOKEN_SECONDS: u64 = 24 * 3600;

/// Why the broker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records contradict one another.
    #[error(
        "the broker's memory at {path} is damaged ({source}): it is left as it is, put back a copy of the file or move it away to begin anew"
    )]
    State {
        /// The database.
        path: PathBuf,
        /// What contradicts what.
        source: LoadError,
    },
    /// The containers' addresses.
    #[error(transparent)]
    Overlay(#[from] OverlayChange),
    /// The blobs.
    #[error(transparent)]
    Blobs(#[from] wherry_images::store::StoreError),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The thread that decides has ended; a fault of this program.
    #[error("the broker's state cannot be trusted any more after a fault: starting anew from what is stored")]
    StateLost,
}

/// A token hash from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredToken {
    /// What it makes of a key.
    pub role: Role,
    /// Hash of its secret.
    pub hash: Digest,
    /// Until when it holds, Unix seconds.
    pub expires_seconds: u64,
}

/// What a broker is made of.
#[derive(Debug)]
pub struct Setup {
    /// Its long-term key.
    pub secret: SecretKey,
    /// What the cluster calls itself.
    pub location: Name,
    /// Where its records and blobs are.
    pub data: PathBuf,
    /// The containers' addresses, if the configuration says so.
    pub overlay: Option<Overlay>,
    /// Tokens of the configuration.
    pub tokens: Vec<ConfiguredToken>,
    /// Address on which published ports listen.
    pub publish_address: IpAddr,
    /// The web endpoint.
    pub web: WebSetup,
    /// Bounds of the listeners.
    pub limits: ServeLimits,
}

/// The two listening sockets.
#[derive(Debug)]
pub struct Listeners {
    /// tcp/2020.
    pub sessions: TcpListener,
    /// tcp/2021.
    pub enrolment: TcpListener,
}

/// What every task of the shell shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Core,
    pub(crate) blobs: BlobStore,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) keys: ServerKeys,
    pub(crate) gate: Gate,
    pub(crate) handshakes: Semaphore,
    pub(crate) open_sessions: Arc<Semaphore>,
    pub(crate) uploads: Semaphore,
    pub(crate) routes: route::Routes,
    pub(crate) web_routes: route::Routes,
    pub(crate) visits: route::Routes,
    pub(crate) web: WebShared,
    pub(crate) limits: Arc<ServeLimits>,
    pub(crate) publish_address: IpAddr,
    pub(crate) end: CancellationToken,
}

/// A broker that has read its memory and is ready to serve.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    failure: tokio::sync::oneshot::Receiver<StoreError>,
    first_token: Option<Token>,
    overlay: Overlay,
}

impl Service {
    /// Opens the store and the blobs, and takes over the configuration's tokens. Blocks on the disk.
    ///
    /// # Errors
    /// When anything stored is damaged or cannot be used; nothing is replaced.
    pub fn open(setup: Setup) -> Result<Self, ServeError> {
        let clock = Clock::start();
        let path = setup.data.join("state.redb");
        make_private_directory(&setup.data).map_err(|source| {
            let what = format!("cannot create {}", setup.data.display());
            ServeError::Io { what, source }
        })?;
        let (mut store, records) = Store::open(&path)?;
        let blobs = BlobStore::open(&setup.data.join("blobs"))?;
        let identity =
            Identity { key: setup.secret.public(), location: setup.location, software: SOFTWARE.into() };
        let now = clock.now();
        let mut broker =
            Broker::load(now, identity, records).map_err(|source| ServeError::State { path, source })?;
        let mut global = GlobalId::default();
        OsRandom.fill(&mut global);
        let settled = broker.settle_overlay(setup.overlay, global)?;
        keep(&mut store, settled)?;
        let overlay = broker.overlay();
        let lost = compare(&broker, &blobs)?;
        begin(&mut broker, &mut store, now, lost)?;
        begin(&mut broker, &mut store, now, setup.tokens.iter().map(adoption).collect())?;
        let first_token = first_token(&mut broker, &mut store, now, &setup.secret)?;
        let sessions = Arc::new(Sessions::default());
        let parts = Parts { broker, store, blobs: blobs.clone(), sessions: Arc::clone(&sessions) };
        let started = Core::start(parts, clock);
        let (core, failure) =
            started.map_err(|source| ServeError::Io { what: "cannot start a thread".into(), source })?;
        let limits = Arc::new(setup.limits);
        let web = WebShared::new(setup.web, &setup.secret);
        let shared = Shared {
            core,
            blobs,
            sessions,
            keys: ServerKeys::new(setup.secret, &mut OsRandom),
            gate: Gate::new(Arc::clone(&limits)),
            handshakes: Semaphore::new(limits.handshakes),
            open_sessions: Arc::new(Semaphore::new(limits.sessions)),
            uploads: Semaphore::new(limits.uploads),
            routes: route::Routes::new(limits.routes_per_account, 0),
            web_routes: route::Routes::new(limits.web_routes_per_account, limits.streams_kept_back),
            visits: route::Routes::new(limits.visits_per_account, limits.streams_kept_back),
            web,
            limits,
            publish_address: setup.publish_address,
            end: CancellationToken::new(),
        };
        Ok(Self { shared: Arc::new(shared), failure, first_token, overlay })
    }

    /// A token made at this start because nobody is, or could become, an admin. Shown once; only its hash is kept.
    #[must_use]
    pub fn first_token(&self) -> Option<&Token> {
        self.first_token.as_ref()
    }

    /// The addresses of all containers.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        self.overlay
    }

    /// Ports of the broker that lead to containers, as they change.
    #[must_use]
    pub fn published(&self) -> tokio::sync::watch::Receiver<PublishedPorts> {
        self.shared.core.published()
    }

    /// Whether the ports of the web endpoint are open, as that changes.
    #[must_use]
    pub fn web(&self) -> tokio::sync::watch::Receiver<Arc<Web>> {
        self.shared.core.web()
    }

    /// The broker's identity.
    #[must_use]
    pub fn key(&self) -> wherry_protocol::PublicKey {
        self.shared.keys.public()
    }

    /// To find out from outside whether the service still answers.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse(self.shared.core.clone())
    }

    /// Serves until `shutdown` completes, then ends the sessions within the drain time.
    ///
    /// # Errors
    /// When the store cannot be written any more: then nothing can be promised, and the process must start anew.
    pub async fn run(
        self,
        listeners: Listeners,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let Self { shared, mut failure, .. } = self;
        let mut tasks = JoinSet::new();
        tasks.spawn(listen::sessions(Arc::clone(&shared), listeners.sessions));
        tasks.spawn(listen::enrolment(Arc::clone(&shared), listeners.enrolment));
        tasks.spawn(publish::run(Arc::clone(&shared)));
        tasks.spawn(web::run(Arc::clone(&shared)));
        tasks.spawn(web::certify(Arc::clone(&shared)));
        let result = tokio::select! {
            () = shutdown => Ok(()),
            failed = &mut failure => Err(failed.map_or(ServeError::StateLost, ServeError::Store)),
        };
        shared.end.cancel();
        let drain = std::time::Duration::from_secs(shared.limits.drain_seconds);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, drained).await.is_err() {
            tracing::warn!("some sessions did not end in time and were cut");
            tasks.shutdown().await;
        }
        if result.is_ok() {
            shared.core.stop().await;
            // Ends when the thread has: then the store is closed.
            drop(failure.await);
        }
        result
    }
}

/// Feels whether the state still answers.
#[derive(Debug, Clone)]
pub struct Pulse(Core);

impl Pulse {
    /// Waits for the state to answer; `false` once it has ended.
    pub async fn beats(&self) -> bool {
        self.0.ask(|request| Input::Ping { request }).await.is_some()
    }
}

/// Who is allowed what is nobody else's business.
pub(crate) fn make_private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Feeds the state before anybody can ask it; there is nobody to answer yet.
fn begin(broker: &mut Broker, store: &mut Store, now: Time, inputs: Vec<Input>) -> Result<(), ServeError> {
    inputs.into_iter().try_for_each(|input| keep(store, broker.handle(now, input)))
}

/// Of what is to be done before anybody is there, only what is written down matters.
fn keep(store: &mut Store, outputs: Vec<Output>) -> Result<(), ServeError> {
    for output in outputs {
        if let Output::Store(changes) = output {
            store.commit(&changes)?;
        }
    }
    Ok(())
}

/// Compares records and disk: what the disk lacks is to be sent again, what no record needs goes.
fn compare(broker: &Broker, blobs: &BlobStore) -> Result<Vec<Input>, ServeError> {
    let on_disk: std::collections::BTreeMap<Digest, u64> = blobs.list()?.into_iter().collect();
    let wanted = broker.blobs();
    for digest in on_disk.keys().filter(|digest| !wanted.contains_key(digest)) {
        blobs.remove(digest)?;
    }
    let lost = wanted.iter().filter(|(digest, size)| on_disk.get(digest) != Some(size));
    Ok(lost
        .map(|(digest, _)| {
            tracing::error!("blob {digest} is missing or has a wrong size: push its image again");
            Input::Lost(*digest)
        })
        .collect())
}

fn adoption(token: &ConfiguredToken) -> Input {
    Input::Adopt { hash: token.hash, role: token.role, expires_seconds: token.expires_seconds }
}

/// A new broker belongs to whoever can read its console.
fn first_token(
    broker: &mut Broker,
    store: &mut Store,
    now: Time,
    key: &SecretKey,
) -> Result<Option<Token>, ServeError> {
    if broker.has_admin() {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    OsRandom.fill(&mut bytes);
    let secret = TokenSecret(bytes);
    let expires_seconds = (now.unix_ms / 1000).saturating_add(FIRST_TOKEN_SECONDS);
    let adopt = Input::Adopt { hash: secret.hash(), role: Role::Admin, expires_seconds };
    begin(broker, store, now, vec![adopt])?;
    Ok(Some(Token { role: Role::Admin, broker: key.public(), secret, address: None }))
}
