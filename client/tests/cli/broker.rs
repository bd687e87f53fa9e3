//! A broker with one node that only pretends: containers run little programs named by their command.
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use wherry_protocol::io::{
    self, ServerKeys, SessionError, Side, Stream, recv, recv_datagram, send, send_datagram,
};
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::{
    AccountId, ContainerId, Digest, ErrorCode, Generation, Limits, Name, NodeIndex, OsRandom, PublicKey,
    Role, SecretKey, Token, WireError,
};

/// When everything in the pretended cluster happened: long ago, so that tables do not change from run to run.
const THEN_SECONDS: u64 = 1_000_000_000;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) members: BTreeMap<PublicKey, Role>,
    pub(crate) tokens: BTreeMap<Digest, (Role, Option<PublicKey>)>,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) sent: Vec<Digest>,
    pub(crate) images: BTreeMap<ImageName, ImageInfo>,
    pub(crate) containers: BTreeMap<ContainerId, ContainerInfo>,
    pub(crate) connections: BTreeSet<(ContainerId, ContainerId, u16, Transport)>,
    pub(crate) rules: Vec<RuleInfo>,
    /// How often statistics were asked for.
    looks: u64,
    pub(crate) signals: Vec<u8>,
    pub(crate) faults: Faults,
    pub(crate) crashed: Vec<NodeIndex>,
    pub(crate) web: crate::web::Web,
    next: u64,
}

/// Misbehaviour to show the client; each is used up once.
#[derive(Default)]
pub(crate) struct Faults {
    /// Cut the connection instead of answering an enrolment.
    pub(crate) lose_enrolment: u32,
    /// Cut the connection in the middle of a blob.
    pub(crate) cut_blob: u32,
    /// Take no connections until then.
    pub(crate) down_until: Option<std::time::Instant>,
    /// Say that the disk is full in the middle of a blob.
    pub(crate) disk_full: u32,
    /// Answer the hello with a refusal.
    pub(crate) refuse: Option<WireError>,
}

fn used(fault: &mut u32) -> bool {
    let now = *fault > 0;
    *fault = fault.saturating_sub(1);
    now
}

pub(crate) struct Broker {
    pub(crate) key: SecretKey,
    pub(crate) port: u16,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    keys: ServerKeys,
    state: Mutex<State>,
    sessions: Mutex<JoinSet<()>>,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let key = SecretKey::generate(&mut OsRandom);
        let shared = Arc::new(Shared {
            keys: ServerKeys::new(key.clone(), &mut OsRandom),
            state: Mutex::default(),
            sessions: Mutex::default(),
        });
        let (sessions, enrolment) = runtime.block_on(two_ports());
        let port = sessions.local_addr().unwrap().port();
        runtime.spawn(listen(Arc::clone(&shared), sessions, false));
        runtime.spawn(listen(Arc::clone(&shared), enrolment, true));
        Self { key, port, shared, _runtime: runtime }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A token that the broker will take once.
    pub(crate) fn token(&self, role: Role) -> Token {
        let mut secret = [0; 16];
        wherry_protocol::Random::fill(&mut OsRandom, &mut secret);
        let secret = TokenSecret(secret);
        self.state().tokens.insert(secret.hash(), (role, None));
        Token { role, broker: self.key.public(), secret, address: Some(self.address()) }
    }

    /// Drops every session, as a power cut would.
    pub(crate) fn cut(&self) {
        self.shared.sessions.lock().unwrap().abort_all();
    }
}

/// Two neighbouring free ports.
async fn two_ports() -> (TcpListener, TcpListener) {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        if let Ok(second) = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port.wrapping_add(1)))).await
        {
            return (first, second);
        }
    }
    panic!("no two neighbouring ports are free");
}

async fn listen(shared: Arc<Shared>, listener: TcpListener, enrolment: bool) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        if shared.state().faults.down_until.is_some_and(|until| std::time::Instant::now() < until) {
            continue;
        }
        let work = serve(Arc::clone(&shared), socket, enrolment);
        shared.sessions.lock().unwrap().spawn(async move {
            // A session that fails is the test's business; it sees it at the other end.
            work.await.unwrap_or_default();
        });
    }
}

