//! From the documents of an archive to images: manifest.json (Docker image spec v1.2) and index.json (OCI image-layout).
use super::source::{BlobReader, GZIP_MAGIC, Source, ZSTD_MAGIC};
use super::{ArchiveError, ArchivedImage, MAX_IMAGES, Platforms};
use crate::oci::{DockerArchiveImage, ImageConfig, OciError, RawDescriptor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::io::Read as _;
use wherry_protocol::Digest;
use wherry_protocol::limits::{MAX_BLOB_BYTES, MAX_LAYERS};
use wherry_protocol::message::{Descriptor, ImageManifest, ImageName, Media};

/// Indexes that lead to indexes: Docker nests one, nothing nests more.
const MAX_INDEX_DEPTH: usize = 4;
/// Containerd's and OCI's annotations for an image's name.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An index or a manifest; which one, its fields say (media types are optional in old documents).
#[derive(Deserialize)]
struct IndexOrManifest {
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Vec<RawDescriptor>,
}

/// An image by the names of its members.
struct Candidate {
    names: Vec<String>,
    config: Part,
    layers: Vec<Part>,
}

/// A member and what is said about it.
#[derive(Clone)]
struct Part {
    member: String,
    digest: Option<Digest>,
    size: Option<u64>,
}

pub(super) fn images(
    source: &Source,
    stem: Option<&str>,
    platforms: &Platforms,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let mut reading = Reading { source, platforms, checked: BTreeMap::new(), passed_over: Vec::new() };
    let candidates = reading.candidates()?;
    let mut images = Vec::new();
    for candidate in candidates {
        images.extend(reading.image(candidate, stem)?);
    }
    if images.is_empty() {
        reading.passed_over.sort();
        reading.passed_over.dedup();
        let found = match reading.passed_over.as_slice() {
            [] => "none at all".into(),
            platforms => platforms.join(", "),
        };
        return Err(ArchiveError::NoPlatform { wanted: platforms.describe(), found });
    }
    Ok(images)
}

struct Reading<'a> {
    source: &'a Source,
    platforms: &'a Platforms,
    /// Members already hashed: images of one archive share layers.
    checked: BTreeMap<String, Descriptor>,
    /// Platforms that were not wanted, for the error message.
    passed_over: Vec<String>,
}

