//! From a reference to the verified manifest and configuration of one image.
use super::client::{Asked, Registry, RegistryOptions};
use super::error::RegistryError;
use super::reference::Reference;
use crate::http::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;
use std::sync::Arc;
use wherry_images::archive::Platforms;
use wherry_images::oci::{ImageConfig, Index, MAX_DOCUMENT_BYTES, Manifest, OciError, RawDescriptor};
use wherry_protocol::Digest;
use wherry_protocol::message::{ImageManifest, Media};

/// Indexes that lead to indexes; nobody nests more than one.
const MAX_INDEX_DEPTH: usize = 3;
/// What we understand (OCI image-spec, media-types.md; Docker's manifest schema 2).
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Configurations of images to run; others are charts, signatures and the like.
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a reference leads to, before a platform is chosen.
#[derive(Debug)]
pub struct Remote {
    registry: Arc<Registry>,
    digest: Digest,
    document: Document,
}

/// One image of a registry: its manifest and configuration are verified, its layers still there.
#[derive(Debug)]
pub struct RemoteImage {
    pub(super) registry: Arc<Registry>,
    pub(super) config: Arc<[u8]>,
    /// What it consists of.
    pub manifest: ImageManifest,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// Digest of what the reference leads to: of the index, if it is one. Pulling by it gives the same again.
    pub digest: Digest,
}

impl RemoteImage {
    /// The reference that will always mean this.
    #[must_use]
    pub fn pinned(&self) -> Reference {
        self.registry.reference().pinned(self.digest)
    }
}

#[derive(Debug)]
enum Document {
    Index(Index),
    Image(Manifest),
}

/// Which document it is, by its fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

impl Remote {
    /// Asks the registry what `reference` is. A pinned digest is verified.
    ///
    /// # Errors
    /// Whatever the registry refuses, and whatever in its answer cannot be used.
    pub async fn open(reference: &Reference, options: &RegistryOptions) -> Result<Self, RegistryError> {
        let registry = Arc::new(Registry::open(reference, options).await?);
        let (digest, document) = fetch(&registry, &reference.wanted(), reference.digest()).await?;
        Ok(Self { registry, digest, document })
    }

    /// For which of the architectures that boards have there is an image, if it is there for several platforms. Empty if
    /// it is a single image: then only its configuration says.
    #[must_use]
    pub fn architectures(&self) -> BTreeSet<String> {
        match &self.document {
            Document::Image(_) => BTreeSet::new(),
            Document::Index(index) => {
                let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
                platforms
                    .filter(|platform| platform.os == "linux")
                    .map(|platform| platform.architecture.clone())
                    .filter(|name| Platforms::SUPPORTED.contains(&name.as_str()))
                    .collect()
            }
        }
    }

