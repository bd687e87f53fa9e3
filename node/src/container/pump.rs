//! Bytes between a container's descriptors and the log, and from attached people to its stdin.
use super::logs::Log;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use wherry_protocol::message::Channel;

/// Read at once, in bytes: what a pipe page holds, twice.
const CHUNK: usize = 8 * 1024;

/// Unix time in milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A descriptor that is read and written without blocking a thread.
#[derive(Debug)]
pub struct AsyncDescriptor(AsyncFd<OwnedFd>);

impl AsyncDescriptor {
    /// Switches `descriptor` to nonblocking. Pipes and terminals have a description of their own at each end, so the
    /// container does not see the flag.
    ///
    /// # Errors
    /// When it cannot be polled.
    #[expect(
        deprecated,
        reason = "its successor is unsafe because some types give up their descriptor; an OwnedFd owns its for life"
    )]
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        wherry_sys::fd::set_nonblocking(descriptor.as_fd(), true)
            .map_err(|error| io::Error::from(error.errno()))?;
        AsyncFd::new(descriptor).map(Self)
    }

    /// Reads; 0 is the end. A terminal whose last user is gone says EIO, which is its end.
    ///
    /// # Errors
    /// As read(2).
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let result = ready.try_io(|inner| Ok(nix::unistd::read(inner.get_ref(), buffer)?));
            match result {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As write(2).
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|inner| Ok(nix::unistd::write(inner.get_ref(), bytes)?)) {
                Ok(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The descriptor itself.
    #[must_use]
    pub fn get(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

/// Copies everything from `source` into the log; ends with the source.
pub fn output(source: Arc<AsyncDescriptor>, channel: Channel, log: Arc<Log>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.read(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => {
                    log.room(length).await;
                    log.append(channel, unix_ms(), buffer.get(..length).unwrap_or_default());
                }
                Err(error) => return tracing::warn!("a container's output could not be read: {error}"),
            }
        }
    })
}

/// Where people's input goes.
#[derive(Debug)]
pub enum Input {
    /// It reads end-of-file.
    None,
    /// A pipe; closed when the user says so.
    Pipe(Mutex<Option<AsyncDescriptor>>),
    /// The terminal; its end is a character.
    Terminal(Arc<AsyncDescriptor>),
}

/// ctrl-D: what a terminal's reader takes for the end (termios(3), VEOF).
pub const END_OF_TRANSMISSION: u8 = 4;

impl Input {
    /// Writes to the container; lost when nobody reads there.
    ///
    /// # Errors
    /// As write(2): EPIPE when the container has closed its stdin.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Pipe(pipe) => match pipe.lock().await.as_ref() {
                Some(pipe) => pipe.write_all(bytes).await,
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
            Self::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }

    /// No more input. Tells whether a pipe was closed by this.
    ///
    /// # Errors
    /// As write(2).
    pub async fn end(&self) -> io::Result<bool> {
        match self {
            Self::None => Ok(false),
            Self::Pipe(pipe) => Ok(pipe.lock().await.take().is_some()),
            Self::Terminal(terminal) => terminal.write_all(&[END_OF_TRANSMISSION]).await.map(|()| false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::logs::Ring;

    #[tokio::test]
    async fn what_is_written_is_logged_until_the_end() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let log = Arc::new(Log::new(Ring::create(0).unwrap()));
        let source = Arc::new(AsyncDescriptor::new(reader).unwrap());
        let pump = output(source, Channel::Stderr, Arc::clone(&log));
        let input = Input::Pipe(Mutex::new(Some(AsyncDescriptor::new(writer).unwrap())));
        let big = vec![b'x'; 100_000];
        input.write(&big).await.unwrap();
        assert!(input.end().await.unwrap());
        assert!(!input.end().await.unwrap());
        assert!(input.write(b"more").await.is_err());
        pump.await.unwrap();
        let batch = log.read(0, usize::MAX).unwrap();
        let held: usize = batch.entries.iter().map(|entry| entry.bytes.len()).sum();
        assert!(held > 0 && batch.entries.iter().all(|entry| entry.channel == Channel::Stderr));
    }

    #[tokio::test]
    async fn a_terminal_ends_with_its_last_user() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master = AsyncDescriptor::new(pty.master).unwrap();
        drop(pty.slave);
        assert_eq!(master.read(&mut [0; 10]).await.unwrap(), 0);
    }
}
