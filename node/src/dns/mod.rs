//! The DNS server of a board: the one its containers ask, on the board's address of their network.
//!
//! ```text
//! directory   who may know which names            pure
//! answer      a question → what to do with it     pure; answers about the cluster are made here
//! serve       UDP and TCP (RFC 1035 §4.2, RFC 7766)
//! ```
//! A container is told about itself and about containers that it may connect to, and about no other. What is not the
//! cluster's goes on untouched in both directions, so whoever validates DNSSEC gets what was signed.
mod answer;
mod directory;
mod serve;

pub use answer::{Verdict, answer};
pub use directory::{Directory, Finding};
pub use serve::{DnsLimits, serve, serve_on};
pub use wherry_net::dns::{Transport, Upstream};
