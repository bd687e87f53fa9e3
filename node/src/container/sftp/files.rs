//! What SFTP's requests do with files. Whoever calls is inside of the container, as the user that was asked for: the kernel
//! decides what may be had.
use super::listing;
use super::wire::{Attributes, Handle, MAX_DATA, MAX_PACKET, OpenFlags, Reply, Request, Status};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, StatVfs, StatVfsMountFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Permissions, ReadDir};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Files and directories that one client has open. Stops it from using up the container's descriptors.
const MAX_HANDLES: usize = 256;
/// Entries of a directory in one reply: with names and lines of 255 bytes each, a quarter of a packet.
const MAX_NAMES: usize = 100;

/// What a client has open.
#[derive(Debug)]
enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir, dots: Vec<&'static str> },
}

/// One client's view.
#[derive(Debug)]
pub(super) struct Files {
    open: BTreeMap<Handle, Open>,
    next: Handle,
    home: PathBuf,
}

/// Why a request got nothing.
#[derive(Debug)]
struct Refusal(Status, String);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let status = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Status::NoSuchFile,
            Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Status::PermissionDenied,
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => Status::Unsupported,
            _ => Status::Failure,
        };
        let text = error.to_string();
        Self(status, text.split(" (os error").next().unwrap_or_default().to_owned())
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

fn refusal(status: Status, text: &str) -> Refusal {
    Refusal(status, text.to_owned())
}

impl Files {
    pub(super) fn new(home: PathBuf) -> Self {
        Self { open: BTreeMap::new(), next: 0, home }
    }

    /// Does it, and says how that went.
    pub(super) fn answer(&mut self, request: Request<'_>) -> Reply {
        self.perform(request).unwrap_or_else(|Refusal(status, text)| Reply::Status(status, text))
    }

    fn perform(&mut self, request: Request<'_>) -> Result<Reply, Refusal> {
        match request {
            Request::Open { path, flags, attributes } => return self.open(path, flags, attributes),
            Request::OpenDirectory(path) => return self.open_directory(path),
            Request::ReadDirectory(handle) => return self.read_directory(handle),
            Request::Read { handle, offset, length } => return self.read(handle, offset, length),
            Request::FileStat(handle) => {
                return Ok(Reply::Attributes(listing::attributes(&self.file(handle)?.metadata()?)));
            }
            Request::Stat(path) => return Ok(Reply::Attributes(listing::attributes(&fs::metadata(path)?))),
            Request::LinkStat(path) => {
                return Ok(Reply::Attributes(listing::attributes(&fs::symlink_metadata(path)?)));
            }
            Request::RealPath(path) => return Ok(name_of(real_path(path)?)),
            Request::Expand(path) => return Ok(name_of(real_path(&self.expand(path)?)?)),
            Request::ReadLink(path) => return Ok(name_of(fs::read_link(path)?)),
            Request::FileSystem(path) => return Ok(file_system(&rustix::fs::statvfs(path)?)),
            Request::FileSystemOf(handle) => {
                return Ok(file_system(&rustix::fs::fstatvfs(self.file(handle)?)?));
            }
            Request::Limits => return Ok(limits()),
            Request::Unknown => return Err(refusal(Status::Unsupported, "not known here")),
            Request::Close(handle) => drop(self.open.remove(&handle).ok_or_else(no_handle)?),
            Request::Write { handle, offset, data } => self.write(handle, offset, data)?,
            Request::Sync(handle) => self.file(handle)?.sync_all()?,
            Request::SetStat(path, attributes) => set(path, &attributes)?,
            Request::FileSetStat(handle, attributes) => set_open(self.file(handle)?, &attributes)?,
            Request::LinkSetStat(path, attributes) => set_link(path, &attributes)?,
            Request::Remove(path) => fs::remove_file(path)?,
            Request::RemoveDirectory(path) => fs::remove_dir(path)?,
            Request::MakeDirectory(path, attributes) => {
                rustix::fs::mkdir(path, mode(&attributes, 0o777))?;
            }
            Request::Rename { from, to } => rename(from, to)?,
            Request::RenameOver { from, to } => fs::rename(from, to)?,
            Request::HardLink { from, to } => fs::hard_link(from, to)?,
            Request::MakeLink { target, link } => std::os::unix::fs::symlink(target, link)?,
        }
        Ok(Reply::ok())
    }

