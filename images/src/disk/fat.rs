//! A FAT16 file system with a few files (Microsoft's FAT specification, "fatgen103"), long names included.
//!
//! Written in full at once, never changed in place: whoever wants another content writes another file system.
use std::collections::BTreeMap;

use super::error::DiskError;
use super::gpt::Guid;

const SECTOR: usize = 512;
const RESERVED_SECTORS: usize = 1;
const FATS: usize = 2;
const ROOT_ENTRIES: usize = 512;
const ENTRY_BYTES: usize = 32;
const ROOT_SECTORS: usize = ROOT_ENTRIES * ENTRY_BYTES / SECTOR;
/// Fewer clusters than this would make it FAT12, more FAT32: the count alone decides.
const MIN_CLUSTERS: usize = 4085;
const MAX_CLUSTERS: usize = 65_524;
/// 1980-01-01, the earliest date there is.
const DATE: u16 = 1 << 5 | 1;
const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
/// UTF-16 units in one long-name entry.
const LONG_NAME_UNITS: usize = 13;
const END_OF_CHAIN: u16 = 0xffff;

/// What to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory<'a>(BTreeMap<&'a str, Entry<'a>>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry<'a> {
    File(&'a [u8]),
    Directory(Directory<'a>),
}

impl<'a> Directory<'a> {
    /// Adds a directory.
    pub(crate) fn subtree(mut self, name: &'a str, tree: Directory<'a>) -> Self {
        self.0.insert(name, Entry::Directory(tree));
        self
    }

    /// Adds a file.
    pub(crate) fn file(mut self, name: &'a str, content: &'a [u8]) -> Self {
        self.0.insert(name, Entry::File(content));
        self
    }
}

/// The bytes of a file system of `size` bytes that holds `root`, up to the last one in use: zeros follow.
pub(crate) fn image(root: &Directory<'_>, size: u64, label: &str, uuid: &Guid) -> Result<Vec<u8>, DiskError> {
    let geometry = Geometry::of(size);
    let mut writer = Writer { geometry, fat: vec![0xfff8, END_OF_CHAIN], data: Vec::new() };
    let mut entries = short_entry(&volume_label(label), ATTRIBUTE_VOLUME, 0, 0);
    entries.extend(writer.write_children(root, 0)?);
    let room = ROOT_ENTRIES * ENTRY_BYTES;
    if entries.len() > room {
        return Err(too_large("the root directory", entries.len(), room));
    }
    entries.resize(room, 0);
    Ok(writer.finish(label, uuid, &entries))
}

fn too_large(what: &'static str, needed: usize, available: usize) -> DiskError {
    DiskError::TooLarge { what, needed: needed as u64, available: available as u64 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    sectors: usize,
    sectors_per_cluster: usize,
    fat_sectors: usize,
    clusters: usize,
}

impl Geometry {
    /// The smallest clusters with which `size` stays well inside FAT16.
    fn of(size: u64) -> Self {
        let sectors = size as usize / SECTOR;
        let mut sectors_per_cluster = 1;
        while sectors / sectors_per_cluster > MAX_CLUSTERS / 4 {
            sectors_per_cluster *= 2;
        }
        let fat_sectors = ((sectors / sectors_per_cluster + 2) * 2).div_ceil(SECTOR);
        let overhead = RESERVED_SECTORS + FATS * fat_sectors + ROOT_SECTORS;
        let clusters = (sectors - overhead) / sectors_per_cluster;
        debug_assert!((MIN_CLUSTERS..=MAX_CLUSTERS).contains(&clusters), "{clusters} clusters are not FAT16");
        Self { sectors, sectors_per_cluster, fat_sectors, clusters }
    }

    const fn cluster_bytes(self) -> usize {
        self.sectors_per_cluster * SECTOR
    }
}

struct Writer {
    geometry: Geometry,
    /// One number per cluster; clusters are numbered from 2.
    fat: Vec<u16>,
    /// Cluster 2 and those after it.
    data: Vec<u8>,
}

impl Writer {
    /// Claims clusters for `bytes` in one run; the number of the first, or 0 for no bytes.
    fn claim(&mut self, bytes: usize) -> Result<u16, DiskError> {
        let count = bytes.div_ceil(self.geometry.cluster_bytes());
        if count == 0 {
            return Ok(0);
        }
        let first = self.fat.len();
        let available = (self.geometry.clusters + 2 - first) * self.geometry.cluster_bytes();
        if bytes > available {
            return Err(too_large("a file of a FAT partition", bytes, available));
        }
        self.fat.extend((first + 1..first + count).map(|next| next as u16));
        self.fat.push(END_OF_CHAIN);
        self.data.resize(self.data.len() + count * self.geometry.cluster_bytes(), 0);
        Ok(first as u16)
    }

    fn fill(&mut self, cluster: u16, content: &[u8]) {
        if cluster != 0 {
            let at = (usize::from(cluster) - 2) * self.geometry.cluster_bytes();
            self.data[at..at + content.len()].copy_from_slice(content);
        }
    }

    /// Writes everything below `directory`, which starts at cluster `me`; its entries.
    fn write_children(&mut self, directory: &Directory<'_>, me: u16) -> Result<Vec<u8>, DiskError> {
        let mut entries = Vec::new();
        for (index, (name, entry)) in directory.0.iter().enumerate() {
            let (attributes, cluster, size) = match entry {
                Entry::File(content) => (ATTRIBUTE_ARCHIVE, self.write_file(content)?, content.len() as u32),
                Entry::Directory(tree) => (ATTRIBUTE_DIRECTORY, self.write_directory(tree, me)?, 0),
            };
            entries.extend(named_entry(name, index, attributes, cluster, size)?);
        }
        Ok(entries)
    }

    fn write_file(&mut self, content: &[u8]) -> Result<u16, DiskError> {
        let cluster = self.claim(content.len())?;
        self.fill(cluster, content);
        Ok(cluster)
    }

    /// A directory of one cluster.
    fn write_directory(&mut self, directory: &Directory<'_>, parent: u16) -> Result<u16, DiskError> {
        let room = self.geometry.cluster_bytes();
        let me = self.claim(room)?;
        let mut entries = short_entry(b".          ", ATTRIBUTE_DIRECTORY, me, 0);
        entries.extend(short_entry(b"..         ", ATTRIBUTE_DIRECTORY, parent, 0));
        entries.extend(self.write_children(directory, me)?);
        if entries.len() > room {
            return Err(too_large("a directory of a FAT partition", entries.len(), room));
        }
        self.fill(me, &entries);
        Ok(me)
    }

    fn finish(self, label: &str, uuid: &Guid, root: &[u8]) -> Vec<u8> {
        let mut fat: Vec<u8> = self.fat.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        fat.resize(self.geometry.fat_sectors * SECTOR, 0);
        [boot_sector(self.geometry, label, uuid), fat.clone(), fat, root.to_vec(), self.data].concat()
    }
}

/// The BIOS parameter block, without boot code.
fn boot_sector(geometry: Geometry, label: &str, uuid: &Guid) -> Vec<u8> {
    let sectors = geometry.sectors as u32;
    let (small, large) = u16::try_from(sectors).map_or((0, sectors), |small| (small, 0));
    let mut out = Vec::with_capacity(SECTOR);
    out.extend(b"\xeb\x3c\x90WHERRY  ");
    out.extend((SECTOR as u16).to_le_bytes());
    out.push(geometry.sectors_per_cluster as u8);
    out.extend((RESERVED_SECTORS as u16).to_le_bytes());
    out.push(FATS as u8);
    out.extend((ROOT_ENTRIES as u16).to_le_bytes());
    out.extend(small.to_le_bytes());
    out.push(0xf8); // fixed disk
    out.extend((geometry.fat_sectors as u16).to_le_bytes());
    out.extend([32, 0, 64, 0]); // sectors per track, heads: nobody uses them any more
    out.extend([0; 4]);
    out.extend(large.to_le_bytes());
    out.extend([0x80, 0, 0x29]);
    out.extend(&uuid.as_bytes()[..4]);
    out.extend(volume_label(label));
    out.extend(b"FAT16   ");
    out.resize(SECTOR - 2, 0);
    out.extend([0x55, 0xaa]);
    out
}

/// Eleven characters, upper case, padded.
fn volume_label(label: &str) -> [u8; 11] {
    let mut out = [b' '; 11];
    for (to, from) in out.iter_mut().zip(label.bytes()) {
        *to = from.to_ascii_uppercase();
    }
    out
}

fn short_entry(name: &[u8; 11], attributes: u8, cluster: u16, size: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY_BYTES);
    out.extend(name);
    out.extend([attributes, 0, 0, 0, 0]);
    out.extend(DATE.to_le_bytes());
    out.extend(DATE.to_le_bytes());
    out.extend([0; 4]);
    out.extend(DATE.to_le_bytes());
    out.extend(cluster.to_le_bytes());
    out.extend(size.to_le_bytes());
    out
}

/// The entries of one name: the short one alone where it says everything, else with long-name entries before it.
fn named_entry(
    name: &str,
    index: usize,
    attributes: u8,
    cluster: u16,
    size: u32,
) -> Result<Vec<u8>, DiskError> {
    let short = plain_short_name(name);
    let mut out = Vec::new();
    let short = match short {
        Some(short) => short,
        None => {
            let short = numbered_short_name(name, index)?;
            out = long_name_entries(name, &short)?;
            short
        }
    };
    out.extend(short_entry(&short, attributes, cluster, size));
    Ok(out)
}

fn is_short_name_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_-".contains(&byte)
}

