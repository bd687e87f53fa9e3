//! The way to a container: a stream through its board's session, as encrypted as everything on it.
use super::table::backend_of;
use crate::serve::{Shared, publish, route};
use crate::state::Input;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use wherry_endpoint::{Backends, ConnectError};
use wherry_protocol::ErrorCode;
use wherry_protocol::io::{SessionError, Stream};

/// Reaches containers through their boards.
pub(crate) struct ThroughBoards(pub(crate) Arc<Shared>);

/// A connection to a container, and its place among its account's.
#[derive(Debug)]
pub(crate) struct Through {
    stream: Compat<Stream>,
    _place: route::Place,
}

impl Backends for ThroughBoards {
    type Stream = Through;

    async fn connect(&self, backend: u64) -> Result<Through, ConnectError> {
        let (container, port) = backend_of(backend);
        let visit = |request| Input::VisitWeb { request, container, port };
        let opened = publish::open(&self.0, &self.0.web_routes, visit).await;
        let (stream, place) = opened.map_err(connect_error)?;
        Ok(Through { stream: stream.compat(), _place: place })
    }
}

/// Bounds on the way say nothing about the container behind them.
fn connect_error(error: SessionError) -> ConnectError {
    match error {
        SessionError::Refused(refused) if refused.code == ErrorCode::Busy => ConnectError::Busy,
        SessionError::TooManyStreams { .. } => ConnectError::Busy,
        SessionError::Io(_)
        | SessionError::WrongServerKey
        | SessionError::Refused(_)
        | SessionError::Version { .. }
        | SessionError::Garbage { .. }
        | SessionError::Closed
        | SessionError::TooLarge { .. } => ConnectError::Unreachable(io::Error::other(error)),
    }
}

impl AsyncRead for Through {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Through {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::WireError;

    #[test]
    fn bounds_on_the_way_are_no_failure_of_a_container() {
        let refused = |code| SessionError::Refused(WireError::new(code, "no"));
        assert!(matches!(connect_error(refused(ErrorCode::Busy)), ConnectError::Busy));
        assert!(matches!(connect_error(refused(ErrorCode::NotFound)), ConnectError::Unreachable(_)));
        assert!(matches!(connect_error(SessionError::Closed), ConnectError::Unreachable(_)));
    }
}
