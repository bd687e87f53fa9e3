//! Keys of the bridge, and the files that tell OpenSSH of them.
//!
//! ```text
//! $XDG_CONFIG_HOME/wherry/ssh/host_key       who the bridge is, ed25519, OpenSSH's form                0600
//! $XDG_CONFIG_HOME/wherry/ssh/login_key      who may log in, besides the keys of ~/.ssh/*.pub          0600
//! $XDG_CONFIG_HOME/wherry/ssh/known_hosts    the host key, for clients
//! $XDG_CONFIG_HOME/wherry/ssh/config         a host NAME.LOCATION.wherry for every container           ssh_config(5)
//! ```
use crate::store::{Config, StoreError, create_secret, read_secret, write_secret};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use wherry_protocol::Name;

/// Public keys of the user's own that are looked at, and their length in bytes: nobody has more, and a directory full of
/// something else must not hold up a login.
const MAX_OWN_KEYS: usize = 64;
const MAX_PUBLIC_KEY_BYTES: u64 = 16 * 1024;
/// What ends the names of containers in ssh_config(5).
const DOMAIN: &str = "wherry";
/// What the written ssh_config(5) calls a bridge that listens; its port is to be added.
pub const HOST: &str = "bridge.wherry";
/// The user that means the container's own.
pub(super) const OWN_USER: &str = "wherry";

/// Who the bridge is, and who may log in.
#[derive(Debug)]
pub struct SshKeys {
    directory: PathBuf,
    pub(super) host: PrivateKey,
    pub(super) allowed: Vec<PublicKey>,
}

impl SshKeys {
    /// Reads the keys, or makes them the first time. The keys of `home`'s .ssh/*.pub may log in too.
    ///
    /// # Errors
    /// [`StoreError`]: a file that others can read, is damaged, or cannot be written.
    pub fn load(config: &Config, home: Option<&Path>) -> Result<Self, StoreError> {
        let directory = config.root().join("ssh");
        let host = kept_key(&directory.join("host_key"))?;
        let login = kept_key(&directory.join("login_key"))?;
        let own = home.map(|home| own_keys(&home.join(".ssh"))).unwrap_or_default();
        let allowed = std::iter::once(login.public_key().clone()).chain(own).collect();
        Ok(Self { directory, host, allowed })
    }

    /// Whether who holds this key may log in.
    pub(super) fn allow(&self, key: &PublicKey) -> bool {
        self.allowed.iter().any(|allowed| allowed.key_data() == key.key_data())
    }

    /// Writes ssh_config(5) and known hosts for the containers of all of `locations`; `program` is this command. Gives the
    /// path of the configuration.
    ///
    /// # Errors
    /// [`StoreError`]: they cannot be written, or a path cannot be put into such a file.
    pub fn write_config(&self, program: &Path, locations: &[Name]) -> Result<PathBuf, StoreError> {
        let path = self.directory.join("config");
        let unfit = |reason: &str| StoreError::Damaged { path: path.clone(), reason: reason.into() };
        let program = program.to_str().ok_or_else(|| unfit("the path of this program is not UTF-8"))?;
        let directory = self.directory.to_str().ok_or_else(|| unfit("its own path is not UTF-8"))?;
        if [program, directory].iter().any(|text| text.contains(|c: char| c.is_control() || c == '"')) {
            return Err(unfit("a path with a quotation mark or a control character cannot stand in it"));
        }
        let key = self.host.public_key().to_openssh().map_err(|error| unfit(&error.to_string()))?;
        write_secret(&self.directory.join("known_hosts"), &format!("{DOMAIN},[127.0.0.1]:* {key}\n"))?;
        write_secret(&path, &config_text(program, directory, locations))?;
        Ok(path)
    }
}

/// The container that a host of our ssh_config(5) means: what is before `.LOCATION.wherry`.
#[must_use]
pub(super) fn container_of<'a>(host: &'a str, location: &Name) -> &'a str {
    let without =
        |host: &'a str| host.strip_suffix(DOMAIN)?.strip_suffix('.')?.strip_suffix(location.as_str());
    without(host).and_then(|name| name.strip_suffix('.')).unwrap_or(host)
}

