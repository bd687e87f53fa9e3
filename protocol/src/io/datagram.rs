//! Datagrams on a stream: `u16` length, little endian, then the datagram, again and again.
use super::error::SessionError;
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};

/// Largest datagram: what UDP over IPv4 can carry (RFC 768, RFC 791).
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// Sends one datagram and flushes.
///
/// # Errors
/// When it is too large, or the stream has broken.
pub async fn send_datagram(
    writer: &mut (impl AsyncWrite + Unpin),
    datagram: &[u8],
) -> Result<(), SessionError> {
    let too_large = || SessionError::TooLarge {
        bytes: u64::try_from(datagram.len()).unwrap_or(u64::MAX),
        limit: MAX_DATAGRAM_BYTES as u64,
    };
    let length =
        u16::try_from(datagram.len()).ok().filter(|length| usize::from(*length) <= MAX_DATAGRAM_BYTES);
    let mut frame = length.ok_or_else(too_large)?.to_le_bytes().to_vec();
    frame.extend(datagram);
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(())
}

/// Receives one datagram into `buffer`, in place of what was there; false if the stream ends in order before it begins.
///
/// # Errors
/// When the stream breaks, or ends within a datagram.
pub async fn recv_datagram(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Result<bool, SessionError> {
    let mut length = [0; 2];
    let (first, rest) = length.split_at_mut(1);
    if reader.read(first).await? == 0 {
        return Ok(false);
    }
    reader.read_exact(rest).await?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > MAX_DATAGRAM_BYTES {
        return Err(SessionError::TooLarge { bytes: length as u64, limit: MAX_DATAGRAM_BYTES as u64 });
    }
    buffer.resize(length, 0);
    reader.read_exact(buffer).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::io::Cursor;

    async fn all(bytes: &[u8]) -> Result<Vec<Vec<u8>>, SessionError> {
        let (mut reader, mut buffer, mut found) = (Cursor::new(bytes), Vec::new(), Vec::new());
        while recv_datagram(&mut reader, &mut buffer).await? {
            found.push(buffer.clone());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn datagrams_keep_their_borders() {
        let mut stream = Vec::new();
        let sent = [b"one".to_vec(), Vec::new(), vec![7; MAX_DATAGRAM_BYTES]];
        for datagram in &sent {
            send_datagram(&mut stream, datagram).await.unwrap();
        }
        assert_eq!(all(&stream).await.unwrap(), sent);
        assert!(send_datagram(&mut stream, &vec![0; MAX_DATAGRAM_BYTES + 1]).await.is_err());
    }

    #[tokio::test]
    async fn damaged_streams_are_errors() {
        for bytes in [&b"\x01"[..], b"\x02\x00a", b"\xff\xff", b"\x00\x00\x05"] {
            assert!(all(bytes).await.is_err(), "{bytes:?}");
        }
    }
}
