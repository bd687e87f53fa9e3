//! What a container has changed in its files: the upper directory of its overlay against the layers below
//! (Documentation/filesystems/overlayfs.rst), as names or as a layer (OCI image-spec, layer.md).
//!
//! The container may run and change the directory meanwhile: every step is taken from an open directory and follows no
//! link, so nothing outside of it can be reached.
use super::copy::{exactly, open_file};
use super::plan::Root;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fgetxattr, getxattr};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};
use wherry_images::unpack::{OPAQUE, OPAQUE_XATTR, WHITEOUT, XATTR_RECORD};

/// Directories within directories.
const MAX_DEPTH: usize = 256;
/// Longest extended attribute that is taken along, in bytes: the kernel's own bound (XATTR_SIZE_MAX).
const MAX_XATTR_BYTES: usize = 64 * 1024;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Added,
    Changed,
    Deleted,
}

/// One changed path.
struct Found<'a> {
    change: Change,
    /// From the root, without the first slash.
    path: &'a Path,
    /// Its directory, and its name there.
    parent: &'a OwnedFd,
    name: &'a OsStr,
    stat: &'a Stat,
    /// If it is a directory: open.
    directory: Option<&'a OwnedFd>,
    /// Whether nothing of a directory below shows through.
    opaque: bool,
}

/// Writes the names, each with its letter before and a NUL after it.
///
/// # Errors
/// When the directory cannot be read, or nobody reads.
pub fn names(root: &Root, out: &mut impl Write) -> io::Result<()> {
    walk(root, &mut |found| {
        let letter = match found.change {
            Change::Added => b'A',
            Change::Changed => b'C',
            Change::Deleted => b'D',
        };
        out.write_all(&[letter, b'/'])?;
        out.write_all(found.path.as_os_str().as_bytes())?;
        out.write_all(&[0])
    })
}

/// Writes a layer.
///
/// # Errors
/// As [`names`].
pub fn layer(root: &Root, out: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(out);
    let mut links = HashMap::new();
    walk(root, &mut |found| append(&mut archive, &mut links, found))?;
    archive.into_inner()?.flush()
}

fn walk(root: &Root, each: &mut impl FnMut(&Found<'_>) -> io::Result<()>) -> io::Result<()> {
    let upper = rustix::fs::openat(CWD, &root.upper, DIRECTORY, Mode::empty())?;
    // Overlayfs looks from the highest layer down.
    let lower: Vec<&Path> = root.layers.iter().rev().map(PathBuf::as_path).collect();
    walk_directory(&upper, Path::new(""), Some(&lower), 0, each)
}

/// `lower`: the layers that show through here, highest first; `None` below what is new.
fn walk_directory(
    directory: &OwnedFd,
    path: &Path,
    lower: Option<&[&Path]>,
    depth: usize,
    each: &mut impl FnMut(&Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("/{}: more than {MAX_DEPTH} directories deep", path.display())));
    }
    for name in entries(directory)? {
        let stat = match rustix::fs::statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed.
            Err(Errno::NOENT) => continue,
            result => result?,
        };
        let path = path.join(&name);
        let below = lower.is_some_and(|layers| is_in(layers, &path));
        if is_whiteout(&stat) {
            let found = Found {
                change: Change::Deleted,
                path: &path,
                parent: directory,
                name: &name,
                stat: &stat,
                directory: None,
                opaque: false,
            };
            if below {
                each(&found)?;
            }
            continue;
        }
        let child = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => open_directory(directory, &name)?,
            _ => None,
        };
        let opaque =
            child.as_ref().is_some_and(|child| is_opaque(|name, value| fgetxattr(child, name, value)));
        let change = if below { Change::Changed } else { Change::Added };
        each(&Found {
            change,
            path: &path,
            parent: directory,
            name: &name,
            stat: &stat,
            directory: child.as_ref(),
            opaque: opaque && below,
        })?;
        if let Some(child) = child {
            let lower = lower.filter(|_| below && !opaque);
            walk_directory(&child, &path, lower, depth + 1, each)?;
        }
    }
    Ok(())
}

