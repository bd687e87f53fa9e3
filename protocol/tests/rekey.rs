//! New keys inside a session: when, how, crossing each other, and against peers that break the rules.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{World, drain, records};
use proptest::prelude::*;
use wherry_protocol::Limits;
use wherry_protocol::session::{Read, RecordError, Session};

/// The smallest number of records that [`Limits::rekey_records`] can mean.
const RECORDS: u64 = 128;

fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.limits =
        Limits { rekey_records: RECORDS, rekey_seconds: 3600, record_bytes: 64, ..Limits::DEFAULT };
    world
}

/// Delivers until both ends have nothing more to say; gives what each has read.
fn settle(world: &mut World, a: &mut Session, b: &mut Session) -> (Vec<u8>, Vec<u8>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    loop {
        a.flush();
        b.flush();
        let (to_b, to_a) = (drain(a), drain(b));
        if to_a.is_empty() && to_b.is_empty() {
            return (at_a, at_b);
        }
        at_b.extend(world.open(b, &to_b).unwrap().0);
        at_a.extend(world.open(a, &to_a).unwrap().0);
    }
}

/// Lengths of the records that `session` has to send: 19 is an empty one, 51 carries a key.
fn lengths(session: &mut Session) -> Vec<usize> {
    session.flush();
    records(&drain(session)).iter().map(Vec::len).collect()
}

#[test]
fn keys_change_after_so_many_records() {
    let mut world = world(1);
    let (mut a, mut b) = world.pair();
    for round in 0..RECORDS {
        let record = world.seal(&mut a, b"x");
        assert_eq!(records(&record).len(), 1, "no exchange before record {round}");
        world.open(&mut b, &record).unwrap();
    }
    // B noticed when it read the last one: it sends its key, A answers and switches, B switches.
    let offer = drain(&mut b);
    assert_eq!(offer.len(), 51);
    world.open(&mut a, &offer).unwrap();
    let answer = drain(&mut a);
    assert_eq!(records(&answer).iter().map(Vec::len).collect::<Vec<_>>(), [51, 19]);
    world.open(&mut b, &answer).unwrap();
    assert_eq!(lengths(&mut b), [19]);
}

#[test]
fn keys_change_after_so_long() {
    let mut world = world(2);
    let (mut a, mut b) = world.pair();
    world.now_ms += 3_599_999;
    assert_eq!(records(&world.seal(&mut a, b"x")).len(), 1);
    let (mut a, mut b2) = world.pair();
    world.now_ms += 3_600_000;
    let sealed = world.seal(&mut a, b"x");
    assert_eq!(records(&sealed).iter().map(Vec::len).collect::<Vec<_>>(), [51, 20]);
    assert_eq!(world.open(&mut b2, &sealed).unwrap().0, b"x");
    assert_eq!(settle(&mut world, &mut a, &mut b2), (Vec::new(), Vec::new()));
    // An idle side notices too when something comes.
    world.now_ms += 3_600_000;
    let sealed = world.seal(&mut b, b"y");
    assert_eq!(records(&sealed)[0].len(), 51);
}

#[test]
fn data_flows_before_during_and_after() {
    let mut world = world(3);
    let (mut a, mut b) = world.pair();
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for round in 0..3_000u32 {
        let piece = round.to_le_bytes();
        expected.extend(piece);
        let sealed = world.seal(&mut a, &piece);
        got.extend(world.open(&mut b, &sealed).unwrap().0);
        if round % 7 == 0 {
            let (_, more) = settle(&mut world, &mut a, &mut b);
            got.extend(more);
        }
    }
    assert_eq!(got, expected);
}

#[test]
fn both_may_begin_at_once() {
    let mut world = world(4);
    let (mut a, mut b) = world.pair();
    world.now_ms += 3_600_000;
    let from_a = world.seal(&mut a, b"from a");
    let from_b = world.seal(&mut b, b"from b");
    assert_eq!(world.open(&mut b, &from_a).unwrap().0, b"from a");
    assert_eq!(world.open(&mut a, &from_b).unwrap().0, b"from b");
    // Each took the other's key as the answer to its own: only the switch is left to be said.
    let (switch_a, switch_b) = (drain(&mut a), drain(&mut b));
    assert_eq!((switch_a.len(), switch_b.len()), (19, 19));
    world.open(&mut a, &switch_b).unwrap();
    world.open(&mut b, &switch_a).unwrap();
    for _ in 0..20 {
        let (to_b, to_a) = (world.seal(&mut a, b"1"), world.seal(&mut b, b"2"));
        assert_eq!(world.open(&mut b, &to_b).unwrap().0, b"1");
        assert_eq!(world.open(&mut a, &to_a).unwrap().0, b"2");
    }
}

#[test]
fn a_record_of_the_old_key_is_worth_nothing_after_the_switch() {
    let mut world = world(5);
    let (mut a, mut b) = world.pair();
    let old = world.seal(&mut a, b"old");
    world.open(&mut b, &old).unwrap();
    world.now_ms += 3_600_000;
    let trigger = world.seal(&mut a, b"t");
    world.open(&mut b, &trigger).unwrap();
    settle(&mut world, &mut a, &mut b);
    // Counters began again at 0, so the place in the sequence fits: it is the key that does not.
    assert_eq!(world.open(&mut b, &old).unwrap_err(), RecordError::Forged { number: 0 });
}

