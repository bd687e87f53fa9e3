//! Keeps the node's own program out of the reach of containers.
//!
//! While this process has not yet become the container's program, or if an image asks to execute `/proc/self/exe`, the
//! container could open the node's program through /proc and overwrite it (CVE-2019-5736). On a board it lies on a
//! read-only file system. Elsewhere this process executes itself again from a read-only, detached mount of it: what
//! /proc then leads to cannot be opened for writing.
use super::super::report::{Failure, Step};
use nix::errno::Errno;
use rustix::fs::{CWD, StatVfsMountFlags, fstat, fstatvfs};
use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use wherry_sys::mount::{Attributes, detached_copy, restrict_tree};

/// The last argument, so that this is tried once only.
const DONE: &str = "shielded";

/// Returns once this program cannot be written through /proc. `argument` is by what `main` knows what runs here; the process's
/// own arguments may be those of another one that this is a copy of.
pub(in super::super) fn shield(argument: &str) -> Result<(), Failure> {
    let own = std::env::args_os().collect::<Vec<_>>();
    let tried = own.last().is_some_and(|last| last == DONE);
    let name = own.into_iter().next().unwrap_or_default().into_vec();
    let arguments = [name, argument.into(), DONE.into()].map(CString::new);
    execute_again(tried, &arguments.into_iter().filter_map(Result::ok).collect::<Vec<_>>(), &[])
}

/// The same for a program whose arguments are not its own to add to: it keeps its environment, with one more variable.
#[cfg(feature = "oci")]
pub(crate) fn shield_with_environment() -> Result<(), Failure> {
    const VARIABLE: &str = "WHERRY_SHIELDED";
    let join = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()).ok()
    };
    let mut environment: Vec<CString> = std::env::vars_os().filter_map(join).collect();
    environment.extend(CString::new(format!("{VARIABLE}=1")));
    execute_again(std::env::var_os(VARIABLE).is_some(), &arguments(), &environment)
}

#[cfg(feature = "oci")]
fn arguments() -> Vec<CString> {
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}

fn execute_again(tried: bool, arguments: &[CString], environment: &[CString]) -> Result<(), Failure> {
    let fail = |errno: Errno| Failure::new(Step::Shield, "", errno);
    let program = File::open("/proc/self/exe").map_err(|error| fail(wherry_sys::fd::errno_of(&error)))?;
    let flags = fstatvfs(&program).map_err(|errno| fail(Errno::from_raw(errno.raw_os_error())))?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    if tried {
        return Err(fail(Errno::EROFS));
    }
    execute_copy(&program, arguments, environment).map_err(fail)
}

fn execute_copy(program: &File, arguments: &[CString], environment: &[CString]) -> Result<(), Errno> {
    let io = |error: std::io::Error| wherry_sys::fd::errno_of(&error);
    let rustix = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let path = std::fs::read_link("/proc/self/exe").map_err(io)?;
    let copy = detached_copy(CWD, &path).map_err(|error| error.errno())?;
    let (a, b) = (fstat(program).map_err(rustix)?, fstat(&copy).map_err(rustix)?);
    if (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino) {
        return Err(Errno::ESTALE);
    }
    restrict_tree(&copy, Attributes::READ_ONLY, false).map_err(|error| error.errno())?;
    match nix::unistd::fexecve(&copy, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => Err(errno),
    }
}