impl Reading<'_> {
    /// The index is preferred: it knows all platforms; manifest.json knows the tags.
    fn candidates(&mut self) -> Result<Vec<Candidate>, ArchiveError> {
        let docker: Option<Vec<DockerArchiveImage>> = self.optional("manifest.json")?;
        let layout = self.source.open_member("oci-layout")?.is_some();
        let index: Option<IndexOrManifest> = if layout { self.optional("index.json")? } else { None };
        let mut candidates = Vec::new();
        match (index, docker) {
            (Some(index), docker) => {
                self.walk(index, "index.json", &[], 0, &mut candidates)?;
                adopt_tags(&mut candidates, docker.unwrap_or_default());
            }
            (None, Some(docker)) => candidates.extend(docker.into_iter().map(legacy)),
            (None, None) => {
                return Err(ArchiveError::NotAnImage("it has neither a manifest.json nor an OCI layout"));
            }
        }
        match candidates.len() {
            found if found > MAX_IMAGES => Err(too_many("its number of images", found, MAX_IMAGES)),
            _ => Ok(candidates),
        }
    }

    fn walk(
        &mut self,
        document: IndexOrManifest,
        name: &str,
        names: &[String],
        depth: usize,
        into: &mut Vec<Candidate>,
    ) -> Result<(), ArchiveError> {
        if depth > MAX_INDEX_DEPTH {
            return Err(too_many("its depth of indexes", depth, MAX_INDEX_DEPTH));
        }
        if let Some(config) = document.config {
            into.push(oci(names, &config, &document.layers, name)?);
            return Ok(());
        }
        let manifests =
            document.manifests.ok_or_else(|| damaged(name, "it is neither index nor manifest"))?;
        if manifests.len().saturating_add(into.len()) > MAX_IMAGES {
            return Err(too_many("its number of images", manifests.len(), MAX_IMAGES));
        }
        for entry in manifests {
            self.follow(&entry, name, names, depth, into)?;
        }
        Ok(())
    }

    fn follow(
        &mut self,
        entry: &RawDescriptor,
        referrer: &str,
        names: &[String],
        depth: usize,
        into: &mut Vec<Candidate>,
    ) -> Result<(), ArchiveError> {
        if let Some(platform) = &entry.platform
            && !(platform.os == "linux" && self.platforms.accepts(&platform.architecture))
        {
            // Attestations are listed as a platform of their own; nobody wants to hear of them.
            if platform.architecture != "unknown" {
                self.passed_over.push(format!("{}/{}", platform.os, platform.architecture));
            }
            return Ok(());
        }
        let part = part(entry, referrer)?;
        let Some(bytes) = self.source.document(&part.member)? else {
            // `docker save` of one platform keeps the index of all; what is absent was not saved.
            let platform = entry.platform.as_ref();
            self.passed_over
                .extend(platform.map(|p| format!("an empty place for {}/{}", p.os, p.architecture)));
            return match platform {
                Some(_) => Ok(()),
                None => Err(ArchiveError::Missing { referrer: referrer.into(), name: part.member }),
            };
        };
        let found = Digest::of(&bytes);
        if let Some(expected) = part.digest.filter(|expected| *expected != found) {
            return Err(ArchiveError::WrongDigest { name: part.member, expected, found });
        }
        let own: Vec<String> =
            NAME_ANNOTATIONS.iter().filter_map(|key| entry.annotations.get(*key).cloned()).take(1).collect();
        let names = if own.is_empty() { names } else { &own };
        self.walk(parse(&part.member, &bytes)?, &part.member, names, depth + 1, into)
    }

    fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ArchiveError> {
        self.source.document(name)?.map(|bytes| parse(name, &bytes)).transpose()
    }

    /// Verifies one image in full; `None` if its platform is not wanted.
    fn image(
        &mut self,
        candidate: Candidate,
        stem: Option<&str>,
    ) -> Result<Option<ArchivedImage>, ArchiveError> {
        let member = &candidate.config.member;
        let bytes = self.source.document(member)?.ok_or_else(|| missing("the manifest", member))?;
        let head: ImageConfig = parse(member, &bytes)?;
        if head.os != "linux" || !self.platforms.accepts(&head.architecture) {
            self.passed_over.push(format!("{}/{}", head.os, head.architecture));
            return Ok(None);
        }
        if candidate.layers.len() > MAX_LAYERS {
            return Err(too_many("its number of layers", candidate.layers.len(), MAX_LAYERS));
        }
        if candidate.layers.len() != head.rootfs.diff_ids.len() {
            return Err(damaged(member, "it lists another number of layers than the manifest"));
        }
        let mut members = BTreeMap::new();
        let mut config = self.check(&candidate.config)?;
        config.media = Media::Config;
        members.insert(config.digest, candidate.config.member.clone());
        let mut layers = Vec::new();
        for (layer, diff_id) in candidate.layers.iter().zip(&head.rootfs.diff_ids) {
            let descriptor = self.check(layer)?;
            expect_diff_id(layer, &descriptor, diff_id, member)?;
            members.insert(descriptor.digest, layer.member.clone());
            layers.push(descriptor);
        }
        let names = suggested(&candidate.names, stem);
        let manifest = ImageManifest { config, layers };
        Ok(Some(ArchivedImage { manifest, architecture: head.architecture, names, members }))
    }

    /// Hashes a member and compares it with what is said about it.
    fn check(&mut self, part: &Part) -> Result<Descriptor, ArchiveError> {
        let found = match self.checked.get(&part.member) {
            Some(found) => found.clone(),
            None => {
                let reader = self.source.open_member(&part.member)?;
                let found =
                    describe(&part.member, reader.ok_or_else(|| missing("the image", &part.member))?)?;
                self.checked.insert(part.member.clone(), found.clone());
                found
            }
        };
        let name = part.member.clone();
        if let Some(expected) = part.size.filter(|expected| *expected != found.size) {
            return Err(ArchiveError::WrongSize { name, expected, found: found.size });
        }
        match part.digest.filter(|expected| *expected != found.digest) {
            Some(expected) => Err(ArchiveError::WrongDigest { name, expected, found: found.digest }),
            None => Ok(found),
        }
    }
}

/// A plain layer's digest *is* its diff id; a compressed one is checked by whoever unpacks it.
fn expect_diff_id(layer: &Part, found: &Descriptor, diff_id: &str, config: &str) -> Result<(), ArchiveError> {
    let expected = diff_id.parse().map_err(|error| damaged(config, &format!("{error}")))?;
    if found.media == Media::LayerTar && found.digest != expected {
        return Err(ArchiveError::WrongDigest { name: layer.member.clone(), expected, found: found.digest });
    }
    Ok(())
}

