//! A node's part: finds its broker, believes nobody else.
use super::PORT;
use super::tally::Tally;
use crate::link::{LinkError, Links};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use wherry_protocol::discovery::{ANSWER_BYTES, BadAnswer, Question};
use wherry_protocol::message::RefusedAnswers;
use wherry_protocol::{OsRandom, PublicKey};

/// How long one question waits for answers.
const WAIT: Duration = Duration::from_millis(1500);
/// Nobody repeats a lost broadcast: the question is said again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// Where a broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// For sessions.
    pub session: SocketAddrV4,
    /// For enrolment.
    pub enrolment: SocketAddrV4,
}

/// Looks for one broker.
#[derive(Debug, Clone)]
pub struct Finder {
    broker: PublicKey,
    refused: Arc<Mutex<Tally<RefusedAnswers>>>,
}

impl Finder {
    /// Of the broker with this key.
    #[must_use]
    pub fn new(broker: PublicKey) -> Self {
        Self { broker, refused: Arc::default() }
    }

    /// Answers that were not believed, since this was made.
    #[must_use]
    pub fn refused(&self) -> RefusedAnswers {
        self.tally(|tally| tally.counted())
    }

    fn tally<T>(&self, work: impl FnOnce(&mut Tally<RefusedAnswers>) -> T) -> T {
        // Counts cannot be left half done.
        work(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks once, from each address that this board has on a network of its own.
    ///
    /// # Errors
    /// When the kernel does not say what addresses there are.
    pub async fn find(&self) -> Result<Option<Found>, LinkError> {
        let addresses = Links::open()?.addresses().await?;
        let from: Vec<Ipv4Addr> = addresses.into_iter().map(|(_, address, _)| address).collect();
        Ok(self.find_from(&from).await)
    }

    /// Asks once, from these addresses of the board only.
    pub async fn find_from(&self, addresses: &[Ipv4Addr]) -> Option<Found> {
        self.ask_from(addresses, SocketAddr::from((Ipv4Addr::BROADCAST, PORT))).await
    }

    async fn ask_from(&self, from: &[Ipv4Addr], to: SocketAddr) -> Option<Found> {
        let question = Question::new(&self.broker, &mut OsRandom)?;
        let until = Instant::now() + WAIT;
        let mut asking: FuturesUnordered<_> =
            from.iter().map(|address| self.ask(&question, *address, to, until)).collect();
        let mut found = None;
        while let Some(answer) = asking.next().await {
            match answer {
                Ok(None) => {}
                Ok(place) => {
                    found = place;
                    break;
                }
                Err(error) => tracing::debug!("LAN discovery: {error}"),
            }
        }
        if let Some(refused) = self.tally(|tally| tally.news(Instant::now())) {
            tracing::warn!(
                "somebody on the LAN answers in the broker's place and is not believed: {refused}"
            );
        }
        found
    }

    /// From one address: a datagram to everybody leaves through the interface that has its source.
    async fn ask(
        &self,
        question: &Question,
        from: Ipv4Addr,
        to: SocketAddr,
        until: Instant,
    ) -> io::Result<Option<Found>> {
        let socket = bind(from).await?;
        socket.set_broadcast(true)?;
        let (mut again, over) = (interval(AGAIN), sleep_until(until));
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(over);
        // One byte more, to see that something is too long.
        let mut buffer = [0; ANSWER_BYTES + 1];
        loop {
            tokio::select! {
                // In this order: a flood of answers holds up neither the end nor the repetition.
                biased;
                () = &mut over => return Ok(None),
                _ = again.tick() => {
                    // The network may be just about to come; the next repetition is soon.
                    if let Err(error) = socket.send_to(question.bytes(), to).await {
                        tracing::debug!("LAN discovery from {from}: {error}");
                    }
                }
                received = socket.recv_from(&mut buffer) => {
                    let (length, source) = match received {
                        // An ICMP error about the question says nothing about the socket.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                        received => received?,
                    };
                    let place = self.judge(question, buffer.get(..length).unwrap_or_default(), source);
                    if let Some(place) = place {
                        return Ok(Some(place));
                    }
                }
            }
        }
    }

    fn judge(&self, question: &Question, answer: &[u8], source: SocketAddr) -> Option<Found> {
        let IpAddr::V4(ip) = source.ip() else { return None };
        match question.open(answer, ip) {
            Ok(place) => Some(Found {
                session: SocketAddrV4::new(place.address, place.session_port),
                enrolment: SocketAddrV4::new(place.address, place.enrolment_port),
            }),
            Err(bad) => {
                tracing::debug!(%source, "a discovery answer is refused: {bad}");
                self.tally(|tally| tally.count(|refused| *place_of(refused, bad) += 1));
                None
            }
        }
    }
}

fn place_of(refused: &mut RefusedAnswers, bad: BadAnswer) -> &mut u64 {
    match bad {
        BadAnswer::Malformed => &mut refused.malformed,
        BadAnswer::Stale => &mut refused.stale,
        BadAnswer::Forged => &mut refused.forged,
        BadAnswer::Elsewhere => &mut refused.elsewhere,
    }
}

/// The firewall of a board lets answers in to the port that belongs to this; on a machine that is no board another program
/// may have it, and any other port does.
async fn bind(from: Ipv4Addr) -> io::Result<UdpSocket> {
    match UdpSocket::bind((from, PORT)).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => UdpSocket::bind((from, 0)).await,
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Responder;
    use super::*;
    use wherry_protocol::SecretKey;

    const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

    fn key() -> SecretKey {
        SecretKey::from_bytes([5; 32])
    }

    async fn socket() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((HOME, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn a_broker_is_found_by_its_own_nodes_only() {
        let (socket, address) = socket().await;
        let broker = tokio::spawn(Responder::new(key(), 2020, 2021).run(socket));
        let finder = Finder::new(key().public());
        let found = finder.ask_from(&[HOME], address).await.unwrap();
        assert_eq!(found.session, "127.0.0.1:2020".parse().unwrap());
        assert_eq!(found.enrolment, "127.0.0.1:2021".parse().unwrap());
        assert_eq!(finder.refused(), RefusedAnswers::default());
        let stranger = Finder::new(SecretKey::from_bytes([6; 32]).public());
        assert_eq!(stranger.ask_from(&[HOME], address).await, None);
        broker.abort();
    }

    /// Gets each question, sends what `lies` makes of it, and only then, if at all, passes it to the broker.
    async fn impostor(front: UdpSocket, broker: Option<SecretKey>) {
        let mut last = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let (length, asker) = front.recv_from(&mut buffer).await.unwrap();
            let question = &buffer[..length];
            let ephemeral: [u8; 32] = question[6..38].try_into().unwrap();
            let mut wrong = b"WHRYA2".to_vec();
            wrong.extend(&ephemeral[..8]);
            wrong.extend([9; 40]);
            for lie in [&wrong[..], &[0; 0], &wrong[..53], &[1; 100], &last, question] {
                front.send_to(lie, asker).await.unwrap();
            }
            for _ in 0..500 {
                front.send_to(&wrong, asker).await.unwrap();
            }
            if let Some(key) = &broker {
                let truth = Responder::new(key.clone(), 2020, 2021).answer(question, asker, Instant::now());
                last = truth.unwrap();
                front.send_to(&last, asker).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn lies_are_counted_and_the_truth_that_comes_later_counts() {
        let (front, address) = socket().await;
        let impostor = tokio::spawn(impostor(front, Some(key())));
        let finder = Finder::new(key().public());
        for _ in 0..2 {
            let found = finder.ask_from(&[HOME], address).await.unwrap();
            assert_eq!(found.session, "127.0.0.1:2020".parse().unwrap());
        }
        let refused = finder.refused();
        // Empty, cut, too long, the question itself; in the first round also the answer that there was not yet.
        assert_eq!((refused.malformed, refused.stale, refused.elsewhere), (9, 1, 0), "{refused:?}");
        assert!(refused.forged >= 2, "{refused:?}");
        impostor.abort();
    }

    #[tokio::test]
    async fn a_flood_of_lies_does_not_hold_up_the_end() {
        let (front, address) = socket().await;
        let flood = tokio::spawn(async move {
            let (_, asker) = front.recv_from(&mut [0; 100]).await.unwrap();
            loop {
                front.send_to(&[0; ANSWER_BYTES], asker).await.ok();
            }
        });
        let finder = Finder::new(key().public());
        let started = Instant::now();
        assert_eq!(finder.ask_from(&[HOME], address).await, None);
        assert!(started.elapsed() < WAIT * 3, "{:?}", started.elapsed());
        assert!(finder.refused().malformed > 100);
        flood.abort();
    }

    #[tokio::test]
    async fn the_answer_of_a_broker_that_is_elsewhere_is_refused() {
        let (front, address) = socket().await;
        let relay = tokio::spawn(async move {
            let mut buffer = [0; 100];
            let (length, asker) = front.recv_from(&mut buffer).await.unwrap();
            // The true broker, seen from another network: 127.0.0.2 is its way to there.
            let question =
                wherry_protocol::discovery::Asked::read(&buffer[..length], &key().public()).unwrap();
            let place = wherry_protocol::discovery::Place {
                address: Ipv4Addr::new(127, 0, 0, 2),
                session_port: 2020,
                enrolment_port: 2021,
            };
            let answer = question.answer(&key(), &place, &mut OsRandom).unwrap();
            front.send_to(&answer, asker).await.unwrap();
        });
        let finder = Finder::new(key().public());
        assert_eq!(finder.ask_from(&[HOME], address).await, None);
        assert_eq!(finder.refused().elsewhere, 1);
        relay.await.unwrap();
    }
}
