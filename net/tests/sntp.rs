//! The clock's keeper with time servers on loopback: honest ones, liars, silent ones, and somebody who guesses.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wherry_net::sntp::{Adjustment, EARLIEST_SECONDS, Floor, Keeper, Schedule, Servers};

/// Seconds from 1900 to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;
const FAST: Schedule = Schedule {
    unset: Duration::from_millis(20),
    first: Duration::from_millis(20),
    most: Duration::from_millis(40),
    banned: Duration::from_secs(60),
    remember: Duration::from_secs(60),
};
const LONG: Duration = Duration::from_secs(20);

/// How a server behaves.
#[derive(Clone, Copy)]
enum Kind {
    /// It is so many seconds ahead of this machine.
    Ahead(i64),
    Silent,
    /// Kiss-o'-death.
    Denies,
    /// Answers first to a question that nobody asked.
    GuessesFirst,
}

fn stamp(ahead: i64) -> [u8; 8] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seconds = now.as_secs().checked_add_signed(ahead).unwrap() + NTP_TO_UNIX;
    let fraction = (u64::from(now.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32 | fraction).to_be_bytes()
}

fn answer(question: &[u8], ahead: i64, stratum: u8) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 4 << 3 | 4;
    packet[1] = stratum;
    packet[24..32].copy_from_slice(&question[40..48]);
    packet[32..40].copy_from_slice(&stamp(ahead));
    packet[40..48].copy_from_slice(&stamp(ahead));
    packet
}

async fn serve(socket: UdpSocket, kind: Kind, asked: mpsc::UnboundedSender<()>) {
    let mut buffer = [0; 100];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let question = &buffer[..length];
        assert_eq!((length, question[0]), (48, 0x23));
        asked.send(()).ok();
        let answers = match kind {
            Kind::Ahead(seconds) => vec![answer(question, seconds, 2)],
            Kind::Silent => vec![],
            Kind::Denies => vec![answer(question, 0, 0)],
            Kind::GuessesFirst => vec![b"?".to_vec(), answer(&[7; 48], 9999, 2), answer(question, 100, 2)],
        };
        for packet in answers {
            socket.send_to(&packet, from).await.unwrap();
        }
    }
}

type Adjustments = Arc<Mutex<VecDeque<Adjustment>>>;

struct World {
    adjustments: Adjustments,
    asked: Vec<mpsc::UnboundedReceiver<()>>,
    dir: tempfile::TempDir,
}

/// A keeper that runs with these servers, at 127.0.0.1, 127.0.0.2, ….
async fn world(kinds: &[Kind]) -> World {
    let mut sockets = Vec::new();
    let port = loop {
        let first = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        sockets.push(first);
        for last in 2..=kinds.len() as u8 {
            sockets.extend(UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), port)).await);
        }
        if sockets.len() == kinds.len() {
            break port;
        }
        sockets.clear();
    };
    let fixed = (1..=kinds.len() as u8).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
    let mut asked = Vec::new();
    for (socket, kind) in sockets.into_iter().zip(kinds) {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(serve(socket, *kind, sender));
        asked.push(receiver);
    }
    let dir = tempfile::tempdir().unwrap();
    let adjustments = Adjustments::default();
    let keeper = keeper(Servers { fixed, port }, &dir, &adjustments);
    tokio::spawn(async move {
        let (_uplink, receiver) = watch::channel(None);
        keeper.run(receiver).await;
    });
    World { adjustments, asked, dir }
}

fn keeper(
    servers: Servers,
    dir: &tempfile::TempDir,
    adjustments: &Adjustments,
) -> Keeper<impl Fn(Adjustment) -> io::Result<()> + use<>> {
    let adjustments = Arc::clone(adjustments);
    let adjust = move |adjustment| {
        adjustments.lock().unwrap().push_back(adjustment);
        Ok(())
    };
    Keeper { servers, schedule: FAST, floor: Floor::within(dir.path()), adjust }
}

impl World {
    /// The next change of the clock, in whole seconds if it is a step.
    async fn step(&self) -> i64 {
        let next = async {
            loop {
                let next = self.adjustments.lock().unwrap().pop_front();
                match next {
                    Some(Adjustment::Step(nanos)) => return (nanos as f64 / 1e9).round() as i64,
                    Some(Adjustment::Slew(_)) => {}
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(LONG, next).await.expect("a step of the clock")
    }

    /// Until the server has been asked so often.
    async fn asked(&mut self, server: usize, times: usize) {
        for _ in 0..times {
            timeout(LONG, self.asked[server].recv()).await.expect("a question").unwrap();
        }
    }
}

#[tokio::test]
async fn the_clock_is_set_and_the_time_remembered() {
    let world = world(&[Kind::Ahead(100)]).await;
    assert_eq!(world.step().await, 100);
    assert_eq!(world.step().await, 100, "the clock of the test does not change, so it is off again");
    let written = async {
        while !world.dir.path().join("clock").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, written).await.expect("the time on disk");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(Floor::within(world.dir.path()).seconds().abs_diff(now) < 60);
}

#[tokio::test]
async fn one_that_lies_and_one_that_is_silent_are_outvoted() {
    let world = world(&[Kind::Ahead(86_400), Kind::Ahead(100), Kind::Ahead(100)]).await;
    assert_eq!(world.step().await, 100);
    let world = self::world(&[Kind::Silent, Kind::Ahead(100)]).await;
    assert_eq!(world.step().await, 100);
}

#[tokio::test]
async fn two_that_differ_change_nothing() {
    let mut world = world(&[Kind::Ahead(100), Kind::Ahead(200)]).await;
    world.asked(1, 3).await;
    assert!(world.adjustments.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_guess_is_not_taken_for_an_answer() {
    let world = world(&[Kind::GuessesFirst]).await;
    assert_eq!(world.step().await, 100);
}

#[tokio::test]
async fn who_wants_to_be_left_alone_is() {
    let mut world = world(&[Kind::Denies, Kind::Ahead(100)]).await;
    world.asked(1, 3).await;
    world.asked(0, 1).await;
    assert!(world.asked[0].try_recv().is_err(), "once was enough");
    assert_eq!(world.step().await, 100);
}

#[test]
fn a_clock_that_is_behind_the_last_known_time_is_lifted() {
    let dir = tempfile::tempdir().unwrap();
    let adjustments = Adjustments::default();
    let keeper = keeper(Servers::of(vec![]), &dir, &adjustments);
    keeper.lift();
    assert!(adjustments.lock().unwrap().is_empty(), "this machine's clock is right");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Floor::within(dir.path()).remember(now + 1000).unwrap();
    keeper.lift();
    let Some(Adjustment::Step(nanos)) = adjustments.lock().unwrap().pop_front() else { panic!("not lifted") };
    assert!((990..=1000).contains(&(nanos / 1_000_000_000)), "{nanos}");
    keeper.remember();
    assert!(Floor::within(dir.path()).seconds() >= now + 1000, "what is remembered does not go back");
    assert!(now > EARLIEST_SECONDS, "a program from the future");
}
