//! Which system calls a container may make: an allow list, everything else is refused.
//!
//! The list starts from what Docker allows without extra capabilities and leaves out what reads other processes
//! (ptrace, process_vm_*), file handles, io_uring, kernel keys and rarely used doors. What is refused gets `EPERM`, but
//! calls that a C library knows how to do without (clone3, and numbers newer than this list) get `ENOSYS`.
use nix::libc;
use seccompiler::sock_filter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) mod tree;

use tree::{Answer, Check};

/// One instruction of classic BPF (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// The compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(Vec<Instruction>);

impl Filter {
    /// Compiles the list; done once per service.
    #[must_use]
    pub fn compile() -> Self {
        Self(tree::compile(ARCHITECTURE, &answers()))
    }

    /// Binds this thread and all that it starts, for ever. Sets no_new_privs too.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn install(&self) -> Result<(), seccompiler::Error> {
        let program: Vec<sock_filter> = self.0.iter().map(sock_filter::from).collect();
        seccompiler::apply_filter(&program)
    }
}

impl From<&Instruction> for sock_filter {
    fn from(instruction: &Instruction) -> Self {
        let Instruction { code, jt, jf, k } = *instruction;
        Self { code, jt, jf, k }
    }
}

/// `AUDIT_ARCH_*` of linux/audit.h: calls of another kind (32-bit programs) end the process.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCHITECTURE: u32 = 0xC000_00B7;

/// Highest number assigned when this list was made (mseal, Linux 6.10). What is above is new to us; programs that try
/// it know what to do on an older kernel. The numbers of x32 programs are above as well.
const NEWEST_CALL: u32 = 462;

/// clone(2) flags that make namespaces.
const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// Address families: local, IPv4, IPv6 and netlink (which libraries ask for addresses and routes).
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// personality(2): default, no randomisation of addresses, 32-bit uname, both, and "only ask".
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Every call number's answer, up to the first that is new to us.
fn answers() -> BTreeMap<u32, Answer> {
    let number = |call: i64| u32::try_from(call).unwrap_or(u32::MAX);
    let mut answers: BTreeMap<u32, Answer> = (0..=NEWEST_CALL).map(|call| (call, Answer::Refuse)).collect();
    answers.extend(allowed().into_iter().map(|(_, call)| (number(call), Answer::Allow)));
    let families = FAMILIES.map(i32::unsigned_abs).to_vec();
    let checks = [
        (libc::SYS_socket, Check::OneOf { argument: 0, values: families }),
        (libc::SYS_personality, Check::OneOf { argument: 0, values: PERSONALITIES.to_vec() }),
        (libc::SYS_clone, Check::NoneOf { argument: 0, bits: NAMESPACE_FLAGS }),
        // Putting characters into the input of a terminal that somebody else types into.
        (libc::SYS_ioctl, Check::Not { argument: 1, value: libc::TIOCSTI as u32 }),
    ];
    answers.extend(checks.map(|(call, check)| (number(call), Answer::If(check))));
    answers.insert(number(libc::SYS_clone3), Answer::Unknown);
    answers.insert(NEWEST_CALL + 1, Answer::Unknown);
    answers
}

macro_rules! calls {
    ($($name:ident)*) => { vec![$((stringify!($name), libc::$name),)*] };
}

/// Calls that are allowed whatever their arguments.
fn allowed() -> Vec<(&'static str, i64)> {
    let mut list = common();
    list.extend(of_this_processor());
    list.extend(YOUNG);
    list
}

/// Calls of Linux 6.5 to 6.7 that libc has no names for (asm-generic/unistd.h, the same numbers on both processors): what
/// newer C libraries and language runtimes try first, and no more than futex(2), mincore(2) and mmap(2) do already. Refused
/// with `EPERM` they would be taken for failures and not for an older kernel.
const YOUNG: [(&str, i64); 5] = [
    ("SYS_cachestat", 451),
    ("SYS_map_shadow_stack", 453),
    ("SYS_futex_wake", 454),
    ("SYS_futex_wait", 455),
    ("SYS_futex_requeue", 456),
];

