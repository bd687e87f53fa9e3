//! Is a program static? One look at the program headers (System V ABI, chapter 5).

/// The program header type of the path of a dynamic loader.
const PT_INTERP: u32 = 3;

/// What is in the way of calling `file` a static 64-bit program, if anything.
pub(crate) fn refuse_dynamic(file: &[u8]) -> Result<(), &'static str> {
    if file.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit little-endian ELF file");
    }
    let table = u64_at(file, 32)? as usize;
    let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    for index in 0..usize::from(count) {
        if u32_at(file, table + index * usize::from(size))? == PT_INTERP {
            return Err("it needs a dynamic loader");
        }
    }
    Ok(())
}

fn array_at<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], &'static str> {
    let bytes = file.get(at..at.saturating_add(N)).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or("it is cut short")
}

fn u16_at(file: &[u8], at: usize) -> Result<u16, &'static str> {
    array_at(file, at).map(u16::from_le_bytes)
}

fn u32_at(file: &[u8], at: usize) -> Result<u32, &'static str> {
    array_at(file, at).map(u32::from_le_bytes)
}

fn u64_at(file: &[u8], at: usize) -> Result<u64, &'static str> {
    array_at(file, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_dynamic_and_texts_are_no_programs() {
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(refuse_dynamic(&me), Err("it needs a dynamic loader"));
        assert!(refuse_dynamic(b"#!/bin/sh").is_err());
        assert_eq!(refuse_dynamic(&me[..60]), Err("it is cut short"));
    }

    #[test]
    fn a_file_without_a_loader_is_static() {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        assert_eq!(refuse_dynamic(&file), Ok(()));
    }
}
