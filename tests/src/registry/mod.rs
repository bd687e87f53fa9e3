//! A real container registry on this computer, Debian's `docker-registry`: open to all, with logins, or with tokens.
//!
//! ```text
//! tls     an authority and a certificate for 127.0.0.1    (openssl)
//! token   a token service, as the registries of the world have one
//! cut     a way to it that breaks
//! ```
mod cut;
mod tls;
mod token;

pub use cut::Cutter;
pub use tls::Authority;
pub use token::TokenService;

use crate::failure::Failure;
use crate::given;
use crate::http::free_port;
use crate::wait::until;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The one who may pull where not everybody may.
pub const USER: &str = "ada";
/// Her password.
pub const PASSWORD: &str = "secret";
/// [`USER`] and [`PASSWORD`] for the registry: bcrypt is the only form that it takes, with the fewest rounds there are.
const HTPASSWD: &str = "ada:$2b$05$wherrywherrywherrywhe.I/5VGWLS7eRxuoIwQgoSZE5SsrQq9mu\n";
const READY: Duration = Duration::from_secs(20);

/// Who may pull.
#[derive(Debug, Clone, Copy)]
pub enum Access<'a> {
    /// Everybody, over plain HTTP.
    Open,
    /// [`USER`], over TLS.
    Login(&'a Authority),
    /// Whoever brings a token of this service, over TLS.
    Token(&'a Authority, &'a TokenService),
}

/// A running registry; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    /// Starts one with its files in `directory`: several of them may share what they hold.
    pub fn start(directory: &Path, access: Access<'_>) -> Result<Self, Failure> {
        let port = free_port()?;
        let path = directory.join(format!("registry-{port}.yml"));
        write(&path, &configuration(directory, port, access)?)?;
        let log = std::fs::File::create(directory.join(format!("registry-{port}.log")));
        let log = log.map_err(Failure::file("write a log in", directory))?;
        let process = Command::new(given::registry()?)
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(Failure::io("start docker-registry"))?;
        let registry = Self { process, port };
        until("a registry's answer", READY, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.to_string())
        })?;
        Ok(registry)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn configuration(directory: &Path, port: u16, access: Access<'_>) -> Result<String, Failure> {
    let mut text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        directory.join("held").display()
    );
    let tls = |authority: &Authority| {
        let (certificate, key) = (authority.certificate(), authority.key());
        format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display())
    };
    match access {
        Access::Open => {}
        Access::Login(authority) => {
            text += &tls(authority);
            let file = directory.join("htpasswd");
            write(&file, HTPASSWD)?;
            text += &format!("auth: {{htpasswd: {{realm: wherry, path: {}}}}}\n", file.display());
        }
        Access::Token(authority, service) => {
            text += &tls(authority);
            text += &format!(
                "auth: {{token: {{realm: {}, service: {}, issuer: {}, rootcertbundle: {}}}}}\n",
                service.realm(),
                token::SERVICE,
                token::ISSUER,
                authority.root().display()
            );
        }
    }
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(Failure::file("write", path))
}

/// Runs another program to its end; gives what it printed.
fn program(name: &str, arguments: &[&str], input: Option<PathBuf>) -> Result<Vec<u8>, Failure> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    if let Some(path) = input {
        command.stdin(std::fs::File::open(&path).map_err(Failure::file("read", &path))?);
    }
    let output = command.output().map_err(Failure::io(format!("run {name}")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Failure::Unexpected(format!("`{name} {}`: {said}", arguments.join(" "))))
        }
    }
}

/// Puts an image into an open registry as `tools/client:TAG`: that of the archive for `architecture`, beside one for
/// another processor, under one index.
pub fn fill(registry: &Registry, archive: &Path, directory: &Path, tag: &str) -> Result<(), Failure> {
    let layout = directory.join("layout");
    let (source, target) =
        (format!("docker-archive:{}", archive.display()), format!("oci:{}", layout.display()));
    skopeo(&["--quiet", &source, &target])?;
    crate::oci_layout::add_platforms(&layout)?;
    let to = format!("docker://{}/tools/client:{tag}", registry.host());
    skopeo(&["--quiet", "--all", "--dest-tls-verify=false", &format!("{target}:"), &to])
}

fn skopeo(arguments: &[&str]) -> Result<(), Failure> {
    let all = [&["--insecure-policy", "copy"], arguments].concat();
    program("skopeo", &all, None).map(drop)
}
