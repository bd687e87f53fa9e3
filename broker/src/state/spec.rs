//! What a user may ask a container to be. The board checks again what only it can know.
use super::bounds::{MAX_ALLOWED_NETWORKS, MAX_LABELS, MAX_PUBLISHED, RESERVED_PORTS, RESERVED_UDP_PORTS};
use super::error;
use std::collections::BTreeSet;
use wherry_protocol::limits::MAX_ARGUMENT_BYTES;
use wherry_protocol::message::{
    ContainerSpec, CopySpec, ExecSpec, Probe, PublishedOn, PublishedPort, Transport,
};
use wherry_protocol::policy::{self, MAX_STOP_SECONDS};
use wherry_protocol::{ErrorCode, Name, Prefix, WireError};

fn invalid<T>(message: impl Into<String>) -> Result<T, WireError> {
    Err(error(ErrorCode::Invalid, message))
}

/// Checks the form of everything in `spec`.
pub(super) fn check(spec: &ContainerSpec) -> Result<(), WireError> {
    let entrypoint = spec.entrypoint.iter().flatten();
    check_arguments(entrypoint.chain(&spec.command), &spec.env)?;
    check_texts(spec)?;
    check_lists(spec)?;
    check_publish(spec)?;
    policy::check(spec).or_else(|refused| invalid(refused.to_string()))
}

/// Checks the seconds between stop signal and SIGKILL.
pub(super) fn check_grace(seconds: u16) -> Result<(), WireError> {
    if seconds > MAX_STOP_SECONDS {
        return invalid(format!("a grace of {seconds} s is too long, the limit is {MAX_STOP_SECONDS}"));
    }
    Ok(())
}

/// Checks the form of a process to start in a container.
pub(super) fn check_exec(spec: &ExecSpec) -> Result<(), WireError> {
    if spec.command.is_empty() {
        return invalid("there is no command: name a program to run");
    }
    check_arguments(spec.command.iter(), &spec.env)?;
    check_path("working directory", spec.workdir.as_deref())?;
    check_text("user", spec.user.as_deref())
}

/// Signals as Linux numbers them (signal(7)).
pub(super) fn check_signal(signal: u8) -> Result<u8, WireError> {
    if (1..=64).contains(&signal) {
        Ok(signal)
    } else {
        invalid(format!("{signal} is no signal: use 1 to 64"))
    }
}

/// A port that can be connected to.
pub(super) fn check_port(port: u16) -> Result<u16, WireError> {
    if port == 0 { invalid("a port is 1 to 65535, not 0") } else { Ok(port) }
}

/// Checks the form of a question to a container.
pub(super) fn check_probe(probe: Option<&Probe>) -> Result<(), WireError> {
    match probe {
        Some(Probe::Exec(command)) => check_arguments(command.iter(), &[])?,
        Some(Probe::Tcp { .. } | Probe::Http { .. }) | None => {}
    }
    probe.map_or(Ok(()), |probe| policy::check_probe(probe).or_else(|refused| invalid(refused.to_string())))
}

/// Checks the form of a place to copy from or to.
pub(super) fn check_copy(copy: &CopySpec) -> Result<(), WireError> {
    match copy {
        CopySpec::Out { path } | CopySpec::In { path } => check_path("path", Some(path)),
        CopySpec::Sftp { user } => check_text("user", user.as_deref()),
    }
}

fn check_arguments<'a>(
    arguments: impl Iterator<Item = &'a String>,
    env: &[(String, String)],
) -> Result<(), WireError> {
    let mut bytes = 0_usize;
    for argument in arguments {
        if argument.contains('\0') {
            return invalid("an argument contains a NUL byte");
        }
        bytes = bytes.saturating_add(argument.len() + 1);
    }
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            let shown: String = key.chars().take(40).collect();
            return invalid(format!(
                "'{shown}' cannot be an environment variable: no '=' and no NUL byte, please"
            ));
        }
        bytes = bytes.saturating_add(key.len() + value.len() + 2);
    }
    if bytes > MAX_ARGUMENT_BYTES {
        let text = format!("arguments and environment take {bytes} bytes, the limit is {MAX_ARGUMENT_BYTES}");
        return Err(error(ErrorCode::TooLarge, text));
    }
    Ok(())
}

