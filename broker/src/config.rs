//! `wherry.toml` of a broker, and its long-term key.
use crate::serve::ConfiguredToken;
use serde::Deserialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use wherry_net::setup::{RawNetwork, Wish};
use wherry_protocol::{Name, OsRandom, Overlay, Role, SecretKey};

/// What overlaps, where an address does.
pub(crate) const OWN_NETWORK: &str = "the broker's own network";
/// Largest configuration file read, in bytes: a broker's holds a key and some tokens.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;
/// Largest key file read, in bytes: a key takes 52 and a line end.
const MAX_KEY_BYTES: u64 = 256;

/// Why the configuration or the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The text is not what it should be.
    #[error("{path} is not a valid broker configuration: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key file is damaged.
    #[error(
        "{path} does not hold a key: put it back from a copy, every board and account knows the broker by it"
    )]
    Key {
        /// Which file.
        path: PathBuf,
    },
}

impl ConfigError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    role: String,
    hostname: Option<String>,
    location: Option<String>,
    secret_key: Option<String>,
    overlay: Option<String>,
    #[serde(default)]
    token: Vec<RawToken>,
    network: Option<RawNetwork>,
    #[serde(default)]
    ntp: Vec<Ipv4Addr>,
    #[serde(default)]
    test_image: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    role: Role,
    hash: String,
    expires: u64,
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The board's name.
    pub hostname: Name,
    /// What the cluster calls itself.
    pub location: Name,
    /// The key to adopt at the first start.
    pub secret_key: Option<SecretKey>,
    /// The containers' addresses; those of the first start, or else the usual ones, if absent.
    pub overlay: Option<Overlay>,
    /// Tokens to adopt, each once.
    pub tokens: Vec<ConfiguredToken>,
    /// How the board comes onto its network; DHCP on every Ethernet if nothing is said.
    pub network: Wish,
    /// Time servers; those that DHCP names, or else the public pool, if absent.
    pub ntp: Vec<Ipv4Addr>,
    /// This is an image for tests.
    pub test_image: bool,
}

impl Config {
    /// Reads `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// When there is one and it is not a valid broker configuration.
    pub fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let text = match read_bounded(path, MAX_CONFIG_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ConfigError::io("read", path, error)),
        };
        Self::parse(&text).map(Some).map_err(|reason| ConfigError::Invalid { path: path.into(), reason })
    }

    /// Checks `text`.
    ///
    /// # Errors
    /// In one line, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| one_line(&error.to_string()))?;
        if raw.role != "broker" {
            return Err(format!("its role is '{}', this is a broker image: flash the right one", raw.role));
        }
        let overlay = raw.overlay.map(|text| text.parse::<Overlay>()).transpose();
        let overlay = overlay.map_err(|error| error.to_string())?;
        let network = raw.network.map(Wish::check).transpose()?.unwrap_or_default();
        if let (Some(overlay), Some(fixed)) = (overlay, &network.fixed) {
            fixed.check_apart(overlay, OWN_NETWORK).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            hostname: name("hostname", raw.hostname, "broker")?,
            location: name("location", raw.location, "wherry")?,
            secret_key: raw.secret_key.map(|text| secret_key(&text)).transpose()?,
            overlay,
            tokens: raw.token.into_iter().map(token).collect::<Result<_, _>>()?,
            network,
            ntp: raw.ntp,
            test_image: raw.test_image,
        })
    }
}

impl Default for Config {
    /// For a process that was given none.
    fn default() -> Self {
        let name = |text: &str| text.parse().unwrap_or_else(|_| unreachable!("{text} is a valid name"));
        Self {
            hostname: name("broker"),
            location: name("wherry"),
            secret_key: None,
            overlay: None,
            tokens: Vec::new(),
            network: Wish::default(),
            ntp: Vec::new(),
            test_image: false,
        }
    }
}

fn name(what: &str, text: Option<String>, default: &str) -> Result<Name, String> {
    text.as_deref().unwrap_or(default).parse().map_err(|error| format!("{what}: {error}"))
}

fn secret_key(text: &str) -> Result<SecretKey, String> {
    text.parse().map_err(|error| format!("secret_key is {error}"))
}

fn token(raw: RawToken) -> Result<ConfiguredToken, String> {
    let hash = raw.hash.parse().map_err(|error| format!("the hash of a token: {error}"))?;
    Ok(ConfiguredToken { role: raw.role, hash, expires_seconds: raw.expires })
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    let read = File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if read as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {limit} bytes")));
    }
    Ok(text)
}

