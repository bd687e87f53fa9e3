//! The GUID partition table: identifiers and the bytes at both ends of a disk (UEFI specification 2.10, chapter 5).
use std::fmt;

use flate2::Crc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes per logical block; all disks we write for use it.
pub(crate) const SECTOR: u64 = 512;
/// Entries in the table and bytes per entry: the minimum the specification demands, and what everybody uses.
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
/// Sectors of the entry array.
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / SECTOR;
/// Sectors before the first usable one: protective MBR, header, entries.
pub(crate) const HEAD_SECTORS: u64 = 2 + ENTRY_SECTORS;
/// Sectors after the last usable one: entries, header.
pub(crate) const TAIL_SECTORS: u64 = 1 + ENTRY_SECTORS;

/// A GUID, in the order in which it is printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guid([u8; 16]);

impl Guid {
    /// A GUID from its printed value.
    pub(crate) const fn new(value: u128) -> Self {
        Self(value.to_be_bytes())
    }

    /// A GUID that depends on `parts` only: SHA-256, truncated, marked as version 8 ("custom", RFC 9562 section 5.8).
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"wherry guid");
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The bytes in printed order, as file systems store a UUID.
    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes as a partition table stores them: the first three fields little-endian (appendix A).
    fn to_disk(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let mut out = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
        out[8..].copy_from_slice(&rest);
        out
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

/// A text that is no GUID.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a GUID")]
pub struct GuidError(String);

impl TryFrom<String> for Guid {
    type Error = GuidError;

    fn try_from(text: String) -> Result<Self, GuidError> {
        let parsed = u128::from_str_radix(&text.replace('-', ""), 16).map(Self::new);
        match parsed {
            Ok(guid) if guid.to_string() == text => Ok(guid),
            _ => Err(GuidError(text)),
        }
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// What is in it, as firmware understands it.
    pub(crate) kind: Guid,
    /// This partition's own identifier (`PARTUUID=`).
    pub(crate) uuid: Guid,
    /// At most 36 UTF-16 units.
    pub(crate) label: &'static str,
    /// First sector.
    pub(crate) first: u64,
    /// Number of sectors, at least one.
    pub(crate) sectors: u64,
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// The disk's identifier.
    pub(crate) disk: Guid,
    /// Sectors of the whole disk.
    pub(crate) sectors: u64,
    /// The partitions, in order.
    pub(crate) partitions: Vec<Partition>,
    /// Show the first partition, as FAT, in the old table too: older Raspberry Pis read nothing else.
    pub(crate) hybrid: bool,
}

impl Table {
    /// The bytes of the first [`HEAD_SECTORS`] sectors.
    pub(crate) fn head(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut out = self.protective_mbr();
        out.extend(self.header(1, self.sectors - 1, 2, &entries));
        out.extend(entries);
        out
    }

    /// The bytes of the last [`TAIL_SECTORS`] sectors.
    pub(crate) fn tail(&self) -> Vec<u8> {
        let mut out = self.entries();
        let header = self.header(self.sectors - 1, 1, self.sectors - TAIL_SECTORS, &out);
        out.extend(header);
        out
    }

    /// Section 5.2.3: one partition of type 0xEE over the whole disk, so that old tools keep off.
    fn protective_mbr(&self) -> Vec<u8> {
        let mut mbr = vec![0; SECTOR as usize];
        let covered = u32::try_from(self.sectors - 1).unwrap_or(u32::MAX);
        mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
        mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
        mbr[458..462].copy_from_slice(&covered.to_le_bytes());
        if let Some(first) = self.partitions.first().filter(|_| self.hybrid) {
            // Beyond 2 TiB nothing of this is true, and the first partition is nowhere near.
            let (start, length) = (first.first as u32, first.sectors as u32);
            mbr[458..462].copy_from_slice(&(start - 1).to_le_bytes());
            mbr[462..470].copy_from_slice(&[0x80, 0xff, 0xff, 0xff, 0x0e, 0xff, 0xff, 0xff]);
            mbr[470..474].copy_from_slice(&start.to_le_bytes());
            mbr[474..478].copy_from_slice(&length.to_le_bytes());
        }
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        mbr
    }

    /// Section 5.3.2, padded to a sector.
    fn header(&self, here: u64, other: u64, entries_at: u64, entries: &[u8]) -> Vec<u8> {
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000u32.to_le_bytes());
        header.extend(92u32.to_le_bytes());
        header.extend([0; 8]); // CRC, below; reserved
        header.extend(here.to_le_bytes());
        header.extend(other.to_le_bytes());
        header.extend(HEAD_SECTORS.to_le_bytes());
        header.extend((self.sectors - TAIL_SECTORS - 1).to_le_bytes());
        header.extend(self.disk.to_disk());
        header.extend(entries_at.to_le_bytes());
        header.extend((ENTRIES as u32).to_le_bytes());
        header.extend((ENTRY_BYTES as u32).to_le_bytes());
        header.extend(crc32(entries).to_le_bytes());
        let crc = crc32(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }

    /// Section 5.3.3: the entry array.
    fn entries(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENTRIES * ENTRY_BYTES);
        for partition in &self.partitions {
            let start = out.len();
            out.extend(partition.kind.to_disk());
            out.extend(partition.uuid.to_disk());
            out.extend(partition.first.to_le_bytes());
            out.extend((partition.first + partition.sectors - 1).to_le_bytes());
            out.extend(0u64.to_le_bytes());
            out.extend(partition.label.encode_utf16().flat_map(u16::to_le_bytes));
            out.resize(start + ENTRY_BYTES, 0);
        }
        out.resize(ENTRIES * ENTRY_BYTES, 0);
        out
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_print_parse_and_are_stored_mixed_endian() {
        let esp = Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
        assert_eq!(esp.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(Guid::try_from(esp.to_string()).unwrap(), esp);
        assert_eq!(esp.to_disk()[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        for bad in
            ["", "c12a7328", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b0", "C12A7328-f81f-11d2-ba4b-00a0c93ec93b"]
        {
            assert!(Guid::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_guids_depend_on_every_part_and_on_where_parts_end() {
        let a = Guid::derive(&[b"ab", b"c"]);
        assert_eq!(a, Guid::derive(&[b"ab", b"c"]));
        assert_ne!(a, Guid::derive(&[b"a", b"bc"]));
        assert_eq!(a.to_string().as_bytes()[14], b'8', "version 8");
    }

    #[test]
    fn both_ends_carry_headers_that_point_at_each_other() {
        let table = Table {
            disk: Guid::new(1),
            sectors: 4096,
            hybrid: false,
            partitions: vec![Partition {
                kind: Guid::new(2),
                uuid: Guid::new(3),
                label: "x",
                first: 2048,
                sectors: 8,
            }],
        };
        let (head, tail) = (table.head(), table.tail());
        assert_eq!((head.len() as u64, tail.len() as u64), (HEAD_SECTORS * SECTOR, TAIL_SECTORS * SECTOR));
        let (first, last) = (&head[512..604], &tail[tail.len() - 512..]);
        assert_eq!(first[..8], *b"EFI PART");
        assert_eq!(last[..8], *b"EFI PART");
        assert_eq!(first[24..32], last[32..40], "my own place is the other's alternate");
        assert_eq!(head[1024..], tail[..ENTRIES * ENTRY_BYTES], "the same entries");
    }
}
