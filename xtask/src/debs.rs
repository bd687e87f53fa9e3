//! Debian packages taken apart without being installed: of another processor, or more than a machine needs.
//!
//! A private copy of the package lists, in the cache, knows both processors, so that the system's own configuration
//! stays as it is. A package once fetched is used again without asking the network.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::exec;
use crate::project::{Project, make_dir};

/// Debian's name of a processor.
pub(crate) const fn debian_arch(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

/// A package of one processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Which processor's.
    pub(crate) arch: Arch,
    /// This version only, or whatever there is.
    pub(crate) version: Option<&'a str>,
}

/// The packages' files in the cache, fetched if they are not there.
pub(crate) fn fetch_all(project: &Project, packages: &[Package<'_>]) -> Result<Vec<PathBuf>, TaskError> {
    let dir = project.cache.join("debs");
    make_dir(&dir)?;
    let mut absent = Vec::new();
    for package in packages {
        if newest(&dir, package)?.is_none() {
            absent.push(package);
        }
    }
    if !absent.is_empty() {
        download_or_update(&project.cache.join("apt"), &dir, &absent)?;
    }
    packages.iter().map(|package| fetched(&dir, package)).collect()
}

/// The package's file in the cache, fetched if it is not there.
pub(crate) fn fetch(project: &Project, package: Package<'_>) -> Result<PathBuf, TaskError> {
    fetch_all(project, std::slice::from_ref(&package))?;
    fetched(&project.cache.join("debs"), &package)
}

fn fetched(dir: &Path, package: &Package<'_>) -> Result<PathBuf, TaskError> {
    newest(dir, package)?.ok_or_else(|| {
        TaskError::Say(format!("apt-get fetched {} but left no file in {}", package.name, dir.display()))
    })
}

/// The lists may be missing, or older than the archive, which then no longer has what they name.
fn download_or_update(lists: &Path, dir: &Path, packages: &[&Package<'_>]) -> Result<(), TaskError> {
    if lists.join("lists").is_dir() && download(lists, dir, packages).is_ok() {
        return Ok(());
    }
    update(lists)?;
    download(lists, dir, packages)
}

/// Unpacks `deb` into the directory `into`.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<(), TaskError> {
    exec::output(Command::new("dpkg-deb").arg("-x").args([deb, into])).map(|_| ())
}

/// The file system that `deb` brings, as a tar archive.
pub(crate) fn archive(deb: &Path) -> Result<Vec<u8>, TaskError> {
    exec::bytes(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb))
}

/// The file fetched last for `package`.
fn newest(dir: &Path, package: &Package<'_>) -> Result<Option<PathBuf>, TaskError> {
    let entries = fs::read_dir(dir).map_err(TaskError::io("read", dir))?.flatten();
    let matching = entries.filter(|entry| is_file_of(&entry.file_name().to_string_lossy(), package));
    let by_age = |entry: &fs::DirEntry| {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        (modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.file_name())
    };
    Ok(matching.max_by_key(by_age).map(|entry| entry.path()))
}

/// Is `file` (`name_version_arch.deb`, the version's colon escaped) one that `package` asks for?
fn is_file_of(file: &str, package: &Package<'_>) -> bool {
    let mut parts = file.strip_suffix(".deb").unwrap_or_default().split('_');
    let (Some(name), Some(version), Some(arch), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let right_arch = arch == debian_arch(package.arch) || arch == "all";
    let right_version = package.version.is_none_or(|wanted| version == wanted.replace(':', "%3a"));
    name == package.name && right_arch && right_version
}

/// `apt-get` with the private lists.
fn apt_get(lists: &Path) -> Command {
    let option = |name: &str, value: &str| format!("{name}={value}");
    let below = |name: &str| lists.join(name).display().to_string();
    let mut command = Command::new("apt-get");
    for setting in [
        option("Dir::State::Lists", &below("lists")),
        option("Dir::Cache", &below("cache")),
        option("APT::Architectures::", "amd64"),
        option("APT::Architectures::", "arm64"),
        option("APT::Sandbox::User", "root"),
        option("Acquire::Languages", "none"),
    ] {
        command.arg("-o").arg(setting);
    }
    command
}

fn update(lists: &Path) -> Result<(), TaskError> {
    for dir in ["lists/partial", "cache/archives/partial"] {
        make_dir(&lists.join(dir))?;
    }
    exec::output(apt_get(lists).args(["-qq", "update"])).map(|_| ())
}

/// Downloads to a directory of its own first, so that no half-written file is ever found.
fn download(lists: &Path, dir: &Path, packages: &[&Package<'_>]) -> Result<(), TaskError> {
    let partial = dir.join(format!("partial-{}", std::process::id()));
    make_dir(&partial)?;
    let names = packages.iter().map(|package| apt_name(package));
    let result = exec::output(apt_get(lists).args(["-qq", "download"]).args(names).current_dir(&partial));
    let moved = result.and_then(|_| move_files(&partial, dir));
    fs::remove_dir_all(&partial).map_err(TaskError::io("remove", &partial))?;
    moved
}

/// `name:arch=version`.
fn apt_name(package: &Package<'_>) -> String {
    let version = package.version.map(|version| format!("={version}")).unwrap_or_default();
    format!("{}:{}{version}", package.name, debian_arch(package.arch))
}

fn move_files(from: &Path, to: &Path) -> Result<(), TaskError> {
    for entry in fs::read_dir(from).map_err(TaskError::io("read", from))?.flatten() {
        let target = to.join(entry.file_name());
        fs::rename(entry.path(), &target).map_err(TaskError::io("create", &target))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_what_it_is() {
        let any = Package { name: "zlib1g", arch: Arch::Aarch64, version: None };
        let exact = Package { version: Some("1:1.2.13.dfsg-1"), ..any.clone() };
        let file = "zlib1g_1%3a1.2.13.dfsg-1_arm64.deb";
        assert!(is_file_of(file, &any) && is_file_of(file, &exact));
        assert!(is_file_of("zlib1g_2_all.deb", &any) && !is_file_of("zlib1g_2_all.deb", &exact));
        for other in
            ["zlib1g_2_amd64.deb", "zlib1g-dev_2_arm64.deb", "zlib1g_2_arm64.deb.partial", "zlib1g.deb", ""]
        {
            assert!(!is_file_of(other, &any), "{other}");
        }
    }
}
