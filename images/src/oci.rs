//! Image configuration, manifest and index as the OCI image-spec and Docker write them: parsing with limits,
//! choice of platform, and what the process of a container will be.
//!
//! Unknown fields are ignored, as the specification asks; known ones are bounded, since every byte here comes from
//! whoever made the image.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use wherry_protocol::message::{ContainerSpec, Descriptor, Media};
use wherry_protocol::{Digest, limits};

/// Largest manifest, index or configuration accepted, in bytes: what registries allow (distribution-spec: 4 MiB).
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// Platforms in one index. Official images list fewer than 20.
pub const MAX_PLATFORMS: usize = 256;
/// Longest working directory, user and other single setting, in bytes (PATH_MAX of Linux).
pub const MAX_SETTING_BYTES: usize = 4096;
/// Used when neither image nor user sets PATH; the same as Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a document is no usable image.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Not the JSON that was expected.
    #[error("the image's {what} is not valid JSON of its kind")]
    Json {
        /// Which document.
        what: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// Larger or more than accepted.
    #[error("the image's {what} is too large: {found}, at most {limit} accepted")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: usize,
        /// How large it may be.
        limit: usize,
    },
    /// A digest other than sha256, or none.
    #[error("the image names a blob by '{0}', which is not a sha256 digest")]
    Digest(String),
    /// A layer packed in a way we do not know, or that must not be fetched.
    #[error("the image has a layer of type '{0}', which is not supported")]
    Media(String),
    /// Neither OCI image manifest nor Docker's schema 2.
    #[error("'{0}' is not an image manifest")]
    NotAManifest(String),
    /// A chart, a signature or something else that registries keep beside images.
    #[error("it is something of type '{0}', not a container image")]
    NotAnImage(String),
    /// No entry of the index suits the node.
    #[error("the image is not available for linux/{wanted}, only for {available}")]
    Platform {
        /// Architecture that was wanted.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Layers and their uncompressed digests do not pair up.
    #[error("the image lists {layers} layers but {diff_ids} diff_ids")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Entries of `rootfs.diff_ids`.
        diff_ids: usize,
    },
    /// Nothing to run.
    #[error("the image names no program to run: give a command")]
    NoCommand,
    /// A setting that cannot be passed to a process.
    #[error("{what} '{value}' cannot be used: {reason}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// Its value, shortened.
        value: String,
        /// Why not.
        reason: &'static str,
    },
}

/// A reference to a blob (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RawDescriptor {
    /// What the blob is. Docker's and OCI's names are both understood.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// For which platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form notes, such as `org.opencontainers.image.ref.name`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image was built for (image-index.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8` of arm64, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An index: one image for several platforms (image-index.md; Docker's manifest list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// One manifest (or a nested index) per platform.
    pub manifests: Vec<RawDescriptor>,
}

/// A manifest: configuration and layers of one image (manifest.md; Docker schema 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image configuration.
    pub config: RawDescriptor,
    /// Layers, lowest first.
    pub layers: Vec<RawDescriptor>,
}

/// One image of a `docker save` archive: an element of its `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerArchiveImage {
    /// Path of the configuration inside the archive.
    pub config: String,
    /// Names it was saved under.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// Paths of the layers inside the archive, lowest first.
    #[serde(default)]
    pub layers: Vec<String>,
}

/// The image configuration (config.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// What to run, by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ProcessDefaults>,
    /// The layers' uncompressed digests.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// `config` of the image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessDefaults {
    /// `user[:group]`.
    #[serde(default)]
    pub user: Option<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Put before the command.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// The command.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// `SIGTERM`, `15`, `RTMIN+3`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// How to find out whether it is well: Docker's extension.
    #[serde(default)]
    pub healthcheck: Option<Healthcheck>,
}