    fn open(&mut self, path: &Path, flags: OpenFlags, attributes: Attributes) -> Result<Reply, Refusal> {
        // A pipe or a terminal in place of a file must not hold us up.
        let mut how = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        how |= match (flags.has(OpenFlags::READ), flags.has(OpenFlags::WRITE)) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (true | false, false) => OFlags::RDONLY,
        };
        for (flag, sets) in [
            (OpenFlags::APPEND, OFlags::APPEND),
            (OpenFlags::CREATE, OFlags::CREATE),
            (OpenFlags::TRUNCATE, OFlags::TRUNC),
            (OpenFlags::EXCLUSIVE, OFlags::EXCL),
        ] {
            how.set(sets, flags.has(flag));
        }
        self.room()?;
        let file = File::from(rustix::fs::openat(CWD, path, how, mode(&attributes, 0o666))?);
        Ok(self.keep(Open::File { file, append: flags.has(OpenFlags::APPEND) }))
    }

    fn open_directory(&mut self, path: &Path) -> Result<Reply, Refusal> {
        self.room()?;
        let entries = fs::read_dir(path)?;
        Ok(self.keep(Open::Directory { path: path.to_owned(), entries, dots: vec!["..", "."] }))
    }

    fn room(&self) -> Result<(), Refusal> {
        match self.open.len() {
            0..MAX_HANDLES => Ok(()),
            _ => Err(refusal(Status::Failure, "too many files are open: close some first")),
        }
    }

    fn keep(&mut self, open: Open) -> Reply {
        // After 2^32 of them a number may still be in use.
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let handle = self.next;
        self.next = handle.wrapping_add(1);
        self.open.insert(handle, open);
        Reply::Handle(handle)
    }

    fn file(&self, handle: Handle) -> Result<&File, Refusal> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file),
            Some(Open::Directory { .. }) | None => Err(no_handle()),
        }
    }

    fn read(&self, handle: Handle, offset: u64, length: u32) -> Result<Reply, Refusal> {
        let length = usize::try_from(length).unwrap_or(MAX_DATA).min(MAX_DATA);
        let mut bytes = vec![0; length];
        let count = self.file(handle)?.read_at(&mut bytes, offset)?;
        if count == 0 && length > 0 {
            return Err(refusal(Status::Eof, "end of file"));
        }
        bytes.truncate(count);
        Ok(Reply::Data(bytes))
    }

    fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        match self.open.get(&handle) {
            Some(Open::File { file, append: false }) => Ok(file.write_all_at(data, offset)?),
            Some(Open::File { file, append: true }) => Ok((&*file).write_all(data)?),
            Some(Open::Directory { .. }) | None => Err(no_handle()),
        }
    }

    fn read_directory(&mut self, handle: Handle) -> Result<Reply, Refusal> {
        let Some(Open::Directory { path, entries, dots }) = self.open.get_mut(&handle) else {
            return Err(no_handle());
        };
        let mut names = Vec::new();
        while let Some(dot) = dots.pop() {
            names.push(listing::entry(dot.as_ref(), fs::symlink_metadata(path.join(dot)).ok().as_ref()));
        }
        while names.len() < MAX_NAMES
            && let Some(found) = entries.next()
        {
            let found = found?;
            names.push(listing::entry(&found.file_name(), found.metadata().ok().as_ref()));
        }
        if names.is_empty() { Err(refusal(Status::Eof, "end of directory")) } else { Ok(Reply::Names(names)) }
    }

    /// `~` and what is below it; other people's homes are not looked up.
    fn expand(&self, path: &Path) -> Result<PathBuf, Refusal> {
        if let Ok(below) = path.strip_prefix("~") {
            return Ok(self.home.join(below));
        }
        match path.as_os_str().as_encoded_bytes() {
            [b'~', ..] => Err(refusal(Status::Failure, "only ~ and ~/ are known here")),
            _ => Ok(path.to_owned()),
        }
    }
}

