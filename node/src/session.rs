//! Keeps a session with the broker: finds it, dials, carries the control stream, hands routed streams on, and begins
//! again when it ends.
use crate::config::BrokerAddress;
use crate::link::{self, Credentials, Link};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use wherry_protocol::io::{self, Mux, SessionError, Stream};
use wherry_protocol::message::{FromNode, NodeCall, NodeHello, Reply, ToNode};
use wherry_protocol::{ErrorCode, Limits, WireError};

/// First pause after a session ended or could not be opened.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Longest pause: a broker that comes back is met within this time.
const LAST_BACKOFF: Duration = Duration::from_secs(8);
/// A session of at least this length starts the backoff anew.
const HEALTHY: Duration = Duration::from_secs(30);
/// Reports waiting for a slow session; a node of 1000 containers sends one each when all change at once.
const REPORT_QUEUE: usize = 2048;
/// Routed streams served at once; more are told so. Below what the session carries, for images are fetched over it too.
const ROUTED_AT_ONCE: usize = 384;

/// What the agent hears of the session.
#[derive(Debug)]
pub enum SessionEvent {
    /// A session is open; it begins with what the agent answers.
    Up {
        /// This board's address as the connection shows it.
        underlay: Ipv4Addr,
        /// Takes the first message.
        hello: oneshot::Sender<NodeHello>,
        /// Takes all later ones.
        reports: mpsc::Sender<FromNode>,
    },
    /// The broker said something.
    Said(ToNode),
    /// The session has ended.
    Down,
}

/// Finds the broker: a fixed address, or a question to the LAN.
pub trait Locate: Send + Sync {
    /// Where the broker is now.
    fn locate(&self) -> impl Future<Output = Option<BrokerAddress>> + Send;
}

/// Serves one stream that the broker routed here.
pub trait ServeStream: Send + Sync + 'static {
    /// Reads the request and serves it to its end.
    fn serve(self: Arc<Self>, stream: Stream) -> impl Future<Output = ()> + Send;
}

/// What a session connects.
#[derive(Debug)]
pub struct Parts<L, S> {
    /// Where the broker is.
    pub locate: L,
    /// What the board shows it.
    pub credentials: Credentials,
    /// Who serves routed streams.
    pub streams: Arc<S>,
    /// Who hears of it.
    pub events: mpsc::Sender<SessionEvent>,
    /// The current session, for those who open streams.
    pub current: watch::Sender<Option<Mux>>,
}

/// Keeps a session for ever; ends only when nobody listens any more.
pub async fn keep<L: Locate, S: ServeStream>(parts: Parts<L, S>) {
    let mut backoff = FIRST_BACKOFF;
    let mut last_problem = String::new();
    while !parts.events.is_closed() {
        let started = tokio::time::Instant::now();
        let problem = match once(&parts).await {
            Ok(()) => "the broker ended the session".to_owned(),
            Err(problem) => problem,
        };
        // The same words every few seconds would only bury others on the console.
        if problem != last_problem {
            tracing::warn!("{problem}; trying again");
            last_problem = problem;
        }
        if started.elapsed() > HEALTHY {
            backoff = FIRST_BACKOFF;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

async fn once<L: Locate, S: ServeStream>(parts: &Parts<L, S>) -> Result<(), String> {
    let address = parts.locate.locate().await.ok_or("no broker answered on the LAN")?;
    let link = link::open(address, &parts.credentials).await.map_err(|error| error.to_string())?;
    tracing::info!(broker = %address.session, underlay = %link.underlay, "session open");
    parts.current.send_replace(Some(link.mux.clone()));
    let result = carry(parts, link).await;
    parts.current.send_replace(None);
    parts.events.send(SessionEvent::Down).await.ok();
    result.map_err(|error| format!("the session with the broker at {} ended: {error}", address.session))
}

async fn carry<L: Locate, S: ServeStream>(parts: &Parts<L, S>, mut link: Link) -> Result<(), SessionError> {
    let mut control = link.mux.open().await?;
    let (hello, reports) = announce(parts, link.underlay).await?;
    io::send(&mut control, &NodeCall::Control(Box::new(hello))).await?;
    let (reader, writer) = futures_util::AsyncReadExt::split(control);
    let mut tasks = JoinSet::new();
    tokio::select! {
        result = listen(reader, &parts.events) => result,
        result = speak(writer, reports) => result,
        result = serve_streams(&mut link, &parts.streams, &mut tasks) => result,
    }
}

async fn announce<L, S>(
    parts: &Parts<L, S>,
    underlay: Ipv4Addr,
) -> Result<(NodeHello, mpsc::Receiver<FromNode>), SessionError> {
    let (hello, answer) = oneshot::channel();
    let (reports, receiver) = mpsc::channel(REPORT_QUEUE);
    let up = SessionEvent::Up { underlay, hello, reports };
    parts.events.send(up).await.map_err(|_| SessionError::Closed)?;
    Ok((answer.await.map_err(|_| SessionError::Closed)?, receiver))
}

async fn listen(
    mut reader: impl futures_util::AsyncRead + Unpin,
    events: &mpsc::Sender<SessionEvent>,
) -> Result<(), SessionError> {
    while let Some(message) = io::recv::<ToNode>(&mut reader, Limits::DEFAULT.message_bytes).await? {
        events.send(SessionEvent::Said(message)).await.map_err(|_| SessionError::Closed)?;
    }
    Ok(())
}

async fn speak(
    mut writer: impl futures_util::AsyncWrite + Unpin,
    mut reports: mpsc::Receiver<FromNode>,
) -> Result<(), SessionError> {
    while let Some(report) = reports.recv().await {
        io::send(&mut writer, &report).await?;
    }
    Ok(())
}

/// Whoever asks is told at once instead of waiting for somebody else's end.
async fn turn_away(mut stream: Stream) {
    let text = "the node serves as many requests as it can: try again in a moment";
    let told = async {
        io::send(&mut stream, &Reply::Error(WireError::new(ErrorCode::Busy, text))).await?;
        futures_util::AsyncWriteExt::close(&mut stream).await.map_err(SessionError::Io)
    };
    if let Err(error) = told.await {
        tracing::debug!("a routed stream was turned away and did not hear it: {error}");
    }
}

async fn serve_streams<S: ServeStream>(
    link: &mut Link,
    streams: &Arc<S>,
    tasks: &mut JoinSet<()>,
) -> Result<(), SessionError> {
    loop {
        tokio::select! {
            stream = link.incoming.next() => match stream {
                Some(stream) if tasks.len() >= ROUTED_AT_ONCE => drop(tasks.spawn(turn_away(stream))),
                Some(stream) => drop(tasks.spawn(Arc::clone(streams).serve(stream))),
                None => return Ok(()),
            },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!("a routed request panicked; only its stream ended");
                }
            }
        }
    }
}