async fn serve(shared: Arc<Shared>, socket: TcpStream, enrolment: bool) -> Result<(), SessionError> {
    let secure = io::accept(socket.compat(), &shared.keys, &mut OsRandom).await?;
    let peer = secure.peer();
    let (_mux, mut incoming, driver) = io::multiplex(secure, Side::Accepted, &Limits::DEFAULT);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { driver.await.unwrap_or_default() });
    let (stream, hello) = io::read_hello(&mut incoming).await?;
    let verdict = shared.verdict(&peer, enrolment);
    io::answer_hello(stream, &hello, "fake 1", verdict).await?;
    while let Some(stream) = incoming.next().await {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            match enrolment {
                true => shared.enrol(stream, peer).await.unwrap_or_default(),
                false => shared.answer(stream, peer).await.unwrap_or_default(),
            }
        });
    }
    Ok(())
}

fn refused(code: ErrorCode, message: impl Into<String>) -> WireError {
    WireError::new(code, message)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn verdict(&self, peer: &PublicKey, enrolment: bool) -> Result<Option<Role>, WireError> {
        let mut state = self.state();
        if let Some(error) = state.faults.refuse.take() {
            return Err(error);
        }
        if enrolment {
            return Ok(None);
        }
        let unknown = || WireError::new(ErrorCode::Unauthenticated, "this key is not enrolled here");
        state.members.get(peer).copied().map(Some).ok_or_else(unknown)
    }

    async fn enrol(&self, mut stream: Stream, peer: PublicKey) -> Result<(), SessionError> {
        let request: EnrolRequest = recv(&mut stream, 4096).await?.ok_or(SessionError::Closed)?;
        let reply = self.state().enrol(&request, peer);
        if used(&mut self.state().faults.lose_enrolment) {
            return Ok(());
        }
        send(&mut stream, &reply).await
    }

    async fn access_log(&self, mut stream: Stream) -> Result<(), SessionError> {
        send(&mut stream, &Reply::Done).await?;
        let lines = self.state().web.lines.clone();
        for line in lines {
            send(&mut stream, &line).await?;
        }
        stream.close().await.map_err(SessionError::from)
    }

    async fn answer(&self, mut stream: Stream, peer: PublicKey) -> Result<(), SessionError> {
        let request: Request =
            recv(&mut stream, Limits::DEFAULT.message_bytes).await?.ok_or(SessionError::Closed)?;
        match request {
            Request::PutBlob(blob) => self.put_blob(stream, blob).await,
            Request::ReadBlob(digest) => {
                let found = self.state().blobs.get(&digest).cloned();
                let Some(bytes) = found else {
                    let missing = refused(ErrorCode::NotFound, format!("this account has no blob {digest}"));
                    return send(&mut stream, &Reply::Error(missing)).await;
                };
                send(&mut stream, &Reply::Blob { size: bytes.len() as u64 }).await?;
                stream.write_all(&bytes).await?;
                stream.close().await.map_err(SessionError::from)
            }
            Request::Exec { container, spec } => {
                let found = self.state().running(&container);
                match found {
                    Err(error) => send(&mut stream, &Reply::Error(error)).await,
                    Ok(_) if spec.command[0] == "missing" => {
                        let text =
                            "could not start: no such program 'missing' in the image, check the command";
                        send(&mut stream, &Reply::Error(refused(ErrorCode::StartFailed, text))).await
                    }
                    Ok(_) => {
                        send(&mut stream, &Reply::Done).await?;
                        let status = self.play(&mut stream, &spec.command, spec.tty).await?;
                        send(&mut stream, &Frame::Exit(status)).await
                    }
                }
            }
            Request::Attach(container) => {
                let found = self.state().running(&container);
                match found {
                    Err(error) => send(&mut stream, &Reply::Error(error)).await,
                    Ok(info) => {
                        send(&mut stream, &Reply::Done).await?;
                        let status = self.play(&mut stream, &info.spec.command, None).await?;
                        self.state().end(info.id, status);
                        send(&mut stream, &Frame::Exit(status)).await
                    }
                }
            }
            Request::Logs { container, query } => {
                let found = self.state().find(&container);
                match found {
                    Err(error) => send(&mut stream, &Reply::Error(error)).await,
                    Ok(info) => logs(&mut stream, &info, query).await,
                }
            }
            Request::Tunnel { container, port, transport } => {
                let found = self.state().running(&container);
                match found {
                    Err(error) => send(&mut stream, &Reply::Error(error)).await,
                    Ok(_) => {
                        send(&mut stream, &Reply::Done).await?;
                        match transport {
                            Transport::Tcp => echo(stream, port).await,
                            Transport::Udp => echo_datagrams(stream, port).await,
                        }
                    }
                }
            }
            Request::AccessLog { .. } => self.access_log(stream).await,
            Request::Events => {
                send(&mut stream, &Reply::Done).await?;
                let infos: Vec<_> = self.state().containers.values().cloned().collect();
                for info in infos {
                    send(&mut stream, &Event::Container(Box::new(info))).await?;
                }
                send(&mut stream, &Event::Node { index: NodeIndex(1), connected: false }).await?;
                stream.close().await.map_err(SessionError::from)
            }
            request => {
                let reply = self.state().ask(request, peer);
                send(&mut stream, &reply).await
            }
        }
    }

    async fn put_blob(&self, mut stream: Stream, blob: Descriptor) -> Result<(), SessionError> {
        if self.state().blobs.contains_key(&blob.digest) {
            return send(&mut stream, &Reply::Blob { size: blob.size }).await;
        }
        send(&mut stream, &Reply::Done).await?;
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap()];
        let half = bytes.len() / 2;
        stream.read_exact(&mut bytes[..half]).await?;
        if used(&mut self.state().faults.cut_blob) {
            let soon = std::time::Instant::now() + std::time::Duration::from_millis(2500);
            self.state().faults.down_until = Some(soon);
            self.sessions.lock().unwrap().abort_all();
            std::future::pending::<()>().await;
        }
        if used(&mut self.state().faults.disk_full) {
            return send(
                &mut stream,
                &Reply::Error(refused(ErrorCode::DiskFull, "the broker's disk is full")),
            )
            .await;
        }
        stream.read_exact(&mut bytes[half..]).await?;
        assert_eq!(Digest::of(&bytes), blob.digest, "what travels is what was announced");
        self.state().sent.push(blob.digest);
        self.state().blobs.insert(blob.digest, bytes);
        send(&mut stream, &Reply::Done).await
    }

    /// Runs a little program on a stream of frames.
    async fn play(
        &self,
        stream: &mut Stream,
        command: &[String],
        size: Option<(u16, u16)>,
    ) -> Result<ExitStatus, SessionError> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let data = |channel, text: &str| Frame::Data { channel, bytes: text.as_bytes().to_vec() };
        match words.as_slice() {
            ["exit", code] => return Ok(ExitStatus::Code(code.parse().unwrap())),
            ["hungry"] => return Ok(ExitStatus::OutOfMemory),
            ["err", text] => send(stream, &data(Channel::Stderr, text)).await?,
            ["size"] => {
                let (rows, columns) = size.unwrap();
                send(stream, &data(Channel::Stdout, &format!("{rows}x{columns}\r\n"))).await?;
            }
            ["cat"] => {
                while let Some(frame) = recv::<Frame>(stream, 65_536).await? {
                    match frame {
                        Frame::Data { bytes, .. } => {
                            send(stream, &Frame::Data { channel: Channel::Stdout, bytes }).await?;
                        }
                        Frame::End(_) => break,
                        _ => {}
                    }
                }
            }
            ["sleep"] => {
                send(stream, &data(Channel::Stdout, "ready\n")).await?;
                while let Some(frame) = recv::<Frame>(stream, 65_536).await? {
                    if let Frame::Signal(signal) = frame {
                        self.state().signals.push(signal);
                        return Ok(ExitStatus::Signal(signal));
                    }
                }
            }
            ["stubborn"] => {
                send(stream, &data(Channel::Stdout, "ready\n")).await?;
                while recv::<Frame>(stream, 65_536).await?.is_some() {}
            }
            words => send(stream, &data(Channel::Stdout, &format!("{}\n", words.join(" ")))).await?,
        }
        Ok(ExitStatus::Code(0))
    }
}

