//! What the tests of handshake and records share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test may panic; each test binary uses a part of this"
)]
use wherry_protocol::handshake::{self, AwaitInitiate, AwaitWelcome, CookieJar, HandshakeError};
use wherry_protocol::session::{Read, RecordError, Session};
use wherry_protocol::{Digest, Limits, PublicKey, Random, SecretKey};

/// Reproducible bytes: SHA-256 over a seed and a counter.
pub struct Seeded {
    seed: u64,
    counter: u64,
    rest: Vec<u8>,
}

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self { seed, counter: 0, rest: Vec::new() }
    }

    pub fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % bound as u64) as usize
    }
}

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.rest.is_empty() {
                let block = [self.seed.to_le_bytes(), self.counter.to_le_bytes()].concat();
                self.rest = Digest::of(&block).0.to_vec();
                self.counter += 1;
            }
            *byte = self.rest.remove(0);
        }
    }
}

/// A server, its cookies, a client and a clock.
pub struct World {
    pub random: Seeded,
    pub client: SecretKey,
    pub server: SecretKey,
    pub jar: CookieJar,
    pub now_ms: u64,
    pub limits: Limits,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Seeded::new(seed);
        let client = SecretKey::generate(&mut random);
        let server = SecretKey::generate(&mut random);
        let jar = CookieJar::new(1_000, &mut random);
        Self { random, client, server, jar, now_ms: 1_000, limits: Limits::DEFAULT }
    }

    pub fn greet(&mut self) -> (AwaitWelcome, Vec<u8>) {
        handshake::greet(&self.client, &self.server.public(), &mut self.random).unwrap()
    }

    pub fn welcome(&mut self, hello: &[u8]) -> Result<(AwaitInitiate, Vec<u8>), HandshakeError> {
        handshake::welcome(hello, &self.server, &self.jar, self.now_ms, &mut self.random)
    }

    pub fn initiate(&self, state: AwaitInitiate, message: &[u8]) -> Result<Session, HandshakeError> {
        state.initiate(message, &self.server.public(), &self.jar, self.now_ms, &self.limits)
    }

    /// HELLO to INITIATE; READY is still in the server's output.
    pub fn shake(&mut self) -> (Session, Session) {
        let (client, hello) = self.greet();
        let (server, welcome) = self.welcome(&hello).unwrap();
        let (client, initiate) = client.welcome(&welcome, self.now_ms, &self.limits).unwrap();
        let server = self.initiate(server, &initiate).unwrap();
        (client, server)
    }

    /// An established session.
    pub fn pair(&mut self) -> (Session, Session) {
        let (mut client, mut server) = self.shake();
        let ready = drain(&mut server);
        feed(&mut client, &ready);
        assert_eq!(self.read(&mut client), Ok((Vec::new(), Read::Starved)));
        assert!(client.is_ready());
        (client, server)
    }

    /// Writes all of `plain`, and gives the records.
    pub fn seal(&mut self, session: &mut Session, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = plain;
        while !rest.is_empty() {
            let taken = session.write(rest, self.now_ms, &mut self.random).unwrap();
            rest = &rest[taken..];
            out.extend(drain(session));
        }
        session.flush();
        out.extend(drain(session));
        out
    }

    /// Reads all there is.
    pub fn read(&mut self, session: &mut Session) -> Result<(Vec<u8>, Read), RecordError> {
        let mut plain = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match session.read(&mut buffer, self.now_ms, &mut self.random)? {
                Read::Data(count) => plain.extend_from_slice(&buffer[..count]),
                end @ (Read::End | Read::Starved) => return Ok((plain, end)),
            }
        }
    }

    /// Feeds `bytes` and reads all there is.
    pub fn open(&mut self, session: &mut Session, bytes: &[u8]) -> Result<(Vec<u8>, Read), RecordError> {
        let mut plain = Vec::new();
        for chunk in bytes.chunks(700) {
            feed(session, chunk);
            let (more, read) = self.read(session)?;
            plain.extend(more);
            if read == Read::End {
                return Ok((plain, read));
            }
        }
        Ok((plain, Read::Starved))
    }
}

/// Takes all sealed bytes.
pub fn drain(session: &mut Session) -> Vec<u8> {
    let out = session.output().to_vec();
    session.sent(out.len());
    out
}

/// Hands bytes to a session, as much at a time as it has room for.
pub fn feed(session: &mut Session, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let space = session.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        session.received(count);
        bytes = &bytes[count..];
    }
}

/// Splits records by their length fields.
pub fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = 2 + usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        records.push(bytes[..length].to_vec());
        bytes = &bytes[length..];
    }
    records
}

pub fn nobody() -> PublicKey {
    SecretKey::from_bytes([0x55; 32]).public()
}
