//! Layers and configurations of images on this node: fetched, verified and unpacked once, shared by all containers.
//!
//! A layer goes from the session straight into its directory; the compressed bytes never touch the card.
use super::confined::confined;
use futures_util::AsyncRead;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::io::SyncIoBridge;
use wherry_images::oci::ImageConfig;
use wherry_images::store::{BlobStore, StoreError};
use wherry_images::unpack::{self, Expected, LayerDir, UnpackError};
use wherry_protocol::message::{Descriptor, ImageManifest};
use wherry_protocol::{Digest, ErrorCode, WireError};
use wherry_sys::landlock::Kept;

/// Largest image configuration, in bytes; the same bound the parser has.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of a blob as they arrive.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// Where blobs come from: the broker, over the session.
pub trait BlobSource: Send + Sync {
    /// Asks for a blob that has `size` bytes.
    fn fetch(&self, digest: Digest, size: u64) -> impl Future<Output = Result<BlobReader, WireError>> + Send;
}

/// An image, ready to be mounted.
#[derive(Debug, Clone)]
pub struct ReadyImage {
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers' directories, lowest first.
    pub layers: Vec<PathBuf>,
}

/// The layers of this node.
#[derive(Debug)]
pub struct Layers {
    blobs: BlobStore,
    directory: LayerDir,
    limits: unpack::Limits,
    under_way: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// How much of the disk each layer takes, in bytes, as far as it is known.
    sizes: Arc<Mutex<HashMap<PathBuf, u64>>>,
}

impl Layers {
    /// Uses `data/blobs` and `data/layers`; removes what an interrupted run left half done.
    ///
    /// # Errors
    /// When the directories cannot be used.
    pub fn open(data: &Path) -> Result<Self, WireError> {
        let directory = data.join("layers");
        let failed = |error: io::Error| {
            WireError::new(ErrorCode::Internal, format!("cannot use {}: {error}", directory.display()))
        };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        unpack::clean(&directory).map_err(failed)?;
        Ok(Self {
            blobs: BlobStore::open(&data.join("blobs")).map_err(store_error)?,
            directory: LayerDir::new(&directory),
            limits: unpack::Limits::default(),
            under_way: Mutex::default(),
            sizes: Arc::default(),
        })
    }

    /// Finds out in the background how large the layers are that are there already.
    pub fn measure(&self) {
        let (directory, sizes) = (self.directory.clone(), Arc::clone(&self.sizes));
        tokio::task::spawn_blocking(move || {
            for path in directory.all().unwrap_or_default() {
                // One that goes meanwhile has no size any more.
                if let Ok(bytes) = LayerDir::disk_bytes(&path) {
                    locked(&sizes).insert(path, bytes);
                }
            }
        });
    }

    /// What would be free if all layers but those in `used` went, in bytes.
    #[must_use]
    pub fn removable_bytes(&self, used: &BTreeSet<PathBuf>) -> u64 {
        locked(&self.sizes).iter().filter(|(path, _)| !used.contains(*path)).map(|(_, bytes)| bytes).sum()
    }

    /// Removes all layers but those in `used`, and returns how many.
    ///
    /// # Errors
    /// When the disk does not let it.
    pub async fn remove_all_but(&self, used: BTreeSet<PathBuf>) -> io::Result<usize> {
        let (directory, sizes) = (self.directory.clone(), Arc::clone(&self.sizes));
        let work = move || {
            let removed = directory.remove_all_but(&used);
            locked(&sizes).retain(|path, _| path.is_dir());
            removed
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Makes an image ready for a container on `architecture`.
    ///
    /// # Errors
    /// One sentence with the code that fits: disk full, wrong digest, bad image, node cut off from the broker.
    pub async fn ensure(
        &self,
        source: &impl BlobSource,
        manifest: &ImageManifest,
        architecture: &str,
    ) -> Result<ReadyImage, WireError> {
        let config = self.config(source, &manifest.config).await?;
        let bad =
            |error: wherry_images::oci::OciError| WireError::new(ErrorCode::BadImage, error.to_string());
        config.check_platform(architecture).map_err(bad)?;
        let diff_ids = config.diff_ids(manifest.layers.len()).map_err(bad)?;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            layers.push(self.layer(source, layer, diff_id).await?);
        }
        Ok(ReadyImage { config, layers })
    }

    /// The configuration of an image that a container here was made from.
    ///
    /// # Errors
    /// When it is not on this node any more.
    pub fn config_bytes(&self, wanted: &Descriptor) -> Result<Vec<u8>, WireError> {
        let mut bytes = Vec::new();
        let file = self.blobs.read(&wanted.digest, wanted.size).map_err(store_error)?;
        file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes).map_err(|error| internal(&error))?;
        Ok(bytes)
    }

