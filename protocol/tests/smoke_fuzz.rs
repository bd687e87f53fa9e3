//! The fuzz targets' bodies for a bounded time, with stable Rust and inputs made from a seed: random bytes, changed
//! samples of the wire, and crossings of the two. Real fuzzing (`cargo fuzz`) follows coverage; this only keeps the
//! bodies honest.
#[path = "../fuzz/bodies.rs"]
mod bodies;
mod common;
mod samples;

use common::Seeded;
use wherry_protocol::Random as _;

fn random_bytes(random: &mut Seeded, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.below(most) + 1];
    random.fill(&mut bytes);
    bytes
}

#[test]
fn handshake() {
    let mut random = Seeded::new(1);
    for round in 0..600 {
        let mut bytes = random_bytes(&mut random, if round % 3 == 0 { 300 } else { 12 });
        bytes[0] = (round % 8) as u8;
        bodies::handshake(&bytes);
    }
}

#[test]
fn record() {
    let mut random = Seeded::new(2);
    for _ in 0..600 {
        bodies::record(&random_bytes(&mut random, 300));
    }
}

#[test]
fn discovery() {
    let mut random = Seeded::new(4);
    for round in 0..600 {
        let mut bytes = random_bytes(&mut random, if round % 3 == 0 { 100 } else { 9 });
        bytes[0] = (round % 4) as u8;
        bodies::discovery(&bytes);
    }
}

#[test]
fn message() {
    let mut random = Seeded::new(3);
    let good: Vec<Vec<u8>> = samples::rows().iter().map(|row| samples::unhex(&row.bytes)).collect();
    for round in 0..20_000 {
        let mut bytes = if round % 4 == 0 {
            random_bytes(&mut random, 200)
        } else {
            let (a, b) = (&good[random.below(good.len())], &good[random.below(good.len())]);
            let cut = random.below(a.len() + 1);
            [&a[..cut], &b[cut.min(b.len())..]].concat()
        };
        for _ in 0..random.below(4) {
            if !bytes.is_empty() {
                let position = random.below(bytes.len());
                bytes[position] ^= 1 << random.below(8);
            }
        }
        bodies::message(&bytes);
    }
    for text in ["wry1-user-aa@b", "c18446744073709551615", "sha256:", "a.b-c_d", "WRY1-USER-A"] {
        bodies::message(text.as_bytes());
    }
}
