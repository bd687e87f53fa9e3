//! What a [`Setting`] may say: the same rules for whoever asks (the laptop), whoever decides (the broker) and whoever does it
//! (the node). Nothing here can be switched off.
mod device;
mod health;

pub use device::is_device_granted;
pub use health::{CHECK_MS, check_probe};

use crate::Prefix;
use crate::message::{ContainerSpec, Descriptor, Egress, Media, RestartPolicy, Setting};
use crate::text::path_parts;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// What the first user of a container may do, unless dropped: Docker's default without making devices, raw sockets, writing
/// to the audit log, changing the root directory and file capabilities (capabilities(7)).
pub const USUAL_CAPABILITIES: [&str; 9] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"];
/// What may be added. Not the capabilities over a network namespace: a container's firewall is in it; not real-time
/// scheduling, which no bound of CPU time holds back; and not those that change the board.
pub const ADDABLE_CAPABILITIES: [&str; 4] = ["AUDIT_WRITE", "IPC_LOCK", "NET_RAW", "SETFCAP"];
/// Instead of a name: all the usual ones.
pub const ALL_CAPABILITIES: &str = "ALL";
/// Resource limits by the names of ulimit (setrlimit(2)), without those of real-time scheduling.
pub const LIMITS: [&str; 12] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "sigpending",
    "stack",
];
/// Kernel parameters that exist once per container, or lists of such, and cannot weaken its firewall.
const SYSCTLS: [&str; 14] = [
    "fs.mqueue.",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_",
];
/// Settings of one container.
const MAX_SETTINGS: usize = 128;
/// Longest stop grace, in seconds: one hour.
pub const MAX_STOP_SECONDS: u16 = 3600;
/// Smallest bound of a container's memory, in bytes: less, and its own start meets the bound before its program runs.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Smallest and largest file system in memory, in bytes: a page, and more than any board has.
const TMPFS_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 40;
/// Longest value of a kernel parameter, in bytes.
const MAX_SYSCTL_BYTES: usize = 256;
/// Longest host name, in bytes (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;
/// Places whose content the runtime decides.
const RESERVED_DIRECTORIES: [&str; 3] = ["proc", "sys", "dev"];
/// Archives of files put into one container before it starts.
const MAX_FILE_ARCHIVES: usize = 8;
/// Largest of them, in bytes: configuration, certificates, a page or two. More belongs into an image or a volume.
pub const MAX_FILES_BYTES: u64 = 16 * 1024 * 1024;
/// PATH_MAX of Linux.
const MAX_PATH_BYTES: usize = 4096;

/// A setting that is not granted; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

fn refuse<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(text.into()))
}

fn shown(text: &str) -> String {
    crate::text::shown(text, 80)
}

/// `NET_RAW` for `cap_net_raw` and `net_raw`; `ALL`; `None` for what is no name of a usual or addable capability.
#[must_use]
pub fn capability(text: &str) -> Option<&'static str> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known = USUAL_CAPABILITIES.iter().chain(&ADDABLE_CAPABILITIES).chain(&[ALL_CAPABILITIES]);
    known.copied().find(|known| *known == name)
}

/// The capabilities that `settings` leave, in no order: `ALL` is dropped before anything is added.
#[must_use]
pub fn capabilities(settings: &[Setting]) -> Vec<&'static str> {
    let dropped: Vec<&str> = settings
        .iter()
        .filter_map(|setting| match setting {
            Setting::DropCapability(name) => capability(name),
            _ => None,
        })
        .collect();
    let added = settings.iter().filter_map(|setting| match setting {
        Setting::AddCapability(name) => capability(name),
        _ => None,
    });
    let mut kept: Vec<&'static str> =
        if dropped.contains(&ALL_CAPABILITIES) { Vec::new() } else { USUAL_CAPABILITIES.to_vec() };
    for name in added {
        match name {
            ALL_CAPABILITIES => kept.extend(USUAL_CAPABILITIES.iter().chain(&ADDABLE_CAPABILITIES)),
            name => kept.push(name),
        }
    }
    kept.retain(|name| !dropped.contains(name));
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// Checks all settings of `spec`, and how they go together.
///
/// # Errors
/// The first that is not granted.
pub fn check(spec: &ContainerSpec) -> Result<(), Refused> {
    if spec.settings.len() > MAX_SETTINGS {
        return refuse(format!("{} settings, the limit is {MAX_SETTINGS}", spec.settings.len()));
    }
    if spec.auto_remove && spec.restart() != RestartPolicy::No {
        return refuse(
            "a container that is removed when it ends cannot be started again: choose one of both",
        );
    }
    if spec.files().count() > MAX_FILE_ARCHIVES {
        return refuse(format!("more than {MAX_FILE_ARCHIVES} archives of files"));
    }
    if let Some(bytes) = spec.resources.memory_bytes.filter(|bytes| *bytes < MIN_MEMORY_BYTES) {
        return refuse(format!("{bytes} bytes of memory are too few to start in: give at least 1m"));
    }
    spec.settings.iter().try_for_each(check_setting)?;
    if spec.egress().contains(&Egress::None) && spec.egress().len() > 1 {
        return refuse(
            "a container that may send nothing outside cannot also send something: leave out --egress none",
        );
    }
    check_places(spec)
}

