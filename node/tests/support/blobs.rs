//! An image that comes from memory, as it would from the broker.
use super::{ARCHITECTURE, busybox_root};
use std::collections::HashMap;
use std::path::Path;
use wherry_node::container::layers::{BlobReader, BlobSource};
use wherry_protocol::message::{Descriptor, ImageManifest, Media};
use wherry_protocol::{Digest, ErrorCode, WireError};

/// Blobs by digest.
#[derive(Default)]
pub struct Blobs(HashMap<Digest, Vec<u8>>);

impl BlobSource for Blobs {
    async fn fetch(&self, digest: Digest, _size: u64) -> Result<BlobReader, WireError> {
        let missing = || WireError::new(ErrorCode::NotFound, "no such blob");
        let bytes = self.0.get(&digest).cloned().ok_or_else(missing)?;
        Ok(Box::new(futures_util::io::Cursor::new(bytes)))
    }
}

impl Blobs {
    pub fn add(&mut self, bytes: Vec<u8>, media: Media) -> Descriptor {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.0.insert(digest, bytes);
        Descriptor { digest, size, media }
    }

    /// Puts bytes where others belong.
    pub fn set(&mut self, digest: Digest, bytes: Vec<u8>) {
        self.0.insert(digest, bytes);
    }

    /// The bytes of a blob.
    pub fn get(&self, digest: &Digest) -> Vec<u8> {
        self.0[digest].clone()
    }

    /// Adds an image of busybox, whose files are made at `root` first.
    pub fn busybox(&mut self, root: &Path) -> ImageManifest {
        busybox_root(root);
        // As most images have them.
        for name in ["proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        archive.append_dir_all(".", root).unwrap();
        let layer = archive.into_inner().unwrap();
        let config = format!(
            r#"{{"architecture":"{ARCHITECTURE}","os":"linux","config":{{"Env":["PATH=/bin"]}},"rootfs":{{"diff_ids":["{}"]}}}}"#,
            Digest::of(&layer)
        );
        let layers = vec![self.add(layer, Media::LayerTar)];
        ImageManifest { config: self.add(config.into_bytes(), Media::Config), layers }
    }
}
