//! What the child will do, decided beforehand and without touching anything.
use super::health::{self, HealthPlan};
use super::rootfs::ContainerDir;
use super::seccomp::Filter;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use wherry_images::oci::{OciError, ProcessSettings};
use wherry_protocol::message::{ContainerDesired, CopySpec, ExecSpec, ImageManifest, Setting};
use wherry_protocol::text::path_parts;
use wherry_protocol::{ErrorCode, WireError, limits, policy};
use wherry_sys::capability::CapabilitySet;

/// Longest serialised plan, in bytes: arguments and environment (64 KiB), paths of 128 layers, the filter.
pub const MAX_BYTES: usize = 256 * 1024;
/// The group of terminals in every distribution: its members may write to all of them.
pub(super) const TTY: u32 = 5;
/// Volumes of one container.
const MAX_VOLUMES: usize = 64;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Image and wishes do not go together.
    #[error(transparent)]
    Settings(#[from] OciError),
    /// A volume cannot be mounted there.
    #[error(
        "volume path '{0}' cannot be used: give an absolute path without '..', other than / and not below /proc, /sys or /dev"
    )]
    VolumePath(String),
    /// Too many volumes.
    #[error("{0} volumes are more than the {MAX_VOLUMES} that one container may have")]
    TooManyVolumes(usize),
    /// A host name that is none.
    #[error("host name '{0}' cannot be used: 1 to 63 letters, digits, '-' and '.'")]
    Hostname(String),
    /// A wish that is not granted.
    #[error(transparent)]
    Refused(#[from] policy::Refused),
    /// The list of capabilities names one that does not exist.
    #[error("unknown capability {0}")]
    Capability(String),
}

impl From<PlanError> for WireError {
    fn from(error: PlanError) -> Self {
        let code = match &error {
            PlanError::Settings(OciError::TooLarge { .. }) => ErrorCode::TooLarge,
            PlanError::Settings(OciError::NoCommand | OciError::Setting { .. })
            | PlanError::VolumePath(_)
            | PlanError::TooManyVolumes(_)
            | PlanError::Refused(_)
            | PlanError::Hostname(_) => ErrorCode::Invalid,
            PlanError::Settings(_) => ErrorCode::BadImage,
            PlanError::Capability(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// All of it, in the order of its execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What becomes `/`.
    pub root: Root,
    /// Whether its network namespace belongs to its user namespace, if it has one.
    pub owns_network: bool,
    /// The node's data directory: layers and volumes are below it.
    pub data: PathBuf,
    /// Archives that are unpacked there, as long as it is all that there is.
    pub files: Vec<PathBuf>,
    /// Mounted below it, in this order.
    pub mounts: Vec<Mount>,
    /// Character devices.
    pub devices: Vec<Device>,
    /// Symbolic links: where, and to what.
    pub links: Vec<(String, String)>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Paths that get an empty file or directory put over them, where they exist.
    pub masked: Vec<String>,
    /// Paths that become read-only, where they exist.
    pub protected: Vec<String>,
    /// Host name.
    pub hostname: String,
    /// What is executed in the end.
    pub process: Process,
    /// Whether an init of ours stays the first process, and the program is its child.
    pub init: bool,
    /// Whether it says that it waits at the gate, because it may stay there for long.
    pub asleep: bool,
    /// How it is found out whether it is well.
    pub health: Option<HealthPlan>,
    /// What the image consists of: whoever asks later what has changed since must know.
    pub image: ImageManifest,
}

/// An overlay (Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Lowest first: the skeleton, then the image's.
    pub layers: Vec<PathBuf>,
    /// What the container writes.
    pub upper: PathBuf,
    /// Scratch space of overlayfs.
    pub work: PathBuf,
    /// Where it is mounted until it becomes the root.
    pub mount_point: PathBuf,
    /// Whether the container may write to it.
    pub read_only: bool,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What.
    pub source: Source,
    /// Where, inside.
    pub target: String,
    /// How.
    pub flags: Flags,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A new file system: its type, and its options.
    FileSystem(String, Vec<(String, String)>),
    /// A directory of the node.
    Directory(PathBuf),
    /// A file with this text, made anew in the container's own /dev, so that it counts as its memory.
    Text(String),
}

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// No writes.
    pub read_only: bool,
    /// No set-id programs.
    pub no_suid: bool,
    /// No device nodes.
    pub no_devices: bool,
    /// No programs.
    pub no_exec: bool,
}

impl Flags {
    const SUID_ONLY: Self = Self { read_only: false, no_suid: true, no_devices: false, no_exec: false };
    const DATA: Self = Self { no_devices: true, ..Self::SUID_ONLY };
    const NOTHING_RUNS: Self = Self { no_exec: true, ..Self::DATA };
    const LOCKED: Self = Self { read_only: true, ..Self::NOTHING_RUNS };
}

/// A character device, mode 0666.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where, inside.
    pub path: String,
    /// Numbers (admin-guide/devices.txt).
    pub major: u32,
    /// See `major`.
    pub minor: u32,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// File below /proc/sys.
    pub file: String,
    /// What is written there.
    pub value: String,
    /// Whether a kernel without it cannot run the container.
    pub required: bool,
}

