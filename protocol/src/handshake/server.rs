//! The side that accepts.
use super::cookie::{COOKIE_BYTES, Contents, CookieJar};
use super::wire::{header, take};
use super::{
    Agreements, HELLO_BYTES, HELLO_HASH, HELLO_NONCE, HandshakeError, INITIATE_BYTES, INITIATE_NONCE, Kind,
    VOUCH_NONCE, WELCOME_BYTES, WELCOME_NONCE, check_header, greeting_hash, session_keys,
};
use crate::crypto::{self, KEY_BYTES};
use crate::key::{PublicKey, Random, SecretKey};
use crate::limits::Limits;
use crate::session::{Session, Side};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// WELCOME is sent, INITIATE is awaited: all that a connection keeps is the number of its cookie.
#[derive(Debug)]
pub struct AwaitInitiate {
    number: u64,
}

/// Takes HELLO ([`HELLO_BYTES`]); gives WELCOME to send, and the next state. On an error, send
/// [`super::notice`] if there is one, and close.
pub fn welcome(
    message: &[u8],
    me: &SecretKey,
    jar: &CookieJar,
    now_ms: u64,
    random: &mut dyn Random,
) -> Result<(AwaitInitiate, Vec<u8>), HandshakeError> {
    let (head, rest) = take(message)?;
    check_header(*head, Kind::Hello)?;
    if message.len() != HELLO_BYTES {
        return Err(HandshakeError::Malformed);
    }
    let (client, sealed) = take::<KEY_BYTES>(rest)?;
    let with_client = crypto::agree(me, &PublicKey(*client)).ok_or(HandshakeError::Forged)?;
    let zeros = with_client.open(HELLO_NONCE, sealed).ok_or(HandshakeError::WrongServerKey)?;
    if zeros.iter().any(|&byte| byte != 0) {
        return Err(HandshakeError::Malformed);
    }

    let ephemeral = SecretKey::generate(random);
    let contents = Contents {
        ephemeral: Zeroizing::new(*ephemeral.as_bytes()),
        client: *client,
        hello_hash: crypto::hash(HELLO_HASH, &[message]),
        agreement: with_client.secret.clone(),
    };
    let (number, cookie) = jar.seal(&contents, now_ms, random)?;
    let mut half_nonce = [0; 16];
    random.fill(&mut half_nonce);

    let mut plain = ephemeral.public().0.to_vec();
    plain.extend_from_slice(&cookie);
    let mut welcome = Vec::with_capacity(WELCOME_BYTES);
    welcome.extend_from_slice(&header(Kind::Welcome));
    welcome.extend_from_slice(&half_nonce);
    with_client.seal(crypto::nonce(WELCOME_NONCE, &half_nonce), &plain, &mut welcome);
    Ok((AwaitInitiate { number }, welcome))
}

impl AwaitInitiate {
    /// Takes INITIATE ([`INITIATE_BYTES`]); gives the session, with READY in its output. The peer's key is proven.
    pub fn initiate(
        self,
        message: &[u8],
        me: &PublicKey,
        jar: &CookieJar,
        now_ms: u64,
        limits: &Limits,
    ) -> Result<Session, HandshakeError> {
        let (head, rest) = take(message)?;
        check_header(*head, Kind::Initiate)?;
        if message.len() != INITIATE_BYTES {
            return Err(HandshakeError::Malformed);
        }
        let (cookie, sealed) = take::<COOKIE_BYTES>(rest)?;
        let contents = jar.open(cookie, self.number, now_ms)?;

        let forged = HandshakeError::Forged;
        let my_ephemeral = SecretKey::from_bytes(*contents.ephemeral);
        let greeting = greeting_hash(&*contents.hello_hash, &me.0, &my_ephemeral.public().0, cookie);
        let ephemeral = crypto::agree(&my_ephemeral, &PublicKey(contents.client)).ok_or(forged)?;
        let plain =
            ephemeral.open(crypto::nonce(INITIATE_NONCE, &crypto::half(&greeting)), sealed).ok_or(forged)?;

        let (client, vouch) = take::<KEY_BYTES>(&plain)?;
        let client = PublicKey(*client);
        let vouching = crypto::agree(&my_ephemeral, &client).ok_or(forged)?;
        let vouched =
            vouching.open(crypto::nonce(VOUCH_NONCE, &crypto::half(&greeting)), vouch).ok_or(forged)?;
        if !bool::from(vouched.ct_eq(&*greeting)) {
            return Err(forged);
        }

        let agreements = Agreements {
            ephemeral: &ephemeral.secret,
            server: &contents.agreement,
            client: &vouching.secret,
        };
        let keys = session_keys(&agreements, &greeting, message);
        Ok(Session::new(Side::Accepted, client, keys, now_ms, limits))
    }
}