/// One thing at one place: what is mounted over something else would only hide it.
fn check_places(spec: &ContainerSpec) -> Result<(), Refused> {
    let mut places: BTreeSet<Vec<&str>> =
        spec.mounts.iter().map(|mount| path_parts(&mount.path).collect()).collect();
    for setting in &spec.settings {
        if let Setting::Tmpfs { path, .. } = setting
            && !places.insert(path_parts(path).collect())
        {
            return refuse(format!("two things are mounted at '{}': choose one of both", shown(path)));
        }
    }
    Ok(())
}

fn check_setting(setting: &Setting) -> Result<(), Refused> {
    match setting {
        Setting::Restart(RestartPolicy::OnFailure { most: Some(0) }) => {
            refuse("a container is restarted at least once, or not at all")
        }
        Setting::Restart(_) => Ok(()),
        Setting::StopSignal(1..=64) => Ok(()),
        Setting::StopSignal(number) => refuse(format!("{number} is no signal: use 1 to 64")),
        Setting::StopSeconds(seconds) if *seconds > MAX_STOP_SECONDS => {
            refuse(format!("a grace of {seconds} s is too long, the limit is {MAX_STOP_SECONDS}"))
        }
        Setting::StopSeconds(_) => Ok(()),
        Setting::Tmpfs { path, size_bytes } => check_tmpfs(path, *size_bytes),
        Setting::AddCapability(name) => match capability(name) {
            Some(_) => Ok(()),
            None => refuse(format!(
                "the capability '{}' cannot be had: beyond the usual ones there are {}",
                shown(name),
                ADDABLE_CAPABILITIES.join(", ")
            )),
        },
        Setting::DropCapability(name) => match capability(name) {
            Some(_) => Ok(()),
            None => refuse(format!(
                "'{}' is no capability that a container has: they are {} and {ALL_CAPABILITIES}",
                shown(name),
                USUAL_CAPABILITIES.join(", ")
            )),
        },
        Setting::Limit { name, soft, hard } => check_limit(name, *soft, *hard),
        Setting::Sysctl { name, value } => check_sysctl(name, value),
        Setting::Nameserver(address) if address.is_unspecified() || address.is_multicast() => {
            refuse(format!("{address} cannot be a name server"))
        }
        Setting::Nameserver(_) => Ok(()),
        Setting::Host { name, .. } => check_host(name),
        Setting::Egress(Egress::Lan(network)) => check_lan(*network),
        Setting::Egress(Egress::None | Egress::Internet)
        | Setting::Attended
        | Setting::Init
        | Setting::NoHealth
        | Setting::Asleep => Ok(()),
        Setting::Device { device, path } => device::check(device, path),
        Setting::Constraint(constraint) if constraint.is_usable() => Ok(()),
        Setting::Constraint(constraint) => refuse(format!(
            "'{}' is not a constraint: a name or a value is empty, too long or no text",
            shown(&constraint.to_string())
        )),
        Setting::Files(blob) => check_files(blob),
        Setting::Health(check) => health::check(check),
    }
}

fn check_files(blob: &Descriptor) -> Result<(), Refused> {
    let plain = match blob.media {
        Media::LayerTar => true,
        Media::Config | Media::LayerTarGzip | Media::LayerTarZstd => false,
    };
    if !plain {
        return refuse("files for a container come as a plain tar archive");
    }
    if blob.size > MAX_FILES_BYTES {
        return refuse(format!(
            "{} bytes of files are more than the {MAX_FILES_BYTES} that a container may be given: make an image of them",
            blob.size
        ));
    }
    Ok(())
}

/// Whether somebody may put something at `path` of a container: not over what the runtime decides.
#[must_use]
pub fn can_be_mounted_over(path: &str) -> bool {
    let first = path.split('/').find(|part| !part.is_empty() && *part != ".");
    path.starts_with('/')
        && path.len() < MAX_PATH_BYTES
        && !path.contains('\0')
        && path.split('/').all(|part| part != "..")
        && first.is_some_and(|first| !RESERVED_DIRECTORIES.contains(&first))
}

