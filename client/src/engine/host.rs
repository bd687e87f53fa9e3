//! Where Docker's engine listens, found as the `docker` command finds it.
use super::EngineError;
use crate::http::Endpoint;
use crate::http::url::Url;
use serde::Deserialize;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use wherry_protocol::Digest;
use wherry_protocol::text::shown;

/// Where it listens if nothing is said.
const USUAL: &str = "/var/run/docker.sock";
/// Largest file of Docker's configuration, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    current_context: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Context {
    endpoints: std::collections::BTreeMap<String, ContextEndpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContextEndpoint {
    host: Option<String>,
}

/// `DOCKER_HOST`; else the context that `DOCKER_CONTEXT` or `docker context use` has chosen; else the usual socket, or that
/// of an engine without root.
pub(super) fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Endpoint, EngineError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
    if let Some(host) = text("DOCKER_HOST") {
        return endpoint(&host);
    }
    let home = set("HOME").map(PathBuf::from);
    let directory =
        set("DOCKER_CONFIG").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(".docker")));
    if let Some(directory) = &directory {
        let context = match text("DOCKER_CONTEXT") {
            Some(context) => Some(context),
            None => read::<Config>(&directory.join("config.json"))?.and_then(|config| config.current_context),
        };
        if let Some(context) = context.filter(|context| !matches!(context.as_str(), "" | "default")) {
            return of_context(directory, &context);
        }
    }
    let runtime = set("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("docker.sock"));
    let desktop = home.map(|home| home.join(".docker/run/docker.sock"));
    let candidates = [Some(PathBuf::from(USUAL)), runtime, desktop];
    let found = candidates.into_iter().flatten().find(|path| path.exists());
    Ok(Endpoint::Unix(found.unwrap_or_else(|| USUAL.into())))
}

/// A context's directory is the SHA-256 of its name (docker/cli, `cli/context/store`).
fn of_context(directory: &Path, name: &str) -> Result<Endpoint, EngineError> {
    let path = directory.join("contexts/meta").join(Digest::of(name.as_bytes()).hex()).join("meta.json");
    let wrong = |reason| EngineError::Context { path: path.clone(), reason };
    let context: Context = read(&path)?.ok_or_else(|| wrong("is not there, but the context is in use"))?;
    let host = context.endpoints.get("docker").and_then(|endpoint| endpoint.host.clone());
    endpoint(&host.ok_or_else(|| wrong("names no host"))?)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    let wrong = |reason| EngineError::Context { path: path.to_owned(), reason };
    let Ok(file) = std::fs::File::open(path) else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|_| wrong("cannot be read"))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| wrong("cannot be understood"))
}

/// `unix:///var/run/docker.sock` or `tcp://127.0.0.1:2375`. Plain TCP leads nowhere but to this computer.
fn endpoint(host: &str) -> Result<Endpoint, EngineError> {
    let unreachable = || EngineError::Way(shown(host, 200));
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Endpoint::Unix(path.into()));
    }
    let address =
        host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://")).ok_or_else(unreachable)?;
    let mut origin = Url::parse(&format!("http://{address}")).ok_or_else(unreachable)?.origin;
    if !address.trim_end_matches('/').ends_with(&format!(":{}", origin.port)) {
        origin.port = 2375;
    }
    if origin.is_loopback() { Ok(Endpoint::Net(origin)) } else { Err(unreachable()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_with(set: &[(&str, &str)]) -> Result<String, String> {
        let lookup = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        find(lookup).map(|endpoint| endpoint.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_comes_first() {
        assert_eq!(find_with(&[("DOCKER_HOST", "unix:///run/x.sock")]).unwrap(), "/run/x.sock");
        assert_eq!(find_with(&[("DOCKER_HOST", "tcp://127.0.0.1:99")]).unwrap(), "127.0.0.1 port 99");
        assert_eq!(find_with(&[("DOCKER_HOST", "tcp://localhost")]).unwrap(), "localhost port 2375");
        for far in
            ["tcp://10.0.0.1:2375", "ssh://ada@shed", "npipe:////./pipe/x", "nonsense", "tcp://a@127.0.0.1"]
        {
            assert!(
                find_with(&[("DOCKER_HOST", far)]).unwrap_err().contains("save the image to a file"),
                "{far}"
            );
        }
    }

    #[test]
    fn then_the_context_in_use() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let meta = docker.join("contexts/meta").join(Digest::of(b"desktop").hex());
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(docker.join("config.json"), r#"{"currentContext": "desktop"}"#).unwrap();
        let home = home.path().to_str().unwrap();
        assert!(
            find_with(&[("HOME", home)]).unwrap_err().contains("is not there, but the context is in use")
        );
        let context = r#"{"Name": "desktop", "Endpoints": {"docker": {"Host": "unix:///run/desktop.sock"}}}"#;
        std::fs::write(meta.join("meta.json"), context).unwrap();
        assert_eq!(find_with(&[("HOME", home)]).unwrap(), "/run/desktop.sock");
        assert!(
            find_with(&[("HOME", home), ("DOCKER_CONTEXT", "default")]).unwrap().ends_with("docker.sock")
        );
        std::fs::write(meta.join("meta.json"), "{}").unwrap();
        assert!(find_with(&[("HOME", home)]).unwrap_err().contains("cannot be understood"));
    }

    #[test]
    fn then_the_usual_socket() {
        assert_eq!(find_with(&[("HOME", "/nowhere")]).unwrap(), USUAL);
    }
}