/// In the order of their names, so that the same changes give the same layer.
fn entries(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// `None` if it is no directory any more.
fn open_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        result => Ok(Some(result?)),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// How overlayfs itself tells; `read` reads an attribute.
fn is_opaque(read: impl FnOnce(&str, &mut [u8]) -> rustix::io::Result<usize>) -> bool {
    let mut value = [0; 1];
    read(OPAQUE_XATTR, &mut value).is_ok_and(|length| length == 1 && value == *b"y")
}

/// Whether `path` shows in the layers, which nobody changes.
fn is_in(layers: &[&Path], path: &Path) -> bool {
    for layer in layers {
        match look(layer, path) {
            Look::There => return true,
            Look::Hidden => return false,
            Look::FurtherDown => {}
        }
    }
    false
}

enum Look {
    There,
    Hidden,
    FurtherDown,
}

fn look(layer: &Path, path: &Path) -> Look {
    let mut here = layer.to_owned();
    let mut opaque = false;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        here.push(component);
        let Ok(meta) = here.symlink_metadata() else {
            return if opaque { Look::Hidden } else { Look::FurtherDown };
        };
        let kind = meta.file_type();
        let last = components.peek().is_none();
        if kind.is_char_device() && meta.rdev() == 0 || !kind.is_dir() && !last {
            return Look::Hidden;
        }
        if last {
            return Look::There;
        }
        opaque |= is_opaque(|name, value| getxattr(&here, name, value));
    }
    Look::There
}

fn append(
    archive: &mut Builder<impl Write>,
    links: &mut HashMap<(u64, u64), PathBuf>,
    found: &Found<'_>,
) -> io::Result<()> {
    if found.change == Change::Deleted {
        return append_mark(archive, &found.path.with_file_name(marked(found.name)));
    }
    match FileType::from_raw_mode(found.stat.st_mode) {
        FileType::Directory => {
            if let Some(directory) = found.directory {
                append_attributes(archive, directory)?;
            }
            archive.append_data(&mut header(found.stat, EntryType::Directory, 0), found.path, io::empty())?;
            if found.opaque {
                append_mark(archive, &found.path.join(OsStr::from_bytes(OPAQUE)))?;
            }
            Ok(())
        }
        FileType::RegularFile => append_file(archive, links, found),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(found.parent, found.name, Vec::new())?;
            let target = OsStr::from_bytes(target.as_bytes());
            archive.append_link(&mut header(found.stat, EntryType::Symlink, 0), found.path, target)
        }
        FileType::Fifo => {
            archive.append_data(&mut header(found.stat, EntryType::Fifo, 0), found.path, io::empty())
        }
        // A socket means nothing without the process that listens; devices no container can make.
        FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => Ok(()),
    }
}

fn append_file(
    archive: &mut Builder<impl Write>,
    links: &mut HashMap<(u64, u64), PathBuf>,
    found: &Found<'_>,
) -> io::Result<()> {
    let file = match open_file(found.parent, found.name) {
        // Gone, or something else, since it was looked at.
        Ok(None) | Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
        Ok(Some(file)) => file,
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(&file)?;
    if stat.st_nlink > 1 {
        if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
            return archive.append_link(&mut header(&stat, EntryType::Link, 0), found.path, first);
        }
        links.insert((stat.st_dev, stat.st_ino), found.path.to_owned());
    }
    append_attributes(archive, &file)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    archive.append_data(&mut header(&stat, EntryType::Regular, size), found.path, exactly(file, size))
}

fn marked(name: &OsStr) -> OsString {
    let mut marked = OsStr::from_bytes(WHITEOUT).to_owned();
    marked.push(name);
    marked
}

fn append_mark(archive: &mut Builder<impl Write>, path: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    archive.append_data(&mut header, path, io::empty())
}