/// A process in a container: its first one, or one that exec adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment; HOME is added by the user's entry unless it is there.
    pub env: Vec<(String, String)>,
    /// Working directory; made if it does not exist.
    pub workdir: String,
    /// `user[:group]`, looked up in the container.
    pub user: String,
    /// Whether descriptors 0, 1 and 2 are a terminal that it controls.
    pub tty: bool,
    /// Bounding set, and what root has.
    pub capabilities: u64,
    /// System calls.
    pub filter: Filter,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Signal that asks it to stop.
    pub stop_signal: u8,
    /// Where the container's ids begin on the node; `None` if it shares the node's, for want of a user namespace.
    pub first_id: Option<u32>,
    /// Instead of the program, copying files: of processes that are added only.
    pub copy: Option<CopySpec>,
}

/// A resource limit (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Which.
    pub resource: Resource,
    /// What applies.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// What is limited (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Sigpending,
    Stack,
}

impl Resource {
    const ALL: [Self; 12] = [
        Self::As,
        Self::Core,
        Self::Cpu,
        Self::Data,
        Self::Fsize,
        Self::Memlock,
        Self::Msgqueue,
        Self::Nice,
        Self::Nofile,
        Self::Nproc,
        Self::Sigpending,
        Self::Stack,
    ];

    /// Its name in [`policy::LIMITS`].
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::As => "as",
            Self::Core => "core",
            Self::Cpu => "cpu",
            Self::Data => "data",
            Self::Fsize => "fsize",
            Self::Memlock => "memlock",
            Self::Msgqueue => "msgqueue",
            Self::Nice => "nice",
            Self::Nofile => "nofile",
            Self::Nproc => "nproc",
            Self::Sigpending => "sigpending",
            Self::Stack => "stack",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }
}

/// What the plan is made from besides the wishes.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The image's own settings.
    pub image: &'a wherry_images::oci::ImageConfig,
    /// Its unpacked layers, lowest first.
    pub layers: &'a [PathBuf],
    /// The container's directory.
    pub dir: &'a ContainerDir,
    /// The node's directory of this account's volumes.
    pub volumes: &'a Path,
    /// The board's name servers.
    pub nameservers: &'a [Ipv4Addr],
    /// The compiled filter.
    pub filter: &'a Filter,
    /// The board's devices that it gets.
    pub devices: &'a [Device],
    /// Its archives of files.
    pub files: &'a [PathBuf],
    /// Where its ids begin on the node, if it has a user namespace.
    pub first_id: Option<u32>,
    /// Whether its network namespace is one that belongs to that.
    pub owns_network: bool,
}

