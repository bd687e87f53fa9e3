//! Images of the container engines on this computer: Docker's by its API, podman's by its program or skopeo's.
//!
//! ```text
//! host      where Docker's engine listens        (DOCKER_HOST, contexts)
//! docker    its API: two questions
//! storage   podman and skopeo
//! ```
//!
//! What an engine gives is an archive, read like any other: hostile until proven otherwise. It goes through a temporary
//! file that has no name, so that nothing of it is left however this process ends.
mod docker;
mod host;
mod storage;

use crate::error::ClientError;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use wherry_images::archive::{ArchiveError, ImageArchive, MAX_SPOOL_BYTES};
use wherry_protocol::text::shown;

/// Characters of another program's words that are passed on.
const MAX_WORDS: usize = 300;
/// Longest name of an image, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Docker, or whatever speaks its API.
    Docker,
    /// What podman, buildah and skopeo share.
    ContainersStorage,
}

/// An image of an engine of this computer: `docker:NAME`, `podman:NAME`, and skopeo's words for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineImage {
    /// Whose.
    pub engine: Engine,
    /// As the engine calls it: a name or an id.
    pub name: String,
}

/// Why an engine gives no image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A name that no engine has for an image.
    #[error("'{0}' is not the name of an image in an engine: expected a name or an id, as in docker:web:1.2")]
    Name(String),
    /// Nobody listens.
    #[error("no Docker engine answers at {at} ({reason}): start it, or say where it is with DOCKER_HOST")]
    NoDocker {
        /// Where it should be.
        at: String,
        /// The system's words.
        reason: String,
    },
    /// It listens, but not to us.
    #[error("this user may not talk to the Docker engine at {0}: join the group docker, or ask as root")]
    Denied(String),
    /// A way to an engine that we do not have.
    #[error(
        "the Docker engine at '{0}' cannot be reached from here: unix:// and tcp:// on this computer can; save the image to a file there and push that"
    )]
    Way(String),
    /// Docker's configuration.
    #[error("cannot make out where the Docker engine is: {} {reason}", path.display())]
    Context {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no such image.
    #[error("the Docker engine has no image '{0}': `docker images` lists those it has")]
    NoImage(String),
    /// The engine said something else than the image.
    #[error("the Docker engine does not give '{name}' (status {status}): {message}")]
    Refused {
        /// Which image.
        name: String,
        /// Status of HTTP.
        status: u16,
        /// The engine's words, shortened.
        message: String,
    },
    /// What answers is no engine.
    #[error("what answers at {at} is not a Docker engine: {reason}")]
    NotDocker {
        /// Where.
        at: String,
        /// What it did.
        reason: String,
    },
    /// The connection broke.
    #[error("the Docker engine stopped in the middle of '{name}': {reason}")]
    Broken {
        /// Which image.
        name: String,
        /// How.
        reason: String,
    },
    /// Neither program is there.
    #[error("neither podman nor skopeo is installed, and one of them is needed to read podman's images")]
    NoProgram,
    /// The program failed.
    #[error("{program} gives no image '{name}': {message}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Which image.
        name: String,
        /// Its last words, shortened.
        message: String,
    },
    /// The temporary file.
    #[error("cannot write a temporary file: {0}")]
    Temporary(#[source] std::io::Error),
}

impl EngineImage {
    /// The image that `text` means, if it begins with the name of an engine.
    ///
    /// # Errors
    /// When what follows is no name.
    pub fn parse(text: &str) -> Option<Result<Self, EngineError>> {
        let (engine, name) = text.split_once(':')?;
        let engine = match engine {
            "docker" | "docker-daemon" => Engine::Docker,
            "podman" | "containers-storage" => Engine::ContainersStorage,
            _ => return None,
        };
        // `docker://` means a registry in skopeo's words; that is what `pull` is for.
        let ok = !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.split('/').all(component_ok);
        let refused = || EngineError::Name(shown(text, 100));
        Some(if ok { Ok(Self { engine, name: name.to_owned() }) } else { Err(refused()) })
    }

