//! The shell around [`State`]: one task owns it, takes inputs from everywhere, and has its orders carried out.
use crate::config::Config;
use crate::executor::Executor;
use crate::facts::{self, Abilities, LoadMeter};
use crate::session::SessionEvent;
use crate::state::{Input, Output, State};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wherry_net::discovery::Finder;
use wherry_protocol::message::{ContainerReport, FromNode, NodeHello, NodeLoad};

/// How often the load is reported. It stays in memory on both sides; placement needs no fresher figure.
const LOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Inputs waiting for the state; senders wait beyond that. Each container has at most a few under way.
const INPUT_QUEUE: usize = 1024;

/// The way into the agent: everything that happens on this board.
#[must_use]
pub fn inputs() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUT_QUEUE)
}

/// What the agent needs.
#[derive(Debug)]
pub struct Parts {
    /// The board's configuration.
    pub config: Arc<Config>,
    /// A directory of the data partition, whose free space is reported.
    pub data: PathBuf,
    /// Who looks for the broker, and knows what answers were not believed.
    pub finder: Finder,
    /// Who carries out orders.
    pub executor: Executor,
    /// Containers that outlived a former life of the service.
    pub adopted: Vec<ContainerReport>,
    /// Both ends of [`inputs`].
    pub inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    /// What the session says.
    pub sessions: mpsc::Receiver<SessionEvent>,
}

/// Runs the node until `shutdown` completes.
pub async fn run(parts: Parts, shutdown: impl Future<Output = ()>) {
    let Parts { config, data, finder, executor, adopted, inputs: (inputs, mut queue), mut sessions } = parts;
    let mut agent = Agent {
        config,
        data,
        finder,
        executor,
        inputs,
        state: State::default(),
        meter: LoadMeter::default(),
        reports: None,
        epoch: Instant::now(),
    };
    for report in adopted {
        agent.handle(Input::Adopted(report));
    }
    let mut load = tokio::time::interval(LOAD_INTERVAL);
    tokio::pin!(shutdown);
    loop {
        let tick = agent.next_tick();
        tokio::select! {
            () = &mut shutdown => return,
            Some(input) = queue.recv() => agent.handle(input),
            Some(event) = sessions.recv() => agent.session(event),
            _ = load.tick() => agent.report_load(),
            () = tokio::time::sleep_until(tick) => agent.handle(Input::Tick),
        }
    }
}

struct Agent {
    config: Arc<Config>,
    data: PathBuf,
    finder: Finder,
    executor: Executor,
    inputs: mpsc::Sender<Input>,
    state: State,
    meter: LoadMeter,
    /// To the broker, while there is a session.
    reports: Option<mpsc::Sender<FromNode>>,
    epoch: Instant,
}

impl Agent {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_tick(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(3600);
        let due = self.state.poll_at().map(|at| self.epoch + Duration::from_millis(at));
        due.unwrap_or_else(|| Instant::now() + FAR)
    }

    fn handle(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.state.handle(self.now_ms(), input, &mut outputs);
        for output in outputs {
            match output {
                Output::Report(report) => self.report(report),
                order @ (Output::Join(..)
                | Output::Start(_)
                | Output::Signal { .. }
                | Output::Wake(_)
                | Output::Remove(_)
                | Output::Rekey(_)
                | Output::Plane(_)
                | Output::ApplyNetwork { .. }) => self.executor.perform(order, &self.inputs),
            }
        }
    }

    /// A full queue means the session has stalled for long: it is given up, and the next one begins with all that is.
    fn report(&mut self, report: FromNode) {
        if let Some(reports) = &self.reports
            && reports.try_send(report).is_err()
        {
            tracing::warn!("the broker does not take reports, ending the session");
            self.reports = None;
        }
    }

    fn report_load(&mut self) {
        if self.reports.is_some() {
            let load = self.load();
            self.report(FromNode::Load(load));
        }
    }

    fn load(&mut self) -> NodeLoad {
        let mut load = self.meter.sample(&self.data);
        load.dropped = self.executor.dropped();
        load.refused_answers = self.finder.refused();
        load.disk_free_bytes = load.disk_free_bytes.saturating_add(self.executor.removable_bytes());
        load
    }

    fn session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Up { underlay, hello, reports } => {
                let (overlay, limits) = (self.executor.overlay(), self.executor.limits());
                let inventory = self.state.inventory();
                let facts =
                    facts::facts(self.config.hostname.as_str(), Abilities { underlay, overlay, limits });
                let said = hello.send(NodeHello { facts, load: self.load(), inventory });
                // The session may have ended while this event was queued; its successor announces itself.
                self.reports = said.is_ok().then_some(reports);
                for condition in self.state.conditions() {
                    self.report(condition);
                }
            }
            SessionEvent::Said(message) => self.handle(Input::Broker(message)),
            SessionEvent::Down => self.reports = None,
        }
    }
}
