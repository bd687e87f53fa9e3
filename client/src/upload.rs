//! Single blobs for the broker.
use crate::error::ClientError;
use crate::location::Location;
use futures_util::AsyncWriteExt as _;
use hyper::body::Bytes;
use std::io::{self, Read};
use tokio::sync::mpsc;
use wherry_protocol::Digest;
use wherry_protocol::io::{SessionError, Stream};
use wherry_protocol::message::{Descriptor, Media, Reply, Request};

/// Bytes read at once, and chunks read ahead of the network.
const CHUNK_BYTES: usize = 128 * 1024;
pub(crate) const CHUNKS_AHEAD: usize = 4;

/// Pieces of a blob, read a little ahead. After an error nothing follows; without one the blob is whole.
pub(crate) type Chunks = mpsc::Receiver<Result<Bytes, ClientError>>;

/// How the broker came to have a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It has taken it from us.
    Sent,
    /// It had it already.
    There,
}

impl Location {
    /// Makes sure that the broker has `bytes`, and that this account holds them.
    pub async fn put_bytes(&self, bytes: Vec<u8>, media: Media) -> Result<Descriptor, ClientError> {
        let descriptor = Descriptor { digest: Digest::of(&bytes), size: bytes.len() as u64, media };
        let open = || Ok(read_ahead(io::Cursor::new(bytes), ClientError::Spool));
        self.put_blob(&descriptor, open, |_| {}).await?;
        Ok(descriptor)
    }

    /// Sends what `open` gives, unless the broker has it from this account already; `sent` is told of every piece.
    pub(crate) async fn put_blob(
        &self,
        blob: &Descriptor,
        open: impl FnOnce() -> Result<Chunks, ClientError>,
        sent: impl Fn(u64),
    ) -> Result<Put, ClientError> {
        let (reply, mut stream) = self.open(&Request::PutBlob(blob.clone())).await?;
        match reply {
            Reply::Done => {}
            // Perhaps somebody else has sent it in the meantime.
            Reply::Blob { .. } => return Ok(Put::There),
            _ => return Err(ClientError::Unexpected("put blob")),
        }
        let copied = match self.copy(open()?, &mut stream, sent).await {
            // The broker waits for the rest, which will not come: it has nothing to say.
            Err(error @ (ClientError::Registry(_) | ClientError::Archive(_) | ClientError::Spool(_))) => {
                return Err(error);
            }
            copied => copied,
        };
        match (copied, self.reply(&mut stream).await) {
            // A broker that stops reading says why: that says more than our broken pipe.
            (_, Err(error @ ClientError::Refused(_))) => Err(error),
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(Reply::Done)) => Ok(Put::Sent),
            (Ok(()), Ok(_)) => Err(ClientError::Unexpected("blob bytes")),
        }
    }

    async fn copy(
        &self,
        mut chunks: Chunks,
        stream: &mut Stream,
        sent: impl Fn(u64),
    ) -> Result<(), ClientError> {
        let lost = |error: io::Error| self.lost(SessionError::from(error));
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk?;
            stream.write_all(&chunk).await.map_err(lost)?;
            sent(chunk.len() as u64);
        }
        stream.flush().await.map_err(lost)
    }
}

/// Reads a blob on a thread of its own, a few chunks ahead of the network.
pub(crate) fn read_ahead(
    mut reader: impl Read + Send + 'static,
    failed: fn(io::Error) -> ClientError,
) -> Chunks {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let result = match reader.read(&mut chunk) {
                // The end is told by the end of the channel.
                Ok(0) => return,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(failed(error)),
            };
            let last = result.is_err();
            // Nobody listens any more if the push was given up.
            if sender.blocking_send(result).is_err() || last {
                return;
            }
        }
    });
    receiver
}
