//! Files below one directory, and never outside it: every path is walked by the kernel with `RESOLVE_BENEATH`
//! (openat2(2)), so that no symbolic link in the layer can lead out, however it is placed.
use super::Refusal;
use super::tar::{Entry, EntryKind};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, ftruncate, futimens, linkat, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};

/// Longest name of one component (NAME_MAX).
const NAME_BYTES: usize = 255;
/// What the name of something begins with that hides what is so called below (OCI image-spec, layer.md "Whiteouts").
pub const WHITEOUT: &[u8] = b".wh.";
/// What hides everything below its directory (the same).
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS' own bookkeeping, which Docker's old layers contain.
const AUFS: &[u8] = b".wh..wh.";
/// How overlayfs marks a directory that hides the ones below (Documentation/filesystems/overlayfs.rst).
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const CREATE: OFlags = OFlags::CREATE.union(OFlags::EXCL).union(OFlags::WRONLY).union(OFlags::CLOEXEC);
const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Why an entry could not be placed.
#[derive(Debug)]
pub(super) enum TreeError {
    Refused(Refusal),
    Io(io::Error),
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refusal> for TreeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type Result<T> = std::result::Result<T, TreeError>;

/// A layer's directory while it is filled.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// Times of directories are set last: each new entry changes them.
    directory_times: BTreeMap<Vec<u8>, (i64, u32)>,
}

/// A path taken apart: the directory to be in, the name there.
struct Place<'a> {
    parent: Vec<u8>,
    name: &'a [u8],
}

