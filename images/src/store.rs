//! Content-addressed blobs on disk: `<dir>/sha256/<hex>`, verified while they are written.
//!
//! A blob appears under its name only when its size and SHA-256 are right and its bytes are on disk; until then it is
//! a file in `<dir>/partial`, which [`BlobStore::open`] empties. So a power cut at any moment leaves whole blobs and
//! nothing else, and a push that is repeated sends only what is missing.
use sha2::Digest as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wherry_protocol::Digest;
use wherry_protocol::limits::MAX_BLOB_BYTES;

/// Read buffer of [`BlobStore::verify`], in bytes: large enough that a system call per buffer does not count.
const BUFFER_BYTES: usize = 64 * 1024;

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system has no space left (ENOSPC, EDQUOT); nothing of the blob was kept.
    #[error("the disk is full: {path} could not be written, remove images or containers that are not needed")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The bytes are others than the digest says.
    #[error("the bytes of {expected} do not match it (they are {found}): send it again")]
    DigestMismatch {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what was there.
        found: Digest,
    },
    /// The length is another than announced.
    #[error("{digest} has {found} bytes where {expected} were announced: send it again")]
    SizeMismatch {
        /// Which blob.
        digest: Digest,
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Announced larger than [`MAX_BLOB_BYTES`].
    #[error("{digest} is announced with {size} bytes, more than the limit of {MAX_BLOB_BYTES}")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// Bytes announced.
        size: u64,
    },
    /// No such blob.
    #[error("{0} is not in the store")]
    NotFound(Digest),
}

impl StoreError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.into() },
            _ => Self::Io { action, path: path.into(), source },
        }
    }

    /// Whether the disk was full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

/// A directory of blobs. Cheap to clone; all methods block on the disk.
#[derive(Debug, Clone)]
pub struct BlobStore {
    blobs: PathBuf,
    partial: PathBuf,
    next_partial: Arc<AtomicU64>,
}

impl BlobStore {
    /// Opens the store in `dir`, makes it if it is not there, and deletes what an interrupted write left behind.
    /// Only one process may have a store open.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let store = Self {
            blobs: dir.join("sha256"),
            partial: dir.join("partial"),
            next_partial: Arc::new(AtomicU64::new(0)),
        };
        for dir in [&store.blobs, &store.partial] {
            fs::create_dir_all(dir).map_err(|e| StoreError::io("create", dir, e))?;
        }
        for entry in list(&store.partial)? {
            fs::remove_file(&entry).map_err(|e| StoreError::io("remove", &entry, e))?;
        }
        sync_dir(dir)?;
        Ok(store)
    }

    /// Where a blob is, once it is there.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// The size of a blob in bytes, `None` if it is not there.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(data) => Ok(Some(data.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("look at", &path, e)),
        }
    }

    /// Every blob with its size in bytes. Files that are no blobs are left alone and not listed.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut found = Vec::new();
        for path in list(&self.blobs)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Ok(digest) = format!("sha256:{name}").parse::<Digest>() {
                let data = fs::metadata(&path).map_err(|e| StoreError::io("look at", &path, e))?;
                found.push((digest, data.len()));
            }
        }
        Ok(found)
    }

    /// Begins a blob of exactly `size` bytes. Two writers of the same blob do not disturb one another.
    pub fn writer(&self, digest: Digest, size: u64) -> Result<BlobWriter, StoreError> {
        if size > MAX_BLOB_BYTES {
            return Err(StoreError::TooLarge { digest, size });
        }
        let number = self.next_partial.fetch_add(1, Ordering::Relaxed);
        let partial = self.partial.join(format!("{}.{number}", digest.hex()));
        let file = File::create_new(&partial).map_err(|e| StoreError::io("create", &partial, e))?;
        Ok(BlobWriter {
            file,
            partial: Partial(partial),
            target: self.path(&digest),
            blobs: self.blobs.clone(),
            digest,
            size,
            written: 0,
            hash: sha2::Sha256::new(),
        })
    }

    /// Stores a blob that is already in memory.
    pub fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writer = self.writer(digest, bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Opens a blob for reading; refused if its length on disk is not `size`.
    pub fn read(&self, digest: &Digest, size: u64) -> Result<File, StoreError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound(*digest),
            _ => StoreError::io("open", &path, e),
        })?;
        let found = file.metadata().map_err(|e| StoreError::io("look at", &path, e))?.len();
        if found == size {
            Ok(file)
        } else {
            Err(StoreError::SizeMismatch { digest: *digest, expected: size, found })
        }
    }

    /// Reads a blob again in full and checks its SHA-256.
    pub fn verify(&self, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let mut file = self.read(digest, size)?;
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(StoreError::io("read", &self.path(digest), e)),
            }
        }
        check_digest(digest, hash)
    }

    /// Removes a blob; `false` if it was not there.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.blobs).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StoreError::io("remove", &path, e)),
        }
    }
}

/// Removes an unfinished file when dropped.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more after the rename of a finished blob; anything else is swept at the next open.
        drop(fs::remove_file(&self.0));
    }
}

/// A blob being written. Dropped before [`BlobWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    partial: Partial,
    target: PathBuf,
    blobs: PathBuf,
    digest: Digest,
    size: u64,
    written: u64,
    hash: sha2::Sha256,
}

