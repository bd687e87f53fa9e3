//! `config.json` to a plan: pure, so that a golden file can show all of it.
pub(super) mod cgroup;
pub(super) mod devices;
pub(super) mod mounts;
pub(super) mod process;
pub(super) mod seccomp;

use super::bundle::Bundle;
use super::cli::Id;
use super::error::OciError;
use super::hooks::{Hook, Hooks};
use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use std::path::{Path, PathBuf};
use wherry_sys::mount::Propagation;

/// All that `create` and the container's first process do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) namespaces: Namespaces,
    pub(super) mappings: Option<Mappings>,
    /// Clock, seconds, nanoseconds.
    pub(super) time_offsets: Vec<(String, i64, u32)>,
    pub(super) root: Root,
    pub(super) mounts: Vec<mounts::Mount>,
    pub(super) devices: Vec<devices::Node>,
    pub(super) links: Vec<(&'static str, &'static str)>,
    /// Files below /proc/sys, and what is written there.
    pub(super) sysctls: Vec<(String, String)>,
    pub(super) masked: Vec<String>,
    pub(super) protected: Vec<String>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) process: Option<process::Process>,
    pub(super) cgroup: cgroup::Plan,
    pub(super) hooks: Hooks,
}

impl Plan {
    /// What the configuration asks for and will not have an effect.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.mounts.iter().filter_map(mounts::Mount::warning)
    }
}

/// Those that are neither new nor joined are the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespaces {
    pub(super) new: CloneFlags,
    /// By the file of an existing one.
    pub(super) joined: Vec<(Kind, PathBuf)>,
}

impl Namespaces {
    /// Whether mounts can be made where only the container sees them.
    pub(super) fn own_mounts(&self) -> bool {
        self.new.contains(CloneFlags::CLONE_NEWNS)
    }

    /// Whether ids of the container are others than those of the host, and rights are rights there alone.
    pub(super) fn other_users(&self) -> bool {
        let user = CloneFlags::CLONE_NEWUSER;
        self.new.contains(user) || self.joined.iter().any(|(kind, _)| kind.flag == user)
    }
}

/// A kind of namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) flag: CloneFlags,
    pub(super) name: &'static str,
}

/// `CLONE_NEWTIME` (linux/sched.h), which nix does not name.
pub(super) const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

impl From<LinuxNamespaceType> for Kind {
    fn from(kind: LinuxNamespaceType) -> Self {
        let (flag, name) = match kind {
            LinuxNamespaceType::Mount => (CloneFlags::CLONE_NEWNS, "mount"),
            LinuxNamespaceType::Cgroup => (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
            LinuxNamespaceType::Uts => (CloneFlags::CLONE_NEWUTS, "uts"),
            LinuxNamespaceType::Ipc => (CloneFlags::CLONE_NEWIPC, "ipc"),
            LinuxNamespaceType::User => (CloneFlags::CLONE_NEWUSER, "user"),
            LinuxNamespaceType::Pid => (CloneFlags::CLONE_NEWPID, "pid"),
            LinuxNamespaceType::Network => (CloneFlags::CLONE_NEWNET, "network"),
            LinuxNamespaceType::Time => (NEW_TIME, "time"),
        };
        Self { flag, name }
    }
}

/// What is written to `uid_map` and `gid_map` (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mappings {
    pub(super) users: String,
    pub(super) groups: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    pub(super) propagation: Option<Propagation>,
}

