//! The container's cgroup: making it with its bounds, and taking away what was made.
use super::error::OciError;
use super::plan::cgroup::{OWN, Plan, Setting};
use super::store::CgroupRecord;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a directory above may vanish: another container that has made it ends, and it was empty just then.
const ATTEMPTS: u32 = 100;

/// Where cgroup v2 is mounted, by the text of /proc/self/mountinfo: pure.
fn hierarchy(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        file_system.starts_with("cgroup2 ").then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Makes the container's directory, as planned. None where there is no cgroup v2 and nothing is to be bounded.
///
/// # Errors
/// [`OciError::Cgroup`]; nothing is left then.
pub(super) fn create(plan: &Plan) -> Result<Option<CgroupRecord>, OciError> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo");
    let mountinfo = mountinfo.map_err(OciError::io("reading", Path::new("/proc/self/mountinfo")))?;
    match hierarchy(&mountinfo) {
        Some(root) => create_in(&root, plan).map(Some),
        None if plan.is_empty() => Ok(None),
        None => {
            Err(OciError::Cgroup("config.json has linux.resources, but no cgroup v2 is mounted here".into()))
        }
    }
}

fn create_in(root: &Path, plan: &Plan) -> Result<CgroupRecord, OciError> {
    let mut record = CgroupRecord { path: root.join(&plan.path), made: Vec::new() };
    let result = fill(root, plan, &mut record);
    if let Err(error) = result {
        remove_made(&record).map_err(|second| OciError::Cgroup(format!("{error}; then {second}")))?;
        return Err(error);
    }
    Ok(record)
}

fn fill(root: &Path, plan: &Plan, record: &mut CgroupRecord) -> Result<(), OciError> {
    let at = (0..ATTEMPTS).find_map(|_| descend(root, plan, record).transpose());
    let at = at.unwrap_or_else(|| {
        let shown = root.join(&plan.path);
        Err(OciError::Cgroup(format!("cgroup {} is removed again and again by others", shown.display())))
    })?;
    refuse_unfit(&at)?;
    plan.settings.iter().try_for_each(|setting| write(&at, setting))
}

/// From now on only what the rules allow. Called when the container has its devices: to make those takes a right that the
/// rules need not give.
///
/// # Errors
/// [`OciError::Cgroup`].
pub(super) fn restrict_devices(record: &CgroupRecord, plan: &Plan) -> Result<(), OciError> {
    if plan.devices.is_empty() {
        return Ok(());
    }
    wherry_sys::bpf::attach_device_program(&plan.devices, directory(&record.path)?).map_err(|error| {
        OciError::Cgroup(format!("the rules of linux.resources.devices cannot be enforced: {error}"))
    })
}