/// The broker's key: the one in `path`, or else `configured`, or else a new one, which is then in `path` for good.
///
/// # Errors
/// When there is a file that holds no key; it is not replaced.
pub fn long_term_key(path: &Path, configured: Option<SecretKey>) -> Result<SecretKey, ConfigError> {
    match read_bounded(path, MAX_KEY_BYTES) {
        Ok(text) => {
            let key: SecretKey = text.parse().map_err(|_| ConfigError::Key { path: path.into() })?;
            if configured.is_some_and(|configured| configured.public() != key.public()) {
                tracing::warn!(
                    "the key in the configuration is not used: this broker has had another one since its first start"
                );
            }
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = configured.unwrap_or_else(|| SecretKey::generate(&mut OsRandom));
            write_secret(path, &format!("{}\n", key.to_text()))
                .map_err(|source| ConfigError::io("write", path, source))?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(ConfigError::Key { path: path.into() })
        }
        Err(error) => Err(ConfigError::io("read", path, error)),
    }
}

/// Mode 0600 from the first byte; whole or not at all, also after a power cut.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let new = path.with_extension("new");
    if new.exists() {
        fs::remove_file(&new)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use wherry_protocol::Digest;

    #[test]
    fn a_full_configuration() {
        let key = SecretKey::from_bytes([1; 32]);
        let hash = Digest::of(b"secret");
        let config = Config::parse(&format!(
            "role = \"broker\"\nhostname = \"b1\"\nlocation = \"demo\"\nsecret_key = \"{}\"\ntest_image = true\n\
             overlay = \"172.20.0.0/14\"\n[[token]]\nrole = \"admin\"\nhash = \"{hash}\"\nexpires = 1795000000\n\
             [network]\ninterface = \"eth0\"\naddress = \"192.168.50.2/24\"\ngateway = \"192.168.50.1\"\n",
            key.to_text()
        ))
        .unwrap();
        assert_eq!(config.secret_key.unwrap().public(), key.public());
        assert_eq!(
            config.tokens,
            [ConfiguredToken { role: Role::Admin, hash, expires_seconds: 1_795_000_000 }]
        );
        assert_eq!((config.hostname.as_str(), config.location.as_str()), ("b1", "demo"));
        assert_eq!(config.network.fixed.unwrap().prefix, 24);
        assert!(config.test_image);
        assert_eq!(config.overlay.map(|overlay| overlay.to_string()).as_deref(), Some("172.20.0.0/14"));
    }

    #[test]
    fn nonsense_is_refused_in_one_line() {
        for (text, word) in [
            ("role = \"node\"", "right one"),
            ("role = \"broker\"\nsurprise = 1", "surprise"),
            ("role = \"broker\"\nhostname = \"Bad Name\"", "hostname"),
            ("role = \"broker\"\nsecret_key = \"short\"", "secret_key"),
            ("role = \"broker\"\n[[token]]\nrole = \"king\"\nhash = \"\"\nexpires = 1", "king"),
            ("role = \"broker\"\n[[token]]\nrole = \"user\"\nhash = \"x\"\nexpires = 1", "digest"),
            ("role = \"broker\"\n[network]\naddress = \"1.2.3.4/33\"", "1.2.3.4/33"),
            ("role = \"broker\"\noverlay = \"8.0.0.0/8\"", "not private"),
            ("role = \"broker\"\noverlay = \"10.1.0.0/24\"", "too small"),
            (
                "role = \"broker\"\noverlay = \"10.0.0.0/8\"\n[network]\naddress = \"10.0.0.2/24\"",
                "the broker's own network 10.0.0.0/24 overlap",
            ),
            ("role = \"broker\"\n[network]\nvlan = 0", "0 is no VLAN"),
            ("= =", ""),
        ] {
            let reason = Config::parse(text).unwrap_err();
            assert!(!reason.contains('\n') && reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn the_key_is_adopted_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker/key");
        let first = SecretKey::from_bytes([1; 32]);
        assert_eq!(long_term_key(&path, Some(first.clone())).unwrap().public(), first.public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = SecretKey::from_bytes([2; 32]);
        assert_eq!(long_term_key(&path, Some(other)).unwrap().public(), first.public());
        assert_eq!(long_term_key(&path, None).unwrap().public(), first.public());
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for damaged in ["", "half a key", &"x".repeat(10_000)] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(long_term_key(&path, None), Err(ConfigError::Key { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_missing_file_is_no_error_and_a_huge_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wherry.toml");
        assert!(Config::read(&path).unwrap().is_none());
        fs::write(&path, " ".repeat(100_000)).unwrap();
        assert!(Config::read(&path).unwrap_err().to_string().contains("larger"));
    }
}