/// # Errors
/// [`OciError::Config`], [`OciError::Unsupported`].
pub(super) fn plan(id: &Id, bundle: &Bundle) -> Result<Plan, OciError> {
    let spec = &bundle.spec;
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces = namespaces(spec);
    let mounts = mounts::plan(spec.mounts().as_deref().unwrap_or_default(), &bundle.path)?;
    let own_dev = !mounts.iter().any(mounts::Mount::is_hosts_dev);
    let mut devices = if own_dev { devices::usual() } else { Vec::new() };
    devices.extend(devices::configured(linux.devices().as_deref().unwrap_or_default())?);
    let filter = linux.seccomp().as_ref().map(seccomp::plan).transpose()?.flatten();
    let process = spec.process().as_ref().map(|process| process::plan(process, filter)).transpose()?;
    Ok(Plan {
        mappings: namespaces.new.contains(CloneFlags::CLONE_NEWUSER).then(|| Mappings {
            users: map(linux.uid_mappings().as_deref().unwrap_or_default()),
            groups: map(linux.gid_mappings().as_deref().unwrap_or_default()),
        }),
        namespaces,
        time_offsets: time_offsets(spec),
        root: root(spec, &bundle.path)?,
        mounts,
        devices,
        links: if own_dev { LINKS.to_vec() } else { Vec::new() },
        sysctls: sysctls(spec),
        masked: linux.masked_paths().clone().unwrap_or_default(),
        protected: linux.readonly_paths().clone().unwrap_or_default(),
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        process,
        cgroup: cgroup::plan(id, linux.cgroups_path().as_deref(), linux.resources().as_ref())?,
        hooks: hooks(spec),
    })
}

/// config-linux.md, "Default Devices", and what programs expect besides.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

fn namespaces(spec: &Spec) -> Namespaces {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let (mut new, mut joined) = (CloneFlags::empty(), Vec::new());
    for namespace in list {
        let kind = Kind::from(namespace.typ());
        match namespace.path() {
            Some(path) => joined.push((kind, path.clone())),
            None => new |= kind.flag,
        }
    }
    Namespaces { new, joined }
}

fn map(mappings: &[LinuxIdMapping]) -> String {
    let line = |map: &LinuxIdMapping| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size());
    mappings.iter().map(line).collect()
}

fn time_offsets(spec: &Spec) -> Vec<(String, i64, u32)> {
    let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().clone()).unwrap_or_default();
    let mut list: Vec<_> = offsets
        .into_iter()
        .map(|(clock, offset)| (clock, offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)))
        .collect();
    list.sort_unstable();
    list
}

fn root(spec: &Spec, bundle: &Path) -> Result<Root, OciError> {
    let root = spec.root().clone().unwrap_or_default();
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let propagation = match propagation.as_deref().unwrap_or_default() {
        "" => None,
        "shared" | "rshared" => Some(Propagation::Shared),
        "slave" | "rslave" => Some(Propagation::Slave),
        "private" | "rprivate" => Some(Propagation::Private),
        "unbindable" | "runbindable" => Some(Propagation::Unbindable),
        other => {
            let rule = "is none of shared, slave, private and unbindable";
            return Err(OciError::Config(format!("linux.rootfsPropagation '{other}' {rule}")));
        }
    };
    let read_only = root.readonly().unwrap_or(false);
    Ok(Root { path: bundle.join(root.path()), read_only, propagation })
}

fn sysctls(spec: &Spec) -> Vec<(String, String)> {
    let all = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
    let mut list: Vec<_> = all.into_iter().map(|(name, value)| (sysctl_file(&name), value)).collect();
    list.sort_unstable();
    list
}

/// Names have dots, unless their first separator is a slash: then dots belong to a name, such as an interface's (sysctl.d(5)).
fn sysctl_file(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name.to_owned(),
        Some(_) | None => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    }
}

fn hooks(spec: &Spec) -> Hooks {
    let Some(hooks) = spec.hooks() else { return Hooks::default() };
    let prestart = hooks.prestart();
    let list = |hooks: &Option<Vec<oci_spec::runtime::Hook>>| hooks.iter().flatten().map(hook).collect();
    Hooks {
        prestart: list(prestart),
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook(hook: &oci_spec::runtime::Hook) -> Hook {
    Hook {
        path: hook.path().clone(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout_seconds: hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()),
    }
}

#[cfg(test)]
mod tests;
