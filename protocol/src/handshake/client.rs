//! The side that dials.
use super::wire::{HELLO_ZEROS, VOUCH_BYTES, header, take};
use super::{
    Agreements, HELLO_BYTES, HELLO_HASH, HELLO_NONCE, HandshakeError, INITIATE_BYTES, INITIATE_NONCE, Kind,
    VOUCH_NONCE, WELCOME_BYTES, WELCOME_NONCE, check_header, greeting_hash, session_keys,
};
use crate::crypto::{self, Agreement, KEY_BYTES, Secret};
use crate::key::{PublicKey, Random, SecretKey};
use crate::limits::Limits;
use crate::session::{Session, Side};
use std::fmt;

/// HELLO is sent, WELCOME is awaited.
pub struct AwaitWelcome {
    me: SecretKey,
    server: PublicKey,
    ephemeral: SecretKey,
    with_server: Agreement,
    hello_hash: Secret,
}

impl fmt::Debug for AwaitWelcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwaitWelcome({})", self.server.short())
    }
}

/// Begins a handshake with the server whose key is `server`: gives HELLO to send, and the next state.
///
/// Fails only if `server` is no usable key.
pub fn greet(
    me: &SecretKey,
    server: &PublicKey,
    random: &mut dyn Random,
) -> Result<(AwaitWelcome, Vec<u8>), HandshakeError> {
    let ephemeral = SecretKey::generate(random);
    let with_server = crypto::agree(&ephemeral, server).ok_or(HandshakeError::WrongServerKey)?;
    let mut hello = Vec::with_capacity(HELLO_BYTES);
    hello.extend_from_slice(&header(Kind::Hello));
    hello.extend_from_slice(&ephemeral.public().0);
    with_server.seal(HELLO_NONCE, &[0; HELLO_ZEROS], &mut hello);
    let hello_hash = crypto::hash(HELLO_HASH, &[&hello]);
    Ok((AwaitWelcome { me: me.clone(), server: *server, ephemeral, with_server, hello_hash }, hello))
}

impl AwaitWelcome {
    /// Takes WELCOME ([`WELCOME_BYTES`]); gives INITIATE to send, and the session, whose first record from the server
    /// (READY) proves that the server has the same keys.
    pub fn welcome(
        self,
        message: &[u8],
        now_ms: u64,
        limits: &Limits,
    ) -> Result<(Session, Vec<u8>), HandshakeError> {
        let (head, rest) = take(message)?;
        check_header(*head, Kind::Welcome)?;
        if message.len() != WELCOME_BYTES {
            return Err(HandshakeError::Malformed);
        }
        let (half_nonce, sealed) = take(rest)?;
        let plain = self
            .with_server
            .open(crypto::nonce(WELCOME_NONCE, half_nonce), sealed)
            .ok_or(HandshakeError::WrongServerKey)?;
        let (server_ephemeral, cookie) = take::<KEY_BYTES>(&plain)?;
        self.initiate(PublicKey(*server_ephemeral), cookie, now_ms, limits)
    }

    fn initiate(
        self,
        server_ephemeral: PublicKey,
        cookie: &[u8],
        now_ms: u64,
        limits: &Limits,
    ) -> Result<(Session, Vec<u8>), HandshakeError> {
        let forged = HandshakeError::Forged;
        let greeting = greeting_hash(&*self.hello_hash, &self.server.0, &server_ephemeral.0, cookie);
        let ephemeral = crypto::agree(&self.ephemeral, &server_ephemeral).ok_or(forged)?;
        let vouching = crypto::agree(&self.me, &server_ephemeral).ok_or(forged)?;

        let mut plain = Vec::with_capacity(KEY_BYTES + VOUCH_BYTES);
        plain.extend_from_slice(&self.me.public().0);
        vouching.seal(crypto::nonce(VOUCH_NONCE, &crypto::half(&greeting)), &*greeting, &mut plain);

        let mut message = Vec::with_capacity(INITIATE_BYTES);
        message.extend_from_slice(&header(Kind::Initiate));
        message.extend_from_slice(cookie);
        ephemeral.seal(crypto::nonce(INITIATE_NONCE, &crypto::half(&greeting)), &plain, &mut message);

        let agreements = Agreements {
            ephemeral: &ephemeral.secret,
            server: &self.with_server.secret,
            client: &vouching.secret,
        };
        let keys = session_keys(&agreements, &greeting, &message);
        Ok((Session::new(Side::Dialled, self.server, keys, now_ms, limits), message))
    }
}