/// `Healthcheck` of the image configuration (Docker image spec v1.2). Times are nanoseconds, 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `NONE`; `CMD` and arguments; `CMD-SHELL` and a line.
    #[serde(default)]
    pub test: Option<Vec<String>>,
    /// From one check to the next.
    #[serde(default)]
    pub interval: Option<i64>,
    /// How long one may take.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// During which failures do not count.
    #[serde(default)]
    pub start_period: Option<i64>,
    /// From one check to the next during that time.
    #[serde(default)]
    pub start_interval: Option<i64>,
    /// Failures in a row.
    #[serde(default)]
    pub retries: Option<i64>,
}

/// `rootfs` of the image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// SHA-256 of each layer's tar stream, uncompressed, lowest first.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, OciError> {
    bound(what, bytes.len(), MAX_DOCUMENT_BYTES)?;
    serde_json::from_slice(bytes).map_err(|source| OciError::Json { what, source })
}

fn bound(what: &'static str, found: usize, limit: usize) -> Result<(), OciError> {
    if found > limit { Err(OciError::TooLarge { what, found, limit }) } else { Ok(()) }
}

impl RawDescriptor {
    /// The digest, checked.
    ///
    /// # Errors
    /// [`OciError::Digest`] for any algorithm but sha256.
    pub fn sha256(&self) -> Result<Digest, OciError> {
        self.digest.parse().map_err(|_| OciError::Digest(shorten(&self.digest)))
    }

    /// How the layer is packed.
    ///
    /// # Errors
    /// [`OciError::Media`] for foreign (non-distributable), encrypted and unknown layers.
    pub fn layer_media(&self) -> Result<Media, OciError> {
        match self.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Ok(Media::LayerTar)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Media::LayerTarGzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Media::LayerTarZstd),
            other => Err(OciError::Media(shorten(other))),
        }
    }

    fn checked(&self, media: Media) -> Result<Descriptor, OciError> {
        let limit = usize::try_from(limits::MAX_BLOB_BYTES).unwrap_or(usize::MAX);
        bound("blob", usize::try_from(self.size).unwrap_or(usize::MAX), limit)?;
        Ok(Descriptor { digest: self.sha256()?, size: self.size, media })
    }
}

/// Every blob of an image once: the configuration, then the layers, lowest first.
pub fn blobs(manifest: &wherry_protocol::message::ImageManifest) -> impl Iterator<Item = &Descriptor> {
    let mut seen = std::collections::BTreeSet::new();
    std::iter::once(&manifest.config).chain(&manifest.layers).filter(move |blob| seen.insert(blob.digest))
}

impl Index {
    /// Reads an index or Docker manifest list.
    ///
    /// # Errors
    /// When it is too large or no index.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let index: Self = parse("index", bytes)?;
        bound("list of platforms", index.manifests.len(), MAX_PLATFORMS)?;
        Ok(index)
    }

    /// The manifest for linux on `architecture`. An entry without a platform (a single-image layout) suits when it
    /// is the only one; attestations (`unknown/unknown`) never do.
    ///
    /// # Errors
    /// [`OciError::Platform`], naming what there is.
    pub fn choose(&self, architecture: &str) -> Result<&RawDescriptor, OciError> {
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let suits = |p: &Platform| p.os == "linux" && p.architecture == architecture;
        self.manifests
            .iter()
            .find(|m| m.platform.as_ref().is_some_and(suits))
            .ok_or_else(|| OciError::Platform { wanted: shorten(architecture), available: self.platforms() })
    }

    fn platforms(&self) -> String {
        let name = |p: &Platform| shorten(&format!("{}/{}", p.os, p.architecture));
        let names: Vec<String> =
            self.manifests.iter().filter_map(|m| m.platform.as_ref()).map(name).take(20).collect();
        if names.is_empty() { "nothing".into() } else { names.join(", ") }
    }
}

