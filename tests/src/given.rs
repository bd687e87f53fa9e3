//! What the tests are given by `cargo xtask`: images, fixtures and binaries. Absent ones are failures, never a skip.
use crate::failure::Failure;
use std::path::{Path, PathBuf};
use wherry_client::dev::Options;
use wherry_images::disk::{Arch, BoardRole};
use wherry_protocol::Name;

/// Directory with `<arch>/{images,fixtures,bin}/`, as `cargo xtask` makes them.
pub const ARTIFACTS: &str = "WHERRY_ARTIFACTS";
/// Directory of this host's `wherry`, if it is not beside the running program.
pub const BINARIES: &str = "WHERRY_BIN";

fn existing(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.exists() { Ok(path) } else { Err(Failure::Missing { path }) }
}

/// The directory of all that is built, which is also what `wherry dev up --images` wants.
pub fn artifacts() -> Result<PathBuf, Failure> {
    existing(std::env::var_os(ARTIFACTS).map(PathBuf::from).ok_or(Failure::NotGiven { variable: ARTIFACTS })?)
}

/// A container image archive: `web.tar` (a web server) or `client.tar` (a busybox).
pub fn fixture(arch: Arch, name: &str) -> Result<PathBuf, Failure> {
    existing(artifacts()?.join(arch.name()).join("fixtures").join(name))
}

/// A static program of the boards.
pub fn board_binary(arch: Arch, name: &str) -> Result<PathBuf, Failure> {
    existing(artifacts()?.join(arch.name()).join("bin").join(name))
}

/// The `wherry` command of this host: built with the running program, or in the directory that [`BINARIES`] names.
pub fn wherry() -> Result<PathBuf, Failure> {
    if let Some(directory) = std::env::var_os(BINARIES) {
        return existing(Path::new(&directory).join("wherry"));
    }
    let program = std::env::current_exe().map_err(Failure::io("find the running program"))?;
    // Tests are in deps/, below the directory of the programs.
    let directories = program.ancestors().skip(1).take(2);
    let found = directories.map(|directory| directory.join("wherry")).find(|path| path.is_file());
    found.ok_or(Failure::Missing { path: program.with_file_name("wherry") })
}

/// A test program of another crate, which `cargo test --workspace` has built beside the running one. Of several builds the
/// newest is meant.
pub fn test_program(name: &str) -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(Failure::io("find the running program"))?;
    let directory = program.parent().unwrap_or(&program);
    let entries = std::fs::read_dir(directory).map_err(Failure::file("read", directory))?;
    let is_it = |path: &PathBuf| {
        let stem = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        stem.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
    };
    let candidates = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_it);
    let built = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    candidates.max_by_key(built).ok_or(Failure::Missing { path: directory.join(name) })
}

/// The kernel that the images of `arch` are booted with.
pub fn kernel(arch: Arch) -> Result<PathBuf, Failure> {
    let name: Name = "kernel".parse().map_err(|error| Failure::Unexpected(format!("{error}")))?;
    Ok(Options::new(name, arch, artifacts()?).template(BoardRole::Node)?.1.kernel_path())
}

/// The static busybox of `arch`.
pub fn busybox(arch: Arch) -> Result<Vec<u8>, Failure> {
    let path = fixture(arch, "busybox")?;
    std::fs::read(&path).map_err(Failure::file("read", &path))
}

/// A container registry of this host: Debian's `docker-registry`.
pub fn registry() -> Result<PathBuf, Failure> {
    fixture(host_arch()?, "docker-registry")
}

/// The architecture of this host.
pub fn host_arch() -> Result<Arch, Failure> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Arch::X86_64),
        "aarch64" => Ok(Arch::Aarch64),
        other => Err(Failure::Unexpected(format!("there are no images for {other}"))),
    }
}
