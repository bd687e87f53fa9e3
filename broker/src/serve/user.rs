//! A user's session: every stream is one request.
use super::listen::Session;
use super::{Shared, node, publish, route, upload, web};
use crate::core::Seen;
use crate::state::{Answer, Input, RequestId, SessionId};
use futures_util::AsyncWriteExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use wherry_protocol::io::{SessionError, Stream, recv, send};
use wherry_protocol::message::{Event, Reply, Request};
use wherry_protocol::{AccountId, Digest, ErrorCode, Limits, Role, WireError};

/// Who sends the requests of one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) session: SessionId,
    pub(crate) account: AccountId,
    pub(crate) role: Role,
}

/// Tells the state that a session is over, however it ends.
pub(crate) struct Ending<'a>(pub(crate) &'a Shared, pub(crate) SessionId);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.core.tell_later(Input::Closed(self.1));
    }
}

/// Serves a session until it ends; its requests end with it.
pub(crate) async fn serve(shared: &Arc<Shared>, session: Session) {
    let Session { id, account, mux, mut incoming, mut driver, role } = session;
    let _ending = Ending(shared, id);
    let Ok(_place) = Arc::clone(&shared.open_sessions).try_acquire_owned() else {
        tracing::warn!("too many sessions are open: a new one of {account} was ended");
        return;
    };
    let registered = shared.sessions.register(id, mux.clone());
    let user = User { session: id, account, role };
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            () = registered.end.cancelled() => break,
            () = shared.end.cancelled() => break,
            ended = &mut driver => {
                if let Err(error) = ended {
                    tracing::debug!("a session of {account} broke: {error}");
                }
                return;
            }
            Some(done) = requests.join_next() => super::listen::report_panic(done),
            stream = incoming.next() => match stream {
                Some(stream) => drop(requests.spawn(request(Arc::clone(shared), user, stream))),
                None => break,
            },
        }
    }
    // In order: what was answered is sent before the end.
    mux.close();
    drop(tokio::time::timeout(Duration::from_secs(1), driver).await);
}

async fn request(shared: Arc<Shared>, user: User, mut stream: Stream) {
    let patience = Duration::from_secs(shared.limits.request_seconds);
    let head =
        tokio::time::timeout(patience, recv::<Request>(&mut stream, Limits::DEFAULT.message_bytes)).await;
    let done = match head {
        Ok(Ok(Some(body))) => answer(&shared, user, stream, body).await,
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error)) => refuse(stream, &error).await,
        Err(_) => {
            let late = WireError::new(ErrorCode::Timeout, "no request came on this stream");
            finish(stream, Reply::Error(late)).await
        }
    };
    if let Err(error) = done {
        tracing::debug!("a request of {} broke: {error}", user.account);
    }
}

async fn refuse(stream: Stream, error: &SessionError) -> Result<(), SessionError> {
    let code = match error {
        SessionError::TooLarge { .. } => ErrorCode::TooLarge,
        SessionError::Io(_)
        | SessionError::WrongServerKey
        | SessionError::Refused(_)
        | SessionError::Version { .. }
        | SessionError::Garbage { .. }
        | SessionError::Closed
        | SessionError::TooManyStreams { .. } => ErrorCode::Invalid,
    };
    finish(stream, Reply::Error(WireError::new(code, format!("this is no request: {error}")))).await
}

/// The last message of a stream. One that is too long for a message becomes an error that says so.
pub(crate) async fn finish(mut stream: Stream, reply: Reply) -> Result<(), SessionError> {
    match send(&mut stream, &reply).await {
        Err(SessionError::TooLarge { bytes, limit }) => {
            let text = format!("the answer takes {bytes} bytes, the limit is {limit}: ask for less at once");
            send(&mut stream, &Reply::Error(WireError::new(ErrorCode::TooLarge, text))).await?;
        }
        other => other?,
    }
    stream.close().await?;
    Ok(())
}

async fn answer(shared: &Shared, user: User, stream: Stream, body: Request) -> Result<(), SessionError> {
    let request = RequestId(shared.core.number());
    match body {
        Request::PutBlob(blob) => upload::receive(shared, user, request, stream, blob).await,
        Request::ReadBlob(digest) => read_blob(shared, user, request, stream, digest).await,
        Request::Events => events(shared, user, request, stream).await,
        Request::AccessLog { host, follow } => web::log(shared, user, request, stream, (host, follow)).await,
        Request::ClaimDomain { .. } => web::claim(shared, user, request, stream, body).await,
        Request::Run(run) => {
            if let Err(error) = publish::try_ports(shared, &run.spec.publish).await {
                return finish(stream, Reply::Error(error)).await;
            }
            simple(shared, user, request, stream, Request::Run(run)).await
        }
        other => simple(shared, user, request, stream, other).await,
    }
}

async fn simple(
    shared: &Shared,
    user: User,
    request: RequestId,
    stream: Stream,
    body: Request,
) -> Result<(), SessionError> {
    match shared.core.request(request, user.session, body).await {
        Answer::Reply(reply) => finish(stream, reply).await,
        Answer::Route { session, routed } => route::splice(shared, stream, session, routed).await,
        Answer::Session(_) | Answer::Enrol(_) | Answer::Blob(_) | Answer::Lookup(_) => {
            finish(stream, Reply::Error(WireError::new(ErrorCode::Internal, "the broker gave no answer")))
                .await
        }
    }
}

async fn read_blob(
    shared: &Shared,
    user: User,
    request: RequestId,
    stream: Stream,
    digest: Digest,
) -> Result<(), SessionError> {
    match shared.core.request(request, user.session, Request::ReadBlob(digest)).await {
        Answer::Reply(Reply::Blob { size }) => node::hand_out(shared, stream, digest, size).await,
        Answer::Reply(other) => finish(stream, other).await,
        Answer::Route { .. }
        | Answer::Session(_)
        | Answer::Enrol(_)
        | Answer::Blob(_)
        | Answer::Lookup(_) => Ok(()),
    }
}

async fn events(
    shared: &Shared,
    user: User,
    request: RequestId,
    mut stream: Stream,
) -> Result<(), SessionError> {
    // Before the reply, so that nothing is missed after it.
    let mut events = shared.core.subscribe();
    match shared.core.request(request, user.session, Request::Events).await {
        Answer::Reply(Reply::Done) => send(&mut stream, &Reply::Done).await?,
        Answer::Reply(other) => return finish(stream, other).await,
        Answer::Route { .. }
        | Answer::Session(_)
        | Answer::Enrol(_)
        | Answer::Blob(_)
        | Answer::Lookup(_) => return Ok(()),
    }
    loop {
        match events.recv().await {
            Ok(seen) if visible(user, &seen) => send(&mut stream, &seen.event).await?,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(count)) => {
                send(&mut stream, &Event::Lost { count }).await?
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(stream.close().await?),
        }
    }
}

/// An account sees what is its own or everybody's; an admin sees all.
fn visible(user: User, seen: &Seen) -> bool {
    user.role == Role::Admin || seen.account.is_none_or(|account| account == user.account)
}