impl BlobWriter {
    /// Appends bytes; refused as soon as there are more than announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let total = self.written.saturating_add(bytes.len() as u64);
        if total > self.size {
            return Err(StoreError::SizeMismatch { digest: self.digest, expected: self.size, found: total });
        }
        self.file.write_all(bytes).map_err(|e| StoreError::io("write", &self.partial.0, e))?;
        self.hash.update(bytes);
        self.written = total;
        Ok(())
    }

    /// Bytes still to come.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.size - self.written
    }

    /// Checks size and digest, and makes the blob durable under its name.
    pub fn finish(self) -> Result<(), StoreError> {
        if self.written != self.size {
            let (expected, found) = (self.size, self.written);
            return Err(StoreError::SizeMismatch { digest: self.digest, expected, found });
        }
        check_digest(&self.digest, self.hash)?;
        self.file.sync_all().map_err(|e| StoreError::io("sync", &self.partial.0, e))?;
        fs::rename(&self.partial.0, &self.target).map_err(|e| StoreError::io("rename", &self.target, e))?;
        sync_dir(&self.blobs)
    }
}

fn check_digest(expected: &Digest, hash: sha2::Sha256) -> Result<(), StoreError> {
    let found = Digest(hash.finalize().into());
    if found == *expected { Ok(()) } else { Err(StoreError::DigestMismatch { expected: *expected, found }) }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|e| StoreError::io("list", dir, e))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(|e| StoreError::io("list", dir, e))).collect()
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| StoreError::io("sync", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        (dir, store)
    }

    fn files(dir: &Path) -> usize {
        ["sha256", "partial"].iter().map(|sub| fs::read_dir(dir.join(sub)).unwrap().count()).sum()
    }

    #[test]
    fn stored_blobs_are_read_listed_verified_and_removed() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        let mut writer = store.writer(digest, 5).unwrap();
        writer.write(b"he").unwrap();
        assert_eq!(writer.missing(), 3);
        assert_eq!(store.size(&digest).unwrap(), None);
        writer.write(b"llo").unwrap();
        writer.finish().unwrap();
        assert_eq!(store.size(&digest).unwrap(), Some(5));
        assert_eq!(store.list().unwrap(), [(digest, 5)]);
        store.verify(&digest, 5).unwrap();
        let mut text = String::new();
        store.read(&digest, 5).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(store.remove(&digest).unwrap());
        assert!(!store.remove(&digest).unwrap());
        assert!(matches!(store.read(&digest, 5), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn wrong_bytes_leave_nothing() {
        let (dir, store) = store();
        let digest = Digest::of(b"hello");
        assert!(matches!(store.put(digest, b"hellO"), Err(StoreError::DigestMismatch { .. })));
        let mut writer = store.writer(digest, 5).unwrap();
        writer.write(b"hell").unwrap();
        assert!(matches!(writer.finish(), Err(StoreError::SizeMismatch { expected: 5, found: 4, .. })));
        let mut writer = store.writer(digest, 5).unwrap();
        assert!(matches!(writer.write(b"hello!"), Err(StoreError::SizeMismatch { found: 6, .. })));
        drop(writer);
        assert!(matches!(store.writer(digest, MAX_BLOB_BYTES + 1), Err(StoreError::TooLarge { .. })));
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn a_power_cut_leaves_only_whole_blobs() {
        let (dir, store) = store();
        store.put(Digest::of(b"whole"), b"whole").unwrap();
        let mut writer = store.writer(Digest::of(b"cut"), 3).unwrap();
        writer.write(b"cu").unwrap();
        std::mem::forget(writer);
        assert_eq!(files(dir.path()), 2);
        let store = BlobStore::open(dir.path()).unwrap();
        assert_eq!(files(dir.path()), 1);
        store.verify(&Digest::of(b"whole"), 5).unwrap();
    }

    #[test]
    fn damage_on_disk_is_noticed() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        store.put(digest, b"hello").unwrap();
        fs::write(store.path(&digest), b"hellO").unwrap();
        assert!(matches!(store.verify(&digest, 5), Err(StoreError::DigestMismatch { .. })));
        fs::write(store.path(&digest), b"hell").unwrap();
        assert!(matches!(store.read(&digest, 5), Err(StoreError::SizeMismatch { found: 4, .. })));
        store.put(digest, b"hello").unwrap();
        store.verify(&digest, 5).unwrap();
    }

    #[test]
    fn two_writers_of_one_blob_both_succeed() {
        let (_dir, store) = store();
        let digest = Digest::of(b"hello");
        let mut first = store.writer(digest, 5).unwrap();
        let mut second = store.writer(digest, 5).unwrap();
        first.write(b"hello").unwrap();
        second.write(b"hello").unwrap();
        first.finish().unwrap();
        second.finish().unwrap();
        store.verify(&digest, 5).unwrap();
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_blob(bytes in proptest::collection::vec(any::<u8>(), 0..5000), step in 1_usize..999) {
            let (_dir, store) = store();
            let digest = Digest::of(&bytes);
            let mut writer = store.writer(digest, bytes.len() as u64).unwrap();
            for chunk in bytes.chunks(step) {
                writer.write(chunk).unwrap();
            }
            writer.finish().unwrap();
            prop_assert!(store.verify(&digest, bytes.len() as u64).is_ok());
        }
    }
}