async fn logs(stream: &mut Stream, info: &ContainerInfo, query: LogQuery) -> Result<(), SessionError> {
    send(stream, &Reply::Done).await?;
    if query.times {
        send(stream, &Frame::Time(THEN_SECONDS * 1000)).await?;
    }
    let lines = ["one\n", "two\n", "three\n"];
    let from = query.tail_lines.map_or(0, |tail| lines.len().saturating_sub(tail as usize));
    if from == 0 {
        send(stream, &Frame::Dropped { bytes: 2048 }).await?;
    }
    for line in &lines[from..] {
        let bytes = format!("{}: {line}", info.name).into_bytes();
        send(stream, &Frame::Data { channel: Channel::Stdout, bytes }).await?;
    }
    if query.follow {
        send(stream, &Frame::Data { channel: Channel::Stderr, bytes: b"followed\n".to_vec() }).await?;
    }
    stream.close().await.map_err(SessionError::from)
}

/// Answers each piece with the port and the piece in capitals.
/// Says each datagram again, in capitals and with the port.
async fn echo_datagrams(mut stream: Stream, port: u16) -> Result<(), SessionError> {
    let mut datagram = Vec::new();
    while recv_datagram(&mut stream, &mut datagram).await? {
        let answer = format!("{port} {}", String::from_utf8_lossy(&datagram).to_uppercase());
        send_datagram(&mut stream, answer.as_bytes()).await?;
    }
    Ok(())
}