    /// The image for `architecture`; if that is not said, the only one there is.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub async fn image(&self, architecture: Option<&str>) -> Result<RemoteImage, RegistryError> {
        let offered = self.architectures();
        let only = offered.iter().next().filter(|_| offered.len() == 1).map(String::as_str);
        let wanted = architecture.or(only);
        let nested;
        let manifest = match &self.document {
            Document::Image(manifest) => manifest,
            Document::Index(index) => {
                nested = self.choose(index, wanted).await?;
                &nested
            }
        };
        self.complete(manifest, wanted).await
    }

    async fn choose(&self, index: &Index, wanted: Option<&str>) -> Result<Manifest, RegistryError> {
        let wanted = wanted.unwrap_or("amd64 or arm64");
        let pick = |index: &Index| index.choose(wanted).cloned().map_err(|error| self.unusable(error));
        let mut entry = pick(index)?;
        for _ in 0..MAX_INDEX_DEPTH {
            let digest = entry.sha256().map_err(|error| self.unusable(error))?;
            let (_, document) = fetch(&self.registry, &digest.to_string(), Some(digest)).await?;
            entry = match document {
                Document::Image(manifest) => return Ok(manifest),
                Document::Index(index) => pick(&index)?,
            };
        }
        let too_deep = OciError::TooLarge {
            what: "depth of indexes",
            found: MAX_INDEX_DEPTH + 1,
            limit: MAX_INDEX_DEPTH,
        };
        Err(self.unusable(too_deep))
    }

    async fn complete(
        &self,
        manifest: &Manifest,
        wanted: Option<&str>,
    ) -> Result<RemoteImage, RegistryError> {
        let unusable = |error| self.unusable(error);
        if !CONFIG_TYPES.contains(&manifest.config.media_type.as_str()) {
            return Err(unusable(OciError::NotAnImage(shorten(&manifest.config.media_type))));
        }
        let checked = manifest.checked().map_err(unusable)?;
        let bytes = self.config(&manifest.config, checked.config.digest).await?;
        let config = ImageConfig::parse(&bytes).map_err(unusable)?;
        let architecture = wanted.unwrap_or(&config.architecture).to_owned();
        if !Platforms::SUPPORTED.contains(&architecture.as_str()) {
            let available = shorten(&format!("{}/{}", config.os, config.architecture));
            return Err(unusable(OciError::Platform { wanted: "amd64 or arm64".into(), available }));
        }
        config.check_platform(&architecture).map_err(unusable)?;
        let diff_ids = config.diff_ids(checked.layers.len()).map_err(unusable)?;
        // A plain layer's digest is its diff id; a compressed one is checked by whoever unpacks it.
        let plain = checked.layers.iter().zip(&diff_ids).filter(|(layer, _)| layer.media == Media::LayerTar);
        if let Some((layer, expected)) =
            plain.into_iter().find(|(layer, expected)| layer.digest != **expected)
        {
            let (host, expected) = (self.registry.host(), *expected);
            return Err(RegistryError::WrongDigest { host, expected, found: layer.digest });
        }
        Ok(RemoteImage {
            registry: Arc::clone(&self.registry),
            config: bytes.into(),
            manifest: checked,
            architecture,
            digest: self.digest,
        })
    }

    async fn config(&self, descriptor: &RawDescriptor, digest: Digest) -> Result<Vec<u8>, RegistryError> {
        let size = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        if size > MAX_DOCUMENT_BYTES {
            let error = OciError::TooLarge { what: "configuration", found: size, limit: MAX_DOCUMENT_BYTES };
            return Err(self.unusable(error));
        }
        let registry = &self.registry;
        let response = registry.get(&format!("blobs/{digest}"), "*/*", 0, Asked::Blob(digest)).await?;
        let bytes = response.body.document("a configuration", MAX_DOCUMENT_BYTES).await?;
        verify(registry, &bytes, digest)?;
        if bytes.len() != size {
            let (host, found) = (registry.host(), bytes.len() as u64);
            return Err(RegistryError::WrongSize { host, blob: digest, expected: descriptor.size, found });
        }
        Ok(bytes)
    }

    fn unusable(&self, source: OciError) -> RegistryError {
        RegistryError::Image { reference: self.registry.reference().to_string(), source }
    }
}

fn verify(registry: &Registry, bytes: &[u8], expected: Digest) -> Result<(), RegistryError> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(RegistryError::WrongDigest { host: registry.host(), expected, found })
}

/// A manifest or index by tag or digest. Without a pin the registry's own word on the digest has to be true.
async fn fetch(
    registry: &Registry,
    wanted: &str,
    pin: Option<Digest>,
) -> Result<(Digest, Document), RegistryError> {
    let response = registry.get(&format!("manifests/{wanted}"), ACCEPT, 0, Asked::Manifest).await?;
    let media = response.media_type();
    let said = said_digest(&response);
    if media == "text/html" {
        return Err(registry.not_a_registry(&media));
    }
    let bytes = response.body.document("a manifest", MAX_DOCUMENT_BYTES).await?;
    if let Some(expected) = pin.or(said) {
        verify(registry, &bytes, expected)?;
    }
    let document = parse(&media, &bytes).map_err(|reason| RegistryError::Document {
        what: format!("the manifest '{wanted}'"),
        host: registry.host(),
        reason,
    })?;
    Ok((Digest::of(&bytes), document))
}

/// `Docker-Content-Digest` (distribution-spec, "Pulling manifests").
fn said_digest(response: &Response) -> Option<Digest> {
    response.header("docker-content-digest").and_then(|text| text.parse().ok())
}

fn parse(media: &str, bytes: &[u8]) -> Result<Document, String> {
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| match media {
        "" => format!("it is not JSON ({error})"),
        media => format!("it is not JSON ({error}), but '{}'", shorten(media)),
    })?;
    let old = media.contains("docker.distribution.manifest.v1+") || shape.schema_version == Some(1);
    let readable = |error: OciError| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    };
    match (shape.manifests, shape.config, shape.layers) {
        _ if old => Err("it is of the old schema 1: push the image again with a newer tool".into()),
        // What one reader takes for an index and another for an image is meant to deceive (CVE-2021-41190).
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err("it claims to be both an index and an image".into())
        }
        (Some(_), None, None) => Index::parse(bytes).map(Document::Index).map_err(readable),
        (None, Some(_), Some(_)) => Manifest::parse(bytes).map(Document::Image).map_err(readable),
        (None, _, _) => Err("it is neither an index nor an image".into()),
    }
}

fn shorten(text: &str) -> String {
    wherry_protocol::text::shown(text, 100)
}
