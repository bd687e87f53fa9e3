//! The server's memory between WELCOME and INITIATE, kept by the client.
//!
//! A cookie is sealed under a key that only this process has, numbered, dated and good for one connection: the
//! connection remembers nothing but the number. So a replayed INITIATE finds no connection that waits for its number,
//! there is no cache of used cookies to fill or to evict, and a captured memory image has no ephemeral secret of a
//! handshake that was not finished.
use super::HandshakeError;
use crate::crypto::{KEY_BYTES, Secret, TAG_BYTES, counter_nonce};
use crate::key::Random;
use chacha20poly1305::{AeadInPlace as _, ChaCha20Poly1305, KeyInit as _};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// A cookie is refused this long after it was made: more than a slow link needs, and the default deadline of a
/// handshake is shorter.
pub const COOKIE_LIFETIME_MILLISECONDS: u64 = 15_000;
/// A cookie key seals for so long; it opens for as long again, then it is gone.
pub const COOKIE_KEY_MILLISECONDS: u64 = 60_000;

const PLAIN_BYTES: usize = 4 * KEY_BYTES + 8;
/// Number, sealed contents, tag.
pub(super) const COOKIE_BYTES: usize = 8 + PLAIN_BYTES + TAG_BYTES;

/// What the server wants back.
pub(super) struct Contents {
    /// The server's ephemeral secret key s'.
    pub(super) ephemeral: Secret,
    /// The client's ephemeral public key C'.
    pub(super) client: [u8; KEY_BYTES],
    /// Hash of HELLO.
    pub(super) hello_hash: Secret,
    /// Agreement of the server's long-term key with C'.
    pub(super) agreement: Secret,
}

struct JarKeys {
    current: Secret,
    previous: Secret,
    rotated_ms: u64,
    next_number: u64,
}

/// Makes and opens cookies. One for all connections of a process; its keys rotate.
pub struct CookieJar {
    keys: Mutex<JarKeys>,
}

impl fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieJar(..)")
    }
}

impl CookieJar {
    /// A jar with fresh keys. `now_ms` is the caller's monotonic clock, the same for all calls.
    pub fn new(now_ms: u64, random: &mut dyn Random) -> Self {
        let (current, previous) = (fresh(random), fresh(random));
        Self { keys: Mutex::new(JarKeys { current, previous, rotated_ms: now_ms, next_number: 0 }) }
    }

    /// Seals `contents`; gives the number that the connection remembers, and the cookie.
    pub(super) fn seal(
        &self,
        contents: &Contents,
        now_ms: u64,
        random: &mut dyn Random,
    ) -> Result<(u64, [u8; COOKIE_BYTES]), HandshakeError> {
        let (number, key) = self.next(now_ms, random)?;
        let mut cookie = [0; COOKIE_BYTES];
        let (head, tail) = cookie.split_at_mut(8);
        let (body, tag_place) = tail.split_at_mut(PLAIN_BYTES);
        head.copy_from_slice(&number.to_le_bytes());
        let date = now_ms.to_le_bytes();
        let parts: [&[u8]; 5] =
            [&*contents.ephemeral, &contents.client, &*contents.hello_hash, &*contents.agreement, &date];
        let mut rest = &mut *body;
        for part in parts {
            let (place, next) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = next;
        }
        let tag = ChaCha20Poly1305::new((&*key).into())
            .encrypt_in_place_detached(&counter_nonce(number).into(), b"", body)
            .map_err(|_| HandshakeError::Cookie)?;
        tag_place.copy_from_slice(&tag);
        Ok((number, cookie))
    }

    /// Opens the cookie numbered `expected`; anything else is refused.
    pub(super) fn open(
        &self,
        cookie: &[u8; COOKIE_BYTES],
        expected: u64,
        now_ms: u64,
    ) -> Result<Contents, HandshakeError> {
        let (number, sealed) = cookie.split_first_chunk::<8>().ok_or(HandshakeError::Malformed)?;
        if u64::from_le_bytes(*number) != expected {
            return Err(HandshakeError::Cookie);
        }
        let (current, previous) = {
            let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            (keys.current.clone(), keys.previous.clone())
        };
        let plain = [current, previous]
            .iter()
            .find_map(|key| unseal(key, expected, sealed))
            .ok_or(HandshakeError::Cookie)?;
        parse(&plain, now_ms).ok_or(HandshakeError::Cookie)
    }

    // Rotates if it is time, and takes a number.
    fn next(&self, now_ms: u64, random: &mut dyn Random) -> Result<(u64, Secret), HandshakeError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now_ms.saturating_sub(keys.rotated_ms);
        if age >= COOKIE_KEY_MILLISECONDS {
            let retired = std::mem::replace(&mut keys.current, fresh(random));
            // After a long pause even the key in use is too old to open anything.
            keys.previous = if age < 2 * COOKIE_KEY_MILLISECONDS { retired } else { fresh(random) };
            keys.rotated_ms = now_ms;
        }
        let number = keys.next_number;
        keys.next_number = number.checked_add(1).ok_or(HandshakeError::Busy)?;
        Ok((number, keys.current.clone()))
    }
}

fn fresh(random: &mut dyn Random) -> Secret {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    random.fill(&mut *key);
    key
}

fn unseal(key: &Secret, number: u64, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>()?;
    let mut plain = Zeroizing::new(body.to_vec());
    ChaCha20Poly1305::new((&**key).into())
        .decrypt_in_place_detached(&counter_nonce(number).into(), b"", &mut plain, tag.into())
        .ok()?;
    Some(plain)
}

fn parse(plain: &[u8], now_ms: u64) -> Option<Contents> {
    let (ephemeral, rest) = plain.split_first_chunk()?;
    let (client, rest) = rest.split_first_chunk()?;
    let (hello_hash, rest) = rest.split_first_chunk()?;
    let (agreement, rest) = rest.split_first_chunk()?;
    let made_ms = u64::from_le_bytes(rest.try_into().ok()?);
    let fresh = now_ms.checked_sub(made_ms)? <= COOKIE_LIFETIME_MILLISECONDS;
    fresh.then(|| Contents {
        ephemeral: Zeroizing::new(*ephemeral),
        client: *client,
        hello_hash: Zeroizing::new(*hello_hash),
        agreement: Zeroizing::new(*agreement),
    })
}
