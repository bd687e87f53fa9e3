//! A SOCKS5 proxy (RFC 1928) into the cluster: programs of this computer name a container and a port, and get there.
//!
//! Connections are streams of the session, as those of a tunnel: there is no second TCP on this computer, no device and no
//! root (docs/decisions/0020).
use super::{Carried, TunnelEvent, accept, listen, patiently, splice};
use crate::container::{Container, selector};
use crate::error::ClientError;
use crate::location::Location;
use fast_socks5::server::Socks5ServerProtocol;
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use wherry_protocol::io::Stream;
use wherry_protocol::message::{ContainerInfo, ContainerSelector, ContainerState};
use wherry_protocol::{ContainerId, ErrorCode};

/// The cluster's domain.
const DOMAIN: &str = ".wherry";
/// Time for a program to say where it wants to go.
const GREETING: Duration = Duration::from_secs(10);
/// What is said about our end of a connection: nothing of use (RFC 1928 §6 wants an address).
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A listening port of this computer.
#[derive(Debug)]
pub struct Proxy {
    listener: TcpListener,
    address: SocketAddr,
    location: Location,
}

impl Proxy {
    /// Listens on `address` (port 0: any free one).
    pub async fn bind(address: SocketAddr, location: Location) -> Result<Self, ClientError> {
        let (listener, address) = listen(address).await?;
        Ok(Self { listener, address, location })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until it is dropped.
    pub async fn run(self, report: impl Fn(TunnelEvent) + Send + Sync + 'static) {
        let location = self.location;
        let serve = move |socket| serve(socket, location.clone());
        accept(self.listener, serve, Arc::new(report)).await;
    }
}

async fn serve(socket: TcpStream, location: Location) -> Result<Carried, ClientError> {
    let greeting = async { Socks5ServerProtocol::accept_no_auth(socket).await?.read_command().await };
    let greeted = timeout(GREETING, greeting).await.map_err(|_| proxy("it said nothing for 10 s"))?;
    let (asked, command, target) = greeted.map_err(|error| proxy(&error.to_string()))?;
    let opened = match command {
        Socks5Command::TCPConnect => open(&location, &target).await,
        Socks5Command::TCPBind | Socks5Command::UDPAssociate => {
            asked.reply_error(&ReplyError::CommandNotSupported).await.ok();
            return Err(proxy("only CONNECT is supported; use `wherry tunnel` for UDP"));
        }
    };
    match opened {
        Ok((container, stream)) => {
            let socket = asked.reply_success(NOWHERE).await.map_err(|error| proxy(&error.to_string()))?;
            splice(socket, &container, stream).await
        }
        Err(error) => {
            // Whoever asked may have gone.
            asked.reply_error(&reply_to(&error)).await.ok();
            Err(error)
        }
    }
}

fn proxy(text: &str) -> ClientError {
    ClientError::Proxy(text.to_owned())
}

/// RFC 1928 §6.
fn reply_to(error: &ClientError) -> ReplyError {
    match error.code() {
        Some(ErrorCode::NotFound) => ReplyError::HostUnreachable,
        Some(ErrorCode::WrongState) => ReplyError::ConnectionRefused,
        Some(ErrorCode::Forbidden) => ReplyError::ConnectionNotAllowed,
        _ if matches!(error, ClientError::Elsewhere(_)) => ReplyError::ConnectionNotAllowed,
        _ => ReplyError::NetworkUnreachable,
    }
}

async fn open(location: &Location, target: &TargetAddr) -> Result<(Container, Stream), ClientError> {
    let (host, port) = match target {
        TargetAddr::Ip(address) => (address.ip().to_string(), address.port()),
        TargetAddr::Domain(host, port) => (host.trim_end_matches('.').to_ascii_lowercase(), *port),
    };
    let elsewhere = || ClientError::Elsewhere(host.chars().take(80).collect());
    let name = short(&host, location.info().label.as_str()).ok_or_else(elsewhere)?;
    if let Ok(selector) = selector(name) {
        let container = location.container(selector);
        match patiently(|| container.open_port(port)).await {
            // It may be a service's name, or an address.
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
            result => return result.map(|stream| (container, stream)),
        }
    }
    let all = patiently(|| location.containers(false)).await?;
    let id = choose(&all, name).ok_or_else(elsewhere)?;
    let container = location.container(ContainerSelector::Id(id));
    let stream = patiently(|| container.open_port(port)).await?;
    Ok((container, stream))
}

/// What is left of a name without the cluster's domain; `None` for somebody else's.
fn short<'a>(host: &'a str, account: &str) -> Option<&'a str> {
    let Some(inside) = host.strip_suffix(DOMAIN) else { return Some(host) };
    inside.strip_suffix(account)?.strip_suffix('.').filter(|name| !name.is_empty())
}

/// The container at this address, or one of those that run for the service of this name.
fn choose(all: &[ContainerInfo], name: &str) -> Option<ContainerId> {
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return all.iter().find(|info| info.address == address).map(|info| info.id);
    }
    let serves = |info: &&ContainerInfo| {
        let runs = matches!(info.state, ContainerState::Running { .. }) && info.node_connected;
        runs && info.spec.service().is_some_and(|service| service.as_str() == name)
    };
    let serving: Vec<_> = all.iter().filter(serves).collect();
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap_or_default();
    let turn = u64::from_le_bytes(random) as usize;
    serving.get(turn.checked_rem(serving.len())?).map(|info| info.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_for_their_own_account_only() {
        for (host, expected) in [
            ("web", Some("web")),
            ("web.ada.wherry", Some("web")),
            ("a.b.ada.wherry", Some("a.b")),
            ("web.bob.wherry", None),
            ("ada.wherry", None),
            (".ada.wherry", None),
            ("webada.wherry", None),
            ("10.1.0.2", Some("10.1.0.2")),
            ("example.org", Some("example.org")),
        ] {
            assert_eq!(short(host, "ada"), expected, "{host}");
        }
    }
}
