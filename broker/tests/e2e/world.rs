//! The pieces: a broker on its own ports, users who ask, boards that do as they are told.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use wherry_broker::serve::{ConfiguredToken, Listeners, ServeError, ServeLimits, Service, Setup, WebSetup};
use wherry_net::dns::Upstream;
use wherry_protocol::io::{Incoming, Mux, SessionError, Side, Stream, connect, hello, multiplex, recv, send};
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::*;

/// Longest wait for anything in these tests; only a failure takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `work`, and fails instead of hanging.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("this should not take so long")
}

pub(crate) struct Broker {
    pub(crate) key: PublicKey,
    pub(crate) sessions: SocketAddr,
    pub(crate) enrolment: SocketAddr,
    pub(crate) ip: IpAddr,
    secret: SecretKey,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
    dir: Arc<Place>,
    /// The name servers that it asks.
    pub(crate) names: watch::Sender<Upstream>,
}

/// Where the data is.
pub(crate) enum Place {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

pub(crate) fn token_secret(number: u8) -> TokenSecret {
    TokenSecret([number; 16])
}

/// Tokens 1 to 9 are for admins, 10 to 99 for users, 100 to 199 for boards; 200 has expired.
pub(crate) fn tokens() -> Vec<ConfiguredToken> {
    let token = |number: u8, role| ConfiguredToken {
        role,
        hash: token_secret(number).hash(),
        expires_seconds: if number == 200 { 1_000 } else { u64::MAX },
    };
    (1..10)
        .map(|n| token(n, Role::Admin))
        .chain((10..100).map(|n| token(n, Role::User)))
        .chain((100..200).map(|n| token(n, Role::Node)))
        .chain([token(200, Role::User)])
        .collect()
}

/// The usual ports, and nobody to ask until the sender says so.
pub(crate) fn web_setup() -> (WebSetup, watch::Sender<Upstream>) {
    let (names, resolvers) = watch::channel(Upstream::default());
    (WebSetup { http: 80, https: 443, resolvers, certificate_pause: 1 }, names)
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let dir = Place::Own(tempfile::tempdir().expect("a temporary directory"));
        Self::start_in(Arc::new(dir), SecretKey::generate(&mut OsRandom), ServeLimits::default()).await
    }

    pub(crate) async fn start_in(dir: Arc<Place>, secret: SecretKey, limits: ServeLimits) -> Self {
        // Each broker has a loopback address of its own, so that published ports do not meet.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let ip = IpAddr::V4(Ipv4Addr::new(127, 77, 0, NEXT.fetch_add(1, Ordering::Relaxed)));
        let (web, names) = web_setup();
        let setup = Setup {
            secret: secret.clone(),
            location: "test".parse().expect("a name"),
            data: dir.path().to_owned(),
            overlay: None,
            tokens: tokens(),
            publish_address: ip,
            web,
            limits,
        };
        let service = Service::open(setup).expect("the broker opens");
        let listeners = Listeners {
            sessions: TcpListener::bind((ip, 0)).await.expect("a port"),
            enrolment: TcpListener::bind((ip, 0)).await.expect("a port"),
        };
        let (sessions, enrolment) = (
            listeners.sessions.local_addr().expect("an address"),
            listeners.enrolment.local_addr().expect("an address"),
        );
        let key = service.key();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(service.run(listeners, async move { drop(stopped.await) }));
        Self { key, sessions, enrolment, ip, secret, stop: Some(stop), task, dir, names }
    }

    /// Where it is, for a name server.
    pub(crate) fn address(&self) -> watch::Receiver<IpAddr> {
        watch::channel(self.ip).1
    }

    pub(crate) fn data(&self) -> &Path {
        self.dir.path()
    }

    /// Stops it and starts it again with the same data and key, on other ports.
    pub(crate) async fn restart(mut self) -> Self {
        drop(self.stop.take());
        soon(&mut self.task).await.expect("no panic").expect("an orderly end");
        Self::start_in(self.dir, self.secret, ServeLimits::default()).await
    }

    pub(crate) async fn stop(mut self) -> Arc<Place> {
        drop(self.stop.take());
        soon(&mut self.task).await.expect("no panic").expect("an orderly end");
        self.dir
    }

    /// Claims a token of [`tokens`].
    pub(crate) async fn enrol(&self, me: &SecretKey, role: Role, secret: TokenSecret) -> EnrolReply {
        let (mux, _incoming) = self.dial(self.enrolment, me).await.expect("a session");
        hello(&mux, "test").await.expect("a welcome");
        let mut stream = mux.open().await.expect("a stream");
        let label = "somebody".parse().expect("a name");
        send(&mut stream, &EnrolRequest { role, secret, label }).await.expect("sent");
        recv(&mut stream, 4096).await.expect("an answer").expect("an answer")
    }