    async fn config(&self, source: &impl BlobSource, wanted: &Descriptor) -> Result<ImageConfig, WireError> {
        let _turn = self.turn(wanted.digest).await;
        let bytes = match self.blobs.read(&wanted.digest, wanted.size) {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).map_err(|error| internal(&error))?;
                bytes
            }
            Err(StoreError::NotFound(_)) => self.fetch_config(source, wanted).await?,
            Err(error) => return Err(store_error(error)),
        };
        ImageConfig::parse(&bytes).map_err(|error| WireError::new(ErrorCode::BadImage, error.to_string()))
    }

    async fn fetch_config(
        &self,
        source: &impl BlobSource,
        wanted: &Descriptor,
    ) -> Result<Vec<u8>, WireError> {
        if wanted.size > MAX_CONFIG_BYTES {
            let message = format!("the image's configuration of {} bytes is too large", wanted.size);
            return Err(WireError::new(ErrorCode::TooLarge, message));
        }
        let reader = source.fetch(wanted.digest, wanted.size).await?;
        let mut bytes = Vec::new();
        let mut limited = futures_util::AsyncReadExt::take(reader, wanted.size);
        futures_util::AsyncReadExt::read_to_end(&mut limited, &mut bytes)
            .await
            .map_err(|error| cut(&error))?;
        self.blobs.put(wanted.digest, &bytes).map_err(store_error)?;
        Ok(bytes)
    }

    async fn layer(
        &self,
        source: &impl BlobSource,
        wanted: &Descriptor,
        diff_id: Digest,
    ) -> Result<PathBuf, WireError> {
        let _turn = self.turn(wanted.digest).await;
        if self.directory.contains(&wanted.digest) {
            return Ok(self.directory.path(&wanted.digest));
        }
        let reader = source.fetch(wanted.digest, wanted.size).await?.compat();
        let (directory, limits, media) = (self.directory.clone(), self.limits, wanted.media);
        let expected = Expected { digest: wanted.digest, size: wanted.size, diff_id: Some(diff_id) };
        let kept = Kept { write: vec![directory.root().to_owned()], ..Kept::default() };
        let bytes = SyncIoBridge::new(reader);
        let work = move || unpack::unpack_layer(bytes, media, expected, &directory, &limits);
        let unpacked = confined(kept, work).await.map_err(|error| internal(&error))?;
        let unpacked = unpacked.map_err(unpack_error)?;
        locked(&self.sizes).insert(unpacked.path.clone(), unpacked.bytes);
        Ok(unpacked.path)
    }

    /// Waits until nobody else works on this blob; two containers of one image fetch it once.
    async fn turn(&self, digest: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut under_way = locked(&self.under_way);
            under_way.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(under_way.entry(digest).or_default())
        };
        lock.lock_owned().await
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn internal(error: &dyn std::error::Error) -> WireError {
    WireError::new(ErrorCode::Internal, format!("the node could not prepare the image: {error}"))
}

fn cut(error: &dyn std::error::Error) -> WireError {
    WireError::new(
        ErrorCode::NodeUnreachable,
        format!("fetching the image from the broker was cut off: {error}"),
    )
}

