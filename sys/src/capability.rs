//! Capabilities (capabilities(7)): sets by name, and the four places where a thread has them.
use crate::{Result, SysError};
use nix::errno::Errno;
use nix::libc;
use std::ops::{BitAnd, BitOr};

/// Names in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// `_LINUX_CAPABILITY_VERSION_3`: 64-bit sets in two 32-bit halves.
const VERSION_3: u32 = 0x2008_0522;
/// Securebits (securebits.h): root's id gives no capabilities, a change of id takes or gives none, nothing can be kept
/// over one, no ambient ones can be raised; each with its lock.
pub const SECUREBITS_NO_ROOT_LOCKED: u32 = 0b0000_0011;
/// See [`SECUREBITS_NO_ROOT_LOCKED`]: `SECBIT_NO_CAP_AMBIENT_RAISE` with its lock.
pub const SECUREBITS_NO_AMBIENT_LOCKED: u32 = 0b1100_0000;
/// `SECBIT_NO_SETUID_FIXUP`: a change of ids takes or gives no capabilities.
pub const SECUREBITS_NO_SETUID_FIXUP: u32 = 0b0000_0100;

/// All names, without `CAP_`, in the order of their numbers.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter()
}

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// The one with this name, with or without `CAP_`, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|known| *known == short).map(|number| Self(1 << number))
    }

    /// The union of what `names` name.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        names.into_iter().try_fold(Self::EMPTY, |set, name| Ok(set | Self::named(name).ok_or(name)?))
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// From a bit mask, bit n for capability n.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As a bit mask, bit n for capability n.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    fn numbers(self) -> impl Iterator<Item = libc::c_ulong> {
        (0..64).filter(move |number| self.0 >> number & 1 == 1)
    }
}

impl BitOr for CapabilitySet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for CapabilitySet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The sets that capset(2) changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadSets {
    /// Checked by the kernel.
    pub effective: CapabilitySet,
    /// What may become effective.
    pub permitted: CapabilitySet,
    /// What a program with inheritable file capabilities may get.
    pub inheritable: CapabilitySet,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The calling thread's sets.
///
/// # Errors
/// [`SysError::CapGet`].
pub fn thread_sets() -> Result<ThreadSets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 reads one header and writes two halves, laid out as in linux/capability.h.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    Errno::result(result).map_err(SysError::CapGet)?;
    let join =
        |half: fn(Half) -> u32| CapabilitySet(u64::from(half(halves[0])) | u64::from(half(halves[1])) << 32);
    Ok(ThreadSets {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

/// Replaces the calling thread's sets.
///
/// # Errors
/// [`SysError::CapSet`].
pub fn set_thread_sets(sets: ThreadSets) -> Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Half {
        effective: (sets.effective.0 >> shift) as u32,
        permitted: (sets.permitted.0 >> shift) as u32,
        inheritable: (sets.inheritable.0 >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two halves.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) };
    Errno::result(result).map(drop).map_err(SysError::CapSet)
}

/// Drops from the bounding set whatever the kernel knows and `keep` does not have: no exec can ever give it back.
///
/// # Errors
/// [`SysError::CapBoundingDrop`]; needs `CAP_SETPCAP`.
pub fn limit_bounding_set(keep: CapabilitySet) -> Result<()> {
    for number in bounding_set()?.numbers().filter(|number| keep.0 >> number & 1 == 0) {
        prctl(libc::PR_CAPBSET_DROP, number, 0).map_err(SysError::CapBoundingDrop)?;
    }
    Ok(())
}

/// The calling thread's bounding set.
///
/// # Errors
/// [`SysError::Prctl`].
pub fn bounding_set() -> Result<CapabilitySet> {
    let mut bits = 0;
    for number in 0..64 {
        match prctl(libc::PR_CAPBSET_READ, number, 0) {
            Ok(present) => bits |= u64::from(present != 0) << number,
            // The first number that this kernel does not know.
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(SysError::Prctl(errno)),
        }
    }
    Ok(CapabilitySet(bits))
}

/// Makes the ambient set, which programs without file capabilities get, exactly `set`. It must be permitted and inheritable.
///
/// # Errors
/// [`SysError::Prctl`].
pub fn set_ambient(set: CapabilitySet) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)
        .map_err(SysError::Prctl)?;
    for number in set.numbers() {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, number)
            .map_err(SysError::Prctl)?;
    }
    Ok(())
}

/// Sets the calling thread's securebits.
///
/// # Errors
/// [`SysError::Prctl`]; needs `CAP_SETPCAP`.
pub fn set_securebits(bits: u32) -> Result<()> {
    prctl(libc::PR_SET_SECUREBITS, libc::c_ulong::from(bits), 0).map(drop).map_err(SysError::Prctl)
}

/// Whether setuid to an ordinary id keeps the permitted set, until the next exec.
///
/// # Errors
/// [`SysError::Prctl`].
pub fn set_keep_capabilities(on: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(on), 0).map(drop).map_err(SysError::Prctl)
}

fn prctl(option: libc::c_int, second: libc::c_ulong, third: libc::c_ulong) -> nix::Result<libc::c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used in this file take numbers only.
    Errno::result(unsafe { libc::prctl(option, second, third, zero, zero) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Capabilities belong to threads, so that a test can lose them without hurting the others.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    fn status(field: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn names_are_their_kernel_numbers() {
        assert_eq!(CapabilitySet::named("CAP_NET_RAW").unwrap().bits(), 1 << 13);
        assert_eq!(CapabilitySet::named("sys_admin").unwrap().bits(), 1 << 21);
        assert_eq!(CapabilitySet::named("CAP_CHECKPOINT_RESTORE").unwrap().bits(), 1 << 40);
        assert_eq!(CapabilitySet::of(["chown", "CAP_FLY"]), Err("CAP_FLY"));
    }

    #[test]
    fn dropped_sets_are_what_the_kernel_shows() {
        on_a_thread(|| {
            let keep = CapabilitySet::of(["CAP_CHOWN", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"]).unwrap();
            limit_bounding_set(keep).unwrap();
            let sets = ThreadSets { effective: keep, permitted: keep, inheritable: keep };
            set_thread_sets(sets).unwrap();
            assert_eq!(thread_sets().unwrap(), sets);
            let ambient = CapabilitySet::named("chown").unwrap();
            set_ambient(ambient).unwrap();
            set_ambient(CapabilitySet::EMPTY).unwrap();
            set_ambient(ambient).unwrap();
            let shown = ["CapBnd:", "CapEff:", "CapPrm:", "CapInh:"].map(status);
            assert_eq!((shown, status("CapAmb:")), ([keep.bits(); 4], ambient.bits()));
            assert_eq!(bounding_set().unwrap(), keep);
        });
    }

    #[test]
    fn what_is_not_permitted_cannot_be_taken_back() {
        on_a_thread(|| {
            let all = thread_sets().unwrap();
            set_thread_sets(ThreadSets::default()).unwrap();
            assert_eq!(set_thread_sets(all), Err(SysError::CapSet(Errno::EPERM)));
            assert_eq!(
                limit_bounding_set(CapabilitySet::EMPTY),
                Err(SysError::CapBoundingDrop(Errno::EPERM))
            );
        });
    }

    #[test]
    fn securebits_stay_locked() {
        on_a_thread(|| {
            set_securebits(SECUREBITS_NO_ROOT_LOCKED | SECUREBITS_NO_AMBIENT_LOCKED).unwrap();
            assert_eq!(set_securebits(0), Err(SysError::Prctl(Errno::EPERM)));
            set_keep_capabilities(true).unwrap();
        });
    }
}
