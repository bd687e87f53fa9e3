//! Disks of boards: a built image with one board's configuration on it.
use std::path::{Path, PathBuf};
use wherry_images::disk::{self, Arch, BoardConfig, BoardRole, DiskError, MANIFEST_FILE, Template};

/// Why a disk could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// No image for such a board.
    #[error("{} has no image of a {role} for {arch}: build it with `cargo xtask images`", directory.display())]
    NoImage {
        /// `broker` or `node`.
        role: &'static str,
        /// The board's processor.
        arch: &'static str,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file is there already, maybe with the only copy of a key.
    #[error("{} exists already: remove it or choose another place", .0.display())]
    Exists(PathBuf),
    /// Making the disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Where the built images are, and for which processor.
#[derive(Debug, Clone)]
pub struct Images {
    /// What `cargo xtask images` made: for all processors, or for one.
    pub directory: PathBuf,
    /// The boards' processor.
    pub arch: Arch,
}

impl Images {
    /// The directory of the image for a role.
    fn find(&self, role: BoardRole) -> Result<PathBuf, FlashError> {
        let places = [
            self.directory.join(self.arch.name()).join("images").join(role.name()),
            self.directory.join(role.name()),
        ];
        for place in places {
            if place.join(MANIFEST_FILE).exists() {
                let template = Template::open(&place)?;
                if template.manifest().arch == self.arch && template.manifest().role == role {
                    return Ok(place);
                }
            }
        }
        let (role, arch) = (role.name(), self.arch.name());
        Err(FlashError::NoImage { role, arch, directory: self.directory.clone() })
    }

    /// Makes sure that there is an image for a role, before anything is written.
    pub fn check(&self, role: BoardRole) -> Result<(), FlashError> {
        self.find(role).map(drop)
    }

    /// Writes the disk of one board (mode 0600): the image, `wherry_toml` on its configuration partition, and an empty
    /// data partition of `data_bytes`. An existing file is refused.
    pub fn write(
        &self,
        role: BoardRole,
        wherry_toml: String,
        out: &Path,
        data_bytes: u64,
    ) -> Result<(), FlashError> {
        if out.symlink_metadata().is_ok() {
            return Err(FlashError::Exists(out.to_owned()));
        }
        let config = BoardConfig::new(wherry_toml)?;
        Ok(disk::personalise(&self.find(role)?, out, &config, data_bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_images_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images { directory: directory.path().to_owned(), arch: Arch::Aarch64 };
        let error = images.check(BoardRole::Broker).unwrap_err().to_string();
        assert!(error.contains("has no image of a broker for aarch64"), "{error}");
        let existing = directory.path().join("disk.img");
        std::fs::write(&existing, "precious").unwrap();
        let error = images.write(BoardRole::Node, String::new(), &existing, 1 << 30).unwrap_err();
        assert!(matches!(error, FlashError::Exists(_)), "{error}");
        assert_eq!(std::fs::read_to_string(existing).unwrap(), "precious");
    }
}
