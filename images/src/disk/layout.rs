//! Where everything goes: the order and size of partitions, and the kernel command line. Pure.
use serde::{Deserialize, Serialize};

use super::error::DiskError;
use super::gpt::{Guid, Partition, SECTOR, TAIL_SECTORS, Table};
use super::manifest::{Arch, BoardRole};
use super::verity::Verity;

const MIB: u64 = 1 << 20;
/// Partitions start on whole MiB: a multiple of every flash erase block and RAID stripe in use.
const ALIGN: u64 = MIB;
/// Two unified kernel images (7–12 MiB each) with room to grow, and enough clusters for FAT16.
pub(crate) const ESP_BYTES: u64 = 48 * MIB;
/// Four times today's root, so that an update to slot B fits for years; unwritten, hence free in a sparse file.
pub(crate) const ROOT_BYTES: u64 = 32 * MIB;
/// `wherry.toml`, in the smallest partition that FAT16 (4085 clusters) is comfortable with.
pub(crate) const CONFIG_BYTES: u64 = 8 * MIB;
/// The smallest data partition: ext4 with a journal needs about 8 MiB for itself.
pub const MIN_DATA_BYTES: u64 = 16 * MIB;
/// The largest data partition: 16 TiB, where ext4 with 4 KiB blocks would need other options.
pub const MAX_DATA_BYTES: u64 = 1 << 44;

/// The labels by which boards find their partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PartitionLabel {
    /// The EFI system partition.
    #[serde(rename = "wherry-esp")]
    Esp,
    /// Root file system and hash tree, slot A.
    #[serde(rename = "wherry-root-a")]
    RootA,
    /// Slot B.
    #[serde(rename = "wherry-root-b")]
    RootB,
    /// This board's configuration.
    #[serde(rename = "wherry-config")]
    Config,
    /// What survives.
    #[serde(rename = "wherry-data")]
    Data,
}

impl PartitionLabel {
    /// All of them, in the order of the disk. Data is last, so that it can have any size.
    pub const ALL: [Self; 5] = [Self::Esp, Self::RootA, Self::RootB, Self::Config, Self::Data];

    /// The label in the partition table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Esp => "wherry-esp",
            Self::RootA => "wherry-root-a",
            Self::RootB => "wherry-root-b",
            Self::Config => "wherry-config",
            Self::Data => "wherry-data",
        }
    }

    /// The partition type (UEFI specification; UAPI group's Discoverable Partitions Specification).
    const fn kind(self, arch: Arch) -> Guid {
        match (self, arch) {
            (Self::Esp, _) => Guid::new(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b),
            (Self::RootA | Self::RootB, Arch::X86_64) => Guid::new(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709),
            (Self::RootA | Self::RootB, Arch::Aarch64) => Guid::new(0xb921b045_1df0_41c3_af44_4c6f280d3fae),
            (Self::Config, _) => Guid::new(0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7),
            (Self::Data, _) => Guid::new(0x0fc63daf_8483_4772_8e79_3d69d8477de4),
        }
    }

    const fn bytes(self, data_bytes: u64) -> u64 {
        match self {
            Self::Esp => ESP_BYTES,
            Self::RootA | Self::RootB => ROOT_BYTES,
            Self::Config => CONFIG_BYTES,
            Self::Data => data_bytes,
        }
    }
}

/// The partition table of a template. Root-A's identifier comes from its content, so a command line can only
/// ever name the root it was made with.
pub(crate) fn table(
    arch: Arch,
    role: BoardRole,
    root_hash: &[u8; 32],
    data_bytes: u64,
) -> Result<Table, DiskError> {
    let data_bytes = check_data_bytes(data_bytes)?;
    let identity = [arch.name().as_bytes(), role.name().as_bytes()];
    let mut first = ALIGN / SECTOR;
    let mut partitions = Vec::with_capacity(PartitionLabel::ALL.len());
    for label in PartitionLabel::ALL {
        let name = label.name().as_bytes();
        let uuid = match label {
            PartitionLabel::RootA => Guid::derive(&[name, root_hash]),
            _ => Guid::derive(&[name, identity[0], identity[1]]),
        };
        let sectors = label.bytes(data_bytes) / SECTOR;
        partitions.push(Partition { kind: label.kind(arch), uuid, label: label.name(), first, sectors });
        first += sectors;
    }
    let disk = Guid::derive(&[b"disk", identity[0], identity[1], root_hash]);
    Ok(Table { disk, sectors: disk_sectors(first), partitions, hybrid: false })
}

/// Sectors of a disk whose last partition ends before `end`: room for the second table, whole MiB.
pub(crate) fn disk_sectors(end: u64) -> u64 {
    (end + TAIL_SECTORS).next_multiple_of(ALIGN / SECTOR)
}

/// The data partition's size in whole MiB (rounded down), if it is possible.
pub(crate) fn check_data_bytes(bytes: u64) -> Result<u64, DiskError> {
    if (MIN_DATA_BYTES..=MAX_DATA_BYTES).contains(&bytes) {
        Ok(bytes - bytes % ALIGN)
    } else {
        Err(DiskError::DataSize { bytes, min: MIN_DATA_BYTES, max: MAX_DATA_BYTES })
    }
}

/// The kernel command line: dm-init builds the verity device before the root is mounted, without an initramfs
/// (Documentation/admin-guide/device-mapper/dm-init.rst), and any wrong byte of the root is a panic, which reboots.
pub(crate) fn command_line(console: &str, root: &Guid, verity: &Verity) -> String {
    let device = format!("PARTUUID={root}");
    format!(
        "console={console} root=/dev/dm-0 rootfstype=erofs ro init=/sbin/init panic=10 quiet dm-mod.create=\"{}\"",
        dm_table(&device, verity)
    )
}

/// One read-only device (Documentation/admin-guide/device-mapper/verity.rst): the data blocks, then the tree, on
/// the same partition; no salt, because nothing here is secret.
fn dm_table(device: &str, verity: &Verity) -> String {
    let block = super::verity::BLOCK;
    let (blocks, hash) = (verity.data_blocks, hex(&verity.root_hash));
    let sectors = blocks * block / SECTOR;
    format!(
        "wherry-root,,,ro,0 {sectors} verity 1 {device} {device} {block} {block} {blocks} {blocks} sha256 {hash} - 1 panic_on_corruption"
    )
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
