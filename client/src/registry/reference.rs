//! References to images in registries, in Docker's grammar.
use crate::http::url::{Origin, Url};
use std::fmt;
use std::str::FromStr;
use wherry_protocol::Digest;
use wherry_protocol::message::ImageName;

/// Where names without a host are looked up, and where that really is.
const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_SERVER: &str = "registry-1.docker.io";
/// Docker's own images live below this.
const OFFICIAL: &str = "library/";
/// Longest path and tag, in bytes (distribution-spec, "Pulling manifests"; Docker's 255 includes the host).
const MAX_PATH_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
/// Longest host with its port, in bytes (RFC 1035 §2.3.4 and `:65535`).
const MAX_HOST_BYTES: usize = 253 + 6;

/// A text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not an image reference: {reason}; expected [host[:port]/]path[:tag][@sha256:…], as in nginx:1.27"
)]
pub struct ReferenceError {
    /// The text, shortened.
    text: String,
    /// What is wrong with it.
    reason: &'static str,
}

/// `[host[:port]/]path[:tag][@sha256:…]`; the host and the path are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as people call it: `docker.io`, `registry.lan:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository: `library/nginx`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The pinned digest, if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What is asked of the registry: the digest if there is one, else the tag, which is `latest` if nothing is said.
    #[must_use]
    pub fn wanted(&self) -> String {
        match (self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// What to call the image here: what follows the registry's host. `None` if there is a digest but no tag, since no
    /// tag stands for that.
    #[must_use]
    pub fn name(&self) -> Option<ImageName> {
        let tag = match (&self.tag, self.digest) {
            (Some(tag), _) => tag,
            (None, None) => "latest",
            (None, Some(_)) => return None,
        };
        let short = match self.host.as_str() {
            DEFAULT_HOST => self.path.strip_prefix(OFFICIAL).unwrap_or(&self.path),
            _ => &self.path,
        };
        format!("{short}:{tag}").parse().ok()
    }

    /// Where the registry answers, over TLS.
    pub(super) fn origin(&self) -> Option<Origin> {
        let server = if self.host == DEFAULT_HOST { DEFAULT_SERVER } else { &self.host };
        Url::parse(&format!("https://{server}/")).map(|url| url.origin)
    }

    /// The reference with this digest in place of a tag.
    pub(super) fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match (&self.tag, self.digest) {
            (None, None) => f.write_str(":latest"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), Some(digest)) => write!(f, ":{tag}@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { text: text.chars().take(120).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.contains("://") {
        return Err("it is a URL, leave out what ends with ://");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            (name, Some(digest.parse().map_err(|_| "its digest is not sha256: and 64 hexadecimal digits")?))
        }
        None => (text, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (name, None),
    };
    if tag.as_deref().is_some_and(|tag| !tag_ok(tag)) {
        return Err("its tag is not 1 to 128 of letters, digits, '_', '.' and '-'");
    }
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (canonical(host)?, path.to_owned()),
        _ => (DEFAULT_HOST.to_owned(), name.to_owned()),
    };
    let path = if host == DEFAULT_HOST && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path };
    if path.len() > MAX_PATH_BYTES
        || !path.strip_prefix(OFFICIAL).unwrap_or(&path).split('/').all(component_ok)
    {
        return Err(
            "its path is not made of lower-case letters and digits, with single '.', '_' or '-' between them",
        );
    }
    Ok(Reference { host, path, tag, digest })
}

/// As Docker tells a host from the first part of a path.
fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn canonical(host: &str) -> Result<String, &'static str> {
    let host = host.to_ascii_lowercase();
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host.as_str(), None),
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name_ok = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)),
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !name_ok || !port_ok || host.len() > MAX_HOST_BYTES {
        return Err("its host is not a name or an address, with or without a port");
    }
    Ok(match host.as_str() {
        "index.docker.io" | DEFAULT_SERVER => DEFAULT_HOST.to_owned(),
        _ => host,
    })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution-spec).
fn component_ok(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separator_ok = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    ends && separators.into_iter().all(separator_ok)
}

fn tag_ok(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_mean_what_docker_means_by_them() {
        for (text, full, name) in [
            ("nginx", "docker.io/library/nginx:latest", Some("nginx:latest")),
            ("nginx:1.27", "docker.io/library/nginx:1.27", Some("nginx:1.27")),
            ("docker.io/nginx", "docker.io/library/nginx:latest", Some("nginx:latest")),
            ("index.docker.io/ada/web", "docker.io/ada/web:latest", Some("ada/web:latest")),
            ("ada/web:2", "docker.io/ada/web:2", Some("ada/web:2")),
            ("ghcr.io/ada/web", "ghcr.io/ada/web:latest", Some("ada/web:latest")),
            ("localhost/web", "localhost/web:latest", Some("web:latest")),
            ("localhost:5000/tools/web:V2", "localhost:5000/tools/web:V2", Some("tools/web:V2")),
            ("[::1]:5000/web", "[::1]:5000/web:latest", Some("web:latest")),
            ("Registry.LAN/web", "registry.lan/web:latest", Some("web:latest")),
            ("library/nginx", "docker.io/library/nginx:latest", Some("nginx:latest")),
            ("ghcr.io/a__b/c--d.e", "ghcr.io/a__b/c--d.e:latest", Some("a__b/c--d.e:latest")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.name().map(|name| name.to_string()).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn a_digest_decides_and_stands_for_no_tag() {
        let both: Reference = format!("web:1@{DIGEST}").parse().unwrap();
        assert_eq!((both.wanted().as_str(), both.name().unwrap().as_str()), (DIGEST, "web:1"));
        let bare: Reference = format!("web@{DIGEST}").parse().unwrap();
        assert_eq!((bare.wanted().as_str(), bare.name()), (DIGEST, None));
        assert_eq!(bare.to_string(), format!("docker.io/library/web@{DIGEST}"));
    }

    #[test]
    fn docker_io_is_served_elsewhere() {
        let server = |text: &str| text.parse::<Reference>().unwrap().origin().unwrap();
        assert_eq!(server("nginx").host, "registry-1.docker.io");
        let own = server("registry.lan:5000/web");
        assert_eq!((own.host.as_str(), own.port, own.secure), ("registry.lan", 5000, true));
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        let long = "a".repeat(256);
        for (text, reason) in [
            ("https://ghcr.io/web", "it is a URL"),
            ("", "its path"),
            ("Web", "its path"),
            ("ghcr.io/", "its path"),
            ("ghcr.io/../web", "its path"),
            ("ghcr.io/a//b", "its path"),
            ("ghcr.io/a/-b", "its path"),
            ("ghcr.io/a._b", "its path"),
            ("web:", "its tag"),
            ("web:a b", "its tag"),
            ("web:\u{1b}[2J", "its tag"),
            ("web@sha256:12", "its digest"),
            ("web@sha512:ab", "its digest"),
            ("ghcr.io:0/web", "its host"),
            ("ghcr.io:99999/web", "its host"),
            ("user@ghcr.io/web", "its digest"),
            ("a.b?c=d/web", "its host"),
            ("[::g]:5000/web", "its host"),
            (&long, "its path"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_understood_or_refused(text in "\\PC{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap().to_string(), reference.to_string());
                prop_assert!(reference.origin().is_some());
            }
        }
    }
}
