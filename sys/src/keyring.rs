//! Kernel keyrings (keyrings(7)).
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use std::ptr;

/// Gives the process a new, empty session keyring, so that it cannot read its parent's keys.
///
/// # Errors
/// [`SysError::Keyctl`]; `ENOSYS` on a kernel without keyrings, which then has no keys to read either.
pub fn new_session() -> Result<()> {
    // SAFETY: a null name asks for an anonymous keyring.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<u8>()) };
    Errno::result(result).map(drop).map_err(SysError::Keyctl)
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_call_makes_another_keyring() {
        // SAFETY: numbers only; asks for the id of the session keyring.
        let id = || unsafe { nix::libc::syscall(nix::libc::SYS_keyctl, 0, -3_i32, 1_i32) };
        super::new_session().unwrap();
        let first = id();
        super::new_session().unwrap();
        assert_ne!(first, id());
    }
}
