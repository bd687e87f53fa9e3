//! A token service (distribution's "Token Authentication Specification"): signs for those who know the password.
use super::{Authority, PASSWORD, USER, program, write};
use crate::failure::Failure;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// As the registry names itself to the service.
pub(super) const SERVICE: &str = "the-registry";
/// As the service names itself in its tokens.
pub(super) const ISSUER: &str = "the-tests";
/// How long a token is good, in seconds.
const LIFETIME: u64 = 300;

/// The service, on a port of this computer, for as long as this process lives.
#[derive(Debug)]
pub struct TokenService {
    port: u16,
    scopes: Arc<Mutex<Vec<String>>>,
}

/// What is needed to sign.
struct Signer {
    key: PathBuf,
    certificate: String,
    directory: PathBuf,
}

impl TokenService {
    /// Starts one that signs with the key of `authority`'s certificate.
    pub fn start(authority: &Authority, directory: &Path) -> Result<Self, Failure> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Failure::io("open a port for tokens"))?;
        let port = listener.local_addr().map_err(Failure::io("open a port for tokens"))?.port();
        let pem = authority.certificate().display().to_string();
        let certificate =
            BASE64.encode(&program("openssl", &["x509", "-in", &pem, "-outform", "DER"], None)?);
        let signer = Signer { key: authority.key(), certificate, directory: directory.to_owned() };
        let scopes = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&scopes);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever does not get an answer says so.
                drop(answer(&stream, &signer, &log));
            }
        });
        Ok(Self { port, scopes })
    }

    /// Where tokens are had.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// What was asked for so far, by those who gave the right password.
    #[must_use]
    pub fn scopes(&self) -> Vec<String> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(mut stream: &TcpStream, signer: &Signer, log: &Mutex<Vec<String>>) -> Result<(), Failure> {
    let failed = || Failure::io("talk to whoever wants a token");
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose().map_err(failed())?.unwrap_or_default();
    let mut known = false;
    let login = format!("authorization: basic {}", BASE64.encode(format!("{USER}:{PASSWORD}").as_bytes()));
    for line in lines {
        let line = line.map_err(failed())?;
        if line.is_empty() {
            break;
        }
        known |= line.len() == login.len() && line.eq_ignore_ascii_case(&login);
    }
    let path = first.split_whitespace().nth(1).unwrap_or_default();
    let (status, body) = match known {
        true => {
            let scope = parameter(path, "scope");
            log.lock().unwrap_or_else(PoisonError::into_inner).push(scope.clone());
            ("200 OK", json!({"token": signer.token(&scope)?}))
        }
        false => ("401 Unauthorized", json!({"details": "who are you?"})),
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .map_err(failed())
}

/// A parameter of a query, in which nothing but colons and slashes is escaped.
fn parameter(path: &str, name: &str) -> String {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let found = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
    found.map_or("", |(_, value)| value).replace("%3A", ":").replace("%2F", "/")
}

impl Signer {
    /// A JSON Web Token (RFC 7519) that gives what `scope`, `repository:NAME:ACTIONS`, asks for.
    fn token(&self, scope: &str) -> Result<String, Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut parts = scope.splitn(3, ':');
        let mut part = || parts.next().unwrap_or_default();
        let access =
            json!({"type": part(), "name": part(), "actions": part().split(',').collect::<Vec<_>>()});
        let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({"iss": ISSUER, "sub": USER, "aud": SERVICE, "iat": now, "nbf": now.saturating_sub(10),
            "exp": now + LIFETIME, "jti": "1", "access": [access]});
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&head), encode(&claims));
        let file = self.directory.join("to-sign");
        write(&file, &signed)?;
        let key = self.key.display().to_string();
        let signature = program("openssl", &["dgst", "-sha256", "-sign", &key], Some(file))?;
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found() {
        let path = "/token?service=a&scope=repository%3Atools%2Fclient%3Apull";
        assert_eq!(parameter(path, "scope"), "repository:tools/client:pull");
        assert_eq!(parameter("/token", "scope"), "");
    }
}
