//! The streams of a process: frames in both directions.
use crate::error::ClientError;
use crate::location::Location;
use futures_util::AsyncWriteExt as _;
use futures_util::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use wherry_protocol::Limits;
use wherry_protocol::io::{Stream, recv, send};
use wherry_protocol::message::{Channel, Frame};

/// A process that we are connected to.
#[derive(Debug)]
pub struct Process {
    /// Towards it.
    pub input: Input,
    /// From it.
    pub output: Output,
}

impl Process {
    pub(crate) fn new(location: Location, stream: Stream) -> Self {
        let (reader, writer) = stream.split();
        Self { input: Input { location: location.clone(), writer }, output: Output { location, reader } }
    }
}

/// Towards a process.
#[derive(Debug)]
pub struct Input {
    location: Location,
    writer: WriteHalf<Stream>,
}

impl Input {
    async fn send(&mut self, frame: &Frame) -> Result<(), ClientError> {
        send(&mut self.writer, frame).await.map_err(|error| self.location.lost(error))
    }

    /// Bytes for its standard input, any number.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for chunk in bytes.chunks(Limits::DEFAULT.chunk_bytes) {
            self.send(&Frame::Data { channel: Channel::Stdin, bytes: chunk.to_vec() }).await?;
        }
        Ok(())
    }

    /// Its standard input ends here.
    pub async fn end_stdin(&mut self) -> Result<(), ClientError> {
        self.send(&Frame::End(Channel::Stdin)).await
    }

    /// The terminal has this size now.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), ClientError> {
        self.send(&Frame::Resize { rows, columns }).await
    }

    /// Sends it a signal (Linux numbers).
    pub async fn signal(&mut self, signal: u8) -> Result<(), ClientError> {
        self.send(&Frame::Signal(signal)).await
    }

    /// Nothing more will be sent.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.writer.close().await.map_err(|error| self.location.lost(error.into()))
    }
}

/// From a process.
#[derive(Debug)]
pub struct Output {
    location: Location,
    reader: ReadHalf<Stream>,
}

impl Output {
    /// The next frame; `None` at the end of the stream. Must not be cancelled half-way.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        recv(&mut self.reader, Limits::DEFAULT.message_bytes).await.map_err(|error| self.location.lost(error))
    }
}