    pub(crate) async fn dial(&self, to: SocketAddr, me: &SecretKey) -> Result<(Mux, Incoming), SessionError> {
        let tcp = TcpStream::connect(to).await.expect("a connection").compat();
        let secure = soon(connect(tcp, me, &self.key, &mut OsRandom)).await?;
        let (mux, incoming, driver) = multiplex::<Compat<TcpStream>>(secure, Side::Dialled, &Limits::DEFAULT);
        tokio::spawn(driver);
        Ok((mux, incoming))
    }

    /// A user or admin enrolled with this token, in a session.
    pub(crate) async fn user(&self, token: u8) -> User {
        let role = if token < 10 { Role::Admin } else { Role::User };
        let key = SecretKey::generate(&mut OsRandom);
        match self.enrol(&key, role, token_secret(token)).await {
            EnrolReply::Enrolled { account, .. } => self.session(key, account).await,
            EnrolReply::Refused(error) => panic!("not enrolled: {error}"),
        }
    }

    pub(crate) async fn session(&self, key: SecretKey, account: AccountId) -> User {
        let (mux, incoming) = self.dial(self.sessions, &key).await.expect("a session");
        hello(&mux, "test").await.expect("a welcome");
        User { key, account, mux, _incoming: incoming }
    }

    /// A board enrolled with this token, connected, that does as it is told.
    pub(crate) async fn board(&self, token: u8) -> Board {
        let key = SecretKey::generate(&mut OsRandom);
        let reply = self.enrol(&key, Role::Node, token_secret(token)).await;
        assert!(matches!(reply, EnrolReply::Enrolled { role: Role::Node, .. }), "{reply:?}");
        Board::connect(self, key, facts(token), Arc::default()).await
    }
}

pub(crate) struct User {
    pub(crate) key: SecretKey,
    pub(crate) account: AccountId,
    pub(crate) mux: Mux,
    _incoming: Incoming,
}

impl User {
    pub(crate) async fn open(&self, request: &Request) -> Stream {
        let mut stream = self.mux.open().await.expect("a stream");
        send(&mut stream, request).await.expect("sent");
        stream
    }

    pub(crate) async fn ask(&self, request: Request) -> Reply {
        let mut stream = self.open(&request).await;
        soon(reply(&mut stream)).await
    }

