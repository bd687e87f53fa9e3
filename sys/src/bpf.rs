//! Programs that decide which devices a cgroup may use (bpf(2);
//! `BPF_PROG_TYPE_CGROUP_DEVICE` in linux/bpf.h).
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Programs of the cgroups below are asked as well.
const ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` as `BPF_PROG_LOAD` reads it; what follows counts as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program (each instruction as the 64 bits of `struct bpf_insn`) and attaches it to a cgroup v2 directory.
///
/// # Errors
/// [`SysError::Bpf`]; `EINVAL` when the kernel finds the program wrong or has no such programs, `EPERM` without rights.
pub fn attach_device_program(instructions: &[u64], cgroup: impl AsFd) -> Result<()> {
    let count = u32::try_from(instructions.len()).map_err(|_| SysError::Bpf(Errno::E2BIG))?;
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instructions: count,
        program: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let number = bpf(PROG_LOAD, &load)?;
    // SAFETY: a new descriptor, close-on-exec as bpf(2) makes them, that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(number) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of plain integers; pointers among them are valid for the call and
    // of the lengths that stand beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Errno::result(result).map(|number| number as RawFd).map_err(SysError::Bpf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_takes_a_program() {
        // r0 = 1; exit
        let allow = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(attach_device_program(&allow, &file), Err(SysError::Bpf(_))));
        let endless = [0x0000_0000_0000_0005];
        assert!(matches!(attach_device_program(&endless, &file), Err(SysError::Bpf(_))));
    }
}
