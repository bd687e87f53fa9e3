//! A bounded, streaming reader of tar: ustar (POSIX.1-1988), PAX (POSIX.1-2001) and the GNU extensions that occur in
//! layers. Pure: it knows nothing of file systems.
use super::Limits;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// Before the name of an extended attribute in a PAX record, as GNU tar and Docker write it.
pub const XATTR_RECORD: &str = "SCHILY.xattr.";
const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;
/// Blocks of zeros accepted after the end: 16 MiB. GNU tar pads to 10 KiB by default, tapes to a few MiB; without a
/// bound a few compressed bytes could keep a node busy for hours.
const MAX_PADDING_BLOCKS: u32 = 32 * 1024;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends inside an entry.
    #[error("it is truncated")]
    Truncated,
    /// Something other than zeros after the end.
    #[error("there is something after its end")]
    TrailingGarbage,
    /// A header that is none.
    #[error("a header has a wrong checksum")]
    Checksum,
    /// A number or record that does not parse.
    #[error("the {0} of an entry is not valid")]
    Field(&'static str),
    /// An entry of a type that layers do not have.
    #[error("entries of type '{}' are not supported", .0.escape_ascii())]
    Type(u8),
    /// A path, link or extension above its bound.
    #[error("the {what} of an entry is longer than {limit}")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The source failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file; its bytes follow.
    File,
    /// Another name for an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// Name and value of an extended attribute.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path as written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: Unix seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Target of a link, as written.
    pub link: Vec<u8>,
    /// Length of the file once unpacked.
    pub size: u64,
    /// Extended attributes (`SCHILY.xattr` records).
    pub xattrs: Vec<Attribute>,
    /// Where the data that follows belongs, as (offset, length); `None`: all of it, from 0.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads entries one after the other; between two [`next_entry`](Self::next_entry) it reads as the data of the current one.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    limits: Limits,
    /// Data of the current entry not yet read.
    data: u64,
    /// Bytes up to the next header after the data.
    padding: u64,
}

