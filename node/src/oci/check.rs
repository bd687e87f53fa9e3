//! What the specification says that a configuration MUST be, beyond its types, and what cannot be given here.
//!
//! Whatever is asked for and not done is refused, or told as a warning: nothing is dropped in silence.
use super::error::OciError;
use super::plan::Kind;
use oci_spec::runtime::{
    Hook, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use std::collections::BTreeSet;
use std::path::{Component, Path};

type Checked = Result<(), OciError>;

/// # Errors
/// [`OciError::Config`] for what is wrong, [`OciError::Unsupported`] for what cannot be given.
pub(super) fn check(spec: &Spec) -> Checked {
    version(spec.version())?;
    let root = spec.root().as_ref().ok_or_else(|| wrong("root is missing"))?;
    require(!root.path().as_os_str().is_empty(), "root.path is empty")?;
    no_nul("root.path", root.path().as_os_str().as_encoded_bytes())?;
    foreign(spec)?;
    spec.mounts().iter().flatten().try_for_each(mount)?;
    spec.process().as_ref().map_or(Ok(()), process)?;
    hooks(spec)?;
    match spec.linux() {
        Some(section) => linux(section)?,
        None => return Err(wrong("linux is missing: a container without it would have nothing of its own")),
    }
    names_of_host(spec)
}

fn wrong(what: impl Into<String>) -> OciError {
    OciError::Config(what.into())
}

fn require(condition: bool, otherwise: &str) -> Checked {
    if condition { Ok(()) } else { Err(wrong(otherwise)) }
}

/// Refuses `what` where `asked`.
fn cannot(asked: bool, what: &str) -> Checked {
    if asked { Err(OciError::Unsupported(what.into())) } else { Ok(()) }
}

fn no_nul(what: &str, bytes: &[u8]) -> Checked {
    if bytes.contains(&0) { Err(wrong(format!("{what} contains a zero byte"))) } else { Ok(()) }
}

/// Semantic versioning 2.0.0, of a version that is compatible with ours.
fn version(text: &str) -> Checked {
    let shown: String = text.chars().take(40).collect();
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    let number = |part: &&str| {
        part.bytes().all(|byte| byte.is_ascii_digit())
            && (1..=9).contains(&part.len())
            && (!part.starts_with('0') || *part == "0")
    };
    let rest = text.get(core.len()..).unwrap_or_default();
    let tail = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    if numbers.len() != 3 || !numbers.iter().all(number) || !tail {
        return Err(wrong(format!("ociVersion '{shown}' is no version, such as 1.0.2")));
    }
    cannot(numbers.first() != Some(&"1"), &format!("version '{shown}' of the specification instead of 1.x"))
}

fn foreign(spec: &Spec) -> Checked {
    cannot(spec.solaris().is_some(), "a Solaris container")?;
    cannot(spec.windows().is_some(), "a Windows container")?;
    cannot(spec.vm().is_some(), "a virtual machine")?;
    cannot(spec.zos().is_some(), "a z/OS container")
}

fn absolute(what: &str, path: &Path) -> Checked {
    no_nul(what, path.as_os_str().as_encoded_bytes())?;
    if path.is_absolute() {
        Ok(())
    } else {
        Err(wrong(format!("{what} '{}' is not absolute", path.display())))
    }
}

fn mount(mount: &Mount) -> Checked {
    absolute("the mount destination", mount.destination())?;
    let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    cannot(mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()), "a mount with its own id mappings")
}

