//! Logins that other tools have stored: Docker's config.json and containers-auth.json(5), with credential helpers.
//!
//! A login is for exactly one host and port, or for a part of its repositories. It is looked up each time and kept
//! nowhere else.
use data_encoding::BASE64_NOPAD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// Largest file of logins, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Largest answer of a credential helper, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// Time for a credential helper, in seconds: it may ask a person for a fingerprint.
const HELPER_SECONDS: u64 = 60;
/// What helpers answer if they have nothing (docker-credential-helpers, `credentials.NewErrCredentialsNotFound`).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// A helper's user name for an identity token.
const TOKEN_USER: &str = "<token>";

/// A password or token; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How to log in at one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    Anonymous,
    /// With a password.
    Basic {
        /// Who.
        user: String,
        /// The password.
        password: Secret,
    },
    /// With a refresh token of the registry's token service.
    Identity(Secret),
    /// With a ready token for the registry.
    Bearer(Secret),
}

/// Why a stored login cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read the stored logins in {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file makes no sense. What is in it is not quoted.
    #[error("the stored logins in {} cannot be understood (line {line}): log in again, or mend the file", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// One entry makes no sense.
    #[error("the stored login for {host} in {} is damaged: run `docker login {host}` again", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// For whom.
        host: String,
    },
    /// The helper cannot be run, or failed. What it said is not quoted.
    #[error("the credential helper '{program}' gave no login for {host} ({reason}): log in again, or remove it from {}", path.display())]
    Helper {
        /// Its name.
        program: String,
        /// For whom.
        host: String,
        /// What happened.
        reason: String,
        /// The file that names it.
        path: PathBuf,
    },
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

/// The files in which logins are looked up, the first one that has something decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    files: Vec<PathBuf>,
    /// The first file was asked for by name and has to be there.
    named: bool,
}

impl CredentialFiles {
    /// Where the environment says: `REGISTRY_AUTH_FILE` alone if it is set; otherwise Docker's, if `DOCKER_CONFIG` is
    /// set; that of podman and skopeo in `XDG_RUNTIME_DIR` or the configuration directory; Docker's in the home directory.
    #[must_use]
    pub fn from_env(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = set("REGISTRY_AUTH_FILE") {
            return Self { files: vec![file], named: true };
        }
        let home = set("HOME");
        let below = |directory: Option<PathBuf>, rest: &str| directory.map(|directory| directory.join(rest));
        let configuration = set("XDG_CONFIG_HOME").or_else(|| below(home.clone(), ".config"));
        let files = [
            below(set("DOCKER_CONFIG"), "config.json"),
            below(set("XDG_RUNTIME_DIR"), "containers/auth.json"),
            below(configuration, "containers/auth.json"),
            below(home, ".docker/config.json"),
        ];
        Self { files: files.into_iter().flatten().collect(), named: false }
    }

    /// The login for the repository `path` of `host` (`docker.io`, `registry.lan:5000`).
    ///
    /// # Errors
    /// When a file or a helper that has something for this host cannot be used; another login is not tried then.
    pub async fn find(&self, host: &str, path: &str) -> Result<Credentials, CredentialError> {
        for file in &self.files {
            let Some(parsed) = read(file, self.named)? else { continue };
            match parsed.find(file, host, path).await? {
                Credentials::Anonymous => {}
                found => return Ok(found),
            }
        }
        Ok(Credentials::Anonymous)
    }
}

