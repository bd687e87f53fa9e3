//! Typed wrappers around the Linux calls Wherry needs: the only crate with unsafe code.
//!
//! Policy: every `unsafe` block says why it is sound, every call fails with its own [`SysError`] variant, and what `nix`
//! already offers safely is used from there, not wrapped again.
#![expect(unsafe_code, reason = "this crate exists so that no other needs unsafe")]

mod error;
pub mod fd;
pub mod fdpass;

pub use error::SysError;
pub use nix;

/// What every call of this crate returns.
pub type Result<T, E = SysError> = std::result::Result<T, E>;
