//! Filters for system calls (seccomp(2)), for those that must not set no_new_privs.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use std::os::raw::c_ulong;

/// One instruction of classic BPF (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What [`install`] may be told besides (`SECCOMP_FILTER_FLAG_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// For all threads of this process at once.
    pub all_threads: bool,
    /// Whatever is refused is logged.
    pub log: bool,
    /// Without the protection against speculative store bypass.
    pub speculation: bool,
}

/// Binds this thread, and all that it starts, by `filter` for ever.
///
/// # Errors
/// [`SysError::Seccomp`]; `EACCES` without `CAP_SYS_ADMIN` or no_new_privs, `EINVAL` for a filter that the kernel finds wrong.
pub fn install(filter: &[Instruction], flags: Flags) -> Result<()> {
    let mut program: Vec<libc::sock_filter> =
        filter.iter().map(|&Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(program.len()).map_err(|_| SysError::Seccomp(Errno::EINVAL))?;
    let bound = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let all = [
        (flags.all_threads, libc::SECCOMP_FILTER_FLAG_TSYNC),
        (flags.log, libc::SECCOMP_FILTER_FLAG_LOG),
        (flags.speculation, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ];
    let flags = all.iter().filter(|(set, _)| *set).fold(0, |sum, (_, flag)| sum | *flag);
    let mode = c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: `bound` describes `program`, which outlives the call; the kernel copies and checks it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags as c_ulong, &raw const bound) };
    Errno::result(result).map(drop).map_err(SysError::Seccomp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_answers_and_a_wrong_one_is_refused() {
        // Filters belong to threads.
        let thread = std::thread::spawn(|| {
            let load = Instruction { code: 0x20, jt: 0, jf: 0, k: 0 };
            let equal = Instruction { code: 0x15, jt: 0, jf: 1, k: libc::SYS_getpgid as u32 };
            let refuse = libc::SECCOMP_RET_ERRNO | Errno::EXDEV as u32;
            let answer = |k| Instruction { code: 0x06, jt: 0, jf: 0, k };
            assert_eq!(install(&[load], Flags::default()), Err(SysError::Seccomp(Errno::EINVAL)));
            let filter = [load, equal, answer(refuse), answer(libc::SECCOMP_RET_ALLOW)];
            install(&filter, Flags { log: true, ..Flags::default() }).unwrap();
            assert_eq!(nix::unistd::getpgid(None), Err(Errno::EXDEV));
        });
        thread.join().unwrap();
    }
}
