//! An upgraded connection: bytes both ways until one side is done, or both are silent.
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, sleep_until};

const BUFFER: usize = 16 * 1024;

/// Joins two streams. The bytes of the client and of the backend that went through.
pub(crate) async fn join<C, B>(client: C, backend: B, silence: Duration) -> (u64, u64)
where
    C: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (client_reads, client_writes) = split(client);
    let (backend_reads, backend_writes) = split(backend);
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let total = || up.load(Ordering::Relaxed) + down.load(Ordering::Relaxed);
    let both = async {
        tokio::try_join!(pump(client_reads, backend_writes, &up), pump(backend_reads, client_writes, &down))
    };
    let silent = async {
        let mut before = 0;
        loop {
            sleep_until(Instant::now() + silence).await;
            match total() {
                now if now == before => return,
                now => before = now,
            }
        }
    };
    tokio::select! {
        ended = both => if let Err(error) = ended {
            tracing::debug!(%error, "an upgraded connection broke off");
        },
        () = silent => {}
    }
    (up.into_inner(), down.into_inner())
}

async fn pump<R: AsyncRead, W: AsyncWrite>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        to.flush().await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_both_ways_and_half_closed() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (theirs, mut backend) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(ours, theirs, Duration::from_secs(60)));
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        backend.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hello");
        backend.write_all(b"bye").await.unwrap();
        drop(backend);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        assert_eq!(joined.await.unwrap(), (5, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (_client, ours) = tokio::io::duplex(64);
        let (theirs, _backend) = tokio::io::duplex(64);
        assert_eq!(join(ours, theirs, Duration::from_secs(60)).await, (0, 0));
    }
}
