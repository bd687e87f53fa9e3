//! The broker's part. Whoever can send to its port can make it work, so the work has bounds: a hash for any datagram, and an
//! agreement of keys for so many a second, of which no single source gets more than its share.
use super::tally::Tally;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use wherry_protocol::discovery::{Asked, BadQuestion, Place, QUESTION_BYTES};
use wherry_protocol::{OsRandom, PublicKey, SecretKey};

/// Answers a second, to everybody together: 254 boards that start at once are served within a second, and a flood costs a
/// Raspberry Pi less than a tenth of a core.
const ANSWERS_PER_SECOND: u32 = 500;
/// Of these, to one source: a node says each of its questions three times.
const ANSWERS_PER_SOURCE: u32 = 8;

/// Of these, to one question: it is said three times, from each of a node's addresses. Whoever has recorded it and says it from a
/// thousand addresses gets no more.
const ANSWERS_PER_QUESTION: u8 = 6;
/// Questions that are remembered after they were answered: at least so many, at most twice as many.
const REMEMBERED: usize = 4096;

/// Questions that were not answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Refused {
    malformed: u64,
    other: u64,
    weak: u64,
    busy: u64,
    again: u64,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { malformed, other, weak, busy, again } = self;
        write!(
            f,
            "{malformed} were none, {other} for another broker, {weak} with a weak key, {busy} too many at once, \
             {again} answered often enough"
        )
    }
}

/// Answers for one broker.
#[derive(Debug)]
pub struct Responder {
    secret: SecretKey,
    me: PublicKey,
    session_port: u16,
    enrolment_port: u16,
    budget: Budget,
    answered: Answered,
    refused: Tally<Refused>,
}

impl Responder {
    /// For the broker with this key and these ports.
    #[must_use]
    pub fn new(secret: SecretKey, session_port: u16, enrolment_port: u16) -> Self {
        let (me, budget) = (secret.public(), Budget::new(Instant::now()));
        let (answered, refused) = (Answered::default(), Tally::default());
        Self { secret, me, session_port, enrolment_port, budget, answered, refused }
    }

    /// Answers questions for ever.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn run(mut self, socket: UdpSocket) -> io::Result<()> {
        // One byte more, to see that something is too long.
        let mut buffer = [0; QUESTION_BYTES + 1];
        loop {
            let received = match self.refused.due() {
                None => socket.recv_from(&mut buffer).await,
                Some(at) => tokio::select! {
                    biased;
                    () = sleep_until(at) => {
                        self.tell();
                        continue;
                    }
                    received = socket.recv_from(&mut buffer) => received,
                },
            };
            let (length, from) = match received {
                // An ICMP error about an earlier answer; it says nothing about the socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                received => received?,
            };
            let question = buffer.get(..length).unwrap_or_default();
            if let Some(answer) = self.answer(question, from, Instant::now())
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!(%from, "discovery answer not sent: {error}");
            }
        }
    }

    fn tell(&mut self) {
        if let Some(refused) = self.refused.news(Instant::now()) {
            tracing::warn!("LAN discovery: of the questions so far {refused}");
        }
    }

    /// The answer to `question`, unless it is refused.
    pub(super) fn answer(&mut self, question: &[u8], from: SocketAddr, now: Instant) -> Option<Vec<u8>> {
        let asked = match Asked::read(question, &self.me) {
            Ok(asked) => asked,
            Err(bad) => return self.refuse(bad),
        };
        let IpAddr::V4(source) = from.ip() else { return None };
        // Before the budget: what was recorded must not use up the answers of those that ask now.
        if self.answered.often_enough(asked.key()) {
            self.refused.count(|refused| refused.again += 1);
            return None;
        }
        if !self.budget.allows(source, now) {
            self.refused.count(|refused| refused.busy += 1);
            return None;
        }
        self.answered.count(asked.key());
        let Some(address) = address_towards(from) else {
            tracing::debug!(%from, "there is no way back to who asks for this broker");
            return None;
        };
        let place = Place { address, session_port: self.session_port, enrolment_port: self.enrolment_port };
        match asked.answer(&self.secret, &place, &mut OsRandom) {
            Ok(answer) => Some(answer),
            Err(bad) => self.refuse(bad),
        }
    }

    fn refuse(&mut self, bad: BadQuestion) -> Option<Vec<u8>> {
        self.refused.count(|refused| match bad {
            BadQuestion::Malformed => refused.malformed += 1,
            BadQuestion::Other => refused.other += 1,
            BadQuestion::Weak => refused.weak += 1,
        });
        None
    }
}

