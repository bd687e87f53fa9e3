//! A second implementation of the client, written from `docs/protocol.md` with nothing of this crate but its constants
//! left out: it completes a handshake with the real server, and tries what a dishonest client could.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use chacha20poly1305::{AeadInPlace as _, ChaCha20Poly1305, KeyInit as _};
use common::{World, drain};
use crypto_box::{ChaChaBox, PublicKey, SecretKey};
use sha2::{Digest as _, Sha256};
use wherry_protocol::handshake::HandshakeError;
use wherry_protocol::session::{Read, Session};

fn padded(text: &str) -> [u8; 24] {
    let mut out = [0; 24];
    out[..text.len()].copy_from_slice(text.as_bytes());
    out
}

fn nonce(word: &str, rest: &[u8]) -> [u8; 24] {
    let mut out = padded(word);
    out[8..].copy_from_slice(&rest[..16]);
    out
}

fn sha(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut all = padded(label).to_vec();
    parts.iter().for_each(|part| all.extend_from_slice(part));
    Sha256::digest(&all).into()
}

/// crypto_box_curve25519xchacha20poly1305_easy of libsodium: tag, then ciphertext.
fn seal(mine: &SecretKey, theirs: &PublicKey, nonce: [u8; 24], plain: &[u8]) -> Vec<u8> {
    let mut body = plain.to_vec();
    let tag = ChaChaBox::new(theirs, mine).encrypt_in_place_detached(&nonce.into(), b"", &mut body).unwrap();
    [tag.as_slice(), &body].concat()
}

fn open(mine: &SecretKey, theirs: &PublicKey, nonce: [u8; 24], sealed: &[u8]) -> Option<Vec<u8>> {
    let mut body = sealed[16..].to_vec();
    let tag: [u8; 16] = sealed[..16].try_into().unwrap();
    ChaChaBox::new(theirs, mine)
        .decrypt_in_place_detached(&nonce.into(), b"", &mut body, &tag.into())
        .ok()
        .map(|()| body)
}

fn exported(mine: &SecretKey, theirs: &PublicKey) -> [u8; 32] {
    seal(mine, theirs, padded("wherry 1 exported secret"), &[0; 32])[16..].try_into().unwrap()
}

fn hello(ephemeral: &SecretKey, server: &PublicKey) -> Vec<u8> {
    let sealed = seal(ephemeral, server, padded("wherry 1 hello nonce"), &[0; 176]);
    [b"WHERRY\x01H", &ephemeral.public_key().to_bytes()[..], &sealed].concat()
}

/// What the client claims in INITIATE: an honest one claims the key it has.
struct Claim<'a> {
    public: [u8; 32],
    vouching: &'a SecretKey,
}

struct Keys {
    dialled: [u8; 32],
    accepted: [u8; 32],
}

fn initiate(
    ephemeral: &SecretKey,
    server: &PublicKey,
    hello: &[u8],
    welcome: &[u8],
    claim: &Claim<'_>,
) -> (Vec<u8>, Keys) {
    assert_eq!(&welcome[..8], b"WHERRY\x01W");
    let plain = open(ephemeral, server, nonce("wherry1W", &welcome[8..24]), &welcome[24..]).unwrap();
    let (server_ephemeral, cookie) = (PublicKey::from_slice(&plain[..32]).unwrap(), &plain[32..]);
    let hello_hash = sha("wherry 1 hello hash", &[hello]);
    let greeting =
        sha("wherry 1 greeting", &[&hello_hash, server.as_bytes(), server_ephemeral.as_bytes(), cookie]);
    let vouch = seal(claim.vouching, &server_ephemeral, nonce("wherry1V", &greeting), &greeting);
    let contents = [&claim.public[..], &vouch].concat();
    let sealed = seal(ephemeral, &server_ephemeral, nonce("wherry1I", &greeting), &contents);
    let message = [b"WHERRY\x01I", cookie, &sealed].concat();

    let transcript = sha("wherry 1 transcript", &[&greeting, &message]);
    let master = sha(
        "wherry 1 master",
        &[
            &exported(ephemeral, &server_ephemeral),
            &exported(ephemeral, server),
            &exported(claim.vouching, &server_ephemeral),
            &transcript,
        ],
    );
    let key = |label| sha(label, &[&master]);
    (message, Keys { dialled: key("wherry 1 dialled"), accepted: key("wherry 1 accepted") })
}

