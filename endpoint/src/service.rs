//! What happens to one request, from its head to the head of the response.
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, LOCATION, RETRY_AFTER, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING,
};
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;

use crate::body::{ClientBody, ReplyBody};
use crate::clients::Place;
use crate::headers::{
    Authority, Origin, is_websocket, remove_overrides, set_websocket, to_backend, to_client,
};
use crate::observe::{Access, Encryption};
use crate::path::Path;
use crate::pool::Lease;
use crate::proxy::exchange;
use crate::refusal::Refusal;
use crate::rules::{allowed, named};
use crate::server::{Backends, Endpoint, Peer};
use crate::table::{Cluster, Host};
use crate::ticket::{InFlight, Ticket};
use crate::tunnel::join;

/// One year, which is what preload lists ask for.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// For a client of a host that is busy or down.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

type Reply = Response<ReplyBody>;

/// What a response is made of; the ticket goes into its body.
enum Answer {
    /// A text of ours.
    Text(StatusCode, Vec<(hyper::header::HeaderName, HeaderValue)>, String),
    /// A backend's response.
    Backend(Box<(Response<Incoming>, Lease)>),
    /// A WebSocket.
    Tunnel(Box<Tunnel>),
}

/// Both sides of a WebSocket, and its places among those that are bounded.
struct Tunnel {
    response: Response<Incoming>,
    lease: Lease,
    client: OnUpgrade,
    places: (Place, InFlight),
}

/// Answers a request, one way or another.
pub(crate) async fn handle<B: Backends>(
    endpoint: Arc<Endpoint<B>>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    let refused = peer.link.as_ref().and_then(|link| link.begin());
    let mut ticket = ticket(&endpoint, &peer);
    let answer = match refused {
        Some(refusal) => Err(refusal),
        None => answer(&endpoint, &peer, &mut ticket, request).await,
    };
    let tunnel = matches!(answer, Ok(Answer::Tunnel(_)));
    let reply = match answer {
        Ok(Answer::Text(status, fields, text)) => text_reply(status, fields, text, ticket),
        Ok(Answer::Backend(both)) => backend_reply(&endpoint, &peer, ticket, *both),
        Ok(Answer::Tunnel(all)) => tunnel_reply(&endpoint, peer.clone(), ticket, *all),
        Err(refusal) => refusal_reply(&peer, refusal, ticket),
    };
    if let Some(link) = &peer.link {
        link.decide(tunnel);
    }
    Ok(reply)
}

fn ticket<B: Backends>(endpoint: &Endpoint<B>, peer: &Peer) -> Ticket {
    let access = Access {
        client: peer.address,
        host: String::new(),
        method: String::new(),
        path: String::new(),
        status: None,
        received: 0,
        sent: 0,
        duration: Duration::ZERO,
        backend: None,
        encryption: peer.tls.as_ref().map_or(Encryption::None, |tls| tls.encryption),
        http2: peer.stalls.is_some(),
        refusal: None,
        complete: false,
    };
    Ticket::new(access, Arc::clone(&endpoint.config.observer), peer.link.clone(), &peer.busy)
}

async fn answer<B: Backends>(
    endpoint: &Endpoint<B>,
    peer: &Peer,
    ticket: &mut Ticket,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    request.method().as_str().clone_into(&mut ticket.access.method);
    request.uri().path().clone_into(&mut ticket.access.path);
    let authority = Authority::of(&request)?;
    authority.name().clone_into(&mut ticket.access.host);
    if peer.tls.is_none()
        && let Some(text) = endpoint.config.challenges.http(authority.name(), request.uri().path())
    {
        return Ok(Answer::Text(StatusCode::OK, vec![(CONTENT_TYPE, TEXT)], text));
    }
    if peer.tls.as_ref().is_some_and(|tls| tls.name != authority.name()) {
        return Err(Refusal::Misdirected);
    }
    let table = Arc::clone(&endpoint.table.borrow());
    let host = table.host(authority.name()).ok_or(Refusal::UnknownHost)?;
    // Not what is open to everybody: a container reaches what it was allowed to and nothing else, and does not learn of it.
    if peer.container.is_some_and(|container| !named(host.rules.as_deref(), container)) {
        return Err(Refusal::UnknownHost);
    }
    if host.redirect_to_https && peer.tls.is_none() {
        return redirect(&authority, request.uri());
    }
    let path = check(endpoint, peer, host, &request)?;
    ticket.held = Some(Arc::new(endpoint.enter(&peer.client, host)?));
    let cluster = host.cluster(&path.normal).ok_or(Refusal::NoRoute)?;
    pass_on(endpoint, peer, ticket, host, cluster, &authority, &path, request).await
}

