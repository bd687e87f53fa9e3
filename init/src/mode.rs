//! Where this program runs, decided once; everybody else asks [`Abilities`].
use std::path::{Path, PathBuf};

/// The three places the same code runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of hardware.
    Board,
    /// PID 1 of a virtual machine.
    Vm,
    /// An ordinary process, or PID 1 of somebody's pid namespace: tests and a developer's laptop.
    Process,
}

/// What the decision is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Own process id.
    pub pid: u32,
    /// `--process` was given.
    pub as_process: bool,
    /// The machine says that it is virtual.
    pub virtual_machine: bool,
}

/// PID 1 by accident would mount over a running system; an ordinary process cannot be a machine's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "`init` is for the kernel to start as process 1, and this is process {pid}: use `init --process --root DIR` for an ordinary process"
)]
pub struct NotProcessOne {
    /// Own process id.
    pub pid: u32,
}

impl Mode {
    /// # Errors
    /// [`NotProcessOne`] for an ordinary process that was not asked to be one.
    pub fn derive(observed: Observed) -> Result<Self, NotProcessOne> {
        match (observed.as_process, observed.pid, observed.virtual_machine) {
            (true, _, _) => Ok(Self::Process),
            (false, 1, true) => Ok(Self::Vm),
            (false, 1, false) => Ok(Self::Board),
            (false, pid, _) => Err(NotProcessOne { pid }),
        }
    }

    /// In the environment of the service.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Board => "board",
            Self::Vm => "vm",
            Self::Process => "process",
        }
    }

    /// The inverse of [`word`](Self::word).
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Board, Self::Vm, Self::Process].into_iter().find(|mode| mode.word() == word)
    }
}

/// What is possible here, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities(u8);

impl Abilities {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Mount and unmount the machine's file systems, set its limits, bring up `lo`.
    pub const MACHINE: Self = Self(1);
    /// reboot(2): ends the machine, or the pid namespace whose PID 1 this is.
    pub const POWER: Self = Self(2);
    /// The hardware watchdog is ours.
    pub const WATCHDOG: Self = Self(4);
    /// The kernel's log is ours.
    pub const KERNEL_LOG: Self = Self(8);

    /// What a mode can do.
    #[must_use]
    pub fn of(mode: Mode, pid: u32) -> Self {
        match (mode, pid) {
            (Mode::Board | Mode::Vm, _) => {
                Self(Self::MACHINE.0 | Self::POWER.0 | Self::WATCHDOG.0 | Self::KERNEL_LOG.0)
            }
            (Mode::Process, 1) => Self::POWER,
            (Mode::Process, _) => Self::NONE,
        }
    }

    /// Whether all of `needed` is possible.
    #[must_use]
    pub fn supports(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }
}

/// The places of this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// `/`, or the directory given with `--root`: everything is below it.
    pub root: PathBuf,
    /// `wherry.toml`, read-only on boards.
    pub config: PathBuf,
    /// What survives a reboot.
    pub data: PathBuf,
    /// Gone with a reboot.
    pub run: PathBuf,
    /// The cgroup v2 tree. On boards it is mounted here; a process has its own only where somebody delegated one.
    pub cgroup: PathBuf,
}

impl Dirs {
    /// Below `root`.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        let cgroup = if root == Path::new("/") { root.join("sys/fs/cgroup") } else { root.join("cgroup") };
        Self {
            root: root.to_owned(),
            config: root.join("config"),
            data: root.join("data"),
            run: root.join("run"),
            cgroup,
        }
    }
}

/// Whether the machine says that it is virtual: DMI vendor (PCs and UEFI), the device tree's board (QEMU's `virt`) or
/// the processor's hypervisor flag (x86 without DMI).
#[must_use]
pub fn is_virtual(dmi_vendor: &str, device_tree: &[u8], cpuinfo: &str) -> bool {
    const VENDORS: [&str; 4] = ["QEMU", "Amazon EC2", "VMware, Inc.", "innotek GmbH"];
    let flag =
        |line: &str| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor");
    VENDORS.contains(&dmi_vendor.trim())
        || device_tree.split(|byte| *byte == 0).any(|board| board == b"linux,dummy-virt")
        || cpuinfo.lines().any(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_derived_from_three_facts() {
        let derive =
            |as_process, pid, virtual_machine| Mode::derive(Observed { pid, as_process, virtual_machine });
        assert_eq!(derive(false, 1, false), Ok(Mode::Board));
        assert_eq!(derive(false, 1, true), Ok(Mode::Vm));
        for pid in [1, 77] {
            assert_eq!(derive(true, pid, true), Ok(Mode::Process));
        }
        assert_eq!(derive(false, 77, true), Err(NotProcessOne { pid: 77 }));
    }

    #[test]
    fn a_process_never_touches_the_machine() {
        let all = [Abilities::MACHINE, Abilities::POWER, Abilities::WATCHDOG, Abilities::KERNEL_LOG];
        for ability in all {
            assert!(Abilities::of(Mode::Board, 1).supports(ability));
            assert!(!Abilities::of(Mode::Process, 77).supports(ability));
        }
        assert_eq!(Abilities::of(Mode::Process, 1), Abilities::POWER, "it may end its own pid namespace");
    }

    #[test]
    fn words_are_pinned() {
        for (mode, word) in [(Mode::Board, "board"), (Mode::Vm, "vm"), (Mode::Process, "process")] {
            assert_eq!((mode.word(), Mode::from_word(word)), (word, Some(mode)));
        }
        assert_eq!(Mode::from_word("laptop"), None);
    }

    #[test]
    fn places_are_below_the_root() {
        assert_eq!(Dirs::below(Path::new("/")).cgroup, Path::new("/sys/fs/cgroup"));
        assert_eq!(Dirs::below(Path::new("/")).data, Path::new("/data"));
        assert_eq!(Dirs::below(Path::new("/t")).cgroup, Path::new("/t/cgroup"));
    }

    #[test]
    fn virtual_machines_are_recognised() {
        assert!(is_virtual("QEMU\n", b"", ""));
        assert!(is_virtual("", b"linux,dummy-virt\0", ""));
        assert!(is_virtual("", b"", "flags\t\t: fpu de hypervisor lahf_lm\n"));
        assert!(!is_virtual("Raspberry Pi", b"raspberrypi,4-model-b\0brcm,bcm2711\0", "flags : fpu\n"));
    }
}
