//! Programs of this host for a guest: where they are, what they need, and how they do there.
use crate::failure::Failure;
use crate::given;
use crate::guest::bare_initrd;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use wherry_images::disk::Arch;
use wherry_qemu::{Host, Machine, Running, accelerator_for};

/// Where a tool of this host is.
///
/// # Errors
/// When it is not installed.
pub fn tool(name: &str) -> Result<PathBuf, Failure> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .map(|directory| Path::new(directory).join(name))
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| Failure::Unexpected(format!("{name} is not installed: `cargo xtask setup` does that")))
}

/// The libraries and the loader that a program needs, as its loader says.
///
/// # Errors
/// When the loader cannot be asked.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>, Failure> {
    let output = Command::new("ldd").arg(program).output().map_err(Failure::io("run ldd"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// A program without what only a debugger needs.
///
/// # Errors
/// When `strip` fails.
pub fn stripped(program: &Path) -> Result<Vec<u8>, Failure> {
    let to = tempfile::NamedTempFile::new().map_err(Failure::io("make a temporary file"))?;
    let mut strip = Command::new("strip");
    let status = strip.arg("-o").arg(to.path()).arg(program).status().map_err(Failure::io("run strip"))?;
    if !status.success() {
        return Err(Failure::Unexpected(format!("strip {} failed", program.display())));
    }
    read(to.path())
}

/// These files for a guest, by the paths that they have here without the first slash.
///
/// # Errors
/// When one cannot be read.
pub fn same_place<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    paths.into_iter().map(|path| Ok((inside(path), read(path)?))).collect()
}

/// Boots this host's board kernel with busybox and these files (by path), whose init runs `script`, and waits until it says
/// `all of it passed`; what the console shows.
///
/// # Errors
/// When something is missing, or the guest does not say it in time: with its console.
pub async fn passes_in_a_guest(
    name: &str,
    memory_mib: u32,
    files: &BTreeMap<String, Vec<u8>>,
    script: &str,
    patience: Duration,
) -> Result<String, Failure> {
    let arch = given::host_arch()?;
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let initrd = directory.path().join("initrd");
    std::fs::write(&initrd, bare_initrd(&given::busybox(arch)?, files, script))
        .map_err(Failure::file("write", &initrd))?;
    let machine = Machine {
        name: name.into(),
        arch: match arch {
            Arch::X86_64 => wherry_qemu::Arch::X86_64,
            Arch::Aarch64 => wherry_qemu::Arch::Aarch64,
        },
        cpus: 1,
        memory_mib,
        kernel: given::kernel(arch)?,
        initrd: Some(initrd),
        append: "quiet".into(),
        disks: Vec::new(),
        nics: Vec::new(),
        console: directory.path().join("console"),
    };
    let failed = |error: &dyn std::fmt::Display| Failure::Unexpected(format!("the guest {name}: {error}"));
    let accelerator = accelerator_for(machine.arch, &machine.kernel).await;
    let mut guest =
        Running::start(&machine, accelerator, &Host::detect()).await.map_err(|error| failed(&error))?;
    let ended = guest.expect("all of it passed", patience).await;
    let console =
        std::fs::read_to_string(&machine.console).map_err(Failure::file("read", &machine.console))?;
    ended.map_err(|error| failed(&format!("{error}\n{console}")))?;
    guest.quit().await.map_err(|error| failed(&error))?;
    Ok(console)
}

/// The path in the archive of what has this absolute path.
#[must_use]
pub fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(Failure::file("read", path))
}