fn header(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

/// Extended attributes as GNU tar and Docker write them; not those of overlayfs itself.
fn append_attributes(archive: &mut Builder<impl Write>, file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd();
    // Most have none: only their number of bytes is asked for.
    match rustix::fs::flistxattr_query(file) {
        // Also on a file system without them.
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut list = vec![0; MAX_XATTR_BYTES];
    let length = rustix::fs::flistxattr(file, list.as_mut_slice())?;
    let names = list.get(..length).unwrap_or_default().split(|&byte| byte == 0);
    let mut extensions = Vec::new();
    for name in names.filter(|name| name.starts_with(b"user.") || *name == b"security.capability") {
        let (Ok(text), Ok(c_name)) = (std::str::from_utf8(name), CString::new(name)) else { continue };
        let mut value = vec![0; MAX_XATTR_BYTES];
        if let Ok(length) = fgetxattr(file, &*c_name, value.as_mut_slice()) {
            value.truncate(length);
            extensions.push((format!("{XATTR_RECORD}{text}"), value));
        }
    }
    if extensions.is_empty() {
        return Ok(());
    }
    archive.append_pax_extensions(extensions.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    struct Tree {
        base: tempfile::TempDir,
        root: Root,
    }

    fn tree() -> Tree {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        for name in ["low", "high", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        let root = Root {
            layers: vec![at("low"), at("high")],
            upper: at("upper"),
            work: at("work"),
            mount_point: at("none"),
            read_only: false,
        };
        Tree { base, root }
    }

    impl Tree {
        fn put(&self, path: &str, text: &str) {
            let path = self.base.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn white_out(&self, path: &str) {
            let path = self.base.path().join(path);
            rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }

        fn make_opaque(&self, path: &str) {
            let path = self.base.path().join(path);
            rustix::fs::setxattr(&path, OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let mut bytes = Vec::new();
            names(&self.root, &mut bytes).unwrap();
            let text = String::from_utf8(bytes).unwrap();
            text.split_terminator('\0').map(str::to_owned).collect()
        }

        fn layer(&self) -> Vec<(String, EntryType, String)> {
            let mut bytes = Vec::new();
            layer(&self.root, &mut bytes).unwrap();
            let mut archive = tar::Archive::new(bytes.as_slice());
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                if let Some(link) = entry.link_name().unwrap() {
                    text = link.display().to_string();
                }
                (entry.path().unwrap().display().to_string(), entry.header().entry_type(), text)
            });
            entries.collect()
        }
    }

    #[test]
    fn changes_are_told_from_additions_and_deletions() {
        let tree = tree();
        tree.put("low/etc/passwd", "root");
        tree.put("low/etc/gone", "x");
        tree.put("low/old/file", "x");
        tree.white_out("high/none");
        tree.put("high/etc/high", "x");
        tree.put("upper/etc/passwd", "root and more");
        tree.put("upper/new/deep/file", "x");
        tree.white_out("upper/etc/gone");
        tree.white_out("upper/etc/never-was");
        assert_eq!(
            tree.names(),
            ["C/etc", "D/etc/gone", "C/etc/passwd", "A/new", "A/new/deep", "A/new/deep/file"]
        );
    }

    #[test]
    fn what_a_layer_hides_is_not_there() {
        let tree = tree();
        tree.put("low/a/x", "1");
        tree.put("low/b/x", "1");
        tree.put("low/c", "a file");
        tree.put("high/b/y", "2");
        tree.make_opaque("high/b");
        tree.white_out("high/a");
        for path in ["upper/a/x", "upper/b/x", "upper/b/y", "upper/c/x"] {
            tree.put(path, "new");
        }
        assert_eq!(tree.names(), ["A/a", "A/a/x", "C/b", "A/b/x", "C/b/y", "C/c", "A/c/x"]);
    }

    #[test]
    fn a_layer_has_whiteouts_links_and_content() {
        let tree = tree();
        tree.put("low/dir/old", "x");
        tree.put("low/gone", "x");
        tree.put("upper/dir/new", "hello");
        tree.make_opaque("upper/dir");
        tree.white_out("upper/gone");
        fs::hard_link(tree.root.upper.join("dir/new"), tree.root.upper.join("twin")).unwrap();
        symlink("/etc/shadow", tree.root.upper.join("link")).unwrap();
        let entries = tree.layer();
        let entries: Vec<(&str, EntryType, &str)> =
            entries.iter().map(|(name, kind, text)| (name.as_str(), *kind, text.as_str())).collect();
        assert_eq!(
            entries,
            [
                ("dir", EntryType::Directory, ""),
                ("dir/.wh..wh..opq", EntryType::Regular, ""),
                ("dir/new", EntryType::Regular, "hello"),
                (".wh.gone", EntryType::Regular, ""),
                ("link", EntryType::Symlink, "/etc/shadow"),
                ("twin", EntryType::Link, "dir/new"),
            ]
        );
    }

    #[test]
    fn attributes_go_along_but_for_those_of_overlayfs() {
        let tree = tree();
        tree.put("low/dir/old", "x");
        tree.put("upper/dir/file", "x");
        tree.make_opaque("upper/dir");
        for path in ["dir", "dir/file"] {
            let path = tree.root.upper.join(path);
            rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
        }
        let mut bytes = Vec::new();
        layer(&tree.root, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut noted = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            for record in entry.pax_extensions().unwrap().into_iter().flatten() {
                let record = record.unwrap();
                noted.push((
                    path.clone(),
                    record.key().unwrap().to_owned(),
                    record.value().unwrap().to_owned(),
                ));
            }
        }
        let record = |path: &str| (path.to_owned(), "SCHILY.xattr.user.note".to_owned(), "kept".to_owned());
        assert_eq!(noted, [record("dir"), record("dir/file")]);
    }

    #[test]
    fn links_are_never_followed() {
        let tree = tree();
        let secret = tree.base.path().join("secret");
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("key"), "s3cret").unwrap();
        symlink(&secret, tree.root.upper.join("way-out")).unwrap();
        assert_eq!(tree.names(), ["A/way-out"]);
        let upper = rustix::fs::openat(CWD, &tree.root.upper, DIRECTORY, Mode::empty()).unwrap();
        // As when the container puts a link in place of a directory that has just been looked at.
        assert!(open_directory(&upper, OsStr::new("way-out")).unwrap().is_none());
    }
}
