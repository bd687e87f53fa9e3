//! The hash tree of dm-verity, version 1, SHA-256, without salt (Documentation/admin-guide/device-mapper/verity.rst).
use sha2::{Digest, Sha256};

/// Bytes per data block and per hash block.
pub(crate) const BLOCK: u64 = 4096;
const DIGESTS_PER_BLOCK: usize = BLOCK as usize / 32;

/// The tree over some data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verity {
    /// Blocks of data.
    pub(crate) data_blocks: u64,
    /// The digest of the topmost block: whoever trusts it, trusts all.
    pub(crate) root_hash: [u8; 32],
    /// The tree's blocks as the kernel wants them, topmost level first.
    pub(crate) tree: Vec<u8>,
}

impl Verity {
    /// The tree over `data`, which is a whole number of blocks, at least two.
    pub(crate) fn over(data: &[u8]) -> Self {
        let data_blocks = data.len() as u64 / BLOCK;
        let mut levels = vec![digests(data)];
        while let Some(level) = levels.last().filter(|level| level.len() > BLOCK as usize) {
            levels.push(digests(level));
        }
        let root_hash = levels.last().map_or([0; 32], |top| Sha256::digest(top).into());
        levels.reverse();
        Self { data_blocks, root_hash, tree: levels.concat() }
    }
}

/// The digests of every block of `data`, padded with zeros to whole blocks.
fn digests(data: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = data.chunks(BLOCK as usize).flat_map(Sha256::digest).collect();
    out.resize(out.len().next_multiple_of(DIGESTS_PER_BLOCK * 32), 0);
    out
}
