//! Images, and sending them.
use crate::error::ClientError;
use crate::location::{Location, fitting};
use crate::registry::RemoteImage;
use crate::upload::{Chunks, Put, read_ahead};
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wherry_images::archive::{ArchiveError, ArchivedImage, ImageArchive};
use wherry_images::oci;
use wherry_protocol::message::{Descriptor, ImageInfo, ImageManifest, ImageName, Reply, Request};
use wherry_protocol::{Digest, ErrorCode, WireError};

/// Blobs sent at the same time: enough to keep the link busy while the broker syncs one to disk.
const PARALLEL_BLOBS: usize = 3;
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
        let (architecture, manifest) = (&self.info.architecture, &self.info.manifest);
        self.location.put_image(name, architecture, manifest).await
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
        let reader = self.archive.blob(self.image, &blob.digest)?;
        Ok(read_ahead(reader, |error| ClientError::Archive(ArchiveError::Read(error))))
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

    /// Names an image whose blobs this account holds.
    pub(crate) async fn put_image(
        &self,
        name: &ImageName,
        architecture: &str,
        manifest: &ImageManifest,
    ) -> Result<ImageInfo, ClientError> {
        let (name, architecture) = (name.clone(), architecture.to_owned());
        let request = Request::PutImage { name, architecture, manifest: manifest.clone() };
        fitting!("put image", self.ask(request).await?, Reply::Image(info) => info)
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
        self.location.put_image(name, self.architecture, self.manifest).await
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
        let sent = |bytes| (self.progress)(PushProgress::Sent { digest, bytes });
        if self.location.put_blob(&blob, || self.source.open(&blob), sent).await? == Put::Sent {
            self.stored.fetch_add(1, Ordering::Relaxed);
        }
        (self.progress)(PushProgress::Stored { digest });
        Ok(())
    }
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
