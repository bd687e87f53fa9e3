//! One board's disk from a template.
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::ext4;
use super::gpt::{Guid, Partition, SECTOR, Table};
use super::layout::{self, PartitionLabel};
use super::manifest::{FirmwareKind, PartitionEntry, Template};
use super::plan::{config_image, tail_offset};
use super::sparse::SparseFile;

/// The configuration's name on its partition.
pub const CONFIG_FILE: &str = "wherry.toml";
/// The longest configuration that a board reads: hundreds of tokens.
pub const MAX_CONFIG_BYTES: usize = 64 * 1024;

/// What makes this board this board: the text of `wherry.toml`.
#[derive(Clone, PartialEq, Eq)]
pub struct BoardConfig {
    toml: String,
}

impl BoardConfig {
    /// A configuration, if it is not too long.
    pub fn new(toml: impl Into<String>) -> Result<Self, DiskError> {
        let toml = toml.into();
        if toml.len() > MAX_CONFIG_BYTES {
            let (needed, available) = (toml.len() as u64, MAX_CONFIG_BYTES as u64);
            return Err(DiskError::TooLarge { what: "the board's configuration", needed, available });
        }
        Ok(Self { toml })
    }
}

impl std::fmt::Debug for BoardConfig {
    /// Without its text, which has secrets in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BoardConfig({} bytes)", self.toml.len())
    }
}

/// Writes to `out` (created, mode 0600, or replaced once it is complete) the disk in `template_dir` with `config` on
/// it and a fresh data partition of `data_bytes` (rounded down to MiB). Sparse: room that nothing uses takes none.
///
/// The same arguments give the same bytes; another configuration gives another disk identifier.
pub fn personalise(
    template_dir: &Path,
    out: &Path,
    config: &BoardConfig,
    data_bytes: u64,
) -> Result<(), DiskError> {
    let template = Template::open(template_dir)?;
    let plan = Plan::new(&template, config, data_bytes)?;
    let partial = partial_path(out);
    let written = plan.write(&template, &partial);
    let placed = written.and_then(|()| std::fs::rename(&partial, out).map_err(DiskError::io("create", out)));
    if placed.is_err() {
        // Best effort: the first error is the one to report.
        let _gone = std::fs::remove_file(&partial);
    }
    placed
}

fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

struct Plan {
    table: Table,
    /// Everything before this comes from the template.
    copied: u64,
    config_at: u64,
    config_image: Vec<u8>,
    data: Partition,
    data_uuid: Guid,
}

impl Plan {
    fn new(template: &Template, config: &BoardConfig, data_bytes: u64) -> Result<Self, DiskError> {
        let data_bytes = layout::check_data_bytes(data_bytes)?;
        let manifest = template.manifest();
        let identity: [&[u8]; 2] = [manifest.disk.sha256.as_bytes(), config.toml.as_bytes()];
        let mut partitions: Vec<Partition> = manifest.partitions.iter().map(partition).collect();
        let missing = || template.refuse("its partitions are not the expected ones");
        let data = partitions.last_mut().ok_or_else(missing)?;
        data.sectors = data_bytes / SECTOR;
        let data = data.clone();
        let table = Table {
            disk: Guid::derive(&[b"board disk", identity[0], identity[1]]),
            sectors: layout::disk_sectors(data.first + data.sectors),
            partitions,
            hybrid: manifest.firmware == FirmwareKind::RaspberryPi,
        };
        let place = manifest.partition(PartitionLabel::Config).ok_or_else(missing)?;
        let files = [(CONFIG_FILE, config.toml.as_bytes())];
        Ok(Self {
            table,
            copied: place.start,
            config_at: place.start,
            config_image: config_image(&files, &place.uuid)?,
            data_uuid: Guid::derive(&[b"board data", identity[0], identity[1]]),
            data,
        })
    }

    fn write(&self, template: &Template, path: &Path) -> Result<(), DiskError> {
        let mut disk = SparseFile::create_private(path, self.table.sectors * SECTOR)?;
        disk.copy_from(&template.disk_path(), self.copied)?;
        disk.overwrite(0, &self.table.head())?;
        disk.write(self.config_at, &self.config_image)?;
        disk.write(tail_offset(&self.table), &self.table.tail())?;
        drop(disk);
        ext4::format(path, self.data.first * SECTOR, self.data.sectors * SECTOR, &self.data_uuid)
    }
}

fn partition(entry: &PartitionEntry) -> Partition {
    Partition {
        kind: entry.kind,
        uuid: entry.uuid,
        label: entry.label.name(),
        first: entry.start / SECTOR,
        sectors: entry.bytes / SECTOR,
    }
}
