//! LAN discovery, udp/1026: a node asks for the broker it belongs to, the broker answers from its address.
//!
//! ```text
//! question  64 bytes: "WHRYQ1" ‖ nonce (8) ‖ first 16 bytes of the broker's public key ‖ zeros
//! answer    18 bytes: "WHRYA1" ‖ nonce (8) ‖ session port (2, big endian) ‖ enrolment port (2, big endian)
//! ```
//! Nothing here is proof of anything. A wrong answer leads to a handshake that fails, because the node knows its broker's key.
//! The answer is shorter than the question and rate limited, so it amplifies nothing (RFC 8085 §3.1).
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use wherry_protocol::{OsRandom, PublicKey, Random};

/// The broker's port.
pub const PORT: u16 = 1026;
const QUESTION_BYTES: usize = 64;
const ANSWER_BYTES: usize = 18;
const QUESTION_MAGIC: &[u8; 6] = b"WHRYQ1";
const ANSWER_MAGIC: &[u8; 6] = b"WHRYA1";
/// How much of the key is shown to the LAN: enough to tell clusters apart.
const KEY_BYTES: usize = 16;
/// How long one question waits for answers.
const WAIT: Duration = Duration::from_millis(1500);
/// Answers a second, to everybody together: a cluster of 254 boards that start at once is served in a few seconds.
const ANSWERS_PER_SECOND: u32 = 50;

/// Where a broker says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// For sessions.
    pub session: SocketAddrV4,
    /// For enrolment.
    pub enrolment: SocketAddrV4,
}

fn question(nonce: [u8; 8], broker: &PublicKey) -> [u8; QUESTION_BYTES] {
    let mut bytes = [0; QUESTION_BYTES];
    let parts = QUESTION_MAGIC.iter().chain(&nonce).chain(broker.0.iter().take(KEY_BYTES));
    for (place, byte) in bytes.iter_mut().zip(parts) {
        *place = *byte;
    }
    bytes
}

/// The nonce, if `bytes` is a question for `me`.
fn read_question(bytes: &[u8], me: &PublicKey) -> Option<[u8; 8]> {
    let rest = bytes.strip_prefix(QUESTION_MAGIC)?;
    let (nonce, rest) = rest.split_first_chunk::<8>()?;
    let (key, _) = rest.split_first_chunk::<KEY_BYTES>()?;
    (bytes.len() == QUESTION_BYTES && me.0.starts_with(key)).then_some(*nonce)
}

fn answer(nonce: [u8; 8], session_port: u16, enrolment_port: u16) -> Vec<u8> {
    let mut bytes = ANSWER_MAGIC.to_vec();
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(&session_port.to_be_bytes());
    bytes.extend_from_slice(&enrolment_port.to_be_bytes());
    bytes
}

fn read_answer(bytes: &[u8], nonce: [u8; 8]) -> Option<(u16, u16)> {
    let rest = bytes.strip_prefix(ANSWER_MAGIC)?.strip_prefix(&nonce)?;
    match *rest {
        [s0, s1, e0, e1] => Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([e0, e1]))),
        _ => None,
    }
}

/// Asks the LAN once for the broker with this key.
///
/// # Errors
/// When the question cannot be sent (no network yet).
pub async fn find(broker: &PublicKey) -> io::Result<Option<Found>> {
    find_at(broker, SocketAddr::from((Ipv4Addr::BROADCAST, PORT))).await
}

async fn find_at(broker: &PublicKey, to: SocketAddr) -> io::Result<Option<Found>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.set_broadcast(true)?;
    let mut nonce = [0; 8];
    OsRandom.fill(&mut nonce);
    socket.send_to(&question(nonce, broker), to).await?;
    let deadline = Instant::now() + WAIT;
    let mut buffer = [0; QUESTION_BYTES];
    while let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await {
        let (length, from) = received?;
        let ports = buffer.get(..length).and_then(|bytes| read_answer(bytes, nonce));
        if let (Some((session, enrolment)), IpAddr::V4(ip)) = (ports, from.ip()) {
            return Ok(Some(Found {
                session: SocketAddrV4::new(ip, session),
                enrolment: SocketAddrV4::new(ip, enrolment),
            }));
        }
    }
    Ok(None)
}

/// Answers questions for `me` for ever.
///
/// # Errors
/// When the socket fails.
pub async fn respond(
    socket: UdpSocket,
    me: PublicKey,
    session_port: u16,
    enrolment_port: u16,
) -> io::Result<()> {
    let mut buffer = [0; QUESTION_BYTES + 1];
    let mut budget = Budget { second: Instant::now(), spent: 0 };
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            // An ICMP error about an earlier answer; it says nothing about the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            received => received?,
        };
        let nonce = buffer.get(..length).and_then(|bytes| read_question(bytes, &me));
        if let Some(nonce) = nonce
            && budget.allows(Instant::now())
            && let Err(error) = socket.send_to(&answer(nonce, session_port, enrolment_port), from).await
        {
            tracing::debug!(%from, "discovery answer not sent: {error}");
        }
    }
}

#[derive(Debug)]
struct Budget {
    second: Instant,
    spent: u32,
}

impl Budget {
    fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            *self = Self { second: now, spent: 0 };
        }
        self.spent += 1;
        self.spent <= ANSWERS_PER_SECOND
    }
}

const _: () = assert!(ANSWER_BYTES < QUESTION_BYTES, "an answer must not amplify");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: PublicKey = PublicKey([5; 32]);

    #[test]
    fn wire_bytes_are_pinned() {
        let bytes = question([1; 8], &KEY);
        assert_eq!(&bytes[..6], b"WHRYQ1");
        assert_eq!((&bytes[6..14], &bytes[14..30], &bytes[30..]), (&[1; 8][..], &[5; 16][..], &[0; 34][..]));
        let bytes = answer([1; 8], 2020, 2021);
        assert_eq!(bytes, *b"WHRYA1\x01\x01\x01\x01\x01\x01\x01\x01\x07\xe4\x07\xe5");
        assert_eq!(bytes.len(), ANSWER_BYTES);
    }

    #[tokio::test]
    async fn a_broker_is_found_by_its_own_nodes_only() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(respond(socket, KEY, 2020, 2021));
        let found = find_at(&KEY, address).await.unwrap().unwrap();
        assert_eq!(found.session, "127.0.0.1:2020".parse().unwrap());
        assert_eq!(found.enrolment, "127.0.0.1:2021".parse().unwrap());
        assert_eq!(find_at(&PublicKey([6; 32]), address).await.unwrap(), None);
        task.abort();
    }

    #[test]
    fn answers_are_limited() {
        let start = Instant::now();
        let mut budget = Budget { second: start, spent: 0 };
        let allowed = (0..1000).filter(|_| budget.allows(start)).count();
        assert_eq!(allowed, ANSWERS_PER_SECOND as usize);
        assert!(budget.allows(start + Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn garbage_is_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(read_question(&bytes, &KEY), None);
            prop_assert_eq!(read_answer(&bytes, [0; 8]), None);
        }
    }
}