/// `name` as 8.3, if it is exactly that.
fn plain_short_name(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3;
    let plain = base.bytes().chain(extension.bytes()).all(is_short_name_byte);
    (fits && plain).then(|| pack(base.as_bytes(), extension.as_bytes()))
}

/// A short name that is unique by the entry's place in its directory: `WHERRY~1.TOM`.
fn numbered_short_name(name: &str, index: usize) -> Result<[u8; 11], DiskError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_-. ".contains(c);
    if name.is_empty() || !name.chars().all(valid) || name.starts_with('.') {
        return Err(DiskError::Name { name: name.to_owned() });
    }
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let upper = |part: &str| -> Vec<u8> {
        part.bytes().map(|byte| byte.to_ascii_uppercase()).filter(|byte| is_short_name_byte(*byte)).collect()
    };
    let number = format!("~{}", index + 1);
    let mut base = upper(base);
    base.truncate(8 - number.len());
    base.extend(number.bytes());
    let mut extension = upper(extension);
    extension.truncate(3);
    Ok(pack(&base, &extension))
}

fn pack(base: &[u8], extension: &[u8]) -> [u8; 11] {
    let mut out = [b' '; 11];
    out[..base.len()].copy_from_slice(base);
    out[8..8 + extension.len()].copy_from_slice(extension);
    out
}