async fn echo(mut stream: Stream, port: u16) -> Result<(), SessionError> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.close().await.map_err(SessionError::from);
        }
        let text = format!("{port} {}", String::from_utf8_lossy(&buffer[..count]).to_uppercase());
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
    }
}

impl State {
    fn enrol(&mut self, request: &EnrolRequest, peer: PublicKey) -> EnrolReply {
        match self.tokens.get_mut(&request.secret.hash()) {
            Some((role, claimed)) if *role == request.role && claimed.is_none_or(|by| by == peer) => {
                *claimed = Some(peer);
                self.members.insert(peer, *role);
                EnrolReply::Enrolled { account: AccountId(3), role: *role, location: name("demo") }
            }
            _ => EnrolReply::Refused(WireError::new(
                ErrorCode::BadToken,
                "the token is wrong, used or expired",
            )),
        }
    }

    fn find(&self, selector: &ContainerSelector) -> Result<ContainerInfo, WireError> {
        let fits = |info: &&ContainerInfo| match selector {
            ContainerSelector::Id(id) => info.id == *id,
            ContainerSelector::Name(name) => info.name == *name,
        };
        let shown = match selector {
            ContainerSelector::Id(id) => id.to_string(),
            ContainerSelector::Name(name) => name.to_string(),
        };
        let missing = || refused(ErrorCode::NotFound, format!("no container is called '{shown}'"));
        self.containers.values().find(fits).cloned().ok_or_else(missing)
    }

    fn running(&self, selector: &ContainerSelector) -> Result<ContainerInfo, WireError> {
        let info = self.find(selector)?;
        match info.state {
            ContainerState::Running { .. } => Ok(info),
            _ => Err(refused(ErrorCode::WrongState, format!("container '{}' does not run", info.name))),
        }
    }

    pub(crate) fn end(&mut self, id: ContainerId, status: ExitStatus) {
        if let Some(info) = self.containers.get_mut(&id) {
            info.state = ContainerState::Exited { status, finished_ms: THEN_SECONDS * 1000 };
        }
    }

