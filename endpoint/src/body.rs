//! Bodies on their way through: counted, bounded, never held in whole.
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::guard::Link;
use crate::headers::{clean_trailers, remove_hop_by_hop};
use crate::limits::Limits;
use crate::pool::Lease;
use crate::refusal::Refusal;
use crate::ticket::{Held, Ticket};

/// A body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("{}", .0.text().trim_end())]
    Refused(Refusal),
    #[error("the connection broke off")]
    Broken(#[source] hyper::Error),
    #[error("the backend sent nothing more in time")]
    Silent,
}

/// Fires when something that is waited for takes too long.
struct Patience {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    since: Option<Instant>,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None, since: None }
    }

    /// How long it was waited.
    fn done(&mut self) -> Duration {
        self.since.take().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// To be polled while it is waited: ready when that takes too long, or longer than `most`.
    fn poll(&mut self, context: &mut Context<'_>, most: Duration) -> Poll<()> {
        let limit = self.limit.min(most);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            timer.as_mut().reset(now + limit);
        }
        timer.as_mut().poll(context)
    }
}

/// How long one may be waited for in all: time that it takes to take what there is does not count.
struct Budget {
    left: Duration,
    most: Duration,
    /// Bytes a second that earn what is waited for them.
    rate: u64,
}

impl Budget {
    fn spend(&mut self, waited: Duration, bytes: u64) {
        let earned = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate.max(1));
        self.left = self.left.saturating_sub(waited).saturating_add(earned).min(self.most);
    }
}

/// How a request body gets on.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<Sent>);

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    bytes: u64,
    done: bool,
    refusal: Option<Refusal>,
}

impl Progress {
    fn with<T>(&self, act: impl FnOnce(&mut Sent) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When it last moved.
    pub(crate) fn at(&self) -> Instant {
        self.with(|sent| sent.at)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.with(|sent| sent.bytes)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.with(|sent| sent.done)
    }

    /// Why it broke off, when the client is to blame.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.with(|sent| sent.refusal)
    }
}

/// A request body on its way to a backend; `None` is no body.
pub(crate) struct ClientBody(Option<Upload>);

struct Upload {
    inner: Incoming,
    /// Bytes that may still come.
    left: u64,
    patience: Patience,
    budget: Budget,
    progress: Arc<Progress>,
    link: Option<Arc<Link>>,
}

impl ClientBody {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// At most `limit` bytes, at most [`Limits::progress_timeout`] between any two pieces, and not slower than
    /// [`Limits::body_rate`] for long.
    pub(crate) fn new(
        inner: Incoming,
        limit: u64,
        limits: &Limits,
        link: Option<Arc<Link>>,
    ) -> (Self, Option<Arc<Progress>>) {
        if inner.is_end_stream() {
            return (Self::none(), None);
        }
        let sent = Sent { at: Instant::now(), bytes: 0, done: false, refusal: None };
        let progress = Arc::new(Progress(Mutex::new(sent)));
        let upload = Upload {
            inner,
            left: limit,
            patience: Patience::new(limits.progress_timeout),
            budget: Budget { left: limits.body_grace, most: limits.body_grace, rate: limits.body_rate },
            progress: Arc::clone(&progress),
            link,
        };
        (Self(Some(upload)), Some(progress))
    }
}