fn redirect(authority: &Authority, uri: &Uri) -> Result<Answer, Refusal> {
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let target = if target.starts_with('/') { target } else { "/" };
    let location = HeaderValue::from_maybe_shared(format!("https://{}{target}", authority.name()));
    let location = location.map_err(|_| Refusal::BadTarget)?;
    Ok(Answer::Text(StatusCode::PERMANENT_REDIRECT, vec![(LOCATION, location)], String::new()))
}

/// All that can be refused by the head alone. The path that counts.
fn check<B: Backends>(
    endpoint: &Endpoint<B>,
    peer: &Peer,
    host: &Host,
    request: &Request<Incoming>,
) -> Result<Path, Refusal> {
    if request.headers().len() > endpoint.config.limits.head_fields {
        return Err(Refusal::HeadTooLarge);
    }
    if request.method() == Method::CONNECT {
        return Err(Refusal::BadTarget);
    }
    let path = Path::new(request.uri().path()).ok_or(Refusal::BadTarget)?;
    if let Some(rules) = &host.rules {
        if path.ambiguous {
            return Err(Refusal::AmbiguousPath);
        }
        if !allowed(rules, request.method(), &path.normal, peer.address.ip(), peer.container) {
            return Err(Refusal::Forbidden);
        }
    }
    let mut expected = request.headers().get_all(EXPECT).iter();
    if !expected.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal::Expectation);
    }
    if request.body().size_hint().lower() > host.max_body_bytes {
        return Err(Refusal::BodyTooLarge);
    }
    Ok(path)
}

#[expect(clippy::too_many_arguments, reason = "all that is known of the request, and used here once")]
async fn pass_on<B: Backends>(
    endpoint: &Endpoint<B>,
    peer: &Peer,
    ticket: &mut Ticket,
    host: &Host,
    cluster: &Cluster,
    authority: &Authority,
    path: &Path,
    mut request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let websocket = request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && is_websocket(request.headers());
    let places = if websocket { Some(endpoint.enter_tunnel(&peer.client, host)?) } else { None };
    let upgrade = places.map(|places| (hyper::upgrade::on(&mut request), places));
    let (mut head, body) = request.into_parts();
    let limits = &endpoint.config.limits;
    let (body, progress) = ClientBody::new(body, host.max_body_bytes, limits, peer.link.clone());
    let origin = Origin { client: peer.address.ip(), https: peer.tls.is_some(), authority: &authority.whole };
    to_backend(&mut head.headers, &origin, host.rewrite_host.as_deref().unwrap_or(&authority.whole))?;
    if host.rules.is_some() {
        remove_overrides(&mut head.headers);
    }
    if websocket {
        set_websocket(&mut head.headers);
    }
    // Servers want a length where a body is usual, though hyper writes none when there is no body.
    if body.is_end_stream() && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    // With these methods hyper sends no body of unknown length unless it is told to.
    if body.size_hint().exact().is_none() {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let key = host.sticky.then_some(&endpoint.config.cookie_key);
    let wanted = key.and_then(|key| key.take(host.name.as_str(), &mut head.headers));
    let mut inner = Request::new(body);
    *inner.method_mut() = head.method;
    *inner.uri_mut() = target(host, path, &head.uri)?;
    *inner.headers_mut() = head.headers;
    let exchanged = exchange(endpoint, (host, cluster), wanted, inner, progress.clone()).await;
    // When there is a response, its body's end tells.
    ticket.access.received = progress.map_or(0, |progress| progress.bytes());
    let (mut response, lease) = exchanged?;
    ticket.access.backend = Some(lease.entry.id);
    if let Some(key) = key.filter(|_| wanted != Some(lease.entry.id))
        && let Some(cookie) = key.set(host.name.as_str(), lease.entry.id, peer.tls.is_some())
    {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    if host.hsts && peer.tls.is_some() {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HSTS);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::Backend(Box::new((response, lease))));
    }
    match upgrade {
        Some((client, places)) if is_websocket(response.headers()) => {
            Ok(Answer::Tunnel(Box::new(Tunnel { response, lease, client, places })))
        }
        _ => Err(Refusal::BackendFailed),
    }
}

