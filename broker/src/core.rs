//! The one thread that owns the state and its store: takes inputs, decides, writes, and only then lets anybody know.
//!
//! Inputs that have piled up while the disk was busy are decided together and written by one commit.
use crate::record::Change;
use crate::sessions::Sessions;
use crate::state::{Answer, Broker, Fresh, Input, Output, PublishedPorts, RequestId, SessionId, Time, Web};
use crate::store::{Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use wherry_images::store::BlobStore;
use wherry_protocol::message::{Event, Reply, Request};
use wherry_protocol::{AccountId, ErrorCode, OsRandom, Random, WireError};

/// Inputs that may wait; whoever has more to say waits to say it.
const QUEUE: usize = 1024;
/// Inputs decided between two commits at most, so that the first of them does not wait for ever.
const BATCH: usize = 256;
/// Events that a slow reader may fall behind before it loses some.
const EVENTS: usize = 1024;

enum Message {
    Tell(Input),
    Ask(Input, RequestId, oneshot::Sender<Answer>),
    Stop,
}

/// An event and whose it is; `None` is everybody's.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) account: Option<AccountId>,
    pub(crate) event: Event,
}

/// The way to the state, for every task.
#[derive(Debug, Clone)]
pub(crate) struct Core {
    messages: mpsc::Sender<Message>,
    next: Arc<AtomicU64>,
    events: broadcast::Sender<Arc<Seen>>,
    published: watch::Receiver<PublishedPorts>,
    web: watch::Receiver<Arc<Web>>,
}

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) broker: Broker,
    pub(crate) store: Store,
    pub(crate) blobs: BlobStore,
    pub(crate) sessions: Arc<Sessions>,
}

/// Tells [`Time`]: the wall clock, and the monotonic one since this process looked first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Time {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { unix_ms: milliseconds(unix), mono_ms: milliseconds(self.0.elapsed()) }
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    /// Starts the thread. The receiver gets its end: an error when the store failed, so that nothing can be promised
    /// any more.
    pub(crate) fn start(
        parts: Parts,
        clock: Clock,
    ) -> std::io::Result<(Self, oneshot::Receiver<StoreError>)> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        let (publish, published) = watch::channel(parts.broker.published_ports());
        let (serve_web, web) = watch::channel(parts.broker.web());
        let (failed, failure) = oneshot::channel();
        let worker = Worker {
            parts,
            clock,
            events: events.clone(),
            publish,
            serve_web,
            answers: HashMap::new(),
            queue: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new().name("state".into()).spawn(move || {
            if let Err(error) = runtime.block_on(worker.run(receiver)) {
                drop(failed.send(error));
            }
        })?;
        let core = Self { messages, next: Arc::new(AtomicU64::new(1)), events, published, web };
        Ok((core, failure))
    }

    /// A number never used before by this process.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the state something; waits while it is busy.
    pub(crate) async fn tell(&self, input: Input) {
        // The thread is gone only while everything ends.
        drop(self.messages.send(Message::Tell(input)).await);
    }

    /// Ends the thread once it has done what it was told before.
    pub(crate) async fn stop(&self) {
        drop(self.messages.send(Message::Stop).await);
    }

    /// Tells the state something from where nothing can wait: a destructor.
    pub(crate) fn tell_later(&self, input: Input) {
        let core = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { core.tell(input).await });
        }
    }

    /// Asks the state; `None` when everything ends. If the asker gives up waiting, the state learns of it.
    pub(crate) async fn ask(&self, input: impl FnOnce(RequestId) -> Input) -> Option<Answer> {
        self.ask_as(RequestId(self.number()), input).await
    }

    /// [`Core::ask`] with a number that the caller chose, to say more about the same request later.
    pub(crate) async fn ask_as(
        &self,
        request: RequestId,
        input: impl FnOnce(RequestId) -> Input,
    ) -> Option<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.messages.send(Message::Ask(input(request), request, sender)).await.ok()?;
        let mut guard = Asked { core: self, request, answered: false };
        let answer = receiver.await.ok();
        guard.answered = true;
        answer
    }

    /// A user's request.
    pub(crate) async fn request(&self, request: RequestId, session: SessionId, body: Request) -> Answer {
        let mut fresh: Fresh = [0; 16];
        OsRandom.fill(&mut fresh);
        let body = Box::new(body);
        self.ask_as(request, |request| Input::Ask { request, session, body, fresh })
            .await
            .unwrap_or_else(ending)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Seen>> {
        self.events.subscribe()
    }

    pub(crate) fn web(&self) -> watch::Receiver<Arc<Web>> {
        self.web.clone()
    }

    pub(crate) fn published(&self) -> watch::Receiver<PublishedPorts> {
        self.published.clone()
    }
}

