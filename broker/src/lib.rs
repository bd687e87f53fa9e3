//! The broker: accounts, images, placement and routing for one cluster.
//!
//! ```text
//! state    what to do, decided without clock, socket or disk
//! record   what must not be forgotten, versioned
//! ```
#![forbid(unsafe_code)]

pub mod record;
pub mod state;
