//! Reading image archives, offline: what `docker save` writes (both its old form and the one that is an OCI layout as
//! well), OCI layouts packed as tar, OCI layout directories.
//!
//! ```text
//! source    members of a tar file or a directory by name, read in place
//! index     the tar file's table of members                      (POSIX pax, GNU long names)
//! document  manifest.json, index.json and what they lead to       (OCI image-spec, Docker image spec v1.2)
//! ```
//!
//! Nothing is unpacked: a blob is an offset and a length in the archive. Every blob of a chosen image is hashed before
//! the image is handed out. An archive is hostile until proven otherwise: names in it are only ever looked up in the
//! archive's own table, and every size and count is bounded.
mod document;
mod index;
mod source;
#[cfg(test)]
mod tests;

pub use source::BlobReader;

use source::Source;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use wherry_protocol::Digest;
use wherry_protocol::message::{Descriptor, ImageManifest, ImageName};

/// Members of one archive. A big image has some hundred; this bounds the table in memory.
pub const MAX_MEMBERS: usize = 20_000;
/// Largest JSON document read into memory, in bytes: the bound that registries use for manifests.
pub const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;
/// Images (names times platforms) of one archive.
pub const MAX_IMAGES: usize = 64;
/// Largest archive after removing an outer compression, in bytes: stops a decompression bomb from filling the disk.
pub const MAX_SPOOL_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system said no.
    #[error("cannot read {}", path.display())]
    Open {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Reading failed half-way.
    #[error("reading the archive failed")]
    Read(#[source] std::io::Error),
    /// Neither form of archive.
    #[error("not an image: {0}; make one with `docker save` or as an OCI layout")]
    NotAnImage(&'static str),
    /// The file ends inside a member.
    #[error("the archive is truncated: '{0}' is not complete; copy or save it again")]
    Truncated(String),
    /// A tar header that is none, or one that is not used in images.
    #[error("the archive is damaged at byte {offset}: {reason}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A document refers to something that is not there.
    #[error("the archive is incomplete: {referrer} names '{name}', which is not in it")]
    Missing {
        /// Which document.
        referrer: String,
        /// The missing member.
        name: String,
    },
    /// A document that is not what it should be.
    #[error("{name} in the archive cannot be understood: {reason}")]
    Document {
        /// Which document.
        name: String,
        /// Why.
        reason: String,
    },
    /// Bytes that do not match their digest.
    #[error("the archive is damaged: '{name}' should be {expected} but is {found}")]
    WrongDigest {
        /// Which member.
        name: String,
        /// What the image says.
        expected: Digest,
        /// What its bytes give.
        found: Digest,
    },
    /// A member whose size is not what the image says.
    #[error("the archive is damaged: '{name}' should have {expected} bytes but has {found}")]
    WrongSize {
        /// Which member.
        name: String,
        /// What the image says.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// Something exceeds its limit.
    #[error("the archive is refused: {what} is {found}, more than the limit of {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// How much.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// A kind of layer that no node can unpack.
    #[error("the image has a layer of type '{0}', which is not supported")]
    Media(String),
    /// No image for the wanted platform.
    #[error("the archive has no image for {wanted}; it has {found}")]
    NoPlatform {
        /// `linux/amd64`, say.
        wanted: String,
        /// What there is.
        found: String,
    },
}

/// Which platforms of an archive are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// All that boards exist for: linux on amd64 and arm64.
    All,
    /// One architecture, in OCI's words: `amd64` or `arm64`.
    Only(String),
}

impl Platforms {
    /// The architectures that boards have.
    pub const SUPPORTED: [&str; 2] = ["amd64", "arm64"];

    fn accepts(&self, architecture: &str) -> bool {
        match self {
            Self::All => Self::SUPPORTED.contains(&architecture),
            Self::Only(wanted) => wanted == architecture,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::All => "linux/amd64 or linux/arm64".into(),
            Self::Only(wanted) => format!("linux/{wanted}"),
        }
    }
}

/// One image of an archive, all of its blobs verified.
#[derive(Debug, Clone)]
pub struct ArchivedImage {
    /// What it consists of.
    pub manifest: ImageManifest,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// What it is called in the archive, or a name made from the file's.
    pub names: Vec<ImageName>,
    members: BTreeMap<Digest, String>,
}

impl ArchivedImage {
    /// Every blob once: the configuration, then the layers, lowest first.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        crate::oci::blobs(&self.manifest)
    }

    /// Bytes of all blobs.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs().map(|blob| blob.size).fold(0, u64::saturating_add)
    }
}

/// An opened archive.
#[derive(Debug)]
pub struct ImageArchive {
    source: Source,
    /// A name for images that have none, made from the file's name.
    stem: Option<String>,
}

impl ImageArchive {
    /// Opens a file or a directory and reads its table of contents. An archive compressed as a whole is unpacked into
    /// an unnamed temporary file first.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        Ok(Self { source: Source::open(path)?, stem: stem(path) })
    }

    /// The same of a file that is open already, such as one without a name. `name` is for images that have none.
    pub fn from_file(file: std::fs::File, name: Option<&str>) -> Result<Self, ArchiveError> {
        Ok(Self { source: Source::of_file(file)?, stem: name.map(str::to_owned) })
    }

    /// The same of whatever can be read, such as a pipe: it goes into a file without a name first.
    pub fn from_reader(reader: impl std::io::Read, name: Option<&str>) -> Result<Self, ArchiveError> {
        Self::from_file(source::spool(reader, MAX_SPOOL_BYTES)?, name)
    }

    /// The images for `platforms`, each verified in full. Never empty.
    pub fn images(&self, platforms: &Platforms) -> Result<Vec<ArchivedImage>, ArchiveError> {
        document::images(&self.source, self.stem.as_deref(), platforms)
    }

    /// The bytes of one blob of an image of this archive. Several may be read at once, from several threads.
    pub fn blob(&self, image: &ArchivedImage, digest: &Digest) -> Result<BlobReader, ArchiveError> {
        let missing = || ArchiveError::Missing { referrer: "the image".into(), name: digest.to_string() };
        self.source.open_member(image.members.get(digest).ok_or_else(missing)?)?.ok_or_else(missing)
    }
}

/// `web` of `/somewhere/Web.tar.gz`.
fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let cut = [".tar.gz", ".tar.zst", ".tgz", ".tar", ".oci"].iter().find_map(|end| name.strip_suffix(end));
    Some(cut.unwrap_or(&name).to_owned()).filter(|stem| !stem.is_empty())
}