impl Manifest {
    /// Reads an OCI image manifest or a Docker schema 2 one.
    ///
    /// # Errors
    /// When it is too large, no manifest, or has too many layers.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let manifest: Self = parse("manifest", bytes)?;
        bound("list of layers", manifest.layers.len(), limits::MAX_LAYERS)?;
        Ok(manifest)
    }

    /// The manifest as the protocol carries it: digests, sizes and kinds checked.
    ///
    /// # Errors
    /// The first descriptor that cannot be used.
    pub fn checked(&self) -> Result<wherry_protocol::message::ImageManifest, OciError> {
        let layer = |raw: &RawDescriptor| raw.checked(raw.layer_media()?);
        Ok(wherry_protocol::message::ImageManifest {
            config: self.config.checked(Media::Config)?,
            layers: self.layers.iter().map(layer).collect::<Result<_, _>>()?,
        })
    }
}

impl DockerArchiveImage {
    /// Reads the `manifest.json` of a `docker save` archive.
    ///
    /// # Errors
    /// When it is too large or not such a file.
    pub fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, OciError> {
        let images: Vec<Self> = parse("manifest.json", bytes)?;
        for image in &images {
            bound("list of layers", image.layers.len(), limits::MAX_LAYERS)?;
        }
        Ok(images)
    }
}

impl ImageConfig {
    /// Reads an image configuration.
    ///
    /// # Errors
    /// When it is too large, not a configuration, or has too many layers.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let config: Self = parse("configuration", bytes)?;
        bound("list of layers", config.rootfs.diff_ids.len(), limits::MAX_LAYERS)?;
        Ok(config)
    }

    /// How to find out whether a container of it is well.
    #[must_use]
    pub fn healthcheck(&self) -> Option<&Healthcheck> {
        self.config.as_ref()?.healthcheck.as_ref()
    }

    /// Refuses an image for another system than linux on `architecture`. An image that does not say is accepted.
    ///
    /// # Errors
    /// [`OciError::Platform`].
    pub fn check_platform(&self, architecture: &str) -> Result<(), OciError> {
        let fits = |have: &str, want: &str| have.is_empty() || have == want;
        if fits(&self.os, "linux") && fits(&self.architecture, architecture) {
            return Ok(());
        }
        let available = shorten(&format!("{}/{}", self.os, self.architecture));
        Err(OciError::Platform { wanted: shorten(architecture), available })
    }

    /// The uncompressed digest of each of `layers` layers.
    ///
    /// # Errors
    /// When their number differs or one is no sha256.
    pub fn diff_ids(&self, layers: usize) -> Result<Vec<Digest>, OciError> {
        if self.rootfs.diff_ids.len() != layers {
            return Err(OciError::LayerCount { layers, diff_ids: self.rootfs.diff_ids.len() });
        }
        let digest = |text: &String| text.parse().map_err(|_| OciError::Digest(shorten(text)));
        self.rootfs.diff_ids.iter().map(digest).collect()
    }
}

/// What the process of a container will be: the image's settings with the user's on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSettings {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Environment in order, each name once, PATH always there.
    pub env: Vec<(String, String)>,
    /// Absolute working directory.
    pub workdir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Signal that asks it to stop.
    pub stop_signal: u8,
}

impl ProcessSettings {
    /// Merges as Docker does: an entrypoint given by the user also drops the image's Cmd.
    ///
    /// # Errors
    /// When there is nothing to run or a setting cannot be passed to a process.
    pub fn merge(image: &ImageConfig, spec: &ContainerSpec) -> Result<Self, OciError> {
        let empty = ProcessDefaults::default();
        let image = image.config.as_ref().unwrap_or(&empty);
        let argv = argv(image, spec);
        if argv.first().is_none_or(String::is_empty) {
            return Err(OciError::NoCommand);
        }
        for argument in &argv {
            no_nul("argument", argument)?;
        }
        let env = environment(image, spec)?;
        let bytes = argv.iter().map(String::len).sum::<usize>()
            + env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
        bound("command line and environment", bytes, limits::MAX_ARGUMENT_BYTES)?;
        Ok(Self {
            argv,
            env,
            workdir: workdir(first(spec.workdir.as_ref(), image.working_dir.as_ref()))?,
            user: setting("user", first(spec.user.as_ref(), image.user.as_ref()))?.to_owned(),
            stop_signal: image.stop_signal.as_deref().and_then(signal_number).unwrap_or(SIGTERM),
        })
    }
}

