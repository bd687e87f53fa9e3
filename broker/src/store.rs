//! The records on disk: one redb database, one table, one writer.
//!
//! Every value carries a version and a checksum. What cannot be read exactly as it was written is reported and left as
//! it is: the broker would rather not start than go on with half a memory. redb commits are atomic, also against a
//! power cut; nothing is written unless a record has changed.
use crate::record::{Change, Key, Record, Stored};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use wherry_protocol::Digest;

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// Bytes of a value's checksum (the first of its SHA-256): against damage, not against attack.
const CHECKSUM_BYTES: usize = 8;
/// Memory that redb may use to cache pages, in bytes. Everything is in memory anyway; only writing needs pages.
const CACHE_BYTES: usize = 2 * 1024 * 1024;
/// Bytes kept back on the data partition, so that records can still be written when blobs have filled the rest.
const RESERVE_BYTES: usize = 4 * 1024 * 1024;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is there is not what was written.
    #[error(
        "the broker's memory at {path} is damaged ({reason}): it is left as it is, put back a copy of the file or move it away to begin anew"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// Where the damage is.
        reason: String,
    },
    /// Another process has it open.
    #[error("{path} is in use: another broker runs with the same data")]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// No space is left, not even the reserve.
    #[error("the disk is full: {path} cannot be written, remove files from its partition")]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot use {path}: {reason}")]
    Failed {
        /// The database.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
    commits: u64,
}

impl Store {
    /// Opens the store at `path` and reads all of it; makes an empty one if there is no file.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when anything in it cannot be understood; the file is not replaced.
    pub fn open(path: &Path) -> Result<(Self, BTreeMap<Key, Record>), StoreError> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = if path.exists() { open_existing(path)? } else { create(path)? };
            let records = read_all(&database, path)?;
            Ok((Self { database, path: path.into(), commits: 0 }, records))
        }));
        // redb checks its pages by assertion in places.
        let (store, records) =
            opened.unwrap_or_else(|_| Err(corrupt(path, "its pages contradict one another")))?;
        store.reserve()?;
        Ok((store, records))
    }

    /// Makes `changes` durable, all of them or none.
    ///
    /// # Errors
    /// When the disk refuses; what was there before is still there.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        match self.try_commit(changes) {
            Err(StoreError::DiskFull { .. }) => {
                tracing::error!("the disk is full: using the reserve to write down what was decided");
                drop(fs::remove_file(self.reserve_path()));
                self.try_commit(changes)
            }
            result => result,
        }
    }

    /// How often something was written since the store was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits
    }

    fn try_commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let path = &self.path;
        let transaction = self.database.begin_write().map_err(|e| failed(path, e))?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(|e| failed(path, e))?;
            for change in changes {
                match change {
                    Change::Put(key, record) => {
                        let key = encode_key(key, path)?;
                        let value = encode_value(&key, &encode(record, path)?);
                        table.insert(key.as_slice(), value.as_slice()).map_err(|e| failed(path, e))?;
                    }
                    Change::Delete(key) => {
                        let key = encode_key(key, path)?;
                        table.remove(key.as_slice()).map_err(|e| failed(path, e))?;
                    }
                }
            }
        }
        transaction.commit().map_err(|e| failed(path, e))?;
        self.commits += 1;
        Ok(())
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Keeps some room back. Not having it is no reason not to start.
    fn reserve(&self) -> Result<(), StoreError> {
        let path = self.reserve_path();
        if fs::metadata(&path).is_ok_and(|data| data.len() == RESERVE_BYTES as u64) {
            return Ok(());
        }
        let written =
            fs::write(&path, vec![0x5a; RESERVE_BYTES]).and_then(|()| File::open(&path)?.sync_all());
        if let Err(error) = written {
            tracing::warn!("no room for the reserve {}: {error}", path.display());
            drop(fs::remove_file(&path));
        }
        Ok(())
    }
}

/// Under another name first: a power cut while it is made must not leave half a file under the right one.
fn create(path: &Path) -> Result<Database, StoreError> {
    let new = path.with_extension("new");
    let io = |e: io::Error| failed(path, redb::StorageError::Io(e));
    if new.exists() {
        fs::remove_file(&new).map_err(io)?;
    }
    let database =
        Database::builder().set_cache_size(CACHE_BYTES).create(&new).map_err(|e| database_error(path, e))?;
    let transaction = database.begin_write().map_err(|e| failed(path, e))?;
    transaction.open_table(RECORDS).map_err(|e| failed(path, e))?;
    transaction.commit().map_err(|e| failed(path, e))?;
    drop(database);
    fs::rename(&new, path).map_err(io)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;
    open_existing(path)
}

fn open_existing(path: &Path) -> Result<Database, StoreError> {
    Database::builder().set_cache_size(CACHE_BYTES).open(path).map_err(|e| database_error(path, e))
}

fn read_all(database: &Database, path: &Path) -> Result<BTreeMap<Key, Record>, StoreError> {
    let transaction = database.begin_read().map_err(|e| failed(path, e))?;
    let table = transaction.open_table(RECORDS).map_err(|e| corrupt(path, e))?;
    let mut records = BTreeMap::new();
    for row in table.iter().map_err(|e| failed(path, e))? {
        let (key, value) = row.map_err(|e| failed(path, e))?;
        let (key, record) = decode(key.value(), value.value()).map_err(|reason| corrupt(path, reason))?;
        records.insert(key, record);
    }
    Ok(records)
}

fn encode_key(key: &Key, path: &Path) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(key).map_err(|e| refused(path, e))
}

fn checksum(key: &[u8], body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Digest::of(&[key, body].concat()).0;
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    sum
}

/// The value: a checksum over key and body, then the body.
fn encode_value(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&checksum(key, body), body].concat()
}

fn encode(record: &Record, path: &Path) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(&Stored::V4(record.clone())).map_err(|e| refused(path, e))
}

fn decode(key: &[u8], value: &[u8]) -> Result<(Key, Record), String> {
    let name = || data_name(key);
    let (sum, body) =
        value.split_at_checked(CHECKSUM_BYTES).ok_or_else(|| format!("{} is too short", name()))?;
    if sum != checksum(key, body) {
        return Err(format!("{} has a wrong checksum", name()));
    }
    let decoded: Key =
        postcard::from_bytes(key).map_err(|e| format!("{} has an unknown key: {e}", name()))?;
    let (stored, rest) = postcard::take_from_bytes::<Stored>(body)
        .map_err(|e| format!("{decoded:?} cannot be decoded: {e}"))?;
    match stored {
        Stored::V1 | Stored::V2 | Stored::V3 => Err(format!(
            "{decoded:?} was written by a broker from before the first release, which this one does not read"
        )),
        Stored::V4(_) if !rest.is_empty() => Err(format!("{decoded:?} has {} bytes too many", rest.len())),
        Stored::V4(record) => Ok((decoded, record)),
    }
}

fn data_name(key: &[u8]) -> String {
    let hex: String = key.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("record {hex}")
}

fn corrupt(path: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: path.into(), reason: reason.to_string() }
}

fn refused(path: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Failed { path: path.into(), reason: reason.to_string() }
}

fn database_error(path: &Path, error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.into() },
        error @ redb::DatabaseError::RepairAborted => corrupt(path, error),
        error => failed(path, error),
    }
}

fn failed(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(e)
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            StoreError::DiskFull { path: path.into() }
        }
        redb::Error::Io(e)
            if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            corrupt(path, e)
        }
        error @ redb::Error::Corrupted(_) => corrupt(path, error),
        error => refused(path, error),
    }
}
