//! A blob as a stream. A connection that is cut is made again, from where it was cut if the server can do that.
use super::client::{Asked, Registry};
use super::error::RegistryError;
use super::manifest::RemoteImage;
use crate::error::ClientError;
use crate::http::Response;
use crate::image::BlobSource;
use crate::upload::{CHUNKS_AHEAD, Chunks};
use hyper::StatusCode;
use hyper::body::Bytes;
use sha2::Digest as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wherry_protocol::Digest;
use wherry_protocol::message::Descriptor;

/// How long a registry may give nothing at all before we give up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before another attempt.
const PAUSE: Duration = Duration::from_millis(500);

impl BlobSource for RemoteImage {
    fn open(&self, blob: &Descriptor) -> Result<Chunks, ClientError> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        if blob.digest == self.manifest.config.digest {
            let config = Bytes::copy_from_slice(&self.config);
            tokio::spawn(async move { drop(sender.send(Ok(config)).await) });
            return Ok(receiver);
        }
        let (registry, blob) = (Arc::clone(&self.registry), blob.clone());
        tokio::spawn(async move {
            let fetched = tokio::select! {
                fetched = fetch(&registry, &blob, &sender) => fetched,
                // Nobody wants it any more.
                () = sender.closed() => return,
            };
            if let Err(error) = fetched {
                drop(sender.send(Err(ClientError::Registry(error))).await);
            }
        });
        Ok(receiver)
    }
}

type Sender = mpsc::Sender<Result<Bytes, ClientError>>;

/// What has come so far.
struct Got {
    hasher: sha2::Sha256,
    bytes: u64,
    /// The last piece: whoever wants a blob has it whole only once it is known to be right.
    held: Option<Bytes>,
}

async fn fetch(registry: &Registry, blob: &Descriptor, sender: &Sender) -> Result<(), RegistryError> {
    let mut got = Got { hasher: sha2::Sha256::new(), bytes: 0, held: None };
    let mut stuck = (Instant::now(), 0);
    loop {
        let error = match part(registry, blob, &mut got, sender).await {
            Ok(()) => break,
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        if got.bytes > stuck.1 {
            stuck = (Instant::now(), got.bytes);
        } else if stuck.0.elapsed() > PATIENCE {
            return Err(error);
        }
        tracing::debug!("{} after {} bytes, going on: {error}", blob.digest, got.bytes);
        tokio::time::sleep(PAUSE).await;
    }
    let found = Digest(got.hasher.finalize().into());
    if found != blob.digest {
        return Err(RegistryError::WrongDigest { host: registry.host(), expected: blob.digest, found });
    }
    if let Some(last) = got.held {
        drop(sender.send(Ok(last)).await);
    }
    Ok(())
}

/// One request for all that is still missing.
async fn part(
    registry: &Registry,
    blob: &Descriptor,
    got: &mut Got,
    sender: &Sender,
) -> Result<(), RegistryError> {
    let what = format!("blobs/{}", blob.digest);
    let mut response = registry.get(&what, "*/*", got.bytes, Asked::Blob(blob.digest)).await?;
    let wrong_size = |found| RegistryError::WrongSize {
        host: registry.host(),
        blob: blob.digest,
        expected: blob.size,
        found,
    };
    let start = start(&response, got.bytes).ok_or_else(|| RegistryError::Document {
        what: format!("the part of {}", blob.digest),
        host: registry.host(),
        reason: format!("it does not begin at byte {}, where it should", got.bytes),
    })?;
    if let Some(total) =
        response.length().map(|length| length.saturating_add(start)).filter(|total| *total != blob.size)
    {
        return Err(wrong_size(total));
    }
    // From a server that begins anew, what was there already is not wanted again.
    let mut skip = got.bytes - start;
    while let Some(chunk) = response.body.chunk().await? {
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        let fresh = chunk.slice(skipped..);
        skip -= skipped as u64;
        if fresh.is_empty() {
            continue;
        }
        let bytes = got.bytes.saturating_add(fresh.len() as u64);
        if bytes > blob.size {
            return Err(wrong_size(bytes));
        }
        got.hasher.update(&fresh);
        got.bytes = bytes;
        if let Some(before) = got.held.replace(fresh)
            && sender.send(Ok(before)).await.is_err()
        {
            return Ok(());
        }
        // Not waiting for the end: were the connection cut just here, there would be nothing left to ask for.
        if bytes == blob.size {
            return Ok(());
        }
    }
    if got.bytes < blob.size {
        return Err(wrong_size(got.bytes));
    }
    Ok(())
}

/// At which byte an answer begins; `None` if that is after what we have.
fn start(response: &Response, wanted: u64) -> Option<u64> {
    if response.status != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let range = response.header("content-range")?.strip_prefix("bytes ")?;
    let start: u64 = range.split('-').next()?.trim().parse().ok()?;
    (start <= wanted).then_some(start)
}
