//! Demo, tests and benchmarks, each started with everything it needs.
use std::path::PathBuf;
use std::process::Command;

use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::exec;
use crate::project::{HOST_ARCH, Project};
use crate::{build, fixtures, fuzz, images, parse_arch, programs, setup, toolchain};

/// Tells the programs started here where the images are: the parent of `<arch>/{images,fixtures,bin}`.
const ARTIFACTS: &str = "WHERRY_ARTIFACTS";
/// And where this machine's `wherry` is.
const BINARIES: &str = "WHERRY_BIN";
/// The checker of dependencies: this version everywhere, so that it finds the same faults everywhere.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Everything a cluster of `arch` is made of.
fn prepare(project: &Project, arch: Arch) -> Result<(), TaskError> {
    images::run(project, arch)?;
    fixtures::run(project, arch)
}

/// `make demo`.
pub(crate) fn demo(project: &Project, arch: Arch) -> Result<(), TaskError> {
    setup::run(project)?;
    prepare(project, arch)?;
    run_tool(project, "demo", &["--arch", arch.name()])
}

fn host_arch() -> Result<Arch, TaskError> {
    parse_arch(HOST_ARCH).map_err(|_| TaskError::Say(format!("Wherry does not run on {HOST_ARCH} machines")))
}

/// The benchmarks that are programs of one crate: package, name.
const CRATE_BENCHES: [(&str, &str); 6] = [
    ("wherry-protocol", "session"),
    ("wherry-node", "container_start"),
    ("wherry-node", "container_load"),
    ("wherry-node", "container_data"),
    ("wherry-node", "rules"),
    ("wherry-endpoint", "endpoint"),
];

/// What some of them compare with. Not installed for tests: web servers take port 80 where they are installed.
const BENCH_PACKAGES: [&str; 5] = ["haproxy", "nebula", "nghttp2-client", "nginx-light", "tinc"];

/// Of the others, those that boot no machine.
const PROCESS_BENCHES: [&str; 2] = ["namespaces", "mesh"];

/// `make bench`: all of it, or the named parts.
pub(crate) fn bench(project: &Project, parts: &[String]) -> Result<(), TaskError> {
    setup::run(project)?;
    setup::ensure_packages(&BENCH_PACKAGES)?;
    let is_crate_bench = |part: &&String| CRATE_BENCHES.iter().any(|(_, name)| name == part);
    let (of_crates, of_clusters): (Vec<&String>, Vec<&String>) = parts.iter().partition(is_crate_bench);
    build::run(project, host_arch()?)?;
    for (package, name) in CRATE_BENCHES {
        if parts.is_empty() || of_crates.iter().any(|part| *part == name) {
            // Static, as what a board runs.
            let mut bench = toolchain::cargo(project, host_arch()?, "bench")?;
            bench.args(["--profile", "tools", "--package", package, "--bench", name]);
            exec::watched(&mut bench)?;
        }
    }
    if parts.is_empty() || !of_clusters.is_empty() {
        if of_clusters.iter().any(|part| !PROCESS_BENCHES.contains(&part.as_str())) || parts.is_empty() {
            [Arch::X86_64, Arch::Aarch64].into_iter().try_for_each(|arch| prepare(project, arch))?;
        } else {
            fixtures::run(project, host_arch()?)?;
        }
        run_tool(project, "bench", &of_clusters.iter().map(|part| part.as_str()).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// `make test`: every tier. The virtual machines of both processors boot in it.
pub(crate) fn test(project: &Project, arguments: &[String]) -> Result<(), TaskError> {
    setup::run(project)?;
    [Arch::X86_64, Arch::Aarch64].into_iter().try_for_each(|arch| prepare(project, arch))?;
    programs::run(project, host_arch()?)?;
    // Also what other platforms need: a test reads the whole graph of packages, offline.
    exec::output(cargo(project).args(["fetch", "--locked"]))?;
    let mut programs = cargo(project);
    programs.args(["build", "--workspace", "--bins", "--exclude", "xtask", "--locked"]);
    exec::watched(&mut programs)?;
    let mut tests = cargo(project);
    tests
        .args(["test", "--workspace", "--locked"])
        .args(arguments)
        .env(BINARIES, project.target.join("debug"));
    exec::watched(&mut tests)?;
    fuzz::run(project, fuzz::SMOKE_SECONDS)
}

/// Builds and starts one of the programs in `tests`, with the real `wherry` beside it.
fn run_tool(project: &Project, name: &str, arguments: &[&str]) -> Result<(), TaskError> {
    let profile = ["--locked", "--profile", "tools"];
    let mut build = cargo(project);
    build.arg("build").args(profile).args([
        "--package",
        "wherry-client",
        "--package",
        "wherry-tests",
        "--bins",
    ]);
    exec::watched(&mut build)?;
    let directory = project.target.join("tools");
    let mut tool = Command::new(directory.join(name));
    tool.current_dir(&project.root).args(arguments);
    exec::watched(tool.env(ARTIFACTS, project.artifacts()).env(BINARIES, directory))
}

/// `cargo xtask deny`: with our own copy of the checker, offline once every platform's packages are there.
pub(crate) fn deny(project: &Project) -> Result<(), TaskError> {
    let checker = cargo_tool(project, "cargo-deny", CARGO_DENY_VERSION)?;
    exec::output(cargo(project).args(["fetch", "--locked"]))?;
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

/// A program for developers, built once into the cache.
pub(crate) fn cargo_tool(project: &Project, name: &str, version: &str) -> Result<PathBuf, TaskError> {
    let root = project.cache.join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        eprintln!("building {name} {version}, once");
        let mut cargo = cargo(project);
        cargo.args(["install", "--quiet", "--locked", name, "--version", version, "--root"]);
        exec::watched(cargo.arg(&root).env("CARGO_TARGET_DIR", root.join("build")))?;
        let build = root.join("build");
        std::fs::remove_dir_all(&build).map_err(TaskError::io("remove", &build))?;
    }
    Ok(program)
}

/// `cargo` at the repository, which knows where the images are.
pub(crate) fn cargo(project: &Project) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&project.root).env(ARTIFACTS, project.artifacts());
    command
}