#[test]
fn a_dropped_exchange_is_noticed() {
    let mut world = world(6);
    let (mut a, mut b) = world.pair();
    world.now_ms += 3_600_000;
    let sealed = world.seal(&mut a, b"x");
    let parts = records(&sealed);
    assert!(matches!(world.open(&mut b, &parts[1]), Err(RecordError::Forged { .. })));
}

#[test]
fn a_peer_that_exchanges_keys_without_pause_is_refused() {
    let mut world = world(7);
    let (mut a, mut b) = world.pair();
    // A's clock runs away, B's stands still.
    let (mut now_a, now_b) = (world.now_ms, world.now_ms);
    for round in 0.. {
        assert!(round < 10, "must end");
        now_a += 3_600_000;
        world.now_ms = now_a;
        let offer = world.seal(&mut a, b"x");
        world.now_ms = now_b;
        if let Err(error) = world.open(&mut b, &offer) {
            assert_eq!(error, RecordError::Rekey);
            assert_eq!(round, 4);
            return;
        }
        let answer = drain(&mut b);
        world.now_ms = now_a;
        world.open(&mut a, &answer).unwrap();
        let switch = drain(&mut a);
        world.now_ms = now_b;
        world.open(&mut b, &switch).unwrap();
    }
}

#[test]
fn a_peer_that_never_answers_is_left_in_the_end() {
    let mut world = world(8);
    let (mut a, _) = world.pair();
    let mut sent = 0u64;
    let error = loop {
        match a.write(&[0; 64], world.now_ms, &mut world.random) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        drain(&mut a);
        assert!(sent < 100_000, "must end");
    };
    assert_eq!(error, RecordError::Rekey);
    assert!(sent > 2 * RECORDS, "but not before what may be in flight has come");
}

#[test]
fn closing_during_an_exchange_still_ends_in_order() {
    for a_closes in [true, false] {
        let mut world = world(9);
        let (mut a, mut b) = world.pair();
        world.now_ms += 3_600_000;
        let offer = world.seal(&mut a, b"x");
        if a_closes {
            a.close();
        } else {
            b.close();
        }
        world.open(&mut b, &offer).unwrap();
        let (to_b, to_a) = (drain(&mut a), drain(&mut b));
        let at_b = world.open(&mut b, &to_b).unwrap();
        let at_a = world.open(&mut a, &to_a).unwrap();
        assert_eq!(if a_closes { at_b.1 } else { at_a.1 }, Read::End);
        // The open direction still works.
        let (from, to) = if a_closes { (&mut b, &mut a) } else { (&mut a, &mut b) };
        let sealed = world.seal(from, b"last words");
        assert_eq!(world.open(to, &sealed).unwrap().0, b"last words");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { from_a: bool, bytes: usize },
    Flush { a: bool },
    Deliver { to_a: bool, most: usize },
    Wait { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 1..300usize).prop_map(|(from_a, bytes)| Step::Write { from_a, bytes }),
        2 => any::<bool>().prop_map(|a| Step::Flush { a }),
        4 => (any::<bool>(), 1..2000usize).prop_map(|(to_a, most)| Step::Deliver { to_a, most }),
        1 => (0..3_000_000u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_schedule_delivers_exactly_what_was_written(steps in proptest::collection::vec(step(), 1..400), seed: u64) {
        let mut world = world(seed);
        let (a, b) = world.pair();
        let mut ends = [a, b];
        let mut written: [Vec<u8>; 2] = Default::default();
        let mut heard: [Vec<u8>; 2] = Default::default();
        let mut wire: [Vec<u8>; 2] = Default::default();
        let mut next = 0u8;
        for step in steps {
            match step {
                Step::Write { from_a, bytes } => {
                    let from = usize::from(!from_a);
                    let plain: Vec<u8> = (0..bytes).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let taken = ends[from].write(&plain, world.now_ms, &mut world.random).unwrap();
                    written[from].extend(&plain[..taken]);
                }
                Step::Flush { a } => ends[usize::from(!a)].flush(),
                Step::Deliver { to_a, most } => {
                    let (from, to) = if to_a { (1, 0) } else { (0, 1) };
                    wire[from].extend(drain(&mut ends[from]));
                    let count = most.min(wire[from].len());
                    let bytes: Vec<u8> = wire[from].drain(..count).collect();
                    heard[to].extend(world.open(&mut ends[to], &bytes).unwrap().0);
                }
                Step::Wait { ms } => world.now_ms += ms,
            }
        }
        // Everything still under way arrives in the end.
        for _ in 0..8 {
            for (from, to) in [(0, 1), (1, 0)] {
                ends[from].flush();
                wire[from].extend(drain(&mut ends[from]));
                let bytes = std::mem::take(&mut wire[from]);
                heard[to].extend(world.open(&mut ends[to], &bytes).unwrap().0);
            }
        }
        prop_assert_eq!(&heard[1], &written[0]);
        prop_assert_eq!(&heard[0], &written[1]);
    }
}
