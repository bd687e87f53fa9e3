//! A tiny, uncompressed erofs: a few directories and files (Documentation/filesystems/erofs.rst).
//!
//! All inodes fit in the first block, every directory in one block of its own, and file contents follow in whole
//! blocks. Uncompressed, because pages are then mapped without work at each fault; what travels is compressed anyway.
use std::collections::BTreeMap;

use super::error::DiskError;
use super::gpt::Guid;

const BLOCK: usize = 4096;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const INODE_BYTES: usize = 32;
const FIRST_INODE_AT: usize = SUPERBLOCK_AT + SUPERBLOCK_BYTES;
const MAX_INODES: usize = (BLOCK - FIRST_INODE_AT) / INODE_BYTES;
const DIRENT_BYTES: usize = 12;
const MAGIC: u32 = 0xe0f5_e1e2;

/// File types of directory entries.
const TYPE_FILE: u8 = 1;
const TYPE_DIRECTORY: u8 = 2;
/// `S_IFREG` and `S_IFDIR`.
const MODE_FILE: u16 = 0o100_000;
const MODE_DIRECTORY: u16 = 0o040_000;

/// A directory's entries by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Directory<'a>(BTreeMap<&'a str, Entry<'a>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry<'a> {
    File { permissions: u16, content: &'a [u8] },
    Directory(Directory<'a>),
}

impl<'a> Directory<'a> {
    /// Adds an empty directory.
    pub(crate) fn directory(self, name: &'a str) -> Self {
        self.with(name, Entry::Directory(Directory::default()))
    }

    /// Adds a directory with content.
    pub(crate) fn subtree(self, name: &'a str, tree: Directory<'a>) -> Self {
        self.with(name, Entry::Directory(tree))
    }

    /// Adds a file.
    pub(crate) fn file(self, name: &'a str, permissions: u16, content: &'a [u8]) -> Self {
        self.with(name, Entry::File { permissions, content })
    }

    fn with(mut self, name: &'a str, entry: Entry<'a>) -> Self {
        self.0.insert(name, entry);
        self
    }

    fn inodes(&self) -> usize {
        1 + self.0.values().map(Entry::inodes).sum::<usize>()
    }
}

impl Entry<'_> {
    fn inodes(&self) -> usize {
        match self {
            Self::File { .. } => 1,
            Self::Directory(directory) => directory.inodes(),
        }
    }

    const fn file_type(&self) -> u8 {
        match self {
            Self::File { .. } => TYPE_FILE,
            Self::Directory(_) => TYPE_DIRECTORY,
        }
    }
}

/// The file system's bytes: a whole number of blocks, at least two.
pub(crate) fn image(root: &Directory<'_>, uuid: &Guid) -> Result<Vec<u8>, DiskError> {
    let inodes = root.inodes();
    if inodes > MAX_INODES {
        let (needed, available) = (inodes as u64, MAX_INODES as u64);
        return Err(DiskError::TooLarge { what: "the root's inode table", needed, available });
    }
    let mut writer = Writer { bytes: vec![0; BLOCK], next_inode: 0 };
    let root_inode = writer.claim_inode();
    writer.write_directory(root, root_inode, root_inode)?;
    writer.write_superblock(uuid, inodes);
    Ok(writer.bytes)
}

/// Number of an inode; on disk it is the distance from the start in units of 32 bytes.
type Inode = usize;

const fn nid(inode: Inode) -> u64 {
    (FIRST_INODE_AT / INODE_BYTES + inode) as u64
}

struct Writer {
    bytes: Vec<u8>,
    next_inode: Inode,
}

/// The fields of a compact inode that differ.
struct InodeFields {
    mode: u16,
    links: u16,
    size: u32,
    block: u32,
}

impl Writer {
    fn claim_inode(&mut self) -> Inode {
        self.next_inode += 1;
        self.next_inode - 1
    }

