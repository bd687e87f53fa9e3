//! A sealed byte pipe: records with counter nonces, an authenticated end, and new keys every hour.
//!
//! Without input or output: plaintext in ([`Session::write`]) makes bytes to send ([`Session::output`]); bytes received
//! ([`Session::space`], [`Session::received`]) make plaintext ([`Session::read`]). Time is a monotonic count of
//! milliseconds, passed in. Buffers hold two records each way at most.
mod input;
mod output;
mod rekey;

use crate::crypto::{self, Counted, Secret};
use crate::key::{PublicKey, Random};
use crate::limits::Limits;
use input::Input;
use output::Output;
use rekey::Exchange;
use std::fmt;

/// Which end of a session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that dialled.
    Dialled,
    /// The end that accepted.
    Accepted,
}

/// Why a session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record does not open: changed, replayed, reordered, dropped or reflected on the way.
    #[error("record {number} was damaged or is out of sequence: the connection is not what the peer sent")]
    Forged {
        /// Count of records under the present key.
        number: u64,
    },
    /// A record announces more bytes than allowed.
    #[error("a record of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Announced.
        bytes: usize,
        /// Allowed.
        limit: usize,
    },
    /// A record that opens but makes no sense.
    #[error("the peer sent a record that makes no sense here")]
    Malformed,
    /// The peer exchanges keys too often, or not at all.
    #[error("the peer does not keep to the rules for exchanging keys")]
    Rekey,
    /// The connection ended without the sealed end mark: it was cut, perhaps on purpose.
    #[error("the connection was cut")]
    Truncated,
    /// This end has already said that nothing more comes.
    #[error("the session is closed")]
    Closed,
}

/// Bytes of a record's length field.
pub(crate) const LENGTH_BYTES: usize = 2;
/// Bytes of a record beside its contents: length, kind, tag.
pub(crate) const OVERHEAD_BYTES: usize = LENGTH_BYTES + 1 + crypto::TAG_BYTES;
/// Largest contents that the length field can carry.
const MAX_CONTENTS_BYTES: usize = u16::MAX as usize - 1 - crypto::TAG_BYTES;
/// What a peer must let pass for each exchange of keys that it begins: so many records, or so much time. An exchange
/// costs as much work as half a handshake.
const MIN_RECORDS_PER_KEY: u64 = 64;
const MIN_MILLISECONDS_PER_KEY: u64 = 1_000;

/// What a record holds: its first byte, sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The accepting side has the same keys. Its first record, and only that. Empty.
    Ready = 1,
    /// Plaintext; never empty.
    Data = 2,
    /// Nothing more comes in this direction. Empty.
    Close = 3,
    /// An ephemeral key for the next keys.
    Rekey = 4,
    /// From the next record on this direction uses the next key. Empty.
    Switch = 5,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Ready, Self::Data, Self::Close, Self::Rekey, Self::Switch];

    fn read(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The keys of one epoch.
pub(crate) struct Keys {
    chain: Secret,
    dialled: Secret,
    accepted: Secret,
}

impl Keys {
    pub(crate) fn derive(master: &Secret) -> Self {
        let key = |label| crypto::hash(label, &[&**master]);
        Self {
            chain: key(crypto::label("wherry 1 chain")),
            dialled: key(crypto::label("wherry 1 dialled")),
            accepted: key(crypto::label("wherry 1 accepted")),
        }
    }

    fn split(self, side: Side) -> (Secret, Counted, Counted) {
        let (dialled, accepted) = (Counted::new(&self.dialled), Counted::new(&self.accepted));
        match side {
            Side::Dialled => (self.chain, dialled, accepted),
            Side::Accepted => (self.chain, accepted, dialled),
        }
    }
}

/// What has been heard from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Nothing yet; READY must come first (dialling side).
    Nothing,
    /// Records flow.
    Ready,
    /// The peer said that nothing more comes.
    Close,
}

/// What [`Session::read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes of plaintext were written into the buffer.
    Data(usize),
    /// The peer ended its direction in order.
    End,
    /// More bytes from the transport are needed.
    Starved,
}

