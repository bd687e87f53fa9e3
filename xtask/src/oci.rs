//! Container images as one archive that both `docker load` and OCI tools read: an OCI image layout (OCI image-spec
//! 1.1) with the `manifest.json` of `docker save` beside it.
use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::layer::{Layer, gzip};
use crate::project::hex;

/// How a container of the image starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Program and arguments.
    pub(crate) command: &'static [&'static str],
    /// `PATH`.
    pub(crate) path: &'static str,
    /// TCP ports it listens on.
    pub(crate) ports: &'static [u16],
}

/// The archive of an image called `name`, for Debian's (and the specification's) architecture name `arch`.
pub(crate) fn archive(name: &str, arch: &str, start: &Start, layers: &[Layer]) -> std::io::Result<Vec<u8>> {
    let mut blobs = Blobs::default();
    let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
    for layer in layers {
        let tar = layer.tar()?;
        diff_ids.push(digest(&tar));
        descriptors.push(blobs.add("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&tar)?));
    }
    let config = config(arch, start, &diff_ids);
    let config = blobs.add("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let docker = json!([{
        "Config": blob_path(&config),
        "RepoTags": [format!("{name}:latest")],
        "Layers": descriptors.iter().map(blob_path).collect::<Vec<_>>(),
    }]);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors });
    let mut manifest = blobs.add(media_type, manifest.to_string().into_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("{name}:latest") });
    manifest["platform"] = json!({ "architecture": arch, "os": "linux" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    blobs.archive(&[
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", index),
        ("manifest.json", docker),
    ])
}

fn config(arch: &str, start: &Start, diff_ids: &[String]) -> Value {
    let ports: BTreeMap<String, Value> =
        start.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    let history: Vec<Value> = diff_ids
        .iter()
        .map(|_| json!({ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask fixtures" }))
        .collect();
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": arch,
        "os": "linux",
        "config": {
            "Cmd": start.command,
            "Env": [format!("PATH={}", start.path)],
            "ExposedPorts": ports,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
}

/// Everything that is named by its digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Keeps `content`; its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
        self.0.insert(path_of(&digest), content);
        descriptor
    }

    fn archive(&self, documents: &[(&str, Value)]) -> std::io::Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (path, document) in documents {
            append(&mut builder, path, document.to_string().as_bytes())?;
        }
        for (path, content) in &self.0 {
            append(&mut builder, path, content)?;
        }
        builder.into_inner()
    }
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, path, content)
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

fn path_of(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn blob_path(descriptor: &Value) -> String {
    path_of(descriptor["digest"].as_str().unwrap_or_default())
}
