//! Files out of and into a running container. It runs inside: in the container's namespaces, with its root directory, behind
//! its filter. No link and no name can lead out, because there is nothing outside.
use super::sftp;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};
use wherry_protocol::message::CopySpec;

/// Directories within directories; a chain of links cannot get here, they are not followed.
const MAX_DEPTH: usize = 256;
const FAILED: u8 = 1;

/// Copies and says on standard error what went wrong; the exit code.
pub(super) fn run(copy: &CopySpec, home: &Path) -> u8 {
    let result = match copy {
        CopySpec::Sftp { .. } => return sftp::run(home.to_owned()),
        CopySpec::Out { path } => send(Path::new(path), io::stdout().lock()),
        CopySpec::In { path } => receive(Path::new(path), io::stdin().lock()),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            // Whoever asked may have gone.
            writeln!(io::stderr(), "{error}").ok();
            FAILED
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        io::Error::new(error.kind(), format!("{}: {text}", path.display()))
    }
}

/// Writes what is at `path` as an archive.
fn send(path: &Path, out: impl io::Write) -> io::Result<()> {
    // A name that ends in a slash, or a dot, means what it leads to.
    let real = match path.as_os_str().as_encoded_bytes() {
        [.., b'/'] | [.., b'/', b'.'] => fs::canonicalize(path).map_err(at(path))?,
        _ => path.to_owned(),
    };
    let name = real.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = Builder::new(out);
    archive.mode(HeaderMode::Complete);
    let copied = add(&mut archive, &real, &name, 0);
    // What has been added is whole, whatever came after it.
    let finished = archive.into_inner().and_then(|mut out| out.flush());
    copied.and(finished)
}

fn add(archive: &mut Builder<impl io::Write>, path: &Path, name: &Path, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{}: more than {MAX_DEPTH} directories deep", path.display())));
    }
    let meta = fs::symlink_metadata(path).map_err(at(path))?;
    let kind = meta.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(at(path))?;
        let mut header = header(&meta, EntryType::Symlink, 0);
        return archive.append_link(&mut header, name, target);
    }
    if kind.is_dir() {
        let mut header = header(&meta, EntryType::Directory, 0);
        archive.append_data(&mut header, name, io::empty())?;
        let mut entries: Vec<_> =
            fs::read_dir(path).map_err(at(path))?.collect::<Result<_, _>>().map_err(at(path))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        return entries
            .iter()
            .try_for_each(|entry| add(archive, &entry.path(), &name.join(entry.file_name()), depth + 1));
    }
    if !kind.is_file() {
        writeln!(io::stderr(), "{}: left out, it is no file", path.display())?;
        return Ok(());
    }
    add_file(archive, path, name)
}

fn add_file(archive: &mut Builder<impl io::Write>, path: &Path, name: &Path) -> io::Result<()> {
    let Some(file) = open_file(CWD, path).map_err(|errno| at(path)(errno.into()))? else { return Ok(()) };
    let meta = file.metadata().map_err(at(path))?;
    let mut header = header(&meta, EntryType::Regular, meta.len());
    archive.append_data(&mut header, name, exactly(file, meta.len())).map_err(at(path))
}

/// Opens an ordinary file; `None` for what is none. What was a file a moment ago may be a pipe now, which must not hold us up.
pub(super) fn open_file(
    parent: impl AsFd,
    name: &(impl AsRef<OsStr> + ?Sized),
) -> rustix::io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name.as_ref(), flags, Mode::empty())?;
    let regular = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
    Ok(regular.then(|| File::from(file)))
}

/// As many bytes as were announced, whatever becomes of the file meanwhile.
pub(super) fn exactly(content: impl Read, bytes: u64) -> impl Read {
    content.take(bytes).chain(io::repeat(0)).take(bytes)
}

fn header(meta: &fs::Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(meta, HeaderMode::Complete);
    header.set_entry_type(kind);
    header.set_size(size);
    header
}