/// Decides everything for one life of a container.
///
/// # Errors
/// [`PlanError`].
pub fn plan(desired: &ContainerDesired, around: &Surroundings<'_>) -> Result<Plan, PlanError> {
    let spec = &desired.spec;
    policy::check(spec)?;
    let settings = ProcessSettings::merge(around.image, spec)?;
    let hostname = hostname(desired)?;
    let mut env = vec![("HOSTNAME".to_owned(), hostname.clone())];
    if spec.tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    for (name, value) in &settings.env {
        wherry_images::oci::set_variable(&mut env, name, value)?;
    }
    let mut mounts = kernel_mounts(around.first_id);
    mounts.extend(generated_files(&hostname, desired, around.nameservers));
    mounts.extend(wanted(memory_mounts(&spec.settings).chain(volumes(desired, around.volumes)?)));
    // Below the image, so that its own files and directories win.
    let layers = std::iter::once(around.dir.skeleton()).chain(around.layers.iter().cloned()).collect();
    Ok(Plan {
        root: Root {
            layers,
            upper: around.dir.upper(),
            work: around.dir.work(),
            mount_point: around.dir.mount_point(),
            read_only: spec.read_only,
        },
        owns_network: around.owns_network,
        data: around.dir.data(),
        files: around.files.to_vec(),
        mounts,
        devices: devices().into_iter().chain(around.devices.iter().cloned()).collect(),
        links: links(),
        sysctls: sysctls(&spec.settings),
        masked: owned(&MASKED),
        protected: owned(&PROTECTED),
        hostname,
        process: Process {
            argv: settings.argv,
            env,
            workdir: settings.workdir,
            user: settings.user,
            tty: spec.tty,
            capabilities: capabilities(&spec.settings)?,
            filter: around.filter.clone(),
            limits: limits_of_process(&spec.settings),
            stop_signal: spec.stop_signal().unwrap_or(settings.stop_signal),
            first_id: around.first_id,
            copy: None,
        },
        init: spec.settings.contains(&Setting::Init),
        asleep: spec.is_asleep(),
        image: desired.image.clone(),
        health: health::plan(around.image.healthcheck(), &spec.settings),
    })
}

/// One more process in a container that runs by `first`.
///
/// # Errors
/// When the wishes cannot be passed to a process.
pub fn exec(first: &Process, spec: &ExecSpec) -> Result<Process, PlanError> {
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(OciError::NoCommand.into());
    }
    let mut process = Process { argv: spec.command.clone(), tty: spec.tty.is_some(), ..first.clone() };
    if process.tty {
        wherry_images::oci::set_variable(&mut process.env, "TERM", "xterm")?;
    }
    for (name, value) in &spec.env {
        wherry_images::oci::set_variable(&mut process.env, name, value)?;
    }
    if let Some(workdir) = spec.workdir.as_ref().filter(|workdir| !workdir.is_empty()) {
        process.workdir.clone_from(workdir);
    }
    if let Some(user) = &spec.user {
        process.user.clone_from(user);
    }
    check_process(&process)?;
    Ok(process)
}

/// One that copies files: as root with the usual capabilities, whatever the container's own program may do, so that every
/// file of the container can be read and written. For SFTP, as exec would: it is the other half of a login.
///
/// # Errors
/// When the path cannot be one, or the user.
pub fn copy(first: &Process, copy: &CopySpec) -> Result<Process, PlanError> {
    let path = match copy {
        CopySpec::Out { path } | CopySpec::In { path } => path,
        CopySpec::Sftp { user } => {
            let spec = ExecSpec { command: vec!["sftp".into()], user: user.clone(), ..ExecSpec::default() };
            return Ok(Process { copy: Some(copy.clone()), ..exec(first, &spec)? });
        }
    };
    let process = Process {
        argv: vec!["copy".into()],
        workdir: "/".into(),
        user: "0:0".into(),
        tty: false,
        capabilities: capabilities(&[])?,
        copy: Some(copy.clone()),
        ..first.clone()
    };
    let reason = "it is not an absolute path without '..'";
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        let value = path.chars().take(80).collect();
        return Err(OciError::Setting { what: "path", value, reason }.into());
    }
    Ok(process)
}

