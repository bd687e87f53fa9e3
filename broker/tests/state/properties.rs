//! Random lives of a small cluster. Whatever happens, some things hold.
use crate::world::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use wherry_broker::record::{Key, Phase, Record};
use wherry_broker::state::{Answer, Input, Output, RequestId, SessionId};
use wherry_protocol::message::*;
use wherry_protocol::*;

/// Something that somebody does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Run { user: u8, name: u8, detached: bool, auto_remove: bool, port: Option<u16>, node: Option<u8> },
    On { user: u8, container: u8, what: u8 },
    Connect { user: u8, from: u8, to: u8, port: u16 },
    Disconnect { user: u8, from: u8, to: u8, port: u16 },
    State { board: u8, container: u8, generation: u8, state: u8 },
    Removed { board: u8, container: u8 },
    Applied { board: u8, back: u8, fails: bool },
    BoardLeaves(u8),
    BoardArrives { board: u8, inventory: Vec<(u8, u8, u8)>, boot: u8 },
    UserLeaves(u8),
    UserArrives(u8),
    Push { user: u8, image: u8 },
    RemoveImage { user: u8, image: u8 },
    RemoveAccount(u8),
    Time(u32),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), 0..6_u8, any::<bool>(), any::<bool>(), proptest::option::of(8000..8003_u16), proptest::option::of(1..4_u8))
            .prop_map(|(user, name, detached, auto_remove, port, node)| Step::Run { user, name, detached, auto_remove, port, node }),
        6 => (any::<u8>(), any::<u8>(), 0..12_u8).prop_map(|(user, container, what)| Step::On { user, container, what }),
        5 => (any::<u8>(), any::<u8>(), any::<u8>(), 80..82_u16)
            .prop_map(|(user, from, to, port)| Step::Connect { user, from, to, port }),
        2 => (any::<u8>(), any::<u8>(), any::<u8>(), 80..82_u16)
            .prop_map(|(user, from, to, port)| Step::Disconnect { user, from, to, port }),
        8 => (any::<u8>(), any::<u8>(), 0..3_u8, 0..5_u8)
            .prop_map(|(board, container, generation, state)| Step::State { board, container, generation, state }),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(board, container)| Step::Removed { board, container }),
        6 => (any::<u8>(), 0..3_u8, proptest::bool::weighted(0.1))
            .prop_map(|(board, back, fails)| Step::Applied { board, back, fails }),
        2 => any::<u8>().prop_map(Step::BoardLeaves),
        3 => (any::<u8>(), proptest::collection::vec((any::<u8>(), 0..3_u8, 0..5_u8), 0..6), 0..3_u8)
            .prop_map(|(board, inventory, boot)| Step::BoardArrives { board, inventory, boot }),
        2 => any::<u8>().prop_map(Step::UserLeaves),
        3 => any::<u8>().prop_map(Step::UserArrives),
        2 => (any::<u8>(), 0..2_u8).prop_map(|(user, image)| Step::Push { user, image }),
        1 => (any::<u8>(), 0..2_u8).prop_map(|(user, image)| Step::RemoveImage { user, image }),
        1 => any::<u8>().prop_map(Step::RemoveAccount),
        3 => (0..200_000_u32).prop_map(Step::Time),
        1 => Just(Step::Restart),
    ]
}

const USERS: [u8; 3] = [10, 11, 12];
const BOARDS: [u8; 3] = [100, 101, 102];

struct Cluster {
    world: World,
    admin: SessionId,
    sessions: BTreeMap<u8, SessionId>,
    /// Whose session, for the check that nobody reads what is another's.
    accounts: BTreeMap<SessionId, AccountId>,
    asked: BTreeMap<RequestId, SessionId>,
    blobs: BTreeSet<Digest>,
}

