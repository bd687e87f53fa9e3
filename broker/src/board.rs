//! The service on a board or as a process: configuration, key, network, listeners, signals, heartbeat.
use crate::config::{Config, ConfigError, long_term_key};
use crate::serve::{Listeners, Pulse, ServeError, ServeLimits, Service, Setup};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use wherry_init::control::{ControlError, Endpoint, ToSupervisor};
use wherry_init::environment::{Data, Environment};
use wherry_init::mode::Mode;
use wherry_net::discovery;
use wherry_net::firewall::{self, Ports};
use wherry_net::setup::{self, StaticAddress};
use wherry_protocol::PublicKey;

/// Time between heartbeats to the supervisor.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Environment variable with the log filter, as in `debug` or `wherry_broker::serve=trace`.
const LOG_ENV: &str = "WHERRY_LOG";

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The command line makes no sense.
    #[error("{0}; the usage is `serve [--root DIR] [--listen ADDRESS:PORT] [--enrol-listen ADDRESS:PORT]`")]
    Usage(String),
    /// The configuration or the key.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no configuration on a board.
    #[error("{0} is not there: flash the board with `wherry flash`, which writes it")]
    NoConfig(PathBuf),
    /// The data partition.
    #[error(
        "the data partition is {0}: the broker's store cannot be opened; flash the card again, or rescue what is on it first"
    )]
    Data(&'static str),
    /// Links, addresses, rules.
    #[error("the network cannot be set up: {0}")]
    Network(String),
    /// The service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
}

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Data and configuration are below this directory, and the network is somebody else's business; `None` is a board.
    pub root: Option<PathBuf>,
    /// Session port.
    pub listen: SocketAddr,
    /// Enrolment port.
    pub enrol_listen: SocketAddr,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            root: None,
            listen: (Ipv4Addr::UNSPECIFIED, 2020).into(),
            enrol_listen: (Ipv4Addr::UNSPECIFIED, 2021).into(),
        }
    }
}

impl Arguments {
    /// Reads what follows `serve`.
    ///
    /// # Errors
    /// [`BoardError::Usage`].
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, BoardError> {
        let mut arguments = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let option = word.to_string_lossy().into_owned();
            let value = words.next().ok_or_else(|| BoardError::Usage(format!("{option} needs a value")))?;
            match option.as_str() {
                "--root" => arguments.root = Some(value.into()),
                "--listen" => arguments.listen = address(&option, &value)?,
                "--enrol-listen" => arguments.enrol_listen = address(&option, &value)?,
                _ => return Err(BoardError::Usage(format!("{option} is unknown"))),
            }
        }
        Ok(arguments)
    }
}

fn address(option: &str, value: &OsString) -> Result<SocketAddr, BoardError> {
    let wrong = || BoardError::Usage(format!("{option}: {} is no address:port", value.to_string_lossy()));
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(wrong)
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// One sentence for the console; the supervisor starts the service again after a pause.
pub fn serve(words: impl IntoIterator<Item = OsString>) -> Result<(), BoardError> {
    let arguments = Arguments::parse(words)?;
    log_to_console();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).min(4))
        .enable_all()
        .build()
        .map_err(|source| BoardError::Io { what: "cannot start the runtime".into(), source })?;
    let result = runtime.block_on(run(&arguments));
    // Threads that wait for a slow disk must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn log_to_console() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_ENV)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time();
    // A second call in one process (tests) keeps the first subscriber.
    drop(log.try_init());
}

async fn run(arguments: &Arguments) -> Result<(), BoardError> {
    let place = Place::of(arguments, Environment::inherited())?;
    let config = read_config(&place.config, place.is_machine)?;
    let data = place.data.clone();
    if place.is_machine {
        bring_up(&config)?;
    }
    let secret = long_term_key(&data.join("key"), config.secret_key.clone())?;
    let setup = Setup {
        secret,
        location: config.location.clone(),
        data,
        tokens: config.tokens.clone(),
        publish_address: arguments.listen.ip(),
        limits: ServeLimits::default(),
    };
    let service = Service::open(setup)?;
    let listeners = Listeners {
        sessions: listen(arguments.listen).await?,
        enrolment: listen(arguments.enrol_listen).await?,
    };
    let heartbeat = tokio::spawn(heartbeat(service.pulse()));
    announce(&service, &listeners);
    tokio::spawn(answer_discovery(service.key(), arguments.listen.port(), arguments.enrol_listen.port()));
    if place.is_machine {
        tokio::spawn(follow_published(service.published()));
    }
    let result = service.run(listeners, asked_to_stop()?).await;
    heartbeat.abort();
    Ok(result?)
}

/// Where this runs, and what is there.
struct Place {
    config: PathBuf,
    data: PathBuf,
    /// A board or a virtual machine, whose network and name are ours to set.
    is_machine: bool,
}

