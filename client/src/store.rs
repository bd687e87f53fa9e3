//! The locations this person has joined, one file each under the XDG configuration directory.
//!
//! ```text
//! $XDG_CONFIG_HOME/wherry/locations/<name>.toml   address, keys, role          0600, directory 0700
//! $XDG_CONFIG_HOME/wherry/default                 the default location's name
//! $XDG_CONFIG_HOME/wherry/pending/<hash>.key      the key of an enrolment that has not been answered yet
//! ```
//!
//! Every file is written whole, to a temporary name, and then renamed.
use crate::address::Address;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use wherry_protocol::{AccountId, Digest, Name, PublicKey, Role, SecretKey};

/// Largest location file read, in bytes; a real one has some 400.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why the stored locations cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Neither XDG_CONFIG_HOME nor HOME is set to an absolute path.
    #[error("no place for the configuration: set HOME or XDG_CONFIG_HOME to an absolute path")]
    NoHome,
    /// The file system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file with a secret key that others may read.
    #[error("{} holds a secret key but others can read it (mode {mode:03o}): run chmod 600 on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that is not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No such location.
    #[error("no location is called '{0}': `wherry locations` lists them")]
    Unknown(Name),
    /// There is none at all.
    #[error("no location has been joined yet: run `wherry join <token>`")]
    None,
    /// There are several and none is the default.
    #[error(
        "several locations are joined: name one with --location or make it the default with `wherry locations use`"
    )]
    Undecided,
    /// The name belongs to another cluster, or to another key at the same one.
    #[error(
        "a location called '{0}' is already stored: join under another name with --name, or remove it with `wherry locations rm {0}`"
    )]
    Taken(Name),
}

/// One cluster as this person sees it.
#[derive(Debug, Clone)]
pub struct StoredLocation {
    /// What it is called here.
    pub name: Name,
    /// Where its broker is.
    pub address: Address,
    /// The broker's identity.
    pub broker: PublicKey,
    /// This person's identity there.
    pub secret: SecretKey,
    /// The account that the broker knows this identity by.
    pub account: AccountId,
    /// What the account may do.
    pub role: Role,
    /// What the account is called there.
    pub label: Name,
    /// Hash of the token that was claimed, so that joining again with it is recognised.
    pub token: Digest,
}

/// The file's form. Additions get a default; nothing is renamed.
#[derive(Serialize, Deserialize)]
struct LocationFile {
    address: String,
    broker_key: String,
    secret_key: String,
    account: u32,
    role: Role,
    label: Name,
    token: Digest,
}

impl LocationFile {
    fn of(location: &StoredLocation) -> Self {
        Self {
            address: location.address.to_string(),
            broker_key: location.broker.to_string(),
            secret_key: location.secret.to_text(),
            account: location.account.0,
            role: location.role,
            label: location.label.clone(),
            token: location.token,
        }
    }

    fn into_location(self, name: Name) -> Result<StoredLocation, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        Ok(StoredLocation {
            name,
            address: self.address.parse().map_err(|e| text(&e))?,
            broker: self.broker_key.parse().map_err(|e| text(&e))?,
            secret: self.secret_key.parse().map_err(|e| text(&e))?,
            account: AccountId(self.account),
            role: self.role,
            label: self.label,
            token: self.token,
        })
    }
}

/// The directory with everything that is stored.
#[derive(Debug, Clone)]
pub struct Config {
    root: PathBuf,
}