/// Last part first, each tied to the short name by its checksum.
fn long_name_entries(name: &str, short: &[u8; 11]) -> Result<Vec<u8>, DiskError> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if units.len() > 255 {
        return Err(DiskError::Name { name: name.to_owned() });
    }
    let parts = units.len().div_ceil(LONG_NAME_UNITS);
    if !units.len().is_multiple_of(LONG_NAME_UNITS) {
        units.push(0);
    }
    units.resize(parts * LONG_NAME_UNITS, 0xffff);
    let checksum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut out = Vec::new();
    for (number, part) in units.chunks(LONG_NAME_UNITS).enumerate().rev() {
        let last = if number + 1 == parts { 0x40 } else { 0 };
        let bytes: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        out.push((number as u8 + 1) | last);
        out.extend(&bytes[..10]);
        out.extend([ATTRIBUTE_LONG_NAME, 0, checksum]);
        out.extend(&bytes[10..22]);
        out.extend([0, 0]);
        out.extend(&bytes[22..]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_short_ones_or_get_long_entries() {
        assert_eq!(plain_short_name("BOOTX64.EFI"), Some(*b"BOOTX64 EFI"));
        assert_eq!(plain_short_name("EFI"), Some(*b"EFI        "));
        for long in ["wherry.toml", "TOOLONGNAME", "A.LONG", "a"] {
            assert_eq!(plain_short_name(long), None, "{long}");
        }
        assert_eq!(numbered_short_name("wherry.toml", 0).unwrap(), *b"WHERRY~1TOM");
        for bad in ["", "a/b", ".x", "ö"] {
            assert!(numbered_short_name(bad, 0).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused() {
        let content = vec![1; 9 << 20];
        let root = Directory::default().file("BIG", &content);
        let result = image(&root, 8 << 20, "x", &Guid::new(0));
        assert!(matches!(result, Err(DiskError::TooLarge { .. })), "{result:?}");
    }

    #[test]
    fn what_does_not_fit_a_directory_is_refused() {
        let names: Vec<String> = (0..40).map(|i| format!("F{i}")).collect();
        let full = names.iter().fold(Directory::default(), |dir, name| dir.file(name, b""));
        let root = Directory::default().subtree("D", full);
        assert!(image(&root, 8 << 20, "x", &Guid::new(0)).is_err());
    }

    #[test]
    fn the_geometry_is_fat16_for_all_sizes_in_use() {
        for size in [super::super::layout::ESP_BYTES, super::super::layout::CONFIG_BYTES] {
            let geometry = Geometry::of(size);
            assert!((MIN_CLUSTERS..=MAX_CLUSTERS).contains(&geometry.clusters), "{geometry:?}");
            assert!(geometry.fat_sectors * SECTOR / 2 >= geometry.clusters + 2, "{geometry:?}");
        }
    }
}
