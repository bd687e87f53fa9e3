//! Demo, tests and benchmarks, each started with everything it needs.
use std::path::PathBuf;
use std::process::Command;

use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::exec;
use crate::project::{HOST_ARCH, Project};
use crate::{fixtures, images, parse_arch, setup};

/// Tells the programs started here where the images are: the parent of `<arch>/{images,fixtures,bin}`.
const ARTIFACTS: &str = "WHERRY_ARTIFACTS";
/// The checker of dependencies: this version everywhere, so that it finds the same faults everywhere.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Everything a cluster of `arch` is made of.
fn prepare(project: &Project, arch: Arch) -> Result<(), TaskError> {
    images::run(project, arch)?;
    fixtures::run(project, arch)
}

fn host_arch() -> Result<Arch, TaskError> {
    parse_arch(HOST_ARCH).map_err(|_| TaskError::Say(format!("Wherry does not run on {HOST_ARCH} machines")))
}

/// `make demo`.
pub(crate) fn demo(project: &Project, arch: Arch) -> Result<(), TaskError> {
    setup::run(project)?;
    prepare(project, arch)?;
    let mut cargo = cargo(project);
    cargo.args(["build", "--locked", "--profile", "tools", "--package", "wherry-client", "--bin", "wherry"]);
    exec::watched(&mut cargo)?;
    let mut demo = self::cargo(project);
    demo.args([
        "run",
        "--quiet",
        "--locked",
        "--profile",
        "tools",
        "--package",
        "wherry-tests",
        "--bin",
        "demo",
        "--",
    ]);
    exec::watched(demo.args(["--arch", arch.name()]))
}

/// `make test`: every tier. The virtual machines of both processors boot in it.
pub(crate) fn test(project: &Project, arguments: &[String]) -> Result<(), TaskError> {
    setup::run(project)?;
    [Arch::X86_64, Arch::Aarch64].into_iter().try_for_each(|arch| prepare(project, arch))?;
    let mut cargo = cargo(project);
    exec::watched(cargo.args(["test", "--workspace", "--locked"]).args(arguments))
}

/// `make bench`.
pub(crate) fn bench(project: &Project) -> Result<(), TaskError> {
    setup::run(project)?;
    prepare(project, host_arch()?)?;
    let mut cargo = cargo(project);
    cargo.args([
        "run",
        "--quiet",
        "--locked",
        "--profile",
        "tools",
        "--package",
        "wherry-tests",
        "--bin",
        "bench",
    ]);
    exec::watched(&mut cargo)
}

/// `cargo xtask deny`: with our own copy of the checker, offline.
pub(crate) fn deny(project: &Project) -> Result<(), TaskError> {
    let checker = ensure_cargo_deny(project)?;
    let mut command = Command::new(checker);
    command.current_dir(&project.root).args([
        "--offline",
        "--workspace",
        "check",
        "bans",
        "licenses",
        "sources",
    ]);
    exec::watched(&mut command)
}

fn ensure_cargo_deny(project: &Project) -> Result<PathBuf, TaskError> {
    let root = project.cache.join("tools").join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        eprintln!("building cargo-deny {CARGO_DENY_VERSION}, once");
        let mut cargo = cargo(project);
        cargo.args([
            "install",
            "--quiet",
            "--locked",
            "cargo-deny",
            "--version",
            CARGO_DENY_VERSION,
            "--root",
        ]);
        exec::watched(cargo.arg(&root).env("CARGO_TARGET_DIR", root.join("build")))?;
        let build = root.join("build");
        std::fs::remove_dir_all(&build).map_err(TaskError::io("remove", &build))?;
    }
    Ok(program)
}

fn cargo(project: &Project) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&project.root).env(ARTIFACTS, project.artifacts());
    command
}
