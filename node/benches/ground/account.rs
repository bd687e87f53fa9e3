//! How much memory a supervisor, its service (this process) and all that they start use, the kernel's own for them included: a memory cgroup, of either
//! version (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst).
use std::fs::{self, File};
use std::io::Write as _;
use std::ops::{Add, Sub};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// In KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of programs, of files in memory and of the kernel.
    pub total_kib: i64,
    /// Of that, the kernel's.
    pub kernel_kib: i64,
}

impl Sub for Usage {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self { total_kib: self.total_kib - before.total_kib, kernel_kib: self.kernel_kib - before.kernel_kib }
    }
}

impl Add for Usage {
    type Output = Self;
    fn add(self, more: Self) -> Self {
        Self { total_kib: self.total_kib + more.total_kib, kernel_kib: self.kernel_kib + more.kernel_kib }
    }
}

/// The group that this process and its supervisor are in as long as this lives. Its files stay open: the benchmarks unmount what they are on.
pub(crate) struct Account {
    total: File,
    kernel: (File, &'static str),
    above: File,
    directory: File,
    name: String,
}

impl Account {
    /// `None` where no cgroup counts memory.
    pub(crate) fn open(name: &str) -> Option<Self> {
        let (own, total, kernel) = place()?;
        let group = own.join(name);
        fs::create_dir_all(&group).unwrap();
        let above = File::options().write(true).open(own.join("cgroup.procs")).unwrap();
        let open = |name: &str| File::open(group.join(name)).unwrap();
        let account = Self {
            total: open(total),
            kernel: (open(kernel.0), kernel.1),
            above,
            directory: File::open(&own).unwrap(),
            name: name.to_owned(),
        };
        for process in both() {
            fs::write(group.join("cgroup.procs"), process.to_string()).unwrap();
        }
        Some(account)
    }

    /// With what is in `containers`, where the node bounds them by cgroups that count memory themselves.
    pub(crate) fn usage(&self, containers: &Path) -> Usage {
        let (kernel, name) = &self.kernel;
        let own = Usage { total_kib: kib(&self.total, ""), kernel_kib: kib(kernel, name) };
        let open = |name: &str| File::open(containers.join(name)).ok();
        match (open("memory.current"), open("memory.stat")) {
            (Some(total), Some(kernel)) => {
                own + Usage { total_kib: kib(&total, ""), kernel_kib: kib(&kernel, "kernel ") }
            }
            _ => own,
        }
    }
}

/// The number after `name`, which begins a line.
fn kib(file: &File, name: &str) -> i64 {
    let mut bytes = vec![0; 16 * 1024];
    let length = file.read_at(&mut bytes, 0).unwrap();
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    number.trim().parse::<i64>().unwrap() / 1024
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut left = both().into_iter().map(|process| self.above.write_all(process.to_string().as_bytes()));
        let removed = left.find(Result::is_err).unwrap_or(Ok(())).and_then(|()| {
            let flags = rustix::fs::AtFlags::REMOVEDIR;
            Ok(rustix::fs::unlinkat(&self.directory, self.name.as_str(), flags)?)
        });
        if let Err(error) = removed {
            eprintln!("the cgroup {} stays: {error}", self.name);
        }
    }
}

/// This process's own group, the file with all memory, and that with the kernel's and the word before the number.
fn place() -> Option<(PathBuf, &'static str, (&'static str, &'static str))> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = |controller: &str| {
        let line = groups.lines().find_map(|line| line.split_once(&format!(":{controller}:")))?;
        Some(line.1.trim_start_matches('/').to_owned())
    };
    let first = Path::new("/sys/fs/cgroup/memory");
    // In a container of somebody else's the path may be another one than that which is mounted here.
    if let Some(group) = own("memory").map(|own| first.join(own)).filter(|group| group.is_dir()) {
        return Some((group, "memory.usage_in_bytes", ("memory.kmem.usage_in_bytes", "")));
    }
    let root = Path::new("/sys/fs/cgroup");
    let second = own("").map(|own| root.join(own)).filter(|group| group.join("memory.current").exists())?;
    Some((second, "memory.current", ("memory.stat", "kernel ")))
}

/// Of supervisor and service: memory of their own, and their share of what they have in common with others.
pub(crate) fn pss_kib() -> i64 {
    both().into_iter().map(pss_of).sum()
}

fn pss_of(process: u32) -> i64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Supervisor and service.
fn both() -> [u32; 2] {
    [std::os::unix::process::parent_id(), std::process::id()]
}
