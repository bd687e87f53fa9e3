//! The service on a board or as a process: configuration, key, network, listeners, signals, heartbeat.
use crate::config::{Config, ConfigError, OWN_NETWORK, long_term_key};
use crate::serve::{
    CERTIFICATE_PAUSE, Listeners, Pulse, ServeError, ServeLimits, Service, Setup, WebSetup,
    make_private_directory,
};
use crate::state::{PublishedPorts, Web};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use wherry_init::control::{ControlError, Endpoint, ToSupervisor};
use wherry_init::environment::{Data, Environment};
use wherry_init::mode::Mode;
use wherry_net::dhcp::Lease;
use wherry_net::discovery::{self, Responder};
use wherry_net::dns::Upstream;
use wherry_net::firewall::{self, Ports, Published};
use wherry_net::nft::RulesGeneration;
use wherry_net::setup::{self, Uplink, Wish};
use wherry_net::sntp::{Adjustment, Floor, Keeper, Schedule, Servers};
use wherry_protocol::message::{PublishedPort, Transport};
use wherry_protocol::{Overlay, OverlayError, Prefix, SecretKey};
use wherry_sys::landlock::{Kept, confine_thread};

/// Between two looks at whether the firewall is still as it was told.
const LOOK: Duration = Duration::from_secs(10);
/// Time between heartbeats to the supervisor.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Environment variable with the log filter, as in `debug` or `wherry_broker::serve=trace`.
const LOG_ENV: &str = "WHERRY_LOG";
/// The web endpoint's ports on a board.
const WEB_PORTS: [u16; 2] = [80, 443];
/// Where the kernel is told the board's name.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The command line makes no sense.
    #[error(
        "{0}; the usage is `serve [--root DIR] [--listen ADDRESS:PORT] [--enrol-listen ADDRESS:PORT] [--http-port PORT] [--https-port PORT] [--name-server ADDRESS:PORT] [--overlay NETWORK]`"
    )]
    Usage(String),
    /// The configuration or the key.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no configuration on a board.
    #[error("{0} is not there: flash the board with `wherry flash`, which writes it")]
    NoConfig(PathBuf),
    /// The data partition.
    #[error(
        "the data partition is {0}: nothing could be kept, so the broker does not serve; flash the board again or put the disk in order"
    )]
    Data(&'static str),
    /// A kernel that is not ours.
    #[error(
        "the kernel has no Landlock, which confines the broker to its own files: use the kernel of the broker's image"
    )]
    NotConfined,
    /// The board's network, and that of containers.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The board's network.
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
    /// Data and configuration are below this directory; else where the supervisor says.
    pub root: Option<PathBuf>,
    /// Session port.
    pub listen: SocketAddr,
    /// Enrolment port.
    pub enrol_listen: SocketAddr,
    /// The web endpoint's port for HTTP.
    pub http_port: u16,
    /// And for TLS.
    pub https_port: u16,
    /// Whom to ask about names; else whom the network says.
    pub name_server: Option<SocketAddr>,
    /// The containers' addresses; else as the configuration says.
    pub overlay: Option<Overlay>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            root: None,
            listen: (Ipv4Addr::UNSPECIFIED, 2020).into(),
            enrol_listen: (Ipv4Addr::UNSPECIFIED, 2021).into(),
            http_port: 80,
            https_port: 443,
            name_server: None,
            overlay: None,
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
                "--http-port" => arguments.http_port = port(&option, &value)?,
                "--https-port" => arguments.https_port = port(&option, &value)?,
                "--name-server" => arguments.name_server = Some(address(&option, &value)?),
                "--overlay" => arguments.overlay = Some(overlay(&option, &value)?),
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

fn overlay(option: &str, value: &OsString) -> Result<Overlay, BoardError> {
    let parsed = value.to_string_lossy().parse();
    parsed.map_err(|error: OverlayError| BoardError::Usage(format!("{option}: {error}")))
}

