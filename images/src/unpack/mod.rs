//! A layer's tar stream into a directory that overlayfs can use as a lower one.
//!
//! ```text
//! stream  compressed bytes → digests checked on the way → tar bytes
//! tar     tar bytes → entries (ustar, PAX, GNU), bounded           pure
//! tree    entries → files below one directory, never outside it
//! layer   all of it into `layers/.tmp-…`, then rename to `layers/<digest>`
//! ```
//!
//! Every byte comes from whoever made the image. What could reach outside of the directory, exhaust the node or
//! surprise the host is refused with a typed error; nothing is left behind then.
mod layer;
mod stream;
mod tar;
mod tree;

pub use layer::{LayerDir, Unpacked, clean, unpack_layer};
pub use tar::{Attribute, Entry, EntryKind, TarError, TarReader, XATTR_RECORD};
pub use tree::{OPAQUE, OPAQUE_XATTR, WHITEOUT};

use std::path::PathBuf;
use wherry_protocol::{Digest, ErrorCode, WireError};

/// Bounds of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries. Stops a small layer from using up the node's inodes; the largest public layers have some 300 000.
    pub entries: u64,
    /// Bytes of all files together. Stops decompression bombs; the disk is the real bound.
    pub bytes: u64,
    /// Longest path and link target, in bytes: PATH_MAX of Linux.
    pub path_bytes: usize,
    /// Extension headers (PAX records, GNU long names) of one entry, in bytes. Stops them from filling memory.
    pub extension_bytes: u64,
    /// Extended attributes of one entry. The kernel's own bound per file is 64 KiB in all.
    pub xattrs: usize,
    /// Regions of data in one sparse file. Stops a map from filling memory.
    pub sparse_regions: usize,
    /// Largest window of a Zstandard frame, in bytes: the memory that decompression takes. 8 MiB is what every
    /// decoder must support (RFC 8878 §3.1.1.1.2); `zstd --long` needs more and is refused.
    pub zstd_window_bytes: u64,
}

impl Limits {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        entries: 1_000_000,
        bytes: 64 * 1024 * 1024 * 1024,
        path_bytes: 4095,
        extension_bytes: 1024 * 1024,
        xattrs: 64,
        sparse_regions: 65_536,
        zstd_window_bytes: 8 * 1024 * 1024,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a layer is supposed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of the stream as sent.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of the uncompressed tar stream, if the image configuration is known.
    pub diff_id: Option<Digest>,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is not what its digest says.
    #[error("layer {expected} is damaged: its bytes have the digest {found}")]
    DigestMismatch {
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The uncompressed stream is not what the configuration says.
    #[error("layer {layer} does not belong to the image: uncompressed it is {found}, not {expected}")]
    DiffIdMismatch {
        /// Which layer.
        layer: Digest,
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The stream ended early or went on too long.
    #[error("layer {layer} has {found} bytes instead of {expected}")]
    Size {
        /// Which layer.
        layer: Digest,
        /// Announced length.
        expected: u64,
        /// How many came (at least).
        found: u64,
    },
    /// Decompression failed.
    #[error("layer {layer} is not valid {format}: {reason}")]
    Compression {
        /// Which layer.
        layer: Digest,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The archive itself is malformed.
    #[error("layer {layer} is not a usable tar archive: {source}")]
    Tar {
        /// Which layer.
        layer: Digest,
        /// What is wrong.
        source: TarError,
    },
    /// An entry asks for something that is refused.
    #[error("layer {layer} is refused: '{path}' {reason}")]
    Refused {
        /// Which layer.
        layer: Digest,
        /// The entry, shortened.
        path: String,
        /// What it would do.
        reason: Refusal,
    },
    /// More than the limits allow.
    #[error("layer {layer} is too large: more than {limit} {what}")]
    TooLarge {
        /// Which layer.
        layer: Digest,
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// No room on the disk; nothing was left behind.
    #[error("the disk is full: layer {layer} cannot be unpacked; remove containers or images and try again")]
    DiskFull {
        /// Which layer.
        layer: Digest,
    },
    /// The file system or the source failed.
    #[error("layer {layer} cannot be unpacked at {}: {source}", path.display())]
    Io {
        /// Which layer.
        layer: Digest,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What makes an entry unacceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `..` in the path.
    #[error("climbs out with '..'")]
    ParentComponent,
    /// Empty, or only slashes, where a name is needed.
    #[error("has no name")]
    NoName,
    /// One component above 255 bytes (NAME_MAX).
    #[error("has a name longer than 255 bytes")]
    NameTooLong,
    /// A directory on the way is a symbolic link that leads outside.
    #[error("goes through a symbolic link that leaves the image")]
    SymlinkEscape,
    /// A hard link whose target is outside or not there.
    #[error("is a hard link to something that is not in the layer")]
    LinkTarget,
    /// A block or character device.
    #[error("is a device node")]
    Device,
    /// A non-directory is used as a directory.
    #[error("is inside of something that is not a directory")]
    NotADirectory,
    /// A directory would have to make room for something else.
    #[error("replaces a directory that is not empty")]
    ReplacesDirectory,
    /// A whiteout of nothing, or of `.` or `..`.
    #[error("is not a valid whiteout")]
    Whiteout,
    /// An extended attribute that would steer overlayfs.
    #[error("carries an attribute of overlayfs")]
    OverlayAttribute,
}

impl From<&UnpackError> for ErrorCode {
    fn from(error: &UnpackError) -> Self {
        match error {
            UnpackError::DigestMismatch { .. }
            | UnpackError::DiffIdMismatch { .. }
            | UnpackError::Size { .. } => Self::DigestMismatch,
            UnpackError::Compression { .. } | UnpackError::Tar { .. } | UnpackError::Refused { .. } => {
                Self::BadImage
            }
            UnpackError::TooLarge { .. } => Self::TooLarge,
            UnpackError::DiskFull { .. } => Self::DiskFull,
            UnpackError::Io { .. } => Self::Internal,
        }
    }
}

impl From<UnpackError> for WireError {
    fn from(error: UnpackError) -> Self {
        Self::new((&error).into(), error.to_string())
    }
}

#[cfg(test)]
mod tests;