fn config_text(program: &str, directory: &str, locations: &[Name]) -> String {
    // Tokens of ssh_config(5) begin with a percent sign.
    let plain = |text: &str| text.replace('%', "%%");
    let (shell, directory) = (plain(program).replace('\'', r"'\''"), plain(directory));
    let mut text =
        "# Written by `wherry ssh`. Include it in ~/.ssh/config, or name it with ssh -F.\n".to_owned();
    let mut host = |pattern: &str, how: &str| {
        // Writing to a String cannot fail.
        write!(
            text,
            "\nHost {pattern}\n{how}    User {OWN_USER}\n    HostKeyAlias {DOMAIN}\n    \
             UserKnownHostsFile \"{directory}/known_hosts\"\n    StrictHostKeyChecking yes\n    \
             IdentityFile \"{directory}/login_key\"\n    IdentitiesOnly yes\n    \
             PreferredAuthentications publickey\n"
        )
        .unwrap_or_default();
    };
    host(HOST, "    HostName 127.0.0.1\n");
    for name in locations {
        let how = format!("    ProxyCommand '{shell}' --location {name} ssh --stdio %n\n");
        host(&format!("*.{name}.{DOMAIN}"), &how);
    }
    text
}

/// A key that is made once. Of several programs that begin at the same time the first one's counts.
fn kept_key(path: &Path) -> Result<PrivateKey, StoreError> {
    let damaged = |error: &dyn std::fmt::Display| StoreError::Damaged {
        path: path.to_owned(),
        reason: format!("{error}: remove it, and a new one is made"),
    };
    if let Some(text) = read_secret(path)? {
        return PrivateKey::from_openssh(&text).map_err(|error| damaged(&error));
    }
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| damaged(&error))?;
    let key =
        PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), DOMAIN).map_err(|error| damaged(&error))?;
    let text = key.to_openssh(LineEnding::LF).map_err(|error| damaged(&error))?;
    create_secret(path, &text)?;
    let text = read_secret(path)?.ok_or_else(|| damaged(&"it is gone"))?;
    PrivateKey::from_openssh(&text).map_err(|error| damaged(&error))
}

/// Public keys in a directory; what is none is passed over, as ssh(1) does.
fn own_keys(directory: &Path) -> Vec<PublicKey> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let paths =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pub"));
    paths.take(MAX_OWN_KEYS).filter_map(|path| public_key(&path).ok().flatten()).collect()
}

fn public_key(path: &Path) -> io::Result<Option<PublicKey>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_PUBLIC_KEY_BYTES {
        return Ok(None);
    }
    Ok(PublicKey::from_openssh(&fs::read_to_string(path)?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_made_once_and_kept_from_others() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::at(base.path().join("wherry"));
        let first = SshKeys::load(&config, None).unwrap();
        let again = SshKeys::load(&config, Some(base.path())).unwrap();
        assert_eq!(first.host.public_key(), again.host.public_key());
        assert_eq!(first.allowed, again.allowed);
        assert!(!first.allow(first.host.public_key()));
        for name in ["host_key", "login_key"] {
            let path = config.root().join("ssh").join(name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let text = fs::read_to_string(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let error = SshKeys::load(&config, None).unwrap_err().to_string();
            assert!(error.contains("others can read it"), "{error}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, "nonsense").unwrap();
            let error = SshKeys::load(&config, None).unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains("a new one is made"), "{error}");
            fs::write(&path, text).unwrap();
        }
    }

    #[test]
    fn the_user_s_own_keys_may_log_in() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::at(base.path().join("wherry"));
        let mine = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        fs::create_dir(base.path().join(".ssh")).unwrap();
        let write = |name: &str, text: &str| fs::write(base.path().join(".ssh").join(name), text).unwrap();
        write("id_ed25519.pub", &mine.public_key().to_openssh().unwrap());
        write("nonsense.pub", "ssh-ed25519 nonsense");
        write("huge.pub", &"x".repeat(100_000));
        write("id_ed25519", "not looked at");
        let keys = SshKeys::load(&config, Some(base.path())).unwrap();
        assert_eq!(keys.allowed.len(), 2);
        assert!(keys.allow(mine.public_key()));
        assert!(!keys.allow(PrivateKey::from(Ed25519Keypair::from_seed(&[8; 32])).public_key()));
    }

    #[test]
    fn hosts_of_the_configuration_lead_back_to_containers() {
        let demo: Name = "demo".parse().unwrap();
        for (host, name) in [
            ("web.demo.wherry", "web"),
            ("web", "web"),
            ("c12.demo.wherry", "c12"),
            ("web.other.wherry", "web.other.wherry"),
            ("webdemo.wherry", "webdemo.wherry"),
        ] {
            assert_eq!(container_of(host, &demo), name);
        }
        let text = config_text("/opt/it's 100%/wherry", "/home/ada/.config/wherry/ssh", &[demo]);
        assert!(text.contains("\nHost *.demo.wherry\n"), "{text}");
        assert!(text.contains("ProxyCommand '/opt/it'\\''s 100%%/wherry' --location demo ssh --stdio %n\n"));
        assert_eq!(text.matches("StrictHostKeyChecking yes").count(), 2);
    }
}
