//! Kernels from Debian's source package, cached by what they are made from: source, configuration, compiler, recipe.
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::exec;
use crate::project::{HOST_ARCH, Project, hash_parts, hex, make_dir};
use crate::toolchain::cross_prefix;

/// Debian's source package unpacks to this.
const SOURCE_NAME: &str = "linux-source-6.1";
const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.1.tar.xz";
/// The revision everything is tested with. Security updates move Debian on; the cache keeps every one apart.
const PINNED_REVISION: &str = "6.1.192-2";
const PINNED_SHA256: &str = "4d415b3d364834fd818270e88813e90323bbfce4f519a0e6bd4940ddcd7df693";
/// Part of the cache key: raised when the way of building changes its result.
const RECIPE: &[u8] = b"1";
/// What makes two builds give the same bytes (Documentation/kbuild/reproducible-builds.rst).
const FIXED: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "@0"),
    ("KBUILD_BUILD_USER", "build"),
    ("KBUILD_BUILD_HOST", "build"),
    ("KBUILD_BUILD_VERSION", "1"),
];
/// How often progress is printed where there is no terminal.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// A built kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// For firmware and boot loaders: `bzImage` or `Image`.
    pub(crate) boot: PathBuf,
    /// For a machine monitor that loads kernels itself: `vmlinux` or `Image`.
    pub(crate) direct: PathBuf,
}

/// What the kernel's own build system calls things.
struct Names {
    arch: &'static str,
    /// What to make, and where it appears.
    products: &'static [(&'static str, &'static str)],
    /// Lines that the build prints, about: for the percentage only.
    steps: u32,
}

const fn names(arch: Arch) -> Names {
    match arch {
        Arch::X86_64 => Names {
            arch: "x86",
            products: &[("vmlinux", "vmlinux"), ("bzImage", "arch/x86/boot/bzImage")],
            steps: 2380,
        },
        Arch::Aarch64 => {
            Names { arch: "arm64", products: &[("Image", "arch/arm64/boot/Image")], steps: 1900 }
        }
    }
}

/// The kernel for `arch`, built if the cache does not have it.
pub(crate) fn ensure(project: &Project, arch: Arch) -> Result<Kernel, TaskError> {
    let cache = project.cache.join("kernel");
    make_dir(&cache)?;
    let source = Source::find()?;
    let directory = cache.join(key(project, arch, &source.sha256)?);
    if !directory.is_dir() {
        let _lock = lock(&cache.join("lock"))?;
        // Somebody else may have built it while we waited.
        if !directory.is_dir() {
            source.warn_if_not_pinned();
            build(project, arch, &directory)?;
        }
    }
    Ok(kernel_in(&directory, arch))
}

/// Prints where the kernel for `arch` is or would be.
pub(crate) fn print_path(project: &Project, arch: Arch) -> Result<(), TaskError> {
    let key = key(project, arch, &Source::find()?.sha256)?;
    println!("{}", project.cache.join("kernel").join(key).display());
    Ok(())
}

fn kernel_in(directory: &Path, arch: Arch) -> Kernel {
    let (boot, direct) = match arch {
        Arch::X86_64 => ("bzImage", "vmlinux"),
        Arch::Aarch64 => ("Image", "Image"),
    };
    Kernel { boot: directory.join(boot), direct: directory.join(direct) }
}

/// The source tarball on this machine.
struct Source {
    sha256: String,
}

impl Source {
    fn find() -> Result<Self, TaskError> {
        let path = Path::new(SOURCE_TARBALL);
        let mut file = File::open(path).map_err(|_| {
            TaskError::Say(format!("{SOURCE_TARBALL} is missing: run `cargo xtask setup`, or unpack Debian's {SOURCE_NAME} package there"))
        })?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk).map_err(TaskError::io("read", path))? {
                0 => return Ok(Self { sha256: hex(&hash.finalize()) }),
                n => hash.update(&chunk[..n]),
            }
        }
    }

    fn warn_if_not_pinned(&self) {
        if self.sha256 != PINNED_SHA256 {
            eprintln!(
                "note: {SOURCE_NAME} here is not revision {PINNED_REVISION}, which everything is tested with; building what is here"
            );
        }
    }
}

fn config_path(project: &Project, arch: Arch) -> PathBuf {
    let name = format!("linux-{}.config", arch.name());
    project.root.join("buildroot/board/common").join(name)
}

/// The name of the cache entry.
fn key(project: &Project, arch: Arch, source: &str) -> Result<String, TaskError> {
    let path = config_path(project, arch);
    let config = fs::read(&path).map_err(TaskError::io("read", &path))?;
    let version = |program: &str| exec::output(Command::new(program).arg("--version"));
    let prefix = tool_prefix(arch);
    let (compiler, linker) = (version(&format!("{prefix}gcc"))?, version(&format!("{prefix}ld"))?);
    let hash = hash_parts(&[RECIPE, source.as_bytes(), &config, compiler.as_bytes(), linker.as_bytes()]);
    Ok(format!("{}-{}", arch.name(), &hash[..24]))
}

fn tool_prefix(arch: Arch) -> &'static str {
    if arch.name() == HOST_ARCH { "" } else { cross_prefix(arch) }
}

/// An exclusive lock, released when dropped: two kernel builds at once would only slow each other down.
fn lock(path: &Path) -> Result<File, TaskError> {
    let file = File::create(path).map_err(TaskError::io("create", path))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another kernel build to finish");
        file.lock().map_err(TaskError::io("lock", path))?;
    }
    Ok(file)
}

