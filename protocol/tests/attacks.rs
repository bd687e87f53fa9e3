//! A test per attack on handshake and records.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{Seeded, World, drain, feed, nobody, records};
use wherry_protocol::PublicKey;
use wherry_protocol::handshake::{
    self, COOKIE_KEY_MILLISECONDS, COOKIE_LIFETIME_MILLISECONDS, CookieJar, GENERATION, HELLO_BYTES,
    HandshakeError, INITIATE_BYTES, WELCOME_BYTES,
};
use wherry_protocol::session::{Read, RecordError};

#[test]
fn both_ends_agree_and_know_each_other() {
    let mut world = World::new(1);
    let (mut client, mut server) = world.pair();
    assert_eq!(server.peer(), world.client.public());
    assert_eq!(client.peer(), world.server.public());
    let to_server = world.seal(&mut client, b"ping");
    assert_eq!(world.open(&mut server, &to_server).unwrap(), (b"ping".to_vec(), Read::Starved));
    let to_client = world.seal(&mut server, b"pong");
    assert_eq!(world.open(&mut client, &to_client).unwrap(), (b"pong".to_vec(), Read::Starved));
}

#[test]
fn lengths_are_as_documented_and_hello_is_no_amplifier() {
    let mut world = World::new(2);
    let (client, hello) = world.greet();
    let (_, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    assert_eq!((hello.len(), welcome.len(), initiate.len()), (232, 232, 264));
    assert_eq!((HELLO_BYTES, WELCOME_BYTES, INITIATE_BYTES), (232, 232, 264));
    assert!(hello.len() >= welcome.len());
}

#[test]
fn a_replayed_hello_leads_nowhere() {
    let mut world = World::new(3);
    let (client, hello) = world.greet();
    let (first, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    world.initiate(first, &initiate).unwrap();

    let (second, other_welcome) = world.welcome(&hello).unwrap();
    // Same keys in the box, so the nonce must differ, and with it all that follows.
    assert_ne!(welcome[8..24], other_welcome[8..24]);
    let same = welcome[24..].iter().zip(&other_welcome[24..]).filter(|(a, b)| a == b).count();
    assert!(same < 20, "{same} of 208 bytes alike: a key stream was used twice");
    assert_eq!(world.initiate(second, &initiate).unwrap_err(), HandshakeError::Cookie);
}

#[test]
fn a_replayed_initiate_is_refused_on_every_other_connection() {
    let mut world = World::new(4);
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    world.initiate(server, &initiate).unwrap();
    for _ in 0..50 {
        let (_, hello) = world.greet();
        let (server, _) = world.welcome(&hello).unwrap();
        assert_eq!(world.initiate(server, &initiate).unwrap_err(), HandshakeError::Cookie);
    }
}

#[test]
fn a_cookie_is_good_for_its_own_client_only() {
    let mut world = World::new(5);
    let (alice, hello_a) = world.greet();
    let (server_a, welcome_a) = world.welcome(&hello_a).unwrap();
    let (bob, hello_b) = world.greet();
    let (_, welcome_b) = world.welcome(&hello_b).unwrap();
    let (_, initiate_a) = alice.welcome(&welcome_a, 0, &world.limits).unwrap();
    let (_, initiate_b) = bob.welcome(&welcome_b, 0, &world.limits).unwrap();
    // Alice's cookie, on Alice's connection, with Bob's box.
    let mixed = [&initiate_a[..168], &initiate_b[168..]].concat();
    assert_eq!(world.initiate(server_a, &mixed).unwrap_err(), HandshakeError::Forged);
}

#[test]
fn a_cookie_expires() {
    for (age_ms, fine) in [
        (COOKIE_LIFETIME_MILLISECONDS, true),
        (COOKIE_LIFETIME_MILLISECONDS + 1, false),
        (10 * COOKIE_KEY_MILLISECONDS, false),
    ] {
        let mut world = World::new(6);
        let (client, hello) = world.greet();
        let (server, welcome) = world.welcome(&hello).unwrap();
        let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
        world.now_ms += age_ms;
        let result = world.initiate(server, &initiate);
        assert_eq!(result.is_ok(), fine, "{age_ms}");
        assert!(fine || result.unwrap_err() == HandshakeError::Cookie);
    }
}

#[test]
fn cookie_keys_rotate_and_the_last_one_still_opens() {
    let mut world = World::new(7);
    world.now_ms += COOKIE_KEY_MILLISECONDS - 1;
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    world.now_ms += 2;
    // The next HELLO rotates.
    let (_, other) = world.greet();
    world.welcome(&other).unwrap();
    world.initiate(server, &initiate).unwrap();

    // Two rotations later it is gone, whatever the date in it says.
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    let made_ms = world.now_ms;
    for _ in 0..2 {
        world.now_ms += COOKIE_KEY_MILLISECONDS;
        let (_, other) = world.greet();
        world.welcome(&other).unwrap();
    }
    world.now_ms = made_ms;
    assert_eq!(world.initiate(server, &initiate).unwrap_err(), HandshakeError::Cookie);
}

#[test]
fn another_servers_cookie_is_forged() {
    let mut world = World::new(8);
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    // The same server after a restart: same long-term key, same number, other cookie keys.
    world.jar = CookieJar::new(world.now_ms, &mut world.random);
    assert_eq!(world.initiate(server, &initiate).unwrap_err(), HandshakeError::Cookie);
}

#[test]
fn the_wrong_server_key_is_noticed_by_both_sides() {
    let mut world = World::new(9);
    let (_, hello) = handshake::greet(&world.client, &nobody(), &mut world.random).unwrap();
    let error = world.welcome(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::WrongServerKey);
    let notice = handshake::notice(error).unwrap();
    let (client, _) = world.greet();
    assert_eq!(
        client.welcome(&notice, 0, &world.limits).unwrap_err(),
        HandshakeError::WrongServerKey,
        "the notice reaches the client as what it is"
    );

    // Somebody without the key answers anyway, with a WELCOME that was good for another HELLO.
    let (_, old_hello) = world.greet();
    let (_, old_welcome) = world.welcome(&old_hello).unwrap();
    let (client, _) = world.greet();
    assert_eq!(client.welcome(&old_welcome, 0, &world.limits).unwrap_err(), HandshakeError::WrongServerKey);
}

#[test]
fn a_server_key_of_low_order_is_refused() {
    let mut world = World::new(10);
    let zero = PublicKey([0; 32]);
    assert!(handshake::greet(&world.client, &zero, &mut world.random).is_err());
    let (_, mut hello) = world.greet();
    hello[8..40].fill(0);
    assert_eq!(world.welcome(&hello).unwrap_err(), HandshakeError::Forged);
}

#[test]
fn every_changed_bit_of_hello_is_noticed() {
    let mut world = World::new(11);
    let (_, hello) = world.greet();
    for position in 0..hello.len() {
        for bit in 0..8 {
            // X25519 ignores the top bit of a public key (RFC 7748 §5): the box opens, but then INITIATE does not.
            let ignored = (position, bit) == (39, 7);
            let mut changed = hello.clone();
            changed[position] ^= 1 << bit;
            assert_eq!(world.welcome(&changed).is_ok(), ignored, "byte {position} bit {bit}");
        }
    }
}

#[test]
fn the_ignored_bit_of_a_public_key_does_not_survive_the_transcript() {
    let mut world = World::new(12);
    let (client, mut hello) = world.greet();
    hello[39] ^= 0x80;
    let (server, welcome) = world.welcome(&hello).unwrap();
    let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
    assert_eq!(world.initiate(server, &initiate).unwrap_err(), HandshakeError::Forged);
}

#[test]
fn every_changed_byte_of_welcome_is_noticed() {
    let mut world = World::new(13);
    for position in 0..WELCOME_BYTES {
        let (client, hello) = world.greet();
        let (_, mut welcome) = world.welcome(&hello).unwrap();
        welcome[position] ^= 1 << (position % 8);
        assert!(client.welcome(&welcome, 0, &world.limits).is_err(), "byte {position}");
    }
}

#[test]
fn every_changed_byte_of_initiate_is_noticed() {
    let mut world = World::new(14);
    for position in 0..INITIATE_BYTES {
        for mask in [0x01, 0x80, 0xff] {
            let (client, hello) = world.greet();
            let (server, welcome) = world.welcome(&hello).unwrap();
            let (_, mut initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
            initiate[position] ^= mask;
            assert!(world.initiate(server, &initiate).is_err(), "byte {position} mask {mask}");
        }
    }
}

#[test]
fn every_changed_byte_of_ready_is_noticed() {
    for position in 0..19 {
        let mut world = World::new(15);
        let (mut client, mut server) = world.shake();
        let mut ready = drain(&mut server);
        assert_eq!(ready.len(), 19);
        ready[position] ^= 1;
        // A larger length waits for bytes that never come; everything else is an error. Never ready.
        let result = world.open(&mut client, &ready);
        assert!(result.is_err() || result == Ok((Vec::new(), Read::Starved)), "byte {position}");
        assert!(!client.is_ready());
    }
}

#[test]
fn truncated_and_oversized_handshake_messages_are_refused() {
    let mut world = World::new(16);
    for change in [-232, -231, -225, -224, -100, -1, 1, 1000] {
        let sized = |message: &[u8]| {
            let mut message = message.to_vec();
            message.resize((message.len() as i64 + change).max(0) as usize, 0);
            message
        };
        let (client, hello) = world.greet();
        assert_eq!(world.welcome(&sized(&hello)).unwrap_err(), HandshakeError::Malformed, "{change}");
        let (server, welcome) = world.welcome(&hello).unwrap();
        let (other, _) = world.greet();
        assert_eq!(
            other.welcome(&sized(&welcome), 0, &world.limits).unwrap_err(),
            HandshakeError::Malformed,
            "{change}"
        );
        let (_, initiate) = client.welcome(&welcome, 0, &world.limits).unwrap();
        assert_eq!(
            world.initiate(server, &sized(&initiate)).unwrap_err(),
            HandshakeError::Malformed,
            "{change}"
        );
    }
}

#[test]
fn another_generation_is_refused_by_name_and_cannot_be_forced() {
    let mut world = World::new(17);
    let (client, mut hello) = world.greet();
    hello[6] = 0;
    let error = world.welcome(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::Generation { theirs: 0, ours: GENERATION });
    // What an older or newer server answers to us is understood too.
    let mut notice = handshake::notice(error).unwrap();
    notice[6] = 9;
    let error = client.welcome(&notice, 0, &world.limits).unwrap_err();
    assert_eq!(error, HandshakeError::Generation { theirs: 9, ours: GENERATION });
    assert!(error.to_string().contains("generation 9"));
}

#[test]
fn messages_out_of_place_are_refused() {
    let mut world = World::new(18);
    let (client, hello) = world.greet();
    let (server, welcome) = world.welcome(&hello).unwrap();
    assert_eq!(world.welcome(&welcome).unwrap_err(), HandshakeError::Malformed);
    assert_eq!(world.initiate(server, &hello).unwrap_err(), HandshakeError::Malformed);
    assert_eq!(client.welcome(&hello, 0, &world.limits).unwrap_err(), HandshakeError::Malformed, "reflected");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9", &[0; 232]] {
        assert_eq!(world.welcome(garbage).unwrap_err(), HandshakeError::NotWherry);
    }
}

#[test]
fn a_replayed_record_is_refused() {
    let mut world = World::new(20);
    let (mut client, mut server) = world.pair();
    let record = world.seal(&mut client, b"pay 10");
    world.open(&mut server, &record).unwrap();
    assert_eq!(world.open(&mut server, &record).unwrap_err(), RecordError::Forged { number: 1 });
    // And it stays refused: a failed session does not come back.
    let next = world.seal(&mut client, b"more");
    assert!(world.open(&mut server, &next).is_err());
}

#[test]
fn reordered_and_dropped_records_are_refused() {
    for drop_first in [true, false] {
        let mut world = World::new(21);
        let (mut client, mut server) = world.pair();
        let first = world.seal(&mut client, b"one");
        let second = world.seal(&mut client, b"two");
        let bytes = if drop_first { second } else { [second, first].concat() };
        assert_eq!(world.open(&mut server, &bytes).unwrap_err(), RecordError::Forged { number: 0 });
    }
}

#[test]
fn a_reflected_record_is_refused() {
    let mut world = World::new(22);
    let (mut client, mut server) = world.pair();
    let from_client = world.seal(&mut client, b"hello");
    assert!(matches!(world.open(&mut client, &from_client), Err(RecordError::Forged { .. })));
    let from_server = world.seal(&mut server, b"hello");
    assert!(matches!(world.open(&mut server, &from_server), Err(RecordError::Forged { .. })));
}

#[test]
fn a_record_of_another_session_is_refused() {
    let mut world = World::new(23);
    let (mut client, _) = world.pair();
    let (_, mut server) = world.pair();
    let record = world.seal(&mut client, b"hello");
    assert!(matches!(world.open(&mut server, &record), Err(RecordError::Forged { .. })));
}

#[test]
fn every_changed_byte_of_a_record_is_noticed() {
    let plain = b"some words";
    for position in 0..2 + 1 + plain.len() + 16 {
        let mut world = World::new(24);
        let (mut client, mut server) = world.pair();
        let mut record = world.seal(&mut client, plain);
        record[position] ^= 0x10;
        // More bytes follow, so that a larger length does not just wait for ever.
        record.extend_from_slice(&[0; 20_000]);
        assert!(world.open(&mut server, &record).is_err(), "byte {position}");
    }
}

#[test]
fn an_oversized_record_is_refused_before_memory_is_taken_for_it() {
    let mut world = World::new(25);
    world.limits.record_bytes = 1000;
    let (_, mut server) = world.pair();
    feed(&mut server, &u16::MAX.to_le_bytes());
    assert!(server.space().len() < 5000);
    let error = world.read(&mut server).unwrap_err();
    assert_eq!(error, RecordError::TooLarge { bytes: 65535, limit: 1017 });
}

#[test]
fn a_record_too_short_to_be_one_is_refused() {
    for length in 0..=16u16 {
        let mut world = World::new(26);
        let (_, mut server) = world.pair();
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(std::iter::repeat_n(0, usize::from(length)));
        assert_eq!(world.open(&mut server, &bytes).unwrap_err(), RecordError::Malformed);
    }
}

#[test]
fn a_cut_connection_is_not_an_end() {
    let mut world = World::new(27);
    let (mut client, mut server) = world.pair();
    let record = world.seal(&mut client, b"first half");
    world.open(&mut server, &record).unwrap();
    assert_eq!(server.transport_ended(), Err(RecordError::Truncated));

    let (mut client, mut server) = world.pair();
    client.close();
    let end = drain(&mut client);
    // Not even in the middle of the end mark.
    assert_eq!(world.open(&mut server, &end[..end.len() - 1]).unwrap().1, Read::Starved);
    assert_eq!(server.transport_ended(), Err(RecordError::Truncated));
    assert_eq!(world.open(&mut server, &end[end.len() - 1..]).unwrap().1, Read::End);
    assert_eq!(server.transport_ended(), Ok(()));
    // The other direction is still open.
    let answer = world.seal(&mut server, b"bye");
    assert_eq!(world.open(&mut client, &answer).unwrap().0, b"bye");
    assert_eq!(client.write(b"x", 0, &mut Seeded::new(0)), Err(RecordError::Closed));
}

#[test]
fn nothing_is_said_before_ready() {
    let mut world = World::new(28);
    let (mut client, mut server) = world.shake();
    let mut ready_then_data = drain(&mut server);
    ready_then_data.extend(world.seal(&mut server, b"x"));
    let parts = records(&ready_then_data);
    assert_eq!(parts.len(), 2);
    assert!(matches!(world.open(&mut client, &parts[1]), Err(RecordError::Forged { .. })));
}

#[test]
fn large_writes_fill_records_and_small_ones_share_them() {
    let mut world = World::new(29);
    let (mut client, mut server) = world.pair();
    for piece in [&b"a"[..], b"b", b"c"] {
        assert_eq!(client.write(piece, 0, &mut world.random), Ok(1));
    }
    assert!(client.output().is_empty(), "not sealed before it is flushed");
    client.flush();
    let sealed = drain(&mut client);
    assert_eq!(records(&sealed).len(), 1);
    assert_eq!(world.open(&mut server, &sealed).unwrap().0, b"abc");

    let big = vec![7; 100_000];
    let sealed = world.seal(&mut client, &big);
    assert_eq!(records(&sealed).len(), 100_000usize.div_ceil(16 * 1024));
    assert_eq!(world.open(&mut server, &sealed).unwrap().0, big);
}

#[test]
fn output_is_bounded_while_nothing_is_sent() {
    let mut world = World::new(30);
    let (mut client, _) = world.pair();
    let mut taken = 0;
    loop {
        match client.write(&[1; 5000], 0, &mut world.random).unwrap() {
            0 => break,
            count => taken += count,
        }
        assert!(taken < 100_000);
    }
    assert!(client.output().len() <= 3 * (16 * 1024 + 19));
}