fn check_texts(spec: &ContainerSpec) -> Result<(), WireError> {
    check_path("working directory", spec.workdir.as_deref())?;
    check_text("user", spec.user.as_deref())?;
    match &spec.hostname {
        Some(hostname) if !hostname_ok(hostname) => {
            let shown: String = hostname.chars().take(80).collect();
            invalid(format!("'{shown}' is not a host name: use 1 to 63 letters, digits and '-' (RFC 1123)"))
        }
        Some(_) | None => Ok(()),
    }
}

fn hostname_ok(text: &str) -> bool {
    (1..=Name::MAX_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !text.starts_with(['-', '.'])
}

fn check_text(what: &str, text: Option<&str>) -> Result<(), WireError> {
    match text {
        Some(text) if text.is_empty() || text.len() > 256 || text.contains(char::is_control) => {
            invalid(format!("the {what} is not usable: 1 to 256 bytes without control characters, please"))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_path(what: &str, path: Option<&str>) -> Result<(), WireError> {
    match path {
        Some(path) if !path_ok(path) => {
            let shown: String = path.chars().take(80).collect();
            invalid(format!("the {what} '{shown}' is not usable: an absolute path without '..', please"))
        }
        Some(_) | None => Ok(()),
    }
}

fn path_ok(path: &str) -> bool {
    // PATH_MAX of Linux is 4096.
    path.starts_with('/')
        && path.len() < 4096
        && !path.contains('\0')
        && path.split('/').all(|part| part != "..")
}

fn check_lists(spec: &ContainerSpec) -> Result<(), WireError> {
    if spec.labels.len() > MAX_LABELS || spec.mounts.len() > MAX_LABELS {
        return invalid(format!("more than {MAX_LABELS} labels or volumes"));
    }
    if spec.labels.iter().any(|(key, value)| key.is_empty() || key.len() + value.len() > 1024) {
        return invalid("a label has no name, or more than 1024 bytes");
    }
    for mount in &spec.mounts {
        check_path("path of a volume", Some(&mount.path))?;
    }
    let paths: BTreeSet<&str> = spec.mounts.iter().map(|mount| mount.path.as_str()).collect();
    if paths.len() != spec.mounts.len() {
        return invalid("two volumes are mounted at the same path");
    }
    Ok(())
}

fn check_publish(spec: &ContainerSpec) -> Result<(), WireError> {
    if spec.publish.len() > MAX_PUBLISHED {
        return invalid(format!("{} published ports, the limit is {MAX_PUBLISHED}", spec.publish.len()));
    }
    let mut ports = BTreeSet::new();
    for published in &spec.publish {
        if published.port == 0 || published.container_port == 0 {
            return invalid("a published port is 1 to 65535, not 0");
        }
        check_reserved(published)?;
        if !ports.insert((published.on, published.key())) {
            return invalid(format!("port {} is published twice", published.port));
        }
        check_allowed(published)?;
    }
    Ok(())
}

fn check_reserved(published: &PublishedPort) -> Result<(), WireError> {
    let port = published.port;
    match (published.transport, published.on) {
        (Transport::Tcp, PublishedOn::Broker) if RESERVED_PORTS.contains(&port) => {
            invalid(format!("port {port} is the broker's own: publish on another one"))
        }
        // DNS is for a board's own containers; to the outside the broker has none.
        (Transport::Udp, PublishedOn::Broker) if port == 53 => Ok(()),
        (Transport::Udp, _) if RESERVED_UDP_PORTS.contains(&port) => {
            invalid(format!("port {port}/udp is the boards' own: publish on another one"))
        }
        (Transport::Tcp | Transport::Udp, PublishedOn::Broker | PublishedOn::Node) => Ok(()),
    }
}

fn check_allowed(published: &PublishedPort) -> Result<(), WireError> {
    if published.allow.len() > MAX_ALLOWED_NETWORKS {
        let count = published.allow.len();
        return invalid(format!(
            "{count} networks for one published port, the limit is {MAX_ALLOWED_NETWORKS}"
        ));
    }
    if let Some(network) = published.allow.iter().find(|n| n.bits > 32 || n.network() != **n) {
        let fitting = Prefix::new(network.address, network.bits).network();
        return invalid(format!("allow={network} has an address within a network: say allow={fitting}"));
    }
    match (published.proxy, published.transport, published.on) {
        (false, _, _) | (true, Transport::Tcp, PublishedOn::Broker) => Ok(()),
        (true, Transport::Udp, _) => invalid("the PROXY protocol is for TCP: leave out proxy"),
        (true, Transport::Tcp, PublishedOn::Node) => {
            invalid("a port of a node shows who really connects: leave out proxy")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::message::{PublishedPort, VolumeMount};

    fn with(change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
        let mut spec = ContainerSpec::default();
        change(&mut spec);
        spec
    }

    fn publish(ports: &[(u16, u16)]) -> Vec<PublishedPort> {
        ports.iter().map(|&(port, container_port)| PublishedPort::tcp(port, container_port)).collect()
    }

    fn volume(path: &str) -> VolumeMount {
        VolumeMount { volume: "v".parse().unwrap(), path: path.into(), read_only: false }
    }

    #[test]
    fn usable_specs_pass() {
        for good in [
            ContainerSpec::default(),
            with(|s| s.command = vec!["sleep".into(), "1d".into()]),
            with(|s| s.env = vec![("A".into(), "b=c".into()), ("EMPTY".into(), String::new())]),
            with(|s| s.publish = publish(&[(8080, 80), (8081, 80)])),
            with(|s| s.mounts = vec![volume("/a"), volume("/b")]),
            with(|s| s.hostname = Some("web-1".into())),
            with(|s| s.workdir = Some("/srv/..data".into())),
        ] {
            assert_eq!(check(&good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn unusable_specs_are_refused() {
        for bad in [
            with(|s| s.command = vec!["a\0b".into()]),
            with(|s| s.entrypoint = Some(vec!["\0".into()])),
            with(|s| s.command = vec!["x".repeat(MAX_ARGUMENT_BYTES)]),
            with(|s| s.env = vec![("A=B".into(), "c".into())]),
            with(|s| s.env = vec![(String::new(), "c".into())]),
            with(|s| s.workdir = Some("relative".into())),
            with(|s| s.workdir = Some("/a/../b".into())),
            with(|s| s.user = Some("a\nb".into())),
            with(|s| s.hostname = Some("-web".into())),
            with(|s| s.hostname = Some("a/b".into())),
            with(|s| s.publish = publish(&[(0, 80)])),
            with(|s| s.publish = publish(&[(80, 0)])),
            with(|s| s.publish = publish(&[(2020, 80)])),
            with(|s| s.publish = publish(&[(81, 80), (81, 81)])),
            with(|s| s.publish = (1..100).map(|port| PublishedPort::tcp(3000 + port, 1)).collect()),
            with(|s| s.mounts = vec![volume("a")]),
            with(|s| s.mounts = vec![volume("/a/../../etc")]),
            with(|s| s.mounts = vec![volume("/a"), volume("/a")]),
            with(|s| s.labels = vec![("k".into(), "v".repeat(2000))]),
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn exec_needs_a_command() {
        assert!(check_exec(&ExecSpec::default()).is_err());
        assert!(check_exec(&ExecSpec { command: vec!["ls".into()], ..ExecSpec::default() }).is_ok());
    }
}