fn read(path: &Path, must: bool) -> Result<Option<File>, CredentialError> {
    let failed = |source| CredentialError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if !must && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let damaged =
        |error: serde_json::Error| CredentialError::Damaged { path: path.to_owned(), line: error.line() };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

impl File {
    async fn find(&self, file: &Path, host: &str, path: &str) -> Result<Credentials, CredentialError> {
        let helper = self.cred_helpers.iter().find(|(key, _)| normal(key) == host).map(|(_, name)| name);
        if let Some(name) = helper.filter(|name| !name.is_empty()) {
            return ask(name, host, file).await;
        }
        if let Some(entry) = self.entry(host, path) {
            let damaged = || CredentialError::Entry { path: file.to_owned(), host: host.to_owned() };
            let found = entry.credentials().ok_or_else(damaged)?;
            if found != Credentials::Anonymous {
                return Ok(found);
            }
        }
        match self.creds_store.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => ask(name, host, file).await,
            None => Ok(Credentials::Anonymous),
        }
    }

    /// The entry of the longest part of `host/path` (containers-auth.json(5), "FORMAT").
    fn entry(&self, host: &str, path: &str) -> Option<&Entry> {
        let full = format!("{host}/{path}");
        let mut key = full.as_str();
        loop {
            if let Some((_, entry)) = self.auths.iter().find(|(name, _)| normal(name) == key) {
                return Some(entry);
            }
            if key == host {
                return None;
            }
            key = key.rsplit_once('/')?.0;
        }
    }
}

/// A key as both kinds of files write it: Docker's old ones are URLs of its version 1.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let name = match bare {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => {
            ["/v1/", "/v2/", "/v1", "/v2", "/"].iter().find_map(|end| key.strip_suffix(end)).unwrap_or(key)
        }
    };
    let (host, rest) = name.split_once('/').map_or((name, None), |(host, rest)| (host, Some(rest)));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    rest.map_or(host.clone(), |rest| format!("{host}/{rest}"))
}

impl Entry {
    /// `None` if it is damaged.
    fn credentials(&self) -> Option<Credentials> {
        let some = |value: &Option<Secret>| value.clone().filter(|secret| !secret.reveal().is_empty());
        if let Some(token) = some(&self.registrytoken) {
            return Some(Credentials::Bearer(token));
        }
        if let Some(token) = some(&self.identitytoken) {
            return Some(Credentials::Identity(token));
        }
        if let Some(auth) = some(&self.auth) {
            let bytes = BASE64_NOPAD
                .decode(auth.reveal().trim_end_matches('=').as_bytes())
                .ok()
                .map(Zeroizing::new)?;
            let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
            // Docker pads passwords of its own making with NULs.
            let password = Secret::new(password.trim_end_matches('\0').to_owned());
            return (!user.is_empty()).then(|| Credentials::Basic { user: user.to_owned(), password });
        }
        match (self.username.as_deref().filter(|user| !user.is_empty()), some(&self.password)) {
            (Some(user), Some(password)) => Some(Credentials::Basic { user: user.to_owned(), password }),
            _ => Some(Credentials::Anonymous),
        }
    }
}

/// Asks `docker-credential-NAME`. That it has nothing is no failure.
async fn ask(name: &str, host: &str, file: &Path) -> Result<Credentials, CredentialError> {
    let program = format!("docker-credential-{}", name.chars().take(64).collect::<String>());
    let failed = |reason: String| CredentialError::Helper {
        program: program.clone(),
        host: host.to_owned(),
        reason,
        path: file.to_owned(),
    };
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(failed("that is no name of a program".into()));
    }
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let answer = tokio::time::timeout(Duration::from_secs(HELPER_SECONDS), run(&program, server));
    let (success, text) = answer
        .await
        .map_err(|_| failed(format!("it took more than {HELPER_SECONDS} s")))?
        .map_err(|error| failed(crate::session::plain(&error)))?;
    if !success {
        return match text.trim() == NOT_FOUND {
            true => Ok(Credentials::Anonymous),
            false => Err(failed("it failed".into())),
        };
    }
    let answer: HelperAnswer =
        serde_json::from_str(&text).map_err(|_| failed("its answer is not what helpers answer".into()))?;
    Ok(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity(answer.secret),
        user => Credentials::Basic { user: user.to_owned(), password: answer.secret },
    })
}

async fn run(program: &str, server: &str) -> io::Result<(bool, Zeroizing<String>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that answers without reading the question is its own business.
        drop(stdin.write_all(format!("{server}\n").as_bytes()).await);
    }
    let mut text = Zeroizing::new(String::new());
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER_BYTES).read_to_string(&mut text).await?;
    }
    Ok((child.wait().await?.success(), text))
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
