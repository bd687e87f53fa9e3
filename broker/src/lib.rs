//! The broker: accounts, images, placement and routing for one cluster.
//!
//! ```text
//! state    what to do, decided without clock, socket or disk
//! record   what must not be forgotten, versioned
//! store    the records on disk
//! serve    sockets, sessions, streams
//! config   wherry.toml and the command line
//! ```
#![forbid(unsafe_code)]

mod core;
pub mod record;
pub mod serve;
mod sessions;
pub mod state;
pub mod store;
