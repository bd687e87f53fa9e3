//! What clients send, on its way from their connection to the processes that take it.
//!
//! The library grants a client more to send as soon as something has arrived, taken or not, and has one loop per connection,
//! which waits while the queue of any channel is full. A process that does not read would then keep all of the connection's
//! channels from being served; and if it does not read because it cannot write, its client's word that it may write again
//! would never be heard. So everything is taken off that loop at once, into memory, and whoever sends more than is read is
//! granted next to nothing.
use super::bridge::WINDOW_BYTES;
use russh::{ChannelMsg, ChannelReadHalf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// From here on a client is slowed down, in bytes of all channels of one connection.
const LONG: usize = 1024 * 1024;
/// Never more than this, in bytes: what all channels may send before they feel it, and half as much again. Only a client
/// that does not keep to what it is granted gets there; its connection then waits.
const MOST: usize = 96 * 1024 * 1024;
/// What is granted to a slow connection's channels at once, in bytes. Nothing at all would be for ever: the library grants
/// only when something arrives.
const TRICKLE: u32 = 2;
/// Pause after each such trickle.
const PAUSE: Duration = Duration::from_millis(10);
/// Time for what was sent before the end to be taken.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What a message costs besides its data, in bytes: those without data are granted by nobody.
const MESSAGE_BYTES: usize = 256;

/// What waits in all channels of one connection.
#[derive(Debug, Clone)]
pub(super) struct Backlog(Arc<Semaphore>);

impl Backlog {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }

    fn is_long(&self) -> bool {
        MOST.saturating_sub(self.0.available_permits()) > LONG
    }

    /// How much a channel is to be granted the next time.
    pub(super) fn window(&self) -> u32 {
        if self.is_long() { TRICKLE } else { WINDOW_BYTES }
    }

    /// Holds up the loop after a trickle of this many bytes. Whatever was granted earlier passes.
    pub(super) async fn pause(&self, bytes: usize) {
        if bytes <= TRICKLE as usize && self.is_long() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn room(&self, message: &ChannelMsg) -> Option<OwnedSemaphorePermit> {
        let data = match message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
            _ => 0,
        };
        let bytes = data.saturating_add(MESSAGE_BYTES).min(MOST);
        Arc::clone(&self.0).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok()
    }
}

type Waiting = (ChannelMsg, Option<OwnedSemaphorePermit>);

/// One channel's messages, in order.
#[derive(Debug)]
pub(super) struct Inbound {
    messages: mpsc::UnboundedReceiver<Waiting>,
    /// Room of the message that was given last: it counts until its taker asks for the next.
    given: Option<OwnedSemaphorePermit>,
    /// Whether the client has closed the channel, or has gone.
    closed: CancellationToken,
}

impl Inbound {
    /// Takes the messages of `reader` off the connection's loop from now on, until this is dropped.
    pub(super) fn new(mut reader: ChannelReadHalf, backlog: Backlog) -> Self {
        let (sender, messages) = mpsc::unbounded_channel::<Waiting>();
        let closed = CancellationToken::new();
        let at_the_end = closed.clone().drop_guard();
        tokio::spawn(async move {
            let _at_the_end = at_the_end;
            loop {
                let message = tokio::select! {
                    message = reader.wait() => message,
                    () = sender.closed() => return,
                };
                let Some(message) = message else { return };
                let last = matches!(message, ChannelMsg::Close);
                let room = backlog.room(&message).await;
                if sender.send((message, room)).is_err() || last {
                    return;
                }
            }
        });
        Self { messages, given: None, closed }
    }

    /// Completes a moment after the client has closed the channel, even while nobody takes what it sent before: what takes
    /// nothing more must not outlive whoever wanted it.
    pub(super) fn abandoned(&self) -> impl Future<Output = ()> + use<> {
        let closed = self.closed.clone();
        async move {
            closed.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        }
    }

    /// The next message; `None` once the channel is gone.
    pub(super) async fn next(&mut self) -> Option<ChannelMsg> {
        self.given = None;
        let (message, room) = self.messages.recv().await?;
        self.given = room;
        Some(message)
    }
}
