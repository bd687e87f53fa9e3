//! LAN discovery, udp/1026: a node that knows its broker's key asks who has it; the answer proves it.
//!
//! ```text
//! question  64 bytes: "WHRYQ2" ‖ E (32) ‖ hint (16) ‖ zeros (10)
//! answer    54 bytes: "WHRYA2" ‖ first 8 bytes of E ‖ N (16) ‖ box(b, E, "wherry1D" ‖ N, address (4) ‖ ports (2 × 2))
//! ```
//! E is an ephemeral key, new for each question: only who holds the broker's secret key can seal for it, and what was sealed
//! for another question does not open. The hint is a hash of the broker's key and E, so that a broker does no work for other
//! clusters' questions, and a listener who does not know the key learns nothing. N is the broker's: the same question may be
//! answered twice, and never with the same nonce. The address is sealed too: whoever relays an answer from elsewhere, to have
//! nodes come to him, has changed where it comes from.
use crate::crypto::{self, Agreement, KEY_BYTES, TAG_BYTES};
use crate::key::{PublicKey, Random, SecretKey};
use std::net::Ipv4Addr;
use subtle::ConstantTimeEq as _;

/// Bytes of a question.
pub const QUESTION_BYTES: usize = 64;
/// Bytes of an answer.
pub const ANSWER_BYTES: usize = 6 + ECHO_BYTES + NONCE_BYTES + TAG_BYTES + PLACE_BYTES;
const QUESTION_MAGIC: &[u8; 6] = b"WHRYQ2";
const ANSWER_MAGIC: &[u8; 6] = b"WHRYA2";
const HINT: [u8; 24] = crypto::label("wherry 1 discovery hint");
const SEALED: &[u8; 8] = b"wherry1D";
const HINT_BYTES: usize = 16;
const NONCE_BYTES: usize = 16;
/// How much of E an answer repeats in clear: tells an old answer from a forged one without opening either.
const ECHO_BYTES: usize = 8;
/// Address and two ports.
const PLACE_BYTES: usize = 8;

const _: () = assert!(ANSWER_BYTES < QUESTION_BYTES, "an answer must not amplify (RFC 8085 §3.1)");

/// Where a broker says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its address on the asker's network.
    pub address: Ipv4Addr,
    /// For sessions.
    pub session_port: u16,
    /// For enrolment.
    pub enrolment_port: u16,
}

/// Why an answer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Wrong length or beginning.
    #[error("it is no answer")]
    Malformed,
    /// It answers another question: late, or recorded and sent again.
    #[error("it answers another question")]
    Stale,
    /// It was not sealed with the broker's key, or was changed.
    #[error("it was not sealed with the broker's key")]
    Forged,
    /// The broker made it, but says that it is elsewhere: somebody passes it on.
    #[error("it does not come from the broker's address")]
    Elsewhere,
}

/// Why a question is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// Wrong length or beginning.
    #[error("it is no question")]
    Malformed,
    /// It is for another broker.
    #[error("it is for another broker")]
    Other,
    /// Its key is one of the few that make no secret.
    #[error("its key is of low order")]
    Weak,
}

/// A question on its way: can tell its answers from all others, however many come.
pub struct Question {
    bytes: [u8; QUESTION_BYTES],
    echo: [u8; ECHO_BYTES],
    agreement: Agreement,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("echo", &self.echo).finish_non_exhaustive()
    }
}

fn hint(broker: &PublicKey, ephemeral: &[u8; KEY_BYTES]) -> [u8; HINT_BYTES] {
    crypto::half(&crypto::hash(HINT, &[&broker.0, ephemeral]))
}

fn echo_of(ephemeral: &[u8; KEY_BYTES]) -> [u8; ECHO_BYTES] {
    let mut echo = [0; ECHO_BYTES];
    echo.copy_from_slice(&ephemeral[..ECHO_BYTES]);
    echo
}

impl Question {
    /// A new question for the broker with this key; `None` if that is no key that anybody could hold the secret of.
    pub fn new(broker: &PublicKey, random: &mut dyn Random) -> Option<Self> {
        let secret = SecretKey::generate(random);
        let ephemeral = secret.public().0;
        let agreement = crypto::agree(&secret, broker)?;
        let mut bytes = [0; QUESTION_BYTES];
        let hint = hint(broker, &ephemeral);
        let parts = QUESTION_MAGIC.iter().chain(&ephemeral).chain(&hint);
        bytes.iter_mut().zip(parts).for_each(|(place, byte)| *place = *byte);
        Some(Self { bytes, echo: echo_of(&ephemeral), agreement })
    }

