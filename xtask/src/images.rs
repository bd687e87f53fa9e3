//! Templates of disk images, one per role.
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use wherry_images::disk::{self, Arch, BoardRole, Firmware, Manifest, TemplateSpec};

use crate::debs::{self, Package};
use crate::error::TaskError;
use crate::project::{Project, mebibytes};
use crate::{build, exec, kernel};

/// design.md's budget for an image as it travels.
const BUDGET_BYTES: u64 = 24 << 20;
/// The data partition of a template; a board's own is made in the size its owner chooses.
const DATA_BYTES: u64 = 64 << 20;

/// One image from ready-made parts.
#[derive(Debug, Args)]
pub(crate) struct AssembleArguments {
    /// Processor: x86_64 or aarch64
    #[arg(long, value_parser = crate::parse_arch)]
    arch: Arch,
    /// Role: broker or node
    #[arg(long, value_parser = parse_role)]
    role: BoardRole,
    /// The static program that becomes /sbin/init
    #[arg(long)]
    binary: PathBuf,
    /// The kernel as firmware wants it (bzImage or Image)
    #[arg(long)]
    kernel: PathBuf,
    /// The kernel for direct boot, if it is another file (vmlinux)
    #[arg(long)]
    direct_kernel: Option<PathBuf>,
    /// For UEFI: systemd's EFI stub; without this and the next, the disk is for boot loaders that read extlinux.conf
    #[arg(long)]
    efi_stub: Option<PathBuf>,
    /// For a Raspberry Pi: directory with its firmware's files
    #[arg(long, conflicts_with = "efi_stub")]
    raspberry_pi: Option<PathBuf>,
    /// Directory for disk.img, kernel and manifest.json
    #[arg(long)]
    out: PathBuf,
}

impl AssembleArguments {
    fn firmware(&self) -> Firmware<'_> {
        match (&self.efi_stub, &self.raspberry_pi) {
            (Some(stub), _) => Firmware::Uefi { stub },
            (None, Some(files)) => Firmware::RaspberryPi { files },
            (None, None) => Firmware::Extlinux,
        }
    }
}

fn parse_role(text: &str) -> Result<BoardRole, String> {
    [BoardRole::Broker, BoardRole::Node]
        .into_iter()
        .find(|role| role.name() == text)
        .ok_or_else(|| "choose broker or node".to_owned())
}

/// Builds whatever is missing and both templates of `arch`.
pub(crate) fn run(project: &Project, arch: Arch) -> Result<(), TaskError> {
    let kernel = kernel::ensure(project, arch)?;
    let bin = build::run(project, arch)?;
    let stub = efi_stub(project, arch)?;
    for role in [BoardRole::Broker, BoardRole::Node] {
        let spec = TemplateSpec {
            arch,
            role,
            binary: &bin.join(build::program(role)),
            kernel: &kernel.boot,
            direct_kernel: &kernel.direct,
            firmware: Firmware::Uefi { stub: &stub },
            data_bytes: DATA_BYTES,
        };
        let out = project.output(arch).join("images").join(role.name());
        let manifest = disk::assemble(&spec, &out)?;
        report(&manifest, compress(&out, &manifest)?);
    }
    Ok(())
}

/// `cargo xtask assemble`.
pub(crate) fn assemble_one(arguments: &AssembleArguments) -> Result<(), TaskError> {
    let spec = TemplateSpec {
        arch: arguments.arch,
        role: arguments.role,
        binary: &arguments.binary,
        kernel: &arguments.kernel,
        direct_kernel: arguments.direct_kernel.as_deref().unwrap_or(&arguments.kernel),
        firmware: arguments.firmware(),
        data_bytes: DATA_BYTES,
    };
    let manifest = disk::assemble(&spec, &arguments.out)?;
    report(&manifest, compress(&arguments.out, &manifest)?);
    Ok(())
}

/// Writes `disk.img.zst`; its size.
fn compress(out: &Path, manifest: &Manifest) -> Result<u64, TaskError> {
    let from = out.join(&manifest.disk.name);
    let to = out.join(format!("{}.zst", manifest.disk.name));
    exec::output(Command::new("zstd").args(["-q", "-f", "-T0", "-10", "-o"]).args([&to, &from]))?;
    let metadata = std::fs::metadata(&to).map_err(TaskError::io("read", &to))?;
    Ok(metadata.len())
}

fn report(manifest: &Manifest, compressed: u64) {
    let over = if compressed > BUDGET_BYTES { ", over the budget" } else { "" };
    let name = format!("image {}", manifest.role.name());
    println!("{name:13} {} {} compressed{over}", manifest.arch.name(), mebibytes(compressed));
}

/// systemd's EFI stub for `arch`, from its package.
fn efi_stub(project: &Project, arch: Arch) -> Result<PathBuf, TaskError> {
    let file = match arch {
        Arch::X86_64 => "linuxx64.efi.stub",
        Arch::Aarch64 => "linuxaa64.efi.stub",
    };
    let deb = debs::fetch(project, Package { name: "systemd-boot-efi", arch, version: None })?;
    let unpacked = deb.with_extension("unpacked");
    let stub = unpacked.join("usr/lib/systemd/boot/efi").join(file);
    if !stub.is_file() {
        debs::unpack(&deb, &unpacked)?;
    }
    Ok(stub)
}
