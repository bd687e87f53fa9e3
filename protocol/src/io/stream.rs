//! One stream of a session.
use super::mux::Slot;
use super::watch::{Endings, Fate, HungUp};
use futures_io::{AsyncRead, AsyncWrite};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A bidirectional byte stream with flow control of its own.
///
/// `poll_close` ends our direction; the peer reads end-of-file, and can go on sending. Dropping an open stream resets
/// it: the peer's read fails with `ConnectionReset`, as it does when the connection is lost. One case cannot
/// be told from an orderly end: a peer that drops the stream after we have closed our direction. So a protocol whose
/// end matters has an end of its own (a length, or [`crate::message::Frame::Exit`]).
///
/// The two halves of a stream that is split may be used by two tasks.
pub struct Stream {
    inner: yamux::Stream,
    /// Opened by us, and the peer knows nothing of it yet.
    silent: bool,
    closed: bool,
    fate: Arc<Fate>,
    endings: Endings,
    _slot: Slot,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.inner.id().val()).finish()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.endings.forget(self.inner.id().val());
    }
}

impl Stream {
    /// One that the peer has opened.
    pub(super) fn inbound(inner: yamux::Stream, endings: &Endings, slot: Slot) -> Self {
        Self::new(inner, false, endings, slot)
    }

    /// One that we have opened.
    pub(super) fn outbound(inner: yamux::Stream, endings: &Endings, slot: Slot) -> Self {
        Self::new(inner, true, endings, slot)
    }

    fn new(inner: yamux::Stream, silent: bool, endings: &Endings, slot: Slot) -> Self {
        let fate = endings.register(inner.id().val());
        Self { inner, silent, closed: false, fate, endings: endings.clone(), _slot: slot }
    }

    /// The peer's breaking off, to be waited for beside whatever the stream is used for.
    pub fn hung_up(&self) -> HungUp {
        HungUp(Arc::clone(&self.fate))
    }

    /// yamux opens a stream with its first frame; before we wait for the peer or end our direction it must know.
    fn poll_announce(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.silent {
            ready!(Pin::new(&mut self.inner).poll_write(cx, &[])).map_err(broken)?;
            self.silent = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Whether there is room to announce or not, what has come can be read.
        if let Poll::Ready(Err(error)) = this.poll_announce(cx) {
            return Poll::Ready(Err(error));
        }
        let count = ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        let reset = count == 0 && !buffer.is_empty() && !this.fate.has_ended();
        Poll::Ready(if reset { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(count) })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes)).map_err(broken)?;
        this.silent = false;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_announce(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx).map_err(broken)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_announce(cx))?;
        ready!(Pin::new(&mut this.inner).poll_close(cx)).map_err(broken)?;
        this.closed = true;
        Poll::Ready(Ok(()))
    }
}

// yamux says WriteZero for a stream that is gone.
fn broken(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WriteZero => io::ErrorKind::BrokenPipe.into(),
        _ => error,
    }
}