/// The target in origin form. Under access rules the path is the one that they were applied to: a backend that normalises it
/// otherwise must not see the original.
fn target(host: &Host, path: &Path, uri: &Uri) -> Result<Uri, Refusal> {
    let original = uri.path_and_query().cloned().ok_or(Refusal::BadTarget)?;
    if host.rules.is_none() {
        return Ok(Uri::from(original));
    }
    let query = original.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", path.normal).parse().map_err(|_| Refusal::BadTarget)
}

fn text_reply(
    status: StatusCode,
    fields: Vec<(hyper::header::HeaderName, HeaderValue)>,
    text: impl Into<hyper::body::Bytes>,
    mut ticket: Ticket,
) -> Reply {
    ticket.access.status = Some(status.as_u16());
    let mut reply = Response::new(ReplyBody::text(text, ticket));
    *reply.status_mut() = status;
    reply.headers_mut().extend(fields);
    reply
}

fn refusal_reply(peer: &Peer, refusal: Refusal, mut ticket: Ticket) -> Reply {
    ticket.refuse(refusal);
    let status = refusal.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut fields = vec![(CONTENT_TYPE, TEXT)];
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        fields.push((RETRY_AFTER, RETRY_SECONDS));
    }
    // What follows on the connection may not be what it seems.
    let closes = matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    if closes && peer.stalls.is_none() {
        fields.push((CONNECTION, HeaderValue::from_static("close")));
    }
    text_reply(status, fields, refusal.text(), ticket)
}

fn backend_reply<B: Backends>(
    endpoint: &Endpoint<B>,
    peer: &Peer,
    mut ticket: Ticket,
    (response, lease): (Response<Incoming>, Lease),
) -> Reply {
    let (mut head, body) = response.into_parts();
    ticket.access.status = Some(head.status.as_u16());
    to_client(&mut head.headers);
    let stall = endpoint.config.limits.progress_timeout;
    let mut reply = Response::new(ReplyBody::backend(body, lease, stall, ticket, peer.stalls.clone()));
    *reply.status_mut() = head.status;
    *reply.headers_mut() = head.headers;
    reply
}

fn tunnel_reply<B: Backends>(
    endpoint: &Endpoint<B>,
    peer: Arc<Peer>,
    mut ticket: Ticket,
    Tunnel { mut response, lease, client, places }: Tunnel,
) -> Reply {
    let backend = hyper::upgrade::on(&mut response);
    ticket.access.status = Some(response.status().as_u16());
    let (mut head, _) = response.into_parts();
    to_client(&mut head.headers);
    set_websocket(&mut head.headers);
    let silence = endpoint.config.limits.tunnel_timeout;
    let splice = async move {
        let mut ticket = ticket;
        // The connection counts for its client until the tunnel ends.
        let _held = (peer, lease.in_flight, places);
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => {
                let (received, sent) = join(TokioIo::new(client), TokioIo::new(backend), silence).await;
                (ticket.access.received, ticket.access.sent) = (received, sent);
                ticket.access.complete = true;
            }
            Err(error) => tracing::debug!(%error, "an upgrade broke off"),
        }
    };
    endpoint.client_tasks.spawn(endpoint.kill.clone().run_until_cancelled_owned(splice));
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *reply.headers_mut() = head.headers;
    reply
}
