//! Images, and sending them.
use crate::error::ClientError;
use crate::location::{Location, fitting};
use crate::registry::RemoteImage;
use futures_util::{AsyncWriteExt as _, StreamExt as _, TryStreamExt as _};
use hyper::body::Bytes;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wherry_images::archive::{ArchiveError, ArchivedImage, BlobReader, ImageArchive};
use wherry_images::oci;
use wherry_protocol::io::{SessionError, Stream};
use wherry_protocol::message::{Descriptor, ImageInfo, ImageManifest, ImageName, Reply, Request};
use wherry_protocol::{Digest, ErrorCode, WireError};

/// Blobs sent at the same time: enough to keep the link busy while the broker syncs one to disk.
const PARALLEL_BLOBS: usize = 3;
/// Bytes read from an archive at once, and chunks read ahead of the network.
const CHUNK_BYTES: usize = 128 * 1024;
pub(crate) const CHUNKS_AHEAD: usize = 4;
/// How long a lost broker is waited for: time to boot again after a power cut, with much to spare.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause before another attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// A named image of this account, as it was when asked for.
#[derive(Debug, Clone)]
pub struct Image {
    location: Location,
    info: ImageInfo,
}

impl Image {
    pub(crate) fn new(location: Location, info: ImageInfo) -> Self {
        Self { location, info }
    }

    /// What the broker says about it.
    #[must_use]
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// Gives it one more name; nothing is sent. Another image that is called so loses the name.
    pub async fn tag(&self, name: &ImageName) -> Result<ImageInfo, ClientError> {
        let request = Request::PutImage {
            name: name.clone(),
            architecture: self.info.architecture.clone(),
            manifest: self.info.manifest.clone(),
        };
        fitting!("put image", self.location.ask(request).await?, Reply::Image(info) => info)
    }

    /// Forgets its name, and the blobs that nothing else needs.
    pub async fn remove(&self) -> Result<(), ClientError> {
        self.location.remove_image(&self.info.name).await
    }
}

/// How far a push is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushProgress {
    /// The broker has said what it lacks. Comes again after a lost connection.
    Missing {
        /// Blobs to send.
        blobs: usize,
        /// Bytes to send.
        bytes: u64,
        /// Blobs of the image.
        of_blobs: usize,
        /// Bytes of the image.
        of_bytes: u64,
    },
    /// So many more bytes were sent.
    Sent {
        /// Of this blob.
        digest: Digest,
        /// This many.
        bytes: u64,
    },
    /// The broker has verified a blob and has it on disk.
    Stored {
        /// This one.
        digest: Digest,
    },
    /// The connection was lost; what is missing will be asked for again.
    Retrying {
        /// Which attempt this will be, from 2.
        attempt: u32,
    },
}

/// Pieces of a blob, read a little ahead. After an error nothing follows; without one the blob is whole.
pub(crate) type Chunks = mpsc::Receiver<Result<Bytes, ClientError>>;

/// Where the blobs of an image come from.
pub(crate) trait BlobSource: Sync {
    /// Begins to read a blob, from its start.
    fn open(&self, blob: &Descriptor) -> Result<Chunks, ClientError>;
}

/// An image of an archive.
struct FromArchive<'a> {
    archive: &'a ImageArchive,
    image: &'a ArchivedImage,
}

impl BlobSource for FromArchive<'_> {
    fn open(&self, blob: &Descriptor) -> Result<Chunks, ClientError> {
        Ok(read_ahead(self.archive.blob(self.image, &blob.digest)?))
    }
}

/// What is needed to send the blobs of one image.
struct Push<'a, F> {
    location: &'a Location,
    source: &'a dyn BlobSource,
    architecture: &'a str,
    manifest: &'a ImageManifest,
    progress: &'a F,
    /// Blobs that the broker has taken from us.
    stored: AtomicUsize,
}

impl Location {
    /// Sends an image and names it. Only the blobs that the broker lacks travel, up to three at a time. If the
    /// connection is lost it waits for the broker and goes on from what has arrived; `progress` is told of every step.
    pub async fn push<F>(
        &self,
        archive: &ImageArchive,
        image: &ArchivedImage,
        name: &ImageName,
        progress: F,
    ) -> Result<ImageInfo, ClientError>
    where
        F: Fn(PushProgress) + Send + Sync,
    {
        let source = FromArchive { archive, image };
        self.send_image(&source, &image.architecture, &image.manifest, name, progress).await
    }

    /// Streams an image from its registry to the broker and names it; nothing of it stays here. It goes on after a lost
    /// connection on either side, as [`Self::push`] does.
    pub async fn pull<F>(
        &self,
        image: &RemoteImage,
        name: &ImageName,
        progress: F,
    ) -> Result<ImageInfo, ClientError>
    where
        F: Fn(PushProgress) + Send + Sync,
    {
        self.send_image(image, &image.architecture, &image.manifest, name, progress).await
    }

    async fn send_image<F>(
        &self,
        source: &dyn BlobSource,
        architecture: &str,
        manifest: &ImageManifest,
        name: &ImageName,
        progress: F,
    ) -> Result<ImageInfo, ClientError>
    where
        F: Fn(PushProgress) + Send + Sync,
    {
        let push = Push {
            location: self,
            source,
            architecture,
            manifest,
            progress: &progress,
            stored: AtomicUsize::new(0),
        };
        let mut attempt = 1;
        // Since when, and after how many blobs, there has been no progress.
        let mut stuck: Option<(Instant, usize)> = None;
        loop {
            let error = match push.once(name).await {
                Err(error) if error.is_lost() || (attempt > 1 && error.is_absence()) => error,
                result => return result,
            };
            let stored = push.stored.load(Ordering::Relaxed);
            match stuck {
                Some((since, then)) if then == stored && since.elapsed() > PATIENCE => return Err(error),
                Some((_, then)) if then == stored => {}
                _ => stuck = Some((Instant::now(), stored)),
            }
            tokio::time::sleep(PAUSE).await;
            attempt += 1;
            progress(PushProgress::Retrying { attempt });
        }
    }
}