fn common() -> Vec<(&'static str, i64)> {
    calls! {
        SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_adjtime
        SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect
        SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
        SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64
        SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync
        SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync
        SYS_ftruncate SYS_futex SYS_futex_waitv SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64
        SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid
        SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage
        SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr
        SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy
        SYS_io_getevents SYS_io_setup SYS_io_submit SYS_ioprio_get SYS_ioprio_set SYS_kill
        SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat
        SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise
        SYS_membarrier SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall
        SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend
        SYS_mq_unlink SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
        SYS_munlockall SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open
        SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl
        SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease SYS_pselect6 SYS_pwrite64
        SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg
        SYS_recvmsg SYS_removexattr SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction
        SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend
        SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
        SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
        SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
        SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop
        SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address SYS_setfsgid
        SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid
        SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setuid SYS_setxattr
        SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socketpair
        SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee
        SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
        SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask
        SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    }
}

/// Calls that x86-64 has from older days and newer processors never got.
#[cfg(target_arch = "x86_64")]
fn of_this_processor() -> Vec<(&'static str, i64)> {
    // libc has no name for it (asm/unistd_64.h).
    const IO_PGETEVENTS: i64 = 333;
    let mut list = calls! {
        SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
        SYS_epoll_wait SYS_eventfd SYS_fchmodat2 SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp
        SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_open SYS_pause SYS_pipe SYS_poll
        SYS_readlink SYS_rename SYS_renameat SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time
        SYS_unlink SYS_utime SYS_utimes SYS_vfork
    };
    list.push(("SYS_io_pgetevents", IO_PGETEVENTS));
    list
}

