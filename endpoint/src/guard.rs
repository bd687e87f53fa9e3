//! The stream of an HTTP/1 client as hyper sees it: only what [`Framing`] lets through.
//!
//! What is refused in a head reaches hyper as a head of our own, so that the refusal is answered in its turn, after the requests
//! before it; the service learns of it by [`Link::refusal`]. In a body it is an error of the stream.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::framing::{Framing, Step};
use crate::limits::Limits;
use crate::refusal::Refusal;

/// Stands for a request that is refused.
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// Bytes read at once where their framing has to be looked at.
const READ: usize = 8 * 1024;
/// After our last byte the client's are read and forgotten, within these bounds: a socket that is closed with bytes unread sends a
/// reset, and the client may lose the response.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// What the stream and the service of one connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Link(Mutex<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Requests that the service has begun, and those that are not over.
    begun: u64,
    busy: usize,
    /// The refusal that stands for this head, the first being 1.
    refused: Option<(u64, Refusal)>,
    /// Why the body broke off.
    body: Option<Refusal>,
    /// The answer to the upgrade that this request asks for.
    opaque: Option<(u64, bool)>,
    waker: Option<Waker>,
}

impl Link {
    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request begins; the refusal that it stands for.
    pub(crate) fn begin(&self) -> Option<Refusal> {
        self.with(|shared| {
            shared.begun += 1;
            shared.busy += 1;
            shared.refused.filter(|(number, _)| *number == shared.begun).map(|(_, refusal)| refusal)
        })
    }

    /// A request and its response are over.
    pub(crate) fn end(&self) {
        self.with(|shared| shared.busy = shared.busy.saturating_sub(1));
    }

    /// Why the request body broke off, when that is because of what the client sent.
    pub(crate) fn body_refusal(&self) -> Option<Refusal> {
        self.with(|shared| shared.body)
    }

