//! Arbitrary bytes, and changed good ones, as questions and answers of LAN discovery.
#![no_main]
#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target uses one body")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::discovery(data));
