//! One request to one of a cluster's backends.
use std::pin::pin;
use std::sync::Arc;

use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{ClientBody, Progress};
use crate::pool::{Entry, Lease, Sender};
use crate::refusal::Refusal;
use crate::server::{Backends, Endpoint};
use crate::table::Cluster;

/// Header fields of a response; backends are ours, but may be broken into.
const RESPONSE_FIELDS: usize = 200;
/// Bytes of a response's head, and what is buffered of its body.
const RESPONSE_BUFFER: usize = 128 * 1024;

/// Sends a request and waits for the head of the response. Another backend is tried when one cannot be reached, and another
/// connection when an idle one turns out to be closed, unless that could repeat what was done already.
pub(crate) async fn exchange<B: Backends>(
    endpoint: &Endpoint<B>,
    cluster: &Cluster,
    mut wanted: Option<u64>,
    mut request: Request<ClientBody>,
    progress: Option<Arc<Progress>>,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let mut tried = Vec::new();
    let mut fresh = false;
    while tried.len() < endpoint.config.limits.attempts {
        let chosen = endpoint.pool.choose(cluster, &tried, wanted);
        let (entry, in_flight) = chosen.ok_or(Refusal::NoBackend)?;
        let idle = if fresh { None } else { idle(endpoint, &entry).await };
        let reused = idle.is_some();
        let Some(mut sender) = (match idle {
            Some(sender) => Some(sender),
            None => connect(endpoint, &entry).await,
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
    Err(Refusal::NoBackend)
}

async fn idle<B: Backends>(endpoint: &Endpoint<B>, entry: &Entry) -> Option<Sender> {
    while let Some(mut sender) = endpoint.pool.take(entry) {
        // Its task may not have noticed yet that the last response is over.
        if let Ok(Ok(())) = timeout(endpoint.config.limits.connect_timeout, sender.ready()).await {
            return Some(sender);
        }
    }
    None
}

async fn connect<B: Backends>(endpoint: &Endpoint<B>, entry: &Entry) -> Option<Sender> {
    let connected =
        timeout(endpoint.config.limits.connect_timeout, endpoint.backends.connect(entry.id)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(backend = entry.id, %error, "cannot be reached");
            endpoint.pool.failed(entry);
            return None;
        }
        Err(_) => {
            tracing::debug!(backend = entry.id, "does not accept connections in time");
            endpoint.pool.failed(entry);
            return None;
        }
    };
    endpoint.pool.reached(entry);
    let mut builder = http1::Builder::new();
    builder.max_headers(RESPONSE_FIELDS).max_buf_size(RESPONSE_BUFFER);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
    let kill = endpoint.kill.clone();
    endpoint.backend_tasks.spawn(async move {
        // Whoever sent the request hears of errors.
        kill.run_until_cancelled(connection.with_upgrades()).await
    });
    Some(sender)
}

/// The same request again, when it may be sent twice (RFC 9110 §9.2.2): idempotent, and nothing of its body is used up.
fn copy(request: &Request<ClientBody>) -> Option<Request<ClientBody>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    (idempotent && request.body().is_end_stream()).then(|| {
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
