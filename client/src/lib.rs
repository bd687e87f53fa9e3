//! Wherry from a laptop: join a cluster, send images, run containers, reach into them.
//!
//! ```text
//! seed      keys, tokens and configuration of a new cluster
//! address   where a broker is
//! dev       a cluster in virtual machines
//! ```
#![forbid(unsafe_code)]

pub mod address;
pub mod dev;
pub mod seed;