impl Tree {
    /// Below the directory `root`.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, directory_times: BTreeMap::new() }
    }

    /// Places one entry; `data` reads its bytes.
    pub(super) fn place(&mut self, entry: &Entry, data: &mut impl Read) -> Result<()> {
        if entry.kind == EntryKind::Device {
            return Err(Refusal::Device.into());
        }
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else { return self.root_entry(entry) };
        let place = Place { parent: parents.join(&b'/'), name };
        let parent = self.directory(&place.parent)?;
        if name.starts_with(WHITEOUT) {
            return whiteout(&parent, name);
        }
        match entry.kind {
            EntryKind::Directory => self.make_directory(&parent, &place, entry),
            EntryKind::File => make_file(&parent, name, entry, data),
            EntryKind::Symlink => make_symlink(&parent, name, entry),
            EntryKind::HardLink => self.make_link(&parent, name, entry),
            EntryKind::Fifo => make_fifo(&parent, name, entry),
            EntryKind::Device => Err(Refusal::Device.into()),
        }
    }

    /// Sets what could not be set before.
    pub(super) fn finish(self) -> Result<()> {
        for (path, time) in self.directory_times.iter().rev() {
            // A directory may have been replaced by something else since.
            match self.walk(path) {
                Ok(directory) => utimensat(&directory, ".", &times(*time), AtFlags::empty())?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        rustix::fs::syncfs(&self.readable_root()?)?;
        Ok(())
    }

    fn readable_root(&self) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(
            &self.root,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    fn walk(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        openat2(&self.root, path, WALK, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens a directory; makes it, and those above it, when the archive has not listed them.
    fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        match self.walk(path) {
            // ENOTDIR may be a whiteout in the way.
            Err(Errno::NOENT | Errno::NOTDIR) if !path.is_empty() => {}
            Err(errno) => return Err(walk_error(errno)),
            Ok(directory) => return Ok(directory),
        }
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        // As deep as the path has components: at most half of its bytes.
        let parent = self.directory(parent)?;
        match mkdirat(&parent, name, NEW_DIRECTORY) {
            // A whiteout of an earlier entry, or a symbolic link to nothing.
            Err(Errno::EXIST) => {
                if file_type(&parent, name)? == Some(FileType::CharacterDevice) {
                    unlinkat(&parent, name, AtFlags::empty())?;
                    mkdirat(&parent, name, NEW_DIRECTORY)?;
                    set_opaque(&parent, name)?;
                } else {
                    return Err(Refusal::NotADirectory.into());
                }
            }
            other => other?,
        }
        self.walk(path).map_err(walk_error)
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Refusal::NoName.into());
        }
        let root = self.readable_root()?;
        set_metadata(&root, entry)?;
        self.directory_times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn make_directory(&mut self, parent: &OwnedFd, place: &Place<'_>, entry: &Entry) -> Result<()> {
        let before = file_type(parent, place.name)?;
        if before != Some(FileType::Directory) {
            make_room(parent, place.name)?;
            mkdirat(parent, place.name, NEW_DIRECTORY)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, place.name, flags, Mode::empty())?;
        if before == Some(FileType::CharacterDevice) {
            fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
        }
        set_metadata(&directory, entry)?;
        let parents = if place.parent.is_empty() { Vec::new() } else { [&place.parent[..], b"/"].concat() };
        self.directory_times.insert([&parents[..], place.name].concat(), entry.mtime);
        Ok(())
    }

    fn make_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
        let target = components(&entry.link)?;
        let (target_name, target_parents) = target.split_last().ok_or(Refusal::LinkTarget)?;
        let target_parent = self.walk(&target_parents.join(&b'/')).map_err(|errno| match errno {
            Errno::NOENT => Refusal::LinkTarget.into(),
            other => walk_error(other),
        })?;
        match file_type(&target_parent, target_name)? {
            None | Some(FileType::Directory | FileType::CharacterDevice) => {
                return Err(Refusal::LinkTarget.into());
            }
            Some(_) => {}
        }
        if same(&target_parent, target_name, parent, name)? {
            return Ok(());
        }
        make_room(parent, name)?;
        Ok(linkat(&target_parent, *target_name, parent, name, AtFlags::empty())?)
    }
}

/// The names of a path, without `.` and empty ones; an absolute path is meant from the root of the image.
fn components(path: &[u8]) -> std::result::Result<Vec<&[u8]>, Refusal> {
    if path.is_empty() {
        return Err(Refusal::NoName);
    }
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names
        .map(|name| match name {
            b".." => Err(Refusal::ParentComponent),
            long if long.len() > NAME_BYTES => Err(Refusal::NameTooLong),
            name => Ok(name),
        })
        .collect()
}

fn walk_error(errno: Errno) -> TreeError {
    match errno {
        Errno::XDEV | Errno::LOOP => Refusal::SymlinkEscape.into(),
        Errno::NOTDIR => Refusal::NotADirectory.into(),
        Errno::NAMETOOLONG => Refusal::NameTooLong.into(),
        other => other.into(),
    }
}

fn file_type(parent: &OwnedFd, name: &[u8]) -> Result<Option<FileType>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether both names are one file: unlinking the new name would lose it.
fn same(a: &OwnedFd, a_name: &[u8], b: &OwnedFd, b_name: &[u8]) -> Result<bool> {
    let a = statat(a, a_name, AtFlags::SYMLINK_NOFOLLOW)?;
    match statat(b, b_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(b) => Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A later entry of the same name replaces an earlier one, as all tar programs do.
fn make_room(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let flags = match file_type(parent, name)? {
        None => return Ok(()),
        Some(FileType::Directory) => AtFlags::REMOVEDIR,
        Some(_) => AtFlags::empty(),
    };
    unlinkat(parent, name, flags).map_err(|errno| match errno {
        Errno::NOTEMPTY => Refusal::ReplacesDirectory.into(),
        other => other.into(),
    })
}

/// A whiteout hides a name of the layers below; it never touches what this layer itself has (layer.md).
fn whiteout(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    if name == OPAQUE {
        return set_opaque(parent, b".");
    }
    if name.starts_with(AUFS) {
        return Ok(());
    }
    let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Refusal::Whiteout.into());
    }
    match file_type(parent, hidden)? {
        None => Ok(mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?),
        Some(FileType::Directory) => set_opaque(parent, hidden),
        Some(_) => Ok(()),
    }
}

fn set_opaque(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    Ok(fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

fn make_file(parent: &OwnedFd, name: &[u8], entry: &Entry, data: &mut impl Read) -> Result<()> {
    make_room(parent, name)?;
    let fd = rustix::fs::openat(parent, name, CREATE, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(fd);
    match &entry.sparse {
        None => drop(io::copy(data, &mut file)?),
        Some(regions) => write_regions(&mut file, regions, data)?,
    }
    file.flush()?;
    if entry.sparse.is_some() {
        ftruncate(&file, entry.size)?;
    }
    set_metadata(&file, entry)?;
    Ok(futimens(&file, &times(entry.mtime))?)
}

fn write_regions(file: &mut File, regions: &[(u64, u64)], data: &mut impl Read) -> Result<()> {
    for &(offset, length) in regions {
        file.seek(SeekFrom::Start(offset))?;
        io::copy(&mut data.take(length), file)?;
    }
    Ok(())
}

fn make_symlink(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    if entry.link.is_empty() {
        return Err(Refusal::LinkTarget.into());
    }
    make_room(parent, name)?;
    symlinkat(&entry.link[..], parent, name)?;
    own(parent, name, entry)?;
    Ok(utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn make_fifo(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    make_room(parent, name)?;
    mknodat(parent, name, FileType::Fifo, Mode::empty(), 0)?;
    own(parent, name, entry)?;
    // The name was made a moment ago in a directory that only we can reach, so following it leads nowhere else.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    Ok(utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn own(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner first: chown takes setuid bits and capabilities away.
fn set_metadata(fd: impl AsFd, entry: &Entry) -> Result<()> {
    fchown(&fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    fchmod(&fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        match name.as_slice() {
            overlay if overlay.starts_with(b"trusted.overlay.") || overlay.starts_with(b"user.overlay.") => {
                return Err(Refusal::OverlayAttribute.into());
            }
            kept if kept.starts_with(b"user.") || kept == b"security.capability" => {
                fsetxattr(&fd, kept, value, XattrFlags::empty())?;
            }
            // Labels of the host the image was made on (SELinux, ACL ids) mean nothing here.
            _ => {}
        }
    }
    Ok(())
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