    /// Whether the upgrade is done that the present request asks for, if it does.
    pub(crate) fn decide(&self, opaque: bool) {
        let waker = self.with(|shared| {
            shared.opaque = Some((shared.begun, opaque));
            shared.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What the timer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Nothing,
    /// The first byte of another request.
    Idle,
    /// The end of a head.
    Head,
}

/// The stream of a client.
pub(crate) struct Guard<S> {
    inner: S,
    framing: Framing,
    link: Arc<Link>,
    /// Bytes that did not go on, of which the first `passable` may; `substitute` goes after them.
    buffer: Vec<u8>,
    start: usize,
    passable: usize,
    substitute: &'static [u8],
    heads: u64,
    refused: bool,
    timer: Pin<Box<Sleep>>,
    wait: Wait,
    head_timeout: Duration,
    idle_timeout: Duration,
    linger: Option<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    pub(crate) fn new(inner: S, limits: &Limits, link: Arc<Link>) -> Self {
        Self {
            inner,
            framing: Framing::new(limits.head_bytes, limits.head_fields),
            link,
            buffer: Vec::new(),
            start: 0,
            passable: 0,
            substitute: &[],
            heads: 0,
            refused: false,
            timer: Box::pin(sleep(limits.head_timeout)),
            wait: Wait::Head,
            head_timeout: limits.head_timeout,
            idle_timeout: limits.idle_timeout,
            linger: None,
        }
    }

    fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.passable.min(out.remaining());
        out.put_slice(self.pending().get(..count).unwrap_or_default());
        self.passable -= count;
        self.consume(count);
    }

    /// Looks at what is in the buffer. Ready when something may go on, or never will.
    fn advance(&mut self, context: &Context<'_>) -> Poll<io::Result<()>> {
        while self.passable == 0 {
            let in_head = self.framing.in_head();
            match self.framing.step(self.buffer.get(self.start..).unwrap_or_default()) {
                Step::Pass(count) => self.passable = count,
                Step::Head(count) => {
                    self.heads += 1;
                    self.passable = count;
                    self.wait = Wait::Nothing;
                }
                Step::Skip(count) => self.consume(count),
                Step::More => return Poll::Pending,
                Step::Held => {
                    let decided = self.link.with(|shared| {
                        shared.waker = Some(context.waker().clone());
                        // The answer to an earlier request may come while this one waits behind it.
                        shared.opaque.filter(|(number, _)| *number == self.heads).map(|(_, opaque)| opaque)
                    });
                    let Some(opaque) = decided else { return Poll::Pending };
                    self.framing.decide(opaque);
                }
                Step::Refuse(refusal) => return self.refuse(refusal, in_head),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when hyper is to hear of it.
    fn refuse(&mut self, refusal: Refusal, in_head: bool) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.refused, true) {
            return Poll::Pending;
        }
        self.framing.refuse(refusal);
        if !in_head {
            self.link.with(|shared| shared.body = Some(refusal));
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        self.heads += 1;
        let number = self.heads;
        self.link.with(|shared| shared.refused = Some((number, refusal)));
        self.substitute = SUBSTITUTE;
        Poll::Ready(Ok(()))
    }

    /// What to wait for while nothing comes: an error or the end when it did not come in time.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.framing.in_head() {
            return Poll::Pending;
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            match self.wait {
                Wait::Nothing => return Poll::Pending,
                // The end of the stream: to who said nothing there is nothing to say.
                Wait::Head if self.pending().is_empty() => return Poll::Ready(Ok(())),
                Wait::Head => return self.refuse(Refusal::HeadTimeout, true),
                Wait::Idle if self.link.with(|shared| shared.busy == 0) => return Poll::Ready(Ok(())),
                Wait::Idle => self.timer.as_mut().reset(Instant::now() + self.idle_timeout),
            }
        }
    }

    /// Between requests the timer waits for the next, in a head for its end.
    fn set_timer(&mut self) {
        // A head has one deadline, and the first of a connection has it from the start.
        if !self.framing.in_head() || self.wait == Wait::Head {
            return;
        }
        let (wait, limit) = match self.pending() {
            [] => (Wait::Idle, self.idle_timeout),
            _ => (Wait::Head, self.head_timeout),
        };
        if self.wait != wait {
            self.wait = wait;
            self.timer.as_mut().reset(Instant::now() + limit);
        }
    }

    /// Reads into the buffer; the number of bytes.
    fn fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let before = self.buffer.len();
        self.buffer.resize(before + READ, 0);
        let mut room = ReadBuf::new(self.buffer.get_mut(before..).unwrap_or_default());
        let result = Pin::new(&mut self.inner).poll_read(context, &mut room);
        let count = room.filled().len();
        self.buffer.truncate(before + count);
        result.map_ok(|()| count)
    }

    /// Reads bytes that need no look right to hyper.
    fn read_plain(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        plain: u64,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let count = match usize::try_from(plain).ok().filter(|plain| *plain < out.remaining()) {
            None => {
                ready!(Pin::new(&mut self.inner).poll_read(context, out))?;
                out.filled().len() - before
            }
            Some(plain) => {
                let mut part = ReadBuf::new(out.initialize_unfilled_to(plain));
                ready!(Pin::new(&mut self.inner).poll_read(context, &mut part))?;
                let count = part.filled().len();
                out.advance(count);
                count
            }
        };
        self.framing.passed(count as u64);
        Poll::Ready(Ok(()))
    }

    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let expected = self.refused || !self.framing.in_head() || !self.pending().is_empty();
        let mut left = match self.linger {
            Some(left) => left,
            None if expected => {
                self.timer.as_mut().reset(Instant::now() + LINGER);
                LINGER_BYTES
            }
            None => 0,
        };
        while left > 0 {
            self.linger = Some(left);
            self.buffer.clear();
            self.start = 0;
            left = match self.fill(context) {
                Poll::Ready(Ok(count)) if count > 0 => left.saturating_sub(count),
                Poll::Ready(_) => 0,
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(context));
                    0
                }
            };
        }
        self.linger = Some(0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.passable > 0 {
                self.give(out);
                return Poll::Ready(Ok(()));
            }
            if !self.substitute.is_empty() {
                let (now, later) = self.substitute.split_at(self.substitute.len().min(out.remaining()));
                out.put_slice(now);
                self.substitute = later;
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(done) = self.advance(context) {
                done?;
                continue;
            }
            if self.refused || self.framing.held() {
                return Poll::Pending;
            }
            let plain = self.framing.plain();
            if plain > 0 {
                return self.read_plain(context, out, plain);
            }
            match self.fill(context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.set_timer();
                    ready!(self.poll_timer(context))?;
                    if !self.refused {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        self.poll_linger(context)
    }
}
