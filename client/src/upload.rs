//! Single blobs for the broker.
use crate::error::ClientError;
use crate::location::Location;
use futures_util::AsyncWriteExt as _;
use std::io::{self, Read};
use wherry_protocol::Digest;
use wherry_protocol::io::{SessionError, Stream};
use wherry_protocol::message::{Descriptor, Media, Reply, Request};

/// Bytes sent at once.
const CHUNK_BYTES: usize = 128 * 1024;

impl Location {
    /// Makes sure that the broker has `bytes`, and that this account holds them.
    pub async fn put_bytes(&self, bytes: &[u8], media: Media) -> Result<Descriptor, ClientError> {
        let descriptor = Descriptor { digest: Digest::of(bytes), size: bytes.len() as u64, media };
        self.put_blob(&descriptor, bytes).await?;
        Ok(descriptor)
    }

    /// Sends a blob, unless the broker has it from this account already.
    pub(crate) async fn put_blob(
        &self,
        blob: &Descriptor,
        content: impl Read + Send,
    ) -> Result<(), ClientError> {
        let (reply, mut stream) = self.open(&Request::PutBlob(blob.clone())).await?;
        match reply {
            Reply::Done => {}
            Reply::Blob { .. } => return Ok(()),
            _ => return Err(ClientError::Unexpected("put blob")),
        }
        let sent = send(content, &mut stream).await.map_err(|error| self.lost(SessionError::from(error)));
        match (sent, self.reply(&mut stream).await) {
            // A broker that stops reading says why: that says more than our broken pipe.
            (_, Err(error @ ClientError::Refused(_))) => Err(error),
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(Reply::Done)) => Ok(()),
            (Ok(()), Ok(_)) => Err(ClientError::Unexpected("blob bytes")),
        }
    }
}

async fn send(mut content: impl Read + Send, stream: &mut Stream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match content.read(&mut chunk)? {
            0 => return stream.flush().await,
            length => stream.write_all(chunk.get(..length).unwrap_or_default()).await?,
        }
    }
}