impl Cluster {
    fn new() -> Self {
        let mut world = World::new();
        let admin = world.admin(1).session;
        for number in USERS {
            world.enrol(number, Role::User);
        }
        for number in BOARDS {
            world.enrol(number, Role::Node);
        }
        let mut cluster = Self {
            world,
            admin,
            sessions: BTreeMap::new(),
            accounts: BTreeMap::new(),
            asked: BTreeMap::new(),
            blobs: BTreeSet::new(),
        };
        for number in USERS {
            cluster.arrive_user(number);
            cluster.push(number, 0);
        }
        for number in BOARDS {
            cluster.arrive_board(number, Vec::new(), 0);
        }
        cluster
    }

    fn account(&self, number: u8) -> Option<AccountId> {
        self.world.store.iter().find_map(|(key, record)| match (key, record) {
            (Key::Account(id), Record::Account(account)) if account.key == crate::world::key(number) => {
                Some(*id)
            }
            _ => None,
        })
    }

    fn arrive_user(&mut self, number: u8) {
        if let Some(account) = self.account(number)
            && let Ok(session) = self.world.open(number)
        {
            self.sessions.insert(number, session);
            self.accounts.insert(session, account);
        }
    }

    fn arrive_board(&mut self, number: u8, inventory: Vec<ContainerReport>, boot: u8) {
        if let Ok(session) = self.world.open(number) {
            self.sessions.insert(number, session);
            let facts = NodeFacts { boot_id: [boot; 16], ..facts(number) };
            let hello = Box::new(NodeHello { facts, load: load(), inventory });
            self.step(Input::Hello { session, hello });
        }
    }

    fn session(&self, numbers: &[u8], choice: u8) -> Option<(u8, SessionId)> {
        let number = numbers[usize::from(choice) % numbers.len()];
        self.sessions.get(&number).map(|session| (number, *session))
    }

    fn container(&self, choice: u8) -> ContainerId {
        let ids: Vec<ContainerId> = self
            .world
            .store
            .keys()
            .filter_map(|key| match key {
                Key::Container(id) => Some(*id),
                _ => None,
            })
            .collect();
        // Now and then one that never was.
        ids.get(usize::from(choice) % (ids.len() + 1)).copied().unwrap_or(ContainerId(9999))
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let out = self.world.step(input);
        self.note(&out);
        out
    }

    /// What came out must be for those who may see it.
    fn note(&mut self, out: &[Output]) {
        for output in out {
            match output {
                Output::Answer { request, answer: Answer::Reply(reply) } => {
                    if let Some(account) =
                        self.asked.get(request).and_then(|session| self.accounts.get(session))
                    {
                        self.check_reply(*account, reply);
                    }
                }
                Output::Answer { request, answer: Answer::Route { routed, .. } } => {
                    let account = self.asked.get(request).and_then(|session| self.accounts.get(session));
                    assert_eq!(account, Some(&routed.account));
                }
                Output::Event { account, event: Event::Container(info) } => {
                    assert_eq!(*account, Some(info.account))
                }
                Output::DeleteBlob(digest) => drop(self.blobs.remove(digest)),
                Output::Close(session) => drop(self.world.leave(*session)),
                _ => {}
            }
        }
    }

    fn check_reply(&self, account: AccountId, reply: &Reply) {
        match reply {
            Reply::Container(info) => assert_eq!(info.account, account),
            Reply::Containers(infos) => assert!(infos.iter().all(|info| info.account == account)),
            Reply::Status(status) => assert_eq!(status.account.id, account),
            Reply::Accounts(_) | Reply::Token { .. } => panic!("only an admin may see this"),
            _ => {}
        }
    }

    fn ask(&mut self, session: SessionId, body: Request) {
        let request = RequestId(self.world.number());
        self.asked.insert(request, session);
        let fresh = [u8::try_from(request.0 % 256).expect("a byte"); 16];
        self.step(Input::Ask { request, session, body: Box::new(body), fresh });
    }

