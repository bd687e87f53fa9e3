//! Capture files in the classic libpcap format (draft-ietf-opsawg-pcap), as Wireshark and tcpdump read them.
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// Microsecond time stamps, in the writer's byte order.
const MAGIC: u32 = 0xa1b2_c3d4;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
const SNAPSHOT_BYTES: u32 = 65_535;

/// A capture being written.
#[derive(Debug)]
pub(crate) struct Capture<W: Write = BufWriter<File>> {
    out: W,
}

impl Capture {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::new(File::create(path)?))
    }
}

impl<W: Write> Capture<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC.to_le_bytes())?;
        for half in [2_u16, 4] {
            out.write_all(&half.to_le_bytes())?;
        }
        for word in [0, 0, SNAPSHOT_BYTES, ETHERNET] {
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { out })
    }

    /// Adds a frame seen `at` (since the Unix epoch).
    pub(crate) fn frame(&mut self, at: Duration, frame: &[u8]) -> io::Result<()> {
        let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [seconds, at.subsec_micros(), length, length] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        self.out.write_all(frame)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pinned() {
        let mut capture = Capture::new(Vec::new()).unwrap();
        capture.frame(Duration::from_micros(3_000_007), b"abc").unwrap();
        let header: &[u8] =
            &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
        let record: &[u8] = &[3, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c'];
        assert_eq!(capture.out, [header, record].concat());
    }
}