impl Place {
    fn of(arguments: &Arguments, environment: Option<Environment>) -> Result<Self, BoardError> {
        match (environment, &arguments.root) {
            (Some(environment), _) => match environment.data {
                Data::Mounted | Data::Memory => Ok(Self {
                    config: environment.dirs.config.join("wherry.toml"),
                    data: environment.dirs.data.join("broker"),
                    is_machine: environment.mode != Mode::Process,
                }),
                Data::Damaged => Err(BoardError::Data("damaged")),
                Data::Absent => Err(BoardError::Data("missing")),
            },
            (None, root) => {
                let root = root.as_deref().unwrap_or(Path::new("/"));
                let (config, data) = (root.join("config/wherry.toml"), root.join("data/broker"));
                Ok(Self { config, data, is_machine: false })
            }
        }
    }
}

fn bring_up(config: &Config) -> Result<(), BoardError> {
    nix::unistd::sethostname(config.hostname.as_str())
        .map_err(|errno| BoardError::Io { what: "cannot set the host name".into(), source: errno.into() })?;
    // Closed before the first interface is up.
    firewall::protect(Ports::Broker, &BTreeSet::new())
        .map_err(|error| BoardError::Network(error.to_string()))?;
    let fixed = config.network.clone().map(|fixed| StaticAddress {
        interface: fixed.interface,
        address: fixed.address,
        prefix: fixed.prefix,
        gateway: fixed.gateway,
    });
    let uplink = setup::bring_up(fixed).map_err(|error| BoardError::Network(error.to_string()))?;
    // Nobody here needs the address; the watch lives on in the tasks that keep it.
    drop(uplink);
    Ok(())
}

/// Opens the firewall for published ports as they come and go.
async fn follow_published(mut published: watch::Receiver<BTreeSet<u16>>) {
    loop {
        let ports = published.borrow_and_update().clone();
        if let Err(error) = firewall::protect(Ports::Broker, &ports) {
            tracing::error!("the firewall does not follow the published ports: {error}");
        }
        if published.changed().await.is_err() {
            return;
        }
    }
}

async fn answer_discovery(key: PublicKey, session_port: u16, enrolment_port: u16) {
    let socket = match tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, discovery::PORT)).await {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!("nodes cannot find this broker by asking their LAN: {error}"),
    };
    if let Err(error) = discovery::respond(socket, key, session_port, enrolment_port).await {
        tracing::error!("LAN discovery ended: {error}");
    }
}

fn read_config(path: &Path, required: bool) -> Result<Config, BoardError> {
    match Config::read(path)? {
        Some(config) => Ok(config),
        None if required => Err(BoardError::NoConfig(path.into())),
        None => Ok(Config::default()),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, BoardError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BoardError::Io { what: format!("cannot listen on {address}"), source })
}

fn announce(service: &Service, listeners: &Listeners) {
    if let (Ok(sessions), Ok(enrolment)) = (listeners.sessions.local_addr(), listeners.enrolment.local_addr())
    {
        tracing::info!("broker {} serves sessions on {sessions}, enrolment on {enrolment}", service.key());
    }
    if let Some(token) = service.first_token() {
        tracing::info!(
            "nobody is an admin yet; whoever runs this within a day becomes one: wherry join {token}"
        );
    }
}

fn asked_to_stop() -> Result<impl Future<Output = ()>, BoardError> {
    let handler =
        |kind| signal(kind).map_err(|source| BoardError::Io { what: "cannot handle signals".into(), source });
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Tells the supervisor that the service still serves: only while its state answers.
async fn heartbeat(pulse: Pulse) {
    let endpoint = match Endpoint::from_env() {
        Ok(endpoint) => endpoint,
        // An ordinary process: nobody expects a heartbeat.
        Err(ControlError::NotSupervised) => return,
        Err(error) => return tracing::error!("no heartbeat: {error}"),
    };
    if let Err(error) = endpoint.set_nonblocking(true) {
        return tracing::error!("no heartbeat: {error}");
    }
    while pulse.beats().await {
        match endpoint.send(&ToSupervisor::Alive, &[]) {
            Ok(()) | Err(ControlError::WouldBlock) => {}
            Err(error) => tracing::warn!("a heartbeat was not sent: {error}"),
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, BoardError> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_understood() {
        assert_eq!(parse(&[]).unwrap(), Arguments::default());
        let parsed =
            parse(&["--root", "/t", "--listen", "127.0.0.1:1", "--enrol-listen", "127.0.0.1:2"]).unwrap();
        assert_eq!(parsed.root, Some("/t".into()));
        assert_eq!((parsed.listen.port(), parsed.enrol_listen.port()), (1, 2));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [&["--root"][..], &["--fast", "1"], &["--listen", "here"]] {
            assert!(matches!(parse(words), Err(BoardError::Usage(_))), "{words:?}");
        }
    }
}
