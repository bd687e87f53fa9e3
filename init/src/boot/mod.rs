//! What PID 1 of a machine does before anything else: file systems, loopback, limits.
//!
//! The mounts are data, and every step goes on after a failure: a machine that runs badly can be looked at, one that
//! stopped at boot cannot.
pub mod disk;

use crate::command_line::CommandLine;
use crate::environment::Data;
use crate::log::Log;
use crate::mode::Dirs;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};

/// One mount of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountStep {
    /// File system type, also shown as the source.
    pub kind: &'static str,
    /// Where.
    pub target: &'static str,
    /// With which flags.
    pub flags: MsFlags,
    /// With which options of the file system.
    pub options: &'static str,
    /// Whether the directory is made first; the others exist in the root image.
    pub make: bool,
}

const STRICT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const FILES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// File systems of the kernel and in memory, in order. Sizes keep a runaway writer from taking the board's memory.
pub const MOUNTS: [MountStep; 8] = [
    MountStep { kind: "proc", target: "/proc", flags: STRICT, options: "", make: false },
    MountStep { kind: "sysfs", target: "/sys", flags: STRICT, options: "", make: false },
    MountStep {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: "mode=0755",
        make: false,
    },
    // Group 5 is tty in every distribution, so that programs in containers agree.
    MountStep {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=0620,ptmxmode=0666",
        make: true,
    },
    MountStep { kind: "tmpfs", target: "/dev/shm", flags: STRICT, options: "mode=1777,size=25%", make: true },
    MountStep { kind: "tmpfs", target: "/run", flags: FILES, options: "mode=0755,size=25%", make: false },
    MountStep { kind: "tmpfs", target: "/tmp", flags: FILES, options: "mode=1777,size=25%", make: false },
    MountStep { kind: "cgroup2", target: "/sys/fs/cgroup", flags: STRICT, options: "", make: false },
];

/// How long the partitions are waited for: SD cards and USB are found a while after PID 1 starts.
const DISK_WAIT: Duration = Duration::from_secs(5);
const DISK_POLL: Duration = Duration::from_millis(20);

/// Descriptors of one process: the supervisor keeps up to 18 for each container, the service has sockets.
const MAX_OPEN_FILES: u64 = 65_536;

/// Mounts the plan. Call it before the log exists, because that is in one of the mounts; the problems are returned.
#[must_use]
pub fn mount_all(steps: &[MountStep]) -> Vec<String> {
    let failed =
        |step: &MountStep| Some(format!("cannot mount {}: {}", step.target, apply(step).err()?.desc()));
    steps.iter().filter_map(failed).collect()
}

fn apply(step: &MountStep) -> nix::Result<()> {
    if step.make {
        fs::create_dir_all(step.target).ok();
    }
    match mount(Some(step.kind), step.target, Some(step.kind), step.flags, Some(step.options)) {
        // The kernel has mounted /dev already.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The rest of the machine's state, after [`mount_all`].
pub fn prepare(log: &Log, dirs: &Dirs, command_line: CommandLine) -> Data {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, link).ok();
    }
    enable_controllers(log, &dirs.cgroup);
    if let Err(error) = wherry_sys::net::loopback_up() {
        log.warning(format_args!("no loopback interface: {error}"));
    }
    if let Err(error) = wherry_sys::power::ctrl_alt_del_signals() {
        log.warning(format_args!("ctrl-alt-del stays a hard reset: {error}"));
    }
    mount_config(log, dirs, command_line);
    mount_data(log, dirs, command_line)
}

/// Lets this process and its children have as many descriptors as it may.
pub fn raise_limits() {
    let hard =
        nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_OPEN_FILES, |(_, hard)| hard);
    let most = setrlimit(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES, hard.max(MAX_OPEN_FILES));
    if most.is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
    }
}

