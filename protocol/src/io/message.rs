//! Messages on a stream: `u32` length, little endian, then postcard.
use super::error::SessionError;
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

const LENGTH_BYTES: usize = 4;
/// A buffer for a message begins with at most so much and grows as bytes come, so that an announced length alone
/// takes no memory.
const FIRST_BUFFER_BYTES: usize = 8 * 1024;

/// Sends one message and flushes.
pub async fn send<M: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), SessionError> {
    let frame = encode(message)?;
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(())
}

/// Receives one message of at most `max_bytes`; `None` if the stream ends in order before it begins.
pub async fn recv<M: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    max_bytes: usize,
) -> Result<Option<M>, SessionError> {
    let Some(length) = recv_length(reader).await? else { return Ok(None) };
    let (bytes, limit) = (u64::from(length), u64::try_from(max_bytes).unwrap_or(u64::MAX));
    if bytes > limit {
        return Err(SessionError::TooLarge { bytes, limit });
    }
    let length = usize::try_from(length).map_err(|_| SessionError::TooLarge { bytes, limit })?;
    let mut body = Vec::with_capacity(length.min(FIRST_BUFFER_BYTES));
    reader.take(bytes).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(SessionError::Closed);
    }
    decode(&body).map(Some)
}

fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, SessionError> {
    let mut frame = postcard::to_extend(message, vec![0; LENGTH_BYTES])
        .map_err(|error| SessionError::garbage(format!("a message cannot be encoded: {error}")))?;
    let bytes = frame.len().saturating_sub(LENGTH_BYTES);
    let length = u32::try_from(bytes)
        .map_err(|_| SessionError::TooLarge { bytes: u64::MAX, limit: u64::from(u32::MAX) })?;
    if let Some(head) = frame.first_chunk_mut() {
        *head = length.to_le_bytes();
    }
    Ok(frame)
}

/// Decodes a whole message; bytes left over are refused.
fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, SessionError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(SessionError::garbage(format!("{} bytes too many in a message", rest.len()))),
        Err(error) => Err(SessionError::garbage(format!("a message cannot be decoded: {error}"))),
    }
}

// None at an orderly end; an end inside the length is a cut.
async fn recv_length(reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<u32>, SessionError> {
    let mut length = [0; LENGTH_BYTES];
    let mut filled = 0;
    while let Some(place) = length.get_mut(filled..).filter(|place| !place.is_empty()) {
        match reader.read(place).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(SessionError::Closed),
            count => filled += count,
        }
    }
    Ok(Some(u32::from_le_bytes(length)))
}