impl Config {
    /// `$XDG_CONFIG_HOME/wherry`, or `$HOME/.config/wherry` (XDG Base Directory Specification; a relative
    /// XDG_CONFIG_HOME is ignored, as it demands).
    pub fn from_env() -> Result<Self, StoreError> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_CONFIG_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".config")))
            .map(|base| Self::at(base.join("wherry")))
            .ok_or(StoreError::NoHome)
    }

    /// Everything below `root`.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn location_path(&self, name: &Name) -> PathBuf {
        self.root.join("locations").join(format!("{name}.toml"))
    }

    /// Names of all stored locations, sorted. Other files in the directory are passed over.
    pub fn names(&self) -> Result<Vec<Name>, StoreError> {
        let path = self.root.join("locations");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { action: "list", path, source }),
        };
        let name =
            |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".toml")?.parse::<Name>().ok();
        let mut names: Vec<Name> = entries.filter_map(Result::ok).filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// One stored location.
    pub fn load(&self, name: &Name) -> Result<StoredLocation, StoreError> {
        let path = self.location_path(name);
        let text = read_secret(&path)?.ok_or_else(|| StoreError::Unknown(name.clone()))?;
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        // The parser's own message would print the line, and with it the secret key.
        let file: LocationFile =
            toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        file.into_location(name.clone()).map_err(damaged)
    }

    /// Stores a location. A name that stands for another cluster or another key is refused.
    pub fn save(&self, location: &StoredLocation) -> Result<(), StoreError> {
        match self.load(&location.name) {
            Ok(known) if known.broker != location.broker || known.account != location.account => {
                return Err(StoreError::Taken(location.name.clone()));
            }
            Ok(_) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
        let path = self.location_path(&location.name);
        let text = toml::to_string(&LocationFile::of(location))
            .map_err(|error| StoreError::Damaged { path: path.clone(), reason: error.to_string() })?;
        write_secret(&path, &text)
    }

    /// Forgets a location, its key and, if it was that, the default.
    pub fn remove(&self, name: &Name) -> Result<(), StoreError> {
        let path = self.location_path(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Unknown(name.clone()));
            }
            Err(source) => return Err(StoreError::Io { action: "remove", path, source }),
        }
        if self.default_name()?.as_ref() == Some(name) {
            let path = self.root.join("default");
            fs::remove_file(&path).map_err(|source| StoreError::Io { action: "remove", path, source })?;
        }
        Ok(())
    }

    /// The default location's name, if one was chosen and still exists.
    pub fn default_name(&self) -> Result<Option<Name>, StoreError> {
        let path = self.root.join("default");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        };
        let name: Name =
            text.trim().parse().map_err(|error| StoreError::Damaged { path, reason: format!("{error}") })?;
        Ok(self.location_path(&name).exists().then_some(name))
    }

    /// Makes a stored location the default.
    pub fn set_default(&self, name: &Name) -> Result<(), StoreError> {
        if !self.location_path(name).exists() {
            return Err(StoreError::Unknown(name.clone()));
        }
        write_secret(&self.root.join("default"), &format!("{name}\n"))
    }

    /// The named location; or the default; or the only one.
    pub fn choose(&self, name: Option<&Name>) -> Result<StoredLocation, StoreError> {
        if let Some(name) = name {
            return self.load(name);
        }
        if let Some(name) = self.default_name()? {
            return self.load(&name);
        }
        match self.names()?.as_slice() {
            [] => Err(StoreError::None),
            [only] => self.load(only),
            _ => Err(StoreError::Undecided),
        }
    }

    fn pending_path(&self, token: &Digest) -> PathBuf {
        self.root.join("pending").join(format!("{}.key", token.hex()))
    }

    /// The key for claiming a token. It is on disk before the token is shown to the broker, so that a claim whose
    /// answer got lost can be repeated with the same key.
    pub(crate) fn pending_key(
        &self,
        token: &Digest,
        generate: impl FnOnce() -> SecretKey,
    ) -> Result<SecretKey, StoreError> {
        let path = self.pending_path(token);
        if let Some(text) = read_secret(&path)? {
            let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
            return text.parse().map_err(|error| damaged(format!("{error}")));
        }
        let key = generate();
        write_secret(&path, &format!("{}\n", key.to_text()))?;
        Ok(key)
    }

    /// Forgets the key of a claim that has been answered.
    pub(crate) fn forget_pending(&self, token: &Digest) -> Result<(), StoreError> {
        let path = self.pending_path(token);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The stored location that came from this token, if any.
    pub(crate) fn find_by_token(&self, token: &Digest) -> Result<Option<StoredLocation>, StoreError> {
        for name in self.names()? {
            let location = self.load(&name)?;
            if location.token == *token {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }
}

/// A file with a secret, refused if anybody else may read it; `None` if there is none.
pub(crate) fn read_secret(path: &Path) -> Result<Option<String>, StoreError> {
    let failed = |source| StoreError::Io { action: "read", path: path.to_owned(), source };
    let kind = match path.metadata() {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = kind.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    if !kind.is_file() || kind.len() > MAX_FILE_BYTES {
        let reason = "it is not a small file".into();
        return Err(StoreError::Damaged { path: path.to_owned(), reason });
    }
    fs::read_to_string(path).map(Some).map_err(failed)
}

/// Replaces a file atomically; mode 0600, its directory 0700.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), StoreError> {
    let file = written(path, text)?;
    file.persist(path).map(drop).map_err(|error| unwritten(path, error.error))
}

/// As [`write_secret`], but what is there already stays.
pub(crate) fn create_secret(path: &Path, text: &str) -> Result<(), StoreError> {
    match written(path, text)?.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(unwritten(path, error.error)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn unwritten(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action: "write", path: path.to_owned(), source }
}

/// A file beside `path` with what is to be there.
fn written(path: &Path, text: &str) -> Result<tempfile::NamedTempFile, StoreError> {
    let failed = |source| unwritten(path, source);
    let directory = path.parent().ok_or_else(|| failed(io::ErrorKind::NotADirectory.into()))?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    // tempfile makes files of mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::OsRandom;

    fn config() -> (tempfile::TempDir, Config) {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::at(directory.path().join("wherry"));
        (directory, config)
    }

    fn location(name: &str) -> StoredLocation {
        let secret = SecretKey::generate(&mut OsRandom);
        StoredLocation {
            name: name.parse().unwrap(),
            address: "192.168.1.10".parse().unwrap(),
            broker: PublicKey([7; 32]),
            secret,
            account: AccountId(3),
            role: Role::User,
            label: "ada-laptop".parse().unwrap(),
            token: Digest([1; 32]),
        }
    }

    #[test]
    fn a_location_round_trips_with_tight_permissions() {
        let (_keep, config) = config();
        let stored = location("demo");
        config.save(&stored).unwrap();
        let read = config.load(&stored.name).unwrap();
        assert_eq!(read.secret.public(), stored.secret.public());
        assert_eq!((read.account, read.role, read.address), (stored.account, stored.role, stored.address));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&config.location_path(&stored.name)), 0o600);
        assert_eq!(mode(&config.root().join("locations")), 0o700);
        assert_eq!(mode(config.root()), 0o700);
        assert_eq!(config.names().unwrap(), [stored.name]);
        let left: Vec<_> = fs::read_dir(config.root().join("locations")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left behind");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_keep, config) = config();
        let stored = location("demo");
        config.save(&stored).unwrap();
        for mode in [0o604, 0o640, 0o620, 0o666] {
            let path = config.location_path(&stored.name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = config.load(&stored.name).unwrap_err().to_string();
            assert!(error.contains(&format!("others can read it (mode {mode:o}): run chmod 600")), "{error}");
        }
    }

    #[test]
    fn another_cluster_does_not_replace_a_location() {
        let (_keep, config) = config();
        config.save(&location("demo")).unwrap();
        config.save(&location("demo")).unwrap();
        let other = StoredLocation { broker: PublicKey([8; 32]), ..location("demo") };
        assert!(matches!(config.save(&other), Err(StoreError::Taken(_))));
        let other = StoredLocation { account: AccountId(4), ..location("demo") };
        assert!(matches!(config.save(&other), Err(StoreError::Taken(_))));
    }

    #[test]
    fn choosing_a_location() {
        let (_keep, config) = config();
        assert!(matches!(config.choose(None), Err(StoreError::None)));
        let (demo, shed) = (location("demo"), location("shed"));
        config.save(&demo).unwrap();
        assert_eq!(config.choose(None).unwrap().name, demo.name);
        config.save(&shed).unwrap();
        assert!(matches!(config.choose(None), Err(StoreError::Undecided)));
        config.set_default(&shed.name).unwrap();
        assert_eq!(config.choose(None).unwrap().name, shed.name);
        assert_eq!(config.choose(Some(&demo.name)).unwrap().name, demo.name);
        config.remove(&shed.name).unwrap();
        assert_eq!(config.default_name().unwrap(), None);
        assert!(matches!(config.choose(Some(&shed.name)), Err(StoreError::Unknown(_))));
        assert!(matches!(config.set_default(&shed.name), Err(StoreError::Unknown(_))));
        assert!(matches!(config.remove(&shed.name), Err(StoreError::Unknown(_))));
    }

    #[test]
    fn damage_is_reported_without_the_secret() {
        let (_keep, config) = config();
        let stored = location("demo");
        config.save(&stored).unwrap();
        let path = config.location_path(&stored.name);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            text.replace("account = 3", "account = x"),
            text.replace("secret_key = \"", "secret_key = \"!"),
            String::new(),
        ] {
            fs::write(&path, damaged).unwrap();
            let error = config.load(&stored.name).unwrap_err().to_string();
            assert!(error.contains("is damaged"), "{error}");
            assert!(!error.contains(&stored.secret.to_text()), "{error}");
        }
        fs::write(&path, vec![b'#'; 100_000]).unwrap();
        assert!(config.load(&stored.name).unwrap_err().to_string().contains("not a small file"));
    }

    #[test]
    fn a_pending_key_survives_until_it_is_forgotten() {
        let (_keep, config) = config();
        let token = Digest([5; 32]);
        let fresh = || SecretKey::generate(&mut OsRandom);
        let first = config.pending_key(&token, fresh).unwrap();
        assert_eq!(config.pending_key(&token, fresh).unwrap().public(), first.public());
        config.forget_pending(&token).unwrap();
        config.forget_pending(&token).unwrap();
        assert_ne!(config.pending_key(&token, fresh).unwrap().public(), first.public());
    }

    #[test]
    fn strange_files_are_passed_over() {
        let (_keep, config) = config();
        config.save(&location("demo")).unwrap();
        let directory = config.root().join("locations");
        for name in ["README", "Upper.toml", ".hidden.toml", "x.toml.bak"] {
            fs::write(directory.join(name), "x").unwrap();
        }
        assert_eq!(config.names().unwrap().len(), 1);
    }
}
