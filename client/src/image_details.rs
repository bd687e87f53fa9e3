//! What an image's configuration says, beyond what the broker knows of it (OCI image-spec, config.md).
use crate::error::ClientError;
use crate::image::Image;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use wherry_protocol::message::{Descriptor, ImageInfo, Media};

/// Everything about an image. The names of its fields, in JSON, do not change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageDetails {
    /// `repository:tag`.
    pub name: String,
    /// Digest of its configuration.
    pub id: String,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// When it was made, RFC 3339, as it says itself.
    pub created: Option<String>,
    /// Who made it, as it says itself.
    pub author: Option<String>,
    /// Bytes of all its blobs.
    pub size: u64,
    /// When it got its name here, Unix seconds.
    pub pushed_seconds: u64,
    /// Program that the command is given to.
    pub entrypoint: Vec<String>,
    /// Command, or its arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// `user[:group]`.
    pub user: String,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths meant for volumes.
    pub volumes: Vec<String>,
    /// Signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// Notes.
    pub labels: BTreeMap<String, String>,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// How it was made, oldest first.
    pub history: Vec<History>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Of its bytes as they are stored.
    pub digest: String,
    /// OCI's name for how it is packed.
    pub media_type: &'static str,
    /// In bytes, as stored.
    pub size: u64,
    /// Digest of its tar stream, unpacked.
    pub diff_id: Option<String>,
}

/// One step of how an image was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it changed no file.
    #[serde(default)]
    pub empty_layer: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    os: String,
    created: Option<String>,
    author: Option<String>,
    config: Option<Settings>,
    rootfs: RootFs,
    history: Option<Vec<History>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Settings {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, Value>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

impl Image {
    /// Reads the image's configuration from the broker.
    ///
    /// # Errors
    /// When the broker does not have it, or it makes no sense.
    pub async fn details(&self) -> Result<ImageDetails, ClientError> {
        let bytes = self.location().read_blob(&self.info().id).await?;
        details(self.info(), &bytes)
    }
}

fn details(info: &ImageInfo, bytes: &[u8]) -> Result<ImageDetails, ClientError> {
    let wrong = |error: serde_json::Error| ClientError::Configuration(info.name.clone(), error.to_string());
    let document: Document = serde_json::from_slice(bytes).map_err(wrong)?;
    let settings = document.config.unwrap_or_default();
    let keys = |map: Option<BTreeMap<String, Value>>| map.unwrap_or_default().into_keys().collect();
    let diff_ids = document.rootfs.diff_ids.into_iter().map(Some).chain(std::iter::repeat(None));
    Ok(ImageDetails {
        name: info.name.to_string(),
        id: info.id.to_string(),
        architecture: info.architecture.clone(),
        os: document.os,
        created: document.created,
        author: document.author,
        size: info.size,
        pushed_seconds: info.created_seconds,
        entrypoint: settings.entrypoint.unwrap_or_default(),
        cmd: settings.cmd.unwrap_or_default(),
        env: settings.env.unwrap_or_default(),
        workdir: settings.working_dir.unwrap_or_default(),
        user: settings.user.unwrap_or_default(),
        exposed_ports: keys(settings.exposed_ports),
        volumes: keys(settings.volumes),
        stop_signal: settings.stop_signal,
        labels: settings.labels.unwrap_or_default(),
        layers: info
            .manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| layer(blob, diff_id))
            .collect(),
        history: document.history.unwrap_or_default(),
    })
}

fn layer(blob: &Descriptor, diff_id: Option<String>) -> Layer {
    let media_type = match blob.media {
        Media::Config => "application/vnd.oci.image.config.v1+json",
        Media::LayerTar => "application/vnd.oci.image.layer.v1.tar",
        Media::LayerTarGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Media::LayerTarZstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    Layer { digest: blob.digest.to_string(), media_type, size: blob.size, diff_id }
}