    /// A container without asking for it.
    pub(crate) fn add(&mut self, called: &str, command: &[&str]) -> ContainerId {
        let spec = ContainerSpec {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            stdin_open: true,
            ..ContainerSpec::default()
        };
        let request = RunRequest {
            image: "web".parse().unwrap(),
            name: Some(name(called)),
            node: None,
            detached: true,
            spec,
        };
        self.run(request).id
    }

    fn run(&mut self, request: RunRequest) -> ContainerInfo {
        self.next += 1;
        let id = ContainerId(self.next);
        let state = match request.spec.command.first().map(String::as_str) {
            Some("missing") => ContainerState::Failed(WireError::new(
                ErrorCode::StartFailed,
                "could not start: no such program 'missing' in the image, check the command",
            )),
            Some("quick") => {
                ContainerState::Exited { status: ExitStatus::Code(5), finished_ms: THEN_SECONDS * 1000 }
            }
            _ => ContainerState::Running { pid: 42, started_ms: THEN_SECONDS * 1000 },
        };
        let info = ContainerInfo {
            restarts: 0,
            id,
            generation: Generation(1),
            name: request.name.unwrap_or_else(|| name(&format!("made-up-{id}"))),
            account: AccountId(3),
            image: request.image,
            node: NodeIndex(1),
            node_name: name("node1"),
            node_connected: true,
            placement: "most free memory".into(),
            address: Ipv4Addr::new(10, 1, 0, 1 + u8::try_from(id.0).unwrap()),
            address6: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 1 + u16::try_from(id.0).unwrap()),
            state,
            created_seconds: THEN_SECONDS,
            detached: request.detached,
            publish: request.spec.publish.clone(),
            spec: request.spec,
            condition: Condition::default(),
        };
        self.containers.insert(id, info.clone());
        info
    }

    fn ask(&mut self, request: Request, peer: PublicKey) -> Reply {
        self.try_ask(request, peer).unwrap_or_else(Reply::Error)
    }

    fn try_ask(&mut self, request: Request, peer: PublicKey) -> Result<Reply, WireError> {
        Ok(match request {
            Request::Ping => Reply::Done,
            Request::Status => Reply::Status(StatusInfo {
                account: self.account(peer),
                location: name("demo"),
                software: "fake 1".into(),
                uptime_seconds: 7200,
                now_seconds: THEN_SECONDS,
            }),
            Request::Nodes => Reply::Nodes(nodes(self.containers.len())),
            Request::MissingBlobs(digests) => Reply::Missing(
                digests.into_iter().filter(|digest| !self.blobs.contains_key(digest)).collect(),
            ),
            Request::PutImage { name, architecture, manifest } => {
                let size = manifest.config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
                let id = manifest.config.digest;
                let created_seconds = THEN_SECONDS;
                let info =
                    ImageInfo { name: name.clone(), id, architecture, size, created_seconds, manifest };
                self.images.insert(name, info.clone());
                Reply::Image(info)
            }
            Request::Images => Reply::Images(self.images.values().cloned().collect()),
            Request::RemoveImage(name) => {
                let missing = || refused(ErrorCode::NotFound, format!("no image is called '{name}'"));
                self.images.remove(&name).map(|_| Reply::Done).ok_or_else(missing)?
            }
            Request::Connect(request) if let Some(rule) = rule(&request) => {
                self.rules.push(rule);
                Reply::Done
            }
            Request::Connect(request) => {
                let key = self.connection(&request)?;
                self.connections.insert(key);
                Reply::Done
            }
            Request::Disconnect(request) => {
                let key = self.connection(&request)?;
                self.connections.remove(&key);
                Reply::Done
            }
            Request::Connections => Reply::Connections {
                rules: self.rules.clone(),
                connections: self
                    .connections
                    .iter()
                    .map(|&(from, to, port, transport)| ConnectionInfo {
                        from,
                        from_name: self.containers[&from].name.clone(),
                        to,
                        to_name: self.containers[&to].name.clone(),
                        port,
                        transport,
                    })
                    .collect(),
            },
            Request::CreateToken { role, lifetime_seconds } => {
                let secret = TokenSecret([9; 16]);
                self.tokens.insert(secret.hash(), (role, None));
                let token = Token { role, broker: PublicKey([7; 32]), secret, address: None };
                let expires_seconds = THEN_SECONDS + u64::from(lifetime_seconds);
                Reply::Token { text: token.to_string(), expires_seconds }
            }
            Request::Accounts => Reply::Accounts(vec![self.account(peer)]),
            Request::RemoveAccount(_) => Reply::Done,
            Request::CrashNode(index) => {
                self.crashed.push(index);
                Reply::Done
            }
            Request::PutBlob(_)
            | Request::ReadBlob(_)
            | Request::Exec { .. }
            | Request::Attach(_)
            | Request::Logs { .. }
            | Request::Tunnel { .. }
            | Request::AccessLog { .. }
            | Request::Events => return Err(refused(ErrorCode::Internal, "answered elsewhere")),
            request => self.ask_web(request)?,
        })
    }

    fn ask_web(&mut self, request: Request) -> Result<Reply, WireError> {
        let claimed = |shared, vouched| DomainState::Claimed { shared, vouched, since_seconds: THEN_SECONDS };
        Ok(match request {
            Request::PublishEndpoint(spec) => self.web.publish(*spec),
            Request::RemoveEndpoint(host) => {
                let before = self.web.endpoints.len();
                self.web.endpoints.retain(|info| info.host != host);
                if self.web.endpoints.len() == before {
                    let text =
                        format!("no endpoint is called '{host}': list yours with `wherry endpoint ls`");
                    return Err(refused(ErrorCode::NotFound, text));
                }
                Reply::Done
            }
            Request::Endpoints { .. } => Reply::Endpoints(self.web.endpoints.clone()),
            Request::Domains => Reply::Domains(self.web.domains.clone()),
            Request::PrepareDomain(domain) => {
                let expires_seconds = u64::from(u32::MAX);
                let token = "wherry-0123".to_owned();
                self.web.domain(&domain, DomainState::Prepared { token, expires_seconds })
            }
            Request::ClaimDomain { domain, vouched } => self.web.domain(&domain, claimed(false, vouched)),
            Request::ShareDomain { domain, shared } => self.web.domain(&domain, claimed(shared, false)),
            Request::ReleaseDomain(domain) => {
                self.web.domains.retain(|info| info.domain != domain);
                Reply::Done
            }
            Request::ConfigureAcme(settings) => {
                self.web.acme = settings.map(|settings| *settings);
                Reply::Done
            }
            request => self.ask_container(request)?,
        })
    }

    fn ask_container(&mut self, request: Request) -> Result<Reply, WireError> {
        let boxed = |info| Reply::Container(Box::new(info));
        Ok(match request {
            Request::Run(request) if request.image.as_str() == "nothing:latest" => {
                return Err(refused(
                    ErrorCode::NotFound,
                    "no image is called 'nothing:latest': push it first",
                ));
            }
            Request::Run(request) => boxed(self.run(*request)),
            Request::Containers { .. } => Reply::Containers(self.containers.values().cloned().collect()),
            Request::Inspect(selector) => boxed(self.find(&selector)?),
            Request::Wait { container, .. } => boxed(self.find(&container)?),
            Request::Stop { container, .. } => {
                let id = self.running(&container)?.id;
                self.end(id, ExitStatus::Signal(15));
                boxed(self.find(&container)?)
            }
            Request::Rename { container, name } => {
                let id = self.find(&container)?.id;
                let info = self.containers.get_mut(&id).unwrap();
                info.name = name;
                boxed(info.clone())
            }
            Request::Stats(container) => {
                self.running(&container)?;
                self.looks += 1;
                Reply::Stats(ContainerStats {
                    time_ms: self.looks * 1000,
                    cpu_us: Some(self.looks * 250_000),
                    memory_bytes: Some(3 << 20),
                    memory_limit_bytes: Some(64 << 20),
                    pids: Some(2),
                    received_bytes: Some(1024),
                    sent_bytes: None,
                    dropped: Some(Drops { egress: 4, spoofed: 1, ..Drops::default() }),
                })
            }
            Request::Processes(container) => {
                self.running(&container)?;
                Reply::Processes(vec![ProcessInfo {
                    pid: 1,
                    parent: 0,
                    uid: 33,
                    state: 'S',
                    cpu_ms: 1250,
                    resident_bytes: 4096,
                    command: "sleep \u{1b}[31m 1d".into(),
                }])
            }
            Request::Start(container) => {
                let id = self.find(&container)?.id;
                let info = self.containers.get_mut(&id).unwrap();
                info.generation.0 += 1;
                info.state = ContainerState::Running { pid: 43, started_ms: THEN_SECONDS * 1000 };
                boxed(info.clone())
            }
            Request::Remove { container, force } => {
                let info = self.find(&container)?;
                if !info.state.is_finished() && !force {
                    let text = format!("container '{}' runs: stop it first or use force", info.name);
                    return Err(refused(ErrorCode::WrongState, text));
                }
                self.containers.remove(&info.id);
                Reply::Done
            }
            Request::Signal { container, signal } => {
                self.running(&container)?;
                self.signals.push(signal);
                Reply::Done
            }
            _ => return Err(refused(ErrorCode::Internal, "answered elsewhere")),
        })
    }

    fn connection(
        &self,
        request: &ConnectRequest,
    ) -> Result<(ContainerId, ContainerId, u16, Transport), WireError> {
        let single = |party: &Party| match party {
            Party::Container(selector) => self.find(selector).map(|info| info.id),
            Party::Labelled { .. } => panic!("a rule"),
        };
        Ok((single(&request.from)?, single(&request.to)?, request.port, request.transport))
    }

    fn account(&self, peer: PublicKey) -> AccountInfo {
        AccountInfo {
            id: AccountId(3),
            label: name("ada-laptop"),
            role: self.members[&peer],
            key: PublicKey([5; 32]),
            created_seconds: THEN_SECONDS,
            sessions: 1,
        }
    }
}

