//! One value of every variant of every message enum.
#![allow(dead_code, reason = "each test binary uses a part of it")]
mod endpoint;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use wherry_protocol::constraint::{Constraint, Subject};
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::{
    AccountId, ContainerId, ContainerRef, Digest, ErrorCode, Generation, Name, NodeIndex, Overlay, Prefix,
    PublicKey, Role, WireError,
};

/// One line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Of the variant in its enum; `None` for a struct.
    pub(crate) position: Option<usize>,
    pub(crate) bytes: String,
    pub(crate) round_trip: bool,
}

/// A message type whose variants are known by name.
trait Listed {
    fn listed(&self) -> (&'static str, Option<usize>);
}

// The match is exhaustive: a new variant does not compile until it is listed, and then it needs a sample.
macro_rules! listed {
    ($($message:ident { $($variant:ident),* $(,)? })*) => {
        pub(crate) const ENUMS: &[(&str, &[&str])] = &[$((stringify!($message), &[$(stringify!($variant)),*]),)*];
        $(impl Listed for $message {
            fn listed(&self) -> (&'static str, Option<usize>) {
                let (name, variant) = match self {
                    $($message::$variant { .. } => {
                        (concat!(stringify!($message), "::", stringify!($variant)), stringify!($variant))
                    })*
                };
                let variants = ENUMS.iter().find(|(name, _)| *name == stringify!($message)).map(|(_, v)| *v);
                (name, variants.and_then(|variants| variants.iter().position(|v| *v == variant)))
            }
        })*
        pub(crate) fn decodes(name: &str, bytes: &[u8]) -> bool {
            match name.split("::").next() {
                $(Some(stringify!($message)) => whole::<$message>(bytes),)*
                Some("Hello") => whole::<Hello>(bytes),
                Some("EnrolRequest") => whole::<EnrolRequest>(bytes),
                Some("Routed") => whole::<Routed>(bytes),
                Some("WireError") => whole::<WireError>(bytes),
                _ => panic!("{name} is not listed"),
            }
        }
    };
}

listed! {
    HelloReply { Accepted, Refused }
    EnrolReply { Enrolled, Refused }
    Role { User, Admin, Node }
    Request {
        Ping, Status, Nodes, MissingBlobs, PutBlob, PutImage, Images, RemoveImage, Run, Containers, Inspect, Wait,
        Stop, Start, Remove, Signal, Connect, Disconnect, Connections, Exec, Attach, Logs, Tunnel, CreateToken,
        Accounts, RemoveAccount, CrashNode, Events, Rename, Stats, Processes,
        Copy, Pause, Ready, Wake, StartClean, Changes, LabelNode, ReadBlob,
        PublishEndpoint, RemoveEndpoint, Endpoints, AccessLog, Domains, PrepareDomain, ClaimDomain, ShareDomain,
        ReleaseDomain, ConfigureAcme,
    }
    ContainerSelector { Id, Name }
    Party { Container, Labelled }
    WaitUntil { Started, Ended }
    Reply {
        Error, Done, Status, Nodes, Missing, Blob, Image, Images, Container, Containers, Connections, Token, Accounts,
        Stats, Processes, Base, Endpoint, Endpoints, Domain, Domains,
    }
    CertificateSource { None, Given, Acme }
    EndpointCaller { Anyone, Network, Containers }
    CertificateInfo { None, Awaited, Present }
    DomainState { Prepared, Claimed }
    AccessLine { Request, Lost }
    Event { Container, ContainerRemoved, Node, Lost }
    NodeCall { Control, FetchBlob, Web }
    FromNode { Load, Container, Removed, Network, Condition, Keys }
    ToNode { Sync, Container, Remove, Network, Rekey, Plane }
    Want { Running, Stopped }
    Transport { Tcp, Udp }
    PublishedOn { Broker, Node }
    RoutedRequest { Exec, Attach, Logs, Tunnel, Signal, Crash, Stats, Processes, Copy, Pause, Ready, Changes }
    CopySpec { Out, In, Sftp }
    ContainerState { Pending, Preparing, Running, Exited, Failed, Restarting }
    Setting {
        Restart, StopSignal, StopSeconds, Tmpfs, AddCapability, DropCapability, Limit, Sysctl, Nameserver, Host,
        Attended, Init, Device, Constraint, Files, Health, NoHealth, Asleep, Egress,
    }
    Subject { Id, Hostname, Architecture, Label }
    Probe { Exec, Tcp, Http }
    Health { Starting, Healthy, Unhealthy }
    OnUnhealthy { Tell, Kill }
    ChangesQuery { Names, Layer }
    RestartPolicy { No, OnFailure, Always }
    LogSince { Time, Age }
    ExitStatus { Code, Signal, OutOfMemory }
    Media { Config, LayerTar, LayerTarGzip, LayerTarZstd }
    Channel { Stdin, Stdout, Stderr }
    Frame { Data, End, Resize, Signal, Exit, Error, Dropped, Time }
}

macro_rules! structs {
    ($($name:ident),*) => { $(impl Listed for $name {
        fn listed(&self) -> (&'static str, Option<usize>) {
            (stringify!($name), None)
        }
    })* };
}
structs!(Hello, EnrolRequest, Routed, WireError);

fn whole<M: DeserializeOwned>(bytes: &[u8]) -> bool {
    matches!(postcard::take_from_bytes::<M>(bytes), Ok((_, [])))
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digit = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn row<M: Listed + Serialize + DeserializeOwned + PartialEq + Debug>(message: M) -> Row {
    let (name, position) = message.listed();
    let bytes = postcard::to_stdvec(&message).expect("encodes");
    let round_trip = postcard::from_bytes::<M>(&bytes).is_ok_and(|again| again == message);
    let bytes = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Row { name, position, bytes, round_trip }
}

/// Every listed variant has a sample.
pub(crate) fn assert_complete() {
    let have: BTreeSet<&str> = rows().iter().map(|row| row.name).collect();
    for (name, variants) in ENUMS {
        for variant in *variants {
            let full = format!("{name}::{variant}");
            assert!(have.contains(full.as_str()), "{full} has no sample");
        }
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn image(text: &str) -> ImageName {
    text.parse().expect("an image name")
}

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn error() -> WireError {
    WireError::new(ErrorCode::NotFound, "no")
}

fn container() -> ContainerRef {
    ContainerRef { id: ContainerId(300), generation: Generation(2) }
}

fn selector() -> ContainerSelector {
    ContainerSelector::Id(ContainerId(300))
}

fn descriptor() -> Descriptor {
    Descriptor { digest: digest(0xd1), size: 1000, media: Media::LayerTarGzip }
}

fn manifest() -> ImageManifest {
    let config = Descriptor { digest: digest(0xc0), size: 200, media: Media::Config };
    ImageManifest { config, layers: vec![descriptor()] }
}

fn spec() -> ContainerSpec {
    ContainerSpec {
        entrypoint: Some(vec!["/e".into()]),
        command: vec!["c".into()],
        env: vec![("K".into(), "v".into())],
        workdir: Some("/w".into()),
        user: Some("1:2".into()),
        hostname: Some("h".into()),
        tty: true,
        stdin_open: false,
        read_only: true,
        mounts: vec![VolumeMount { volume: name("vol"), path: "/v".into(), read_only: false }],
        publish: vec![
            PublishedPort::tcp(8080, 80),
            PublishedPort {
                transport: Transport::Udp,
                on: PublishedOn::Node,
                allow: vec![Prefix::new(Ipv4Addr::new(192, 168, 50, 0), 24)],
                ..PublishedPort::tcp(53, 5353)
            },
        ],
        resources: Resources { memory_bytes: Some(1 << 26), cpu_milli: Some(500), pids: None },
        auto_remove: false,
        labels: vec![("a".into(), "b".into())],
        settings: vec![Setting::Restart(RestartPolicy::Always), Setting::StopSignal(3)],
    }
}

fn exec() -> ExecSpec {
    ExecSpec {
        command: vec!["ls".into(), "-l".into()],
        env: vec![],
        workdir: None,
        user: None,
        tty: Some((24, 80)),
        stdin: true,
    }
}

fn logs() -> LogQuery {
    LogQuery { follow: true, tail_lines: Some(10), since: Some(LogSince::Age(1)), times: true }
}

fn load() -> NodeLoad {
    NodeLoad {
        memory_available_bytes: 1 << 30,
        load_milli: 1500,
        cpu_busy_milli: 250,
        disk_free_bytes: 5,
        disk_bytes: 6,
        uptime_seconds: 7,
        dropped: Drops { not_connected: 8, ..Drops::default() },
        refused_answers: RefusedAnswers { malformed: 9, stale: 10, forged: 11, elsewhere: 12 },
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "n".into(),
        architecture: "arm64".into(),
        cpus: 4,
        memory_bytes: 1 << 31,
        kernel: "6.1".into(),
        software: "s".into(),
        boot_id: [0xb0; 16],
        underlay: Ipv4Addr::new(192, 168, 50, 3),
        overlay: true,
        limits: false,
        wireguard: Some([[0x44; 32], [0x45; 32]]),
    }
}

fn report() -> ContainerReport {
    ContainerReport { container: container(), state: ContainerState::Pending, restarts: 0 }
}

fn connection() -> Connection {
    Connection {
        from: ContainerId(1),
        from_address: Ipv4Addr::new(10, 1, 0, 2),
        to: ContainerId(2),
        to_address: Ipv4Addr::new(10, 2, 0, 2),
        port: 80,
        transport: Transport::Tcp,
    }
}

fn network() -> NetworkDesired {
    let underlay = Ipv4Addr::new(192, 168, 50, 4);
    let peers = vec![
        Peer { index: NodeIndex(2), underlay, wireguard: None },
        Peer { index: NodeIndex(3), underlay, wireguard: Some([[0x33; 32], [0x34; 32]]) },
    ];
    let names = vec![Called {
        container: ContainerId(2),
        name: name("web"),
        account: name("ada"),
        service: Some(name("front")),
    }];
    let callers = vec![WebCaller {
        container: ContainerId(1),
        address: Ipv4Addr::new(10, 1, 0, 2),
        hosts: vec!["www.example.org".into()],
    }];
    NetworkDesired { revision: 9, peers, connections: vec![connection()], names, callers }
}

fn desired() -> ContainerDesired {
    ContainerDesired {
        container: container(),
        account: AccountId(7),
        name: name("web"),
        spec: ContainerSpec::default(),
        image: manifest(),
        address: Ipv4Addr::new(10, 2, 0, 2),
        want: Want::Running,
        restarts: 0,
        clean_since: Generation(2),
    }
}

fn account() -> AccountInfo {
    AccountInfo {
        id: AccountId(7),
        label: name("ann"),
        role: Role::Admin,
        key: PublicKey([0xaa; 32]),
        created_seconds: 1_700_000_000,
        sessions: 1,
    }
}

fn node_info() -> NodeInfo {
    NodeInfo {
        index: NodeIndex(2),
        name: name("node2"),
        connected: true,
        facts: Some(facts()),
        load: None,
        containers: 3,
        labels: vec![("shelf".into(), "top".into())],
    }
}

fn image_info() -> ImageInfo {
    ImageInfo {
        name: image("web"),
        id: digest(0xc0),
        architecture: "amd64".into(),
        size: 1200,
        created_seconds: 1,
        manifest: manifest(),
    }
}

fn overlay() -> Overlay {
    Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a])
}

fn container_info() -> ContainerInfo {
    ContainerInfo {
        id: ContainerId(300),
        generation: Generation(2),
        name: name("web"),
        account: AccountId(7),
        image: image("web"),
        node: NodeIndex(2),
        node_name: name("node2"),
        node_connected: true,
        placement: "most room".into(),
        address: Ipv4Addr::new(10, 2, 0, 2),
        address6: overlay().address6(Ipv4Addr::new(10, 2, 0, 2)),
        state: ContainerState::Running { pid: 42, started_ms: 1000 },
        restarts: 1,
        created_seconds: 1,
        detached: true,
        publish: vec![],
        spec: ContainerSpec::default(),
        condition: condition(),
    }
}

fn condition() -> Condition {
    let health = HealthReport { health: Health::Unhealthy, failures: 3, output: "no".into() };
    Condition { paused: true, asleep: false, health: Some(health) }
}

fn health_check() -> HealthCheck {
    HealthCheck {
        probe: Some(Probe::Tcp { port: 80 }),
        interval_ms: Some(30_000),
        timeout_ms: None,
        retries: Some(3),
        start_period_ms: None,
        start_interval_ms: None,
        on_failure: OnUnhealthy::Kill,
    }
}

fn constraint() -> Constraint {
    Constraint { subject: Subject::Label("shelf".into()), equal: true, value: "top".into() }
}

fn label_node() -> Request {
    let set = vec![("shelf".into(), "top".into())];
    Request::LabelNode { node: "n2".into(), set, remove: vec!["disk".into()] }
}

fn connect() -> ConnectRequest {
    let to = Party::Labelled { key: "app".into(), value: "web".into() };
    ConnectRequest { from: selector().into(), to, port: 80, transport: Transport::Udp }
}

/// The table.
pub(crate) fn rows() -> Vec<Row> {
    [first_stream(), requests(), replies(), events(), node(), containers(), endpoint::rows()]
        .into_iter()
        .flatten()
        .collect()
}

fn first_stream() -> Vec<Row> {
    let (software, location) = ("w 1".to_owned(), name("demo"));
    vec![
        row(Hello { version: 1, oldest: 1, features: 0, software: software.clone() }),
        row(HelloReply::Accepted { version: 1, features: 0, software, role: Some(Role::Node) }),
        row(HelloReply::Refused(error())),
        row(EnrolRequest { role: Role::User, secret: TokenSecret([0x5e; 16]), label: name("ann") }),
        row(EnrolReply::Enrolled { account: AccountId(7), role: Role::User, location }),
        row(EnrolReply::Refused(error())),
        row(Role::User),
        row(Role::Admin),
        row(Role::Node),
        row(error()),
    ]
}

fn requests() -> Vec<Row> {
    let run = RunRequest {
        image: image("web:1"),
        name: Some(name("web")),
        node: None,
        detached: true,
        spec: spec(),
    };
    let put = Request::PutImage { name: image("web"), architecture: "arm64".into(), manifest: manifest() };
    vec![
        row(Request::Ping),
        row(Request::Status),
        row(Request::Nodes),
        row(Request::MissingBlobs(vec![digest(1), digest(2)])),
        row(Request::PutBlob(descriptor())),
        row(put),
        row(Request::Images),
        row(Request::RemoveImage(image("web"))),
        row(Request::Run(Box::new(run))),
        row(Request::Containers { all_accounts: true }),
        row(Request::Inspect(selector())),
        row(Request::Wait { container: selector(), until: WaitUntil::Ended }),
        row(Request::Stop { container: selector(), grace_seconds: Some(10) }),
        row(Request::Start(selector())),
        row(Request::Remove { container: selector(), force: true }),
        row(Request::Signal { container: selector(), signal: 15 }),
        row(Request::Connect(connect())),
        row(PublishedOn::Broker),
        row(PublishedOn::Node),
        row(Party::Container(selector())),
        row(Party::Labelled { key: "k".into(), value: "v".into() }),
        row(Request::Disconnect(connect())),
        row(Request::Connections),
        row(Request::Exec { container: selector(), spec: exec() }),
        row(Request::Attach(selector())),
        row(Request::Logs { container: selector(), query: logs() }),
        row(Request::Tunnel { container: selector(), port: 80, transport: Transport::Tcp }),
        row(Request::CreateToken { role: Role::User, lifetime_seconds: 600 }),
        row(Request::Accounts),
        row(Request::RemoveAccount(AccountId(7))),
        row(Request::CrashNode(NodeIndex(2))),
        row(Request::Events),
        row(Request::Rename { container: selector(), name: name("front") }),
        row(Request::Stats(selector())),
        row(Request::Processes(selector())),
        row(Request::Copy { container: selector(), copy: CopySpec::In { path: "/a".into() } }),
        row(Request::Pause { container: selector(), paused: true }),
        row(Request::Ready { container: selector(), probe: Some(Probe::Tcp { port: 80 }), timeout_ms: 1000 }),
        row(Request::Wake(selector())),
        row(Request::StartClean(selector())),
        row(Request::Changes { container: selector(), query: ChangesQuery::Names }),
        row(label_node()),
        row(Request::ReadBlob(digest(1))),
        row(ContainerSelector::Id(ContainerId(300))),
        row(ContainerSelector::Name(name("web"))),
        row(WaitUntil::Started),
        row(WaitUntil::Ended),
    ]
}

fn replies() -> Vec<Row> {
    let status = StatusInfo {
        account: account(),
        location: name("demo"),
        software: "w 1".into(),
        uptime_seconds: 5,
        now_seconds: 6,
    };
    let connection = ConnectionInfo {
        from: ContainerId(1),
        from_name: name("probe"),
        to: ContainerId(2),
        to_name: name("web"),
        port: 80,
        transport: Transport::Tcp,
    };
    let rule = RuleInfo {
        from: "probe".into(),
        to: "label:app=web".into(),
        port: 80,
        transport: Transport::Tcp,
        connections: 1,
    };
    let process = ProcessInfo {
        pid: 1,
        parent: 0,
        uid: 33,
        state: 'S',
        cpu_ms: 5,
        resident_bytes: 4096,
        command: "sleep 1d".into(),
    };
    vec![
        row(Reply::Error(error())),
        row(Reply::Done),
        row(Reply::Status(status)),
        row(Reply::Nodes(vec![node_info()])),
        row(Reply::Missing(vec![digest(1)])),
        row(Reply::Blob { size: 1000 }),
        row(Reply::Image(image_info())),
        row(Reply::Images(vec![])),
        row(Reply::Container(Box::new(container_info()))),
        row(Reply::Containers(vec![])),
        row(Reply::Connections { connections: vec![connection], rules: vec![rule] }),
        row(Reply::Token { text: "wry1-user-x".into(), expires_seconds: 9 }),
        row(Reply::Accounts(vec![account()])),
        row(Reply::Stats(ContainerStats { time_ms: 1, pids: Some(2), ..ContainerStats::default() })),
        row(Reply::Processes(vec![process])),
        row(Reply::Base { manifest: manifest(), config: vec![1, 2, 3] }),
    ]
}

fn events() -> Vec<Row> {
    vec![
        row(Event::Container(Box::new(container_info()))),
        row(Event::ContainerRemoved(ContainerId(300))),
        row(Event::Node { index: NodeIndex(2), connected: false }),
        row(Event::Lost { count: 4 }),
    ]
}

fn node() -> Vec<Row> {
    let stopped = Want::Stopped { signal: 15, grace_seconds: 10 };
    let sync = NodeDesired {
        index: NodeIndex(2),
        overlay: overlay(),
        containers: vec![desired()],
        network: network(),
        plane: 1,
    };
    let exec_request = RoutedRequest::Exec { container: container(), spec: exec() };
    vec![
        row(NodeCall::Control(Box::new(NodeHello {
            facts: facts(),
            load: load(),
            inventory: vec![report()],
        }))),
        row(NodeCall::FetchBlob(digest(1))),
        row(NodeCall::Web { container: ContainerId(1), tls: true }),
        row(FromNode::Load(load())),
        row(FromNode::Container(report())),
        row(FromNode::Removed(container())),
        row(FromNode::Network { revision: 9, error: Some("no".into()) }),
        row(FromNode::Keys([[1; 32], [2; 32]])),
        row(FromNode::Condition { container: container(), condition: condition() }),
        row(ToNode::Sync(sync)),
        row(ToNode::Container(Box::new(ContainerDesired { spec: spec(), want: stopped, ..desired() }))),
        row(ToNode::Remove(ContainerId(300))),
        row(ToNode::Network(network())),
        row(ToNode::Rekey(1)),
        row(ToNode::Plane(1)),
        row(Want::Running),
        row(stopped),
        row(Transport::Tcp),
        row(Transport::Udp),
        row(Routed { account: AccountId(7), request: exec_request.clone() }),
        row(exec_request),
        row(RoutedRequest::Attach { container: container() }),
        row(RoutedRequest::Logs { container: container(), query: logs() }),
        row(RoutedRequest::Tunnel { container: container(), port: 80, transport: Transport::Udp }),
        row(RoutedRequest::Signal { container: container(), signal: 9 }),
        row(RoutedRequest::Crash),
        row(RoutedRequest::Stats { container: container() }),
        row(RoutedRequest::Processes { container: container() }),
        row(RoutedRequest::Copy { container: container(), copy: CopySpec::Out { path: "/a".into() } }),
        row(RoutedRequest::Pause { container: container(), paused: true }),
        row(RoutedRequest::Ready { container: container(), probe: None, timeout_ms: 1000 }),
        row(RoutedRequest::Changes { container: container(), query: ChangesQuery::Layer }),
        row(ChangesQuery::Names),
        row(ChangesQuery::Layer),
        row(CopySpec::Out { path: "/a".into() }),
        row(CopySpec::In { path: "/a".into() }),
        row(CopySpec::Sftp { user: Some("a".into()) }),
    ]
}

fn containers() -> Vec<Row> {
    vec![
        row(ContainerState::Pending),
        row(ContainerState::Preparing),
        row(ContainerState::Running { pid: 42, started_ms: 1000 }),
        row(ContainerState::Exited { status: ExitStatus::Code(3), finished_ms: 2000 }),
        row(ContainerState::Failed(error())),
        row(ContainerState::Restarting { status: ExitStatus::Code(3), finished_ms: 2000 }),
        row(Setting::Restart(RestartPolicy::OnFailure { most: Some(5) })),
        row(Setting::StopSignal(3)),
        row(Setting::StopSeconds(30)),
        row(Setting::Tmpfs { path: "/tmp".into(), size_bytes: 1 << 20 }),
        row(Setting::AddCapability("NET_RAW".into())),
        row(Setting::DropCapability("ALL".into())),
        row(Setting::Limit { name: "nofile".into(), soft: 10, hard: u64::MAX }),
        row(Setting::Sysctl { name: "net.core.somaxconn".into(), value: "8".into() }),
        row(Setting::Nameserver(Ipv4Addr::new(9, 9, 9, 9))),
        row(Setting::Host { name: "db".into(), address: Ipv4Addr::new(10, 2, 0, 2) }),
        row(Setting::Attended),
        row(Setting::Init),
        row(Setting::Device { device: "/dev/i2c-1".into(), path: "/dev/i2c".into() }),
        row(Setting::Constraint(constraint())),
        row(Setting::Files(descriptor())),
        row(Setting::Health(health_check())),
        row(Setting::NoHealth),
        row(Setting::Asleep),
        row(Setting::Egress(Egress::Lan(Prefix::new(Ipv4Addr::new(192, 168, 50, 0), 24)))),
        row(Subject::Id),
        row(Subject::Hostname),
        row(Subject::Architecture),
        row(Subject::Label("shelf".into())),
        row(Probe::Exec(vec!["true".into()])),
        row(Probe::Tcp { port: 80 }),
        row(Probe::Http { port: 80, path: "/".into() }),
        row(Health::Starting),
        row(Health::Healthy),
        row(Health::Unhealthy),
        row(OnUnhealthy::Tell),
        row(OnUnhealthy::Kill),
        row(RestartPolicy::No),
        row(RestartPolicy::OnFailure { most: None }),
        row(RestartPolicy::Always),
        row(LogSince::Time(1000)),
        row(LogSince::Age(1000)),
        row(ExitStatus::Code(3)),
        row(ExitStatus::Signal(9)),
        row(ExitStatus::OutOfMemory),
        row(Media::Config),
        row(Media::LayerTar),
        row(Media::LayerTarGzip),
        row(Media::LayerTarZstd),
        row(Channel::Stdin),
        row(Channel::Stdout),
        row(Channel::Stderr),
        row(Frame::Data { channel: Channel::Stdout, bytes: vec![1, 2, 3] }),
        row(Frame::End(Channel::Stdin)),
        row(Frame::Resize { rows: 24, columns: 80 }),
        row(Frame::Signal(2)),
        row(Frame::Exit(ExitStatus::Code(0))),
        row(Frame::Error(error())),
        row(Frame::Dropped { bytes: 5 }),
        row(Frame::Time(1000)),
    ]
}
