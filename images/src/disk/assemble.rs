//! Making a template: the shell around [`Plan`].
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::DiskError;
use super::ext4;
use super::gpt::{Guid, Partition, SECTOR, Table};
use super::layout::{PartitionLabel, hex};
use super::manifest::{Arch, BoardRole, FORMAT, FileEntry, MANIFEST_FILE, Manifest, PartitionEntry};
use super::plan::{Inputs, Plan};
use super::sparse::SparseFile;

const DISK_FILE: &str = "disk.img";
const KERNEL_FILE: &str = "kernel";

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
    /// systemd's EFI stub for this processor; without it the disk has no UEFI boot.
    pub efi_stub: Option<&'a Path>,
    /// Size of the template's own data partition.
    pub data_bytes: u64,
}

/// Writes `disk.img`, `kernel` and `manifest.json` to `out`, which is created. Same inputs, same bytes.
pub fn assemble(spec: &TemplateSpec<'_>, out: &Path) -> Result<Manifest, DiskError> {
    let (binary, kernel) = (read(spec.binary)?, read(spec.kernel)?);
    let stub = spec.efi_stub.map(read).transpose()?;
    let plan = Plan::new(&Inputs {
        arch: spec.arch,
        role: spec.role,
        binary: &binary,
        kernel: &kernel,
        efi_stub: spec.efi_stub.zip(stub.as_deref()),
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
        uefi: spec.efi_stub.is_some(),
    };
    write_manifest(&manifest, &out.join(MANIFEST_FILE))?;
    Ok(manifest)
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
