//! Members by name, from a tar file or a directory, read in place.
use super::index::{Index, Span};
use super::{ArchiveError, MAX_DOCUMENT_BYTES, MAX_SPOOL_BYTES};
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First bytes of gzip (RFC 1952 §2.3.1) and Zstandard (RFC 8878 §3.1.1) data.
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Debug)]
pub(super) enum Source {
    /// An OCI layout directory. Only fixed names and blob digests are ever joined to it.
    Directory(PathBuf),
    Tar {
        file: Arc<File>,
        index: Index,
    },
}

/// The bytes of one member, read at their place in the archive.
#[derive(Debug)]
pub struct BlobReader {
    file: Arc<File>,
    position: u64,
    remaining: u64,
}

impl BlobReader {
    fn new(file: Arc<File>, span: Span) -> Self {
        Self { file, position: span.offset, remaining: span.size }
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..want).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let got = self.file.read_at(buffer, self.position)?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive became shorter"));
        }
        self.position += got as u64;
        self.remaining -= got as u64;
        Ok(got)
    }
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Open { path: path.to_owned(), source };
        let kind = path.metadata().map_err(failed)?;
        if kind.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if !kind.is_file() {
            return Err(ArchiveError::NotAnImage("it is neither a file nor a directory"));
        }
        Self::of_file(File::open(path).map_err(failed)?)
    }

    pub(super) fn of_file(mut file: File) -> Result<Self, ArchiveError> {
        // Whoever has written it is at its end.
        file.rewind().map_err(ArchiveError::Read)?;
        let file = uncompressed(file)?;
        let length = file.metadata().map_err(ArchiveError::Read)?.len();
        Ok(Self::Tar { index: Index::read(&file, length)?, file: Arc::new(file) })
    }

    /// Opens a member; `None` if there is no such file.
    pub(super) fn open_member(&self, name: &str) -> Result<Option<BlobReader>, ArchiveError> {
        match self {
            Self::Tar { file, index } => Ok(super::index::normalise("", name)
                .and_then(|name| index.find(&name))
                .map(|span| BlobReader::new(Arc::clone(file), span))),
            Self::Directory(root) => open_below(root, name),
        }
    }

    /// A JSON document, whole; `None` if there is no such file.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(mut reader) = self.open_member(name)? else { return Ok(None) };
        if reader.remaining() > MAX_DOCUMENT_BYTES {
            return Err(ArchiveError::TooLarge {
                what: format!("the size of '{name}'"),
                found: reader.remaining(),
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
        Ok(Some(bytes))
    }
}

fn open_below(root: &Path, name: &str) -> Result<Option<BlobReader>, ArchiveError> {
    // A document of the layout could name anything; only plain components below the root are followed.
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Ok(None);
    }
    let path = root.join(name);
    match path.metadata() {
        Ok(kind) if kind.is_file() => {
            let file = File::open(&path).map_err(|source| ArchiveError::Open { path, source })?;
            Ok(Some(BlobReader::new(Arc::new(file), Span { offset: 0, size: kind.len() })))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ArchiveError::Open { path, source }),
    }
}

/// The file itself, or, if it is compressed as a whole, an unnamed temporary file with its contents.
fn uncompressed(file: File) -> Result<File, ArchiveError> {
    let mut magic = [0; 4];
    let got = file.read_at(&mut magic, 0).map_err(ArchiveError::Read)?;
    if got >= 2 && magic.starts_with(&GZIP_MAGIC) {
        return spool(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)), MAX_SPOOL_BYTES);
    }
    if got == 4 && magic == ZSTD_MAGIC {
        let decoder = ruzstd::decoding::StreamingDecoder::new(io::BufReader::new(file))
            .map_err(|_| ArchiveError::NotAnImage("its Zstandard compression cannot be read"))?;
        return spool(decoder, MAX_SPOOL_BYTES);
    }
    Ok(file)
}

/// Into a file that has no name: whatever happens, nothing of it is left.
pub(super) fn spool(reader: impl Read, limit: u64) -> Result<File, ArchiveError> {
    let mut file = tempfile::tempfile().map_err(ArchiveError::Read)?;
    let copied =
        io::copy(&mut reader.take(limit.saturating_add(1)), &mut file).map_err(|error| {
            match error.kind() {
                io::ErrorKind::UnexpectedEof => ArchiveError::Truncated("its compressed data".into()),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                    ArchiveError::Damaged { offset: 0, reason: "its compressed data cannot be unpacked" }
                }
                _ => ArchiveError::Read(error),
            }
        })?;
    if copied > limit {
        return Err(ArchiveError::TooLarge { what: "its size when unpacked".into(), found: copied, limit });
    }
    Ok(file)
}
