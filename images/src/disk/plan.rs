//! Everything that will be written to a template's disk, decided before anything is. Pure.
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::gpt::{Guid, Partition, SECTOR, TAIL_SECTORS, Table};
use super::layout::{self, CONFIG_BYTES, ESP_BYTES, PartitionLabel, ROOT_BYTES};
use super::manifest::{Arch, BoardRole};
use super::uki::{self, Section};
use super::verity::Verity;
use super::{erofs, fat};

/// Empty directories of the root, where the supervisor mounts what is not read-only.
const MOUNT_POINTS: [&str; 9] = ["config", "data", "dev", "etc", "proc", "run", "sys", "tmp", "var"];

/// What starts the kernel, with the files for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Boot {
    /// UEFI: systemd's stub, and where it came from, for messages.
    Uefi { path: PathBuf, stub: Vec<u8> },
    /// A boot loader that reads `extlinux.conf`.
    Extlinux,
    /// A Raspberry Pi, with its firmware's files.
    RaspberryPi { files: BTreeMap<String, Vec<u8>> },
}

/// What a disk is made of, in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) arch: Arch,
    pub(crate) role: BoardRole,
    /// The static program that becomes `/sbin/init`.
    pub(crate) binary: &'a [u8],
    /// The kernel as firmware and boot loaders want it.
    pub(crate) kernel: &'a [u8],
    /// What starts the kernel.
    pub(crate) boot: &'a Boot,
    /// Size of the data partition.
    pub(crate) data_bytes: u64,
}

/// Bytes for one place of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// Where it goes, in bytes.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// A disk that could be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) table: Table,
    pub(crate) command_line: String,
    pub(crate) root_hash: [u8; 32],
    pub(crate) writes: Vec<Write>,
}

impl Plan {
    /// Decides everything.
    pub(crate) fn new(inputs: &Inputs<'_>) -> Result<Self, DiskError> {
        let mut root = root_image(inputs)?;
        let verity = Verity::over(&root);
        root.extend_from_slice(&verity.tree);
        if root.len() as u64 > ROOT_BYTES {
            let needed = root.len() as u64;
            return Err(DiskError::TooLarge { what: "the root file system", needed, available: ROOT_BYTES });
        }
        let mut table = layout::table(inputs.arch, inputs.role, &verity.root_hash, inputs.data_bytes)?;
        table.hybrid = matches!(inputs.boot, Boot::RaspberryPi { .. });
        let [esp, root_a, _, config, _] = labelled(&table);
        let command_line = command_line(inputs, &root_a.uuid, &verity);
        let esp_image = esp_image(inputs, &command_line, &esp.uuid)?;
        let config_image = config_image(&[], &config.uuid)?;
        let writes = vec![
            Write { what: "partition table", offset: 0, bytes: table.head() },
            Write { what: "boot files", offset: esp.first * SECTOR, bytes: esp_image },
            Write { what: "root and hash tree", offset: root_a.first * SECTOR, bytes: root },
            Write { what: "empty configuration", offset: config.first * SECTOR, bytes: config_image },
            Write { what: "second partition table", offset: tail_offset(&table), bytes: table.tail() },
        ];
        Ok(Self { command_line, root_hash: verity.root_hash, writes, table })
    }

    /// The data partition, whose file system is made in place.
    pub(crate) fn data(&self) -> &Partition {
        let [.., data] = labelled(&self.table);
        data
    }
}

impl fmt::Display for Plan {
    /// The partition table and the writes, one per line, for people and golden tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "disk {} sectors {}", self.table.disk, self.table.sectors)?;
        for Partition { kind, uuid, label, first, sectors } in &self.table.partitions {
            writeln!(f, "partition {label} first {first} sectors {sectors} type {kind} uuid {uuid}")?;
        }
        for Write { what, offset, bytes } in &self.writes {
            writeln!(f, "write {what} at {offset} bytes {}", bytes.len())?;
        }
        writeln!(f, "command line {}", self.command_line)
    }
}

