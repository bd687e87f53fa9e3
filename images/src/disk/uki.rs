//! A unified kernel image: systemd's EFI stub with kernel and command line as sections
//! (UAPI group's Unified Kernel Image specification; PE format: Microsoft's "PE Format").
use std::path::Path;

use super::error::DiskError;

const PE_OFFSET_AT: usize = 0x3c;
const SECTION_HEADER_BYTES: usize = 40;
/// Contains initialised data, may be read.
const READ_ONLY_DATA: u32 = 0x4000_0040;
/// More sections than any stub has.
const MAX_SECTIONS: usize = 64;

/// A section to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    /// At most eight characters.
    pub(crate) name: &'static str,
    /// What the stub finds in it.
    pub(crate) content: &'a [u8],
}

/// The stub with `sections` behind its own. `path` is for messages only.
pub(crate) fn with_sections(
    stub: &[u8],
    path: &Path,
    sections: &[Section<'_>],
) -> Result<Vec<u8>, DiskError> {
    extend(stub, sections).map_err(|reason| DiskError::Stub { path: path.to_path_buf(), reason })
}

/// The few header fields that matter.
struct Headers {
    /// Where the COFF header starts.
    coff: usize,
    /// Where the optional header starts.
    optional: usize,
    /// Where the section headers start.
    table: usize,
    sections: usize,
    section_alignment: usize,
    file_alignment: usize,
    headers_size: usize,
}

fn extend(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, &'static str> {
    let headers = Headers::read(stub)?;
    let table_end = headers.table + SECTION_HEADER_BYTES * (headers.sections + sections.len());
    let (mut address, first_raw) = headers.ends(stub)?;
    if table_end > first_raw {
        return Err("there is no room for more section headers");
    }
    let mut out = stub.to_vec();
    out.resize(out.len().next_multiple_of(headers.file_alignment), 0);
    for (index, section) in sections.iter().enumerate() {
        let at = headers.table + SECTION_HEADER_BYTES * (headers.sections + index);
        let raw_size = section.content.len().next_multiple_of(headers.file_alignment);
        let header = section_header(section, address, raw_size, out.len());
        out[at..at + SECTION_HEADER_BYTES].copy_from_slice(&header);
        out.extend_from_slice(section.content);
        out.resize(out.len().next_multiple_of(headers.file_alignment), 0);
        address = (address + section.content.len()).next_multiple_of(headers.section_alignment);
    }
    headers.update(&mut out, sections.len(), address, table_end);
    Ok(out)
}

impl Headers {
    fn read(stub: &[u8]) -> Result<Self, &'static str> {
        let pe = number(stub, PE_OFFSET_AT, 4)?;
        if stub.get(pe..).and_then(|rest| rest.get(..4)) != Some(b"PE\0\0") {
            return Err("it has no PE header");
        }
        let coff = pe + 4;
        let optional = coff + 20;
        let headers = Self {
            coff,
            optional,
            table: optional + number(stub, coff + 16, 2)?,
            sections: number(stub, coff + 2, 2)?,
            section_alignment: number(stub, optional + 32, 4)?,
            file_alignment: number(stub, optional + 36, 4)?,
            headers_size: number(stub, optional + 60, 4)?,
        };
        let aligned = headers.section_alignment.is_power_of_two() && headers.file_alignment.is_power_of_two();
        if !aligned || headers.sections > MAX_SECTIONS {
            return Err("its header makes no sense");
        }
        Ok(headers)
    }

    /// The first free address, and the first byte of the file that some section uses.
    fn ends(&self, stub: &[u8]) -> Result<(usize, usize), &'static str> {
        let (mut address, mut first_raw) = (0, stub.len());
        for index in 0..self.sections {
            let at = self.table + SECTION_HEADER_BYTES * index;
            let (size, start) = (number(stub, at + 8, 4)?, number(stub, at + 12, 4)?);
            let (raw_size, raw) = (number(stub, at + 16, 4)?, number(stub, at + 20, 4)?);
            address = address.max((start + size.max(raw_size)).next_multiple_of(self.section_alignment));
            if raw != 0 {
                first_raw = first_raw.min(raw);
            }
        }
        Ok((address, first_raw))
    }

    /// Number of sections, size of the image, size of the headers, and no checksum (firmware ignores it).
    fn update(&self, out: &mut [u8], added: usize, image_size: usize, table_end: usize) {
        let headers_size = self.headers_size.max(table_end.next_multiple_of(self.file_alignment));
        let count = (self.sections + added) as u16;
        out[self.coff + 2..self.coff + 4].copy_from_slice(&count.to_le_bytes());
        for (offset, value) in [(56, image_size), (60, headers_size), (64, 0)] {
            let at = self.optional + offset;
            out[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        }
    }
}