/// Makes what is missing. None if something on the way vanished.
fn descend(root: &Path, plan: &Plan, record: &mut CgroupRecord) -> Result<Option<PathBuf>, OciError> {
    let mut at = root.to_owned();
    for name in &plan.path {
        match enable(&at, plan) {
            Err(_) if !at.exists() => return Ok(None),
            result => result?,
        }
        at.push(name);
        match fs::create_dir(&at) {
            Ok(()) if record.made.contains(&at) => {}
            Ok(()) => record.made.push(at.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // ENODEV is what the kernel says while the one above is being removed.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ENODEV) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed("making", &at, &error)),
        }
    }
    Ok(Some(at))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> OciError {
    OciError::Cgroup(format!("{what} cgroup {} failed: {error}", path.display()))
}

/// Hands controllers down from `directory`.
fn enable(directory: &Path, plan: &Plan) -> Result<(), OciError> {
    let file = directory.join("cgroup.subtree_control");
    for controller in plan.controllers() {
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let has = |list: String| list.split_whitespace().any(|have| have == controller);
        if !has(read("cgroup.controllers")) {
            let there = read("cgroup.controllers");
            return Err(OciError::Cgroup(format!(
                "config.json needs the {controller} controller, but {} has only: {}",
                directory.display(),
                if there.trim().is_empty() { "none" } else { there.trim() }
            )));
        }
        if !has(read("cgroup.subtree_control")) {
            fs::write(&file, format!("+{controller}")).map_err(|error| failed("changing", &file, &error))?;
        }
    }
    Ok(())
}

/// A cgroup that is in use would be bounded, and killed, with the container.
fn refuse_unfit(path: &Path) -> Result<(), OciError> {
    let read = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
    let events = read("cgroup.events");
    for (line, is) in [("populated 1", "has processes already"), ("frozen 1", "is frozen")] {
        if events.lines().any(|have| have == line) {
            return Err(OciError::Cgroup(format!(
                "cgroup {} {is}, choose another cgroupsPath",
                path.display()
            )));
        }
    }
    Ok(())
}

fn write(directory: &Path, setting: &Setting) -> Result<(), OciError> {
    let path = directory.join(&setting.file);
    if !path.exists() && setting.optional {
        return Ok(());
    }
    // Never makes a file: in a cgroup that is refused, elsewhere it would hide a mistake.
    let file = File::options().write(true).open(&path);
    file.and_then(|mut file| io::Write::write_all(&mut file, setting.value.as_bytes())).map_err(|error| {
        OciError::Cgroup(format!("writing '{}' to {} failed: {error}", setting.value, path.display()))
    })
}

/// For starting a process in it.
pub(super) fn directory(path: &Path) -> Result<OwnedFd, OciError> {
    File::open(path).map(OwnedFd::from).map_err(|error| failed("opening", path, &error))
}

/// Signals every process in it, and below.
///
/// # Errors
/// When it cannot be read.
pub(super) fn signal_all(record: &CgroupRecord, signal: i32) -> Result<(), OciError> {
    for directory in below(&record.path) {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in text.lines().filter_map(|line| line.parse().ok()) {
            // One that has ended meanwhile needs no signal.
            if let Ok(pidfd) = wherry_sys::process::pidfd_open(nix::unistd::Pid::from_raw(pid)) {
                wherry_sys::process::pidfd_send_signal(pidfd, signal).ok();
            }
        }
    }
    Ok(())
}

/// Kills what still runs in it and removes what `create` made, and what the container made in that.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn destroy(record: &CgroupRecord) -> Result<(), OciError> {
    let own = record.made.contains(&record.path);
    let populated = fs::read_to_string(record.path.join("cgroup.events")).unwrap_or_default();
    if populated.lines().any(|line| line == "populated 1") {
        let kill = record.path.join("cgroup.kill");
        fs::write(&kill, "1").map_err(|error| failed("killing", &record.path, &error))?;
    }
    if own {
        for directory in below(&record.path).into_iter().rev() {
            remove(&directory).map_err(|error| failed("removing", &directory, &error))?;
        }
    }
    remove_made(record)?;
    // The directory of all those that do not say where they want to be goes with the last of them.
    match record.path.ancestors().find(|above| above.ends_with(OWN)) {
        Some(own) if own != record.path => drop(fs::remove_dir(own)),
        Some(_) | None => {}
    }
    Ok(())
}

/// `path` and all directories below it, those above first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(directories.map(|entry| entry.path()));
        next += 1;
    }
    found
}

fn remove_made(record: &CgroupRecord) -> Result<(), OciError> {
    for directory in record.made.iter().rev() {
        let result = if *directory == record.path { remove(directory) } else { fs::remove_dir(directory) };
        match result {
            // Others have put something beside the container.
            Err(error)
                if *directory != record.path
                    && matches!(
                        error.kind(),
                        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
                    ) =>
            {
                return Ok(());
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", directory, &error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Killed processes are in it for a while.
fn remove(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(path: &str, settings: &[(&str, &str, bool)]) -> Plan {
        let setting = |&(file, value, optional): &(&str, &str, bool)| Setting {
            file: file.into(),
            value: value.into(),
            optional,
        };
        Plan { path: path.into(), settings: settings.iter().map(setting).collect(), devices: Vec::new() }
    }

    #[test]
    fn the_hierarchy_is_found_among_mounts() {
        let text = "25 30 0:23 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n26 25 0:24 / /a\\040b rw shared:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchy(text), Some("/a b".into()));
        assert_eq!(hierarchy("25 30 0:23 / /x ro - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn what_was_there_before_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("old")).unwrap();
        let record = create_in(root.path(), &plan("old/new/c", &[])).unwrap();
        assert_eq!(record.made, [root.path().join("old/new"), root.path().join("old/new/c")]);
        fs::create_dir_all(record.path.join("made/inside")).unwrap();
        fs::create_dir(root.path().join("old/new/other")).unwrap();
        destroy(&record).unwrap();
        assert!(!record.path.exists() && root.path().join("old/new/other").exists());
        destroy(&record).unwrap();
    }

    #[test]
    fn a_missing_controller_is_told_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        let error = create_in(root.path(), &plan("a/b", &[("memory.max", "1", false)])).unwrap_err();
        let says = format!("needs the memory controller, but {} has only: cpu pids", root.path().display());
        assert!(error.to_string().contains(&says), "{error}");
        let error = create_in(root.path(), &plan("a/b", &[("cgroup.type", "x", false)])).unwrap_err();
        assert!(error.to_string().contains("writing 'x' to"), "{error}");
        assert!(!root.path().join("a").exists());
        create_in(root.path(), &plan("a", &[("cgroup.type", "x", true)])).unwrap();
    }
}
