//! A board's session: one control stream for its whole life, and a stream for each blob it fetches.
use super::listen::Session;
use super::user::{Ending, finish};
use super::{Shared, upload};
use crate::state::{Answer, Input, SessionId};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;
use wherry_images::store::StoreError;
use wherry_protocol::io::{SessionError, Stream, recv, send};
use wherry_protocol::message::{FromNode, NodeCall, Reply, ToNode};
use wherry_protocol::{Digest, ErrorCode, Limits, WireError};

/// What a new stream turned out to be.
enum Opened {
    Control(Box<(Stream, wherry_protocol::message::NodeHello)>),
    /// Dealt with.
    Done,
}

/// Serves a board until it leaves.
pub(crate) async fn serve(shared: &Arc<Shared>, session: Session) {
    let Session { id, account, mux, mut incoming, mut driver, .. } = session;
    let _ending = Ending(shared, id);
    let mut registered = shared.sessions.register(id, mux);
    let end = registered.end.clone();
    let mut calls: JoinSet<Result<Opened, SessionError>> = JoinSet::new();
    let mut control: JoinSet<Result<(), SessionError>> = JoinSet::new();
    loop {
        tokio::select! {
            () = end.cancelled() => break,
            () = shared.web.drained.cancelled() => break,
            ended = &mut driver => {
                if let Err(error) = ended {
                    tracing::info!("the board {account} was lost: {error}");
                }
                return;
            }
            Some(ended) = control.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::info!("the control stream of board {account} broke: {error}");
                }
                break;
            }
            Some(call) = calls.join_next() => match call {
                Ok(Ok(Opened::Control(opened))) if control.is_empty() => {
                    let (stream, hello) = *opened;
                    let (sender, orders) = mpsc::channel(1);
                    let orders = std::mem::replace(&mut registered.orders, orders);
                    drop(sender);
                    let shared = Arc::clone(shared);
                    shared.core.tell(Input::Hello { session: id, hello: Box::new(hello) }).await;
                    control.spawn(conduct(shared, id, stream, orders));
                }
                Ok(Ok(Opened::Control(_))) => {
                    tracing::warn!("board {account} opened a second control stream: ending its session");
                    break;
                }
                Ok(Ok(Opened::Done)) => {}
                Ok(Err(error)) => tracing::debug!("a call of board {account} broke: {error}"),
                Err(failed) => tracing::error!("a call of board {account} failed: {failed}"),
            },
            stream = incoming.next() => match stream {
                Some(stream) => drop(calls.spawn(call(Arc::clone(shared), id, stream))),
                None => break,
            },
        }
    }
    // Not closed in order: yamux would leave those waiting who read from the board's streams. Dropping the driver cuts the
    // session, and wakes them.
}

async fn call(shared: Arc<Shared>, session: SessionId, mut stream: Stream) -> Result<Opened, SessionError> {
    let patience = Duration::from_secs(shared.limits.request_seconds);
    let head = tokio::time::timeout(patience, recv(&mut stream, Limits::DEFAULT.message_bytes));
    match head.await.map_err(|_| SessionError::Closed)?? {
        Some(NodeCall::Control(hello)) => Ok(Opened::Control(Box::new((stream, *hello)))),
        Some(NodeCall::FetchBlob(digest)) => {
            fetch(&shared, session, stream, digest).await.map(|()| Opened::Done)
        }
        Some(NodeCall::Web { container, tls }) => {
            super::web::call(&shared, session, stream, (container, tls)).await.map(|()| Opened::Done)
        }
        None => Ok(Opened::Done),
    }
}

/// The control stream, both directions, until either ends.
async fn conduct(
    shared: Arc<Shared>,
    session: SessionId,
    stream: Stream,
    mut orders: mpsc::Receiver<ToNode>,
) -> Result<(), SessionError> {
    let (mut reader, mut writer) = stream.split();
    let reports = async {
        while let Some(message) = recv::<FromNode>(&mut reader, Limits::DEFAULT.message_bytes).await? {
            shared.core.tell(Input::Report { session, message }).await;
        }
        Ok(())
    };
    let orders = async {
        while let Some(order) = orders.recv().await {
            send(&mut writer, &order).await?;
        }
        writer.close().await?;
        Ok(())
    };
    tokio::select! {
        ended = reports => ended,
        ended = orders => ended,
    }
}

async fn fetch(
    shared: &Shared,
    session: SessionId,
    stream: Stream,
    digest: Digest,
) -> Result<(), SessionError> {
    let allowed = shared.core.ask(|request| Input::Fetch { request, session, digest }).await;
    let size = match allowed {
        Some(Answer::Blob(Ok(size))) => size,
        Some(Answer::Blob(Err(error))) => return finish(stream, Reply::Error(error)).await,
        Some(
            Answer::Reply(_)
            | Answer::Route { .. }
            | Answer::Session(_)
            | Answer::Enrol(_)
            | Answer::Lookup(_),
        )
        | None => {
            return Ok(());
        }
    };
    hand_out(shared, stream, digest, size).await
}

/// Sends a blob to somebody who may have it.
pub(super) async fn hand_out(
    shared: &Shared,
    stream: Stream,
    digest: Digest,
    size: u64,
) -> Result<(), SessionError> {
    let store = shared.blobs.clone();
    let file = match tokio::task::spawn_blocking(move || store.read(&digest, size)).await {
        Ok(Ok(file)) => file,
        Ok(Err(error)) => return missing(shared, stream, digest, &error).await,
        Err(failed) => {
            let error = WireError::new(ErrorCode::Internal, format!("reading {digest} failed: {failed}"));
            return finish(stream, Reply::Error(error)).await;
        }
    };
    send_blob(stream, tokio::fs::File::from_std(file), size).await
}

/// What should be there is not: whoever pushed it may do so again.
async fn missing(
    shared: &Shared,
    stream: Stream,
    digest: Digest,
    error: &StoreError,
) -> Result<(), SessionError> {
    match error {
        StoreError::NotFound(_) | StoreError::SizeMismatch { .. } | StoreError::DigestMismatch { .. } => {
            tracing::error!("a blob is lost: {error}");
            shared.core.tell(Input::Lost(digest)).await;
        }
        StoreError::DiskFull { .. } | StoreError::Io { .. } | StoreError::TooLarge { .. } => {}
    }
    finish(stream, Reply::Error(upload::wire(error))).await
}

async fn send_blob(mut stream: Stream, file: tokio::fs::File, size: u64) -> Result<(), SessionError> {
    send(&mut stream, &Reply::Blob { size }).await?;
    let mut bytes = file.compat().take(size);
    futures_util::io::copy(&mut bytes, &mut stream).await?;
    stream.close().await?;
    Ok(())
}