    fn write_directory(
        &mut self,
        directory: &Directory<'_>,
        me: Inode,
        parent: Inode,
    ) -> Result<(), DiskError> {
        let mut entries = vec![(".", TYPE_DIRECTORY, me), ("..", TYPE_DIRECTORY, parent)];
        let mut children = Vec::new();
        for (name, entry) in &directory.0 {
            let inode = self.claim_inode();
            entries.push((name, entry.file_type(), inode));
            children.push((entry, inode));
        }
        let subdirectories = children.iter().filter(|(entry, _)| entry.file_type() == TYPE_DIRECTORY).count();
        let (size, block) = self.append(&directory_block(entries)?)?;
        let links = 2 + subdirectories as u16;
        self.write_inode(me, &InodeFields { mode: MODE_DIRECTORY | 0o755, links, size, block });
        children.into_iter().try_for_each(|(entry, inode)| self.write_entry(entry, inode, me))
    }

    fn write_entry(&mut self, entry: &Entry<'_>, inode: Inode, parent: Inode) -> Result<(), DiskError> {
        match entry {
            Entry::Directory(directory) => self.write_directory(directory, inode, parent),
            Entry::File { permissions, content } => {
                let (size, block) = self.append(content)?;
                self.write_inode(
                    inode,
                    &InodeFields { mode: MODE_FILE | permissions, links: 1, size, block },
                );
                Ok(())
            }
        }
    }

    /// Puts `content` on blocks of its own; its size and first block.
    fn append(&mut self, content: &[u8]) -> Result<(u32, u32), DiskError> {
        let block = (self.bytes.len() / BLOCK) as u32;
        let size = u32::try_from(content.len()).map_err(|_| DiskError::TooLarge {
            what: "a file of the root",
            needed: content.len() as u64,
            available: u64::from(u32::MAX),
        })?;
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok((size, block))
    }

    /// `struct erofs_inode_compact`, data layout "flat plain", owned by root.
    fn write_inode(&mut self, inode: Inode, fields: &InodeFields) {
        let mut raw = Vec::with_capacity(INODE_BYTES);
        raw.extend(0u16.to_le_bytes()); // compact, flat plain
        raw.extend(0u16.to_le_bytes()); // no extended attributes
        raw.extend(fields.mode.to_le_bytes());
        raw.extend(fields.links.to_le_bytes());
        raw.extend(fields.size.to_le_bytes());
        raw.extend([0; 4]);
        raw.extend(fields.block.to_le_bytes());
        raw.extend((inode as u32 + 1).to_le_bytes()); // inode number, for 32-bit stat only
        raw.resize(INODE_BYTES, 0); // uid, gid, reserved
        self.write_at(FIRST_INODE_AT + inode * INODE_BYTES, &raw);
    }

    /// `struct erofs_super_block`: no optional feature; the build time stays 0.
    fn write_superblock(&mut self, uuid: &Guid, inodes: usize) {
        let mut raw = Vec::with_capacity(SUPERBLOCK_BYTES);
        raw.extend(MAGIC.to_le_bytes());
        raw.extend([0; 8]); // checksum (unused: verity covers it), compatible features
        raw.push(BLOCK.ilog2() as u8);
        raw.push(0);
        raw.extend((nid(0) as u16).to_le_bytes());
        raw.extend((inodes as u64).to_le_bytes());
        raw.extend([0; 12]); // build time
        raw.extend(((self.bytes.len() / BLOCK) as u32).to_le_bytes());
        raw.extend([0; 8]); // inodes start at block 0; no shared attributes
        raw.extend(uuid.as_bytes());
        raw.resize(SUPERBLOCK_BYTES, 0);
        self.write_at(SUPERBLOCK_AT, &raw);
    }

    fn write_at(&mut self, at: usize, raw: &[u8]) {
        self.bytes[at..at + raw.len()].copy_from_slice(raw);
    }
}

/// All entries of a directory, sorted by name as lookups (binary search) need them, names behind.
fn directory_block(mut entries: Vec<(&str, u8, Inode)>) -> Result<Vec<u8>, DiskError> {
    entries.sort_unstable();
    let mut name_at = entries.len() * DIRENT_BYTES;
    let mut out = Vec::with_capacity(BLOCK);
    for (name, file_type, inode) in &entries {
        out.extend(nid(*inode).to_le_bytes());
        out.extend((name_at as u16).to_le_bytes());
        out.extend([*file_type, 0]);
        name_at += name.len();
    }
    out.extend(entries.iter().flat_map(|(name, ..)| name.bytes()));
    if out.len() > BLOCK {
        let (needed, available) = (out.len() as u64, BLOCK as u64);
        return Err(DiskError::TooLarge { what: "a directory of the root", needed, available });
    }
    Ok(out)
}
