//! How streams end, as seen on the wire.
//!
//! yamux tells its readers of a reset, and of the end of the connection, in the same way as of an orderly end. So the
//! frames are looked at before yamux gets them: a stream has ended in order if, and only if, a FIN for it has come
//! whole. A reset is noticed even while nobody reads, for what nobody hears of is never cleaned up.
use super::secure::Secure;
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

/// Bytes of yamux's frame header: version, type, flags (2), stream (4), length (4); big endian.
pub(super) const HEADER_BYTES: usize = 12;
const DATA: u8 = 0;
const SYN: u16 = 1;
const FIN: u16 = 4;
const RST: u16 = 8;

/// What the peer has done to a stream.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// It has ended its direction in order.
    ended: AtomicBool,
    /// It has reset the stream before that, or the session has ended.
    broken: AtomicBool,
    waiting: AtomicWaker,
}

impl Fate {
    /// Whether the peer has ended its direction in order.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn break_off(&self) {
        if !self.has_ended() {
            self.broken.store(true, Ordering::Release);
            self.waiting.wake();
        }
    }
}

/// Completes when the peer has reset a stream or the session has ended, whether or not what came before has been read. Never
/// after an orderly end. Of several for one stream only the last one polled is woken.
#[derive(Debug)]
#[must_use = "nothing happens unless it is polled"]
pub struct HungUp(pub(super) Arc<Fate>);

impl Future for HungUp {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waiting.register(cx.waker());
        match self.0.broken.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// The streams that are open, by yamux's number.
#[derive(Clone, Default)]
pub(super) struct Endings {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u32, Arc<Fate>>,
    /// A stream that one frame opened and ended: the frame comes before its stream can be registered.
    born_ended: Option<u32>,
}

impl Endings {
    /// Watches a stream from now on.
    pub(super) fn register(&self, stream: u32) -> Arc<Fate> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = Arc::new(Fate::default());
        if table.born_ended == Some(stream) {
            fate.end();
        }
        table.streams.insert(stream, Arc::clone(&fate));
        fate
    }

    /// The stream is gone.
    pub(super) fn forget(&self, stream: u32) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).streams.remove(&stream);
    }

    fn note(&self, frame: Frame) {
        if frame.flags & (SYN | FIN | RST) == 0 {
            return;
        }
        let fin = frame.flags & FIN != 0;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.flags & SYN != 0 {
            table.born_ended = fin.then_some(frame.stream);
        } else if let Some(fate) = table.streams.get(&frame.stream) {
            if fin {
                fate.end();
            }
            if frame.flags & RST != 0 {
                fate.break_off();
            }
        }
    }

    /// The session is over.
    fn all_break_off(&self) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.streams.values().for_each(|fate| fate.break_off());
    }
}

/// The parts of a frame's header that matter here.
#[derive(Clone, Copy)]
struct Frame {
    flags: u16,
    stream: u32,
    body_bytes: usize,
}

impl Frame {
    fn parse(header: [u8; HEADER_BYTES]) -> Self {
        let [_version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        Self {
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            // Only data frames have a body; of the others the length means something else.
            body_bytes: if kind == DATA { usize::try_from(length).unwrap_or(usize::MAX) } else { 0 },
        }
    }
}

/// Follows the frames in a stream of bytes that comes in any pieces.
struct Parser {
    header: [u8; HEADER_BYTES],
    filled: usize,
    /// Of the present frame's body.
    missing: usize,
}

impl Parser {
    fn feed(&mut self, mut bytes: &[u8], mut note: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let target = HEADER_BYTES.saturating_sub(self.filled);
            let (taken, rest) =
                bytes.split_at(bytes.len().min(if target > 0 { target } else { self.missing }));
            bytes = rest;
            if target > 0 {
                if let Some(place) = self.header.get_mut(self.filled..self.filled + taken.len()) {
                    place.copy_from_slice(taken);
                }
                self.filled += taken.len();
                if self.filled < HEADER_BYTES {
                    return;
                }
                self.missing = Frame::parse(self.header).body_bytes;
            } else {
                self.missing -= taken.len();
            }
            if self.missing == 0 {
                note(Frame::parse(self.header));
                self.filled = 0;
            }
        }
    }
}

/// A sealed byte pipe whose incoming frames are watched.
pub(super) struct Watched<T> {
    secure: Secure<T>,
    parser: Parser,
    endings: Endings,
}

impl<T> Watched<T> {
    pub(super) fn new(secure: Secure<T>, endings: Endings) -> Self {
        Self { secure, parser: Parser { header: [0; HEADER_BYTES], filled: 0, missing: 0 }, endings }
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.endings.all_break_off();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { secure, parser, endings } = self.get_mut();
        let count = ready!(Pin::new(secure).poll_read(cx, buffer))?;
        parser.feed(buffer.get(..count).unwrap_or_default(), |frame| endings.note(frame));
        Poll::Ready(Ok(count))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().secure).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().secure).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().secure).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        [&[0, kind][..], &flags.to_be_bytes(), &stream.to_be_bytes(), &length.to_be_bytes()].concat()
    }

    #[test]
    fn frames_are_found_in_whatever_pieces_they_come() {
        let wire = [
            header(DATA, SYN, 1, 5),
            b"hello".to_vec(),
            // A window update: the length is a credit, not a body.
            header(1, 0, 1, 1_000_000),
            header(DATA, FIN, 3, 2),
            b"hi".to_vec(),
            header(DATA, FIN, 1, 0),
        ]
        .concat();
        for piece in 1..wire.len() {
            let endings = Endings::default();
            let (one, three) = (endings.register(1), endings.register(3));
            let mut parser = Parser { header: [0; HEADER_BYTES], filled: 0, missing: 0 };
            for bytes in wire[..wire.len() - 1].chunks(piece) {
                parser.feed(bytes, |frame| endings.note(frame));
            }
            assert!(three.has_ended() && !one.has_ended());
            parser.feed(&wire[wire.len() - 1..], |frame| endings.note(frame));
            assert!(one.has_ended());
        }
    }

    #[test]
    fn a_fin_whose_body_is_cut_is_no_end() {
        let endings = Endings::default();
        let one = endings.register(1);
        let mut parser = Parser { header: [0; HEADER_BYTES], filled: 0, missing: 0 };
        parser.feed(&header(DATA, FIN, 1, 2), |frame| endings.note(frame));
        parser.feed(b"h", |frame| endings.note(frame));
        assert!(!one.has_ended());
        parser.feed(b"i", |frame| endings.note(frame));
        assert!(one.has_ended());
    }
}
