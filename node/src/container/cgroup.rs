//! Bounds of a container: one cgroup v2 directory each (Documentation/admin-guide/cgroup-v2.rst).
//!
//! The root directory is passed in, so that tests use plain files.
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use wherry_protocol::ContainerId;
use wherry_protocol::message::Resources;
use wherry_protocol::policy::MIN_MEMORY_BYTES;

/// Processes and threads of a container that asked for no bound: enough for a database, too few for a fork bomb to
/// exhaust a board's pid space.
pub const DEFAULT_PIDS: u32 = 512;
/// Period over which `cpu.max` is accounted, in microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;
/// What a container needs from the kernel.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const CONTROLLERS_ON: &str = "+cpu +memory +pids";

/// Why a cgroup cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: {source}")]
pub struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

impl CgroupError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self { path: path.into(), source }
    }
}

/// The node's subtree, in which containers get their directories.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
    /// Whether `root` is in a cgroup v2 hierarchy at all.
    hierarchy: bool,
    limits: bool,
    default_memory_bytes: u64,
}

impl Cgroups {
    /// Uses (and makes) `root`; a container that asks for no bound gets `default_memory_bytes`.
    ///
    /// # Errors
    /// When `root` cannot be made. Controllers that the kernel does not offer are no error: see [`Cgroups::limits`].
    pub fn open(root: PathBuf, default_memory_bytes: u64) -> Result<Self, CgroupError> {
        fs::create_dir_all(&root).map_err(CgroupError::at(&root))?;
        let hierarchy = root.join("cgroup.controllers").exists();
        let offers = |directory: &Path| {
            let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
            CONTROLLERS.iter().all(|name| offered.split_whitespace().any(|have| have == *name))
        };
        // What the directory above has but does not hand down yet is handed down now.
        if let Some(above) = root.parent().filter(|above| !offers(&root) && offers(above)) {
            write(&above.join("cgroup.subtree_control"), CONTROLLERS_ON)?;
        }
        let limits = offers(&root);
        if limits {
            write(&root.join("cgroup.subtree_control"), CONTROLLERS_ON)?;
        }
        Ok(Self { root, hierarchy, limits, default_memory_bytes })
    }

    /// Whether bounds are enforced; false where the kernel lacks a controller.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.limits
    }

    /// Makes the directory of `container` with its bounds set.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left then.
    pub fn create(&self, container: ContainerId, resources: &Resources) -> Result<Cgroup, CgroupError> {
        let cgroup = self.of(container);
        fs::create_dir_all(&cgroup.path).map_err(CgroupError::at(&cgroup.path))?;
        let result = self.bound(&cgroup, resources);
        if result.is_err() {
            fs::remove_dir(&cgroup.path).ok();
        }
        result.map(|()| cgroup)
    }

    /// The directory of `container`, which may or may not exist.
    #[must_use]
    pub fn of(&self, container: ContainerId) -> Cgroup {
        Cgroup { path: self.root.join(container.to_string()), hierarchy: self.hierarchy }
    }

    fn bound(&self, cgroup: &Cgroup, resources: &Resources) -> Result<(), CgroupError> {
        if !self.limits {
            return Ok(());
        }
        for (file, value) in settings(resources, self.default_memory_bytes) {
            let path = cgroup.path.join(file);
            // A kernel without swap has no bound for it either.
            if file != SWAP || path.exists() {
                write(&path, &value)?;
            }
        }
        Ok(())
    }
}

const SWAP: &str = "memory.swap.max";

/// What is written where: pure.
fn settings(resources: &Resources, default_memory_bytes: u64) -> Vec<(&'static str, String)> {
    let memory = resources.memory_bytes.unwrap_or(default_memory_bytes).max(MIN_MEMORY_BYTES);
    let cpu = match resources.cpu_milli {
        Some(milli) => format!("{} {CPU_PERIOD_US}", (u64::from(milli) * CPU_PERIOD_US / 1000).max(1000)),
        None => format!("max {CPU_PERIOD_US}"),
    };
    vec![
        ("memory.max", memory.to_string()),
        // A bound that swap could stretch is none; boards have no swap anyway.
        (SWAP, "0".into()),
        // One process over the bound ends the container: half a service is worse than none.
        ("memory.oom.group", "1".into()),
        ("cpu.max", cpu),
        ("pids.max", resources.pids.unwrap_or(DEFAULT_PIDS).max(1).to_string()),
    ]
}

