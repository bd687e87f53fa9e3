//! One request to one of a cluster's backends.
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{ClientBody, Progress};
use crate::limits::RESPONSE_BUFFER;
use crate::pool::{Entry, Lease, Sender};
use crate::refusal::Refusal;
use crate::server::{Backends, ConnectError, Endpoint};
use crate::stall::WriteStall;
use crate::table::{Cluster, Host};

/// Header fields of a response; backends are ours, but may be broken into.
const RESPONSE_FIELDS: usize = 200;
/// How long idle connections may take to close and make room for another.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// Sends a request and waits for the head of the response. Another backend is tried when one cannot be reached, and another
/// connection when an idle one turns out to be closed, unless that could repeat what was done already.
pub(crate) async fn exchange<B: Backends>(
    endpoint: &Endpoint<B>,
    (host, cluster): (&Host, &Cluster),
    mut wanted: Option<u64>,
    mut request: Request<ClientBody>,
    progress: Option<Arc<Progress>>,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let mut tried = Vec::new();
    let mut room = Room { customer: host.customer, made: false, lacking: false };
    let mut fresh = false;
    while tried.len() < endpoint.config.limits.attempts {
        let chosen = endpoint.pool.choose(cluster, &tried, wanted);
        let Some((entry, in_flight)) = chosen else { break };
        let idle = if fresh { None } else { idle(endpoint, &entry, is_repeatable(&request)).await };
        let reused = idle.is_some();
        let Some(mut sender) = (match idle {
            Some(sender) => Some(sender),
            None => connect(endpoint, &entry, &mut room).await,
        }) else {
            tried.push(entry.id);
            wanted = None;
            continue;
        };
        let spare = if reused { copy(&request) } else { None };
        match send(endpoint, &mut sender, request, progress.as_deref()).await {
            Ok(response) => {
                let lease = Lease { entry, in_flight, sender, progress, pool: Arc::clone(&endpoint.pool) };
                return Ok((response, lease));
            }
            Err(Failed::Unsent(unsent)) => {
                request = *unsent;
                if !reused {
                    tried.push(entry.id);
                }
            }
            Err(Failed::Closed(refusal)) => request = spare.ok_or(refusal)?,
            Err(Failed::Final(refusal)) => return Err(refusal),
        }
        // Where one connection was closed the others are likely to be.
        (fresh, wanted) = (true, wanted.or(Some(entry.id)).filter(|_| reused));
    }
    Err(if room.lacking { Refusal::HostBusy } else { Refusal::NoBackend })
}

async fn idle<B: Backends>(endpoint: &Endpoint<B>, entry: &Entry, repeatable: bool) -> Option<Sender> {
    while let Some(mut sender) = endpoint.pool.take(entry, repeatable) {
        // Its task may not have noticed yet that the last response is over.
        if let Ok(Ok(())) = timeout(endpoint.config.limits.connect_timeout, sender.ready()).await {
            return Some(sender);
        }
    }
    None
}

/// Places for connections, which a customer's backends share.
struct Room {
    customer: u64,
    /// Idle connections were closed for this request already.
    made: bool,
    /// There was none for it.
    lacking: bool,
}

/// A new connection; where there is no place for it, once more after closing those that are idle.
async fn connect<B: Backends>(endpoint: &Endpoint<B>, entry: &Entry, room: &mut Room) -> Option<Sender> {
    match dial(endpoint, entry).await {
        Ok(sender) => return sender,
        Err(Full) if std::mem::replace(&mut room.made, true) => {}
        Err(Full) => {
            let mut closed = pin!(endpoint.pool.closed.notified());
            closed.as_mut().enable();
            let table = Arc::clone(&endpoint.table.borrow());
            if endpoint.pool.evict(table.backends_of(room.customer)) {
                // Also when it takes too long: there may be a place by now.
                drop(timeout(ROOM_PATIENCE, closed).await);
                if let Ok(sender) = dial(endpoint, entry).await {
                    return sender;
                }
            }
        }
    }
    room.lacking = true;
    None
}

/// There is no place for another connection.
struct Full;

/// `None` when the backend cannot be reached.
async fn dial<B: Backends>(endpoint: &Endpoint<B>, entry: &Entry) -> Result<Option<Sender>, Full> {
    let limits = &endpoint.config.limits;
    let connected = timeout(limits.connect_timeout, endpoint.backends.connect(entry.id)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        // That says nothing about the backend.
        Ok(Err(ConnectError::Busy)) => return Err(Full),
        Ok(Err(ConnectError::Unreachable(error))) => {
            tracing::debug!(backend = entry.id, %error, "cannot be reached");
            endpoint.pool.failed(entry);
            return Ok(None);
        }
        Err(_) => {
            tracing::debug!(backend = entry.id, "does not accept connections in time");
            endpoint.pool.failed(entry);
            return Ok(None);
        }
    };
    endpoint.pool.reached(entry);
    let mut builder = http1::Builder::new();
    builder.max_headers(RESPONSE_FIELDS).max_buf_size(RESPONSE_BUFFER);
    let stream = WriteStall::new(stream, limits.progress_timeout);
    let Ok((sender, connection)) = builder.handshake(TokioIo::new(stream)).await else { return Ok(None) };
    let (kill, pool) = (endpoint.kill.clone(), Arc::clone(&endpoint.pool));
    endpoint.backend_tasks.spawn(async move {
        // Whoever sent the request hears of errors.
        drop(kill.run_until_cancelled(connection.with_upgrades()).await);
        pool.closed.notify_waiters();
    });
    Ok(Some(sender))
}

/// Whether a request may be sent twice (RFC 9110 §9.2.2): idempotent, and nothing of its body is used up.
fn is_repeatable(request: &Request<ClientBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_end_stream()
}

/// The same request again, when it may be sent twice.
fn copy(request: &Request<ClientBody>) -> Option<Request<ClientBody>> {
    is_repeatable(request).then(|| {
        let mut copy = Request::new(ClientBody::none());
        copy.method_mut().clone_from(request.method());
        copy.uri_mut().clone_from(request.uri());
        copy.headers_mut().clone_from(request.headers());
        copy
    })
}

enum Failed {
    /// Nothing was sent.
    Unsent(Box<Request<ClientBody>>),
    /// The backend broke off before it answered.
    Closed(Refusal),
    Final(Refusal),
}

async fn send<B: Backends>(
    endpoint: &Endpoint<B>,
    sender: &mut Sender,
    request: Request<ClientBody>,
    progress: Option<&Progress>,
) -> Result<Response<Incoming>, Failed> {
    let limit = endpoint.config.limits.first_byte_timeout;
    let begun = Instant::now();
    let mut sending = pin!(sender.try_send_request(request));
    let mut error = loop {
        let deadline = progress.map_or(begun, Progress::at).max(begun) + limit;
        match timeout_at(deadline, &mut sending).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => break error,
            // The body still moves.
            Err(_) if progress.is_some_and(|progress| progress.at() + limit > Instant::now()) => {}
            Err(_) => return Err(Failed::Final(Refusal::BackendTimeout)),
        }
    };
    if let Some(refusal) = progress.and_then(Progress::refusal) {
        return Err(Failed::Final(refusal));
    }
    if let Some(request) = error.take_message() {
        return Err(Failed::Unsent(Box::new(request)));
    }
    let error = error.into_error();
    tracing::debug!(%error, "no response");
    let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    // A reset is an error of the stream's.
    let reset = std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
    Err(if closed || reset {
        Failed::Closed(Refusal::BackendFailed)
    } else {
        Failed::Final(Refusal::BackendFailed)
    })
}
