//! Disk images for boards: plan, then apply, without root privileges, loop devices or a clock.
//!
//! ```text
//! wherry-esp      FAT    the kernel: a unified kernel image whose command line carries the root hash
//! wherry-root-a   erofs  /sbin/init and empty mount points, followed by its dm-verity hash tree
//! wherry-root-b   -      the other slot, empty until an update fills it
//! wherry-config   FAT    wherry.toml: what makes this board this board
//! wherry-data     ext4   everything that survives
//! ```
//!
//! [`assemble`] makes a *template* once per role and architecture: `disk.img`, `kernel` (for a machine monitor that
//! loads kernels itself) and `manifest.json`. [`personalise`] makes one board's disk from it. The same inputs give
//! the same bytes: identifiers are derived from content and role ([`Guid::derive`]), times are zero.
//!
//! ```text
//! layout       sizes and order of the partitions, the kernel command line: pure
//! plan         everything that will be written, and where: pure
//! assemble     reads inputs, writes a template
//! personalise  reads a template, writes a board's disk
//! gpt fat erofs verity uki   the formats, bytes in, bytes out
//! ext4 tool    the one format made by an external program, and how programs are run
//! ```
mod assemble;
mod erofs;
mod error;
mod ext4;
mod fat;
mod gpt;
mod layout;
mod manifest;
mod personalise;
mod plan;
mod sparse;
mod tool;
mod uki;
mod verity;

#[cfg(test)]
mod tests;

pub use assemble::{Firmware, TemplateSpec, assemble};
pub use error::DiskError;
pub use gpt::Guid;
pub use layout::{MAX_DATA_BYTES, MIN_DATA_BYTES, PartitionLabel};
pub use manifest::{
    Arch, BoardRole, FileEntry, FirmwareKind, MANIFEST_FILE, Manifest, PartitionEntry, Template,
};
pub use personalise::{BoardConfig, CONFIG_FILE, MAX_CONFIG_BYTES, personalise};