/// The same rules as for a container's first process.
fn check_process(process: &Process) -> Result<(), PlanError> {
    let spec = wherry_protocol::message::ContainerSpec {
        entrypoint: Some(process.argv.clone()),
        env: process.env.clone(),
        workdir: Some(process.workdir.clone()),
        user: Some(process.user.clone()),
        ..Default::default()
    };
    ProcessSettings::merge(&wherry_images::oci::ImageConfig::default(), &spec)?;
    Ok(())
}

fn capabilities(settings: &[Setting]) -> Result<u64, PlanError> {
    CapabilitySet::of(policy::capabilities(settings))
        .map(CapabilitySet::bits)
        .map_err(|name| PlanError::Capability(name.to_owned()))
}

fn hostname(desired: &ContainerDesired) -> Result<String, PlanError> {
    const MAX_BYTES: usize = 63;
    let name = desired.spec.hostname.as_deref().unwrap_or(desired.name.as_str());
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=MAX_BYTES).contains(&name.len()) && name.bytes().all(fine) {
        Ok(name.to_owned())
    } else {
        Err(PlanError::Hostname(name.chars().take(80).collect()))
    }
}

fn limits_of_process(settings: &[Setting]) -> Vec<Limit> {
    // Few by default, because some programs close all that could be open; more for those that ask (systemd's choice).
    let files = Limit { resource: Resource::Nofile, soft: 1024, hard: 524_288 };
    let usual = [files, Limit { resource: Resource::Core, soft: 0, hard: 0 }];
    let wanted = settings.iter().filter_map(|setting| match setting {
        Setting::Limit { name, soft, hard } => {
            Resource::named(name).map(|resource| Limit { resource, soft: *soft, hard: *hard })
        }
        _ => None,
    });
    usual.into_iter().chain(wanted).collect()
}

/// What is inside of something else comes after it, or it would be hidden.
fn wanted(mounts: impl Iterator<Item = Mount>) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = mounts.collect();
    mounts.sort_by_key(|mount| path_parts(&mount.target).count());
    mounts
}

/// File systems in memory that somebody wants.
fn memory_mounts(settings: &[Setting]) -> impl Iterator<Item = Mount> {
    settings.iter().filter_map(|setting| match setting {
        Setting::Tmpfs { path, size_bytes } => {
            let options = [("mode", "1777".to_owned()), ("size", size_bytes.to_string())];
            let options = options.map(|(name, value)| (name.to_owned(), value)).into();
            let source = Source::FileSystem("tmpfs".into(), options);
            Some(Mount { source, target: path.clone(), flags: Flags::NOTHING_RUNS })
        }
        _ => None,
    })
}

/// In the way Docker and crun arrange them (OCI runtime-spec, config-linux.md, "Default Filesystems").
fn kernel_mounts(first_id: Option<u32>) -> Vec<Mount> {
    // The kernel takes the node's number.
    let tty = first_id.map_or(TTY, |first| first + TTY).to_string();
    let mount = |kind: &str, target: &str, flags, options: &[(&str, &str)]| Mount {
        source: Source::FileSystem(
            kind.into(),
            options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ),
        target: target.into(),
        flags,
    };
    vec![
        mount("proc", "/proc", Flags::NOTHING_RUNS, &[]),
        mount("tmpfs", "/dev", Flags::SUID_ONLY, &[("mode", "755"), ("size", "65536k")]),
        mount(
            "devpts",
            "/dev/pts",
            Flags { no_exec: true, ..Flags::SUID_ONLY },
            &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", &tty)],
        ),
        mount("tmpfs", "/dev/shm", Flags::NOTHING_RUNS, &[("mode", "1777"), ("size", "65536k")]),
        mount("mqueue", "/dev/mqueue", Flags::NOTHING_RUNS, &[]),
        mount("sysfs", "/sys", Flags::LOCKED, &[]),
        mount("cgroup2", "/sys/fs/cgroup", Flags::LOCKED, &[]),
    ]
}

