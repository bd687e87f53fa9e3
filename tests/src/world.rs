//! One suite of scenarios, several worlds: what a scenario may ask of the cluster it runs in.
use crate::cli::Wherry;
use crate::failure::Failure;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use wherry_images::disk::Arch;

/// What a world can do; a scenario states what it needs and is told, never skipped in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// The boards' kernel has GRE, so containers of two boards can be connected.
    pub overlay: bool,
    /// The boards' kernel has cgroup v2 controllers, so bounds of containers are enforced.
    pub limits: bool,
    /// The boards have cgroup v2, so containers can be paused.
    pub cgroups: bool,
}

/// Size of a board's data partition, in MiB: small, so that it can be filled.
pub const DATA_MIB: u64 = 64;

/// A broker and some nodes, joined by an administrator.
pub trait World {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// The boards' processor.
    fn arch(&self) -> Arch;

    /// The administrator's command line, already joined.
    fn admin(&self) -> &Wherry;

    /// The token that the administrator joined with: used up.
    fn used_token(&self) -> &str;

    /// The nodes' names, in order.
    fn nodes(&self) -> Vec<String>;

    /// Where the broker's ports are reachable from this process.
    fn broker(&self) -> Ipv4Addr;

    /// A container image archive.
    fn archive(&self, name: &str) -> Result<PathBuf, Failure>;

    /// Ends the service of a board without warning (not its supervisor).
    fn crash_service(&mut self, board: &str) -> Result<(), Failure>;

    /// Cuts a board's power.
    fn power_cut(&mut self, board: &str) -> Result<(), Failure>;

    /// Switches a board on again.
    fn boot(&mut self, board: &str) -> Result<(), Failure>;

    /// Pulls a board's network plug, or puts it in again.
    fn set_plugged(&mut self, board: &str, plugged: bool) -> Result<(), Failure>;

    /// The ends of all consoles and logs, for a report.
    fn report(&self) -> String;
}
