//! One stream of a session.
use super::mux::Slot;
use futures_io::{AsyncRead, AsyncWrite};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// A bidirectional byte stream with flow control of its own.
///
/// `poll_close` ends our direction; the peer reads end-of-file, and can go on sending. Dropping an open stream resets
/// it: the peer's read fails with `ConnectionReset`. After we have closed our direction, a peer that drops
/// the stream cannot be told from one that closes it, so a protocol whose end matters has an end of its own (a length, or
/// [`crate::message::Frame::Exit`]).
pub struct Stream {
    inner: yamux::Stream,
    closed: bool,
    cut: Arc<AtomicBool>,
    _slot: Slot,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.inner.id()).finish()
    }
}

impl Stream {
    pub(super) fn new(inner: yamux::Stream, cut: Arc<AtomicBool>, slot: Slot) -> Self {
        Self { inner, closed: false, cut, _slot: slot }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Ready(Ok(0)) if !buffer.is_empty() => {
                // Both directions closed although we did not close ours, or no connection any more: no orderly end.
                let reset = this.inner.is_closed() && (!this.closed || this.cut.load(Ordering::Acquire));
                Poll::Ready(if reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(0) })
            }
            other => other,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes).map_err(broken)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx).map_err(broken)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut this.inner).poll_close(cx).map_err(broken);
        this.closed = matches!(result, Poll::Ready(Ok(())));
        result
    }
}

// yamux says WriteZero for a stream that is gone.
fn broken(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WriteZero => io::ErrorKind::BrokenPipe.into(),
        _ => error,
    }
}
