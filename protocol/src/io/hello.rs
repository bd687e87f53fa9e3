//! The first stream of a session: versions, and whether the dialling key is known.
use super::error::SessionError;
use super::message::{recv, send};
use super::mux::{Incoming, Mux};
use super::stream::Stream;
use crate::error::{ErrorCode, WireError};
use crate::message::{Hello, HelloReply, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use crate::token::Role;
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longest hello or reply, in bytes: software names and one sentence.
const MAX_HELLO_BYTES: usize = 4096;
/// Features this crate knows; none yet.
const FEATURES: u64 = 0;

/// The dialling side's first stream: says who we are and gives the answer, which is always
/// [`HelloReply::Accepted`]; a refusal is [`SessionError::Refused`] or [`SessionError::Version`].
pub async fn hello(mux: &Mux, software: &str) -> Result<HelloReply, SessionError> {
    let mut stream = mux.open().await?;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        oldest: OLDEST_PROTOCOL_VERSION,
        features: FEATURES,
        software: software.to_owned(),
    };
    send(&mut stream, &hello).await?;
    let reply = recv(&mut stream, MAX_HELLO_BYTES).await?.ok_or(SessionError::Closed)?;
    // Tells the other end that the answer has arrived.
    stream.close().await?;
    match reply {
        HelloReply::Accepted { version, .. } => match check_version(version, version) {
            Ok(_) => Ok(reply),
            Err(error) => Err(SessionError::Version { message: error.message }),
        },
        HelloReply::Refused(error) if error.code == ErrorCode::Version => {
            Err(SessionError::Version { message: error.message })
        }
        HelloReply::Refused(error) => Err(SessionError::Refused(error)),
    }
}

/// The accepting side's first step: waits for the first stream and reads the hello on it.
pub async fn read_hello(incoming: &mut Incoming) -> Result<(Stream, Hello), SessionError> {
    let mut stream = incoming.next().await.ok_or(SessionError::Closed)?;
    let hello = recv(&mut stream, MAX_HELLO_BYTES).await?.ok_or(SessionError::Closed)?;
    Ok((stream, hello))
}

/// The accepting side's answer. `verdict` is what the caller thinks of the peer's key: its role (`None` on the
/// enrolment port), or a refusal. If there is no common version that comes first.
///
/// On a refusal this waits until the peer has read it, and gives it back as an error, so that `?` ends the session.
pub async fn answer_hello(
    mut stream: Stream,
    hello: &Hello,
    software: &str,
    verdict: Result<Option<Role>, WireError>,
) -> Result<(), SessionError> {
    let answer = check_version(hello.oldest, hello.version).and_then(|version| Ok((version, verdict?)));
    match answer {
        Ok((version, role)) => {
            let features = hello.features & FEATURES;
            let reply = HelloReply::Accepted { version, features, software: software.to_owned(), role };
            send(&mut stream, &reply).await?;
            stream.close().await?;
            Ok(())
        }
        Err(error) => {
            send(&mut stream, &HelloReply::Refused(error.clone())).await?;
            stream.close().await?;
            wait_for_end(&mut stream).await;
            Err(match error.code {
                ErrorCode::Version => SessionError::Version { message: error.message },
                _ => SessionError::Refused(error),
            })
        }
    }
}

// A peer that sends more, or cuts the connection, has ended the session as well as one that closes.
async fn wait_for_end(stream: &mut Stream) {
    let mut byte = [0];
    drop(stream.read(&mut byte).await);
}

/// The newest version that we and a peer speaking `oldest..=newest` have in common.
fn check_version(oldest: u16, newest: u16) -> Result<u16, WireError> {
    let ours = OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION;
    let common = newest.min(PROTOCOL_VERSION);
    if ours.contains(&common) && oldest <= common {
        return Ok(common);
    }
    let which = if newest < OLDEST_PROTOCOL_VERSION { "peer" } else { "answering" };
    Err(WireError::new(
        ErrorCode::Version,
        format!(
            "no common protocol version: the peer speaks {oldest} to {newest}, the answering side {} to {}; update the {which} side",
            ours.start(),
            ours.end()
        ),
    ))
}
