//! One layer, all or nothing.
use super::stream::LayerStream;
use super::tar::{TarError, TarReader};
use super::tree::{Tree, TreeError};
use super::{Expected, Limits, UnpackError};
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use wherry_protocol::Digest;
use wherry_protocol::message::Media;

/// What a directory that is still being filled is called.
const TEMPORARY: &str = ".tmp-";

/// What a layer became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Its directory.
    pub path: PathBuf,
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Where unpacked layers are: one directory per layer, named by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDir(PathBuf);

impl LayerDir {
    /// Layers below `path`, which exists.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Below which all of them are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Where the layer is, or will be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.0.join(digest.hex())
    }

    /// Whether the layer is there. A directory gets its name only when it is complete and on the disk.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_dir()
    }
}

impl LayerDir {
    /// Removes every layer whose directory is not in `used`, and returns how many. A crash in between leaves whole layers
    /// and what [`clean`] removes.
    ///
    /// # Errors
    /// When the directory cannot be read or changed.
    pub fn remove_all_but(&self, used: &BTreeSet<PathBuf>) -> io::Result<usize> {
        let mut removed = 0;
        for path in self.all()?.iter().filter(|path| !used.contains(*path)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let doomed = self.0.join(format!("{TEMPORARY}unused-{name}"));
            fs::rename(path, &doomed)?;
            fs::remove_dir_all(&doomed)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The directory of every layer that is there, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all(&self) -> io::Result<Vec<PathBuf>> {
        let mut layers = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            // What is being unpacked now has another name.
            if format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>().is_ok() {
                layers.push(entry.path());
            }
        }
        Ok(layers)
    }

    /// How much of the disk one of them takes, in bytes. It reads every directory of it.
    ///
    /// # Errors
    /// When something of it cannot be read, or is removed meanwhile.
    pub fn disk_bytes(path: &Path) -> io::Result<u64> {
        /// `st_blocks` counts these, whatever the file system's own blocks are (stat(3type)).
        const BLOCK_BYTES: u64 = 512;
        let mut sum = 0;
        let mut directories = vec![path.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                let bytes = metadata.blocks() * BLOCK_BYTES;
                if metadata.is_dir() {
                    sum += bytes;
                    directories.push(entry.path());
                } else {
                    // A file with several names is there once.
                    sum += bytes / metadata.nlink().max(1);
                }
            }
        }
        Ok(sum)
    }
}

/// Removes what an interrupted unpacking left behind; returns how many layers. Called once, at start.
///
/// # Errors
/// When the directory cannot be read or changed.
pub fn clean(layers: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(layers)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_dir_all(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Unpacks the layer that `source` reads into `layers`, verifying its digests. On return it is on the disk under its
/// name; on an error nothing is left.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack_layer(
    source: impl Read,
    media: Media,
    expected: Expected,
    layers: &LayerDir,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let layer = expected.digest;
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| io_failed(layer, path, source)
    };
    let temporary = Temporary::new(&layers.0).map_err(io_error(&layers.0))?;
    let mut stream = LayerStream::new(source, media, expected, limits);
    let filled = fill(&mut stream, layer, &temporary.0, limits);
    // A full disk or a refused entry is what it is; malformed content may be damage on the way, and then that is told.
    if !matches!(filled, Err(UnpackError::DiskFull { .. } | UnpackError::Io { .. })) {
        stream.check_outer()?;
    }
    let (entries, bytes) = filled?;
    stream.check_inner()?;
    let path = layers.path(&layer);
    temporary.rename(&path, &layers.0).map_err(io_error(&path))?;
    Ok(Unpacked { path, entries, bytes })
}

fn fill<R: Read>(
    stream: &mut LayerStream<R>,
    layer: Digest,
    directory: &Path,
    limits: &Limits,
) -> Result<(u64, u64), UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, directory, flags, Mode::empty())
        .map_err(|errno| io_failed(layer, directory.into(), errno.into()))?;
    let mut tree = Tree::new(root);
    let format = stream.format();
    let mut reader = TarReader::new(stream, *limits);
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    while let Some(entry) = reader.next_entry().map_err(|error| tar_failed(layer, format, error))? {
        entries += 1;
        // Holes cost no disk, but whoever reads the file pays for them: they count.
        bytes = bytes.saturating_add(entry.size);
        let too_large = |what, limit| Err(UnpackError::TooLarge { layer, what, limit });
        if entries > limits.entries {
            return too_large("entries", limits.entries);
        }
        if bytes > limits.bytes {
            return too_large("bytes", limits.bytes);
        }
        let mut data = Source { inner: &mut reader, failed: None };
        if let Err(error) = tree.place(&entry, &mut data) {
            // What the archive did wrong and what the disk did wrong both come as io errors: tell them apart.
            return Err(match data.failed {
                Some(error) => tar_failed(layer, format, TarError::Io(error)),
                None => place_failed(layer, &entry.path, error),
            });
        }
    }
    tree.finish().map_err(|error| place_failed(layer, b".", error))?;
    Ok((entries, bytes))
}

/// Remembers an error of the archive while the copy to disk reports its own.
struct Source<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}

fn tar_failed(layer: Digest, format: Option<&'static str>, error: TarError) -> UnpackError {
    match (error, format) {
        (TarError::Io(error), _) if error.kind() == io::ErrorKind::UnexpectedEof => {
            UnpackError::Tar { layer, source: TarError::Truncated }
        }
        (TarError::Io(error), Some(format)) => {
            UnpackError::Compression { layer, format, reason: error.to_string() }
        }
        (TarError::Io(source), None) => io_failed(layer, "the layer's bytes".into(), source),
        (source, _) => UnpackError::Tar { layer, source },
    }
}

fn place_failed(layer: Digest, path: &[u8], error: TreeError) -> UnpackError {
    const SHOWN: usize = 200;
    let shown: String = String::from_utf8_lossy(path).chars().take(SHOWN).collect();
    match error {
        TreeError::Refused(reason) => {
            UnpackError::Refused { layer, path: shown.escape_debug().to_string(), reason }
        }
        TreeError::Io(source) => io_failed(layer, shown.into(), source),
    }
}

fn io_failed(layer: Digest, path: PathBuf, source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackError::DiskFull { layer },
        _ => UnpackError::Io { layer, path, source },
    }
}

/// A directory that removes itself unless renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(layers: &Path) -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(layers)?.keep();
        let this = Self(path.join("root"));
        // The outer directory keeps other users out while the inner one already has the image's own mode.
        fs::DirBuilder::new().mode(0o755).create(&this.0)?;
        fs::set_permissions(&this.0, fs::Permissions::from_mode(0o755))?;
        Ok(this)
    }

    fn outer(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
    }

    fn rename(self, to: &Path, layers: &Path) -> io::Result<()> {
        match fs::rename(&self.0, to) {
            // Unpacked by somebody else meanwhile; same digest, same content.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            other => other?,
        }
        fs::File::open(layers)?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(self.outer()) {
            tracing::warn!(path = %self.outer().display(), %error, "cannot remove a temporary directory");
        }
    }
}
