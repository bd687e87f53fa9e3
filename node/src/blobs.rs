//! Blobs from the broker, over whatever session there is.
use crate::container::layers::{BlobReader, BlobSource};
use futures_util::AsyncReadExt;
use tokio::sync::watch;
use wherry_protocol::io::{self, Mux, SessionError};
use wherry_protocol::message::{NodeCall, Reply};
use wherry_protocol::{Digest, ErrorCode, Limits, WireError};

/// Asks the broker on a stream of the current session.
#[derive(Debug, Clone)]
pub struct BrokerBlobs {
    current: watch::Receiver<Option<Mux>>,
}

impl BrokerBlobs {
    /// Uses the session that `current` shows.
    #[must_use]
    pub fn new(current: watch::Receiver<Option<Mux>>) -> Self {
        Self { current }
    }

    /// The sessions that it uses.
    #[must_use]
    pub fn sessions(&self) -> watch::Receiver<Option<Mux>> {
        self.current.clone()
    }

    async fn ask(&self, mux: &Mux, digest: Digest, size: u64) -> Result<BlobReader, SessionError> {
        let mut stream = mux.open().await?;
        io::send(&mut stream, &NodeCall::FetchBlob(digest)).await?;
        let reply = io::recv(&mut stream, Limits::DEFAULT.message_bytes).await?;
        match reply {
            // One byte more than announced is taken, so that whoever verifies notices a stream that goes on.
            Some(Reply::Blob { .. }) => Ok(Box::new(stream.take(size.saturating_add(1)))),
            Some(Reply::Error(error)) => Err(SessionError::Refused(error)),
            Some(_) | None => Err(SessionError::Closed),
        }
    }
}

impl BlobSource for BrokerBlobs {
    async fn fetch(&self, digest: Digest, size: u64) -> Result<BlobReader, WireError> {
        let away = |message: String| WireError::new(ErrorCode::NodeUnreachable, message);
        let Some(mux) = self.current.borrow().clone() else {
            return Err(away("the node has no session with the broker to fetch the image from".into()));
        };
        self.ask(&mux, digest, size).await.map_err(|error| match error {
            SessionError::Refused(refusal) => refusal,
            other => away(format!("fetching {digest} from the broker failed: {other}")),
        })
    }
}
