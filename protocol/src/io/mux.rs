//! Many streams over one session, with flow control for each (yamux).
use super::error::SessionError;
use super::secure::Secure;
use super::stream::Stream;
use super::watch::{self, Endings, Watched};
use crate::limits::Limits;
use crate::session::{OVERHEAD_BYTES, Side};
use futures_channel::{mpsc, oneshot};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::StreamExt as _;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// Window that yamux gives each new stream, in bytes; it is part of its specification.
const FIRST_WINDOW_BYTES: usize = 256 * 1024;

type Opened = Result<Stream, SessionError>;

/// A stream that somebody wants.
struct Asked {
    /// How many of the streams that the limit allows must stay free for others.
    spare: usize,
    sender: oneshot::Sender<Opened>,
}

enum Command {
    Open(Asked),
    Close,
}

/// Opens streams. Clones share the session; it ends when [`Mux::close`] says so, or when all clones, the [`Incoming`]
/// and all streams are gone.
#[derive(Clone)]
pub struct Mux {
    commands: mpsc::UnboundedSender<Command>,
    slots: Slots,
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").field("open_streams", &self.slots.open()).finish_non_exhaustive()
    }
}

impl Mux {
    /// Opens a stream. The peer learns of it when we write, flush, read or close.
    ///
    /// Fails at once if as many streams are open as the limit allows; waits while more than 256 of ours are unanswered.
    pub async fn open(&self) -> Result<Stream, SessionError> {
        self.open_sparing(0).await
    }

    /// The same, but fails already if `spare` streams more could not be opened after it: for those who must not crowd out
    /// others.
    pub async fn open_sparing(&self, spare: usize) -> Result<Stream, SessionError> {
        let (sender, receiver) = oneshot::channel();
        let asked = Command::Open(Asked { spare, sender });
        self.commands.unbounded_send(asked).map_err(|_| SessionError::Closed)?;
        receiver.await.map_err(|_| SessionError::Closed)?
    }

    /// From now on at most so many streams at once, and never more than the session began with.
    pub fn limit_streams(&self, streams: usize) {
        self.slots.limit.store(streams.min(self.slots.most), Ordering::Relaxed);
    }

    /// Whether both are of one session.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots.open, &other.slots.open)
    }

    /// Ends the session in order: what was written on streams so far is sent, then the end mark.
    pub fn close(&self) {
        // If nobody listens any more it is closed already.
        self.commands.unbounded_send(Command::Close).unwrap_or_default();
    }
}

/// The streams that the peer opens.
pub struct Incoming {
    streams: mpsc::UnboundedReceiver<Stream>,
    // Keeps the session open while somebody waits for streams.
    _commands: mpsc::UnboundedSender<Command>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Incoming {
    /// The next stream; `None` once the session is over.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.next().await
    }
}

/// Counts open streams, of both directions.
#[derive(Clone)]
struct Slots {
    open: Arc<AtomicUsize>,
    limit: Arc<AtomicUsize>,
    /// What the session's windows were made for.
    most: usize,
}

impl Slots {
    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    // Only the driver takes slots, so there is no race between looking and taking.
    fn take(&self, spare: usize) -> Option<Slot> {
        if self.open().saturating_add(spare) >= self.limit() {
            return None;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Slot(Arc::clone(&self.open)))
    }
}

/// One open stream; given back on drop.
pub(super) struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Moves bytes between the streams and the connection. Spawn it; it ends with the session.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver {
    inner: Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Future for Driver {
    type Output = Result<(), SessionError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().inner.as_mut().poll(cx)
    }
}

/// Turns a sealed byte pipe into streams. Both ends must call it, each with its `side`.
pub fn multiplex<T>(secure: Secure<T>, side: Side, limits: &Limits) -> (Mux, Incoming, Driver)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (commands, command_receiver) = mpsc::unbounded();
    let (incoming, streams) = mpsc::unbounded();
    let slots = Slots {
        open: Arc::default(),
        limit: Arc::new(AtomicUsize::new(limits.streams)),
        most: limits.streams,
    };
    let endings = Endings::default();
    let mode = match side {
        Side::Dialled => yamux::Mode::Client,
        Side::Accepted => yamux::Mode::Server,
    };
    let connection = Connection {
        yamux: yamux::Connection::new(Watched::new(secure, endings.clone()), config(limits), mode),
        commands: command_receiver,
        incoming,
        slots: slots.clone(),
        endings,
        waiting: None,
        state: State::Open,
    };
    let mux = Mux { commands: commands.clone(), slots };
    (mux, Incoming { streams, _commands: commands }, Driver { inner: Box::pin(connection) })
}

