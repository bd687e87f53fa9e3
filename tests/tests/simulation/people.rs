//! People: they run, stop, connect and remove, without knowing what is going on.
use crate::cluster::{Cluster, Event};
use wherry_broker::record::{Key, Record};
use wherry_broker::state::{Answer, Input, RequestId, SessionId};
use wherry_protocol::message::*;
use wherry_protocol::*;

pub(crate) struct Person {
    pub(crate) number: u64,
    pub(crate) account: AccountId,
    pub(crate) session: Option<SessionId>,
    pushed: bool,
}

/// A question under way.
pub(crate) enum Asked {
    /// It is answered at once.
    Now(Option<Answer>),
    /// A person's, of this kind, since then.
    By { kind: &'static str, since_ms: u64 },
}

impl Person {
    pub(crate) fn new(number: u64, account: AccountId) -> Self {
        Self { number, account, session: None, pushed: false }
    }
}

impl Cluster {
    pub(crate) fn person(&mut self, person: usize) {
        if self.now_ms >= self.plan.busy_ms {
            return;
        }
        let delay = self.dice.between(500, 3_000);
        self.after(delay, Event::Person(person));
        if self.people[person].session.is_none() {
            let number = self.people[person].number;
            self.people[person].session = self.open(number);
        }
        let Some(session) = self.people[person].session else { return };
        if !self.people[person].pushed {
            self.push(person, session);
        } else if let Some((kind, body)) = self.idea(person) {
            self.wants(session, kind, body);
        }
    }

    fn wants(&mut self, session: SessionId, kind: &'static str, body: Request) {
        let request = RequestId(self.number());
        self.figures.asked(kind);
        self.asked.insert(request, Asked::By { kind, since_ms: self.now_ms });
        let mut fresh = [0; 16];
        fresh[..8].copy_from_slice(&self.dice.next().to_le_bytes());
        self.tell(Input::Ask { request, session, body: Box::new(body), fresh });
    }

    pub(crate) fn answered(&mut self, request: RequestId, answer: Answer) {
        match self.asked.get_mut(&request) {
            Some(Asked::Now(place)) => *place = Some(answer),
            Some(Asked::By { kind, since_ms }) => {
                let (kind, took) = (*kind, self.now_ms - *since_ms);
                self.asked.remove(&request);
                self.figures.answered(kind, took, &answer);
            }
            // It was asked before the broker fell.
            None => {}
        }
    }

    fn push(&mut self, person: usize, session: SessionId) {
        let blob = |bytes: &[u8], media| Descriptor { digest: Digest::of(bytes), size: 5, media };
        let manifest = ImageManifest {
            config: blob(b"image", Media::Config),
            layers: vec![blob(b"layer", Media::LayerTar)],
        };
        for blob in [&manifest.config, &manifest.layers[0]] {
            let request = RequestId(self.number());
            let body = Box::new(Request::PutBlob(blob.clone()));
            self.tell(Input::Ask { request, session, body, fresh: [0; 16] });
            self.tell(Input::Stored { request, session, blob: blob.clone() });
        }
        let put = Request::PutImage { name: image(), architecture: "amd64".into(), manifest };
        self.wants(session, "push", put);
        self.people[person].pushed = true;
    }

    /// The containers of an account, as they are.
    fn own(&self, account: AccountId) -> Vec<ContainerId> {
        self.store
            .iter()
            .filter_map(|(key, record)| match (key, record) {
                (Key::Container(id), Record::Container(c)) if c.account == account && c.is_present() => {
                    Some(*id)
                }
                _ => None,
            })
            .collect()
    }

    /// Connections of these containers.
    fn links(&self, own: &[ContainerId]) -> Vec<ConnectRequest> {
        self.store
            .keys()
            .filter_map(|key| match key {
                Key::Link(link) if own.contains(&link.from) => Some(ConnectRequest {
                    from: ContainerSelector::Id(link.from).into(),
                    to: ContainerSelector::Id(link.to).into(),
                    port: link.port,
                    transport: link.transport,
                }),
                _ => None,
            })
            .collect()
    }

    fn idea(&mut self, person: usize) -> Option<(&'static str, Request)> {
        let own = self.own(self.people[person].account);
        let open = self.links(&own);
        let dice = &mut self.dice;
        let choice = dice.between(0, 99);
        let one = dice.one_of(&own).copied().map(ContainerSelector::Id);
        let two = dice.one_of(&own).copied().map(ContainerSelector::Id);
        let link = |from: Option<ContainerSelector>, to: Option<ContainerSelector>| {
            Some(ConnectRequest { from: from?.into(), to: to?.into(), port: 80, transport: Transport::Tcp })
        };
        match choice {
            0..=34 => Some(("run", Request::Run(Box::new(run(dice.percent(80), dice.percent(10)))))),
            35..=44 => Some(("wait", Request::Wait { container: one?, until: WaitUntil::Started })),
            45..=54 => Some(("stop", Request::Stop { container: one?, grace_seconds: Some(3) })),
            55..=62 => Some(("start", Request::Start(one?))),
            63..=74 => Some(("remove", Request::Remove { container: one?, force: true })),
            75..=89 => Some(("connect", Request::Connect(link(one, two)?))),
            90..=94 => Some(("disconnect", Request::Disconnect(dice.one_of(&open)?.clone()))),
            _ => Some(("list", Request::Containers { all_accounts: false })),
        }
    }
}

fn image() -> ImageName {
    "web".parse().expect("an image name")
}

fn run(detached: bool, auto_remove: bool) -> RunRequest {
    let spec = ContainerSpec { auto_remove, ..ContainerSpec::default() };
    RunRequest { image: image(), name: None, node: None, detached, spec }
}