/// Unpacks an archive into the directory `path`, or, if there is none, as `path`. Files get the owner root.
pub(super) fn receive(path: &Path, input: impl Read) -> io::Result<()> {
    let (directory, rename) = match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => (path, None),
        Ok(_) | Err(_) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            fs::metadata(parent)
                .and_then(
                    |meta| if meta.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) },
                )
                .map_err(at(parent))?;
            (parent, path.file_name())
        }
    };
    let mut archive = Archive::new(input);
    let mut place = Place { directory, rename, tree: None };
    for entry in archive.entries()? {
        let mut entry = entry.map_err(|error| {
            io::Error::new(error.kind(), format!("what comes is no whole tar archive: {error}"))
        })?;
        let to = place.of(&entry.path()?)?;
        let kind = entry.header().entry_type();
        // Archives need not name the directories on the way.
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(at(&to))?;
        if kind.is_dir() {
            make_directory(&to, entry.header().mode().unwrap_or(0o755)).map_err(at(&to))?;
            continue;
        }
        if kind.is_hard_link() {
            let target = entry.link_name()?.ok_or_else(|| io::Error::other("a hard link to nothing"))?;
            link(&place.of(&target)?, &to).map_err(at(&to))?;
            continue;
        }
        entry.set_preserve_permissions(true);
        entry.set_preserve_mtime(true);
        entry.unpack(&to).map(drop).map_err(at(&to))?;
    }
    Ok(())
}

/// Where the names of an archive lead to.
struct Place<'a> {
    directory: &'a Path,
    /// What the archive's one tree is called here.
    rename: Option<&'a OsStr>,
    /// What it is called there, as soon as it is known; empty for an archive of `.`.
    tree: Option<PathBuf>,
}

impl Place<'_> {
    fn of(&mut self, name: &Path) -> io::Result<PathBuf> {
        let name = relative(name)?;
        let Some(rename) = self.rename else { return Ok(joined(self.directory, &name)) };
        let tree = self.tree.get_or_insert_with(|| name.components().take(1).collect());
        let below = name.strip_prefix(tree).map_err(|_| {
            io::Error::other("the archive holds more than one tree, which takes a directory that is there")
        })?;
        Ok(joined(&self.directory.join(rename), below))
    }
}

/// `join` without the slash that an empty name would leave at the end.
fn joined(directory: &Path, name: &Path) -> PathBuf {
    directory.components().chain(name.components()).collect()
}

/// Makes `to` another name of `target`, in place of what was there.
fn link(target: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(target, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(target, to)
        }
        result => result,
    }
}

