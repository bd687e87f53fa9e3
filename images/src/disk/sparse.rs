//! Writing files with holes.
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::error::DiskError;

/// Zeros in runs of this many bytes, aligned, become holes: a multiple of every file system's block.
const GRAIN: usize = 64 * 1024;

/// A file being written, holes where nothing is.
pub(crate) struct SparseFile<'a> {
    file: File,
    path: &'a Path,
}

impl<'a> SparseFile<'a> {
    /// Creates or empties `path` and gives it its size at once.
    pub(crate) fn create(path: &'a Path, size: u64) -> Result<Self, DiskError> {
        Self::open(OpenOptions::new().write(true).create(true).truncate(true), path, size)
    }

    /// The same, for a file that only its owner may read, because secrets go in.
    pub(crate) fn create_private(path: &'a Path, size: u64) -> Result<Self, DiskError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskError::io("replace", path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Self::open(&options, path, size)
    }

    fn open(options: &OpenOptions, path: &'a Path, size: u64) -> Result<Self, DiskError> {
        let file = options.open(path).map_err(DiskError::io("create", path))?;
        file.set_len(size).map_err(DiskError::io("set the size of", path))?;
        Ok(Self { file, path })
    }

    /// Writes `bytes` at `offset`, leaving holes where they are zero.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut at = offset;
        for chunk in bytes.chunks(GRAIN) {
            if chunk.iter().any(|byte| *byte != 0) {
                self.write_chunk(at, chunk).map_err(DiskError::io("write", self.path))?;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`, zeros too.
    pub(crate) fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.write_chunk(offset, bytes).map_err(DiskError::io("write", self.path))
    }

    /// Copies the first `length` bytes of `source`.
    pub(crate) fn copy_from(&mut self, source: &Path, length: u64) -> Result<(), DiskError> {
        let mut from = File::open(source).map_err(DiskError::io("open", source))?;
        let mut chunk = vec![0; GRAIN];
        let mut at = 0;
        while at < length {
            let wanted = GRAIN.min((length - at) as usize);
            from.read_exact(&mut chunk[..wanted]).map_err(DiskError::io("read", source))?;
            self.write(at, &chunk[..wanted])?;
            at += wanted as u64;
        }
        Ok(())
    }

    fn write_chunk(&mut self, at: u64, chunk: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(chunk)
    }
}
