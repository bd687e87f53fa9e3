//! What the broker decides, and nothing else: requests, reports and time go in; answers, orders to boards and records
//! to write come out. No clock, no socket, no disk, no randomness of its own, so a whole cluster fits in one test.
//!
//! ```text
//! access      role × request             legal      action × what the container is doing
//! accounts    enrolment, tokens          images     names, blobs and who holds them
//! containers  run … remove               placement  which board, which address, and why
//! network     connections, per board     nodes      sessions of boards, their reports
//! overlay     the addresses of all containers
//! waiting     answers that come later    views      what people are shown
//! live        what changes while a container runs; labels of boards
//! web         names of the web endpoint
//! domains     who may serve names in them
//! ```
mod access;
mod accounts;
mod ask;
mod bounds;
mod callers;
mod containers;
mod domains;
mod images;
mod keys;
mod legal;
mod live;
mod names;
mod network;
mod nodes;
mod overlay;
mod placement;
mod rules;
mod sessions;
mod spec;
mod tables;
mod views;
mod waiting;
mod web;

pub use access::{Reach, authorise};
pub use callers::WebClient;
pub use domains::record_name;
pub use overlay::OverlayChange;
pub use tables::LoadError;
pub use web::{Web, WebBackend, WebCaller, WebHost, WebRoute, WebRule};

use crate::record::{AcmeAccount, Certificate, Change, Key, Record};
use bounds::REKEY_MS;
use nodes::Connected;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tables::Tables;
use waiting::Waiter;
use wherry_protocol::message::{
    Condition, Descriptor, EnrolReply, EnrolRequest, Event, FromNode, NetworkDesired, NodeHello,
    PublishedPort, Reply, Request, Routed, ToNode, Transport,
};
use wherry_protocol::{
    AccountId, ContainerId, Digest, ErrorCode, Name, NodeIndex, PublicKey, Role, WireError,
};

/// Ports of the broker that lead to containers.
pub type PublishedPorts = BTreeMap<(Transport, u16), PublishedPort>;

/// Now, by two clocks: the wall's for people, the monotonic one for deadlines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Unix milliseconds; may jump.
    pub unix_ms: u64,
    /// Milliseconds since some moment before the start; never goes back.
    pub mono_ms: u64,
}