/// A directory that is there keeps its mode: people copy into /etc and /tmp.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A path without a way up.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(io::Error::other(format!("{}: the archive climbs", path.display())));
            }
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn archive_of(path: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        send(path, &mut out).unwrap();
        out
    }

    fn tree() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "content").unwrap();
        fs::set_permissions(root.join("a/b/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(root.join("a").join("n".repeat(200)), "long").unwrap();
        symlink("/etc/passwd", root.join("link")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        base
    }

    #[test]
    fn trees_come_out_and_go_in_as_they_were() {
        let base = tree();
        let archive = archive_of(&base.path().join("tree"));
        let into = base.path().join("into");
        fs::create_dir(&into).unwrap();
        receive(&into, archive.as_slice()).unwrap();
        assert_eq!(fs::read(into.join("tree/a/b/file")).unwrap(), b"content");
        let mode = fs::metadata(into.join("tree/a/b/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o4755);
        assert_eq!(fs::read(into.join("tree/a").join("n".repeat(200))).unwrap(), b"long");
        assert_eq!(fs::read_link(into.join("tree/link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!into.join("tree/pipe").exists(), "what is no file stays where it is");
        // Again, over what is there; and under another name.
        receive(&into, archive.as_slice()).unwrap();
        receive(&into.join("new"), archive.as_slice()).unwrap();
        assert_eq!(fs::read(into.join("new/a/b/file")).unwrap(), b"content");
        let error = receive(&into.join("no/such"), archive.as_slice()).unwrap_err();
        assert!(error.to_string().contains("into/no: No such file"), "{error}");
    }

    #[test]
    fn single_files_are_copied_and_renamed() {
        let base = tree();
        let file = base.path().join("tree/a/b/file");
        receive(&base.path().join("copy"), archive_of(&file).as_slice()).unwrap();
        assert_eq!(fs::read(base.path().join("copy")).unwrap(), b"content");
        fs::write(base.path().join("copy"), "old and longer").unwrap();
        receive(&base.path().join("copy"), archive_of(&file).as_slice()).unwrap();
        assert_eq!(fs::read(base.path().join("copy")).unwrap(), b"content");
        assert!(send(&base.path().join("missing"), io::sink()).unwrap_err().to_string().contains("missing"));
    }

    /// As `tar c` makes them, for `cp -`: no entries for directories, hard links, several trees, the tree `.`.
    #[test]
    fn archives_of_others_go_in() {
        let base = tempfile::tempdir().unwrap();
        let archive = |names: &[(&str, Option<&str>)]| {
            let mut archive = Builder::new(Vec::new());
            for (name, target) in names {
                let mut header = Header::new_gnu();
                header.set_mode(0o644);
                header.set_entry_type(target.map_or(EntryType::Regular, |_| EntryType::Link));
                header.set_size(target.map_or(1, |_| 0));
                match target {
                    Some(target) => archive.append_link(&mut header, name, target).unwrap(),
                    None => archive.append_data(&mut header, name, &b"x"[..]).unwrap(),
                }
            }
            archive.into_inner().unwrap()
        };
        let linked = archive(&[("tree/sub/one", None), ("tree/two", Some("tree/sub/one"))]);
        let at = |name: &str| base.path().join(name);
        // Twice: what is there gives way.
        for (to, two) in [("", "tree/two"), ("", "tree/two"), ("new", "new/two")] {
            receive(&at(to), linked.as_slice()).unwrap();
            fs::write(at(two), "both").unwrap();
            assert_eq!(fs::read(at(two).with_file_name("sub/one")).unwrap(), b"both", "{to}");
        }
        let several = archive(&[("a/x", None), ("b", None)]);
        receive(base.path(), several.as_slice()).unwrap();
        assert!(at("a/x").is_file() && at("b").is_file());
        let error = receive(&at("one"), several.as_slice()).unwrap_err();
        assert!(error.to_string().contains("more than one tree"), "{error}");
        receive(&at("single"), archive(&[("some", None)]).as_slice()).unwrap();
        assert!(at("single").is_file());
        let out = archive(&[("one", Some("../../etc/passwd"))]);
        assert!(receive(base.path(), out.as_slice()).unwrap_err().to_string().contains("climbs"));

        fs::create_dir(at("source")).unwrap();
        fs::write(at("source/file"), "x").unwrap();
        let mut dot = Builder::new(Vec::new());
        dot.append_dir_all(".", at("source")).unwrap();
        receive(&at("copied"), dot.into_inner().unwrap().as_slice()).unwrap();
        assert!(at("copied/file").is_file());
    }

    #[test]
    fn archives_that_climb_or_are_none_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_size(1);
        header.set_cksum();
        let mut evil = header.as_bytes().to_vec();
        evil.extend_from_slice(&[b'x'; 512]);
        evil.extend_from_slice(&[0; 1024]);
        assert!(receive(base.path(), evil.as_slice()).unwrap_err().to_string().contains("climbs"));
        for nonsense in [&[7_u8; 2048][..], b"no archive"] {
            let error = receive(base.path(), nonsense).unwrap_err().to_string();
            assert!(error.starts_with("what comes is no whole tar archive: "), "{error}");
        }
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