fn port(option: &str, value: &OsString) -> Result<u16, BoardError> {
    let wrong = || BoardError::Usage(format!("{option}: {} is no port", value.to_string_lossy()));
    value.to_str().and_then(|text| text.parse().ok()).filter(|port| *port != 0).ok_or_else(wrong)
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// One sentence for the console; the supervisor starts the service again after a pause.
pub fn serve(words: impl IntoIterator<Item = OsString>) -> Result<(), BoardError> {
    let arguments = Arguments::parse(words)?;
    log_to_console();
    let place = Place::decide(arguments.root.as_deref(), Environment::inherited().as_ref())?;
    // Not one of the broker's own files: read before it is out of reach.
    let resolvers = arguments.name_server.map_or_else(system_resolvers, |server| Upstream::at(vec![server]));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    // Before there are other threads: only those that are started afterwards are confined too.
    confine(&place)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|source| BoardError::Io { what: "cannot start the runtime".into(), source })?;
    let result = runtime.block_on(run(&arguments, place, resolvers));
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

/// Where things are, and what has to be done for them.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    config: PathBuf,
    data: PathBuf,
    /// The network and the host name are ours to set.
    machine: bool,
}

impl Place {
    fn decide(root: Option<&Path>, environment: Option<&Environment>) -> Result<Self, BoardError> {
        match (root, environment) {
            (Some(root), _) => Ok(Self {
                config: root.join("config/wherry.toml"),
                data: root.join("data/broker"),
                machine: false,
            }),
            (None, Some(environment)) => {
                match environment.data {
                    Data::Mounted | Data::Memory => {}
                    Data::Damaged => return Err(BoardError::Data("damaged")),
                    Data::Absent => return Err(BoardError::Data("missing")),
                }
                let machine = match environment.mode {
                    Mode::Board | Mode::Vm => true,
                    Mode::Process => false,
                };
                let dirs = &environment.dirs;
                Ok(Self { config: dirs.config.join("wherry.toml"), data: dirs.data.join("broker"), machine })
            }
            (None, None) => Err(BoardError::Usage("without a supervisor --root is needed".into())),
        }
    }
}

/// Gives up all files but the broker's own, and those that a static program takes random numbers from: what parses the bytes of strangers has no business elsewhere.
fn confine(place: &Place) -> Result<(), BoardError> {
    let io = |what: String| move |source| BoardError::Io { what, source };
    make_private_directory(&place.data).map_err(io(format!("cannot create {}", place.data.display())))?;
    // It connects to name servers, certificate authorities and, for containers, to its own web endpoint.
    let mut kept = Kept { read: Vec::new(), write: vec![place.data.clone()], tcp: true };
    // As a process it may have no configuration.
    let read = [place.config.as_path(), Path::new("/dev/random"), Path::new("/dev/urandom")];
    kept.read.extend(read.into_iter().filter(|path| path.exists()).map(Path::to_owned));
    if place.machine {
        kept.write.push(HOST_NAME.into());
    }
    match confine_thread(&kept) {
        Ok(true) => Ok(()),
        // Our own kernels always have it.
        Ok(false) if place.machine => Err(BoardError::NotConfined),
        Ok(false) => {
            tracing::warn!("this kernel has no Landlock: the broker could reach files that are not its own");
            Ok(())
        }
        Err(error) => Err(BoardError::Io {
            what: "cannot confine the broker to its own files".into(),
            source: std::io::Error::other(error),
        }),
    }
}