fn describe(name: &str, mut reader: BlobReader) -> Result<Descriptor, ArchiveError> {
    let size = reader.remaining();
    if size > MAX_BLOB_BYTES {
        let what = format!("the size of '{name}'");
        return Err(ArchiveError::TooLarge { what, found: size, limit: MAX_BLOB_BYTES });
    }
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut media = None;
    loop {
        let got = reader.read(&mut buffer).map_err(ArchiveError::Read)?;
        let bytes = buffer.get(..got).unwrap_or_default();
        media.get_or_insert_with(|| media_of(bytes));
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
    }
    let digest = Digest(hasher.finalize().into());
    Ok(Descriptor { digest, size, media: media.unwrap_or(Media::LayerTar) })
}

/// By its first bytes: what documents say about compression is often wrong (`docker save` calls plain layers gzip).
fn media_of(head: &[u8]) -> Media {
    if head.starts_with(&GZIP_MAGIC) {
        Media::LayerTarGzip
    } else if head.starts_with(&ZSTD_MAGIC) {
        Media::LayerTarZstd
    } else {
        Media::LayerTar
    }
}

fn oci(
    names: &[String],
    config: &RawDescriptor,
    layers: &[RawDescriptor],
    referrer: &str,
) -> Result<Candidate, ArchiveError> {
    for layer in layers {
        layer.layer_media().map_err(|error| match error {
            OciError::Media(media) => ArchiveError::Media(media),
            other => damaged(referrer, &other.to_string()),
        })?;
    }
    let layers = layers.iter().map(|layer| part(layer, referrer)).collect::<Result<_, _>>()?;
    Ok(Candidate { names: names.to_vec(), config: part(config, referrer)?, layers })
}

/// The member of an OCI layout that holds what the descriptor describes.
fn part(descriptor: &RawDescriptor, referrer: &str) -> Result<Part, ArchiveError> {
    let digest: Digest = descriptor.digest.parse().map_err(|error| damaged(referrer, &format!("{error}")))?;
    let member = format!("blobs/sha256/{}", digest.hex());
    Ok(Part { member, digest: Some(digest), size: Some(descriptor.size) })
}

/// An image of old `docker save` archives. The configuration's name is its digest; layers are named by nothing useful.
fn legacy(image: DockerArchiveImage) -> Candidate {
    let digest = config_digest(&image.config);
    let plain = |member| Part { member, digest: None, size: None };
    Candidate {
        names: image.repo_tags.unwrap_or_default(),
        config: Part { member: image.config, digest, size: None },
        layers: image.layers.into_iter().map(plain).collect(),
    }
}

/// `<64 digits>.json` or `blobs/sha256/<64 digits>`.
fn config_digest(member: &str) -> Option<Digest> {
    let name = member.strip_suffix(".json").or_else(|| member.strip_prefix("blobs/sha256/"))?;
    format!("sha256:{name}").parse().ok()
}

fn adopt_tags(candidates: &mut [Candidate], docker: Vec<DockerArchiveImage>) {
    for image in docker {
        let digest = config_digest(&image.config);
        let tags = image.repo_tags.unwrap_or_default();
        let same = |candidate: &&mut Candidate| candidate.config.digest == digest && !tags.is_empty();
        for candidate in candidates.iter_mut().filter(same) {
            candidate.names.clone_from(&tags);
        }
    }
}

/// Names that people would type: without Docker's default registry, and without podman's for what it built itself. A bare
/// tag gets the file's name.
fn suggested(names: &[String], stem: Option<&str>) -> Vec<ImageName> {
    let full = |name: &String| -> Option<ImageName> {
        let prefixes = ["docker.io/library/", "docker.io/", "localhost/"];
        let short = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        match short.unwrap_or(name) {
            tag if !tag.contains([':', '/']) => format!("{}:{tag}", stem?).parse().ok(),
            name => name.parse().ok(),
        }
    };
    let found: Vec<ImageName> = names.iter().filter_map(full).take(MAX_IMAGES).collect();
    match found.is_empty() {
        true => stem.and_then(|stem| stem.parse().ok()).into_iter().collect(),
        false => found,
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(name, &error.to_string()))
}

fn damaged(name: &str, reason: &str) -> ArchiveError {
    ArchiveError::Document { name: name.chars().take(120).collect(), reason: reason.into() }
}

fn missing(referrer: &str, name: &str) -> ArchiveError {
    ArchiveError::Missing { referrer: referrer.into(), name: name.chars().take(120).collect() }
}

fn too_many(what: &str, found: usize, limit: usize) -> ArchiveError {
    ArchiveError::TooLarge { what: what.into(), found: found as u64, limit: limit as u64 }
}