pub(super) fn store_error(error: StoreError) -> WireError {
    let code = match &error {
        _ if error.is_disk_full() => ErrorCode::DiskFull,
        StoreError::TooLarge { .. } => ErrorCode::TooLarge,
        StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. } => ErrorCode::DigestMismatch,
        _ => ErrorCode::Internal,
    };
    WireError::new(code, format!("the node's disk: {error}"))
}

fn unpack_error(error: UnpackError) -> WireError {
    let code = match &error {
        UnpackError::DigestMismatch { .. } | UnpackError::DiffIdMismatch { .. } => ErrorCode::DigestMismatch,
        UnpackError::Size { .. }
        | UnpackError::Compression { .. }
        | UnpackError::Tar { .. }
        | UnpackError::Refused { .. } => ErrorCode::BadImage,
        UnpackError::TooLarge { .. } => ErrorCode::TooLarge,
        UnpackError::DiskFull { .. } => ErrorCode::DiskFull,
        UnpackError::Io { .. } => ErrorCode::Internal,
    };
    WireError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::io::Cursor;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use wherry_protocol::message::Media;

    #[derive(Default)]
    struct Shelf {
        blobs: HashMap<Digest, Vec<u8>>,
        asked: AtomicUsize,
    }

    impl Shelf {
        fn add(&mut self, bytes: Vec<u8>, media: Media) -> Descriptor {
            let digest = Digest::of(&bytes);
            let size = bytes.len() as u64;
            self.blobs.insert(digest, bytes);
            Descriptor { digest, size, media }
        }
    }

    impl BlobSource for Shelf {
        async fn fetch(&self, digest: Digest, _size: u64) -> Result<BlobReader, WireError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            // Slow enough that others come to ask meanwhile.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Ok(Box::new(Cursor::new(self.blobs[&digest].clone())))
        }
    }

    fn layer(name: &str) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &b"hi"[..]).unwrap();
        archive.into_inner().unwrap()
    }

    fn image(shelf: &mut Shelf) -> ImageManifest {
        let bytes = layer("hello");
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(&bytes)
        );
        let layers = vec![shelf.add(bytes, Media::LayerTar)];
        ImageManifest { config: shelf.add(config.into_bytes(), Media::Config), layers }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_image_is_fetched_once_however_many_ask() {
        let data = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::default();
        let manifest = image(&mut shelf);
        let layers = Layers::open(data.path()).unwrap();
        let ask = || layers.ensure(&shelf, &manifest, "amd64");
        let (a, b, c) = tokio::join!(ask(), ask(), ask());
        let ready = a.unwrap();
        assert_eq!(std::fs::read(ready.layers[0].join("hello")).unwrap(), b"hi");
        assert_eq!((b.unwrap().layers, c.unwrap().layers), (ready.layers.clone(), ready.layers));
        assert_eq!(shelf.asked.load(Ordering::Relaxed), 2, "configuration and layer, once each");
        // What nobody uses could go, and is counted until it does: also after a new start of the service.
        let path = layers.directory.path(&manifest.layers[0].digest);
        let used = BTreeSet::from([path.clone()]);
        assert_eq!((layers.removable_bytes(&used), layers.removable_bytes(&BTreeSet::new())), (0, 2));
        let again = Layers::open(data.path()).unwrap();
        again.measure();
        while again.removable_bytes(&BTreeSet::new()) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(again.remove_all_but(BTreeSet::new()).await.unwrap(), 1);
        assert!(again.removable_bytes(&BTreeSet::new()) == 0 && !path.exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_bytes_and_wrong_platforms_are_refused_and_leave_nothing() {
        let data = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::default();
        let manifest = image(&mut shelf);
        let layers = Layers::open(data.path()).unwrap();
        let error = layers.ensure(&shelf, &manifest, "arm64").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadImage);
        let digest = manifest.layers[0].digest;
        shelf.blobs.get_mut(&digest).unwrap()[512] ^= 1;
        let error = layers.ensure(&shelf, &manifest, "amd64").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DigestMismatch);
        assert_eq!(std::fs::read_dir(data.path().join("layers")).unwrap().count(), 0);
    }
}