impl Upload {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(next) = Pin::new(&mut self.inner).poll_frame(context) else {
            ready!(self.patience.poll(context, self.budget.left));
            return Poll::Ready(Some(Err(self.refuse(Refusal::BodyTimeout))));
        };
        let waited = self.patience.done();
        let Some(next) = next else {
            self.progress.with(|sent| (sent.at, sent.done) = (Instant::now(), true));
            return Poll::Ready(None);
        };
        let mut frame = match next {
            Ok(frame) => frame,
            Err(error) => {
                let refusal =
                    self.link.as_ref().and_then(|link| link.body_refusal()).unwrap_or(Refusal::Malformed);
                self.refuse(refusal);
                return Poll::Ready(Some(Err(BodyError::Broken(error))));
            }
        };
        if let Some(trailers) = frame.trailers_mut() {
            clean_trailers(trailers);
        }
        let count = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.budget.spend(waited, count);
        let Some(left) = self.left.checked_sub(count) else {
            return Poll::Ready(Some(Err(self.refuse(Refusal::BodyTooLarge))));
        };
        self.left = left;
        let end = self.inner.is_end_stream();
        self.progress.with(|sent| {
            (sent.at, sent.done) = (Instant::now(), end);
            sent.bytes += count;
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn refuse(&self, refusal: Refusal) -> BodyError {
        self.progress.with(|sent| sent.refusal = Some(refusal));
        BodyError::Refused(refusal)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.as_mut().map_or(Poll::Ready(None), |upload| upload.poll(context))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.inner.size_hint())
    }
}

/// Response bodies of one HTTP/2 connection that wait for the client to take more: flow control can keep them so for ever.
#[derive(Debug, Default)]
pub(crate) struct Stalls(Mutex<(u64, HashMap<u64, Instant>)>);

impl Stalls {
    fn with<T>(&self, act: impl FnOnce(&mut (u64, HashMap<u64, Instant>)) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether one waits for so long.
    pub(crate) fn any_since(&self, limit: Duration) -> bool {
        self.with(|(_, waiting)| waiting.values().any(|since| since.elapsed() >= limit))
    }
}

/// A response body on its way to the client.
pub(crate) struct ReplyBody {
    source: Source,
    /// `None` where the request goes on without a body.
    ticket: Option<Ticket>,
    stalls: Option<(Arc<Stalls>, u64)>,
}

/// Bytes that count as their request's until HTTP/2 has written them, which may be long after the body was read to its end.
struct Counted {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

enum Source {
    Text(Option<Bytes>),
    Backend(Incoming, Patience, Option<Lease>),
}

impl ReplyBody {
    /// No body, and the request is not over.
    pub(crate) fn empty() -> Self {
        Self { source: Source::Text(None), ticket: None, stalls: None }
    }

    /// A text of ours; nothing when it is empty.
    pub(crate) fn text(text: impl Into<Bytes>, mut ticket: Ticket) -> Self {
        ticket.access.complete = true;
        let text = text.into();
        Self { source: Source::Text((!text.is_empty()).then_some(text)), ticket: Some(ticket), stalls: None }
    }

    /// A backend's body, with at most `stall` between any two pieces. Its connection serves again when all is read.
    pub(crate) fn backend(
        body: Incoming,
        lease: Lease,
        stall: Duration,
        ticket: Ticket,
        stalls: Option<Arc<Stalls>>,
    ) -> Self {
        let stalls = stalls.map(|stalls| {
            let number = stalls.with(|(next, _)| {
                *next += 1;
                *next
            });
            (stalls, number)
        });
        let mut reply = Self {
            source: Source::Backend(body, Patience::new(stall), Some(lease)),
            ticket: Some(ticket),
            stalls,
        };
        if reply.is_end_stream() {
            reply.finish();
        }
        reply
    }

    fn finish(&mut self) {
        if let Source::Backend(_, _, lease) = &mut self.source
            && let Some(lease) = lease.take()
        {
            if let Some(ticket) = &mut self.ticket {
                ticket.access.complete = true;
                ticket.access.received = lease.received();
            }
            lease.release();
        }
    }

    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (body, patience) = match &mut self.source {
            Source::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Backend(body, patience, _) => (body, patience),
        };
        let Poll::Ready(next) = Pin::new(body).poll_frame(context) else {
            ready!(patience.poll(context, Duration::MAX));
            return Poll::Ready(Some(Err(BodyError::Silent)));
        };
        let _waited = patience.done();
        match next {
            None => {
                self.finish();
                Poll::Ready(None)
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    remove_hop_by_hop(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_source(context);
        let data = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map(Bytes::len),
            _ => None,
        };
        if let Some(ticket) = &mut self.ticket {
            ticket.access.sent += data.unwrap_or(0) as u64;
        }
        if let Some((stalls, number)) = &self.stalls {
            stalls.with(|(_, waiting)| match data {
                Some(_) => drop(waiting.insert(*number, Instant::now())),
                None => drop(waiting.remove(number)),
            });
        }
        match (&self.stalls, self.ticket.as_ref().and_then(|ticket| ticket.held.as_ref())) {
            (Some(_), Some(held)) => polled.map_ok(|frame| {
                frame.map_data(|bytes| Bytes::from_owner(Counted { bytes, _held: Arc::clone(held) }))
            }),
            (Some(_) | None, _) => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_none(),
            Source::Backend(body, ..) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Backend(body, ..) => body.size_hint(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // Hyper does not ask a body for its end when it knows the length.
        if self.is_end_stream() {
            self.finish();
        }
        if let (Source::Backend(_, _, Some(lease)), Some(ticket)) = (&self.source, &mut self.ticket) {
            ticket.access.received = lease.received();
        }
        if let Some((stalls, number)) = &self.stalls {
            stalls.with(|(_, waiting)| waiting.remove(number));
        }
    }
}