fn generated_files(
    hostname: &str,
    desired: &ContainerDesired,
    nameservers: &[Ipv4Addr],
) -> impl Iterator<Item = Mount> {
    let flags = Flags { read_only: desired.spec.read_only, ..Flags::NOTHING_RUNS };
    let files = etc_files(hostname, desired.address, nameservers, &desired.spec.settings);
    files.into_iter().map(move |(name, text)| Mount {
        source: Source::Text(text),
        target: format!("/etc/{name}"),
        flags,
    })
}

fn volumes(desired: &ContainerDesired, volumes: &Path) -> Result<Vec<Mount>, PlanError> {
    let wanted = &desired.spec.mounts;
    if wanted.len() > MAX_VOLUMES {
        return Err(PlanError::TooManyVolumes(wanted.len()));
    }
    wanted
        .iter()
        .map(|mount| {
            check_volume_path(&mount.path)?;
            Ok(Mount {
                source: Source::Directory(volumes.join(mount.volume.as_str())),
                target: mount.path.clone(),
                flags: Flags { read_only: mount.read_only, ..Flags::DATA },
            })
        })
        .collect()
}

fn check_volume_path(path: &str) -> Result<(), PlanError> {
    if policy::can_be_mounted_over(path) {
        Ok(())
    } else {
        Err(PlanError::VolumePath(path.chars().take(100).collect::<String>().replace('\0', "\\0")))
    }
}

fn devices() -> Vec<Device> {
    let device = |(path, major, minor): (&str, u32, u32)| Device { path: path.into(), major, minor };
    [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ]
    .map(device)
    .into()
}

fn links() -> Vec<(String, String)> {
    [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ]
    .map(|(path, target)| (path.to_owned(), target.to_owned()))
    .into()
}

/// Ports below 1024 and ping need no capability inside of a network namespace of one's own.
fn sysctls(settings: &[Setting]) -> Vec<Sysctl> {
    let usual = [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")]
        .map(|(file, value)| Sysctl { file: file.to_owned(), value: value.to_owned(), required: false });
    let wanted = settings.iter().filter_map(|setting| match setting {
        Setting::Sysctl { name, value } => {
            Some(Sysctl { file: name.replace('.', "/"), value: value.clone(), required: true })
        }
        _ => None,
    });
    usual.into_iter().chain(wanted).collect()
}

/// What tells about the node or its kernel and is no container's business: what runc and crun hide, and the node's use of
/// its physical and virtual memory, which root in a container could read and which helps attacks on the kernel.
const MASKED: [&str; 16] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What would change the node's kernel if it could be written.
const PROTECTED: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn owned(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|&path| path.to_owned()).collect()
}

/// Content of the generated files of /etc: name and text. `nameservers` are the board's.
fn etc_files(
    hostname: &str,
    address: Ipv4Addr,
    nameservers: &[Ipv4Addr],
    settings: &[Setting],
) -> Vec<(&'static str, String)> {
    let own: Vec<Ipv4Addr> = settings
        .iter()
        .filter_map(|setting| match setting {
            Setting::Nameserver(address) => Some(*address),
            _ => None,
        })
        .collect();
    let asked = if own.is_empty() { nameservers } else { &own };
    let servers: String = asked.iter().map(|server| format!("nameserver {server}\n")).collect();
    let hosts: String = settings
        .iter()
        .filter_map(|setting| match setting {
            Setting::Host { name, address } => Some(format!("{address}\t{name}\n")),
            _ => None,
        })
        .collect();
    let usual = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{address}\t{hostname}\n");
    vec![("hosts", usual + &hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", servers)]
}

const _: () = assert!(limits::MAX_ARGUMENT_BYTES < MAX_BYTES / 2, "a plan holds the longest command line");

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