async fn run(arguments: &Arguments, place: Place, resolvers: Upstream) -> Result<(), BoardError> {
    let config = read_config(&place)?;
    if place.machine {
        std::fs::write(HOST_NAME, config.hostname.as_str())
            .map_err(|source| BoardError::Io { what: "cannot set the host name".into(), source })?;
        // Closed before the first interface is up.
        firewall::protect(Ports::Broker, &[]).map_err(|error| BoardError::Network(error.to_string()))?;
    }
    let guarded = place.machine;
    let clock = guarded.then(|| Arc::new(clock(&place, &config)));
    let (ask, resolvers) = watch::channel(resolvers);
    let mut own_network = None;
    if let Some(clock) = &clock {
        clock.lift();
        let (clock, uplink) = (Arc::clone(clock), bring_up(config.network.clone())?);
        own_network = Some(uplink.clone());
        if arguments.name_server.is_none() {
            tokio::spawn(follow_name_servers(uplink.clone(), ask));
        }
        tokio::spawn(async move { clock.run(uplink).await });
    }
    let secret = long_term_key(&place.data.join("key"), config.secret_key.clone())?;
    let setup = Setup {
        secret: secret.clone(),
        location: config.location.clone(),
        data: place.data,
        overlay: arguments.overlay.or(config.overlay),
        tokens: config.tokens.clone(),
        publish_address: arguments.listen.ip(),
        web: WebSetup {
            http: arguments.http_port,
            https: arguments.https_port,
            resolvers,
            certificate_pause: CERTIFICATE_PAUSE,
        },
        limits: ServeLimits::default(),
    };
    let service = Service::open(setup)?;
    if let Some(uplink) = own_network {
        let fixed = &config.network.fixed;
        fixed.iter().try_for_each(|fixed| fixed.check_apart(service.overlay(), OWN_NETWORK))?;
        tokio::spawn(stay_apart(service.overlay(), uplink));
    }
    let listeners = Listeners {
        sessions: listen(arguments.listen).await?,
        enrolment: listen(arguments.enrol_listen).await?,
    };
    let heartbeat = tokio::spawn(heartbeat(service.pulse()));
    if guarded {
        tokio::spawn(follow_published(service.published(), service.web()));
    }
    let finder = tokio::spawn(be_found(secret, arguments.clone()));
    announce(&service, &listeners);
    let result = service.run(listeners, asked_to_stop()?).await;
    finder.abort();
    heartbeat.abort();
    if let Some(clock) = clock {
        clock.remember();
    }
    Ok(result?)
}

type Clock = Keeper<fn(Adjustment) -> std::io::Result<()>>;

/// The clock of the board is never earlier than it was before the board was switched off.
fn clock(place: &Place, config: &Config) -> Clock {
    Keeper {
        servers: Servers::of(config.ntp.clone()),
        schedule: Schedule::BOARD,
        floor: Floor::within(&place.data),
        adjust: adjust_clock,
    }
}

fn adjust_clock(adjustment: Adjustment) -> std::io::Result<()> {
    let done = match adjustment {
        Adjustment::Step(nanos) => wherry_sys::clock::step(nanos),
        Adjustment::Slew(nanos) => wherry_sys::clock::slew(nanos),
    };
    done.map_err(std::io::Error::other)
}

/// The name servers are those that the board's network names.
async fn follow_name_servers(mut uplink: watch::Receiver<Option<Uplink>>, ask: watch::Sender<Upstream>) {
    loop {
        let servers = uplink.borrow_and_update().as_ref().map(|uplink| Upstream::of(&uplink.lease.dns));
        ask.send_replace(servers.unwrap_or_default());
        if uplink.changed().await.is_err() {
            return;
        }
    }
}

/// A network that came by DHCP and that containers have too is no reason not to serve, but one to say so: no node takes
/// containers there.
async fn stay_apart(overlay: Overlay, mut uplink: watch::Receiver<Option<Uplink>>) {
    loop {
        let lan = uplink.borrow_and_update().as_ref().map(|uplink| lan_of(&uplink.lease));
        if let Some(Err(error)) = lan.map(|lan| overlay.check_apart(OWN_NETWORK, lan)) {
            tracing::error!("{error}");
        }
        if uplink.changed().await.is_err() {
            return;
        }
    }
}

fn lan_of(lease: &Lease) -> Prefix {
    Prefix::new(lease.address, lease.prefix)
}

/// Those of the machine on which the broker is one process among others (resolv.conf(5)).
fn system_resolvers() -> Upstream {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = named.filter_map(|address| address.trim().parse::<IpAddr>().ok());
    Upstream::at(addresses.map(|address| SocketAddr::new(address, 53)).collect())
}

