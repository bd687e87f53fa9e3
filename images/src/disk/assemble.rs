//! Making a template: the shell around [`Plan`].
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::DiskError;
use super::ext4;
use super::gpt::{Guid, Partition, SECTOR, Table};
use super::layout::{PartitionLabel, hex};
use super::manifest::{
    Arch, BoardRole, FORMAT, FileEntry, FirmwareKind, MANIFEST_FILE, Manifest, PartitionEntry,
};
use super::plan::{Boot, Inputs, Plan};
use super::sparse::SparseFile;

const DISK_FILE: &str = "disk.img";
const KERNEL_FILE: &str = "kernel";

/// What will start the kernel from the disk, and what that needs.
#[derive(Debug, Clone, Copy)]
pub enum Firmware<'a> {
    /// UEFI, with systemd's EFI stub for this processor.
    Uefi {
        /// `linuxx64.efi.stub` or `linuxaa64.efi.stub`.
        stub: &'a Path,
    },
    /// A boot loader that reads `extlinux.conf`.
    Extlinux,
    /// A Raspberry Pi.
    RaspberryPi {
        /// Directory with the firmware's files (`start4.elf`, device trees, …); directories in it are left out.
        files: &'a Path,
    },
}

/// What a template is made from.
#[derive(Debug, Clone, Copy)]
pub struct TemplateSpec<'a> {
    /// The processor.
    pub arch: Arch,
    /// Which program it runs.
    pub role: BoardRole,
    /// The static program that becomes `/sbin/init`.
    pub binary: &'a Path,
    /// The kernel as firmware and boot loaders want it: `bzImage` or `Image`.
    pub kernel: &'a Path,
    /// The kernel for direct boot by a machine monitor: `vmlinux` or `Image`.
    pub direct_kernel: &'a Path,
    /// What will start the kernel.
    pub firmware: Firmware<'a>,
    /// Size of the template's own data partition.
    pub data_bytes: u64,
}

/// Writes `disk.img`, `kernel` and `manifest.json` to `out`, which is created. Same inputs, same bytes.
pub fn assemble(spec: &TemplateSpec<'_>, out: &Path) -> Result<Manifest, DiskError> {
    let (binary, kernel) = (read(spec.binary)?, read(spec.kernel)?);
    let boot = Boot::read(&spec.firmware)?;
    let plan = Plan::new(&Inputs {
        arch: spec.arch,
        role: spec.role,
        binary: &binary,
        kernel: &kernel,
        boot: &boot,
        data_bytes: spec.data_bytes,
    })?;
    std::fs::create_dir_all(out).map_err(DiskError::io("create", out))?;
    write_disk(&plan, &out.join(DISK_FILE))?;
    let kernel_path = out.join(KERNEL_FILE);
    std::fs::copy(spec.direct_kernel, &kernel_path).map_err(DiskError::io("copy", spec.direct_kernel))?;
    let manifest = Manifest {
        format: FORMAT,
        arch: spec.arch,
        role: spec.role,
        disk: file_entry(out, DISK_FILE)?,
        kernel: file_entry(out, KERNEL_FILE)?,
        partitions: partition_entries(&plan.table),
        command_line: plan.command_line,
        root_hash: hex(&plan.root_hash),
        firmware: boot.kind(),
    };
    write_manifest(&manifest, &out.join(MANIFEST_FILE))?;
    Ok(manifest)
}

impl Boot {
    fn read(firmware: &Firmware<'_>) -> Result<Self, DiskError> {
        Ok(match firmware {
            Firmware::Uefi { stub } => Self::Uefi { path: stub.to_path_buf(), stub: read(stub)? },
            Firmware::Extlinux => Self::Extlinux,
            Firmware::RaspberryPi { files } => Self::RaspberryPi { files: read_files(files)? },
        })
    }

    const fn kind(&self) -> FirmwareKind {
        match self {
            Self::Uefi { .. } => FirmwareKind::Uefi,
            Self::Extlinux => FirmwareKind::Extlinux,
            Self::RaspberryPi { .. } => FirmwareKind::RaspberryPi,
        }
    }
}

/// The regular files in `dir`, by name.
fn read_files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, DiskError> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(DiskError::io("read", dir))? {
        let path = entry.map_err(DiskError::io("read", dir))?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, read(&path)?);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    std::fs::read(path).map_err(DiskError::io("read", path))
}

fn write_disk(plan: &Plan, path: &Path) -> Result<(), DiskError> {
    let mut disk = SparseFile::create(path, plan.table.sectors * SECTOR)?;
    for write in &plan.writes {
        disk.write(write.offset, &write.bytes)?;
    }
    drop(disk);
    let data = plan.data();
    let uuid = Guid::derive(&[b"data", data.uuid.as_bytes()]);
    ext4::format(path, data.first * SECTOR, data.sectors * SECTOR, &uuid)
}

fn partition_entries(table: &Table) -> Vec<PartitionEntry> {
    let entry = |(label, partition): (PartitionLabel, &Partition)| PartitionEntry {
        label,
        kind: partition.kind,
        uuid: partition.uuid,
        start: partition.first * SECTOR,
        bytes: partition.sectors * SECTOR,
    };
    PartitionLabel::ALL.into_iter().zip(&table.partitions).map(entry).collect()
}

fn file_entry(dir: &Path, name: &str) -> Result<FileEntry, DiskError> {
    let path = dir.join(name);
    let (bytes, sha256) = hash_file(&path).map_err(DiskError::io("read", &path))?;
    Ok(FileEntry { name: name.to_owned(), bytes, sha256 })
}

fn hash_file(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let (mut chunk, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            n => {
                hash.update(&chunk[..n]);
                bytes += n as u64;
            }
        }
    }
}

fn write_manifest(manifest: &Manifest, path: &Path) -> Result<(), DiskError> {
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|source| DiskError::Manifest { path: path.to_path_buf(), source })?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(DiskError::io("write", path))
}
