//! Packets of the SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02), with the extensions that OpenSSH's
//! clients use (PROTOCOL, section 4, in its source). Pure: bytes to requests, replies to bytes.
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Longest packet, in bytes, without its length: OpenSSH's own bound. Stops a client from making us allocate by announcing
/// a huge one.
pub(super) const MAX_PACKET: usize = 256 * 1024;
/// Most data in one read or write, in bytes: a packet less its other fields.
pub(super) const MAX_DATA: usize = MAX_PACKET - 1024;
/// The version that we speak.
pub(super) const VERSION: u32 = 3;
/// The first packet of a client.
pub(super) const INIT: u8 = 1;

/// What is told about a request that gives nothing else (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// A packet that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// What of a file is known, or is to be set (section 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    /// Permission bits, and in what we send also the kind of file.
    pub(super) mode: Option<u32>,
    /// Read and changed, Unix seconds.
    pub(super) times: Option<(u32, u32)>,
}

/// How a file is opened (section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFlags(pub(super) u32);

impl OpenFlags {
    pub(super) const READ: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const APPEND: u32 = 4;
    pub(super) const CREATE: u32 = 8;
    pub(super) const TRUNCATE: u32 = 16;
    pub(super) const EXCLUSIVE: u32 = 32;

    pub(super) fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// A handle as the client sends it back; anything but four bytes is none of ours.
pub(super) type Handle = u32;

/// What a client asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    Open {
        path: &'a Path,
        flags: OpenFlags,
        attributes: Attributes,
    },
    Close(Handle),
    Read {
        handle: Handle,
        offset: u64,
        length: u32,
    },
    Write {
        handle: Handle,
        offset: u64,
        data: &'a [u8],
    },
    Stat(&'a Path),
    LinkStat(&'a Path),
    FileStat(Handle),
    SetStat(&'a Path, Attributes),
    FileSetStat(Handle, Attributes),
    OpenDirectory(&'a Path),
    ReadDirectory(Handle),
    Remove(&'a Path),
    MakeDirectory(&'a Path, Attributes),
    RemoveDirectory(&'a Path),
    RealPath(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    ReadLink(&'a Path),
    /// OpenSSH sends what it leads to first, against the draft, and so do the clients that follow it.
    MakeLink {
        target: &'a Path,
        link: &'a Path,
    },
    RenameOver {
        from: &'a Path,
        to: &'a Path,
    },
    HardLink {
        from: &'a Path,
        to: &'a Path,
    },
    Sync(Handle),
    LinkSetStat(&'a Path, Attributes),
    FileSystem(&'a Path),
    FileSystemOf(Handle),
    Expand(&'a Path),
    Limits,
    /// Not one of the above.
    Unknown,
}

/// Extensions that we know, and their versions.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("expand-path@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

/// Takes fields off the front of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_be_bytes)
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }

    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// An empty one is where the session began.
    fn path(&mut self) -> Result<&'a Path, Malformed> {
        let bytes = self.string()?;
        if bytes.contains(&0) {
            return Err(Malformed);
        }
        Ok(Path::new(if bytes.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(bytes) }))
    }

    fn handle(&mut self) -> Result<Handle, Malformed> {
        self.string()?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }

    fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.number()?;
        let size = if flags & SIZE != 0 { Some(self.long()?) } else { None };
        let owner = if flags & OWNER != 0 { Some((self.number()?, self.number()?)) } else { None };
        let mode = if flags & MODE != 0 { Some(self.number()?) } else { None };
        let times = if flags & TIMES != 0 { Some((self.number()?, self.number()?)) } else { None };
        if flags & EXTENDED != 0 {
            // Each takes at least eight bytes, so the packet bounds how many there are.
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(Attributes { size, owner, mode, times })
    }
}

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// The version of a client's first packet.
pub(super) fn init(packet: &[u8]) -> Result<u32, Malformed> {
    let mut fields = Fields(packet);
    match fields.take()? {
        [INIT] => fields.number(),
        _ => Err(Malformed),
    }
}

/// The number of a request, and the request, as far as it can be understood.
pub(super) fn request(packet: &[u8]) -> Result<(u32, Result<Request<'_>, Malformed>), Malformed> {
    let mut fields = Fields(packet);
    let [kind] = fields.take()?;
    Ok((fields.number()?, body(kind, &mut fields)))
}

fn body<'a>(kind: u8, fields: &mut Fields<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match kind {
        3 => {
            let (path, flags) = (fields.path()?, OpenFlags(fields.number()?));
            Request::Open { path, flags, attributes: fields.attributes()? }
        }
        4 => Request::Close(fields.handle()?),
        5 => Request::Read { handle: fields.handle()?, offset: fields.long()?, length: fields.number()? },
        6 => Request::Write { handle: fields.handle()?, offset: fields.long()?, data: fields.string()? },
        7 => Request::LinkStat(fields.path()?),
        8 => Request::FileStat(fields.handle()?),
        9 => Request::SetStat(fields.path()?, fields.attributes()?),
        10 => Request::FileSetStat(fields.handle()?, fields.attributes()?),
        11 => Request::OpenDirectory(fields.path()?),
        12 => Request::ReadDirectory(fields.handle()?),
        13 => Request::Remove(fields.path()?),
        14 => Request::MakeDirectory(fields.path()?, fields.attributes()?),
        15 => Request::RemoveDirectory(fields.path()?),
        16 => Request::RealPath(fields.path()?),
        17 => Request::Stat(fields.path()?),
        18 => Request::Rename { from: fields.path()?, to: fields.path()? },
        19 => Request::ReadLink(fields.path()?),
        20 => Request::MakeLink { target: fields.path()?, link: fields.path()? },
        200 => extended(fields)?,
        _ => Request::Unknown,
    })
}

fn extended<'a>(fields: &mut Fields<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match fields.string()? {
        b"posix-rename@openssh.com" => Request::RenameOver { from: fields.path()?, to: fields.path()? },
        b"hardlink@openssh.com" => Request::HardLink { from: fields.path()?, to: fields.path()? },
        b"fsync@openssh.com" => Request::Sync(fields.handle()?),
        b"lsetstat@openssh.com" => Request::LinkSetStat(fields.path()?, fields.attributes()?),
        b"statvfs@openssh.com" => Request::FileSystem(fields.path()?),
        b"fstatvfs@openssh.com" => Request::FileSystemOf(fields.handle()?),
        b"expand-path@openssh.com" => Request::Expand(fields.path()?),
        b"limits@openssh.com" => Request::Limits,
        _ => Request::Unknown,
    })
}

/// An entry of a directory, or a path that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedFile {
    pub(super) name: Vec<u8>,
    /// As `ls -l` shows it.
    pub(super) long: Vec<u8>,
    pub(super) attributes: Attributes,
}

