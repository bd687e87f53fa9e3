//! The handshake: HELLO → WELCOME → INITIATE → READY.
//!
//! The pattern of CurveCP and CurveZMQ (ZeroMQ RFC 26) over a byte stream, with four additions: every message is bound
//! by a transcript hash, three agreements instead of one go into the keys, the cookie is good for one connection only,
//! and WELCOME has a random nonce. `docs/protocol.md` gives each byte.
//!
//! State machines without input or output: bytes in, bytes out, each state owns what is valid in it.
mod client;
mod cookie;
mod server;
mod wire;

pub use client::{AwaitWelcome, greet};
pub use cookie::{COOKIE_KEY_MILLISECONDS, COOKIE_LIFETIME_MILLISECONDS, CookieJar};
pub use server::{AwaitInitiate, welcome};
pub(crate) use wire::check_header;
pub use wire::{GENERATION, HEADER_BYTES, HELLO_BYTES, INITIATE_BYTES, Kind, MAGIC, WELCOME_BYTES, notice};

use crate::crypto::{self, Secret};
use crate::session::Keys;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer does not speak this protocol at all.
    #[error("the peer does not speak Wherry's protocol: check host and port")]
    NotWherry,
    /// The peer speaks another generation of the handshake.
    #[error(
        "the peer speaks generation {theirs} of the handshake, this program {ours}: update the older of the two"
    )]
    Generation {
        /// What the peer speaks.
        theirs: u8,
        /// What this crate speaks.
        ours: u8,
    },
    /// The peer is Wherry, but without the secret key that belongs to the expected public key.
    #[error("the peer does not hold the expected key: it is another broker, or somebody pretends to be it")]
    WrongServerKey,
    /// The peer has too much unauthenticated work.
    #[error("the peer is too busy to accept sessions: try again later")]
    Busy,
    /// The cookie was not made by this server for this connection, or is too old.
    #[error("the handshake's cookie does not belong to this connection or is too old")]
    Cookie,
    /// A box did not open: bytes were changed on the way, or the client does not hold the key it claims.
    #[error("a handshake message was damaged, forged or replayed")]
    Forged,
    /// A message has the wrong length, or comes at the wrong time.
    #[error("a handshake message has the wrong form")]
    Malformed,
}

const GREETING: [u8; 24] = crypto::label("wherry 1 greeting");
const TRANSCRIPT: [u8; 24] = crypto::label("wherry 1 transcript");
const MASTER: [u8; 24] = crypto::label("wherry 1 master");
const HELLO_HASH: [u8; 24] = crypto::label("wherry 1 hello hash");
const HELLO_NONCE: [u8; 24] = crypto::label("wherry 1 hello nonce");
const WELCOME_NONCE: &[u8; 8] = b"wherry1W";
const INITIATE_NONCE: &[u8; 8] = b"wherry1I";
const VOUCH_NONCE: &[u8; 8] = b"wherry1V";

/// All that was said before INITIATE: what client and server must agree on.
fn greeting_hash(hello_hash: &[u8], server: &[u8], ephemeral: &[u8], cookie: &[u8]) -> Secret {
    crypto::hash(GREETING, &[hello_hash, server, ephemeral, cookie])
}

/// The three agreements of a handshake.
struct Agreements<'a> {
    /// Client's and server's ephemeral keys: forward secrecy.
    ephemeral: &'a Secret,
    /// Client's ephemeral, server's long-term key: the server is who it should be.
    server: &'a Secret,
    /// Client's long-term, server's ephemeral key: the client is who it says.
    client: &'a Secret,
}

fn session_keys(agreements: &Agreements<'_>, greeting: &Secret, initiate: &[u8]) -> Keys {
    let transcript = crypto::hash(TRANSCRIPT, &[&**greeting, initiate]);
    let Agreements { ephemeral, server, client } = agreements;
    Keys::derive(&crypto::hash(MASTER, &[&***ephemeral, &***server, &***client, &*transcript]))
}
