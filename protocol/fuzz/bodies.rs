//! What the fuzz targets do with their input. Also run, for a bounded time and with stable Rust, by
//! `protocol/tests/smoke_fuzz.rs`.
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use wherry_protocol::discovery::{Asked, Place, Question};
use wherry_protocol::handshake::{
    self, AwaitInitiate, AwaitWelcome, CookieJar, HELLO_BYTES, INITIATE_BYTES, WELCOME_BYTES,
};
use wherry_protocol::message::{
    EnrolReply, EnrolRequest, Event, Frame, FromNode, Hello, HelloReply, NodeCall, Reply, Request, Routed,
    ToNode,
};
use wherry_protocol::session::{Read, Session};
use wherry_protocol::{
    ContainerId, Digest, Limits, Name, PublicKey, Random, Role, SecretKey, Token, WireError,
};

/// Bytes that look random enough, from a counter: the same in each run.
struct Counter(u64);

impl Random for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            self.0 += 1;
            let block = Digest::of(&self.0.to_le_bytes()).0;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
    }
}

struct Keys {
    client: SecretKey,
    server: SecretKey,
    server_public: PublicKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let client = SecretKey::from_bytes([1; 32]);
    let server = SecretKey::from_bytes([2; 32]);
    let server_public = server.public();
    Keys { client, server, server_public }
});

const LIMITS: Limits = Limits { record_bytes: 300, rekey_records: 128, ..Limits::DEFAULT };

struct Shaking {
    jar: CookieJar,
    random: Counter,
}

impl Shaking {
    fn new() -> Self {
        let mut random = Counter(0);
        Self { jar: CookieJar::new(0, &mut random), random }
    }

    fn greet(&mut self) -> (AwaitWelcome, Vec<u8>) {
        handshake::greet(&KEYS.client, &KEYS.server_public, &mut self.random).expect("a good key")
    }

    fn welcome(&mut self, hello: &[u8]) -> Option<(AwaitInitiate, Vec<u8>)> {
        handshake::welcome(hello, &KEYS.server, &self.jar, 0, &mut self.random).ok()
    }

    fn initiate(&self, state: AwaitInitiate, message: &[u8]) -> Option<Session> {
        state.initiate(message, &KEYS.server_public, &self.jar, 0, &LIMITS).ok()
    }
}

/// Changes `good` as `data` says: pairs of position and mask; gives whether anything changed.
fn change(good: &mut Vec<u8>, data: &[u8]) -> bool {
    let before = good.clone();
    for edit in data.chunks_exact(3) {
        let position = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        match (good.len(), edit[2]) {
            (0, _) => {}
            // A few edits change the length.
            (length, 0) => good.truncate(position % length),
            (_, 1) => good.push(edit[0]),
            (length, mask) => good[position % length] ^= mask,
        }
    }
    *good != before
}

/// The first byte says which message is attacked and how; the rest is the message or the changes to a good one.
pub(crate) fn handshake(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let mut world = Shaking::new();
    let raw = how & 4 != 0;
    let forge = |good: Vec<u8>, length: usize| {
        let mut bytes = good;
        if raw {
            // Arbitrary bytes under a good header, so that more than the header check is reached.
            bytes.truncate(8);
            bytes.extend_from_slice(data);
            bytes.resize(length, 0);
            return (bytes, true);
        }
        let changed = change(&mut bytes, data);
        (bytes, changed)
    };
    let (client, hello) = world.greet();
    match how & 3 {
        0 => {
            drop(world.welcome(data));
            let (forged, changed) = forge(hello, HELLO_BYTES);
            // The one bit that X25519 ignores may be changed: HELLO opens, but INITIATE will not.
            let only_ignored = forged.len() == HELLO_BYTES && forged[39] & 0x80 != 0;
            let welcomed = world.welcome(&forged).is_some();
            assert!(!welcomed || !changed || only_ignored, "a forged HELLO was welcomed");
        }
        1 => {
            let (_, welcome) = world.welcome(&hello).expect("a good HELLO");
            let (forged, changed) = forge(welcome, WELCOME_BYTES);
            let session = client.welcome(&forged, 0, &LIMITS);
            assert!(session.is_err() || !changed, "a forged WELCOME was believed");
        }
        2 => {
            let (server, welcome) = world.welcome(&hello).expect("a good HELLO");
            let (_, initiate) = client.welcome(&welcome, 0, &LIMITS).expect("a good WELCOME");
            let (forged, changed) = forge(initiate, INITIATE_BYTES);
            assert!(world.initiate(server, &forged).is_none() || !changed, "a forged INITIATE was believed");
        }
        _ => {
            drop(world.welcome(data));
            drop(client.welcome(data, 0, &LIMITS));
        }
    }
}

fn take_output(session: &mut Session) -> Vec<u8> {
    session.flush();
    let output = session.output().to_vec();
    session.sent(output.len());
    output
}

/// Feeds `bytes` in pieces and reads; gives the plaintext, or `None` once the session has failed.
fn open(session: &mut Session, bytes: &[u8], now_ms: u64, random: &mut Counter) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut buffer = [0; 100];
    let mut rest = bytes;
    loop {
        let space = session.space();
        assert!(!space.is_empty() && space.len() < 10_000, "the buffer has grown out of bounds");
        let count = rest.len().min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        session.received(count);
        rest = &rest[count..];
        loop {
            match session.read(&mut buffer, now_ms, random) {
                Ok(Read::Data(count)) => plain.extend_from_slice(&buffer[..count]),
                Ok(Read::End) => return Some(plain),
                Ok(Read::Starved) => break,
                Err(_) => return None,
            }
        }
        if rest.is_empty() {
            return Some(plain);
        }
    }
}

