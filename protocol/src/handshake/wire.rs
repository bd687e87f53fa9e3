//! Lengths, headers and notices.
use super::HandshakeError;
use super::cookie::COOKIE_BYTES;
use crate::crypto::{KEY_BYTES, TAG_BYTES};

/// First bytes of every handshake message.
pub const MAGIC: [u8; 6] = *b"WHERRY";
/// Generation of the handshake: counts up when its bytes change. Messages have a version of their own.
pub const GENERATION: u8 = 1;
/// Magic, generation, kind.
pub const HEADER_BYTES: usize = 8;
/// HELLO: header, client's ephemeral key, box of zeros. As long as WELCOME, so that a server never answers with more
/// bytes than it got (no use as an amplifier).
pub const HELLO_BYTES: usize = WELCOME_BYTES;
/// WELCOME: header, half a nonce, box of server's ephemeral key and cookie.
pub const WELCOME_BYTES: usize = HEADER_BYTES + 16 + TAG_BYTES + KEY_BYTES + COOKIE_BYTES;
/// INITIATE: header, cookie, box of client's long-term key and vouch.
pub const INITIATE_BYTES: usize = HEADER_BYTES + COOKIE_BYTES + TAG_BYTES + KEY_BYTES + VOUCH_BYTES;
/// The vouch: a box of the greeting hash.
pub(super) const VOUCH_BYTES: usize = TAG_BYTES + KEY_BYTES;
/// Zeros in HELLO's box.
pub(super) const HELLO_ZEROS: usize = HELLO_BYTES - HEADER_BYTES - KEY_BYTES - TAG_BYTES;

/// What a handshake message is: the last byte of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client's first message.
    Hello = b'H',
    /// Server's answer.
    Welcome = b'W',
    /// Client's second message.
    Initiate = b'I',
    /// Notice: I speak another generation (the one in this header).
    OtherGeneration = b'V',
    /// Notice: your HELLO is not for my key.
    OtherKey = b'K',
    /// Notice: too busy.
    Busy = b'B',
}

/// A header of this generation.
pub(super) const fn header(kind: Kind) -> [u8; HEADER_BYTES] {
    let [m0, m1, m2, m3, m4, m5] = MAGIC;
    [m0, m1, m2, m3, m4, m5, GENERATION, kind as u8]
}

/// The 8 bytes a server sends before it closes the connection on a failed HELLO, so that a person learns why; `None`
/// if silence is better. A notice proves nothing and can do no more than closing the connection could.
#[must_use]
pub fn notice(error: HandshakeError) -> Option<[u8; HEADER_BYTES]> {
    match error {
        HandshakeError::Generation { .. } => Some(header(Kind::OtherGeneration)),
        HandshakeError::WrongServerKey => Some(header(Kind::OtherKey)),
        HandshakeError::Busy => Some(header(Kind::Busy)),
        HandshakeError::NotWherry
        | HandshakeError::Cookie
        | HandshakeError::Forged
        | HandshakeError::Malformed => None,
    }
}

// What a client can get instead of WELCOME.
fn read_notice(generation: u8, kind: u8) -> Option<HandshakeError> {
    const GENERATION_NOTICE: u8 = Kind::OtherGeneration as u8;
    const KEY_NOTICE: u8 = Kind::OtherKey as u8;
    const BUSY_NOTICE: u8 = Kind::Busy as u8;
    match kind {
        GENERATION_NOTICE => Some(HandshakeError::Generation { theirs: generation, ours: GENERATION }),
        KEY_NOTICE => Some(HandshakeError::WrongServerKey),
        BUSY_NOTICE => Some(HandshakeError::Busy),
        _ => None,
    }
}

/// Checks the first 8 bytes of what should be a message of kind `expected`.
pub(crate) fn check_header(header: [u8; HEADER_BYTES], expected: Kind) -> Result<(), HandshakeError> {
    let [magic @ .., generation, kind] = header;
    if magic != MAGIC {
        return Err(HandshakeError::NotWherry);
    }
    if expected == Kind::Welcome
        && let Some(error) = read_notice(generation, kind)
    {
        return Err(error);
    }
    if generation != GENERATION {
        return Err(HandshakeError::Generation { theirs: generation, ours: GENERATION });
    }
    if kind == expected as u8 { Ok(()) } else { Err(HandshakeError::Malformed) }
}

/// Takes the first `N` bytes.
pub(super) fn take<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), HandshakeError> {
    bytes.split_first_chunk().ok_or(HandshakeError::Malformed)
}
