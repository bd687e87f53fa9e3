//! New keys inside a session: both ends send an ephemeral key, derive the next keys, and switch each their direction.
//!
//! ```text
//! whoever notices first      REKEY(E) ──────────────►  answers at once: REKEY(E'), SWITCH
//! then                       SWITCH   ──────────────►  old keys are gone on both sides
//! ```
//! Both may begin at the same time: then each takes the other's REKEY as the answer to its own. A side switches its
//! direction right after its own REKEY once it has seen the other's, so records under old and new key never mix.
use super::{Keys, Kind, MIN_MILLISECONDS_PER_KEY, MIN_RECORDS_PER_KEY, RecordError, Session, Side};
use crate::crypto::{self, Counted, Secret};
use crate::key::{PublicKey, Random, SecretKey};

/// How far an exchange of keys has got.
pub(super) enum Exchange {
    /// None under way.
    Idle,
    /// Our REKEY is sent, the peer's awaited.
    Offered(SecretKey),
    /// Our direction has switched; this opens the peer's records once it has switched too.
    Switched(Counted),
}

/// Records that may still come under the old key after an exchange was due: more than any window can have in flight.
const RECORDS_IN_FLIGHT: u64 = 1 << 16;

/// Exchanges that a peer may begin at any time: after a pause (a laptop slept) two clocks may disagree about the last one.
const FREE_EXCHANGES: u64 = 4;

const REKEY: [u8; 24] = crypto::label("wherry 1 rekey");

impl Session {
    fn records(&self) -> u64 {
        self.input.opened().max(self.output.count())
    }

    pub(super) fn rekey_if_due(&mut self, now_ms: u64, random: &mut dyn Random) -> Result<(), RecordError> {
        let records = self.records();
        match self.exchange {
            Exchange::Idle => {
                let old = now_ms.saturating_sub(self.epoch_began_ms) >= self.rekey_milliseconds;
                if (old || records >= self.rekey_records) && self.is_ready() && !self.closed {
                    let secret = self.offer(random);
                    self.exchange = Exchange::Offered(secret);
                }
                Ok(())
            }
            Exchange::Offered(_) | Exchange::Switched(_) => {
                let most = self.rekey_records.saturating_mul(2).saturating_add(RECORDS_IN_FLIGHT);
                if records < most { Ok(()) } else { Err(RecordError::Rekey) }
            }
        }
    }

    fn offer(&mut self, random: &mut dyn Random) -> SecretKey {
        let secret = SecretKey::generate(random);
        self.output.control(Kind::Rekey, &secret.public().0);
        secret
    }

    /// The peer's REKEY has come: answer it if it is not itself an answer, then switch.
    pub(super) fn hear_offer(&mut self, now_ms: u64, random: &mut dyn Random) -> Result<(), RecordError> {
        let theirs = PublicKey(self.input.take_contents()?);
        let mine = match std::mem::replace(&mut self.exchange, Exchange::Idle) {
            Exchange::Idle => {
                self.spend(now_ms)?;
                if self.closed {
                    // Nothing more goes out from here, so nothing can be agreed: the peer's direction keeps its key.
                    return Ok(());
                }
                self.offer(random)
            }
            Exchange::Offered(secret) => secret,
            Exchange::Switched(_) => return Err(RecordError::Rekey),
        };
        self.switch(&mine, &theirs)
    }

    /// Exchanges that the peer begins must be paid for by time or records.
    fn spend(&mut self, now_ms: u64) -> Result<(), RecordError> {
        let by_time = now_ms.saturating_sub(self.began_ms) / MIN_MILLISECONDS_PER_KEY;
        let records =
            self.earlier_records.saturating_add(self.input.opened()).saturating_add(self.output.count());
        let allowed = FREE_EXCHANGES.saturating_add(by_time).saturating_add(records / MIN_RECORDS_PER_KEY);
        self.answered = self.answered.saturating_add(1);
        if self.answered <= allowed { Ok(()) } else { Err(RecordError::Rekey) }
    }

    fn switch(&mut self, mine: &SecretKey, theirs: &PublicKey) -> Result<(), RecordError> {
        let agreed = crypto::agree(mine, theirs).ok_or(RecordError::Rekey)?;
        let (dialled, accepted) = match self.side {
            Side::Dialled => (mine.public(), *theirs),
            Side::Accepted => (*theirs, mine.public()),
        };
        let master: Secret = crypto::hash(REKEY, &[&*self.chain, &*agreed.secret, &dialled.0, &accepted.0]);
        let (chain, sealer, opener) = Keys::derive(&master).split(self.side);
        self.chain = chain;
        if !self.closed {
            self.output.control(Kind::Switch, &[]);
        }
        self.earlier_records = self.earlier_records.saturating_add(self.output.count());
        self.output.replace_key(sealer);
        self.exchange = Exchange::Switched(opener);
        Ok(())
    }

    /// The peer's SWITCH has come: its next record is under the next key.
    pub(super) fn hear_switch(&mut self, now_ms: u64) -> Result<(), RecordError> {
        self.input.expect_empty()?;
        match std::mem::replace(&mut self.exchange, Exchange::Idle) {
            Exchange::Switched(opener) => {
                self.earlier_records = self.earlier_records.saturating_add(self.input.opened());
                self.input.replace_key(opener);
                self.epoch_began_ms = now_ms;
                Ok(())
            }
            Exchange::Idle | Exchange::Offered(_) => Err(RecordError::Rekey),
        }
    }
}
