//! A broker, what its store would hold, and short words for what happens to it.
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use wherry_broker::record::{Change, Key, Record};
use wherry_broker::state::{
    Answer, Broker, Identity, Input, Output, OverlayChange, RequestId, SessionId, Time,
};
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::*;

pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) store: BTreeMap<Key, Record>,
    pub(crate) now: Time,
    pub(crate) commits: usize,
    next: u64,
}

pub(crate) fn identity() -> Identity {
    Identity {
        key: PublicKey([0xbb; 32]),
        location: "test".parse().expect("a name"),
        software: "wherry-broker test".into(),
    }
}

pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

/// A board with this number as key, and its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Board {
    pub(crate) session: SessionId,
}

/// A user, likewise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) number: u8,
    pub(crate) account: AccountId,
    pub(crate) session: SessionId,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Time { unix_ms: 1_000_000_000, mono_ms: 1_000 };
        let store = BTreeMap::new();
        let broker = Broker::load(now, identity(), store.clone()).expect("nothing is consistent");
        Self { broker, store, now, commits: 0, next: 1 }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// One input; the store follows, and must hold what the broker thinks it holds.
    pub(crate) fn step(&mut self, input: Input) -> Vec<Output> {
        let out = self.broker.handle(self.now, input);
        self.keep(&out);
        out
    }

    /// What a start with this configuration makes of the containers' addresses.
    pub(crate) fn settle(&mut self, overlay: Option<&str>) -> Result<(), OverlayChange> {
        let wanted = overlay.map(|text| text.parse().expect("an overlay"));
        let out = self.broker.settle_overlay(wanted, [self.next as u8; 5])?;
        self.keep(&out);
        Ok(())
    }

    fn keep(&mut self, out: &[Output]) {
        for (position, output) in out.iter().enumerate() {
            if let Output::Store(changes) = output {
                assert_eq!(position, 0, "written before anything becomes visible");
                assert!(!changes.is_empty());
                self.commits += 1;
                for change in changes {
                    match change.clone() {
                        Change::Put(key, record) => drop(self.store.insert(key, record)),
                        Change::Delete(key) => drop(self.store.remove(&key)),
                    }
                }
            }
        }
    }

    pub(crate) fn wait(&mut self, milliseconds: u64) -> Vec<Output> {
        self.now.unix_ms += milliseconds;
        self.now.mono_ms += milliseconds;
        self.step(Input::Tick)
    }

    /// The power is cut and comes back.
    pub(crate) fn restart(&mut self) {
        assert_eq!(self.broker.durable(), self.store);
        self.broker =
            Broker::load(self.now, identity(), self.store.clone()).expect("what was stored is consistent");
        assert_eq!(self.broker.durable(), self.store);
    }

    pub(crate) fn enrol(&mut self, number: u8, role: Role) -> AccountId {
        let secret = TokenSecret([number; 16]);
        self.step(Input::Adopt { hash: secret.hash(), role, expires_seconds: u64::MAX });
        match self.claim(number, secret, role) {
            EnrolReply::Enrolled { account, .. } => account,
            EnrolReply::Refused(error) => panic!("not enrolled: {error}"),
        }
    }

    pub(crate) fn claim(&mut self, number: u8, secret: TokenSecret, role: Role) -> EnrolReply {
        let request = RequestId(self.number());
        let label = format!("host{number}").parse().expect("a name");
        let out = self.step(Input::Enrol {
            request,
            key: key(number),
            claim: EnrolRequest { role, secret, label },
        });
        match answer(&out, request) {
            Some(Answer::Enrol(reply)) => reply,
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn open(&mut self, number: u8) -> Result<SessionId, WireError> {
        let (request, session) = (RequestId(self.number()), SessionId(self.number()));
        let out = self.step(Input::Open { request, session, key: key(number) });
        match answer(&out, request) {
            Some(Answer::Session(result)) => result.map(|_| session),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn user(&mut self, number: u8) -> User {
        let account = self.enrol(number, Role::User);
        User { number, account, session: self.open(number).expect("known") }
    }

    pub(crate) fn admin(&mut self, number: u8) -> User {
        let account = self.enrol(number, Role::Admin);
        User { number, account, session: self.open(number).expect("known") }
    }

    pub(crate) fn back(&mut self, user: &mut User) {
        user.session = self.open(user.number).expect("known");
    }

    pub(crate) fn leave(&mut self, session: SessionId) -> Vec<Output> {
        self.step(Input::Closed(session))
    }

    /// Enrols and connects a board.
    pub(crate) fn board(&mut self, number: u8) -> Board {
        self.enrol(number, Role::Node);
        self.arrive(number, facts(number), Vec::new()).0
    }

    /// Connects a board with this inventory; what it was told.
    pub(crate) fn arrive(
        &mut self,
        number: u8,
        facts: NodeFacts,
        inventory: Vec<ContainerReport>,
    ) -> (Board, Vec<ToNode>) {
        let board = Board { session: self.open(number).expect("known") };
        let hello = Box::new(NodeHello { facts, load: load(), inventory });
        let out = self.step(Input::Hello { session: board.session, hello });
        (board, told(&out, board))
    }

    pub(crate) fn report(&mut self, board: Board, message: FromNode) -> Vec<Output> {
        self.step(Input::Report { session: board.session, message })
    }

    pub(crate) fn state(&mut self, board: Board, info: &ContainerInfo, state: ContainerState) -> Vec<Output> {
        let container = ContainerRef { id: info.id, generation: info.generation };
        self.report(board, FromNode::Container(ContainerReport { container, state, restarts: 0 }))
    }

    pub(crate) fn removed(&mut self, board: Board, id: ContainerId) -> Vec<Output> {
        self.report(board, FromNode::Removed(ContainerRef { id, generation: Generation(0) }))
    }

    pub(crate) fn applied(&mut self, board: Board, revision: u64) -> Vec<Output> {
        self.report(board, FromNode::Network { revision, error: None })
    }

    /// A request with its number and all that came out.
    pub(crate) fn ask(&mut self, session: SessionId, body: Request) -> (RequestId, Vec<Output>) {
        let request = RequestId(self.number());
        let fresh = [u8::try_from(request.0 % 251).expect("small"); 16];
        let out = self.step(Input::Ask { request, session, body: Box::new(body), fresh });
        (request, out)
    }

    /// A request that is answered at once.
    pub(crate) fn reply(&mut self, user: &User, body: Request) -> Reply {
        let (request, out) = self.ask(user.session, body);
        reply(&out, request).unwrap_or_else(|| panic!("no reply in {out:?}"))
    }

    pub(crate) fn refused(&mut self, user: &User, body: Request) -> WireError {
        match self.reply(user, body) {
            Reply::Error(error) => error,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub(crate) fn info(&mut self, user: &User, body: Request) -> ContainerInfo {
        match self.reply(user, body) {
            Reply::Container(info) => *info,
            other => panic!("expected a container, got {other:?}"),
        }
    }

    pub(crate) fn inspect(&mut self, user: &User, id: ContainerId) -> ContainerInfo {
        self.info(user, Request::Inspect(ContainerSelector::Id(id)))
    }

    pub(crate) fn upload(&mut self, user: &User, bytes: &[u8], media: Media) -> Descriptor {
        let blob = descriptor(bytes, media);
        let (request, out) = self.ask(user.session, Request::PutBlob(blob.clone()));
        match reply(&out, request) {
            Some(Reply::Done) => {
                let out = self.step(Input::Stored { request, session: user.session, blob: blob.clone() });
                assert_eq!(reply(&out, request), Some(Reply::Done));
            }
            Some(Reply::Blob { .. }) => {}
            other => panic!("unexpected {other:?}"),
        }
        blob
    }

    /// An image called `web` of one layer with the user's own bytes.
    pub(crate) fn image(&mut self, user: &User, name: &str) -> ImageManifest {
        let config = self.upload(user, name.as_bytes(), Media::Config);
        let layer = self.upload(user, format!("layer of {name}").as_bytes(), Media::LayerTar);
        let manifest = ImageManifest { config, layers: vec![layer] };
        let put = Request::PutImage {
            name: name.parse().expect("an image name"),
            architecture: "amd64".into(),
            manifest: manifest.clone(),
        };
        assert!(matches!(self.reply(user, put), Reply::Image(_)));
        manifest
    }

    pub(crate) fn run(&mut self, user: &User, name: &str, node: &str) -> ContainerInfo {
        self.info(user, run(name, |run| run.node = Some(node.into())))
    }

    /// Runs a container and reports that it started.
    pub(crate) fn running(&mut self, user: &User, name: &str, board: Board, node: &str) -> ContainerInfo {
        let info = self.run(user, name, node);
        self.state(board, &info, RUNNING);
        self.inspect(user, info.id)
    }
}

/// A user with an image called `web`, and one board.
pub(crate) fn world() -> (World, User, Board) {
    let mut world = World::new();
    let user = world.user(10);
    let board = world.board(100);
    world.image(&user, "web");
    (world, user, board)
}

pub(crate) const RUNNING: ContainerState = ContainerState::Running { pid: 7, started_ms: 1 };
pub(crate) const RESTARTING: ContainerState =
    ContainerState::Restarting { status: ExitStatus::Code(1), finished_ms: 2 };
pub(crate) const EXITED: ContainerState =
    ContainerState::Exited { status: ExitStatus::Code(0), finished_ms: 2 };

pub(crate) fn failed() -> ContainerState {
    ContainerState::Failed(WireError::new(ErrorCode::StartFailed, "cannot start sh: no such file"))
}

pub(crate) fn run(name: &str, change: impl FnOnce(&mut RunRequest)) -> Request {
    let mut request = RunRequest {
        image: "web".parse().expect("an image name"),
        name: Some(name.parse().expect("a name")),
        node: None,
        detached: true,
        spec: ContainerSpec::default(),
    };
    change(&mut request);
    Request::Run(Box::new(request))
}

pub(crate) fn id(info: &ContainerInfo) -> ContainerSelector {
    ContainerSelector::Id(info.id)
}

pub(crate) fn link(from: &ContainerInfo, to: &ContainerInfo) -> ConnectRequest {
    ConnectRequest {
        from: Party::Container(id(from)),
        to: Party::Container(id(to)),
        port: 80,
        transport: Transport::Tcp,
    }
}

pub(crate) fn descriptor(bytes: &[u8], media: Media) -> Descriptor {
    Descriptor { digest: Digest::of(bytes), size: bytes.len() as u64, media }
}

/// Keys of both planes.
pub(crate) fn keys(number: u8) -> WireguardKeys {
    [[number; 32], [number ^ 0xff; 32]]
}

pub(crate) fn facts(number: u8) -> NodeFacts {
    NodeFacts {
        hostname: format!("host{number}"),
        architecture: "amd64".into(),
        cpus: 4,
        memory_bytes: 1 << 30,
        kernel: "6.1".into(),
        software: "test".into(),
        boot_id: [number; 16],
        underlay: Ipv4Addr::new(192, 168, 50, number),
        overlay: true,
        limits: true,
        wireguard: Some(keys(number)),
    }
}

pub(crate) fn load() -> NodeLoad {
    NodeLoad { memory_available_bytes: 512 << 20, ..NodeLoad::default() }
}

pub(crate) fn answer(out: &[Output], wanted: RequestId) -> Option<Answer> {
    out.iter().find_map(|output| match output {
        Output::Answer { request, answer } if *request == wanted => Some(answer.clone()),
        _ => None,
    })
}

pub(crate) fn reply(out: &[Output], wanted: RequestId) -> Option<Reply> {
    match answer(out, wanted) {
        Some(Answer::Reply(reply)) => Some(reply),
        _ => None,
    }
}

pub(crate) fn told(out: &[Output], board: Board) -> Vec<ToNode> {
    out.iter()
        .filter_map(|output| match output {
            Output::ToNode { session, message } if *session == board.session => Some((**message).clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn sync(told: &[ToNode]) -> &NodeDesired {
    match told.first() {
        Some(ToNode::Sync(desired)) => desired,
        other => panic!("expected to be told everything, got {other:?}"),
    }
}

pub(crate) fn network(told: &[ToNode]) -> Option<&NetworkDesired> {
    told.iter().find_map(|message| match message {
        ToNode::Network(network) => Some(network),
        _ => None,
    })
}