fn process(process: &Process) -> Checked {
    absolute("process.cwd", process.cwd())?;
    let args = process.args().as_deref().unwrap_or_default();
    require(args.first().is_some_and(|first| !first.is_empty()), "process.args is empty")?;
    args.iter().try_for_each(|argument| no_nul("process.args", argument.as_bytes()))?;
    for variable in process.env().iter().flatten() {
        no_nul("process.env", variable.as_bytes())?;
        let named = variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        require(named, "process.env has an entry that is not NAME=value")?;
    }
    let mut kinds = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let kind = limit.typ();
        if kinds.contains(&kind) {
            return Err(wrong(format!("process.rlimits has {kind} twice")));
        }
        require(limit.soft() <= limit.hard(), "process.rlimits has a soft limit above its hard one")?;
        kinds.push(kind);
    }
    let adjustment = process.oom_score_adj().unwrap_or(0);
    require((-1000..=1000).contains(&adjustment), "process.oomScoreAdj is not between -1000 and 1000")?;
    let umask = process.user().umask().unwrap_or(0);
    require(umask <= 0o777, "process.user.umask is more than 0777")?;
    let named = |name: &Option<String>, none: &str| {
        name.as_ref().is_some_and(|name| !name.is_empty() && name != none)
    };
    cannot(named(process.apparmor_profile(), "unconfined"), "an AppArmor profile")?;
    cannot(named(process.selinux_label(), ""), "an SELinux label")?;
    cannot(process.io_priority().is_some(), "process.ioPriority")?;
    cannot(process.scheduler().is_some(), "process.scheduler")?;
    cannot(process.exec_cpu_affinity().is_some(), "process.execCPUAffinity")
}

fn hooks(spec: &Spec) -> Checked {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let prestart = hooks.prestart();
    let lists = [
        prestart,
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists.into_iter().flatten().flatten().try_for_each(hook)
}

fn hook(hook: &Hook) -> Checked {
    absolute("the path of a hook", hook.path())?;
    require(hook.timeout().is_none_or(|seconds| seconds > 0), "the timeout of a hook is not above 0")?;
    let texts = hook.args().iter().flatten().chain(hook.env().iter().flatten());
    texts.into_iter().try_for_each(|text| no_nul("a hook", text.as_bytes()))
}

fn linux(linux: &Linux) -> Checked {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let mut kinds = Vec::new();
    for namespace in namespaces {
        if kinds.contains(&namespace.typ()) {
            return Err(wrong(format!("linux.namespaces has {} twice", namespace.typ())));
        }
        kinds.push(namespace.typ());
        namespace.path().as_ref().map_or(Ok(()), |path| absolute("the path of a namespace", path))?;
    }
    mappings(linux, namespaces)?;
    sysctls(linux, namespaces)?;
    for (what, paths) in
        [("a masked path", linux.masked_paths()), ("a read-only path", linux.readonly_paths())]
    {
        paths.iter().flatten().try_for_each(|path| absolute(what, Path::new(path)))?;
    }
    let mut devices = BTreeSet::new();
    for device in linux.devices().iter().flatten() {
        absolute("the path of a device", device.path())?;
        if !devices.insert(device.path()) {
            return Err(wrong(format!("linux.devices has {} twice", device.path().display())));
        }
    }
    if let Some(path) = linux.cgroups_path() {
        no_nul("linux.cgroupsPath", path.as_os_str().as_encoded_bytes())?;
        let climbs = path.components().any(|part| matches!(part, Component::ParentDir));
        require(!climbs, "linux.cgroupsPath contains '..'")?;
        let systemd = path.to_string_lossy().contains(':');
        require(!systemd, "linux.cgroupsPath is one of systemd's (slice:prefix:name), give a path")?;
    }
    linux.resources().as_ref().map_or(Ok(()), resources)?;
    let labelled = linux.mount_label().as_ref().is_some_and(|label| !label.is_empty());
    cannot(labelled, "an SELinux label for mounts")?;
    cannot(linux.intel_rdt().is_some(), "linux.intelRdt")?;
    cannot(linux.memory_policy().is_some(), "linux.memoryPolicy")?;
    cannot(linux.personality().is_some(), "linux.personality")?;
    cannot(linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()), "linux.netDevices")?;
    let offsets = linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty());
    require(
        !offsets || is_new(namespaces, LinuxNamespaceType::Time),
        "linux.timeOffsets needs a new time namespace",
    )
}

fn has(namespaces: &[LinuxNamespace], kind: LinuxNamespaceType) -> bool {
    namespaces.iter().any(|namespace| namespace.typ() == kind)
}

fn is_new(namespaces: &[LinuxNamespace], kind: LinuxNamespaceType) -> bool {
    namespaces.iter().any(|namespace| namespace.typ() == kind && namespace.path().is_none())
}