    /// What to send.
    #[must_use]
    pub fn bytes(&self) -> &[u8; QUESTION_BYTES] {
        &self.bytes
    }

    /// What an answer says that came from `source`. Costs one short hash, no agreement of keys: a flood of forged answers
    /// holds nobody up.
    ///
    /// # Errors
    /// When it is not the broker's answer to this question, from the broker.
    pub fn open(&self, answer: &[u8], source: Ipv4Addr) -> Result<Place, BadAnswer> {
        if answer.len() != ANSWER_BYTES {
            return Err(BadAnswer::Malformed);
        }
        let rest = answer.strip_prefix(ANSWER_MAGIC).ok_or(BadAnswer::Malformed)?;
        let (echo, rest) = rest.split_first_chunk::<ECHO_BYTES>().ok_or(BadAnswer::Malformed)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(BadAnswer::Malformed)?;
        if *echo != self.echo {
            return Err(BadAnswer::Stale);
        }
        let plain = self.agreement.open(crypto::nonce(SEALED, nonce), sealed).ok_or(BadAnswer::Forged)?;
        let [a, b, c, d, s0, s1, e0, e1] = **plain else { return Err(BadAnswer::Forged) };
        let place = Place {
            address: Ipv4Addr::new(a, b, c, d),
            session_port: u16::from_be_bytes([s0, s1]),
            enrolment_port: u16::from_be_bytes([e0, e1]),
        };
        if place.address == source { Ok(place) } else { Err(BadAnswer::Elsewhere) }
    }
}

/// A question that a broker has found to be for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    ephemeral: [u8; KEY_BYTES],
}

impl Asked {
    /// Reads a question for `me`. Costs one hash.
    ///
    /// # Errors
    /// When it is none, or for somebody else.
    pub fn read(bytes: &[u8], me: &PublicKey) -> Result<Self, BadQuestion> {
        if bytes.len() != QUESTION_BYTES {
            return Err(BadQuestion::Malformed);
        }
        let rest = bytes.strip_prefix(QUESTION_MAGIC).ok_or(BadQuestion::Malformed)?;
        let (ephemeral, rest) = rest.split_first_chunk::<KEY_BYTES>().ok_or(BadQuestion::Malformed)?;
        let (told, _) = rest.split_first_chunk::<HINT_BYTES>().ok_or(BadQuestion::Malformed)?;
        if bool::from(told.ct_eq(&hint(me, ephemeral))) {
            Ok(Self { ephemeral: *ephemeral })
        } else {
            Err(BadQuestion::Other)
        }
    }

    /// The ephemeral key: one that comes again is the same question, said again or recorded by somebody.
    #[must_use]
    pub fn key(&self) -> &[u8; KEY_BYTES] {
        &self.ephemeral
    }

    /// The answer. Costs an agreement of keys: limit how often it is made.
    ///
    /// # Errors
    /// [`BadQuestion::Weak`].
    pub fn answer(
        &self,
        me: &SecretKey,
        place: &Place,
        random: &mut dyn Random,
    ) -> Result<Vec<u8>, BadQuestion> {
        let agreement = crypto::agree(me, &PublicKey(self.ephemeral)).ok_or(BadQuestion::Weak)?;
        let mut nonce = [0; NONCE_BYTES];
        random.fill(&mut nonce);
        let mut plain = place.address.octets().to_vec();
        plain.extend_from_slice(&place.session_port.to_be_bytes());
        plain.extend_from_slice(&place.enrolment_port.to_be_bytes());
        let mut bytes = Vec::with_capacity(ANSWER_BYTES);
        bytes.extend_from_slice(ANSWER_MAGIC);
        bytes.extend_from_slice(&echo_of(&self.ephemeral));
        bytes.extend_from_slice(&nonce);
        agreement.seal(crypto::nonce(SEALED, &nonce), &plain, &mut bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Counting(u8);
    impl Random for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0 += 1;
            bytes.fill(self.0);
        }
    }

    const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
    const PLACE: Place = Place { address: SOURCE, session_port: 2020, enrolment_port: 2021 };

    fn broker() -> SecretKey {
        SecretKey::from_bytes([7; 32])
    }

    fn question(seed: u8) -> Question {
        Question::new(&broker().public(), &mut Counting(seed)).unwrap()
    }

    fn answer(question: &Question, by: &SecretKey, place: &Place) -> Vec<u8> {
        // An impostor reads the question as if it were for him.
        let ephemeral = question.bytes()[6..38].try_into().unwrap();
        Asked { ephemeral }.answer(by, place, &mut Counting(90)).unwrap()
    }

