//! Archives of files that are put into one container before it starts: fetched and verified once, kept with it.
use super::layers::{BlobSource, internal, store_error};
use super::rootfs::ContainerDir;
use std::io::Read;
use std::path::PathBuf;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use tokio_util::io::SyncIoBridge;
use wherry_images::store::{BlobStore, StoreError};
use wherry_protocol::message::Descriptor;
use wherry_protocol::{ErrorCode, WireError};

/// Read at once, in bytes.
const CHUNK_BYTES: usize = 32 * 1024;

/// Makes sure that all of `wanted` are in the container's directory; where they are.
///
/// # Errors
/// One sentence with the code that fits: disk full, wrong digest, node cut off from the broker.
pub(super) async fn ensure(
    source: &impl BlobSource,
    wanted: impl Iterator<Item = &Descriptor>,
    dir: &ContainerDir,
) -> Result<Vec<PathBuf>, WireError> {
    let mut paths = Vec::new();
    for archive in wanted {
        let store = BlobStore::open(&dir.files()).map_err(store_error)?;
        paths.push(store.path(&archive.digest));
        match store.read(&archive.digest, archive.size) {
            Ok(_) => {}
            Err(StoreError::NotFound(_)) => fetch(source, archive.clone(), store).await?,
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok(paths)
}

async fn fetch(source: &impl BlobSource, wanted: Descriptor, store: BlobStore) -> Result<(), WireError> {
    let reader = SyncIoBridge::new(source.fetch(wanted.digest, wanted.size).await?.compat());
    let work = tokio::task::spawn_blocking(move || save(reader, wanted, &store));
    work.await.map_err(|error| internal(&error))?
}

fn save(mut reader: impl Read, wanted: Descriptor, store: &BlobStore) -> Result<(), WireError> {
    let mut writer = store.writer(wanted.digest, wanted.size).map_err(store_error)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    while writer.missing() > 0 {
        let length = reader.read(&mut chunk).map_err(|error| cut(&error))?;
        if length == 0 {
            return Err(cut(&"it ended too early"));
        }
        writer.write(chunk.get(..length).unwrap_or_default()).map_err(store_error)?;
    }
    writer.finish().map_err(store_error)
}

fn cut(error: &dyn std::fmt::Display) -> WireError {
    let message = format!("fetching the container's files from the broker was cut off: {error}");
    WireError::new(ErrorCode::NodeUnreachable, message)
}