/// The rule that a request with labels is about.
fn rule(request: &ConnectRequest) -> Option<RuleInfo> {
    let text = |party: &Party| match party {
        Party::Container(ContainerSelector::Id(id)) => id.to_string(),
        Party::Container(ContainerSelector::Name(name)) => name.to_string(),
        Party::Labelled { key, value } => format!("label:{key}={value}"),
    };
    let labelled = [&request.from, &request.to].iter().any(|party| matches!(party, Party::Labelled { .. }));
    labelled.then(|| RuleInfo {
        from: text(&request.from),
        to: text(&request.to),
        port: request.port,
        transport: request.transport,
        connections: 3,
    })
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn nodes(containers: usize) -> Vec<NodeInfo> {
    let facts = NodeFacts {
        hostname: "node1".into(),
        architecture: "arm64".into(),
        cpus: 4,
        memory_bytes: 1 << 30,
        kernel: "6.1.0".into(),
        software: "wherry-node 0.1.0".into(),
        boot_id: [1; 16],
        underlay: Ipv4Addr::new(192, 168, 50, 11),
        overlay: true,
        limits: true,
        wireguard: Some([[7; 32]; 2]),
    };
    let load = NodeLoad {
        memory_available_bytes: 700 << 20,
        load_milli: 250,
        cpu_busy_milli: 120,
        disk_free_bytes: 3 << 30,
        disk_bytes: 4 << 30,
        uptime_seconds: 86_400,
        dropped: Drops { unencrypted: 9, ..Drops::default() },
        refused_answers: RefusedAnswers { forged: 3, ..RefusedAnswers::default() },
    };
    let containers = u32::try_from(containers).unwrap();
    let node = |index, called, connected, facts, load, containers| NodeInfo {
        index: NodeIndex(index),
        name: name(called),
        connected,
        facts,
        load,
        containers,
        labels: Vec::new(),
    };
    vec![node(1, "node1", true, Some(facts), Some(load), containers), node(2, "node2", false, None, None, 0)]
}