const SIGTERM: u8 = 15;

fn first<'a>(spec: Option<&'a String>, image: Option<&'a String>) -> &'a str {
    let set = |value: &&String| !value.is_empty();
    spec.filter(set).or(image.filter(set)).map_or("", String::as_str)
}

fn argv(image: &ProcessDefaults, spec: &ContainerSpec) -> Vec<String> {
    let image_cmd = || image.cmd.clone().unwrap_or_default();
    let (mut argv, default_command) = match &spec.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), Vec::new()),
        None => (image.entrypoint.clone().unwrap_or_default(), image_cmd()),
    };
    argv.extend(if spec.command.is_empty() { default_command } else { spec.command.clone() });
    argv
}

fn environment(image: &ProcessDefaults, spec: &ContainerSpec) -> Result<Vec<(String, String)>, OciError> {
    let mut env: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    for text in image.env.iter().flatten() {
        // A bare name means "take it from the client", which an image has none of.
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        set_variable(&mut env, name, value)?;
    }
    for (name, value) in &spec.env {
        set_variable(&mut env, name, value)?;
    }
    Ok(env)
}

/// Sets `name` in `env`, replacing an earlier value.
///
/// # Errors
/// [`OciError::Setting`] for an empty name, one with `=`, or a NUL byte.
pub fn set_variable(env: &mut Vec<(String, String)>, name: &str, value: &str) -> Result<(), OciError> {
    let refuse =
        |reason| Err(OciError::Setting { what: "environment variable", value: shorten(name), reason });
    if name.is_empty() || name.contains('=') {
        return refuse("its name is empty or contains '='");
    }
    no_nul("environment variable", name)?;
    no_nul("environment variable", value)?;
    match env.iter_mut().find(|(have, _)| have == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
    Ok(())
}

fn no_nul(what: &'static str, value: &str) -> Result<(), OciError> {
    if value.contains('\0') {
        let reason = "it contains a NUL byte";
        return Err(OciError::Setting { what, value: shorten(&value.replace('\0', "\\0")), reason });
    }
    Ok(())
}

fn setting<'a>(what: &'static str, value: &'a str) -> Result<&'a str, OciError> {
    no_nul(what, value)?;
    bound(what, value.len(), MAX_SETTING_BYTES)?;
    Ok(value)
}

fn workdir(value: &str) -> Result<String, OciError> {
    let value = setting("working directory", value)?;
    match value {
        "" => Ok("/".into()),
        absolute if absolute.starts_with('/') => Ok(absolute.into()),
        relative => Err(OciError::Setting {
            what: "working directory",
            value: shorten(relative),
            reason: "it is not an absolute path",
        }),
    }
}

/// Names of the signals in the order of their numbers, from 1 (signal(7), x86 and ARM).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First real-time signal a program can use (nptl keeps 32 and 33), and the last.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// The number of `SIGTERM`, `TERM`, `15` or `RTMIN+3`, as StopSignal and `kill` write them.
#[must_use]
pub fn signal_number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some(above) = name.strip_prefix("RTMIN") {
        let number = if above.is_empty() { 0 } else { above.strip_prefix('+')?.parse::<u8>().ok()? };
        return RTMIN.checked_add(number).filter(|&n| n <= RTMAX);
    }
    if let Some(below) = name.strip_prefix("RTMAX") {
        let number = if below.is_empty() { 0 } else { below.strip_prefix('-')?.parse::<u8>().ok()? };
        return RTMAX.checked_sub(number).filter(|&n| n >= RTMIN);
    }
    let position = SIGNALS.iter().position(|&signal| signal == name)?;
    u8::try_from(position + 1).ok()
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