/// One end of an established session.
pub struct Session {
    side: Side,
    peer: PublicKey,
    chain: Secret,
    input: Input,
    output: Output,
    exchange: Exchange,
    heard: Heard,
    closed: bool,
    fault: Option<RecordError>,
    began_ms: u64,
    epoch_began_ms: u64,
    /// Exchanges of keys that the peer began.
    answered: u64,
    /// Records of both directions under keys that are gone.
    earlier_records: u64,
    rekey_milliseconds: u64,
    rekey_records: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("side", &self.side)
            .field("peer", &self.peer)
            .field("heard", &self.heard)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(side: Side, peer: PublicKey, keys: Keys, now_ms: u64, limits: &Limits) -> Self {
        let record_bytes = limits.record_bytes.clamp(1, MAX_CONTENTS_BYTES);
        let (chain, sealer, opener) = keys.split(side);
        let mut session = Self {
            side,
            peer,
            chain,
            input: Input::new(opener, record_bytes),
            output: Output::new(sealer, record_bytes),
            exchange: Exchange::Idle,
            heard: match side {
                Side::Dialled => Heard::Nothing,
                Side::Accepted => Heard::Ready,
            },
            closed: false,
            fault: None,
            began_ms: now_ms,
            epoch_began_ms: now_ms,
            answered: 0,
            earlier_records: 0,
            rekey_milliseconds: limits.rekey_seconds.saturating_mul(1000).max(MIN_MILLISECONDS_PER_KEY),
            rekey_records: limits.rekey_records.max(2 * MIN_RECORDS_PER_KEY),
        };
        if side == Side::Accepted {
            session.output.control(Kind::Ready, &[]);
        }
        session
    }

    /// The other end's proven key.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Whether the accepting side has proven that it has the same keys (always true on the accepting side).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.heard != Heard::Nothing
    }

    /// Takes plaintext; gives how many bytes were taken: 0 while the output is full.
    pub fn write(
        &mut self,
        plain: &[u8],
        now_ms: u64,
        random: &mut dyn Random,
    ) -> Result<usize, RecordError> {
        if self.closed {
            return Err(RecordError::Closed);
        }
        self.check()?;
        self.rekey_if_due(now_ms, random)?;
        Ok(self.output.append(plain))
    }

    /// Seals what was written so far, so that it can be sent.
    pub fn flush(&mut self) {
        self.output.finish();
    }

    /// Says that nothing more comes from here. Again is the same as once.
    pub fn close(&mut self) {
        if !self.closed && self.fault.is_none() {
            self.closed = true;
            self.output.control(Kind::Close, &[]);
        }
    }

    /// Bytes ready to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.sealed()
    }

    /// The first `count` bytes of [`Session::output`] were sent.
    pub fn sent(&mut self, count: usize) {
        self.output.sent(count);
    }

    /// Where to put bytes from the transport; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.input.space()
    }

    /// So many bytes were put into [`Session::space`].
    pub fn received(&mut self, count: usize) {
        self.input.received(count);
    }

    /// The transport has nothing more for now.
    pub fn starved(&mut self) {
        self.input.rest();
    }

    /// The transport has ended: fine after the peer's end mark, [`RecordError::Truncated`] before.
    pub fn transport_ended(&self) -> Result<(), RecordError> {
        if self.heard == Heard::Close { Ok(()) } else { Err(self.fault.unwrap_or(RecordError::Truncated)) }
    }

    /// Gives plaintext. May put an answer to the peer's key exchange into the output.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        now_ms: u64,
        random: &mut dyn Random,
    ) -> Result<Read, RecordError> {
        self.check()?;
        let result = self.read_records(buffer, now_ms, random);
        if let Err(error) = result {
            self.fault = Some(error);
        }
        result
    }

    // A session that has failed once stays failed.
    fn check(&self) -> Result<(), RecordError> {
        self.fault.map_or(Ok(()), Err)
    }

    fn read_records(
        &mut self,
        buffer: &mut [u8],
        now_ms: u64,
        random: &mut dyn Random,
    ) -> Result<Read, RecordError> {
        loop {
            if self.input.has_plain() {
                return Ok(Read::Data(self.input.take(buffer)));
            }
            if self.heard == Heard::Close {
                return Ok(Read::End);
            }
            match self.input.next()? {
                Some(kind) => self.hear(kind, now_ms, random)?,
                None => return Ok(Read::Starved),
            }
        }
    }

    fn hear(&mut self, kind: Kind, now_ms: u64, random: &mut dyn Random) -> Result<(), RecordError> {
        match (self.heard, kind) {
            (Heard::Nothing, Kind::Ready) => {
                self.input.expect_empty()?;
                self.heard = Heard::Ready;
                Ok(())
            }
            (Heard::Ready, Kind::Data) => {
                if !self.input.has_plain() {
                    return Err(RecordError::Malformed);
                }
                self.rekey_if_due(now_ms, random)
            }
            (Heard::Ready, Kind::Close) => {
                self.input.expect_empty()?;
                self.heard = Heard::Close;
                Ok(())
            }
            (Heard::Ready, Kind::Rekey) => self.hear_offer(now_ms, random),
            (Heard::Ready, Kind::Switch) => self.hear_switch(now_ms),
            (Heard::Nothing, Kind::Data | Kind::Close | Kind::Rekey | Kind::Switch)
            | (Heard::Ready, Kind::Ready)
            | (Heard::Close, _) => Err(RecordError::Malformed),
        }
    }
}
