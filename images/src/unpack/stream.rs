//! From the bytes as sent to tar bytes, with both digests taken on the way.
use super::{Expected, Limits, UnpackError};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use wherry_protocol::Digest;
use wherry_protocol::message::Media;

/// What has been seen of a stream so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    hasher: Sha256,
    bytes: u64,
}

impl Seen {
    fn digest(&self) -> Digest {
        Digest(self.hasher.clone().finalize().into())
    }
}

/// Hashes what passes through; the decompressors own it, so the count is shared.
#[derive(Debug)]
struct Tap<R> {
    inner: R,
    seen: Rc<RefCell<Seen>>,
    /// No more than this is taken from `inner`.
    limit: u64,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut seen = self.seen.borrow_mut();
        let left = usize::try_from(self.limit.saturating_sub(seen.bytes)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.inner.read(&mut buffer[..wanted])?;
        seen.hasher.update(&buffer[..count]);
        seen.bytes += count as u64;
        Ok(count)
    }
}

/// The tar bytes of a layer.
pub(super) struct LayerStream<R: Read> {
    packed: Packed<BufReader<Tap<R>>>,
    outer: Rc<RefCell<Seen>>,
    inner: Seen,
    expected: Expected,
}

enum Packed<B: BufRead> {
    Plain(B),
    Gzip(Box<MultiGzDecoder<B>>),
    Zstd(Box<ZstdFrames<B>>),
}

const BUFFER_BYTES: usize = 64 * 1024;

impl<R: Read> LayerStream<R> {
    pub(super) fn new(source: R, media: Media, expected: Expected, limits: &Limits) -> Self {
        let outer = Rc::new(RefCell::new(Seen::default()));
        // One byte more than announced, so that a longer stream is noticed.
        let limit = expected.size.saturating_add(1);
        let tap = Tap { inner: source, seen: Rc::clone(&outer), limit };
        let buffered = BufReader::with_capacity(BUFFER_BYTES, tap);
        let packed = match media {
            Media::LayerTarGzip => Packed::Gzip(Box::new(MultiGzDecoder::new(buffered))),
            Media::LayerTarZstd => {
                Packed::Zstd(Box::new(ZstdFrames::new(buffered, limits.zstd_window_bytes)))
            }
            // A configuration is no layer; as a tar archive it is refused by its content.
            Media::LayerTar | Media::Config => Packed::Plain(buffered),
        };
        Self { packed, outer, inner: Seen::default(), expected }
    }

    /// Reads to the end of the packed stream, whatever it holds, and checks length and digest. Called after success
    /// and after failure: damaged bytes are reported as such and not by what they happened to decode to.
    pub(super) fn check_outer(&mut self) -> Result<(), UnpackError> {
        let layer = self.expected.digest;
        let failed = |source| UnpackError::Io { layer, path: "the layer's bytes".into(), source };
        io::copy(self.packed.source(), &mut io::sink()).map_err(failed)?;
        let outer = self.outer.borrow();
        if outer.bytes != self.expected.size {
            return Err(UnpackError::Size { layer, expected: self.expected.size, found: outer.bytes });
        }
        if outer.digest() != layer {
            return Err(UnpackError::DigestMismatch { expected: layer, found: outer.digest() });
        }
        Ok(())
    }

    /// Checks the uncompressed digest, once everything has been read.
    pub(super) fn check_inner(&self) -> Result<(), UnpackError> {
        match self.expected.diff_id {
            Some(expected) if self.inner.digest() != expected => Err(UnpackError::DiffIdMismatch {
                layer: self.expected.digest,
                expected,
                found: self.inner.digest(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The name of the compression, for errors.
    pub(super) fn format(&self) -> Option<&'static str> {
        match self.packed {
            Packed::Plain(_) => None,
            Packed::Gzip(_) => Some("gzip"),
            Packed::Zstd(_) => Some("zstd"),
        }
    }
}

impl<R: Read> Read for LayerStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.packed {
            Packed::Plain(source) => source.read(buffer),
            Packed::Gzip(source) => source.read(buffer),
            Packed::Zstd(source) => source.read(buffer),
        }?;
        self.inner.hasher.update(&buffer[..count]);
        self.inner.bytes += count as u64;
        Ok(count)
    }
}

impl<B: BufRead> Packed<B> {
    fn source(&mut self) -> &mut B {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(frames) => &mut frames.source,
        }
    }
}

/// Several Zstandard frames one after the other, with skippable ones between (RFC 8878 §3): `zstd:chunked` layers end
/// in some.
struct ZstdFrames<B> {
    source: B,
    decoder: FrameDecoder,
    in_frame: bool,
}

/// RFC 8878 §3.1.2: magic numbers 0x184D2A50 to 0x184D2A5F.
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184D_2A50..=0x184D_2A5F;

impl<B: BufRead> ZstdFrames<B> {
    fn new(source: B, window_bytes: u64) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(window_bytes);
        Self { source, decoder, in_frame: false }
    }

    /// Steps to the next data frame; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            self.source.read_exact(&mut magic)?;
            if SKIPPABLE.contains(&u32::from_le_bytes(magic)) {
                self.skip()?;
                continue;
            }
            let header = io::Cursor::new(magic).chain(&mut self.source);
            self.decoder.reset(header).map_err(io::Error::other)?;
            self.in_frame = true;
            return Ok(true);
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.source.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<B: BufRead> Read for ZstdFrames<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && (self.in_frame || self.next_frame()?) {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.decoder.is_finished() {
                self.in_frame = false;
                continue;
            }
            let one = BlockDecodingStrategy::UptoBlocks(1);
            self.decoder.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
        }
        Ok(0)
    }
}
