//! The data partition's file system, made by `mke2fs` inside the disk image.
use std::path::Path;

use super::error::DiskError;
use super::gpt::Guid;
use super::layout::PartitionLabel;
use super::tool::Tool;

const MKE2FS: Tool = Tool { program: "mke2fs", package: "e2fsprogs" };
/// Named one by one, so that the bytes do not depend on the machine's `mke2fs.conf`. Checksums find a failing card.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Makes an empty ext4 of `bytes` at `offset` of the file `disk`, which has a hole there.
pub(crate) fn format(disk: &Path, offset: u64, bytes: u64, uuid: &Guid) -> Result<(), DiskError> {
    MKE2FS.run(
        &arguments(disk, offset, bytes, uuid),
        &[("MKE2FS_CONFIG", "/dev/null"), ("E2FSPROGS_FAKE_TIME", "1")],
    )
}

fn arguments(disk: &Path, offset: u64, bytes: u64, uuid: &Guid) -> Vec<String> {
    let extended =
        format!("offset={offset},hash_seed={uuid},root_owner=0:0,nodiscard,assume_storage_prezeroed=1");
    let label = PartitionLabel::Data.name();
    let options =
        ["-F", "-q", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "1", "-L", label];
    let mut arguments: Vec<String> = options.map(str::to_owned).into();
    arguments.extend(["-O".into(), FEATURES.into(), "-U".into(), uuid.to_string(), "-E".into(), extended]);
    arguments.extend([disk.display().to_string(), format!("{}k", bytes / 1024)]);
    arguments
}