    fn push(&mut self, number: u8, image: u8) {
        let Some(session) = self.sessions.get(&number).copied() else { return };
        // All users have the same bytes: they share blobs on disk, and must not notice.
        let blobs = [descriptor(&[image], Media::Config), descriptor(b"shared layer", Media::LayerTar)];
        for blob in &blobs {
            let request = RequestId(self.world.number());
            self.asked.insert(request, session);
            let body = Box::new(Request::PutBlob(blob.clone()));
            let out = self.step(Input::Ask { request, session, body, fresh: [0; 16] });
            if reply(&out, request) == Some(Reply::Done) {
                self.blobs.insert(blob.digest);
                self.step(Input::Stored { request, session, blob: blob.clone() });
            }
        }
        let [config, layer] = blobs;
        let name = format!("web{image}").parse().expect("an image name");
        let manifest = ImageManifest { config, layers: vec![layer] };
        self.ask(session, Request::PutImage { name, architecture: "amd64".into(), manifest });
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Run { user, name, detached, auto_remove, port, node } => {
                let Some((_, session)) = self.session(&USERS, user) else { return };
                let request = run(&format!("name{name}"), |run| {
                    run.image = "web0".parse().expect("an image name");
                    run.detached = detached;
                    run.node = node.map(|number| format!("n{number}"));
                    run.spec.auto_remove = auto_remove;
                    run.spec.labels = vec![("n".into(), (name % 2).to_string())];
                    run.spec.publish = port.map(|port| PublishedPort::tcp(port, 80)).into_iter().collect();
                });
                self.ask(session, request);
            }
            Step::On { user, container, what } => {
                if let Some((_, session)) = self.session(&USERS, user) {
                    let request = on(ContainerSelector::Id(self.container(container)), what);
                    self.ask(session, request);
                }
            }
            Step::Connect { user, from, to, port } => self.connect(user, from, to, port, Request::Connect),
            Step::Disconnect { user, from, to, port } => {
                self.connect(user, from, to, port, Request::Disconnect)
            }
            Step::State { board, container, generation, state } => {
                let report = report(self.container(container), generation, state);
                self.tell(board, FromNode::Container(report));
            }
            Step::Removed { board, container } => {
                let id = self.container(container);
                self.tell(board, FromNode::Removed(ContainerRef { id, generation: Generation(0) }));
            }
            Step::Applied { board, back, fails } => self.applied(board, back, fails),
            Step::BoardLeaves(board) => self.leave(&BOARDS, board),
            Step::UserLeaves(user) => self.leave(&USERS, user),
            Step::BoardArrives { board, inventory, boot } => {
                let number = BOARDS[usize::from(board) % BOARDS.len()];
                let inventory = inventory
                    .into_iter()
                    .map(|(container, generation, state)| {
                        report(self.container(container), generation, state)
                    })
                    .collect();
                self.arrive_board(number, inventory, boot);
            }
            Step::UserArrives(user) => self.arrive_user(USERS[usize::from(user) % USERS.len()]),
            Step::Push { user, image } => self.push(USERS[usize::from(user) % USERS.len()], image),
            Step::RemoveImage { user, image } => {
                if let Some((_, session)) = self.session(&USERS, user) {
                    let name = format!("web{image}").parse().expect("an image name");
                    self.ask(session, Request::RemoveImage(name));
                }
            }
            Step::RemoveAccount(number) => {
                // Only sometimes: a cluster without users is not much of one.
                if number % 8 == 0
                    && let Some(account) = self.account(USERS[usize::from(number / 8) % USERS.len()])
                {
                    self.ask(self.admin, Request::RemoveAccount(account));
                }
            }
            Step::Time(milliseconds) => {
                let out = self.world.wait(milliseconds.into());
                self.note(&out);
            }
            Step::Restart => {
                self.world.restart();
                self.sessions.clear();
                self.admin = self.world.open(1).expect("known");
            }
        }
    }

    fn connect(&mut self, user: u8, from: u8, to: u8, port: u16, make: fn(ConnectRequest) -> Request) {
        let Some((_, session)) = self.session(&USERS, user) else { return };
        // Some of them by label.
        let party = |number: u8| match number % 4 {
            0 => Party::Labelled { key: "n".into(), value: (number / 4 % 2).to_string() },
            _ => Party::Container(ContainerSelector::Id(self.container(number))),
        };
        let (from, to) = (party(from), party(to));
        self.ask(session, make(ConnectRequest { from, to, port, transport: Transport::Tcp }));
    }

    fn tell(&mut self, board: u8, message: FromNode) {
        if let Some((_, session)) = self.session(&BOARDS, board) {
            self.step(Input::Report { session, message });
        }
    }

    fn applied(&mut self, board: u8, back: u8, fails: bool) {
        let number = BOARDS[usize::from(board) % BOARDS.len()];
        let account = self.account(number);
        let revision = self.world.store.values().find_map(|record| match record {
            Record::Node(node) if Some(node.account) == account => Some(node.revision),
            _ => None,
        });
        if let Some(revision) = revision {
            let error = fails.then(|| "no".to_owned());
            let revision = revision.saturating_sub(back.into());
            self.tell(board, FromNode::Network { revision, error });
        }
    }

    fn leave(&mut self, numbers: &[u8], choice: u8) {
        let number = numbers[usize::from(choice) % numbers.len()];
        if let Some(session) = self.sessions.remove(&number) {
            self.step(Input::Closed(session));
        }
    }

    fn check(&self) {
        let store = &self.world.store;
        assert_eq!(&self.world.broker.durable(), store, "the store holds what the broker remembers");
        let mut addresses = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut ports = std::collections::BTreeMap::new();
        for (key, record) in store {
            match (key, record) {
                (Key::Container(id), Record::Container(container)) => {
                    assert!(addresses.insert(container.address), "{id} has an address twice");
                    assert_eq!(container.address.octets()[1], container.node.0);
                    let present = container.is_present();
                    assert!(!present || names.insert((container.account, container.name.clone())));
                    assert!(!present || store.contains_key(&Key::Account(container.account)));
                    for published in container.spec.publish.iter().filter(|_| present) {
                        let twice = ports.insert(published.key(), published.clone());
                        assert!(twice.is_none(), "a port is published twice");
                    }
                }
                (Key::Link(link), _) => {
                    for end in [link.from, link.to] {
                        let Some(Record::Container(end)) = store.get(&Key::Container(end)) else {
                            panic!("a connection leads nowhere: {link:?}");
                        };
                        assert!(!matches!(end.phase, Phase::Removing { .. }));
                    }
                }
                (Key::Image(account, name), Record::Image(image)) => {
                    for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
                        assert!(store.contains_key(&Key::Hold(*account, blob.digest)), "{name} lacks a blob");
                    }
                }
                _ => {}
            }
        }
        assert_eq!(self.world.broker.published_ports(), ports);
        assert_eq!(
            self.world.broker.blobs().into_keys().collect::<BTreeSet<_>>(),
            self.blobs,
            "blobs on disk"
        );
    }
}

fn on(container: ContainerSelector, what: u8) -> Request {
    match what {
        0 => Request::Inspect(container),
        1 => Request::Wait { container, until: WaitUntil::Started },
        2 => Request::Wait { container, until: WaitUntil::Ended },
        3 => Request::Stop { container, grace_seconds: Some(5) },
        4 => Request::Start(container),
        5 => Request::Remove { container, force: false },
        6 => Request::Remove { container, force: true },
        7 => Request::Attach(container),
        8 => Request::Logs { container, query: LogQuery::default() },
        9 => Request::Tunnel { container, port: 80, transport: Transport::Tcp },
        10 => Request::Signal { container, signal: 15 },
        _ => Request::Containers { all_accounts: false },
    }
}

fn report(id: ContainerId, generation: u8, state: u8) -> ContainerReport {
    let container = ContainerRef { id, generation: Generation(generation.into()) };
    let state = match state {
        0 => ContainerState::Pending,
        1 => ContainerState::Preparing,
        2 => RUNNING,
        3 => EXITED,
        _ => failed(),
    };
    ContainerReport { container, state, restarts: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_some_things_hold(steps in proptest::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.take(step);
            cluster.check();
        }
        cluster.world.restart();
    }
}