/// What a client is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status(Status, String),
    Handle(Handle),
    Data(Vec<u8>),
    Names(Vec<NamedFile>),
    Attributes(Attributes),
    /// An extension's own: numbers only.
    Numbers(Vec<u64>),
}

impl Reply {
    pub(super) fn ok() -> Self {
        Self::Status(Status::Ok, String::new())
    }
}

/// The answer to a client's first packet, with its length.
pub(super) fn version() -> Vec<u8> {
    let mut out = begin(2);
    out.extend(VERSION.to_be_bytes());
    for (name, version) in EXTENSIONS {
        put(&mut out, name.as_bytes());
        put(&mut out, version.as_bytes());
    }
    finish(out)
}

/// The packet of a reply, with its length.
pub(super) fn reply(id: u32, reply: &Reply) -> Vec<u8> {
    let mut out = begin(match reply {
        Reply::Status(..) => 101,
        Reply::Handle(_) => 102,
        Reply::Data(_) => 103,
        Reply::Names(_) => 104,
        Reply::Attributes(_) => 105,
        Reply::Numbers(_) => 201,
    });
    out.extend(id.to_be_bytes());
    match reply {
        Reply::Status(status, text) => {
            out.extend((*status as u32).to_be_bytes());
            put(&mut out, text.as_bytes());
            put(&mut out, b"");
        }
        Reply::Handle(handle) => put(&mut out, &handle.to_be_bytes()),
        Reply::Data(bytes) => put(&mut out, bytes),
        Reply::Names(names) => {
            out.extend(short(names.len()).to_be_bytes());
            for file in names {
                put(&mut out, &file.name);
                put(&mut out, &file.long);
                put_attributes(&mut out, &file.attributes);
            }
        }
        Reply::Attributes(attributes) => put_attributes(&mut out, attributes),
        Reply::Numbers(numbers) => out.extend(numbers.iter().flat_map(|number| number.to_be_bytes())),
    }
    finish(out)
}

