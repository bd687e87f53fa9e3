//! A layer of a container image: files from Debian packages and from here, as a tar that is the same every time.
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use tar::{Archive, Builder, EntryType, Header};

use crate::debs;
use crate::error::TaskError;

/// What will be in the layer, by path without a leading slash.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Layer(BTreeMap<String, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
}

impl Layer {
    /// Adds a file that anybody may read, and its directories.
    pub(crate) fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.insert(path, Entry { mode: 0o644, kind: Kind::File(content.into()) });
    }

    /// Adds a symbolic link, and its directories.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, Entry { mode: 0o777, kind: Kind::Symlink(target.to_owned()) });
    }

    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, Entry { mode, kind: Kind::Directory });
    }

    /// Adds the files and links of the package in `deb` whose path `keep` likes.
    pub(crate) fn package(&mut self, deb: &Path, keep: impl Fn(&str) -> bool) -> Result<(), TaskError> {
        let tar = debs::archive(deb)?;
        let unreadable = TaskError::io("read the files of", deb);
        self.read(&tar, keep).map_err(unreadable)
    }

    fn read(&mut self, tar: &[u8], keep: impl Fn(&str) -> bool) -> std::io::Result<()> {
        for entry in Archive::new(Cursor::new(tar)).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            let kind = match entry.header().entry_type() {
                EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Kind::File(content)
                }
                EntryType::Symlink => {
                    let target = entry.link_name()?.unwrap_or_default();
                    Kind::Symlink(target.to_string_lossy().into_owned())
                }
                _ => continue, // directories come with what is in them
            };
            if keep(&path) {
                self.insert(&path, Entry { mode: entry.header().mode()? & 0o777, kind });
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            let parent = Entry { mode: 0o755, kind: Kind::Directory };
            self.0.entry(path[..at].to_owned()).or_insert(parent);
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// The content of the file at `path`.
    pub(crate) fn content(&self, path: &str) -> Option<&[u8]> {
        match &self.0.get(path)?.kind {
            Kind::File(content) => Some(content),
            Kind::Directory | Kind::Symlink(_) => None,
        }
    }

    /// Whether there is something at `path`.
    #[cfg(test)]
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The uncompressed tar: sorted, owned by root, from the beginning of time.
    pub(crate) fn tar(&self) -> std::io::Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (path, Entry { mode, kind }) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            match kind {
                Kind::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    builder.append_data(&mut header, format!("{path}/"), &[][..])?;
                }
                Kind::File(content) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_slice())?;
                }
                Kind::Symlink(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target)?;
                }
            }
        }
        builder.into_inner()
    }
}

/// `bytes`, compressed, without name or time in the header.
pub(crate) fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().operating_system(255).write(Vec::new(), Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_brings_its_directories_and_is_the_same_whatever_the_order() {
        let mut one = Layer::default();
        one.file("a/b/file", "x");
        one.symlink("a/link", "b/file");
        let mut two = Layer::default();
        two.symlink("a/link", "b/file");
        two.file("a/b/file", "x");
        assert!(one.has("a") && one.has("a/b"));
        assert_eq!(one.tar().unwrap(), two.tar().unwrap());
        assert_eq!(gzip(b"abc").unwrap(), gzip(b"abc").unwrap());
    }

    #[test]
    fn what_a_tar_has_is_read_back_filtered() {
        let mut layer = Layer::default();
        layer.file("usr/bin/tool", "program");
        layer.file("usr/share/doc/tool", "text");
        layer.symlink("bin", "usr/bin");
        let mut read = Layer::default();
        read.read(&layer.tar().unwrap(), |path| !path.starts_with("usr/share")).unwrap();
        assert!(read.has("usr/bin/tool") && read.has("bin") && !read.has("usr/share"));
    }
}
