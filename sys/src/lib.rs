//! Typed wrappers around the Linux calls Wherry needs: the only crate with unsafe code.
//!
//! Policy: every `unsafe` block says why it is sound, every call fails with its own [`SysError`] variant, and what `nix`
//! already offers safely (mount, umount2, reboot, no_new_privs, subreaper, mknodat, …) is used from there by the callers,
//! not wrapped again.
#![expect(unsafe_code, reason = "this crate exists so that no other needs unsafe")]

pub mod bpf;
pub mod capability;
pub mod child;
pub mod clock;
mod error;
pub mod fd;
pub mod fdpass;
pub mod keyring;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod path;
pub mod power;
pub mod process;
pub mod seccomp;
pub mod sleeper;
pub mod terminal;

pub use error::SysError;

/// What every call of this crate returns.
pub type Result<T, E = SysError> = std::result::Result<T, E>;