fn section_header(section: &Section<'_>, address: usize, raw_size: usize, raw_at: usize) -> Vec<u8> {
    let mut out = section.name.as_bytes().to_vec();
    out.resize(8, 0);
    for value in [section.content.len(), address, raw_size, raw_at, 0, 0, 0] {
        out.extend((value as u32).to_le_bytes());
    }
    out.extend(READ_ONLY_DATA.to_le_bytes());
    out
}

/// A little-endian number of `bytes` (2 or 4) bytes.
fn number(from: &[u8], at: usize, bytes: usize) -> Result<usize, &'static str> {
    let raw = from.get(at..at.saturating_add(bytes)).ok_or("it is cut short")?;
    Ok(raw.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file with nothing but headers and one section of 512 bytes.
    fn small_stub() -> Vec<u8> {
        let mut stub = vec![0; 1536];
        let mut put = |at: usize, bytes: &[u8]| stub[at..at + bytes.len()].copy_from_slice(bytes);
        put(PE_OFFSET_AT, &64u32.to_le_bytes());
        put(64, b"PE\0\0");
        put(68 + 2, &1u16.to_le_bytes());
        put(68 + 16, &240u16.to_le_bytes());
        put(88 + 32, &4096u32.to_le_bytes());
        put(88 + 36, &512u32.to_le_bytes());
        put(88 + 60, &512u32.to_le_bytes());
        put(328, b".text\0\0\0");
        for (offset, value) in [(8u32, 100u32), (12, 4096), (16, 512), (20, 1024)] {
            put(328 + offset as usize, &value.to_le_bytes());
        }
        stub
    }

    #[test]
    fn sections_are_appended_aligned_and_counted() {
        let sections = [
            Section { name: ".cmdline", content: b"quiet" },
            Section { name: ".linux", content: &[7; 5000] },
        ];
        let out = extend(&small_stub(), &sections).unwrap();
        assert_eq!(number(&out, 70, 2), Ok(3));
        let linux = 328 + 80;
        assert_eq!(&out[linux..linux + 8], b".linux\0\0");
        assert_eq!(number(&out, linux + 12, 4), Ok(0x3000), "address after .text and .cmdline");
        assert_eq!(number(&out, linux + 20, 4), Ok(2048), "place in the file");
        assert_eq!(number(&out, 88 + 56, 4), Ok(0x5000), "image size");
        assert_eq!(&out[1536..1541], b"quiet");
        assert_eq!(out.len(), 2048 + 5120);
    }

    #[test]
    fn what_is_no_stub_is_refused() {
        let stub = small_stub();
        let section = [Section { name: ".linux", content: b"x" }];
        assert!(extend(b"", &section).is_err());
        assert!(extend(&stub[..100], &section).is_err());
        assert!(extend(&[0; 512], &section).is_err());
        let crowded: Vec<_> = (0..20).map(|_| section[0]).collect();
        assert_eq!(extend(&stub, &crowded), Err("there is no room for more section headers"));
        for length in 0..stub.len() {
            let _unused = extend(&stub[..length], &section); // must not panic
        }
    }
}