/// One session (TCP connection) as the shell counts them; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One question that waits for its [`Answer`]; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Unpredictable bytes that come with a request: for token secrets and names.
pub type Fresh = [u8; 16];

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A key has proven itself on the session port. Answered by [`Answer::Session`].
    Open {
        /// Whom to answer.
        request: RequestId,
        /// The session, if it is let in.
        session: SessionId,
        /// Who.
        key: PublicKey,
    },
    /// A session is over.
    Closed(SessionId),
    /// A key claims a token on the enrolment port. Answered by [`Answer::Enrol`].
    Enrol {
        /// Whom to answer.
        request: RequestId,
        /// Who.
        key: PublicKey,
        /// With what.
        claim: EnrolRequest,
    },
    /// A token of the configuration; taken over once, however often it is said.
    Adopt {
        /// Hash of its secret.
        hash: Digest,
        /// What it makes of a key.
        role: Role,
        /// Until when it holds, Unix seconds.
        expires_seconds: u64,
    },
    /// A user's request. Answered by [`Answer::Reply`] or [`Answer::Route`], perhaps later.
    Ask {
        /// Whom to answer.
        request: RequestId,
        /// Who asks.
        session: SessionId,
        /// What.
        body: Box<Request>,
        /// Unpredictable bytes.
        fresh: Fresh,
    },
    /// Nobody waits for this answer any more; an upload that was going on has failed.
    Abandon(RequestId),
    /// The blob that `request` was allowed to send is on disk. Answered by a second [`Answer::Reply`].
    Stored {
        /// The request that began it.
        request: RequestId,
        /// Whose session.
        session: SessionId,
        /// What was stored.
        blob: Descriptor,
    },
    /// The store lacks this blob, or it is damaged.
    Lost(Digest),
    /// A board has opened its control stream.
    Hello {
        /// Its session.
        session: SessionId,
        /// What it says.
        hello: Box<NodeHello>,
    },
    /// A board says something on its control stream.
    Report {
        /// Its session.
        session: SessionId,
        /// What it says.
        message: FromNode,
    },
    /// A board wants a blob. Answered by [`Answer::Blob`].
    Fetch {
        /// Whom to answer.
        request: RequestId,
        /// Its session.
        session: SessionId,
        /// Which.
        digest: Digest,
    },
    /// Somebody connected to a published port. Answered by [`Answer::Route`] or an error.
    Visit {
        /// Whom to answer.
        request: RequestId,
        /// The broker's port.
        port: (Transport, u16),
    },
    /// Somebody asks for what a container serves on the web. Answered by [`Answer::Route`] or an error.
    VisitWeb {
        /// Whom to answer.
        request: RequestId,
        /// Which container.
        container: ContainerId,
        /// On which port.
        port: u16,
    },
    /// A container of the board asks the web endpoint. Answered by [`Reply::Done`] or an error.
    CallWeb {
        /// Whom to answer.
        request: RequestId,
        /// The board's session.
        session: SessionId,
        /// Which container.
        container: ContainerId,
    },
    /// What the TXT records of a domain say, after [`Answer::Lookup`]. Answered by a second [`Answer::Reply`].
    LookedUp {
        /// The request that wanted to know.
        request: RequestId,
        /// Whose session.
        session: SessionId,
        /// Which domain.
        domain: String,
        /// The records, or why they are not known.
        found: Result<Vec<Vec<u8>>, String>,
    },
    /// There is an account with the certificate authority.
    AcmeAccount(AcmeAccount),
    /// A certificate by ACME for this name, or why there is none.
    Certified {
        /// Which name.
        host: String,
        /// The certificate.
        result: Result<Box<Certificate>, String>,
    },
    /// Whether anybody is there. Answered by [`Reply::Done`].
    Ping {
        /// Whom to answer.
        request: RequestId,
    },
    /// Time went by; see [`Broker::poll_at`].
    Tick,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Input::Ask`], [`Input::Stored`].
    Reply(Reply),
    /// Open a stream on this board's session, say this, and splice.
    Route {
        /// The board's session.
        session: SessionId,
        /// What to say first.
        routed: Routed,
    },
    /// To [`Input::Open`]: who it is, or why it is not let in.
    Session(Result<(AccountId, Role), WireError>),
    /// To [`Input::Enrol`].
    Enrol(EnrolReply),
    /// To [`Input::Fetch`]: the size in bytes if it may have it.
    Blob(Result<u64, WireError>),
    /// Look up what the TXT records of this domain say, see [`record_name`].
    Lookup(String),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write this, before anything that follows becomes visible. At most one per call, the first.
    Store(Vec<Change>),
    /// Delete this blob: nobody needs it any more.
    DeleteBlob(Digest),
    /// Answer a question.
    Answer {
        /// Which.
        request: RequestId,
        /// With what.
        answer: Answer,
    },
    /// Tell a board.
    ToNode {
        /// Its session.
        session: SessionId,
        /// What.
        message: Box<ToNode>,
    },
    /// Tell those who may see it.
    Event {
        /// Whose it is; `None` is everybody's.
        account: Option<AccountId>,
        /// What happened.
        event: Event,
    },
    /// End a session.
    Close(SessionId),
    /// The ports that should lead to containers, all of them.
    Publish(PublishedPorts),
    /// What should be served on the web, all of it.
    Web(Arc<Web>),
}

/// Facts about this broker that do not change while it runs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The broker's public key, for the tokens it makes.
    pub key: PublicKey,
    /// What the cluster calls itself.
    pub location: Name,
    /// Name and version of the software.
    pub software: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    account: AccountId,
    role: Role,
}

/// What to look at when its time has come; whether it still matters is decided then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Waiter(RequestId),
    Orphan(ContainerId),
    AutoRemove(ContainerId),
    Silence(NodeIndex),
    Unnamed(AccountId, Digest),
    Network(NodeIndex),
    Rekey,
    Plane,
}

/// The broker's memory.
#[derive(Debug)]
pub struct Broker {
    identity: Identity,
    started_ms: u64,
    now: Time,
    tables: Tables,
    sessions: BTreeMap<SessionId, Session>,
    connected: BTreeMap<NodeIndex, Connected>,
    /// Which of the boards' two WireGuard devices tunnels go through; the other gets new keys next.
    plane: u8,
    /// What each board's network should be, as last computed.
    networks: BTreeMap<NodeIndex, NetworkDesired>,
    /// The revision that each board has applied.
    applied: BTreeMap<NodeIndex, u64>,
    waiters: BTreeMap<RequestId, Waiter>,
    uploads: BTreeMap<RequestId, (AccountId, Digest)>,
    /// The session that a non-detached container belongs to; absent while it is orphaned.
    owners: BTreeMap<ContainerId, SessionId>,
    /// When an orphaned container goes, monotonic milliseconds.
    orphans: BTreeMap<ContainerId, u64>,
    /// When a blob that no image names is forgotten, monotonic milliseconds.
    unnamed: BTreeMap<(AccountId, Digest), u64>,
    published: BTreeMap<(Transport, u16), (ContainerId, PublishedPort)>,
    /// How containers that run are, where their boards have said so.
    conditions: BTreeMap<ContainerId, Condition>,
    timers: BTreeSet<(u64, Timer)>,
    publish_changed: bool,
    web: Arc<Web>,
    /// Something happened that what is served on the web may depend on.
    web_changed: bool,
    /// Why there is no certificate by ACME, by name.
    certificate_problems: BTreeMap<String, String>,
    /// Names published since the start.
    publications: u64,
    /// The number of each name's last publication.
    asked: BTreeMap<String, u64>,
    out: Vec<Output>,
}

impl Broker {
    /// A broker with the memory that `records` are.
    ///
    /// # Errors
    /// When they contradict one another; nothing is mended silently.
    pub fn load(now: Time, identity: Identity, records: BTreeMap<Key, Record>) -> Result<Self, LoadError> {
        let tables = Tables::load(records)?;
        let mut broker = Self {
            identity,
            started_ms: now.mono_ms,
            now,
            tables,
            sessions: BTreeMap::new(),
            connected: BTreeMap::new(),
            plane: 0,
            networks: BTreeMap::new(),
            applied: BTreeMap::new(),
            waiters: BTreeMap::new(),
            uploads: BTreeMap::new(),
            owners: BTreeMap::new(),
            orphans: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            published: BTreeMap::new(),
            conditions: BTreeMap::new(),
            timers: BTreeSet::new(),
            publish_changed: false,
            web: Arc::default(),
            web_changed: false,
            certificate_problems: BTreeMap::new(),
            publications: 0,
            asked: BTreeMap::new(),
            out: Vec::new(),
        };
        broker.resume();
        Ok(broker)
    }

    /// What follows from the records when the broker starts: the clocks of grace begin anew.
    fn resume(&mut self) {
        self.resume_rules();
        self.renew_web();
        let nodes: Vec<NodeIndex> = self.tables.nodes.iter().map(|(index, _)| *index).collect();
        for index in nodes {
            let network = self.network_of(index);
            self.networks.insert(index, network);
        }
        let present: Vec<ContainerId> =
            self.tables.containers().filter(|(_, c)| c.is_present()).map(|(id, _)| id).collect();
        for id in present {
            self.adopt_ports(id);
            self.orphan_if_bound(id);
            self.schedule_auto_remove(id);
        }
        self.schedule_unnamed_blobs();
        self.set_timer(self.after(REKEY_MS), Timer::Rekey);
    }

    /// Takes one input and says what is to be done about it.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Output> {
        self.now = now;
        match input {
            Input::Open { request, session, key } => self.open(request, session, key),
            Input::Closed(session) => self.close(session),
            Input::Enrol { request, key, claim } => {
                let reply = self.enrol(key, &claim);
                self.answer(request, Answer::Enrol(reply));
            }
            Input::Adopt { hash, role, expires_seconds } => self.adopt_token(hash, role, expires_seconds),
            Input::Ask { request, session, body, fresh } => self.ask(request, session, *body, fresh),
            Input::Abandon(request) => self.abandon(request),
            Input::Stored { request, session, blob } => self.stored(request, session, &blob),
            Input::Lost(digest) => self.lost(digest),
            Input::Hello { session, hello } => self.hello(session, *hello),
            Input::Report { session, message } => self.report(session, message),
            Input::Fetch { request, session, digest } => {
                let size = self.may_fetch(session, digest);
                self.answer(request, Answer::Blob(size));
            }
            Input::Visit { request, port } => self.visit(request, port),
            Input::VisitWeb { request, container, port } => self.visit_web(request, container, port),
            Input::CallWeb { request, session, container } => self.call_web(request, session, container),
            Input::LookedUp { request, session, domain, found } => {
                self.looked_up(request, session, &domain, &found);
            }
            Input::AcmeAccount(account) => self.acme_account(account),
            Input::Certified { host, result } => {
                self.certified(&host, result.map(|certificate| *certificate))
            }
            Input::Ping { request } => self.reply(request, Reply::Done),
            Input::Tick => {}
        }
        self.fire_timers();
        self.finish()
    }

    /// When [`Input::Tick`] is due at the latest, in monotonic milliseconds.
    #[must_use]
    pub fn poll_at(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Everything as the store should hold it.
    #[must_use]
    pub fn durable(&self) -> BTreeMap<Key, Record> {
        self.tables.durable()
    }

    /// Every blob that somebody holds, with its size in bytes: what should be on disk.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<Digest, u64> {
        self.tables.holds.iter().map(|((_, digest), hold)| (*digest, hold.size)).collect()
    }

    /// The ports that should lead to containers.
    #[must_use]
    pub fn published_ports(&self) -> PublishedPorts {
        self.published.iter().map(|(key, (_, port))| (*key, port.clone())).collect()
    }

    /// Whether anybody is, or can become, an admin.
    #[must_use]
    pub fn has_admin(&self) -> bool {
        let now = self.now.unix_ms / 1000;
        self.tables.accounts.iter().any(|(_, account)| account.role == Role::Admin)
            || self.tables.tokens.iter().any(|(_, t)| t.role == Role::Admin && t.expires_seconds > now)
    }

    fn finish(&mut self) -> Vec<Output> {
        if std::mem::take(&mut self.publish_changed) {
            self.out.push(Output::Publish(self.published_ports()));
        }
        if std::mem::take(&mut self.web_changed) && self.renew_web() {
            self.refresh_callers();
            self.out.push(Output::Web(self.web()));
        }
        let mut out = std::mem::take(&mut self.out);
        let changes = self.tables.take_changes();
        if !changes.is_empty() {
            out.insert(0, Output::Store(changes));
        }
        out
    }

    fn answer(&mut self, request: RequestId, answer: Answer) {
        self.out.push(Output::Answer { request, answer });
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        self.answer(request, Answer::Reply(reply));
    }

    fn reply_result(&mut self, request: RequestId, result: Result<Reply, WireError>) {
        self.reply(request, result.unwrap_or_else(Reply::Error));
    }

    fn event(&mut self, account: Option<AccountId>, event: Event) {
        // Containers and boards do not change without an event.
        self.web_changed |= self.tables.endpoints.len() > 0;
        self.out.push(Output::Event { account, event });
    }

    fn tell_node(&mut self, index: NodeIndex, message: ToNode) {
        if let Some(node) = self.connected.get(&index) {
            self.out.push(Output::ToNode { session: node.session, message: Box::new(message) });
        }
    }

    fn now_seconds(&self) -> u64 {
        self.now.unix_ms / 1000
    }

    fn after(&self, delay_ms: u64) -> u64 {
        self.now.mono_ms.saturating_add(delay_ms)
    }

    fn set_timer(&mut self, at: u64, timer: Timer) {
        self.timers.insert((at, timer));
    }

    fn fire_timers(&mut self) {
        while let Some(&(at, timer)) = self.timers.first() {
            if at > self.now.mono_ms {
                return;
            }
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Waiter(request) => self.waiter_due(request, at),
                Timer::Orphan(id) => self.orphan_due(id, at),
                Timer::AutoRemove(id) => self.auto_remove_due(id),
                Timer::Silence(index) => self.silence_due(index),
                Timer::Unnamed(account, digest) => self.unnamed_due(account, digest, at),
                Timer::Network(board) => self.network_due(board),
                Timer::Rekey => self.rekey_due(),
                Timer::Plane => self.plane_due(),
            }
        }
    }
}

fn error(code: ErrorCode, message: impl Into<String>) -> WireError {
    WireError::new(code, message)
}

fn not_found(what: &str, name: impl std::fmt::Display, hint: &str) -> WireError {
    error(ErrorCode::NotFound, format!("there is no {what} '{name}': {hint}"))
}
