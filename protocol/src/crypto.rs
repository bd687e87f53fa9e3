//! The few cryptographic steps everything else is made of: X25519 boxes, one key derivation, sealed records.
use crate::key::{PublicKey, SecretKey};
use chacha20poly1305::{AeadInPlace as _, ChaCha20Poly1305, KeyInit as _};
use crypto_box::ChaChaBox;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Bytes of a Poly1305 tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of every key and hash here.
pub(crate) const KEY_BYTES: usize = 32;

/// A secret that is wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// A 24-byte label: domain separation for hashes and fixed box nonces. Padded with zeros.
pub(crate) const fn label(text: &str) -> [u8; 24] {
    let bytes = text.as_bytes();
    assert!(bytes.len() <= 24, "a label has at most 24 bytes");
    let mut out = [0; 24];
    let mut i = 0;
    while i < bytes.len() {
        out[i] = bytes[i];
        i += 1;
    }
    out
}

/// Never a nonce of a real box, so its key stream is free to be exported as a secret.
const EXPORT: [u8; 24] = label("wherry 1 exported secret");

/// What [`EXPORT`] yields when the shared point is zero, that is when the peer's key has low order and the "secret"
/// is known to everybody (RFC 7748 §6.1 asks to check).
const EXPORT_OF_ZERO: [u8; KEY_BYTES] = [
    0xc8, 0x46, 0xa9, 0x90, 0x17, 0x54, 0x85, 0xac, 0x2f, 0x3f, 0x0d, 0xb4, 0x42, 0xb6, 0xf1, 0x28, 0x85,
    0x18, 0x4d, 0xfd, 0x2e, 0x63, 0xe6, 0xae, 0x63, 0x10, 0x30, 0x27, 0x32, 0x61, 0xf4, 0xf2,
];

/// A Diffie-Hellman agreement between two X25519 keys: a box to send things in, and a secret of its own.
pub(crate) struct Agreement {
    boxed: ChaChaBox,
    /// Independent of everything the box ever seals.
    pub(crate) secret: Secret,
}

/// Agrees; `None` if the other key is one of the few of low order.
pub(crate) fn agree(mine: &SecretKey, theirs: &PublicKey) -> Option<Agreement> {
    let boxed = ChaChaBox::new(&theirs.0.into(), &crypto_box::SecretKey::from(*mine.as_bytes()));
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    boxed.encrypt_in_place_detached(&EXPORT.into(), b"", &mut *secret).ok()?;
    let low_order = bool::from(secret.ct_eq(&EXPORT_OF_ZERO));
    (!low_order).then_some(Agreement { boxed, secret })
}

impl Agreement {
    /// Appends `tag ‖ ciphertext` of `plain` to `out` (NaCl's order).
    pub(crate) fn seal(&self, nonce: [u8; 24], plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + TAG_BYTES, 0);
        out.extend_from_slice(plain);
        let (head, body) = out.split_at_mut(start + TAG_BYTES);
        // Sealing fails only beyond 2^38 bytes; then the tag stays zero and the peer refuses it.
        if let Ok(tag) = self.boxed.encrypt_in_place_detached(&nonce.into(), b"", body)
            && let Some(place) = head.get_mut(start..)
        {
            place.copy_from_slice(&tag);
        }
    }

    /// Opens `tag ‖ ciphertext`.
    pub(crate) fn open(&self, nonce: [u8; 24], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (tag, body) = sealed.split_at_checked(TAG_BYTES)?;
        let mut plain = Zeroizing::new(body.to_vec());
        let tag: [u8; TAG_BYTES] = tag.try_into().ok()?;
        self.boxed.decrypt_in_place_detached(&nonce.into(), b"", &mut plain, &tag.into()).ok()?;
        Some(plain)
    }
}

/// A nonce of an 8-byte word and 16 bytes that differ with each message.
pub(crate) fn nonce(word: &[u8; 8], rest: &[u8; 16]) -> [u8; 24] {
    let mut out = [0; 24];
    let (head, tail) = out.split_at_mut(8);
    head.copy_from_slice(word);
    tail.copy_from_slice(rest);
    out
}

/// The first 16 bytes of a hash.
pub(crate) fn half(hash: &[u8; KEY_BYTES]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash[..16]);
    out
}

/// SHA-256 over a label and parts of known lengths: transcript hash and key derivation.
pub(crate) fn hash(label: [u8; 24], parts: &[&[u8]]) -> Secret {
    let mut hasher = Sha256::new();
    hasher.update(label);
    parts.iter().for_each(|part| hasher.update(part));
    Zeroizing::new(hasher.finalize().into())
}

/// RFC 8439 with a counter as nonce: never the same one twice.
pub(crate) struct Counted {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl Counted {
    pub(crate) fn new(key: &Secret) -> Self {
        Self { cipher: ChaCha20Poly1305::new((&**key).into()), counter: 0 }
    }

    /// Records sealed or opened so far.
    pub(crate) fn count(&self) -> u64 {
        self.counter
    }

    fn next_nonce(&mut self) -> Option<[u8; 12]> {
        let nonce = counter_nonce(self.counter);
        self.counter = self.counter.checked_add(1)?;
        Some(nonce)
    }

    /// Encrypts in place. `None` once the counter is used up, which rekeying prevents.
    pub(crate) fn seal(&mut self, aad: &[u8], body: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let nonce = self.next_nonce()?;
        self.cipher.encrypt_in_place_detached(&nonce.into(), aad, body).ok().map(Into::into)
    }

    /// Decrypts in place; `None` if it was not sealed with this key, at this place in the sequence, with this `aad`.
    pub(crate) fn open(&mut self, aad: &[u8], body: &mut [u8], tag: [u8; TAG_BYTES]) -> Option<()> {
        let nonce = self.next_nonce()?;
        self.cipher.decrypt_in_place_detached(&nonce.into(), aad, body, &tag.into()).ok()
    }
}

/// `counter` as an RFC 8439 nonce: four zero bytes, then little endian.
pub(crate) fn counter_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_point_is_recognised() {
        let mine = SecretKey::from_bytes([7; 32]);
        let boxed = ChaChaBox::new(&[0; 32].into(), &crypto_box::SecretKey::from([9; 32]));
        let mut stream = [0; KEY_BYTES];
        boxed.encrypt_in_place_detached(&EXPORT.into(), b"", &mut stream).unwrap();
        assert_eq!(stream, EXPORT_OF_ZERO);
        let mut one = [0; 32];
        one[0] = 1;
        for low_order in [[0; 32], one] {
            assert!(agree(&mine, &PublicKey(low_order)).is_none());
        }
        assert!(agree(&mine, &SecretKey::from_bytes([8; 32]).public()).is_some());
    }
}