fn build(project: &Project, arch: Arch, into: &Path) -> Result<(), TaskError> {
    let work = into.with_extension("building");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(TaskError::io("remove", &work))?;
    }
    make_dir(&work)?;
    eprintln!("building the kernel for {} (about ten minutes on two processors, once)", arch.name());
    exec::output(Command::new("tar").arg("-xf").arg(SOURCE_TARBALL).arg("-C").arg(&work))?;
    let tree = Tree { source: work.join(SOURCE_NAME), arch };
    let config = config_path(project, arch);
    fs::copy(&config, tree.source.join(".config")).map_err(TaskError::io("copy", &config))?;
    exec::output(tree.make().arg("olddefconfig"))?;
    tree.refuse_lost_options(&config)?;
    tree.compile(&work.join("log"))?;
    tree.collect(&work.join("done"))?;
    fs::rename(work.join("done"), into).map_err(TaskError::io("create", into))?;
    fs::remove_dir_all(&work).map_err(TaskError::io("remove", &work))
}

/// An unpacked source tree, built in place.
struct Tree {
    source: PathBuf,
    arch: Arch,
}

impl Tree {
    fn make(&self) -> Command {
        let mut command = Command::new("make");
        command.arg("-C").arg(&self.source).arg(format!("ARCH={}", names(self.arch).arch));
        command.arg(format!("CROSS_COMPILE={}", tool_prefix(self.arch))).envs(FIXED);
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        command
    }

    /// `olddefconfig` drops what it cannot satisfy without a word; a board would miss it much later.
    fn refuse_lost_options(&self, wanted: &Path) -> Result<(), TaskError> {
        let read = |path: &Path| fs::read_to_string(path).map_err(TaskError::io("read", path));
        let (wanted, got) = (read(wanted)?, read(&self.source.join(".config"))?);
        let lost = lost_options(&wanted, &got);
        if lost.is_empty() {
            return Ok(());
        }
        Err(TaskError::Say(format!(
            "this kernel source does not accept {}: its configuration must change",
            lost.join(", ")
        )))
    }

    fn compile(&self, log: &Path) -> Result<(), TaskError> {
        let Names { products, steps, .. } = names(self.arch);
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = self.make();
        command.arg(format!("-j{jobs}")).args(products.iter().map(|(product, _)| product));
        let mut progress = Progress::new(steps);
        let result = exec::logged(&mut command, log, |line| progress.line(line));
        progress.finish();
        result
    }

    fn collect(&self, into: &Path) -> Result<(), TaskError> {
        make_dir(into)?;
        let config = (".config", ".config");
        for (product, path) in names(self.arch).products.iter().chain([&config]) {
            let from = self.source.join(path);
            fs::copy(&from, into.join(product.trim_start_matches('.')))
                .map_err(TaskError::io("copy", &from))?;
        }
        Ok(())
    }
}

/// Options that `wanted` switches on and `got` does not have.
fn lost_options<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let set = |line: &&str| line.starts_with("CONFIG_") && !got.lines().any(|other| other == *line);
    wanted.lines().filter(set).collect()
}

/// One line on a terminal that keeps changing; elsewhere a line now and then.
struct Progress {
    seen: u32,
    total: u32,
    started: Instant,
    printed: Instant,
    terminal: bool,
}

impl Progress {
    fn new(total: u32) -> Self {
        let now = Instant::now();
        Self { seen: 0, total, started: now, printed: now, terminal: std::io::stderr().is_terminal() }
    }

    /// The build's lines look like `  CC      kernel/fork.o`.
    fn line(&mut self, line: &str) {
        if !line.starts_with("  ") {
            return;
        }
        self.seen += 1;
        let every = if self.terminal { Duration::from_millis(200) } else { PROGRESS_EVERY };
        if self.printed.elapsed() >= every {
            self.printed = Instant::now();
            self.print();
        }
    }

    fn print(&self) {
        let percent = (100 * self.seen / self.total).min(99);
        let (start, end) = if self.terminal { ("\r", "") } else { ("", "\n") };
        eprint!("{start}  {percent:2} % after {} s{end}", self.started.elapsed().as_secs());
        // A progress line that cannot be shown is no reason to stop.
        std::io::stderr().flush().unwrap_or_default();
    }

    fn finish(&self) {
        let start = if self.terminal { "\r" } else { "" };
        eprintln!("{start}  done after {} s, {} steps", self.started.elapsed().as_secs(), self.seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_stick_are_found() {
        let wanted = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=\"text\"\nCONFIG_D=y\n";
        assert_eq!(
            lost_options(wanted, "CONFIG_B=y\nCONFIG_C=\"text\"\n# CONFIG_D is not set\n"),
            ["CONFIG_D=y"]
        );
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(held);
        assert!(File::open(&path).unwrap().try_lock().is_ok());
    }

    #[test]
    fn both_kernels_have_a_configuration_with_what_the_boot_needs() {
        let project = Project::find().unwrap();
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let config = fs::read_to_string(config_path(&project, arch)).unwrap();
            for option in [
                "DM_INIT",
                "DM_VERITY",
                "EROFS_FS",
                "EXT4_FS",
                "VFAT_FS",
                "VIRTIO_BLK",
                "NET_IPGRE",
                "WIREGUARD",
            ] {
                assert!(config.contains(&format!("\nCONFIG_{option}=y\n")), "{option} for {}", arch.name());
            }
        }
    }
}