fn check_tmpfs(path: &str, size_bytes: u64) -> Result<(), Refused> {
    if !can_be_mounted_over(path) {
        return refuse(format!(
            "nothing can be mounted at '{}': an absolute path without '..' other than / and not below /proc, /sys or \
             /dev, please",
            shown(path)
        ));
    }
    if !TMPFS_BYTES.contains(&size_bytes) {
        return refuse(format!("a file system in memory has 4 KiB to 1 TiB, not {size_bytes} bytes"));
    }
    Ok(())
}

fn check_limit(name: &str, soft: u64, hard: u64) -> Result<(), Refused> {
    if !LIMITS.contains(&name) {
        return refuse(format!("there is no limit called '{}': they are {}", shown(name), LIMITS.join(", ")));
    }
    if soft > hard {
        return refuse(format!("the limit {name} cannot be {soft} when it may be at most {hard}"));
    }
    Ok(())
}

fn check_sysctl(name: &str, value: &str) -> Result<(), Refused> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let known = SYSCTLS.iter().any(|known| match known.ends_with(['.', '_']) {
        true => name.starts_with(known) && name.len() > known.len(),
        false => name == *known,
    });
    if !known || !name.bytes().all(plain) || name.split('.').any(str::is_empty) {
        return refuse(format!(
            "the kernel parameter '{}' cannot be set for one container: those that can are {}",
            shown(name),
            SYSCTLS.join(", ")
        ));
    }
    if value.is_empty() || value.len() > MAX_SYSCTL_BYTES || value.contains(char::is_control) {
        return refuse(format!("the value of {name} is empty, too long or no text"));
    }
    Ok(())
}