/// Where the second table goes.
pub(crate) fn tail_offset(table: &Table) -> u64 {
    (table.sectors - TAIL_SECTORS) * SECTOR
}

/// The partitions in the order of [`PartitionLabel::ALL`], as [`layout::table`] makes them.
fn labelled(table: &Table) -> [&Partition; PartitionLabel::ALL.len()] {
    std::array::from_fn(|index| &table.partitions[index])
}

/// The read-only root: one program and places to mount things.
fn root_image(inputs: &Inputs<'_>) -> Result<Vec<u8>, DiskError> {
    let sbin = erofs::Directory::default().file("init", 0o755, inputs.binary);
    let root = erofs::Directory::default().subtree("sbin", sbin);
    let root = MOUNT_POINTS.into_iter().fold(root, erofs::Directory::directory);
    let uuid = Guid::derive(&[b"root", inputs.arch.name().as_bytes(), inputs.role.name().as_bytes()]);
    erofs::image(&root, &uuid)
}

fn command_line(inputs: &Inputs<'_>, root: &Guid, verity: &Verity) -> String {
    match inputs.boot {
        Boot::Uefi { .. } | Boot::Extlinux => layout::command_line(inputs.arch.console(), root, verity),
        // The firmware puts the right name for `serial0`; its SD card is there long after the kernel.
        Boot::RaspberryPi { .. } => {
            format!("{} dm-mod.waitfor=PARTUUID={root}", layout::command_line("serial0,115200", root, verity))
        }
    }
}

/// The ESP: the kernel where each kind of firmware looks for it.
fn esp_image(inputs: &Inputs<'_>, command_line: &str, uuid: &Guid) -> Result<Vec<u8>, DiskError> {
    let write = |root: &fat::Directory<'_>| fat::image(root, ESP_BYTES, "WHERRY-ESP", uuid);
    let dir = fat::Directory::default;
    match inputs.boot {
        Boot::Uefi { path, stub } => {
            let image = unified_kernel(inputs, command_line, path, stub)?;
            let name = inputs.arch.efi_name();
            write(&dir().subtree("EFI", dir().subtree("BOOT", dir().file(name, &image))))
        }
        Boot::Extlinux => {
            let text = format!("DEFAULT a\nLABEL a\n  KERNEL /wherry/kernel-a\n  APPEND {command_line}\n");
            let kernel = dir().file("kernel-a", inputs.kernel);
            let extlinux = dir().file("extlinux.conf", text.as_bytes());
            write(&dir().subtree("wherry", kernel).subtree("extlinux", extlinux))
        }
        Boot::RaspberryPi { files } => {
            let root = files.iter().fold(dir(), |root, (name, content)| root.file(name, content));
            write(&root.file("kernel8.img", inputs.kernel).file("cmdline.txt", command_line.as_bytes()))
        }
    }
}

fn unified_kernel(
    inputs: &Inputs<'_>,
    command_line: &str,
    path: &Path,
    stub: &[u8],
) -> Result<Vec<u8>, DiskError> {
    let release = format!("ID=wherry\nNAME=Wherry\nPRETTY_NAME=\"Wherry {}\"\n", inputs.role.name());
    let sections = [
        Section { name: ".osrel", content: release.as_bytes() },
        Section { name: ".cmdline", content: command_line.as_bytes() },
        Section { name: ".linux", content: inputs.kernel },
    ];
    uki::with_sections(stub, path, &sections)
}

/// A configuration partition with these files.
pub(crate) fn config_image(files: &[(&str, &[u8])], uuid: &Guid) -> Result<Vec<u8>, DiskError> {
    let root = files.iter().fold(fat::Directory::default(), |root, (name, content)| root.file(name, content));
    fat::image(&root, CONFIG_BYTES, "WHERRY-CONF", uuid)
}
