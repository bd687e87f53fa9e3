//! The table of members of a tar file: where each begins and how long it is (POSIX.1-2017 pax, with GNU long names).
use super::{ArchiveError, MAX_MEMBERS};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Longest member name, and longest set of pax records, in bytes.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// Links followed from one name to the data. Old `docker save` links equal layers to one another, one step.
const MAX_LINKS: usize = 8;

/// Where a member's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Member {
    Data(Span),
    Link(String),
}

/// Members by normalised name.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<String, Member>);

impl Index {
    /// Reads all headers of the first `length` bytes of `file`, skipping the data between them.
    pub(super) fn read(file: &File, length: u64) -> Result<Self, ArchiveError> {
        let mut index = Self::default();
        let mut walk = Walk { file, length, offset: 0, members: 0, extension: Extension::default() };
        while let Some((name, member)) = walk.next()? {
            index.0.insert(name, member);
        }
        Ok(index)
    }

    /// Where the bytes of `name` are, links followed; `None` if there is no such file in the archive.
    pub(super) fn find(&self, name: &str) -> Option<Span> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.0.get(name)? {
                Member::Data(span) => return Some(*span),
                Member::Link(target) => name = target,
            }
        }
        None
    }
}

/// What pax and GNU headers say about the next member.
#[derive(Debug, Default)]
struct Extension {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

struct Walk<'a> {
    file: &'a File,
    length: u64,
    offset: u64,
    members: usize,
    extension: Extension,
}

impl Walk<'_> {
    fn damaged(&self, reason: &'static str) -> ArchiveError {
        ArchiveError::Damaged { offset: self.offset, reason }
    }

    /// The next file or link; `None` at the end of the archive.
    fn next(&mut self) -> Result<Option<(String, Member)>, ArchiveError> {
        while let Some(header) = self.header()? {
            self.members += 1;
            if self.members > MAX_MEMBERS {
                return Err(ArchiveError::TooLarge {
                    what: "its number of members".into(),
                    found: self.members as u64,
                    limit: MAX_MEMBERS as u64,
                });
            }
            if let Some(found) = self.member(&header)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if self.offset == self.length && self.offset > 0 {
            return Ok(None); // The closing zero blocks are missing, as some writers leave them out.
        }
        let mut block = [0; BLOCK as usize];
        if self.length.saturating_sub(self.offset) < BLOCK {
            return Err(match self.offset {
                0 => ArchiveError::NotAnImage("the file is no tar archive"),
                _ => ArchiveError::Truncated("a header".into()),
            });
        }
        self.file.read_exact_at(&mut block, self.offset).map_err(ArchiveError::Read)?;
        if block.iter().all(|&byte| byte == 0) {
            return match self.offset {
                0 => Err(ArchiveError::NotAnImage("the archive is empty")),
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(match self.offset {
                0 => ArchiveError::NotAnImage("the file is no tar archive"),
                _ => self.damaged("a tar header with a wrong checksum"),
            });
        }
        Ok(Some(header))
    }

    /// Takes one member, or one header about the next member, and moves past it.
    fn member(&mut self, header: &Header) -> Result<Option<(String, Member)>, ArchiveError> {
        let kind = header.entry_type();
        let size = self.data_size(header, kind)?;
        let span = Span { offset: self.offset + BLOCK, size };
        let end = span.offset.checked_add(size).ok_or_else(|| self.damaged("a size beyond any file"))?;
        if end > self.length {
            let name = self.extension.name.take().unwrap_or_else(|| text(&header.path_bytes()));
            return Err(ArchiveError::Truncated(name));
        }
        let found = match kind {
            EntryType::GNULongName => {
                self.extension.name = Some(text(&self.extension_bytes(span)?));
                None
            }
            EntryType::GNULongLink => {
                self.extension.link = Some(text(&self.extension_bytes(span)?));
                None
            }
            EntryType::XHeader => {
                let bytes = self.extension_bytes(span)?;
                self.pax(&bytes)?;
                None
            }
            EntryType::GNUSparse => return Err(self.damaged("a sparse member, which images never have")),
            EntryType::XGlobalHeader => None,
            kind => self.file_or_link(header, kind, span),
        };
        // The last member's padding may be missing.
        self.offset = end.next_multiple_of(BLOCK).min(self.length.max(end));
        Ok(found)
    }

    fn data_size(&self, header: &Header, kind: EntryType) -> Result<u64, ArchiveError> {
        // Links, directories and devices have no data, whatever the field says (as Go's archive/tar reads them).
        let bare = kind.is_hard_link()
            || kind.is_symlink()
            || kind.is_dir()
            || kind.is_fifo()
            || kind.is_character_special()
            || kind.is_block_special();
        match (bare, self.extension.size) {
            (true, _) => Ok(0),
            (false, Some(size)) => Ok(size),
            (false, None) => header.entry_size().map_err(|_| self.damaged("a size that is no number")),
        }
    }

    fn file_or_link(&mut self, header: &Header, kind: EntryType, span: Span) -> Option<(String, Member)> {
        let extension = std::mem::take(&mut self.extension);
        let name = normalise("", &extension.name.unwrap_or_else(|| text(&header.path_bytes())))?;
        let link = || {
            extension.link.or_else(|| header.link_name_bytes().map(|bytes| text(&bytes))).unwrap_or_default()
        };
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        let member = match kind {
            EntryType::Regular | EntryType::Continuous => Member::Data(span),
            EntryType::Link => Member::Link(normalise("", &link())?),
            EntryType::Symlink => Member::Link(normalise(parent, &link())?),
            _ => return None,
        };
        Some((name, member))
    }

    fn extension_bytes(&self, span: Span) -> Result<Vec<u8>, ArchiveError> {
        if span.size > MAX_EXTENSION_BYTES {
            return Err(self.damaged("a name or extension beyond 64 KiB"));
        }
        let mut bytes = vec![0; usize::try_from(span.size).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, span.offset).map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record.map_err(|_| self.damaged("a pax record that cannot be read"))?;
            let value = text(record.value_bytes());
            match record.key_bytes() {
                b"path" => self.extension.name = Some(value),
                b"linkpath" => self.extension.link = Some(value),
                b"size" => {
                    let size = value.parse().map_err(|_| self.damaged("a size that is no number"))?;
                    self.extension.size = Some(size);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.damaged("a sparse member, which images never have"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Sum of the header's bytes with the checksum field read as spaces (POSIX.1-2017, pax, ustar Interchange Format).
fn checksum(block: &[u8; BLOCK as usize]) -> u32 {
    block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) })
        .sum()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// `name` relative to `parent`, without `.` and `..`; `None` if it leads out of the archive.
pub(super) fn normalise(parent: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    if name.starts_with('/') {
        parts.clear();
    }
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