/// PAX records of one header (pax(1) "pax Extended Header"), and their GNU predecessors.
#[derive(Debug, Default)]
struct Extensions {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`, which starts with a header.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self { inner, limits, data: 0, padding: 0 }
    }

    /// The next entry; `None` once the archive has ended properly: by a block of zeros, or between two entries. (That
    /// nothing is missing there is what the layer's digest proves.)
    ///
    /// # Errors
    /// [`TarError`]; the reader must not be used any more then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_data()?;
        let mut extensions = Extensions::default();
        let mut spent: u64 = 0;
        loop {
            let Some(header) = self.header()? else {
                return if spent == 0 { Ok(None) } else { Err(TarError::Truncated) };
            };
            let size = header.size()?;
            match header.kind() {
                kind @ (b'x' | b'L' | b'K') => {
                    spent = spent.saturating_add(size).saturating_add(BLOCK_U64);
                    self.bounded("extension header", spent, self.limits.extension_bytes)?;
                    let body = self.body(size)?;
                    extensions.add(kind, body)?;
                }
                // A global header speaks of the archive (git puts a commit there), not of entries we unpack.
                b'g' => {
                    spent = spent.saturating_add(size).saturating_add(BLOCK_U64);
                    self.bounded("extension header", spent, self.limits.extension_bytes)?;
                    self.body(size)?;
                }
                _ => return self.entry(&header, extensions, size).map(Some),
            }
        }
    }

    fn bounded(&self, what: &'static str, found: u64, limit: u64) -> Result<(), TarError> {
        if found > limit { Err(TarError::TooLong { what, limit }) } else { Ok(()) }
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let skip = self.data.saturating_add(self.padding);
        (self.data, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink())?;
        if skipped == skip { Ok(()) } else { Err(TarError::Truncated) }
    }

    /// Reads one block; `None` at the end of the source.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            self.only_zeros()?;
            return Ok(None);
        }
        Header::checked(block).map(Some)
    }

    /// After the end there may be padding up to the writer's record size, always zeros.
    fn only_zeros(&mut self) -> Result<(), TarError> {
        let mut blocks = 0;
        while let Some(block) = self.block()? {
            blocks += 1;
            if block != [0; BLOCK] || blocks > MAX_PADDING_BLOCKS {
                return Err(TarError::TrailingGarbage);
            }
        }
        Ok(())
    }

    /// The whole body of an extension header, already checked against its bound.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        self.set_data(size);
        let mut body = Vec::new();
        self.read_to_end(&mut body)?;
        if body.len() as u64 == size { Ok(body) } else { Err(TarError::Truncated) }.and_then(|body| {
            self.skip_data()?;
            Ok(body)
        })
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64;
    }

    fn entry(&mut self, header: &Header, extensions: Extensions, size: u64) -> Result<Entry, TarError> {
        let stored = extensions.number(b"size")?.unwrap_or(size);
        let mut entry = Entry {
            path: extensions.path().map_or_else(|| header.path(), <[u8]>::to_vec),
            kind: EntryKind::File,
            mode: header.mode()?,
            uid: extensions.owner(b"uid")?.map_or_else(|| header.owner(108, "owner"), Ok)?,
            gid: extensions.owner(b"gid")?.map_or_else(|| header.owner(116, "group"), Ok)?,
            mtime: extensions.mtime()?.map_or_else(|| header.mtime(), Ok)?,
            link: extensions.link().map_or_else(|| header.text(157, 100), <[u8]>::to_vec),
            size: stored,
            xattrs: extensions.xattrs(self.limits.xattrs)?,
            sparse: None,
        };
        entry.kind = match header.kind() {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if entry.path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' | b'4' => EntryKind::Device,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Type(other)),
        };
        let limit = self.limits.path_bytes as u64;
        self.bounded("path", entry.path.len() as u64, limit)?;
        self.bounded("link target", entry.link.len() as u64, limit)?;
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(TarError::Field("path"));
        }
        // Only files have data; some writers put the size of a link's target into its header.
        self.set_data(if entry.kind == EntryKind::File { stored } else { 0 });
        if entry.kind != EntryKind::File {
            entry.size = 0;
        } else if header.kind() == b'S' {
            self.old_sparse(header, &mut entry)?;
        } else {
            self.pax_sparse(&extensions, &mut entry)?;
        }
        Ok(entry)
    }

    /// Old GNU sparse format: four regions in the header, 21 in each extension block (tar manual, "Old GNU Format").
    fn old_sparse(&mut self, header: &Header, entry: &mut Entry) -> Result<(), TarError> {
        let (data, padding) = (self.data, self.padding);
        let mut regions = Vec::new();
        let mut more = sparse_regions(&header.0[386..482], header.0[482], &mut regions)?;
        while more {
            self.bounded("sparse map", regions.len() as u64, self.limits.sparse_regions as u64)?;
            let block = self.block()?.ok_or(TarError::Truncated)?;
            more = sparse_regions(&block[..504], block[504], &mut regions)?;
        }
        (self.data, self.padding) = (data, padding);
        entry.size = number(&header.0[483..495], "size")?;
        check_sparse(&regions, entry.size, data)?;
        entry.sparse = Some(regions);
        Ok(())
    }

    /// PAX sparse format 1.0: the map is text at the start of the data (tar manual, "PAX Format, Version 1.0").
    fn pax_sparse(&mut self, extensions: &Extensions, entry: &mut Entry) -> Result<(), TarError> {
        let Some(major) = extensions.number(b"GNU.sparse.major")? else {
            let older = extensions.records.keys().any(|key| key.starts_with(b"GNU.sparse."));
            return if older {
                Err(TarError::Field("sparse format (only 1.0 is supported)"))
            } else {
                Ok(())
            };
        };
        if major != 1 || extensions.number(b"GNU.sparse.minor")? != Some(0) {
            return Err(TarError::Field("sparse format (only 1.0 is supported)"));
        }
        entry.size = extensions.number(b"GNU.sparse.realsize")?.ok_or(TarError::Field("sparse map"))?;
        if let Some(name) = extensions.records.get(b"GNU.sparse.name".as_slice()) {
            entry.path.clone_from(name);
            self.bounded("path", name.len() as u64, self.limits.path_bytes as u64)?;
        }
        let before = self.data;
        let count = self.map_number()?;
        self.bounded("sparse map", count, self.limits.sparse_regions as u64)?;
        let regions = (0..count)
            .map(|_| Ok((self.map_number()?, self.map_number()?)))
            .collect::<Result<Vec<_>, TarError>>()?;
        let used = before - self.data;
        let fill = (BLOCK_U64 - used % BLOCK_U64) % BLOCK_U64;
        io::copy(&mut Read::by_ref(self).take(fill), &mut io::sink())?;
        check_sparse(&regions, entry.size, self.data)?;
        entry.sparse = Some(regions);
        Ok(())
    }

    /// One decimal number and a newline of the sparse map.
    fn map_number(&mut self) -> Result<u64, TarError> {
        const MAX_DIGITS: usize = 20;
        let mut text = Vec::new();
        loop {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(|_| TarError::Truncated)?;
            match byte {
                [b'\n'] => return decimal(&text).ok_or(TarError::Field("sparse map")),
                [digit] if text.len() < MAX_DIGITS => text.push(digit),
                _ => return Err(TarError::Field("sparse map")),
            }
        }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.data == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= count as u64;
        Ok(count)
    }
}

/// Regions in order, without overlap, inside the file, and as long together as the data.
fn check_sparse(regions: &[(u64, u64)], size: u64, data: u64) -> Result<(), TarError> {
    let mut end: u64 = 0;
    let mut sum: u64 = 0;
    for &(offset, length) in regions {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
        end = next.ok_or(TarError::Field("sparse map"))?;
        sum = sum.saturating_add(length);
    }
    if sum == data { Ok(()) } else { Err(TarError::Field("sparse map")) }
}

fn sparse_regions(table: &[u8], more: u8, regions: &mut Vec<(u64, u64)>) -> Result<bool, TarError> {
    for region in table.chunks_exact(24) {
        if region[0] == 0 {
            break;
        }
        regions.push((number(&region[..12], "sparse map")?, number(&region[12..], "sparse map")?));
    }
    Ok(more != 0)
}

struct Header([u8; BLOCK]);

impl Header {
    fn checked(block: [u8; BLOCK]) -> Result<Self, TarError> {
        // The checksum's own field counts as blanks; old writers summed signed bytes.
        let field = 148..156;
        let blank = |(i, &byte): (usize, &u8)| if field.contains(&i) { b' ' } else { byte };
        let bytes = || block.iter().enumerate().map(blank);
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        let wanted = number(&block[field.clone()], "checksum").map_err(|_| TarError::Checksum)?;
        let fits = wanted == unsigned || i64::try_from(wanted) == Ok(signed);
        if fits { Ok(Self(block)) } else { Err(TarError::Checksum) }
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn text(&self, start: usize, length: usize) -> Vec<u8> {
        let field = &self.0[start..start + length];
        field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // GNU's own format keeps times where POSIX keeps the prefix.
        let posix = &self.0[257..263] == b"ustar\0";
        let prefix = if posix { self.text(345, 155) } else { Vec::new() };
        if prefix.is_empty() { name } else { [prefix, vec![b'/'], name].concat() }
    }

    fn size(&self) -> Result<u64, TarError> {
        number(&self.0[124..136], "size")
    }

    fn mode(&self) -> Result<u32, TarError> {
        const PERMISSIONS: u64 = 0o7777;
        let mode = number(&self.0[100..108], "mode")? & PERMISSIONS;
        u32::try_from(mode).map_err(|_| TarError::Field("mode"))
    }

    fn owner(&self, start: usize, what: &'static str) -> Result<u32, TarError> {
        owner(number(&self.0[start..start + 8], what)?).ok_or(TarError::Field(what))
    }

    fn mtime(&self) -> Result<(i64, u32), TarError> {
        let field = &self.0[136..148];
        let seconds = match field[0] {
            // Base-256 with the sign bit set: before 1970. Such times become 1970.
            0xff => 0,
            _ => i64::try_from(number(field, "time")?).map_err(|_| TarError::Field("time"))?,
        };
        Ok((seconds, 0))
    }
}

/// The kernel keeps the highest number for "unchanged".
fn owner(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|&id| id != u32::MAX)
}

/// Octal text, or GNU's base-256 (first byte 0x80).
fn number(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    let error = || TarError::Field(what);
    if let [0x80, digits @ ..] = field {
        let step = |value: u64, &digit: &u8| value.checked_mul(256)?.checked_add(u64::from(digit));
        return digits.iter().try_fold(0, step).ok_or_else(error);
    }
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii();
    let step = |value: u64, &digit: &u8| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    text.iter().try_fold(0, step).ok_or_else(error)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

impl Extensions {
    fn add(&mut self, kind: u8, body: Vec<u8>) -> Result<(), TarError> {
        match kind {
            b'L' => self.long_path = Some(until_nul(body)),
            b'K' => self.long_link = Some(until_nul(body)),
            _ => self.add_records(&body)?,
        }
        Ok(())
    }

    /// `length key=value\n`, where length counts the whole record.
    fn add_records(&mut self, mut body: &[u8]) -> Result<(), TarError> {
        const BAD: TarError = TarError::Field("extension record");
        while !body.is_empty() {
            let space = body.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
            let length =
                decimal(&body[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(BAD)?;
            let (record, rest) = body.split_at_checked(length).ok_or(BAD)?;
            let text = record.get(space + 1..).and_then(|text| text.strip_suffix(b"\n")).ok_or(BAD)?;
            let equals = text.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = (text[..equals].to_vec(), text[equals + 1..].to_vec());
            // An empty value takes an earlier record back.
            if value.is_empty() {
                self.records.remove(&key)
            } else {
                self.records.insert(key, value)
            };
            body = rest;
        }
        Ok(())
    }

    fn path(&self) -> Option<&[u8]> {
        self.records.get(b"path".as_slice()).or(self.long_path.as_ref()).map(Vec::as_slice)
    }

    fn link(&self) -> Option<&[u8]> {
        self.records.get(b"linkpath".as_slice()).or(self.long_link.as_ref()).map(Vec::as_slice)
    }

    fn number(&self, key: &'static [u8]) -> Result<Option<u64>, TarError> {
        let Some(text) = self.records.get(key) else { return Ok(None) };
        decimal(text).map(Some).ok_or(TarError::Field("extension record"))
    }

    fn owner(&self, key: &'static [u8]) -> Result<Option<u32>, TarError> {
        let Some(id) = self.number(key)? else { return Ok(None) };
        owner(id).map(Some).ok_or(TarError::Field("owner"))
    }

    /// `seconds[.fraction]`, possibly negative.
    fn mtime(&self) -> Result<Option<(i64, u32)>, TarError> {
        const BAD: TarError = TarError::Field("time");
        const NANO_DIGITS: usize = 9;
        let Some(value) = self.records.get(b"mtime".as_slice()) else { return Ok(None) };
        let text = std::str::from_utf8(value).map_err(|_| BAD)?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = seconds.parse().map_err(|_| BAD)?;
        if seconds < 0 {
            return Ok(Some((0, 0)));
        }
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BAD);
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(NANO_DIGITS).collect();
        Ok(Some((seconds, digits.parse().map_err(|_| BAD)?)))
    }

    fn xattrs(&self, limit: usize) -> Result<Vec<Attribute>, TarError> {
        let attribute = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            key.strip_prefix(XATTR_RECORD.as_bytes()).map(|name| (name.to_vec(), value.clone()))
        };
        let xattrs: Vec<_> = self.records.iter().filter_map(attribute).collect();
        if xattrs.len() > limit {
            return Err(TarError::TooLong { what: "list of attributes", limit: limit as u64 });
        }
        match xattrs.iter().any(|(name, _)| name.contains(&0)) {
            true => Err(TarError::Field("attribute")),
            false => Ok(xattrs),
        }
    }
}

fn until_nul(mut body: Vec<u8>) -> Vec<u8> {
    if let Some(end) = body.iter().position(|&byte| byte == 0) {
        body.truncate(end);
    }
    body
}
