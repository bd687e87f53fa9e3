//! A container's connection to the web endpoint, carried on: by its board, and by the broker.
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

/// Buffer of one direction, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long one side waits for the other.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// After the endpoint has said its last word, what the container still says is heard for so long.
    pub afterwards: Duration,
    /// A side that takes nothing for so long is given up; the endpoint does so with clients after 60 seconds.
    pub stall: Duration,
}

impl Patience {
    /// What the way to the web endpoint has, on both boards.
    pub const WEB: Self = Self { afterwards: Duration::from_secs(5), stall: Duration::from_secs(90) };
}

/// Bytes both ways, until the endpoint is done: a container that leaves its side open keeps no place.
///
/// # Errors
/// When a side breaks off; `TimedOut` when one takes nothing for too long.
pub async fn join(
    container: impl AsyncRead + AsyncWrite,
    endpoint: impl AsyncRead + AsyncWrite,
    patience: Patience,
) -> io::Result<()> {
    let (container_reads, container_writes) = split(container);
    let (endpoint_reads, endpoint_writes) = split(endpoint);
    let mut asks = pin!(pump(container_reads, endpoint_writes, patience.stall));
    let mut answers = pin!(pump(endpoint_reads, container_writes, patience.stall));
    tokio::select! {
        asked = &mut asks => {
            asked?;
            answers.await
        }
        answered = &mut answers => {
            answered?;
            timeout(patience.afterwards, asks).await.unwrap_or(Ok(()))
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stall: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        let bytes = buffer.get(..count).unwrap_or_default();
        let write = async {
            if bytes.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(bytes).await?;
            to.flush().await
        };
        timeout(stall, write).await??;
        if count == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Patience =
        Patience { afterwards: Duration::from_millis(100), stall: Duration::from_millis(100) };
    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_container_that_has_asked_and_stays_keeps_no_place() {
        let (mut container, far) = tokio::io::duplex(64);
        let (near, mut endpoint) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(far, near, SHORT));
        container.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        endpoint.read_exact(&mut heard).await.unwrap();
        endpoint.write_all(b"bye").await.unwrap();
        endpoint.shutdown().await.unwrap();
        let mut heard = Vec::new();
        container.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        timeout(SOON, joined).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_container_that_stays_keeps_no_place() {
        let (mut container, far) = tokio::io::duplex(64);
        let (near, mut endpoint) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(far, near, SHORT));
        endpoint.write_all(b"bye").await.unwrap();
        endpoint.shutdown().await.unwrap();
        let mut heard = Vec::new();
        container.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        timeout(SOON, joined).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_container_that_takes_nothing_keeps_no_place() {
        let (_container, far) = tokio::io::duplex(64);
        let (near, mut endpoint) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(far, near, SHORT));
        endpoint.write_all(&[0; 64]).await.unwrap();
        endpoint.write_all(&[0; 64]).await.unwrap();
        let ended = timeout(SOON, joined).await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_has_asked_is_answered() {
        let (mut container, far) = tokio::io::duplex(64);
        let (near, mut endpoint) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(far, near, SHORT));
        container.write_all(b"hello").await.unwrap();
        container.shutdown().await.unwrap();
        let mut heard = Vec::new();
        endpoint.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hello");
        endpoint.write_all(b"bye").await.unwrap();
        drop(endpoint);
        let mut heard = Vec::new();
        container.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        joined.await.unwrap().unwrap();
    }
}