fn mappings(linux: &Linux, namespaces: &[LinuxNamespace]) -> Checked {
    /// user_namespaces(7): lines that one write may have.
    const MOST: usize = 340;
    let new = is_new(namespaces, LinuxNamespaceType::User);
    for (what, list) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        let list = list.as_deref().unwrap_or_default();
        if new == list.is_empty() {
            let rule = "go with a new user namespace, and it with them";
            return Err(wrong(format!("linux.{what} {rule}")));
        }
        let root = list.iter().any(|mapping| mapping.container_id() == 0 && mapping.size() > 0);
        if new && !root {
            return Err(wrong(format!("linux.{what} have no entry for id 0, which sets the container up")));
        }
        require(list.len() <= MOST, "linux has more than 340 id mappings")?;
    }
    Ok(())
}

/// Which namespace holds what (runc and crun have the same lists).
fn sysctls(linux: &Linux, namespaces: &[LinuxNamespace]) -> Checked {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for (name, value) in linux.sysctl().iter().flatten() {
        let dotted = name.replace('/', ".");
        let parts_are_names = dotted.split('.').all(|part| !part.is_empty());
        require(parts_are_names && !name.contains('\0'), "linux.sysctl has a name that is none")?;
        no_nul("linux.sysctl", value.as_bytes())?;
        let kind = match dotted.as_str() {
            name if name.starts_with("net.") => LinuxNamespaceType::Network,
            name if name.starts_with("fs.mqueue.") || IPC.contains(&name) => LinuxNamespaceType::Ipc,
            "kernel.domainname" | "kernel.hostname" => LinuxNamespaceType::Uts,
            _ => return Err(wrong(format!("linux.sysctl {name} is the host's, not a container's"))),
        };
        if !has(namespaces, kind) {
            let kind = Kind::from(kind).name;
            return Err(wrong(format!(
                "linux.sysctl {name} needs a {kind} namespace of the container's own"
            )));
        }
    }
    Ok(())
}

fn names_of_host(spec: &Spec) -> Checked {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    for (what, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
        if !has(&namespaces, LinuxNamespaceType::Uts) {
            return Err(wrong(format!("{what} needs a uts namespace of the container's own")));
        }
        /// `__NEW_UTS_LEN` of linux/utsname.h.
        const MOST: usize = 64;
        require(name.len() <= MOST, "hostname or domainname is longer than 64 bytes")?;
    }
    Ok(())
}

fn resources(resources: &LinuxResources) -> Checked {
    if let Some(memory) = resources.memory() {
        let kernel = memory.kernel();
        let bounds = |value: Option<i64>| value.is_some_and(|value| value > 0);
        cannot(
            bounds(kernel) || bounds(memory.kernel_tcp()),
            "a limit of kernel memory, which cgroup v2 has not",
        )?;
        cannot(memory.swappiness().is_some(), "memory.swappiness, which cgroup v2 has not")?;
        cannot(
            memory.disable_oom_killer() == Some(true),
            "memory.disableOOMKiller, which cgroup v2 has not",
        )?;
    }
    if let Some(cpu) = resources.cpu() {
        let real_time = cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0;
        cannot(real_time, "real-time CPU limits, which cgroup v2 has not")?;
    }
    if let Some(io) = resources.block_io() {
        let leaf = io.leaf_weight().is_some()
            || io.weight_device().iter().flatten().any(|device| device.leaf_weight().is_some());
        cannot(leaf, "blockIO.leafWeight, which cgroup v2 has not")?;
    }
    if let Some(network) = resources.network() {
        let asked = network.class_id().unwrap_or(0) != 0
            || network.priorities().as_ref().is_some_and(|list| !list.is_empty());
        cannot(asked, "resources.network, which cgroup v2 has not")?;
    }
    for device in resources.devices().iter().flatten() {
        let access = device.access().as_deref().unwrap_or_default();
        let known = access.bytes().all(|letter| b"rwm".contains(&letter));
        require(known, "linux.resources.devices has an access other than r, w and m")?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
