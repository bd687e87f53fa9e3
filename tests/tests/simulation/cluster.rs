//! Time, the network between, and trouble.
use crate::board::{Board, Later};
use crate::check;
use crate::dice::Dice;
use crate::people::{Asked, Person};
use crate::report::Figures;
use std::collections::{BTreeMap, BTreeSet};
use wherry_broker::record::{Change, Key, Record};
use wherry_broker::state::{Answer, Broker, Identity, Input, Output, RequestId, SessionId, Time};
use wherry_node::state::Input as BoardInput;
use wherry_protocol::message::*;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::*;

/// What kind of life it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// As many as one cluster can have (the second octet of the overlay's addresses).
    pub(crate) boards: u64,
    pub(crate) people: u64,
    /// People ask and things break for so long, in milliseconds.
    pub(crate) busy_ms: u64,
    /// Then nothing new happens for so long.
    pub(crate) rest_ms: u64,
    pub(crate) trouble: bool,
}

impl Plan {
    pub(crate) const PEACE: Self =
        Self { seed: 0, boards: 254, people: 40, busy_ms: 120_000, rest_ms: 120_000, trouble: false };
    pub(crate) const TROUBLE: Self =
        Self { busy_ms: 240_000, rest_ms: 240_000, trouble: true, ..Self::PEACE };
}

/// Time without a word after which a board gives up its session, in milliseconds.
const BOARD_PATIENCE_MS: u64 = 20_000;
/// Time between a board's load reports, in milliseconds.
const LOAD_MS: u64 = 5_000;

pub(crate) enum Event {
    ToBoard { board: usize, session: SessionId, message: Box<ToNode> },
    ToBroker { board: usize, session: SessionId, message: FromNode },
    Hello { board: usize, session: SessionId, hello: Box<NodeHello> },
    Kernel { board: usize, boot: u32, service: u32, what: Later },
    BoardTick { board: usize },
    Load { board: usize, session: SessionId },
    GivesUp { board: usize, session: SessionId },
    Dial { board: usize },
    Person(usize),
    Trouble,
    BrokerFalls,
    BrokerRises,
}

pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) now_ms: u64,
    pub(crate) broker: Option<Broker>,
    pub(crate) store: BTreeMap<Key, Record>,
    pub(crate) boards: Vec<Board>,
    pub(crate) people: Vec<Person>,
    pub(crate) asked: BTreeMap<RequestId, Asked>,
    pub(crate) figures: Figures,
    queue: BTreeMap<(u64, u64), Event>,
    /// When the last message of a session arrives, so that none overtakes it: to the board, to the broker.
    arrivals: BTreeMap<SessionId, (u64, u64)>,
    /// Sessions over which nothing comes any more, though one end may not know yet.
    dead: BTreeSet<SessionId>,
    next: u64,
}

fn key(number: u64) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    PublicKey(bytes)
}

/// The keys of boards follow those of people.
const BOARD_KEYS: u64 = 1_000_000;

impl Cluster {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut cluster = Self {
            plan,
            dice: Dice::new(plan.seed),
            now_ms: 1_000,
            broker: None,
            store: BTreeMap::new(),
            boards: (0..usize::try_from(plan.boards).expect("few")).map(Board::new).collect(),
            people: Vec::new(),
            asked: BTreeMap::new(),
            figures: Figures::default(),
            queue: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            dead: BTreeSet::new(),
            next: 0,
        };
        cluster.rise();
        for number in 0..plan.people {
            let account = cluster.enrol(number, Role::User);
            cluster.people.push(Person::new(number, account));
        }
        for number in 0..plan.boards {
            cluster.enrol(BOARD_KEYS + number, Role::Node);
            let delay = cluster.dice.between(0, 2_000);
            cluster.after(delay, Event::Dial { board: usize::try_from(number).expect("few") });
        }
        cluster
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn rise(&mut self) {
        let identity = Identity {
            key: PublicKey([1; 32]),
            location: "simulated".parse().expect("a name"),
            software: "wherry-broker simulated".into(),
        };
        let broker = Broker::load(self.time(), identity, self.store.clone()).expect("what was stored holds");
        assert_eq!(broker.durable(), self.store);
        self.broker = Some(broker);
    }

