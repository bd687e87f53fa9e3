//! nftables without the nft program: a small typed model of tables, sets, chains and rules, that renders as `nft` text
//! (for golden files and people) and as netlink (for the kernel).
//!
//! ```text
//! model   what rules say            text    as `nft -s list ruleset` prints it
//! lower   rules → register machine  encode  register machine → attributes, one transaction per ruleset
//! ```
//! Kernel interface: include/uapi/linux/netfilter/nf_tables.h; the text is nft(8)'s.
mod element;
mod encode;
mod lower;
mod model;
mod send;
mod text;

pub use element::{Element, Elements, SetChange};
pub use model::{
    Base, Chain, Family, Hook, Icmp, Key, KeyType, Match, Not, Policy, Protocol, Rule, Ruleset, Set,
    Statement, States, Table, Value, Verdict,
};
pub use send::{NftError, NftSocket, RulesGeneration};
