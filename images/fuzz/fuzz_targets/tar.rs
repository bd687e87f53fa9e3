//! Any bytes as a tar archive: the reader ends with an archive's end or an error, and never takes more than its bounds.
#![no_main]
use libfuzzer_sys::fuzz_target;
use std::io;
use wherry_images::unpack::{Limits, TarReader};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = TarReader::new(bytes, Limits::DEFAULT);
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.path.len() <= Limits::DEFAULT.path_bytes);
        let copied = io::copy(&mut reader, &mut io::sink()).unwrap_or_default();
        assert!(copied <= bytes.len() as u64);
    }
});