    fn time(&self) -> Time {
        Time { unix_ms: 1_700_000_000_000 + self.now_ms, mono_ms: self.now_ms }
    }

    pub(crate) fn after(&mut self, delay_ms: u64, event: Event) {
        let number = self.number();
        self.queue.insert((self.now_ms + delay_ms, number), event);
    }

    fn enrol(&mut self, number: u64, role: Role) -> AccountId {
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&number.to_le_bytes());
        let secret = TokenSecret(secret);
        self.tell(Input::Adopt { hash: secret.hash(), role, expires_seconds: u64::MAX });
        let request = RequestId(self.number());
        let label = format!("member{number}").parse().expect("a name");
        let claim = EnrolRequest { role, secret, label };
        match self.ask_now(request, Input::Enrol { request, key: key(number), claim }) {
            Some(Answer::Enrol(EnrolReply::Enrolled { account, .. })) => account,
            other => panic!("not enrolled: {other:?}"),
        }
    }

    /// A session with the broker, if it is up.
    pub(crate) fn open(&mut self, number: u64) -> Option<SessionId> {
        let (request, session) = (RequestId(self.number()), SessionId(self.number()));
        match self.ask_now(request, Input::Open { request, session, key: key(number) })? {
            Answer::Session(known) => known.ok().map(|_| session),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn ask_now(&mut self, request: RequestId, input: Input) -> Option<Answer> {
        self.asked.insert(request, Asked::Now(None));
        self.tell(input);
        match self.asked.remove(&request) {
            Some(Asked::Now(answer)) => answer,
            _ => None,
        }
    }

    /// One input of the broker, and all that follows from it. Nothing follows while it is down.
    pub(crate) fn tell(&mut self, input: Input) {
        let now = self.time();
        let Some(broker) = &mut self.broker else { return };
        for output in broker.handle(now, input) {
            match output {
                Output::Store(changes) => self.write(changes),
                Output::Answer { request, answer } => self.answered(request, answer),
                Output::ToNode { session, message } => self.order(session, message),
                Output::Close(session) => self.broker_closes(session),
                Output::DeleteBlob(_) | Output::Event { .. } | Output::Publish(_) | Output::Web(_) => {}
            }
        }
    }

    fn write(&mut self, changes: Vec<Change>) {
        self.figures.commits += 1;
        self.figures.last_commit_ms = self.now_ms;
        for change in changes {
            self.figures.records += 1;
            match change {
                Change::Put(key, record) => drop(self.store.insert(key, record)),
                Change::Delete(key) => drop(self.store.remove(&key)),
            }
        }
    }

    /// Milliseconds for one message; now and then TCP has to send it again.
    fn latency(&mut self) -> u64 {
        let mut latency = self.dice.between(1, 15);
        while self.plan.trouble && self.dice.percent(2) {
            latency += 200;
        }
        latency
    }

    fn order(&mut self, session: SessionId, message: Box<ToNode>) {
        let latency = self.latency();
        if self.dead.contains(&session) {
            return;
        }
        let Some(board) = self.boards.iter().position(|board| board.session == Some(session)) else { return };
        let arrival = self.arrivals.entry(session).or_default();
        arrival.0 = arrival.0.max(self.now_ms + latency);
        let delay = arrival.0 - self.now_ms;
        self.after(delay, Event::ToBoard { board, session, message });
    }

    fn inform(&mut self, board: usize, message: FromNode) {
        let latency = self.latency();
        let Some(session) = self.boards[board].session.filter(|session| !self.dead.contains(session)) else {
            return;
        };
        let arrival = self.arrivals.entry(session).or_default();
        arrival.1 = arrival.1.max(self.now_ms + latency);
        let delay = arrival.1 - self.now_ms;
        self.after(delay, Event::ToBroker { board, session, message });
    }

    fn broker_closes(&mut self, session: SessionId) {
        self.dead.insert(session);
        if let Some(board) = self.boards.iter().position(|board| board.session == Some(session)) {
            self.loses_session(board);
        }
    }

    /// A board knows that its session is over, and tries again.
    fn loses_session(&mut self, board: usize) {
        self.boards[board].session = None;
        let delay = self.dice.between(200, 3_000);
        self.after(delay, Event::Dial { board });
    }

    /// From now on nothing comes over this board's connection. `told`: both ends notice at once.
    fn cut(&mut self, board: usize, told: bool) {
        let Some(session) = self.boards[board].session else { return };
        if !self.dead.insert(session) {
            return;
        }
        if told {
            self.tell(Input::Closed(session));
            self.loses_session(board);
        } else {
            self.after(BOARD_PATIENCE_MS, Event::GivesUp { board, session });
        }
    }

    pub(crate) fn live(&mut self) {
        for person in 0..self.people.len() {
            let delay = self.dice.between(3_000, 6_000);
            self.after(delay, Event::Person(person));
        }
        if self.plan.trouble {
            self.after(10_000, Event::Trouble);
            for at in [90_000, 180_000] {
                self.after(at, Event::BrokerFalls);
            }
        }
        let end = self.plan.busy_ms + self.plan.rest_ms;
        loop {
            let due = self.broker.as_ref().and_then(Broker::poll_at).unwrap_or(u64::MAX);
            let next = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            self.now_ms = due.min(next).max(self.now_ms);
            if self.now_ms > end {
                return;
            }
            if due <= next {
                self.tell(Input::Tick);
            } else if let Some((_, event)) = self.queue.pop_first() {
                self.happen(event);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToBoard { board, session, message } => {
                if self.boards[board].session == Some(session) && !self.dead.contains(&session) {
                    self.decide(board, BoardInput::Broker(*message));
                }
            }
            Event::ToBroker { board, session, message } => {
                if self.boards[board].session == Some(session) && !self.dead.contains(&session) {
                    self.tell(Input::Report { session, message });
                }
            }
            Event::Hello { board, session, hello } => {
                if self.boards[board].session == Some(session) && !self.dead.contains(&session) {
                    self.tell(Input::Hello { session, hello });
                    self.after(LOAD_MS, Event::Load { board, session });
                }
            }
            Event::Kernel { board, boot, service, what } => self.kernel(board, boot, service, what),
            Event::BoardTick { board } => self.decide(board, BoardInput::Tick),
            Event::Load { board, session } => {
                if self.boards[board].session == Some(session) {
                    let load = self.boards[board].load();
                    self.inform(board, FromNode::Load(load));
                    self.after(LOAD_MS, Event::Load { board, session });
                }
            }
            Event::GivesUp { board, session } => {
                if self.boards[board].session == Some(session) {
                    self.loses_session(board);
                }
            }
            Event::Dial { board } => self.dial(board),
            Event::Person(person) => self.person(person),
            Event::Trouble => self.trouble(),
            Event::BrokerFalls => self.fall(),
            Event::BrokerRises => self.rise(),
        }
    }

    fn dial(&mut self, board: usize) {
        if self.boards[board].session.is_some() {
            return;
        }
        let number = BOARD_KEYS + u64::try_from(board).expect("few");
        let reachable = self.boards[board].cut_until_ms <= self.now_ms;
        let Some(session) = reachable.then(|| self.open(number)).flatten() else {
            let delay = self.dice.between(500, 3_000);
            return self.after(delay, Event::Dial { board });
        };
        let this = &mut self.boards[board];
        this.session = Some(session);
        let hello = NodeHello { facts: this.facts(), load: this.load(), inventory: this.state.inventory() };
        let latency = self.latency();
        self.arrivals.insert(session, (self.now_ms, self.now_ms + latency));
        self.after(latency, Event::Hello { board, session, hello: Box::new(hello) });
    }

    fn decide(&mut self, board: usize, input: BoardInput) {
        let this = &mut self.boards[board];
        let (reports, later) = this.decide(self.now_ms, input, &mut self.dice);
        let (boot, service, due) = (this.boot, this.service, this.state.poll_at());
        for report in reports {
            self.inform(board, report);
        }
        for what in later {
            let delay = match &what {
                Later::Service(delay, _)
                | Later::Born(delay, _, _)
                | Later::Dies(delay, _, _)
                | Later::Network(delay, _)
                | Later::Gone(delay, _) => *delay,
            };
            self.after(delay, Event::Kernel { board, boot, service, what });
        }
        if let Some(due) = due {
            self.after(due.saturating_sub(self.now_ms).max(1), Event::BoardTick { board });
        }
    }

    fn kernel(&mut self, board: usize, boot: u32, service: u32, what: Later) {
        let this = &mut self.boards[board];
        if this.boot != boot {
            return;
        }
        // What the service had begun ends with it; processes do not.
        let same = this.service == service;
        match what {
            Later::Service(_, input) if same => self.decide(board, input),
            Later::Born(_, container, process) if same => self.born(board, container, process),
            Later::Dies(_, container, status) => {
                if this.kernel.processes.remove(&container).is_some() {
                    let finished_ms = self.now_ms;
                    this.kernel.ended.insert(container, (status, finished_ms));
                    self.decide(board, BoardInput::Exited { container, status, finished_ms });
                }
            }
            Later::Network(_, network) if same => {
                let revision = network.revision;
                this.kernel.network = network;
                check::no_rule_for_another(self);
                self.decide(board, BoardInput::NetworkApplied { revision, error: None });
            }
            Later::Gone(_, container) if same => {
                this.kernel.ended.remove(&container);
                self.decide(board, BoardInput::Removed(container));
            }
            Later::Service(..) | Later::Born(..) | Later::Network(..) | Later::Gone(..) => {}
        }
    }

    fn born(&mut self, board: usize, container: ContainerRef, process: crate::board::Process) {
        let started_ms = self.now_ms;
        let kernel = &mut self.boards[board].kernel;
        // A new life begins with nothing of the last one.
        kernel.ended.retain(|former, _| former.id != container.id);
        kernel.processes.insert(container, process);
        check::no_rule_for_another(self);
        check::one_life_at_a_time(self, container);
        self.decide(board, BoardInput::Started { container, pid: 1, started_ms });
        // Some programs end by themselves.
        if self.dice.percent(20) {
            let delay = self.dice.between(100, 60_000);
            let status = ExitStatus::Code(u8::try_from(self.dice.between(0, 3)).expect("small"));
            let (boot, service) = (self.boards[board].boot, self.boards[board].service);
            let what = Later::Dies(delay, container, status);
            self.after(delay, Event::Kernel { board, boot, service, what });
        }
    }

    fn trouble(&mut self) {
        if self.now_ms >= self.plan.busy_ms {
            return;
        }
        let board = usize::try_from(self.dice.between(0, self.plan.boards - 1)).expect("few");
        match self.dice.between(0, 9) {
            0..=3 => {
                self.figures.cuts += 1;
                self.cut(board, true);
            }
            4..=6 => {
                self.figures.partitions += 1;
                self.boards[board].cut_until_ms = self.now_ms + self.dice.between(1_000, 60_000);
                self.cut(board, false);
            }
            7..=8 => {
                self.figures.crashes += 1;
                self.cut(board, true);
                self.boards[board].begin_again(self.now_ms, &mut self.dice);
            }
            _ => {
                self.figures.reboots += 1;
                self.cut(board, false);
                let this = &mut self.boards[board];
                this.boot += 1;
                this.keys = [[this.boot.to_le_bytes()[0]; 32]; 2];
                this.plane = 0;
                this.kernel = crate::board::Kernel::default();
                this.session = None;
                this.begin_again(self.now_ms, &mut self.dice);
                let delay = self.dice.between(5_000, 20_000);
                self.after(delay, Event::Dial { board });
            }
        }
        let delay = self.dice.between(100, 900);
        self.after(delay, Event::Trouble);
    }

    /// The broker loses power: what it had not written is gone, and so are all sessions.
    fn fall(&mut self) {
        self.figures.falls += 1;
        self.broker = None;
        self.figures.lost += self.asked.len();
        self.asked.clear();
        for person in &mut self.people {
            person.session = None;
        }
        for board in 0..self.boards.len() {
            if let Some(session) = self.boards[board].session {
                self.dead.insert(session);
                self.loses_session(board);
            }
        }
        self.after(3_000, Event::BrokerRises);
    }
}