fn put_attributes(out: &mut Vec<u8>, attributes: &Attributes) {
    let Attributes { size, owner, mode, times } = *attributes;
    let flag = |there: bool, flag: u32| if there { flag } else { 0 };
    let flags = flag(size.is_some(), SIZE)
        | flag(owner.is_some(), OWNER)
        | flag(mode.is_some(), MODE)
        | flag(times.is_some(), TIMES);
    out.extend(flags.to_be_bytes());
    out.extend(size.into_iter().flat_map(u64::to_be_bytes));
    let pairs = [owner, mode.map(|mode| (mode, 0)), times];
    for (index, pair) in pairs.into_iter().enumerate() {
        let Some((first, second)) = pair else { continue };
        out.extend(first.to_be_bytes());
        if index != 1 {
            out.extend(second.to_be_bytes());
        }
    }
}

/// Room for the length, and what kind of packet it is.
fn begin(kind: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, kind]
}

fn finish(mut packet: Vec<u8>) -> Vec<u8> {
    let length = short(packet.len().saturating_sub(4)).to_be_bytes();
    for (byte, value) in packet.iter_mut().zip(length) {
        *byte = value;
    }
    packet
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(short(bytes.len()).to_be_bytes());
    out.extend(bytes);
}

/// Everything that we send is far below 4 GiB.
fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_field_by_field() {
        let mut packet = vec![3, 0, 0, 0, 9];
        put(&mut packet, b"/a");
        packet.extend(26_u32.to_be_bytes());
        put_attributes(&mut packet, &Attributes { mode: Some(0o640), ..Attributes::default() });
        let attributes = Attributes { mode: Some(0o640), ..Attributes::default() };
        let expected = Request::Open { path: Path::new("/a"), flags: OpenFlags(26), attributes };
        assert_eq!(request(&packet), Ok((9, Ok(expected))));
        for cut in 5..packet.len() {
            assert_eq!(request(&packet[..cut]), Ok((9, Err(Malformed))), "{cut}");
        }
        assert_eq!(request(&packet[..4]), Err(Malformed));
        assert_eq!(request(&[99, 0, 0, 0, 1]), Ok((1, Ok(Request::Unknown))));
        let mut nul = vec![13, 0, 0, 0, 1];
        put(&mut nul, b"a\0b");
        assert_eq!(request(&nul), Ok((1, Err(Malformed))));
    }

    #[test]
    fn attributes_come_back_as_they_went() {
        for bits in 0..16 {
            let some = |bit: u32| bits & bit != 0;
            let attributes = Attributes {
                size: some(1).then_some(1 << 40),
                owner: some(2).then_some((1000, 7)),
                mode: some(4).then_some(0o100_644),
                times: some(8).then_some((1, 2)),
            };
            let mut bytes = Vec::new();
            put_attributes(&mut bytes, &attributes);
            let mut fields = Fields(&bytes);
            assert_eq!(fields.attributes(), Ok(attributes));
            assert!(fields.0.is_empty());
        }
    }

    #[test]
    fn endless_extended_attributes_end_with_the_packet() {
        let mut packet = vec![9, 0, 0, 0, 1];
        put(&mut packet, b"/a");
        packet.extend(EXTENDED.to_be_bytes());
        packet.extend(u32::MAX.to_be_bytes());
        assert_eq!(request(&packet), Ok((1, Err(Malformed))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(init(&packet).is_err() || packet.first() == Some(&INIT));
            if let Ok((_, Ok(request))) = request(&packet) {
                // What it holds is part of the packet.
                let shown = format!("{request:?}");
                prop_assert!(shown.len() < 4000, "{}", shown);
            }
        }
    }
}
