//! `manifest.json`: what is in a template, for those who boot or flash it.
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::DiskError;
use super::gpt::Guid;
use super::layout::PartitionLabel;

/// The manifest's name inside a template's directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// What this code writes and reads; raised when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// The processor a disk image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit PC.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// The name used in paths and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The serial port of most machines.
    pub(crate) const fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// What UEFI firmware starts from a disk it does not know (UEFI specification 2.10, section 3.5.1.1).
    pub(crate) const fn efi_name(self) -> &'static str {
        match self {
            Self::X86_64 => "BOOTX64.EFI",
            Self::Aarch64 => "BOOTAA64.EFI",
        }
    }
}

/// Which of the two programs a board runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoardRole {
    /// The broker of a location.
    Broker,
    /// A node that runs containers.
    Node,
}

impl BoardRole {
    /// The name used in paths and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Node => "node",
        }
    }
}

/// What starts the kernel from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareKind {
    /// UEFI, by a unified kernel image: the root hash is inside what a signature can cover.
    Uefi,
    /// A boot loader that reads `extlinux.conf`, such as U-Boot.
    Extlinux,
    /// A Raspberry Pi's own firmware.
    RaspberryPi,
}

/// A file of the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name inside the template's directory.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
}

/// A partition of the template's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionEntry {
    /// GPT label.
    pub label: PartitionLabel,
    /// GPT type.
    pub kind: Guid,
    /// `PARTUUID=`.
    pub uuid: Guid,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What is in a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's format.
    pub format: u32,
    /// The processor it is for.
    pub arch: Arch,
    /// Which program it runs.
    pub role: BoardRole,
    /// The disk image.
    pub disk: FileEntry,
    /// The kernel for direct boot (`-kernel`): ELF `vmlinux` on x86_64, `Image` on aarch64.
    pub kernel: FileEntry,
    /// The kernel's command line, complete with the verity table, as the unified kernel image carries it and as
    /// `-append` needs it. A machine monitor may add its own arguments after it.
    pub command_line: String,
    /// Root hash of the verity tree over root-A, in hexadecimal.
    pub root_hash: String,
    /// What starts the kernel when nobody gives it directly.
    pub firmware: FirmwareKind,
    /// The partition table, in order.
    pub partitions: Vec<PartitionEntry>,
}

impl Manifest {
    /// The partition with this label.
    pub fn partition(&self, label: PartitionLabel) -> Option<&PartitionEntry> {
        self.partitions.iter().find(|partition| partition.label == label)
    }
}

/// A template on disk.
#[derive(Debug, Clone)]
pub struct Template {
    dir: PathBuf,
    manifest: Manifest,
}

impl Template {
    /// Reads the manifest in `dir`.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join(MANIFEST_FILE);
        let text = std::fs::read(&path).map_err(DiskError::io("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| DiskError::Manifest { path, source })?;
        let template = Self { dir: dir.to_path_buf(), manifest };
        template.check()?;
        Ok(template)
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The disk image.
    pub fn disk_path(&self) -> PathBuf {
        self.dir.join(&self.manifest.disk.name)
    }

    /// The kernel for direct boot.
    pub fn kernel_path(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel.name)
    }

    /// A template's own inconsistency, as an error.
    pub(crate) fn refuse(&self, reason: &'static str) -> DiskError {
        DiskError::Template { dir: self.dir.clone(), reason }
    }

    fn check(&self) -> Result<(), DiskError> {
        let manifest = &self.manifest;
        if manifest.format != FORMAT {
            return Err(self.refuse("its manifest has another format version"));
        }
        if [&manifest.disk, &manifest.kernel]
            .iter()
            .any(|file| Path::new(&file.name).components().count() != 1)
        {
            return Err(self.refuse("its manifest names a file outside its directory"));
        }
        if !manifest.partitions.iter().map(|partition| partition.label).eq(PartitionLabel::ALL) {
            return Err(self.refuse("its partitions are not the expected ones"));
        }
        let mut end = 0;
        for partition in &manifest.partitions {
            let next = partition.start.checked_add(partition.bytes);
            end = next
                .filter(|_| partition.start >= end)
                .ok_or_else(|| self.refuse("its partitions overlap"))?;
        }
        if end > manifest.disk.bytes {
            return Err(self.refuse("its partitions do not fit its disk"));
        }
        Ok(())
    }
}