    #[test]
    fn wire_bytes_are_pinned() {
        let question = question(0);
        let bytes = question.bytes();
        let ephemeral = SecretKey::from_bytes([1; 32]).public();
        assert_eq!(
            (&bytes[..6], &bytes[6..38], &bytes[54..]),
            (&b"WHRYQ2"[..], &ephemeral.0[..], &[0; 10][..])
        );
        let hint = data_encoding::HEXLOWER.encode(&bytes[38..54]);
        let answer = data_encoding::HEXLOWER.encode(&answer(&question, &broker(), &PLACE));
        assert_eq!(hint, "3f2bbbe1939efe7890e5e6d17bac5370");
        assert_eq!(
            answer,
            "574852594132a4e09292b651c2785b5b5b5b5b5b5b5b5b5b5b5b5b5b5b5b1a719ebf264ac335ba6258e6fb50a65ec5652c02d1132922"
        );
    }

    #[test]
    fn the_broker_is_believed() {
        let question = question(0);
        let asked = Asked::read(question.bytes(), &broker().public()).unwrap();
        assert_eq!(asked.key(), &question.bytes()[6..38]);
        let first = asked.answer(&broker(), &PLACE, &mut Counting(10)).unwrap();
        let second = asked.answer(&broker(), &PLACE, &mut Counting(11)).unwrap();
        assert_ne!(first, second, "a question asked twice is sealed with two nonces");
        assert_eq!(question.open(&first, SOURCE), Ok(PLACE));
        assert_eq!(question.open(&second, SOURCE), Ok(PLACE));
    }

    #[test]
    fn others_are_not() {
        let (asked, earlier) = (question(0), question(1));
        let good = answer(&asked, &broker(), &PLACE);
        let impostor = SecretKey::from_bytes([8; 32]);
        assert_eq!(asked.open(&answer(&asked, &impostor, &PLACE), SOURCE), Err(BadAnswer::Forged));
        assert_eq!(asked.open(&answer(&earlier, &broker(), &PLACE), SOURCE), Err(BadAnswer::Stale));
        // An old answer that claims to be for this question.
        let mut replayed = answer(&earlier, &broker(), &PLACE);
        replayed[6..14].copy_from_slice(&good[6..14]);
        assert_eq!(asked.open(&replayed, SOURCE), Err(BadAnswer::Forged));
        assert_eq!(asked.open(&good, Ipv4Addr::new(192, 168, 50, 66)), Err(BadAnswer::Elsewhere));
        assert_eq!(asked.open(asked.bytes(), SOURCE), Err(BadAnswer::Malformed));
        assert_eq!(asked.open(&good, SOURCE), Ok(PLACE), "after all of that");
    }

    #[test]
    fn questions_of_other_clusters_and_weak_keys_are_not_answered() {
        let other = SecretKey::from_bytes([8; 32]).public();
        assert_eq!(Asked::read(question(0).bytes(), &other), Err(BadQuestion::Other));
        let mut weak = *question(0).bytes();
        weak[6..38].fill(0);
        weak[38..54].copy_from_slice(&hint(&broker().public(), &[0; 32]));
        let asked = Asked::read(&weak, &broker().public()).unwrap();
        assert_eq!(asked.answer(&broker(), &PLACE, &mut Counting(0)), Err(BadQuestion::Weak));
        assert!(Question::new(&PublicKey([0; 32]), &mut Counting(0)).is_none());
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Asked::read(&bytes, &broker().public()).is_err());
            prop_assert!(question(0).open(&bytes, SOURCE).is_err());
        }

        #[test]
        fn a_changed_or_cut_answer_is_refused(at in 0..ANSWER_BYTES, bit in 0..8_u8, length in 0..ANSWER_BYTES) {
            let question = question(0);
            let good = answer(&question, &broker(), &PLACE);
            let mut changed = good.clone();
            changed[at] ^= 1 << bit;
            prop_assert!(question.open(&changed, SOURCE).is_err());
            prop_assert_eq!(question.open(&good[..length], SOURCE), Err(BadAnswer::Malformed));
            let long = [&good[..], &[0]].concat();
            prop_assert_eq!(question.open(&long, SOURCE), Err(BadAnswer::Malformed));
        }

        #[test]
        fn a_changed_question_is_for_nobody(at in 0..54_usize, bit in 0..8_u8) {
            let mut changed = *question(0).bytes();
            changed[at] ^= 1 << bit;
            prop_assert!(Asked::read(&changed, &broker().public()).is_err());
        }
    }
}
