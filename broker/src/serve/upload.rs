//! A blob coming in: verified while it is written, acknowledged once it is on disk and on record.
use super::Shared;
use super::user::{User, finish};
use crate::state::{Answer, Input, RequestId};
use futures_util::AsyncReadExt as _;
use std::time::Duration;
use tokio::sync::mpsc;
use wherry_images::store::{BlobWriter, StoreError};
use wherry_protocol::io::{SessionError, Stream, send};
use wherry_protocol::message::{Descriptor, Reply, Request};
use wherry_protocol::{ErrorCode, WireError};

/// Bytes handed to the disk at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks between the network and the disk.
const CHUNKS: usize = 4;
/// Time for a sender to go on; one that says nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Time in which the rest of a refused blob is still read, so that the sender comes to read the refusal.
const REST: Duration = Duration::from_secs(5);

/// Answers `PutBlob`.
pub(crate) async fn receive(
    shared: &Shared,
    user: User,
    request: RequestId,
    mut stream: Stream,
    blob: Descriptor,
) -> Result<(), SessionError> {
    let reply = match shared.core.request(request, user.session, Request::PutBlob(blob.clone())).await {
        Answer::Reply(reply) => reply,
        Answer::Route { .. }
        | Answer::Session(_)
        | Answer::Enrol(_)
        | Answer::Blob(_)
        | Answer::Lookup(_) => return Ok(()),
    };
    if reply != Reply::Done {
        return finish(stream, reply).await;
    }
    let mut begun = Begun { shared, request, stored: false };
    let Ok(_permit) = shared.uploads.acquire().await else { return Ok(()) };
    let writer = match open(shared, &blob).await {
        Ok(writer) => writer,
        Err(error) => return finish(stream, Reply::Error(wire(&error))).await,
    };
    send(&mut stream, &Reply::Done).await?;
    if let Err(error) = copy(&mut stream, writer, blob.size).await? {
        send(&mut stream, &Reply::Error(wire(&error))).await?;
        return drain(stream).await;
    }
    begun.stored = true;
    let stored =
        shared.core.ask_as(request, |request| Input::Stored { request, session: user.session, blob });
    match stored.await {
        Some(Answer::Reply(reply)) => finish(stream, reply).await,
        Some(
            Answer::Route { .. }
            | Answer::Session(_)
            | Answer::Enrol(_)
            | Answer::Blob(_)
            | Answer::Lookup(_),
        )
        | None => Ok(()),
    }
}

/// Tells the state if an upload came to nothing.
struct Begun<'a> {
    shared: &'a Shared,
    request: RequestId,
    stored: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.stored {
            self.shared.core.tell_later(Input::Abandon(self.request));
        }
    }
}

async fn open(shared: &Shared, blob: &Descriptor) -> Result<BlobWriter, StoreError> {
    let (store, digest, size) = (shared.blobs.clone(), blob.digest, blob.size);
    match tokio::task::spawn_blocking(move || store.writer(digest, size)).await {
        Ok(opened) => opened,
        Err(failed) => Err(ended(&failed)),
    }
}

fn ended(failed: &tokio::task::JoinError) -> StoreError {
    let source = std::io::Error::other(failed.to_string());
    StoreError::Io { action: "write", path: "blob".into(), source }
}

/// The outer error is the sender's connection, the inner one ours.
async fn copy(
    stream: &mut Stream,
    writer: BlobWriter,
    size: u64,
) -> Result<Result<(), StoreError>, SessionError> {
    let (chunks, receiver) = mpsc::channel(CHUNKS);
    let disk = tokio::task::spawn_blocking(move || write(writer, receiver));
    let sent = feed(stream, &chunks, size).await;
    drop(chunks);
    let written = disk.await.unwrap_or_else(|failed| Err(ended(&failed)));
    match (sent, written) {
        // The disk gave up first; that is why no more was read.
        (_, Err(error)) if !matches!(error, StoreError::SizeMismatch { .. }) => Ok(Err(error)),
        (Err(error), _) => Err(error),
        (Ok(()), written) => Ok(written),
    }
}

fn write(mut writer: BlobWriter, mut chunks: mpsc::Receiver<Vec<u8>>) -> Result<(), StoreError> {
    while let Some(chunk) = chunks.blocking_recv() {
        writer.write(&chunk)?;
    }
    writer.finish()
}

async fn feed(stream: &mut Stream, chunks: &mpsc::Sender<Vec<u8>>, size: u64) -> Result<(), SessionError> {
    let mut missing = size;
    while missing > 0 {
        let want = usize::try_from(missing).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut chunk = vec![0; want];
        let mut filled = 0;
        while filled < want {
            let read = tokio::time::timeout(SILENCE, stream.read(&mut chunk[filled..]));
            match read.await.map_err(|_| SessionError::Closed)?? {
                0 => return Err(SessionError::Closed),
                count => filled += count,
            }
        }
        missing -= want as u64;
        if chunks.send(chunk).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads on for a while after a refusal, so that the sender is not stuck before it reads it.
async fn drain(mut stream: Stream) -> Result<(), SessionError> {
    use futures_util::AsyncWriteExt as _;
    stream.close().await?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let rest = async { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    drop(tokio::time::timeout(REST, rest).await);
    Ok(())
}

/// The store's errors as the wire says them.
pub(crate) fn wire(error: &StoreError) -> WireError {
    let (code, message) = match error {
        StoreError::DiskFull { .. } => (
            ErrorCode::DiskFull,
            "the broker's disk is full: remove images that are not needed, then push again".to_owned(),
        ),
        StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. } => {
            (ErrorCode::DigestMismatch, error.to_string())
        }
        StoreError::TooLarge { .. } => (ErrorCode::TooLarge, error.to_string()),
        StoreError::NotFound(_) => (ErrorCode::NotFound, error.to_string()),
        StoreError::Io { source, .. } => {
            tracing::error!("the blob store failed: {error}");
            (ErrorCode::Internal, format!("the broker's disk failed: {source}"))
        }
    };
    WireError::new(code, message)
}