/// Hands the controllers that the kernel has to the groups below the root. One at a time: an unknown one must not keep
/// the others off.
fn enable_controllers(log: &Log, cgroup: &Path) {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in ["cpu", "io", "memory", "pids"] {
        let known = available.split_whitespace().any(|word| word == controller);
        let enable = || fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
        match known.then(enable) {
            Some(Ok(())) => {}
            Some(Err(error)) => log.warning(format_args!("cgroup controller {controller}: {error}")),
            None => {
                log.warning(format_args!("the kernel has no cgroup controller {controller}: no such limits"))
            }
        }
    }
}

/// FAT knows no owners: everything on it is root's alone.
fn mount_config(log: &Log, dirs: &Dirs, command_line: CommandLine) {
    let flags = STRICT | MsFlags::MS_RDONLY;
    // A machine without a data partition may well have no disk at all.
    let longest = if command_line.data_in_memory { Duration::ZERO } else { DISK_WAIT };
    let Some(device) = wait_for(&disk::CONFIG, longest) else {
        return log.error("no partition wherry-config: this board has no configuration");
    };
    if let Err(errno) = mount(Some(&device), &dirs.config, Some("vfat"), flags, Some("umask=0077")) {
        log.error(format_args!("cannot mount {} as configuration: {}", device.display(), errno.desc()));
    }
}

fn mount_data(log: &Log, dirs: &Dirs, command_line: CommandLine) -> Data {
    if command_line.data_in_memory {
        let options = Some("mode=0755,size=50%");
        return match mount(Some("tmpfs"), &dirs.data, Some("tmpfs"), FILES, options) {
            Ok(()) => Data::Memory,
            Err(_) => Data::Absent,
        };
    }
    let Some(device) = wait_for(&disk::DATA, DISK_WAIT) else {
        log.error("no partition wherry-data: nothing can be stored on this board");
        return Data::Absent;
    };
    let flags = FILES | MsFlags::MS_NOATIME;
    match mount(Some(&device), &dirs.data, Some("ext4"), flags, Some("errors=remount-ro")) {
        Ok(()) => Data::Mounted,
        Err(errno) => {
            let device = device.display();
            log.error(format_args!(
                "DATA PARTITION {device} IS DAMAGED ({}): nothing is stored",
                errno.desc()
            ));
            log.error(format_args!(
                "it is left as it is: rescue it with `e2fsck {device}` from another system"
            ));
            Data::Damaged
        }
    }
}

fn wait_for(wanted: &disk::Wanted, longest: Duration) -> Option<std::path::PathBuf> {
    let mut waited = Duration::ZERO;
    loop {
        let found = disk::find(wanted);
        if found.is_some() || waited >= longest {
            return found;
        }
        thread::sleep(DISK_POLL);
        waited = waited.saturating_add(DISK_POLL);
    }
}

/// Makes the directories of an ordinary process, which has no mounts.
///
/// # Errors
/// What mkdir says.
pub fn make_dirs(dirs: &Dirs) -> io::Result<()> {
    [&dirs.config, &dirs.data, &dirs.run].into_iter().try_for_each(fs::create_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_strict_and_in_order() {
        let place = |target| MOUNTS.iter().position(|step| step.target == target).unwrap();
        assert!(place("/sys") < place("/sys/fs/cgroup") && place("/dev") < place("/dev/pts"));
        for step in MOUNTS {
            assert!(step.flags.contains(MsFlags::MS_NOSUID), "{}", step.target);
            let has_devices = ["/dev", "/dev/pts"].contains(&step.target);
            assert!(has_devices || step.flags.contains(MsFlags::MS_NODEV), "{}", step.target);
            assert!(step.kind != "tmpfs" || step.options.contains("size="), "{}", step.target);
        }
    }

    #[test]
    fn a_failed_mount_is_told_and_the_next_one_tried() {
        let broken = MountStep { kind: "nofs", target: "/nowhere", flags: STRICT, options: "", make: false };
        let problems = mount_all(&[broken, broken]);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("cannot mount /nowhere: "), "{problems:?}");
    }
}