/// Networks that no `lan:` may touch: what leads to the board itself or to everybody. Nor may it touch the overlay, where
/// connections decide; which that is, the broker knows.
const NEVER_LAN: [Prefix; 4] = [
    Prefix::new(Ipv4Addr::new(0, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(127, 0, 0, 0), 8),
    Prefix::new(Ipv4Addr::new(224, 0, 0, 0), 4),
    Prefix::new(Ipv4Addr::new(240, 0, 0, 0), 4),
];

fn check_lan(network: Prefix) -> Result<(), Refused> {
    if network.bits > 32 || network.network() != network {
        let fitting = Prefix::new(network.address, network.bits).network();
        return refuse(format!("'lan:{network}' has an address within a network: say lan:{fitting}"));
    }
    match NEVER_LAN.iter().find(|never| never.overlaps(network)) {
        Some(never) => refuse(format!(
            "'lan:{network}' reaches into {never}, which is not the network of a board: name a smaller one"
        )),
        None => Ok(()),
    }
}

fn check_host(name: &str) -> Result<(), Refused> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let usable = (1..=MAX_HOST_BYTES).contains(&name.len()) && name.bytes().all(plain);
    if usable {
        Ok(())
    } else {
        refuse(format!("'{}' is not a host name: use letters, digits, '-' and '.'", shown(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Resources, VolumeMount};

    fn spec(settings: Vec<Setting>) -> ContainerSpec {
        ContainerSpec { settings, ..ContainerSpec::default() }
    }

    fn sysctl(name: &str, value: &str) -> Setting {
        Setting::Sysctl { name: name.into(), value: value.into() }
    }

    fn tmpfs(path: &str, size_bytes: u64) -> Setting {
        Setting::Tmpfs { path: path.into(), size_bytes }
    }

    fn limit(name: &str, soft: u64, hard: u64) -> Setting {
        Setting::Limit { name: name.into(), soft, hard }
    }

    fn lan(network: &str) -> Setting {
        Setting::Egress(Egress::Lan(network.parse().unwrap()))
    }

    fn host(name: &str) -> Setting {
        Setting::Host { name: name.into(), address: Ipv4Addr::LOCALHOST }
    }

    #[test]
    fn useful_settings_are_granted() {
        for setting in [
            Setting::Restart(RestartPolicy::OnFailure { most: Some(3) }),
            Setting::StopSignal(64),
            Setting::StopSeconds(0),
            tmpfs("/tmp", 1 << 20),
            Setting::AddCapability("cap_net_raw".into()),
            Setting::DropCapability("all".into()),
            limit("nofile", 10, u64::MAX),
            sysctl("net.core.somaxconn", "1024"),
            sysctl("net.ipv4.tcp_keepalive_time", "60"),
            sysctl("kernel.sem", "250 32000 32 128"),
            Setting::Nameserver(Ipv4Addr::new(9, 9, 9, 9)),
            host("db.internal"),
            Setting::Egress(Egress::None),
            lan("192.168.50.0/24"),
            lan("172.16.0.9/32"),
            lan("100.64.0.0/10"),
        ] {
            assert_eq!(check(&spec(vec![setting.clone()])), Ok(()), "{setting:?}");
        }
    }

    #[test]
    fn harmful_and_senseless_settings_are_refused() {
        for setting in [
            Setting::Restart(RestartPolicy::OnFailure { most: Some(0) }),
            Setting::StopSignal(0),
            Setting::StopSignal(65),
            Setting::StopSeconds(3601),
            tmpfs("tmp", 1 << 20),
            tmpfs("/", 1 << 20),
            tmpfs("/a/../../b", 1 << 20),
            tmpfs("/proc", 1 << 20),
            tmpfs("/./sys/fs", 1 << 20),
            tmpfs("/tmp\0", 1 << 20),
            tmpfs("/tmp", 0),
            tmpfs("/tmp", u64::MAX),
            Setting::AddCapability("SYS_ADMIN".into()),
            Setting::AddCapability("NET_ADMIN".into()),
            Setting::AddCapability("SYS_PTRACE".into()),
            Setting::AddCapability("SYS_NICE".into()),
            limit("rtprio", 1, 1),
            Setting::AddCapability(String::new()),
            Setting::DropCapability("FLY".into()),
            limit("files", 1, 1),
            limit("nofile", 2, 1),
            sysctl("kernel.core_pattern", "|/bin/x"),
            sysctl("kernel.msgmax.x", "1"),
            sysctl("net.ipv4.ip_forward", "1"),
            sysctl("net.ipv4.conf.all.rp_filter", "0"),
            sysctl("net.ipv4.tcp_", "1"),
            sysctl("net.ipv4.tcp_/../../x", "1"),
            sysctl("fs.mqueue..x", "1"),
            sysctl("net.core.somaxconn", "1\n2"),
            sysctl("net.core.somaxconn", ""),
            Setting::Nameserver(Ipv4Addr::UNSPECIFIED),
            host("a b"),
            host("a\nb"),
            host(""),
            lan("0.0.0.0/0"),
            lan("126.0.0.0/7"),
            lan("127.0.0.1/32"),
            lan("192.168.50.9/24"),
            Setting::Egress(Egress::Lan(Prefix { address: Ipv4Addr::new(192, 168, 1, 1), bits: 33 })),
        ] {
            assert!(check(&spec(vec![setting.clone()])).is_err(), "{setting:?}");
        }
        assert!(check(&spec(vec![Setting::StopSignal(1); MAX_SETTINGS + 1])).is_err());
        let both = ContainerSpec { auto_remove: true, ..spec(vec![Setting::Restart(RestartPolicy::Always)]) };
        assert!(check(&both).is_err());
    }

    #[test]
    fn two_things_never_share_a_place_and_a_start_has_room() {
        let volume =
            |path: &str| VolumeMount { volume: "v".parse().unwrap(), path: path.into(), read_only: false };
        let with = |path: &str, settings| ContainerSpec { mounts: vec![volume(path)], ..spec(settings) };
        assert!(check(&spec(vec![tmpfs("/a", 4096), tmpfs("/./a//", 4096)])).is_err());
        assert!(check(&with("/a/", vec![tmpfs("/a", 4096)])).is_err());
        assert_eq!(check(&with("/a/b", vec![tmpfs("/a", 4096)])), Ok(()));
        assert_eq!(check(&with("/a", vec![tmpfs("/a/b", 4096), tmpfs("/ab", 4096)])), Ok(()));
        let memory = |bytes| {
            let resources = Resources { memory_bytes: Some(bytes), ..Resources::default() };
            check(&ContainerSpec { resources, ..ContainerSpec::default() })
        };
        assert_eq!((memory(MIN_MEMORY_BYTES), memory(1023).is_err()), (Ok(()), true));
    }

    #[test]
    fn nothing_outside_is_nothing() {
        let both = [Egress::Internet, Egress::None].map(Setting::Egress).to_vec();
        assert!(check(&spec(both)).is_err());
        assert_eq!(spec(vec![]).egress(), [Egress::Internet]);
        assert_eq!(spec(vec![lan("192.168.1.0/24")]).egress().len(), 1);
    }

    #[test]
    fn capabilities_are_dropped_and_added() {
        let add = |name: &str| Setting::AddCapability(name.into());
        let drop = |name: &str| Setting::DropCapability(name.into());
        let mut usual = USUAL_CAPABILITIES.to_vec();
        usual.sort_unstable();
        assert_eq!(capabilities(&[]), usual);
        assert_eq!(capabilities(&[drop("ALL")]), Vec::<&str>::new());
        assert_eq!(capabilities(&[add("net_raw"), drop("all")]), ["NET_RAW"]);
        assert_eq!(capabilities(&[add("ALL")]).len(), USUAL_CAPABILITIES.len() + ADDABLE_CAPABILITIES.len());
        assert!(!capabilities(&[add("ALL"), drop("NET_RAW")]).contains(&"NET_RAW"));
        assert!(!capabilities(&[drop("CAP_KILL")]).contains(&"KILL"));
        assert_eq!(capabilities(&[add("CHOWN")]), usual);
    }
}
