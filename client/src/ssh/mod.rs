//! An SSH server in front of one container, for programs that speak nothing else: editors, scp, rsync, sftp, sshfs.
//!
//! It listens on 127.0.0.1 or speaks over a pair of streams (for `ProxyCommand`), never on an interface of the network.
//! Whoever logs in may do to the container what this location's account may: so only keys of this computer's user log in,
//! other users of the same computer do not (`docs/decisions/0014`).
//!
//! ```text
//! keys      host key, login key, ssh_config and known_hosts, made once and kept
//! bridge    connections: limits, listening
//! guard     a stream that can be cut off from outside
//! login     one connection: who it is, which channels it may open
//! inbound   what clients send, taken off the connection's loop and bounded
//! session   one session channel: a shell, a command, sftp
//! forward   one forwarded connection to a port of the container
//! command   what is run for it, names of signals (pure)
//! ```
mod bridge;
mod command;
mod forward;
mod guard;
mod inbound;
mod keys;
mod login;
mod session;

pub use bridge::{Bridge, Served, SshEvent};
pub use keys::{HOST, SshKeys};
