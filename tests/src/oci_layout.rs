//! Making an image for several platforms out of one.
use crate::failure::Failure;
use serde_json::{Value, json};
use std::path::Path;
use wherry_protocol::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Makes of the only image of an OCI layout an index of three: itself, the same for boards of the other processor, and one
/// for a machine that no board is. All have the same layers.
pub fn add_platforms(layout: &Path) -> Result<(), Failure> {
    let index = document(&layout.join("index.json"))?;
    let manifest = read_blob(layout, &index["manifests"][0]["digest"])?;
    let config = read_blob(layout, &manifest["config"]["digest"])?;
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64", "s390x"] {
        let (mut manifest, mut config) = (manifest.clone(), config.clone());
        config["architecture"] = json!(architecture);
        let stored = write_blob(layout, &config)?;
        manifest["config"]["digest"] = stored["digest"].clone();
        manifest["config"]["size"] = stored["size"].clone();
        let mut entry = write_blob(layout, &manifest)?;
        entry["mediaType"] = index["manifests"][0]["mediaType"].clone();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let several = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let mut entry = write_blob(layout, &several)?;
    entry["mediaType"] = json!(INDEX);
    let path = layout.join("index.json");
    let outer = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(&path, outer.to_string()).map_err(Failure::file("write", &path))
}

fn document(path: &Path) -> Result<Value, Failure> {
    let bytes = std::fs::read(path).map_err(Failure::file("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Unexpected(format!("{}: {error}", path.display())))
}

fn read_blob(layout: &Path, digest: &Value) -> Result<Value, Failure> {
    let digest = digest.as_str().unwrap_or_default().trim_start_matches("sha256:");
    document(&layout.join("blobs/sha256").join(digest))
}

/// Its descriptor, without a type.
fn write_blob(layout: &Path, value: &Value) -> Result<Value, Failure> {
    let bytes = value.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    let path = layout.join("blobs/sha256").join(digest.hex());
    std::fs::write(&path, &bytes).map_err(Failure::file("write", &path))?;
    Ok(json!({"digest": digest.to_string(), "size": bytes.len()}))
}