/// One container's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
    hierarchy: bool,
}

impl Cgroup {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a cgroup; where there is no cgroup v2 it is an ordinary directory that bounds nothing.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.hierarchy
    }

    /// Its directory, for CLONE_INTO_CGROUP.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn directory(&self) -> Result<OwnedFd, CgroupError> {
        File::open(&self.path).map(Into::into).map_err(CgroupError::at(&self.path))
    }

    /// Moves a process in (for exec).
    ///
    /// # Errors
    /// When it or the process is gone.
    pub fn join(&self, pid: u32) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Whether the kernel killed something in it for lack of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        field(&events, "oom_kill") > 0
    }

    /// Whether its processes are frozen, or about to be.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.hierarchy
            && fs::read_to_string(self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Freezes its processes, or lets them go on. It is so once [`Cgroup::has_settled`] says it.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no cgroup.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether all of its processes are frozen, or none is being frozen.
    #[must_use]
    pub fn has_settled(&self, frozen: bool) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        field(&events, "frozen") == u64::from(frozen)
    }

    /// Kills everything in it.
    ///
    /// # Errors
    /// When the kernel refuses; a directory that is gone is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if !self.hierarchy || !self.path.exists() {
            return Ok(());
        }
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes it; already gone is fine.
    ///
    /// # Errors
    /// When something still runs in it (EBUSY).
    pub fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::at(&self.path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(CgroupError::at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(controllers: &str) -> (tempfile::TempDir, Cgroups) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.controllers"), controllers).unwrap();
        let cgroups = Cgroups::open(directory.path().into(), 64 << 20).unwrap();
        (directory, cgroups)
    }

    #[test]
    fn bounds_are_written_and_defaults_are_never_none() {
        let (_directory, cgroups) = root_with("cpuset cpu io memory pids\n");
        assert!(cgroups.limits());
        let resources = Resources { memory_bytes: None, cpu_milli: Some(500), pids: None };
        let cgroup = cgroups.create(ContainerId(3), &resources).unwrap();
        let read = |name| fs::read_to_string(cgroup.path().join(name)).unwrap();
        assert!(cgroup.path().ends_with("c3"));
        assert_eq!(read("memory.max"), (64 << 20).to_string());
        // The test's directory has no such file, like a kernel without swap.
        assert!(!cgroup.path().join(SWAP).exists());
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("pids.max"), "512");
    }

    #[test]
    fn controllers_are_handed_down() {
        let above = tempfile::tempdir().unwrap();
        fs::write(above.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let cgroups = Cgroups::open(above.path().join("wherry"), 64 << 20).unwrap();
        assert_eq!(fs::read_to_string(above.path().join("cgroup.subtree_control")).unwrap(), CONTROLLERS_ON);
        assert!(!cgroups.limits(), "ordinary files do not appear below");
    }

    #[test]
    fn without_a_hierarchy_nothing_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::open(directory.path().join("wherry"), 64 << 20).unwrap();
        let cgroup = cgroups.create(ContainerId(1), &Resources::default()).unwrap();
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.is_real() && !cgroup.path().exists());
    }

    #[test]
    fn missing_controllers_are_told_not_hidden() {
        let (_directory, cgroups) = root_with("cpu pids\n");
        assert!(!cgroups.limits());
        let cgroup = cgroups.create(ContainerId(1), &Resources::default()).unwrap();
        assert!(!cgroup.path().join("pids.max").exists());
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
    }

    #[test]
    fn nonsense_bounds_are_raised_to_what_works() {
        let resources = Resources { memory_bytes: Some(1), cpu_milli: Some(0), pids: Some(0) };
        let settings = settings(&resources, 0);
        assert!(settings.contains(&("memory.max", MIN_MEMORY_BYTES.to_string())));
        assert!(settings.contains(&("cpu.max", "1000 100000".into())));
        assert!(settings.contains(&("pids.max", "1".into())));
    }

    #[test]
    fn out_of_memory_is_read_from_the_events() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup { path: directory.path().into(), hierarchy: true };
        assert!(!cgroup.out_of_memory());
        fs::write(directory.path().join("memory.events"), "low 0\noom 1\noom_kill 1\n").unwrap();
        assert!(cgroup.out_of_memory());
    }
}