/// The address that the kernel would send from, and so the one that the asker sees the answer come from.
fn address_towards(asker: SocketAddr) -> Option<Ipv4Addr> {
    let probe = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Sends nothing: it only chooses the route.
    probe.connect(asker).ok()?;
    match probe.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// What may be worked this second. It knows no more sources than it has answered.
#[derive(Debug)]
struct Budget {
    second: Instant,
    spent: u32,
    sources: HashMap<Ipv4Addr, u32>,
}

impl Budget {
    fn new(second: Instant) -> Self {
        Self { second, spent: 0, sources: HashMap::new() }
    }

    fn allows(&mut self, source: Ipv4Addr, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.spent = 0;
            self.sources.clear();
        }
        if self.spent >= ANSWERS_PER_SECOND {
            return false;
        }
        let of_source = self.sources.entry(source).or_default();
        if *of_source >= ANSWERS_PER_SOURCE {
            return false;
        }
        *of_source += 1;
        self.spent += 1;
        true
    }
}

/// How often each question was answered, by its key. Nodes make a new one each time, so that nothing is ever to be forgotten; the oldest
/// are, for lack of room.
#[derive(Debug, Default)]
struct Answered {
    late: HashMap<[u8; 32], u8>,
    early: HashMap<[u8; 32], u8>,
}

impl Answered {
    fn times(&self, key: &[u8; 32]) -> u8 {
        self.late.get(key).or_else(|| self.early.get(key)).copied().unwrap_or(0)
    }

    fn often_enough(&self, key: &[u8; 32]) -> bool {
        self.times(key) >= ANSWERS_PER_QUESTION
    }

    fn count(&mut self, key: &[u8; 32]) {
        let times = self.times(key).saturating_add(1);
        if self.late.len() >= REMEMBERED {
            self.early = std::mem::take(&mut self.late);
        }
        self.late.insert(*key, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wherry_protocol::discovery::Question;

    fn responder() -> Responder {
        Responder::new(SecretKey::from_bytes([5; 32]), 2020, 2021)
    }

    fn question(to: u8) -> Question {
        Question::new(&SecretKey::from_bytes([to; 32]).public(), &mut OsRandom).unwrap()
    }

    #[test]
    fn one_that_floods_leaves_the_others_their_answers() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let loud = Ipv4Addr::new(10, 0, 0, 1);
        let allowed = (0..10_000).filter(|_| budget.allows(loud, start)).count();
        assert_eq!(allowed, ANSWERS_PER_SOURCE as usize);
        assert!(budget.allows(Ipv4Addr::new(10, 0, 0, 2), start));
        assert!(budget.allows(loud, start + Duration::from_secs(1)));
    }

    #[test]
    fn many_sources_cost_no_more_than_the_budget() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..100_000_u32).filter(|n| budget.allows(Ipv4Addr::from(*n), start)).count();
        assert_eq!(allowed, ANSWERS_PER_SECOND as usize);
        assert!(budget.sources.len() <= ANSWERS_PER_SECOND as usize);
    }

    #[test]
    fn what_is_refused_is_counted() {
        let (mut responder, from, now) = (responder(), "127.0.0.1:9".parse().unwrap(), Instant::now());
        for bad in [&[][..], &[0; 64], &question(5).bytes()[..63], &[0; 65]] {
            assert_eq!(responder.answer(bad, from, now), None);
        }
        assert_eq!(responder.answer(question(6).bytes(), from, now), None);
        for _ in 0..ANSWERS_PER_SOURCE + 2 {
            responder.answer(question(5).bytes(), from, now);
        }
        let refused = Refused { malformed: 4, other: 1, weak: 0, busy: 2, again: 0 };
        assert_eq!(responder.refused.counted(), refused);
    }

    #[test]
    fn a_recorded_question_uses_up_nothing() {
        let (mut responder, now) = (responder(), Instant::now());
        let recorded = question(5);
        let sources = (0..1000_u32).map(|n| SocketAddr::from((Ipv4Addr::from(0x7f01_0000 + n), 9)));
        let answers = sources.filter_map(|from| responder.answer(recorded.bytes(), from, now)).count();
        assert_eq!(answers, usize::from(ANSWERS_PER_QUESTION));
        assert_eq!(responder.refused.counted().again, 1000 - u64::from(ANSWERS_PER_QUESTION));
        let later = now + Duration::from_secs(100);
        for now in [now, later] {
            let from = "127.0.0.1:9".parse().unwrap();
            assert_eq!(responder.answer(recorded.bytes(), from, now), None);
            assert!(responder.answer(question(5).bytes(), from, now).is_some());
        }
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut answered = Answered::default();
        let key = |n: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            key
        };
        for n in 0..REMEMBERED as u32 * 5 {
            for _ in 0..ANSWERS_PER_QUESTION {
                assert!(!answered.often_enough(&key(n)));
                answered.count(&key(n));
            }
            assert!(answered.often_enough(&key(n)) && answered.often_enough(&key(n.saturating_sub(4095))));
            assert!(answered.late.len() + answered.early.len() <= 2 * REMEMBERED);
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_longer_than_its_question(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let from = "127.0.0.1:9".parse().unwrap();
            prop_assert_eq!(responder().answer(&bytes, from, Instant::now()), None);
            let good = *question(5).bytes();
            prop_assert!(responder().answer(&good, from, Instant::now()).unwrap().len() < good.len());
        }
    }
}
