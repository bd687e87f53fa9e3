//! The end: strays killed, file systems unmounted, everything written, the machine off.
use crate::control::Power;
use crate::environment::Environment;
use crate::host::Host;
use crate::log::Log;
use crate::mode::Abilities;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};
use wherry_sys::power::{Ending, end_machine};
use wherry_sys::process;

/// How long the last strays are waited for.
const STRAYS_WAIT: Duration = Duration::from_secs(2);
const STRAYS_POLL: Duration = Duration::from_millis(10);
/// How long a sync may take; a dead disk must not keep the machine from restarting.
const SYNC_WAIT: Duration = Duration::from_secs(10);

/// Kills every process below this one, once.
pub(crate) fn kill_strays() {
    if std::process::id() == 1 {
        // Everything in this pid namespace except PID 1 itself (kill(2)).
        kill(Pid::from_raw(-1), Signal::SIGKILL).ok();
        return;
    }
    for pid in children_of(std::process::id()) {
        kill(pid, Signal::SIGKILL).ok();
    }
}

/// Children by /proc. They are not reaped yet, so their ids cannot have become somebody else's.
fn children_of(parent: u32) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pid_of = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        (parent_in(&stat)? == parent).then_some(Pid::from_raw(pid))
    };
    entries.filter_map(|entry| pid_of(entry.ok()?)).collect()
}

/// The fourth field of /proc/PID/stat; the second may hold blanks and parentheses (proc_pid_stat(5)).
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Kills and reaps until nobody is left: who dies leaves its children to us.
fn end_strays() {
    let mut waited = Duration::ZERO;
    while process::has_children() && waited < STRAYS_WAIT {
        kill_strays();
        while matches!(process::reap(), Ok(Some(_))) {}
        thread::sleep(STRAYS_POLL);
        waited = waited.saturating_add(STRAYS_POLL);
    }
}

/// Ends the machine in order, or leaves this process where it is only that.
pub(crate) fn finish(host: &Host, power: Power) -> ! {
    let Host { log, abilities, environment: Environment { dirs, .. }, .. } = host;
    log.info("unmounting");
    end_strays();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if abilities.supports(Abilities::MACHINE) {
        unmount(log, &unmount_plan(&mounts, Path::new("/")));
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>).ok();
    } else if dirs.root != Path::new("/") {
        unmount(log, &unmount_plan(&mounts, &dirs.root));
    }
    sync_with_deadline();
    let ending = match power {
        Power::PowerOff if !host.off_is_restart => Ending::PowerOff,
        Power::PowerOff | Power::Reboot => Ending::Restart,
    };
    // What only halts must stay down. A restart that hangs, though, is the watchdog's business.
    if let (Ending::PowerOff, Some(watchdog)) = (ending, &host.watchdog) {
        watchdog.disarm().ok();
    }
    leave(log, *abilities, ending)
}

fn unmount(log: &Log, plan: &[PathBuf]) {
    for target in plan {
        if umount2(target, MntFlags::UMOUNT_NOFOLLOW).is_ok() {
            continue;
        }
        // Still in use: at least it is not written to any more.
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let safe = mount(None::<&str>, target, None::<&str>, read_only, None::<&str>);
        if let Err(errno) = safe.and_then(|()| umount2(target, MntFlags::MNT_DETACH)) {
            log.warning(format_args!("{} stays mounted: {}", target.display(), errno.desc()));
        }
    }
}

/// What is mounted below `root`, last first, without the root itself and what the kernel makes up: those hold nothing
/// and are needed to the end.
fn unmount_plan(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    const KEEP: [&str; 5] = ["/proc", "/sys", "/dev", "/dev/pts", "/sys/fs/cgroup"];
    let target = |line: &str| Some(unescape(line.split(' ').nth(4)?));
    let wanted = |target: &PathBuf| {
        target.starts_with(root) && target != root && !KEEP.iter().any(|kept| target == Path::new(kept))
    };
    let mut plan: Vec<PathBuf> = mountinfo.lines().filter_map(target).filter(wanted).collect();
    plan.reverse();
    plan
}

/// Blanks and backslashes are octal in mountinfo (proc_pid_mountinfo(5)).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| octal(after.get(..3)?)).flatten();
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes).into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// sync(2) on a thread of its own, because it cannot be interrupted.
pub(crate) fn sync_with_deadline() {
    let (done, wait) = mpsc::channel();
    let sync = move || {
        nix::unistd::sync();
        done.send(()).ok();
    };
    if thread::Builder::new().spawn(sync).is_ok() {
        wait.recv_timeout(SYNC_WAIT).ok();
    }
}

/// Off it goes.
#[expect(clippy::exit, reason = "the supervisor's last act; there is nobody to return to")]
fn leave(log: &Log, abilities: Abilities, ending: Ending) -> ! {
    if !abilities.supports(Abilities::POWER) {
        std::process::exit(0);
    }
    match end_machine(ending) {
        Ok(never) => match never {},
        // If PID 1 returns the kernel panics, and `panic=` on its command line reboots it.
        Err(error) => log.error(error),
    }
    std::process::exit(1)
}

/// After a panic: nothing can be relied upon, so only what cannot make it worse.
pub(crate) fn emergency(abilities: Abilities) -> ! {
    if abilities.supports(Abilities::POWER) {
        sync_with_deadline();
        end_machine(Ending::Restart).ok();
    } else {
        kill_strays();
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
21 1 254:0 / / ro - erofs /dev/dm-0 ro
22 21 0:20 / /proc rw - proc proc rw
23 21 0:21 / /dev rw - devtmpfs devtmpfs rw
24 23 0:22 / /dev/shm rw - tmpfs tmpfs rw
25 21 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
26 21 259:5 / /data rw - ext4 /dev/vda5 rw
27 26 0:40 / /data/with\\040blank\\134x rw - overlay overlay rw
";

    #[test]
    fn mounts_come_off_in_reverse() {
        let expected = ["/data/with blank\\x", "/data", "/dev/shm"].map(PathBuf::from);
        assert_eq!(unmount_plan(MOUNTINFO, Path::new("/")), expected);
        assert_eq!(unmount_plan(MOUNTINFO, Path::new("/data")), expected[..1]);
        assert!(unmount_plan("garbage\n\n1 2", Path::new("/")).is_empty());
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(unescape("/a\\9zz\\04"), Path::new("/a\\9zz\\04"));
        assert_eq!(unescape("/\\777"), Path::new("/\\777"));
    }

    #[test]
    fn the_parent_is_found_whatever_the_name() {
        assert_eq!(parent_in("12 (a) b (c)) S 7 12 12"), Some(7));
        assert_eq!(parent_in("nonsense"), None);
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children_of(me).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
