//! Descriptors: adopting inherited ones, flags, sealed memory files.
use crate::{Result, SysError};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd, RawFd};

/// Takes over descriptor `number`, which whoever started this process left open for it, and marks it close-on-exec.
///
/// Call it once per number: ownership of an inherited descriptor is the process's own convention.
///
/// # Errors
/// [`SysError::Fcntl`] with `EBADF` when nothing is open at that number; 0, 1 and 2 are refused in the same way, they
/// belong to the standard library.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    const FIRST: RawFd = 3;
    // SAFETY: F_GETFD only reads a flag of the descriptor table and is harmless for any number.
    if number < FIRST || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(SysError::Fcntl(nix::errno::Errno::EBADF));
    }
    // SAFETY: the descriptor is open, was inherited over exec and so is not owned by any Rust object of this process;
    // the caller adopts each number once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_cloexec(&fd, true)?;
    Ok(fd)
}

/// Whether exec closes the descriptor.
///
/// # Errors
/// [`SysError::Fcntl`].
pub fn set_cloexec(fd: impl AsFd, on: bool) -> Result<()> {
    let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop).map_err(SysError::Fcntl)
}

/// Marks every descriptor from `first` on as close-on-exec: what a careless caller left open does not go any further.
///
/// # Errors
/// [`SysError::CloseRange`].
pub fn close_on_exec_from(first: u32) -> Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: numbers only; no descriptor is closed, a flag of each is set.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    nix::errno::Errno::result(result).map(drop).map_err(SysError::CloseRange)
}

/// Whether reads and writes return `EAGAIN` instead of waiting. The flag belongs to the open file, so it is shared with
/// duplicates of the descriptor in other processes.
///
/// # Errors
/// [`SysError::Fcntl`].
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> Result<()> {
    let current = fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(SysError::Fcntl)?;
    let mut flags = OFlag::from_bits_retain(current);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags)).map(drop).map_err(SysError::Fcntl)
}

/// A memory file holding `bytes` that nobody can change any more, read position at its start.
///
/// # Errors
/// [`SysError::MemfdCreate`], [`SysError::Write`], [`SysError::Seals`].
pub fn sealed_memfd(name: &CStr, bytes: &[u8]) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags).map_err(SysError::MemfdCreate)?);
    file.write_all(bytes).and_then(|()| file.rewind()).map_err(|error| SysError::Write(errno_of(&error)))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map_err(SysError::Seals)?;
    Ok(file.into())
}

/// The content of a memory file made by [`sealed_memfd`].
///
/// # Errors
/// [`SysError::Seals`] with `EPERM` if it is not fully sealed, so that nobody can change what has been checked;
/// [`SysError::Read`], with `EFBIG` if it is longer than `max_bytes`.
pub fn read_sealed(fd: OwnedFd, max_bytes: usize) -> Result<Vec<u8>> {
    let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(SysError::Seals)?;
    if !SealFlag::from_bits_truncate(seals).contains(all_seals()) {
        return Err(SysError::Seals(nix::errno::Errno::EPERM));
    }
    let mut file = File::from(fd);
    file.rewind().map_err(|error| SysError::Read(errno_of(&error)))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|error| SysError::Read(errno_of(&error)))?;
    if bytes.len() > max_bytes {
        return Err(SysError::Read(nix::errno::Errno::EFBIG));
    }
    Ok(bytes)
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

/// The errno inside an error of the standard library, `EIO` if there is none.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> nix::errno::Errno {
    error.raw_os_error().map_or(nix::errno::Errno::EIO, nix::errno::Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    fn cloexec(fd: &OwnedFd) -> bool {
        let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap();
        FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC)
    }

    #[test]
    fn a_sealed_file_reads_back_and_refuses_writes() {
        let fd = sealed_memfd(c"plan", b"mount this").unwrap();
        assert!(cloexec(&fd));
        let copy = fd.try_clone().unwrap();
        assert!(File::from(copy).write_all(b"x").is_err());
        assert_eq!(read_sealed(fd.try_clone().unwrap(), 10).unwrap(), b"mount this");
        assert_eq!(read_sealed(fd, 9), Err(SysError::Read(Errno::EFBIG)));
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let fd = memfd_create(c"plan", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert_eq!(read_sealed(fd, 100), Err(SysError::Seals(Errno::EPERM)));
        let pipe = nix::unistd::pipe().unwrap().0;
        assert!(matches!(read_sealed(pipe, 100), Err(SysError::Seals(_))));
    }

    #[test]
    fn inherited_checks_the_number() {
        for bad in [-1, 0, 2, 900_000] {
            assert_eq!(inherited(bad).unwrap_err(), SysError::Fcntl(Errno::EBADF));
        }
        let original = nix::unistd::pipe().unwrap().0;
        let adopted = inherited(original.into_raw_fd()).unwrap();
        assert!(cloexec(&adopted));
        set_cloexec(&adopted, false).unwrap();
        assert!(!cloexec(&adopted));
    }

    #[test]
    fn what_was_left_open_closes_on_exec() {
        let (read, write) = nix::unistd::pipe().unwrap();
        close_on_exec_from(3).unwrap();
        assert!(cloexec(&read) && cloexec(&write));
    }

    #[test]
    fn nonblocking_is_set_and_cleared() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        set_nonblocking(&read, true).unwrap();
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Err(Errno::EAGAIN));
        set_nonblocking(&read, false).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&read, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "{}", read.as_raw_fd());
    }
}