fn config(limits: &Limits) -> yamux::Config {
    // yamux takes its own limit as fatal, and counts a dropped stream until it has noticed the drop; so ours is enforced
    // here (see Slots) and yamux's lies above it.
    let streams = limits.streams.saturating_mul(2);
    let growth =
        limits.session_window_bytes.saturating_sub(limits.streams.saturating_mul(FIRST_WINDOW_BYTES));
    let mut config = yamux::Config::default();
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(streams);
    config.set_max_connection_receive_window(Some(growth + streams * FIRST_WINDOW_BYTES));
    // One frame fills one record.
    config.set_split_send_size(limits.record_bytes.saturating_sub(watch::HEADER_BYTES).max(OVERHEAD_BYTES));
    config
}

enum State {
    Open,
    Closing,
}

struct Connection<T> {
    yamux: yamux::Connection<Watched<T>>,
    commands: mpsc::UnboundedReceiver<Command>,
    incoming: mpsc::UnboundedSender<Stream>,
    slots: Slots,
    endings: Endings,
    /// Who asked for a stream that yamux cannot give yet.
    waiting: Option<Asked>,
    state: State,
}

// Nothing in it is pinned.
impl<T> Unpin for Connection<T> {}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Connection<T> {
    type Output = Result<(), SessionError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_session(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    fn poll_session(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        loop {
            if let State::Closing = self.state {
                return self.yamux.poll_close(cx).map_err(SessionError::from);
            }
            if let Poll::Ready(result) = self.poll_inbound(cx) {
                return Poll::Ready(result);
            }
            match self.poll_commands(cx) {
                // A stream was opened: yamux must be polled again to watch it.
                Poll::Ready(()) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    // Moves bytes until nothing can move; hands out the peer's new streams. Ready when the session is over.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        loop {
            match self.yamux.poll_next_inbound(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Some(Ok(stream))) => {
                    // Over the limit, or nobody there to take it: dropping it resets it. The queue to Incoming
                    // needs no bound of its own since its streams are counted.
                    if let Some(slot) = self.slots.take(0) {
                        let stream = Stream::inbound(stream, &self.endings, slot);
                        drop(self.incoming.unbounded_send(stream));
                    }
                }
            }
        }
    }

    // Ready when something was done, so that yamux must be polled again.
    fn poll_commands(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() {
            match self.commands.poll_next_unpin(cx) {
                Poll::Ready(Some(Command::Open(asked))) => self.waiting = Some(asked),
                Poll::Ready(Some(Command::Close)) => {
                    self.state = State::Closing;
                    return Poll::Ready(());
                }
                Poll::Ready(None) if self.slots.open() == 0 => {
                    self.state = State::Closing;
                    return Poll::Ready(());
                }
                // Streams are still open; yamux wakes us when the last one is dropped.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
        self.poll_open(cx)
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let spare = self.waiting.as_ref().map_or(0, |asked| asked.spare);
        let Some(slot) = self.slots.take(spare) else {
            self.answer(Err(SessionError::TooManyStreams { limit: self.slots.limit() }));
            return Poll::Ready(());
        };
        match self.yamux.poll_new_outbound(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(opened) => {
                let opened = opened.map(|stream| Stream::outbound(stream, &self.endings, slot));
                self.answer(opened.map_err(SessionError::from));
                Poll::Ready(())
            }
        }
    }

    fn answer(&mut self, opened: Opened) {
        if let Some(asked) = self.waiting.take() {
            // Whoever asked may have given up; then the stream is dropped again.
            drop(asked.sender.send(opened));
        }
    }
}