fn established() -> (Session, Session, Counter) {
    let mut world = Shaking::new();
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).expect("a good HELLO");
    let (mut client, initiate) = client.welcome(&welcome, 0, &LIMITS).expect("a good WELCOME");
    let mut server = world.initiate(server, &initiate).expect("a good INITIATE");
    let ready = take_output(&mut server);
    open(&mut client, &ready, 0, &mut world.random).expect("a good READY");
    (client, server, world.random)
}

/// Steps of two ends that write, flush, wait, close and deliver; the last of which may be forged.
pub(crate) fn record(data: &[u8]) {
    let (client, server, mut random) = established();
    let mut ends = [client, server];
    let mut written: [Vec<u8>; 2] = Default::default();
    let mut heard: [Vec<u8>; 2] = Default::default();
    let mut now_ms = 0u64;
    let mut steps = data.iter().copied();
    while let Some(step) = steps.next() {
        let from = usize::from(step & 1);
        let to = 1 - from;
        match (step >> 1) & 7 {
            0..=2 => {
                let plain = vec![step; usize::from(steps.next().unwrap_or(1)) * 3 + 1];
                if let Ok(count) = ends[from].write(&plain, now_ms, &mut random) {
                    written[from].extend_from_slice(&plain[..count]);
                }
            }
            3 => now_ms += u64::from(steps.next().unwrap_or(0)) * 60_000,
            4 => ends[from].close(),
            5 | 6 => {
                let bytes = take_output(&mut ends[from]);
                match open(&mut ends[to], &bytes, now_ms, &mut random) {
                    Some(plain) => heard[to].extend(plain),
                    None => return assert!(heard[to].len() <= written[from].len()),
                }
            }
            _ => {
                // Forged: whatever comes of it, it is never plaintext that was not written.
                let mut bytes = take_output(&mut ends[from]);
                let rest: Vec<u8> = steps.collect();
                if step & 0x80 != 0 {
                    bytes = rest;
                } else if !change(&mut bytes, &rest) {
                    return;
                }
                if let Some(plain) = open(&mut ends[to], &bytes, now_ms, &mut random) {
                    heard[to].extend(plain);
                }
                assert!(written[from].starts_with(&heard[to]), "forged plaintext was believed");
                return;
            }
        }
        assert!(written[from].starts_with(&heard[to]));
    }
}

/// The first byte says what is attacked and how; the rest is a question and an answer, or the changes to a good one.
pub(crate) fn discovery(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let mut random = Counter(0);
    let question = Question::new(&KEYS.server_public, &mut random).expect("a good key");
    let read = |bytes: &[u8]| Asked::read(bytes, &KEYS.server_public);
    let source = Ipv4Addr::new(192, 168, 50, 2);
    let place = Place { address: source, session_port: 2020, enrolment_port: 2021 };
    let asked = read(question.bytes()).expect("a good question");
    let good = asked.answer(&KEYS.server, &place, &mut random).expect("a good key");
    assert!(good.len() < question.bytes().len(), "an answer amplifies");
    match how & 3 {
        0 => {
            let same = data.get(..54) == question.bytes().get(..54);
            assert!(same || read(data).is_err(), "a forged question was read");
            assert!(question.open(data, source).is_err() || data == good, "a forged answer was believed");
        }
        1 => {
            let mut bytes = question.bytes().to_vec();
            change(&mut bytes, data);
            // What follows the hint is of no meaning.
            let same = bytes.len() == question.bytes().len() && bytes[..54] == question.bytes()[..54];
            assert_eq!(read(&bytes).ok(), same.then_some(asked), "a changed question was read");
        }
        2 => {
            let mut bytes = good;
            let changed = change(&mut bytes, data);
            let believed = question.open(&bytes, source);
            assert_eq!(believed.ok(), (!changed).then_some(place), "a changed answer was believed");
        }
        _ => {
            // Arbitrary bytes after a good beginning, so that the box is reached.
            let mut bytes = good[..14].to_vec();
            bytes.extend_from_slice(data);
            bytes.resize(good.len(), 0);
            assert!(question.open(&bytes, source).is_err() || bytes == good, "a forged answer was believed");
        }
    }
}

fn decode<M: Serialize + DeserializeOwned + Debug + PartialEq>(data: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<M>(data) {
        let again = postcard::to_stdvec(&message).expect("what decodes can be encoded");
        assert_eq!(postcard::from_bytes::<M>(&again).expect("and decoded again"), message);
    }
}

/// Arbitrary bytes as every message, and as text where text is read.
pub(crate) fn message(data: &[u8]) {
    decode::<Request>(data);
    decode::<Reply>(data);
    decode::<Event>(data);
    decode::<NodeCall>(data);
    decode::<FromNode>(data);
    decode::<ToNode>(data);
    decode::<Routed>(data);
    decode::<Frame>(data);
    decode::<Hello>(data);
    decode::<HelloReply>(data);
    decode::<EnrolRequest>(data);
    decode::<EnrolReply>(data);
    decode::<WireError>(data);
    decode::<Role>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse::<Token>().as_ref(), Ok(&token));
    }
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(id) = text.parse::<ContainerId>() {
        assert_eq!(id.to_string().parse::<ContainerId>(), Ok(id));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string().parse::<PublicKey>(), Ok(key));
    }
}
