//! Which compiler builds the boards' static binaries. Decided here and nowhere else.
//!
//! This machine's own processor: rustup's compiler, static glibc. The other one: rustup's compiler where it has the
//! target or can add it, else Debian's `rustc-web` with the standard library unpacked from the other processor's
//! package. Either way the result is linked by the cross gcc of Debian's name.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use wherry_images::disk::Arch;

use crate::debs::{self, Package};
use crate::error::TaskError;
use crate::exec;
use crate::project::{HOST_ARCH, Project, make_dir};
use crate::setup;

/// Debian's compiler and the package with its standard library.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_RUSTC_PACKAGE: &str = "rustc-web";
const DEBIAN_STD_PACKAGE: &str = "libstd-rust-web-dev";

/// The Rust target of a processor's static binaries.
pub(crate) const fn target(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64-unknown-linux-gnu",
        Arch::Aarch64 => "aarch64-unknown-linux-gnu",
    }
}

/// The C compiler that links for a processor, as Debian names it; `prefix-gcc`.
pub(crate) const fn cross_prefix(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64-linux-gnu-",
        Arch::Aarch64 => "aarch64-linux-gnu-",
    }
}

/// How to compile for one processor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Compiler {
    /// The one that builds this program too.
    Rustup,
    /// Debian's, with a system root made of unpacked packages.
    Debian { sysroot: PathBuf },
}

/// Everything the compiler for `arch` needs, installed.
pub(crate) fn prepare(project: &Project, arch: Arch) -> Result<(), TaskError> {
    compiler(project, arch).map(|_| ())
}

/// `cargo build` or another `subcommand` for `arch`, static, with an output directory that no other compiler uses.
pub(crate) fn cargo(project: &Project, arch: Arch, subcommand: &str) -> Result<Command, TaskError> {
    let compiler = compiler(project, arch)?;
    let target = target(arch);
    let variable =
        |suffix: &str| format!("CARGO_TARGET_{}_{suffix}", target.to_uppercase().replace('-', "_"));
    let mut flags = "-C target-feature=+crt-static".to_owned();
    let mut command = Command::new("cargo");
    command.current_dir(&project.root).args([subcommand, "--locked", "--target", target]);
    command.arg("--target-dir").arg(target_dir(project, arch));
    if let Compiler::Debian { sysroot } = &compiler {
        flags += &format!(" --sysroot={}", sysroot.display());
        // Build scripts and procedural macros come from the same compiler, with the system's own library.
        command.env("RUSTC", DEBIAN_RUSTC);
    }
    command.env_remove("RUSTFLAGS").env(variable("RUSTFLAGS"), flags);
    if arch.name() != HOST_ARCH {
        command.env(variable("LINKER"), format!("{}gcc", cross_prefix(arch)));
    }
    Ok(command)
}

/// Where [`cargo`] puts things: two compilers in one directory would undo each other's work.
pub(crate) fn target_dir(project: &Project, arch: Arch) -> PathBuf {
    project.artifacts().join("cargo").join(arch.name())
}

fn compiler(project: &Project, arch: Arch) -> Result<Compiler, TaskError> {
    if arch.name() == HOST_ARCH || rustup_has(arch) {
        return Ok(Compiler::Rustup);
    }
    if let Some(sysroot) = debian_sysroot(project, arch)? {
        return Ok(Compiler::Debian { sysroot });
    }
    if exec::output(Command::new("rustup").args(["target", "add", target(arch)])).is_ok() {
        return Ok(Compiler::Rustup);
    }
    setup::ensure_packages(&[DEBIAN_RUSTC_PACKAGE])?;
    make_debian_sysroot(project, arch).map(|sysroot| Compiler::Debian { sysroot })
}

fn rustup_has(arch: Arch) -> bool {
    let mut command = Command::new("rustc");
    let directory = exec::output(command.args(["--print", "target-libdir", "--target", target(arch)]));
    directory.is_ok_and(|directory| Path::new(directory.trim()).is_dir())
}

/// The version of Debian's compiler, if it is installed.
fn debian_version() -> Option<String> {
    let mut command = Command::new("dpkg-query");
    let query = command.args(["-W", "-f", "${db:Status-Status} ${Version}", DEBIAN_RUSTC_PACKAGE]);
    let text = exec::output(query).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

fn sysroot_path(project: &Project, arch: Arch, version: &str) -> PathBuf {
    project.cache.join("sysroot").join(format!("{version}-{}", arch.name()))
}

/// The system root, if it has been made for the compiler that is installed.
fn debian_sysroot(project: &Project, arch: Arch) -> Result<Option<PathBuf>, TaskError> {
    let path = debian_version().map(|version| sysroot_path(project, arch, &version));
    Ok(path.filter(|path| path.is_dir()))
}

/// Unpacks the other processor's standard library, of the compiler's very version, and puts the host's beside it.
fn make_debian_sysroot(project: &Project, arch: Arch) -> Result<PathBuf, TaskError> {
    let version = debian_version().ok_or_else(|| {
        let (target, package) = (target(arch), DEBIAN_RUSTC_PACKAGE);
        TaskError::Say(format!(
            "rustup cannot add {target} here: install Debian's {package}, or let rustup add it"
        ))
    })?;
    eprintln!("unpacking the standard library for {}", arch.name());
    let deb = debs::fetch(project, Package { name: DEBIAN_STD_PACKAGE, arch, version: Some(&version) })?;
    let path = sysroot_path(project, arch, &version);
    let partial = project.cache.join("sysroot").join(format!("partial-{}", arch.name()));
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(TaskError::io("remove", &partial))?;
    }
    make_dir(&partial)?;
    debs::unpack(&deb, &partial.join("deb"))?;
    let libraries = partial.join("lib/rustlib");
    make_dir(&libraries)?;
    let link = libraries.join(target(arch));
    symlink(format!("../../deb/usr/lib/rustlib/{}", target(arch)), &link)
        .map_err(TaskError::io("create", &link))?;
    fs::rename(&partial, &path).map_err(TaskError::io("create", &path))?;
    Ok(path)
}
