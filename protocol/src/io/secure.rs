//! The sealed byte pipe over a transport.
use super::error::to_io;
use super::now_ms;
use crate::key::{OsRandom, PublicKey};
use crate::session::{Read, Session};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::ready;
use futures_util::task::{ArcWake, waker};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Plaintext over a sealed transport. Reading gives end-of-file only if the peer said so under seal; a cut connection
/// is an error of kind `UnexpectedEof`. Closing says so to the peer and ends our direction only.
///
/// What is written is sealed when a record is full or on flush: flush after each thing that is to arrive.
pub struct Secure<T> {
    transport: T,
    session: Session,
    random: OsRandom,
    /// Whoever waits to write: woken too when the reading side had to wait for the transport to take bytes.
    writer: Option<Waker>,
}

impl<T> std::fmt::Debug for Secure<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secure").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<T> Secure<T> {
    pub(super) fn new(transport: T, session: Session) -> Self {
        Self { transport, session, random: OsRandom, writer: None }
    }

    /// The other end's key, proven.
    pub fn peer(&self) -> PublicKey {
        self.session.peer()
    }
}

impl<T: AsyncWrite + Unpin> Secure<T> {
    /// Hands all sealed bytes to the transport.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.output().is_empty() {
            match Pin::new(&mut self.transport).poll_write(cx, self.session.output()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.session.sent(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain_for_writer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = self.poll_drain(cx);
        self.writer = result.is_pending().then(|| cx.waker().clone());
        result
    }

    /// Reading may have made an answer to the peer's key exchange. It is sent on the way; if the transport is full, both
    /// the reader and a writer that waits already are woken.
    fn drain_for_reader(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.session.output().is_empty() {
            return Ok(());
        }
        let both = waker(Arc::new(Both { reader: cx.waker().clone(), writer: self.writer.clone() }));
        let cx = &mut Context::from_waker(&both);
        match self.poll_drain(cx)? {
            Poll::Ready(()) => match Pin::new(&mut self.transport).poll_flush(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => Ok(()),
            },
            Poll::Pending => Ok(()),
        }
    }
}

struct Both {
    reader: Waker,
    writer: Option<Waker>,
}

impl ArcWake for Both {
    fn wake_by_ref(this: &Arc<Self>) {
        this.reader.wake_by_ref();
        if let Some(writer) = &this.writer {
            writer.wake_by_ref();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secure<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let progress = this.session.read(buffer, now_ms(), &mut this.random);
            let progress = progress.map_err(to_io)?;
            this.drain_for_reader(cx)?;
            match progress {
                Read::Data(count) => return Poll::Ready(Ok(count)),
                Read::End => return Poll::Ready(Ok(0)),
                Read::Starved => {}
            }
            match Pin::new(&mut this.transport).poll_read(cx, this.session.space()) {
                Poll::Ready(Ok(0)) => {
                    let ended = this.session.transport_ended().map_err(to_io);
                    return Poll::Ready(ended.map(|()| 0));
                }
                Poll::Ready(Ok(count)) => this.session.received(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.session.starved();
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secure<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if plain.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let taken = this.session.write(plain, now_ms(), &mut this.random).map_err(to_io)?;
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            ready!(this.poll_drain_for_writer(cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.flush();
        ready!(this.poll_drain_for_writer(cx))?;
        Pin::new(&mut this.transport).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.close();
        ready!(this.poll_drain_for_writer(cx))?;
        Pin::new(&mut this.transport).poll_close(cx)
    }
}
