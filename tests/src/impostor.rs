//! Somebody on the LAN who wants nodes to come to him: answers every question about the broker at once and many times, and
//! knows all that is public.
use crate::failure::Failure;
use crate::wait::until;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wherry_protocol::discovery::{ANSWER_BYTES, Asked, Place, QUESTION_BYTES};
use wherry_protocol::{OsRandom, PublicKey, SecretKey};

/// Port of LAN discovery.
const PORT: u16 = 1026;
/// Lies of each kind to one question.
const LIES: usize = 20;

/// Runs until the process ends.
#[derive(Debug)]
pub struct Impostor {
    asked: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Impostor {
    /// Begins to answer in the place of the broker with key `broker`, as if at `address`.
    pub fn start(broker: PublicKey, address: Ipv4Addr) -> Result<Self, Failure> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))
            .map_err(Failure::io("listen for questions about the broker"))?;
        let asked = Arc::<Mutex<BTreeMap<IpAddr, usize>>>::default();
        let counted = Arc::clone(&asked);
        let place = Place { address, session_port: 2020, enrolment_port: 2021 };
        std::thread::spawn(move || {
            let mut liar = Liar { secret: SecretKey::generate(&mut OsRandom), broker, place, last: None };
            let mut buffer = [0; QUESTION_BYTES];
            while let Ok((length, asker)) = socket.recv_from(&mut buffer) {
                let lies = liar.lies(buffer.get(..length).unwrap_or_default());
                *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(asker.ip()).or_default() += 1;
                send(&socket, &lies, asker);
            }
        });
        Ok(Self { asked })
    }

    /// Waits until so many boards have asked so many times each.
    pub fn wait_for_questions(&self, boards: usize, times: usize) -> Result<(), Failure> {
        until("questions to the impostor", Duration::from_secs(60), || {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let enough = asked.values().filter(|count| **count >= times).count() >= boards;
            if enough { Ok(()) } else { Err(format!("{asked:?}")) }
        })
    }
}

fn send(socket: &UdpSocket, lies: &[Vec<u8>], asker: SocketAddr) {
    for lie in lies {
        // The board may have gone.
        drop(socket.send_to(lie, asker));
    }
}

struct Liar {
    secret: SecretKey,
    broker: PublicKey,
    place: Place,
    last: Option<Vec<u8>>,
}

impl Liar {
    fn lies(&mut self, question: &[u8]) -> Vec<Vec<u8>> {
        let Ok(asked) = Asked::read(question, &self.broker) else { return Vec::new() };
        let Ok(forged) = asked.answer(&self.secret, &self.place, &mut OsRandom) else { return Vec::new() };
        let stale = self.last.replace(forged.clone());
        let malformed = [Vec::new(), vec![0xff; 1400], vec![0; ANSWER_BYTES], question.to_vec()];
        let round = std::iter::once(forged).chain(stale).chain(malformed);
        let round: Vec<_> = round.collect();
        std::iter::repeat_n(round, LIES).flatten().collect()
    }
}
