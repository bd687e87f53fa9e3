//! Arbitrary bytes, and changed good ones, as every message of the handshake.
#![no_main]
#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target uses one body")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::handshake(data));