/// The answer when there is nobody to answer any more.
pub(crate) fn ending() -> Answer {
    let text = "the broker is shutting down: try again in a moment";
    Answer::Reply(Reply::Error(WireError::new(ErrorCode::Busy, text)))
}

/// Takes the question back when its asker has gone.
struct Asked<'a> {
    core: &'a Core,
    request: RequestId,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.core.tell_later(Input::Abandon(self.request));
        }
    }
}

struct Worker {
    parts: Parts,
    clock: Clock,
    events: broadcast::Sender<Arc<Seen>>,
    publish: watch::Sender<PublishedPorts>,
    serve_web: watch::Sender<Arc<Web>>,
    answers: HashMap<RequestId, oneshot::Sender<Answer>>,
    queue: Vec<Message>,
}

impl Worker {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) -> Result<(), StoreError> {
        loop {
            let count = self.wait(&mut receiver).await;
            let last = count == Some(0) || self.queue.iter().any(|message| matches!(message, Message::Stop));
            self.step()?;
            if last {
                return Ok(());
            }
        }
    }

    /// Waits for messages or the next deadline; `Some(0)` when nobody can send any more.
    async fn wait(&mut self, receiver: &mut mpsc::Receiver<Message>) -> Option<usize> {
        let incoming = receiver.recv_many(&mut self.queue, BATCH);
        match self.parts.broker.poll_at() {
            None => Some(incoming.await),
            Some(at) => {
                let delay = at.saturating_sub(self.clock.now().mono_ms);
                tokio::time::timeout(std::time::Duration::from_millis(delay), incoming).await.ok()
            }
        }
    }

    fn step(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut changes: Vec<Change> = Vec::new();
        let mut effects = Vec::new();
        let messages = std::mem::take(&mut self.queue);
        let inputs: Vec<Input> = messages.into_iter().filter_map(|message| self.open(message)).collect();
        for input in inputs.into_iter().chain([Input::Tick]) {
            for output in self.parts.broker.handle(now, input) {
                match output {
                    Output::Store(more) => changes.extend(more),
                    effect => effects.push(effect),
                }
            }
        }
        if !changes.is_empty() {
            self.parts.store.commit(&changes)?;
        }
        for effect in effects {
            self.apply(effect);
        }
        Ok(())
    }

    fn open(&mut self, message: Message) -> Option<Input> {
        match message {
            Message::Tell(Input::Abandon(request)) => {
                self.answers.remove(&request);
                Some(Input::Abandon(request))
            }
            Message::Tell(input) => Some(input),
            Message::Ask(input, request, sender) => {
                self.answers.insert(request, sender);
                Some(input)
            }
            Message::Stop => None,
        }
    }

    fn apply(&mut self, effect: Output) {
        match effect {
            Output::Store(_) => {}
            Output::DeleteBlob(digest) => {
                if let Err(error) = self.parts.blobs.remove(&digest) {
                    tracing::warn!("cannot delete a blob that nobody needs: {error}");
                }
            }
            Output::Answer { request, answer } => {
                if let Some(sender) = self.answers.remove(&request) {
                    drop(sender.send(answer));
                }
            }
            Output::ToNode { session, message } => self.parts.sessions.to_node(session, *message),
            // Nobody listening is no error.
            Output::Event { account, event } => drop(self.events.send(Arc::new(Seen { account, event }))),
            Output::Close(session) => self.parts.sessions.close(session),
            Output::Publish(ports) => drop(self.publish.send(ports)),
            Output::Web(web) => drop(self.serve_web.send(web)),
        }
    }
}