impl<F: Fn(PushProgress) + Send + Sync> Push<'_, F> {
    async fn once(&self, name: &ImageName) -> Result<ImageInfo, ClientError> {
        let missing = self.missing().await?;
        futures_util::stream::iter(missing)
            .map(|blob| self.send(blob))
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<()>()
            .await?;
        let request = Request::PutImage {
            name: name.clone(),
            architecture: self.architecture.to_owned(),
            manifest: self.manifest.clone(),
        };
        fitting!("put image", self.location.ask(request).await?, Reply::Image(info) => info)
    }

    async fn missing(&self) -> Result<Vec<Descriptor>, ClientError> {
        let digests = oci::blobs(self.manifest).map(|blob| blob.digest).collect();
        let reply = self.location.ask(Request::MissingBlobs(digests)).await?;
        let lacking: BTreeSet<Digest> = fitting!("missing blobs", reply,
            Reply::Missing(digests) => digests.into_iter().collect())?;
        let missing: Vec<Descriptor> =
            oci::blobs(self.manifest).filter(|blob| lacking.contains(&blob.digest)).cloned().collect();
        (self.progress)(PushProgress::Missing {
            blobs: missing.len(),
            bytes: missing.iter().map(|blob| blob.size).sum(),
            of_blobs: oci::blobs(self.manifest).count(),
            of_bytes: oci::blobs(self.manifest).map(|blob| blob.size).fold(0, u64::saturating_add),
        });
        Ok(missing)
    }

    async fn send(&self, blob: Descriptor) -> Result<(), ClientError> {
        let digest = blob.digest;
        let (reply, mut stream) = self.location.open(&Request::PutBlob(blob.clone())).await?;
        match reply {
            Reply::Done => {}
            // Somebody else has sent it in the meantime.
            Reply::Blob { .. } => {
                (self.progress)(PushProgress::Stored { digest });
                return Ok(());
            }
            _ => return Err(ClientError::Unexpected("put blob")),
        }
        let mut chunks = self.source.open(&blob)?;
        let sent = match self.copy(digest, &mut chunks, &mut stream).await {
            // The broker waits for the rest, which will not come: it has nothing to say.
            Err(error @ (ClientError::Registry(_) | ClientError::Archive(_))) => return Err(error),
            sent => sent,
        };
        match (sent, self.location.reply(&mut stream).await) {
            // A broker that stops reading says why: that says more than our broken pipe.
            (_, Err(error @ ClientError::Refused(_))) => Err(error),
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(Reply::Done)) => {
                self.stored.fetch_add(1, Ordering::Relaxed);
                (self.progress)(PushProgress::Stored { digest });
                Ok(())
            }
            (Ok(()), Ok(_)) => Err(ClientError::Unexpected("blob bytes")),
        }
    }

    async fn copy(
        &self,
        digest: Digest,
        chunks: &mut Chunks,
        stream: &mut Stream,
    ) -> Result<(), ClientError> {
        let lost = |error: std::io::Error| self.location.lost(SessionError::from(error));
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk?;
            stream.write_all(&chunk).await.map_err(lost)?;
            (self.progress)(PushProgress::Sent { digest, bytes: chunk.len() as u64 });
        }
        stream.flush().await.map_err(lost)
    }
}

/// Reads a blob on a thread of its own, a few chunks ahead of the network.
fn read_ahead(mut reader: BlobReader) -> Chunks {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let result = match reader.read(&mut chunk) {
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(ClientError::Archive(ArchiveError::Read(error))),
            };
            let last = result.as_ref().map_or(true, Bytes::is_empty);
            // The empty chunk of the end is not sent; nobody listening any more means the push was given up.
            if matches!(&result, Ok(chunk) if chunk.is_empty())
                || sender.blocking_send(result).is_err()
                || last
            {
                return;
            }
        }
    });
    receiver
}

/// Opens an archive and verifies its images, on a thread of its own: hashing a big image takes seconds.
pub async fn open_archive(
    path: std::path::PathBuf,
    platforms: wherry_images::archive::Platforms,
) -> Result<(Arc<ImageArchive>, Vec<ArchivedImage>), ClientError> {
    let read = move || {
        let archive = ImageArchive::open(&path)?;
        let images = archive.images(&platforms)?;
        Ok((Arc::new(archive), images))
    };
    reading(read).await
}

/// Reads an archive from a pipe, such as standard input, and verifies its images.
pub async fn read_archive(
    reader: impl std::io::Read + Send + 'static,
    platforms: wherry_images::archive::Platforms,
) -> Result<(Arc<ImageArchive>, Vec<ArchivedImage>), ClientError> {
    let read = move || {
        let archive = ImageArchive::from_reader(reader, None)?;
        let images = archive.images(&platforms)?;
        Ok((Arc::new(archive), images))
    };
    reading(read).await
}

/// Verifies the images of an archive that is open already.
pub async fn verify_archive(
    archive: ImageArchive,
    platforms: wherry_images::archive::Platforms,
) -> Result<(Arc<ImageArchive>, Vec<ArchivedImage>), ClientError> {
    let read = move || {
        let images = archive.images(&platforms)?;
        Ok((Arc::new(archive), images))
    };
    reading(read).await
}

async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| {
        Err(ClientError::Refused(WireError::new(ErrorCode::Internal, "reading the archive was interrupted")))
    })
}