    pub(crate) async fn refused(&self, request: Request) -> WireError {
        match self.ask(request).await {
            Reply::Error(error) => error,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub(crate) async fn container(&self, request: Request) -> ContainerInfo {
        match self.ask(request).await {
            Reply::Container(info) => *info,
            other => panic!("expected a container, got {other:?}"),
        }
    }

    pub(crate) async fn put_blob(&self, blob: &Descriptor, bytes: &[u8]) -> Reply {
        use futures_util::AsyncWriteExt as _;
        let mut stream = self.open(&Request::PutBlob(blob.clone())).await;
        match soon(reply(&mut stream)).await {
            Reply::Done => {
                // A refusal may come before all is sent; it is read below.
                drop(stream.write_all(bytes).await);
                drop(stream.close().await);
                soon(reply(&mut stream)).await
            }
            other => other,
        }
    }

    /// Pushes an image of one layer.
    pub(crate) async fn push(&self, name: &str, layer: &[u8]) -> ImageManifest {
        let config = name.as_bytes();
        let manifest = ImageManifest {
            config: descriptor(config, Media::Config),
            layers: vec![descriptor(layer, Media::LayerTar)],
        };
        for (blob, bytes) in [(&manifest.config, config), (&manifest.layers[0], layer)] {
            let reply = self.put_blob(blob, bytes).await;
            assert!(matches!(reply, Reply::Done | Reply::Blob { .. }), "{reply:?}");
        }
        let put =
            Request::PutImage { name: image(name), architecture: "amd64".into(), manifest: manifest.clone() };
        let reply = self.ask(put).await;
        assert!(matches!(reply, Reply::Image(_)), "{reply:?}");
        manifest
    }

    /// Runs a container and waits until it has started.
    pub(crate) async fn run(&self, name: &str) -> ContainerInfo {
        self.container(run(name)).await;
        self.container(Request::Wait { container: by_name(name), until: WaitUntil::Started }).await
    }
}

pub(crate) async fn reply(stream: &mut Stream) -> Reply {
    recv(stream, Limits::DEFAULT.message_bytes).await.expect("an answer").expect("an answer")
}

pub(crate) fn image(name: &str) -> ImageName {
    name.parse().expect("an image name")
}

pub(crate) fn by_name(name: &str) -> ContainerSelector {
    ContainerSelector::Name(name.parse().expect("a name"))
}

pub(crate) fn run(name: &str) -> Request {
    run_with(name, |_| {})
}

pub(crate) fn run_with(name: &str, change: impl FnOnce(&mut RunRequest)) -> Request {
    let mut request = RunRequest {
        image: image("web"),
        name: Some(name.parse().expect("a name")),
        node: None,
        detached: true,
        spec: ContainerSpec::default(),
    };
    change(&mut request);
    Request::Run(Box::new(request))
}

pub(crate) fn descriptor(bytes: &[u8], media: Media) -> Descriptor {
    Descriptor { digest: Digest::of(bytes), size: bytes.len() as u64, media }
}

pub(crate) fn facts(number: u8) -> NodeFacts {
    NodeFacts {
        hostname: format!("board{number}"),
        architecture: "amd64".into(),
        cpus: 4,
        memory_bytes: 1 << 30,
        kernel: "6.1".into(),
        software: "test".into(),
        boot_id: [number; 16],
        underlay: Ipv4Addr::new(192, 168, 50, number),
        overlay: true,
        limits: true,
        wireguard: Some([[number; 32]; 2]),
    }
}

pub(crate) fn load() -> NodeLoad {
    NodeLoad { memory_available_bytes: 512 << 20, ..NodeLoad::default() }
}

/// Containers that outlive the board's session, as they do on a real one.
pub(crate) type Containers = Arc<Mutex<BTreeMap<ContainerId, ContainerReport>>>;

/// A board that starts and stops what it is told at once, and answers streams in simple ways.
pub(crate) struct Board {
    pub(crate) key: SecretKey,
    pub(crate) facts: NodeFacts,
    pub(crate) containers: Containers,
    pub(crate) mux: Mux,
    /// What it was told, for tests that look.
    pub(crate) told: mpsc::UnboundedReceiver<ToNode>,
    tasks: Vec<JoinHandle<()>>,
}

impl Board {
    pub(crate) async fn connect(
        broker: &Broker,
        key: SecretKey,
        facts: NodeFacts,
        containers: Containers,
    ) -> Self {
        let (mux, incoming) = broker.dial(broker.sessions, &key).await.expect("a session");
        hello(&mux, "test board").await.expect("a welcome");
        let mut control = mux.open().await.expect("a stream");
        let inventory = containers.lock().await.values().cloned().collect();
        let greeting = NodeHello { facts: facts.clone(), load: load(), inventory };
        send(&mut control, &NodeCall::Control(Box::new(greeting))).await.expect("sent");
        let (told_sender, mut told) = mpsc::unbounded_channel();
        let obeying = tokio::spawn(obey(control, Arc::clone(&containers), told_sender));
        let serving = tokio::spawn(serve(incoming));
        // Connected means: it has been told what to do.
        soon(told.recv()).await.expect("the first order");
        Self { key, facts, containers, mux, told, tasks: vec![obeying, serving] }
    }

    /// The board's connection is cut; its containers stay.
    pub(crate) async fn leave(self) -> (SecretKey, NodeFacts, Containers) {
        for task in &self.tasks {
            task.abort();
        }
        self.mux.close();
        (self.key, self.facts, self.containers)
    }

    /// A connection of a container's to the web endpoint.
    pub(crate) async fn call(&self, container: &ContainerInfo, tls: bool) -> Result<Stream, WireError> {
        let mut stream = self.mux.open().await.expect("a stream");
        send(&mut stream, &NodeCall::Web { container: container.id, tls }).await.expect("sent");
        match soon(reply(&mut stream)).await {
            Reply::Done => Ok(stream),
            Reply::Error(error) => Err(error),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) async fn fetch(&self, digest: Digest) -> Result<Vec<u8>, WireError> {
        use futures_util::AsyncReadExt as _;
        let mut stream = self.mux.open().await.expect("a stream");
        send(&mut stream, &NodeCall::FetchBlob(digest)).await.expect("sent");
        match soon(reply(&mut stream)).await {
            Reply::Blob { size } => {
                let mut bytes = Vec::new();
                soon(stream.read_to_end(&mut bytes)).await.expect("the blob");
                assert_eq!(bytes.len() as u64, size);
                Ok(bytes)
            }
            Reply::Error(error) => Err(error),
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn obey(control: Stream, containers: Containers, told: mpsc::UnboundedSender<ToNode>) {
    use futures_util::AsyncReadExt as _;
    let (mut reader, writer) = control.split();
    let writer = Mutex::new(writer);
    let say = async |report| send(&mut *writer.lock().await, &report).await;
    let obeying = async {
        while let Ok(Some(order)) = recv::<ToNode>(&mut reader, Limits::DEFAULT.message_bytes).await {
            drop(told.send(order.clone()));
            for report in answer(order, &containers).await {
                if say(report).await.is_err() {
                    return;
                }
            }
        }
    };
    // A board that says nothing for long counts as gone.
    let living = async {
        while say(FromNode::Load(load())).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::select! {
        () = obeying => {}
        () = living => {}
    }
}

async fn answer(order: ToNode, containers: &Containers) -> Vec<FromNode> {
    let mut have = containers.lock().await;
    match order {
        ToNode::Sync(desired) => {
            let wanted: Vec<ContainerId> = desired.containers.iter().map(|c| c.container.id).collect();
            have.retain(|id, _| wanted.contains(id));
            let mut reports: Vec<FromNode> =
                desired.containers.iter().filter_map(|c| settle(&mut have, c)).collect();
            reports.push(FromNode::Network { revision: desired.network.revision, error: None });
            reports
        }
        ToNode::Rekey(_) | ToNode::Plane(_) => Vec::new(),
        ToNode::Container(desired) => settle(&mut have, &desired).into_iter().collect(),
        ToNode::Remove(id) => {
            have.remove(&id);
            vec![FromNode::Removed(ContainerRef { id, generation: Generation(0) })]
        }
        ToNode::Network(network) => vec![FromNode::Network { revision: network.revision, error: None }],
    }
}

fn settle(have: &mut BTreeMap<ContainerId, ContainerReport>, desired: &ContainerDesired) -> Option<FromNode> {
    let old = have.get(&desired.container.id).filter(|old| old.container == desired.container);
    let state = match (desired.want, old.map(|old| &old.state)) {
        (Want::Running, None) => ContainerState::Running { pid: 42, started_ms: 1 },
        (Want::Stopped { .. }, Some(ContainerState::Running { .. })) => {
            ContainerState::Exited { status: ExitStatus::Signal(15), finished_ms: 2 }
        }
        _ => return None,
    };
    let report = ContainerReport { container: desired.container, state, restarts: 0 };
    have.insert(desired.container.id, report.clone());
    Some(FromNode::Container(report))
}

async fn serve(mut incoming: Incoming) {
    while let Some(stream) = incoming.next().await {
        tokio::spawn(routed(stream));
    }
}

/// The port where containers speak HTTP; tunnels to all others echo.
pub(crate) const HTTP: u16 = 8080;

/// The port where nobody reads; until its asker has hung up, which is counted.
pub(crate) const DEAF: u16 = 9;
pub(crate) static HANG_UPS: AtomicU8 = AtomicU8::new(0);

/// Answers every request with its method, its path and the container's number, until the other side has said all.
async fn web_server(container: ContainerId, stream: Stream) {
    use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut reader, mut writer) = stream.split();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while reader.read_exact(&mut byte).await.is_ok() {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let asked = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
        let body = format!("{asked} at {container}\n");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        head.clear();
    }
    drop(writer.close().await);
}

/// Tunnels echo, logs say one line, exec says who asked; signals are taken.
async fn routed(mut stream: Stream) {
    use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(Some(routed)) = recv::<Routed>(&mut stream, Limits::DEFAULT.message_bytes).await else { return };
    if send(&mut stream, &Reply::Done).await.is_err() {
        return;
    }
    match routed.request {
        RoutedRequest::Tunnel { container, port: HTTP, .. } => web_server(container.id, stream).await,
        RoutedRequest::Tunnel { port: DEAF, .. } => {
            stream.hung_up().await;
            HANG_UPS.fetch_add(1, Ordering::Relaxed);
        }
        RoutedRequest::Tunnel { .. } => {
            let (reader, mut writer) = stream.split();
            drop(futures_util::io::copy(reader, &mut writer).await);
            drop(writer.close().await);
        }
        RoutedRequest::Exec { .. }
        | RoutedRequest::Copy { .. }
        | RoutedRequest::Attach { .. }
        | RoutedRequest::Logs { .. } => {
            let bytes = format!("{} asked", routed.account).into_bytes();
            drop(send(&mut stream, &Frame::Data { channel: Channel::Stdout, bytes }).await);
            drop(send(&mut stream, &Frame::Exit(ExitStatus::Code(0))).await);
            drop(stream.close().await);
        }
        RoutedRequest::Changes { .. }
        | RoutedRequest::Pause { .. }
        | RoutedRequest::Ready { .. }
        | RoutedRequest::Signal { .. }
        | RoutedRequest::Stats { .. }
        | RoutedRequest::Processes { .. }
        | RoutedRequest::Crash => drop(stream.close().await),
    }
}