/// Opens the firewall for published ports and for the web endpoint as they come and go.
async fn follow_published(
    mut published: watch::Receiver<PublishedPorts>,
    mut web: watch::Receiver<Arc<Web>>,
) {
    loop {
        let open = |port: &PublishedPort| {
            let (transport, allow) = (port.transport, port.allow.clone());
            Published { transport, port: port.port, allow, to: None }
        };
        let mut ports: Vec<Published> = published.borrow_and_update().values().map(open).collect();
        if !web.borrow_and_update().hosts.is_empty() {
            ports.extend(WEB_PORTS.map(web_port));
        }
        let told = firewall::protect(Ports::Broker, &ports)
            .inspect_err(|error| tracing::error!("the firewall does not follow the published ports: {error}"))
            .ok();
        let changed = tokio::select! {
            changed = published.changed() => changed,
            changed = web.changed() => changed,
            () = touched(told) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Until the rules are no longer as they were told.
async fn touched(told: Option<RulesGeneration>) {
    loop {
        tokio::time::sleep(LOOK).await;
        match firewall::generation() {
            Ok(now) if Some(now) == told => {}
            Ok(_) => return,
            Err(error) => tracing::warn!("the firewall's rules cannot be looked at: {error}"),
        }
    }
}

fn web_port(port: u16) -> Published {
    Published { transport: Transport::Tcp, port, allow: Vec::new(), to: None }
}

fn read_config(place: &Place) -> Result<Config, BoardError> {
    match Config::read(&place.config)? {
        Some(config) => Ok(config),
        None if place.machine => Err(BoardError::NoConfig(place.config.clone())),
        None => Ok(Config::default()),
    }
}

fn bring_up(wish: Wish) -> Result<watch::Receiver<Option<Uplink>>, BoardError> {
    // The address is of no interest to the listeners, which take whatever comes to the board.
    setup::bring_up(wish).map_err(|error| BoardError::Network(error.to_string()))
}

/// Answers boards that look for their broker. One that listens on a single address is found by that address.
async fn be_found(secret: SecretKey, arguments: Arguments) {
    if !arguments.listen.ip().is_unspecified() {
        return;
    }
    let responder = Responder::new(secret, arguments.listen.port(), arguments.enrol_listen.port());
    let answering = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, discovery::PORT)).await {
        Ok(socket) => responder.run(socket).await,
        Err(error) => Err(error),
    };
    if let Err(error) = answering {
        tracing::error!("boards cannot find this broker by themselves: {error}");
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
    use wherry_init::mode::Dirs;

    fn parse(words: &[&str]) -> Result<Arguments, BoardError> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_understood() {
        assert_eq!(parse(&[]).unwrap(), Arguments::default());
        let parsed =
            parse(&["--root", "/t", "--listen", "127.0.0.1:1", "--enrol-listen", "127.0.0.1:2"]).unwrap();
        let overlay = parse(&["--overlay", "172.20.0.0/14"]).unwrap().overlay;
        assert_eq!(overlay.map(|overlay| overlay.to_string()).as_deref(), Some("172.20.0.0/14"));
        assert_eq!(parsed.root, Some("/t".into()));
        assert_eq!((parsed.listen.port(), parsed.enrol_listen.port()), (1, 2));
    }

    #[test]
    fn a_place_needs_a_root_or_a_supervisor() {
        let place = Place::decide(Some(Path::new("/t")), None).unwrap();
        assert_eq!(place.data, Path::new("/t/data/broker"));
        assert!(!place.machine);
        assert!(matches!(Place::decide(None, None), Err(BoardError::Usage(_))));
    }

    #[test]
    fn a_board_without_its_data_partition_does_not_serve() {
        let environment =
            |mode, data| Environment { mode, dirs: Dirs::below(Path::new("/")), data, test: false };
        for (data, word) in [(Data::Damaged, "damaged"), (Data::Absent, "missing")] {
            let error = Place::decide(None, Some(&environment(Mode::Vm, data))).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let place = Place::decide(None, Some(&environment(Mode::Board, Data::Mounted))).unwrap();
        assert!(place.machine);
        assert_eq!(place.config, Path::new("/config/wherry.toml"));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [&["--root"][..], &["--fast", "1"], &["--listen", "here"], &["--overlay", "8.0.0.0/8"]] {
            assert!(matches!(parse(words), Err(BoardError::Usage(_))), "{words:?}");
        }
    }
}