/// Calls that not every processor has.
#[cfg(target_arch = "aarch64")]
fn of_this_processor() -> Vec<(&'static str, i64)> {
    // libc has no names for these here (asm-generic/unistd.h).
    const FCHMODAT2: i64 = 452;
    const IO_PGETEVENTS: i64 = 292;
    let mut list = calls! { SYS_renameat };
    list.extend([("SYS_fchmodat2", FCHMODAT2), ("SYS_io_pgetevents", IO_PGETEVENTS)]);
    list
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a container must never be able to do, by name.
    const FORBIDDEN: &[(&str, i64)] = &[
        ("acct", libc::SYS_acct),
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("chroot", libc::SYS_chroot),
        ("clock_settime", libc::SYS_clock_settime),
        ("delete_module", libc::SYS_delete_module),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("finit_module", libc::SYS_finit_module),
        ("fsopen", libc::SYS_fsopen),
        ("init_module", libc::SYS_init_module),
        ("io_uring_enter", libc::SYS_io_uring_enter),
        ("io_uring_register", libc::SYS_io_uring_register),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("kcmp", libc::SYS_kcmp),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("mount", libc::SYS_mount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("move_mount", libc::SYS_move_mount),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("open_tree", libc::SYS_open_tree),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("pivot_root", libc::SYS_pivot_root),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("ptrace", libc::SYS_ptrace),
        ("quotactl", libc::SYS_quotactl),
        ("reboot", libc::SYS_reboot),
        ("request_key", libc::SYS_request_key),
        ("setdomainname", libc::SYS_setdomainname),
        ("sethostname", libc::SYS_sethostname),
        ("setns", libc::SYS_setns),
        ("settimeofday", libc::SYS_settimeofday),
        ("swapoff", libc::SYS_swapoff),
        ("swapon", libc::SYS_swapon),
        ("syslog", libc::SYS_syslog),
        ("umount2", libc::SYS_umount2),
        ("unshare", libc::SYS_unshare),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("vhangup", libc::SYS_vhangup),
    ];

    #[test]
    fn forbidden_calls_are_not_on_the_list() {
        let allowed = allowed();
        for (name, number) in FORBIDDEN {
            assert!(allowed.iter().all(|(_, other)| other != number), "{name}");
        }
    }

    #[test]
    fn names_and_numbers_are_distinct() {
        let list = allowed();
        let numbers: std::collections::BTreeSet<i64> = list.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers.len(), list.len());
        assert!(numbers.iter().all(|&number| number <= i64::from(NEWEST_CALL)));
    }

    /// Runs one filter as the kernel would (only the operations that occur), for call `number` with `arguments`.
    fn run(filter: &[Instruction], number: i64, arguments: [u64; 6]) -> u32 {
        run_on(ARCHITECTURE, filter, number, arguments).0
    }

    /// The answer, and how many instructions it took.
    pub(crate) fn run_on(
        arch: u32,
        filter: &[Instruction],
        number: i64,
        arguments: [u64; 6],
    ) -> (u32, usize) {
        let mut data = Vec::new();
        data.extend_from_slice(&(number as u32).to_ne_bytes());
        data.extend_from_slice(&arch.to_ne_bytes());
        data.extend_from_slice(&[0; 8]);
        arguments.iter().for_each(|argument| data.extend_from_slice(&argument.to_ne_bytes()));
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        for steps in 1.. {
            let Instruction { code, jt, jf, k } = filter[at];
            let code = u32::from(code);
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1;
            match (code & 0x07, code & 0xf0) {
                (libc::BPF_LD, _) => {
                    let at = k as usize;
                    accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
                }
                (libc::BPF_RET, _) => return (k, steps),
                (libc::BPF_ALU, 0x50) => accumulator &= k,
                (libc::BPF_JMP, 0x00) => at += k as usize,
                (libc::BPF_JMP, 0x10) => at += jump(accumulator == k),
                (libc::BPF_JMP, 0x20) => at += jump(accumulator > k),
                (libc::BPF_JMP, 0x30) => at += jump(accumulator >= k),
                (class, operation) => panic!("unknown instruction {class:#x} {operation:#x}"),
            }
        }
        unreachable!("a filter ends")
    }

    fn answer(number: i64, arguments: [u64; 6]) -> u32 {
        run(&Filter::compile().0, number, arguments)
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    #[test]
    fn calls_get_their_answers() {
        for (name, number) in FORBIDDEN {
            assert_eq!(answer(*number, [0; 6]), EPERM, "{name}");
        }
        for (name, number) in allowed() {
            assert_eq!(answer(number, [0; 6]), ALLOW, "{name}");
        }
        for number in [libc::SYS_clone3, 463, 500, 0x4000_0000 | libc::SYS_read] {
            assert_eq!(answer(number, [0; 6]), ENOSYS, "{number}");
        }
    }

    /// The kernel works out every call's answer beforehand, one by one: a chain of comparisons costs each start half a
    /// millisecond.
    #[test]
    fn answers_are_found_quickly() {
        let Filter(filter) = Filter::compile();
        assert!(filter.len() < 300, "{} instructions", filter.len());
        for number in 0..500 {
            let (_, steps) = run_on(ARCHITECTURE, &filter, number, [0; 6]);
            assert!(steps < 20, "{steps} steps for call {number}");
        }
    }

    #[test]
    fn calls_of_another_architecture_end_the_process() {
        let Filter(filter) = Filter::compile();
        assert_eq!(run_on(0x4000_0003, &filter, libc::SYS_read, [0; 6]).0, libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let first = |number, value| answer(number, [value, 0, 0, 0, 0, 0]);
        assert_eq!(first(libc::SYS_socket, 2), ALLOW);
        for family in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_KEY] {
            assert_eq!(first(libc::SYS_socket, family as u64), EPERM, "{family}");
        }
        assert_eq!(first(libc::SYS_clone, (libc::CLONE_VM | libc::CLONE_THREAD) as u64), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
            assert_eq!(first(libc::SYS_clone, flag as u64), EPERM, "{flag:#x}");
        }
        assert_eq!(first(libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(first(libc::SYS_personality, 0x0040_0000), EPERM);
        assert_eq!(answer(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]), EPERM);
        assert_eq!(answer(libc::SYS_ioctl, [0, libc::TIOCGWINSZ, 0, 0, 0, 0]), ALLOW);
        // Only the lower half of an argument counts for these calls: garbage above must not change the answer.
        assert_eq!(answer(libc::SYS_ioctl, [0, libc::TIOCSTI | 1 << 32, 0, 0, 0, 0]), EPERM);
    }
}