    /// What to call an image that the archive gives no name: that of the repository, unless it may be an id.
    fn stem(&self) -> Option<&str> {
        let name = self.name.split('@').next()?;
        let repository = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        };
        let last = repository.rsplit('/').next()?;
        (!last.bytes().all(|b| b.is_ascii_hexdigit()) && last != "sha256").then_some(last)
    }

    /// Has the engine write the image into a file without a name; `progress` is told of every piece.
    ///
    /// # Errors
    /// When there is no engine, no such image, or what comes is no archive of images.
    pub async fn open(&self, progress: impl Fn(u64)) -> Result<ImageArchive, ClientError> {
        let mut spool = Spool::new()?;
        match self.engine {
            Engine::Docker => {
                let host = host::find(|name| std::env::var_os(name))?;
                docker::save(&host, &self.name, &mut spool, progress).await?;
            }
            Engine::ContainersStorage => storage::save(&self.name, &mut spool, progress).await?,
        }
        let (file, stem) = (spool.file, self.stem().map(str::to_owned));
        let read = move || ImageArchive::from_file(file, stem.as_deref());
        Ok(tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(ArchiveError::Read(std::io::Error::other(error))))?)
    }
}

impl FromStr for EngineImage {
    type Err = EngineError;
    fn from_str(text: &str) -> Result<Self, EngineError> {
        Self::parse(text).unwrap_or_else(|| Err(EngineError::Name(text.chars().take(100).collect())))
    }
}

/// Nothing that leads elsewhere in a path of the API, or that a program takes for an option.
fn component_ok(component: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._:@-".contains(&b);
    component.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && component.bytes().all(ok)
}

/// The temporary file: readable by its owner only, without a name, of bounded size.
struct Spool {
    file: File,
    bytes: u64,
}

impl Spool {
    fn new() -> Result<Self, EngineError> {
        Ok(Self { file: tempfile::tempfile().map_err(EngineError::Temporary)?, bytes: 0 })
    }

    /// Writing waits for the disk, if at all, as long as it takes to copy into its cache.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > MAX_SPOOL_BYTES {
            let what = "the size of the archive".into();
            let error = ArchiveError::TooLarge { what, found: self.bytes, limit: MAX_SPOOL_BYTES };
            return Err(ClientError::Archive(error));
        }
        Ok(self.file.write_all(bytes).map_err(EngineError::Temporary)?)
    }
}

/// One line of another program's words, fit for a sentence.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why").trim();
    // As programs in Go write their logs: time="…" level=fatal msg="…"
    let message = line.split_once(" msg=\"").and_then(|(_, message)| message.strip_suffix('"'));
    let line = message
        .map_or_else(|| line.trim_start_matches("Error: ").to_owned(), |text| text.replace("\\\"", "\""));
    shown(&line, MAX_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_have_several_names() {
        let parsed = |text: &str| EngineImage::parse(text).unwrap().unwrap();
        for text in ["docker:web:1.2", "docker-daemon:web:1.2"] {
            assert_eq!(parsed(text), EngineImage { engine: Engine::Docker, name: "web:1.2".into() });
        }
        for text in ["podman:localhost/web", "containers-storage:localhost/web"] {
            let expected = EngineImage { engine: Engine::ContainersStorage, name: "localhost/web".into() };
            assert_eq!(parsed(text), expected);
        }
        for file in ["web.tar", "./docker:web", "oci:web", "C:/web.tar"] {
            assert!(EngineImage::parse(file).is_none(), "{file}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for text in [
            "docker:",
            "docker://web",
            "docker:../containers",
            "docker:web/../x",
            "docker:web?all=1",
            "docker:a b",
            "docker:web#x",
            "docker:/web",
            "podman:--output=x",
            "podman:a/-b",
            "docker:%2e%2e/x",
            "docker:a\nb",
        ] {
            assert!(EngineImage::parse(text).unwrap().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_no_names() {
        let stem =
            |name: &str| EngineImage { engine: Engine::Docker, name: name.into() }.stem().map(str::to_owned);
        assert_eq!(stem("registry.lan:5000/tools/web:1").as_deref(), Some("web"));
        assert_eq!(stem("web@sha256:12").as_deref(), Some("web"));
        assert_eq!((stem("0123abcdef"), stem("sha256:0123")), (None, None));
    }

    #[test]
    fn other_programs_words_are_one_short_line() {
        assert_eq!(words(b"time=x\nError: web: image not known\n\n"), "web: image not known");
        assert_eq!(words(b"\x1b[31mred"), "[31mred");
        let log = br#"time="2026-01-02T03:04:05Z" level=fatal msg="reading \"web\": no such image""#;
        assert_eq!(words(log), r#"reading "web": no such image"#);
        assert_eq!(words(b""), "it does not say why");
        assert_eq!(words("é".repeat(1000).as_bytes()).chars().count(), 300);
    }
}
