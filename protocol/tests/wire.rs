//! The bytes of every variant of every message enum. They are the protocol: a change here breaks peers that are
//! already out there. New variants go at the end of their enum, with a new line at the end of its table.
//!
//! `WHERRY_BLESS=1 cargo test -p wherry-protocol --test wire` writes the golden table anew; look at the difference.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod samples;

use proptest::prelude::*;
use samples::{Row, rows};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::Path;
use wherry_protocol::message::*;
use wherry_protocol::{Role, WireError};

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire.txt")
}

#[test]
fn every_variant_has_the_bytes_it_always_had() {
    let table: String = rows().iter().map(|Row { name, bytes, .. }| format!("{name} {bytes}\n")).collect();
    if std::env::var_os("WHERRY_BLESS").is_some() {
        std::fs::write(golden(), &table).unwrap();
    }
    let expected = std::fs::read_to_string(golden()).unwrap();
    for (is, was) in table.lines().zip(expected.lines()) {
        assert_eq!(is, was);
    }
    assert_eq!(table.lines().count(), expected.lines().count());
}

#[test]
fn every_variant_is_in_the_table_at_its_number() {
    for Row { name, position, bytes, round_trip } in rows() {
        if let Some(position) = position {
            let first = u8::from_str_radix(&bytes[..2], 16).unwrap();
            assert_eq!(usize::from(first), position, "{name}");
        }
        assert!(round_trip, "{name} does not come back as it went");
    }
    samples::assert_complete();
}

fn decode<M: Serialize + DeserializeOwned + Debug + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = postcard::from_bytes::<M>(bytes) {
        // What decodes can be encoded, and means the same again.
        let again = postcard::to_stdvec(&message).unwrap();
        assert_eq!(postcard::from_bytes::<M>(&again).unwrap(), message);
    }
}

fn decode_as_everything(bytes: &[u8]) {
    decode::<Request>(bytes);
    decode::<Reply>(bytes);
    decode::<Event>(bytes);
    decode::<NodeCall>(bytes);
    decode::<FromNode>(bytes);
    decode::<ToNode>(bytes);
    decode::<Routed>(bytes);
    decode::<Frame>(bytes);
    decode::<Hello>(bytes);
    decode::<HelloReply>(bytes);
    decode::<EnrolRequest>(bytes);
    decode::<EnrolReply>(bytes);
    decode::<Role>(bytes);
    decode::<WireError>(bytes);
}

#[test]
fn every_truncation_of_every_sample_is_refused_without_panic() {
    for Row { name, bytes, .. } in rows() {
        let bytes: Vec<u8> = samples::unhex(&bytes);
        for length in 0..bytes.len() {
            decode_as_everything(&bytes[..length]);
        }
        assert!(samples::decodes(name, &bytes), "{name}");
        if !bytes.is_empty() {
            assert!(!samples::decodes(name, &bytes[..bytes.len() - 1]), "{name} cut short must be refused");
        }
    }
}

#[test]
fn a_variant_from_a_newer_peer_is_refused_not_misread() {
    for number in 49..=127u8 {
        assert!(postcard::from_bytes::<Request>(&[number]).is_err());
        assert!(postcard::from_bytes::<Reply>(&[number]).is_err());
        assert!(postcard::from_bytes::<Frame>(&[number]).is_err());
    }
}

#[test]
fn a_huge_count_is_refused_without_taking_memory_for_it() {
    // Lists of 2^63 digests, boards, images, containers and connections announced, and a string as long.
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for head in [&[4u8][..], &[3], &[7], &[9], &[10], &[11]] {
        let bytes = [head, &huge, &[0; 64]].concat();
        assert!(postcard::from_bytes::<Reply>(&bytes).is_err());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn changed_samples_never_panic(row in 0..samples::rows().len(), position: prop::sample::Index, byte: u8) {
        let mut bytes = samples::unhex(&rows()[row].bytes);
        if !bytes.is_empty() {
            let position = position.index(bytes.len());
            bytes[position] = byte;
            decode_as_everything(&bytes);
        }
    }
}
