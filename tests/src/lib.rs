//! Tests of the whole: one suite of scenarios for several worlds, and what they need.
//!
//! ```text
//! scenario   what a cluster must do, told with the real `wherry` command
//! world      what a scenario may ask of its cluster
//! vm         … in virtual machines, from real images
//! netns      … as processes in network namespaces
//! cli, terminal   a person at a keyboard
//! impostor   somebody on the LAN who answers in the broker's place
//! registry   a real container registry, open or with tokens, logins and TLS
//! wait, given, http, tar, oci_layout, noise, guest, programs   tools
//! ```
pub mod cli;
pub mod failure;
pub mod given;
pub mod guest;
pub mod http;
pub mod impostor;
pub mod netns;
pub mod noise;
pub mod oci_layout;
pub mod programs;
pub mod registry;
pub mod scenario;
pub mod tar;
pub mod terminal;
pub mod vm;
pub mod wait;
pub mod world;

pub use cli::{Background, Outcome, Wherry};
pub use failure::{Failure, ensure};
pub use netns::Netns;
pub use terminal::Terminal;
pub use vm::Vm;
pub use world::{Abilities, World};
