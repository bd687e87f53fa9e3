//! What must be installed before anything can be built, and installing it.
//!
//! Debian 12 as root: done here. Elsewhere: one sentence with what to install. The plan is pure.
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::exec;
use crate::project::Project;
use crate::toolchain;

/// Debian packages, by what needs them.
const PACKAGES: [(&str, &[&str]); 9] = [
    (
        "building kernels",
        &[
            "bc",
            "bison",
            "cpio",
            "flex",
            "gcc",
            "gcc-aarch64-linux-gnu",
            "kmod",
            "libc6-dev",
            "libc6-dev-arm64-cross",
            "libelf-dev",
            "libssl-dev",
            "linux-source-6.1",
            "lz4",
            "make",
            "rsync",
            "xz-utils",
        ],
    ),
    ("building fuzz targets", &["g++"]),
    ("assembling disk images", &["e2fsprogs", "zstd"]),
    ("checking disk images", &["cryptsetup-bin", "dosfstools", "erofs-utils", "fdisk", "mtools"]),
    ("running virtual machines", &["qemu-system-arm", "qemu-system-x86"]),
    ("logging in to containers", &["openssh-client"]),
    ("certificates in tests", &["pebble"]),
    ("networks in tests", &["curl", "dnsmasq-base", "iproute2", "iperf3", "nftables", "openssl"]),
    ("comparing with other container tools", &["busybox-static", "crun", "runc", "skopeo", "umoci"]),
];

/// What the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// Debian or a relative, and we may install.
    DebianRoot,
    /// Debian or a relative, and we may not.
    DebianUser,
    /// Anything else.
    Other,
}

/// Installs what is missing.
pub(crate) fn run(project: &Project) -> Result<(), TaskError> {
    let wanted: Vec<&str> = wanted().collect();
    ensure_packages(&wanted)?;
    [Arch::X86_64, Arch::Aarch64].into_iter().try_for_each(|arch| toolchain::prepare(project, arch))
}

/// Installs those of `wanted` that are missing.
pub(crate) fn ensure_packages(wanted: &[&'static str]) -> Result<(), TaskError> {
    let machine = machine();
    let missing = match machine {
        Machine::DebianRoot | Machine::DebianUser => missing(wanted, &installed(wanted)?),
        Machine::Other => missing_programs(),
    };
    if missing.is_empty() { Ok(()) } else { install(machine, &missing) }
}

fn machine() -> Machine {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    classify(&release, root)
}

fn classify(release: &str, root: bool) -> Machine {
    let debian = release.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
        matches!(key, "ID" | "ID_LIKE") && value.trim_matches('"').split(' ').any(|id| id == "debian")
    });
    match (debian, root) {
        (true, true) => Machine::DebianRoot,
        (true, false) => Machine::DebianUser,
        (false, _) => Machine::Other,
    }
}

fn wanted() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().flat_map(|(_, packages)| packages.iter().copied())
}

/// Pure: the wanted packages that are not there.
fn missing(wanted: &[&'static str], installed: &BTreeSet<String>) -> Vec<&'static str> {
    wanted.iter().copied().filter(|name| !installed.contains(*name)).collect()
}

/// One question for all packages; `dpkg-query` fails where it does not know one, and says the others all the same.
fn installed(wanted: &[&str]) -> Result<BTreeSet<String>, TaskError> {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", "${db:Status-Status} ${Package}\n"]).args(wanted);
    let output =
        command.output().map_err(|source| TaskError::NotStarted { program: "dpkg-query".into(), source })?;
    Ok(parse_installed(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_installed(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect()
}

/// Where there is no dpkg: one program stands for its package.
fn missing_programs() -> Vec<&'static str> {
    let programs =
        ["mke2fs", "zstd", "qemu-system-x86_64", "qemu-system-aarch64", "aarch64-linux-gnu-gcc", "nft", "ip"];
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let there = |name: &&str| path.split(':').any(|dir| Path::new(dir).join(name).is_file());
    programs.into_iter().filter(|name| !there(name)).collect()
}

fn install(machine: Machine, missing: &[&str]) -> Result<(), TaskError> {
    let list = missing.join(" ");
    match machine {
        Machine::Other => {
            let text = format!("this machine is not Debian: install what provides {list}, then try again");
            Err(TaskError::Say(text))
        }
        Machine::DebianUser => {
            let text = format!("run `sudo apt-get install --no-install-recommends {list}`, then try again");
            Err(TaskError::Say(text))
        }
        Machine::DebianRoot => apt_install(missing),
    }
}

fn apt_install(missing: &[&str]) -> Result<(), TaskError> {
    eprintln!("installing {}", missing.join(" "));
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    exec::output(apt_get().arg("update"))?;
    exec::output(
        apt_get().env("RUNLEVEL", "1").args(["install", "-y", "--no-install-recommends"]).args(missing),
    )
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        let packages: Vec<&str> = wanted().collect();
        let all: BTreeSet<String> = wanted().map(str::to_owned).collect();
        assert!(missing(&packages, &all).is_empty());
        let without_zstd: BTreeSet<String> = all.into_iter().filter(|name| name != "zstd").collect();
        assert_eq!(missing(&packages, &without_zstd), ["zstd"]);
    }

    #[test]
    fn a_package_that_is_known_but_not_installed_is_missing() {
        let installed = parse_installed("installed zstd\nconfig-files lz4\nnot-installed make\n");
        assert_eq!(installed.into_iter().collect::<Vec<_>>(), ["zstd"]);
    }

    #[test]
    fn debian_and_its_relatives_are_recognised() {
        assert_eq!(classify("ID=debian\n", true), Machine::DebianRoot);
        assert_eq!(classify("ID=ubuntu\nID_LIKE=debian\n", false), Machine::DebianUser);
        assert_eq!(classify("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", false), Machine::DebianUser);
        assert_eq!(classify("ID=fedora\n", true), Machine::Other);
        assert_eq!(classify("", true), Machine::Other);
    }

    #[test]
    fn no_package_is_listed_twice() {
        let mut seen = BTreeSet::new();
        assert!(wanted().all(|name| seen.insert(name)));
    }
}
