//! The node service: `wherry-node serve`, started and restarted by the supervisor.
use crate::agent;
use crate::blobs::BrokerBlobs;
use crate::config::{BrokerAddress, Config, ConfigError, Dirs};
use crate::container::cgroup::Cgroups;
use crate::container::runtime::Runtime;
use crate::executor::{self, Executor};
use crate::facts;
use crate::identity::{self, IdentityError};
use crate::link::Credentials;
use crate::net::{NetConfig, NetError, Network};
use crate::routed::Router;
use crate::session::{self, Locate};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use wherry_init::control::{ControlError, Endpoint};
use wherry_init::environment::{Data, Environment};
use wherry_init::mode::Mode;
use wherry_net::discovery::{Finder, Found};
use wherry_net::setup::{self, Uplink};
use wherry_net::sntp::{Adjustment, Floor, Keeper, Schedule, Servers};
use wherry_protocol::{OsRandom, WireError};

/// Environment variable with the log filter, as in `debug` or `wherry_node::session=trace`.
const LOG_ENV: &str = "WHERRY_LOG";
/// Share of the board's memory that a container gets which asks for no bound: half, so that one cannot starve the board.
const DEFAULT_MEMORY_SHARE: u64 = 2;

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It was started by hand.
    #[error("`serve` is started by `wherry-node init`, not by hand")]
    NotSupervised,
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The board's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data partition.
    #[error(
        "the data partition is {0}: the node cannot keep its key there; flash the card again, or rescue what is on it first"
    )]
    Data(&'static str),
    /// The supervisor.
    #[error("the supervisor: {0}")]
    Control(#[from] ControlError),
    /// The containers.
    #[error("containers cannot be run: {0}")]
    Runtime(WireError),
    /// The network.
    #[error("the network cannot be set up: {0}")]
    Network(String),
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl From<NetError> for ServeError {
    fn from(error: NetError) -> Self {
        Self::Network(error.to_string())
    }
}

/// Runs the service until it is told to end.
///
/// # Errors
/// One sentence for the console; the supervisor starts the service again after a pause.
pub fn run() -> Result<(), ServeError> {
    let environment = Environment::inherited().ok_or(ServeError::NotSupervised)?;
    log_to_console();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(facts::cpus()).min(4))
        .enable_all()
        .build()
        .map_err(|source| ServeError::Io { what: "cannot start the runtime", source })?;
    let result = runtime.block_on(serve(&environment));
    // Threads that wait for a slow disk must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn log_to_console() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_ENV)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time();
    drop(log.try_init());
}

async fn serve(environment: &Environment) -> Result<(), ServeError> {
    let dirs = Dirs::of(environment);
    let config = Arc::new(Config::read(&dirs.config)?);
    check_data(environment.data)?;
    let key = identity::load_or_create(&dirs.key(), &mut OsRandom)?;
    tracing::info!(hostname = %config.hostname, key = %key.public(), "node starting");
    if environment.mode != Mode::Process {
        nix::unistd::sethostname(config.hostname.as_str())
            .map_err(|errno| ServeError::Io { what: "cannot set the host name", source: errno.into() })?;
    }
    // The firewall closes before the interface has an address.
    let network = Network::new(NetConfig::NODE)?;
    let clock = clock(environment, &dirs, &config);
    let uplink = bring_up(environment.mode, &config)?;
    if let Some(clock) = &clock {
        let (clock, uplink) = (Arc::clone(clock), uplink.clone());
        tokio::spawn(async move { clock.run(uplink).await });
    }
    let (happenings, queue) = mpsc::unbounded_channel();
    let memory = facts::memory_bytes() / DEFAULT_MEMORY_SHARE;
    let cgroups = Cgroups::open(dirs.cgroup.clone(), memory)
        .map_err(|error| ServeError::Io { what: "cannot use cgroups", source: io::Error::other(error) })?;
    let (runtime, adopted) = Runtime::open(
        (&dirs.data, &dirs.run),
        cgroups,
        facts::architecture(),
        Endpoint::from_env()?,
        happenings,
    )
    .await
    .map_err(ServeError::Runtime)?;
    let (current, watching) = watch::channel(None);
    let inputs = agent::inputs();
    let executor =
        Executor::new(runtime.clone(), network.clone(), BrokerBlobs::new(watching), inputs.0.clone());
    tokio::spawn(executor::forward(queue, network.clone(), inputs.0.clone()));
    let only = config.network.is_particular().then(|| uplink.clone());
    tokio::spawn(follow_uplink(uplink, network.clone(), executor.clone()));
    let (events, sessions) = mpsc::channel(256);
    let crash_allowed = config.test_image && environment.test;
    let finder = Finder::new(config.token.broker);
    tokio::spawn(session::keep(session::Parts {
        locate: Locator { fixed: config.broker, finder: finder.clone(), only },
        credentials: Credentials { key, token: config.token.clone(), label: config.hostname.clone() },
        streams: Arc::new(Router::new(runtime, network, crash_allowed)),
        events,
        current,
    }));
    let parts = agent::Parts { config, data: dirs.data.clone(), finder, executor, adopted, inputs, sessions };
    agent::run(parts, asked_to_stop()?).await;
    if let Some(clock) = clock {
        clock.remember();
    }
    Ok(())
}

type Clock = Keeper<fn(Adjustment) -> io::Result<()>>;

/// On a board the clock is ours to keep; it is never earlier than it was before the board was switched off.
fn clock(environment: &Environment, dirs: &Dirs, config: &Config) -> Option<Arc<Clock>> {
    let keeper: Clock = Keeper {
        servers: Servers::of(config.ntp.clone()),
        schedule: Schedule::BOARD,
        floor: Floor::within(&dirs.data),
        adjust: adjust_clock,
    };
    (environment.mode != Mode::Process).then(|| {
        keeper.lift();
        Arc::new(keeper)
    })
}

fn adjust_clock(adjustment: Adjustment) -> io::Result<()> {
    let done = match adjustment {
        Adjustment::Step(nanos) => wherry_sys::clock::step(nanos),
        Adjustment::Slew(nanos) => wherry_sys::clock::slew(nanos),
    };
    done.map_err(io::Error::other)
}

fn check_data(data: Data) -> Result<(), ServeError> {
    match data {
        Data::Mounted | Data::Memory => Ok(()),
        Data::Damaged => Err(ServeError::Data("damaged")),
        Data::Absent => Err(ServeError::Data("missing")),
    }
}

/// On a board the network is ours to configure; a process finds it configured.
fn bring_up(mode: Mode, config: &Config) -> Result<watch::Receiver<Option<Uplink>>, ServeError> {
    let network = |error: wherry_net::link::LinkError| ServeError::Network(error.to_string());
    match mode {
        Mode::Process => setup::observe().map_err(network),
        Mode::Board | Mode::Vm => setup::bring_up(config.network.clone()).map_err(network),
    }
}

async fn follow_uplink(mut uplink: watch::Receiver<Option<Uplink>>, network: Network, executor: Executor) {
    loop {
        let now = uplink.borrow_and_update().clone();
        executor.set_nameservers(now.as_ref().map_or(&[], |up| up.lease.dns.as_slice()));
        if let Err(error) = network.set_uplink(now).await {
            tracing::error!("the firewall does not follow the board's address: {error}");
        }
        if uplink.changed().await.is_err() {
            return;
        }
    }
}

struct Locator {
    fixed: Option<BrokerAddress>,
    finder: Finder,
    /// Where the configuration names a network, the cluster is looked for in no other.
    only: Option<watch::Receiver<Option<Uplink>>>,
}

impl Locator {
    async fn ask(&self) -> Option<Found> {
        if let Some(only) = &self.only {
            let address = only.borrow().as_ref().map(|uplink| uplink.lease.address);
            return self.finder.find_from(address.as_slice()).await;
        }
        self.finder.find().await.unwrap_or_else(|error| {
            tracing::debug!("LAN discovery: {error}");
            None
        })
    }
}

impl Locate for Locator {
    async fn locate(&self) -> Option<BrokerAddress> {
        match self.fixed {
            Some(address) => Some(address),
            None => self.ask().await.map(|found| BrokerAddress {
                session: found.session.into(),
                enrolment: found.enrolment.into(),
            }),
        }
    }
}

fn asked_to_stop() -> Result<impl Future<Output = ()>, ServeError> {
    let handler =
        |kind| signal(kind).map_err(|source| ServeError::Io { what: "cannot handle signals", source });
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

impl Dirs {
    /// Where the supervisor says things are.
    #[must_use]
    pub fn of(environment: &Environment) -> Self {
        let dirs = &environment.dirs;
        Self {
            config: dirs.config.join("wherry.toml"),
            data: dirs.data.join("node"),
            run: dirs.run.join("wherry"),
            cgroup: dirs.cgroup.join("wherry"),
        }
    }
}