fn seal_record(key: &[u8; 32], counter: u64, kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend_from_slice(contents);
    let length = u16::try_from(body.len() + 16).unwrap().to_le_bytes();
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let cipher = ChaCha20Poly1305::new(key.into());
    let tag = cipher.encrypt_in_place_detached(&nonce.into(), &length, &mut body).unwrap();
    [&length[..], &body, &tag].concat()
}

fn open_record(key: &[u8; 32], counter: u64, record: &[u8]) -> Vec<u8> {
    let (length, sealed) = record.split_at(2);
    let (body, tag) = sealed.split_at(sealed.len() - 16);
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let mut plain = body.to_vec();
    let tag: [u8; 16] = tag.try_into().unwrap();
    let cipher = ChaCha20Poly1305::new(key.into());
    cipher.decrypt_in_place_detached(&nonce.into(), length, &mut plain, &tag.into()).unwrap();
    plain
}

fn secret(byte: u8) -> SecretKey {
    SecretKey::from([byte; 32])
}

fn shake(world: &mut World, claim: &Claim<'_>) -> (Result<Session, HandshakeError>, Keys) {
    let server = PublicKey::from(world.server.public().0);
    let ephemeral = secret(0x0e);
    let hello = hello(&ephemeral, &server);
    let (state, welcome) = world.welcome(&hello).unwrap();
    let (message, keys) = initiate(&ephemeral, &server, &hello, &welcome, claim);
    (world.initiate(state, &message), keys)
}

#[test]
fn a_client_written_from_the_specification_is_understood() {
    let mut world = World::new(1);
    let me = secret(0x0c);
    let claim = Claim { public: me.public_key().to_bytes(), vouching: &me };
    let (session, keys) = shake(&mut world, &claim);
    let mut session = session.unwrap();
    assert_eq!(session.peer().0, me.public_key().to_bytes());
    assert_eq!(open_record(&keys.accepted, 0, &drain(&mut session)), [1], "READY");

    let record = seal_record(&keys.dialled, 0, 2, b"ping");
    assert_eq!(world.open(&mut session, &record).unwrap().0, b"ping");
    let answer = world.seal(&mut session, b"pong");
    assert_eq!(open_record(&keys.accepted, 1, &answer), b"\x02pong");
    let close = seal_record(&keys.dialled, 1, 3, b"");
    assert_eq!(world.open(&mut session, &close).unwrap().1, Read::End);
}

#[test]
fn nobody_can_claim_a_key_whose_secret_he_does_not_hold() {
    let mut world = World::new(2);
    let (thief, victim) = (secret(0x0d), world.client.public());
    let claim = Claim { public: victim.0, vouching: &thief };
    assert_eq!(shake(&mut world, &claim).0.unwrap_err(), HandshakeError::Forged);
}

#[test]
fn a_vouch_that_proves_nothing_is_refused() {
    // A long-term key of low order: its agreement with any key is known to everybody.
    let mut world = World::new(3);
    let claim = Claim { public: [0; 32], vouching: &secret(0x0d) };
    assert_eq!(shake(&mut world, &claim).0.unwrap_err(), HandshakeError::Forged);
}

#[test]
fn records_that_open_but_make_no_sense_end_the_session() {
    let me = secret(0x0c);
    let claim = Claim { public: me.public_key().to_bytes(), vouching: &me };
    let bad: [(u8, &[u8]); 9] = [
        (0, b"unknown kind"),
        (6, b""),
        (255, b""),
        (1, b""),
        (2, b""),
        (3, b"a word with the end"),
        (4, b"a short key"),
        (4, &[0; 32]),
        (5, b""),
    ];
    for (kind, contents) in bad {
        let mut world = World::new(4);
        let (session, keys) = shake(&mut world, &claim);
        let mut session = session.unwrap();
        let record = seal_record(&keys.dialled, 0, kind, contents);
        assert!(world.open(&mut session, &record).is_err(), "kind {kind}");
    }
}
