//! The broker: accounts, images, placement and routing for one cluster.
//!
//! ```text
//! state    what to do, decided without clock, socket or disk
//! record   what must not be forgotten, versioned
//! store    the records on disk
//! serve    sockets, sessions, streams
//! config   wherry.toml and the broker's key
//! board    the service as it is started: command line, listeners, signals, heartbeat
//! ```
#![forbid(unsafe_code)]

pub mod board;
pub mod config;
mod core;
pub mod record;
pub mod serve;
mod sessions;
pub mod state;
pub mod store;