fn no_handle() -> Refusal {
    refusal(Status::Failure, "no such handle")
}

fn mode(attributes: &Attributes, usual: u32) -> Mode {
    Mode::from_raw_mode(attributes.mode.unwrap_or(usual) & 0o7777)
}

/// Its last part need not exist, so that clients can ask before they make it.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            fs::canonicalize(parent.unwrap_or(Path::new("."))).map(|parent| parent.join(name))
        }
        (result, _) => result,
    }
}

fn name_of(path: PathBuf) -> Reply {
    Reply::Names(vec![listing::bare(OsString::from(path).into_vec())])
}

/// The draft's rename replaces nothing. Where the file system cannot promise that, it is looked before.
fn rename(from: &Path, to: &Path) -> Result<(), Refusal> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => Ok(fs::rename(from, to)?),
        result => Ok(result?),
    }
}

fn times(attributes: &Attributes) -> Option<Timestamps> {
    let at = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    let (access, change) = attributes.times?;
    Some(Timestamps { last_access: at(access), last_modification: at(change) })
}

fn ids((user, group): (u32, u32)) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    // The highest number means "unchanged" to the kernel; these types leave it out.
    let user = (user != u32::MAX).then(|| rustix::fs::Uid::from_raw(user));
    (user, (group != u32::MAX).then(|| rustix::fs::Gid::from_raw(group)))
}

fn set(path: &Path, attributes: &Attributes) -> Result<(), Refusal> {
    if let Some(size) = attributes.size {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?).set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = times(attributes) {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
    }
    if let Some((user, group)) = attributes.owner.map(ids) {
        rustix::fs::chownat(CWD, path, user, group, AtFlags::empty())?;
    }
    Ok(())
}

fn set_open(file: &File, attributes: &Attributes) -> Result<(), Refusal> {
    if let Some(size) = attributes.size {
        file.set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = times(attributes) {
        rustix::fs::futimens(file, &times)?;
    }
    if let Some((user, group)) = attributes.owner.map(ids) {
        rustix::fs::fchown(file, user, group)?;
    }
    Ok(())
}

/// Of a link itself: it has neither a size nor permissions of its own.
fn set_link(path: &Path, attributes: &Attributes) -> Result<(), Refusal> {
    if attributes.size.is_some() {
        return Err(refusal(Status::Failure, "the size of a link cannot be set"));
    }
    if let Some(mode) = attributes.mode {
        if fs::symlink_metadata(path)?.file_type().is_symlink() {
            return Err(refusal(Status::Unsupported, "a link has no permissions of its own"));
        }
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = times(attributes) {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some((user, group)) = attributes.owner.map(ids) {
        rustix::fs::chownat(CWD, path, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// As OpenSSH's `statvfs@openssh.com` has it.
fn file_system(found: &StatVfs) -> Reply {
    let flag = |has: StatVfsMountFlags, bit: u64| if found.f_flag.contains(has) { bit } else { 0 };
    Reply::Numbers(vec![
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        flag(StatVfsMountFlags::RDONLY, 1) | flag(StatVfsMountFlags::NOSUID, 2),
        found.f_namemax,
    ])
}

/// `limits@openssh.com`: a packet, a read, a write, handles.
fn limits() -> Reply {
    Reply::Numbers([MAX_PACKET, MAX_DATA, MAX_DATA, MAX_HANDLES].map(|limit| limit as u64).into())
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
