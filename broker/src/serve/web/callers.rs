//! Containers that ask the web endpoint: a stream of their board's session, which says who they are.
//!
//! Each becomes a connection to the endpoint over the loopback interface, from an address that stands for the container: so
//! the engine bounds and serves them as it does everybody, and knows by the address who it is.
use super::super::user::finish;
use crate::serve::Shared;
use crate::state::{Answer, Input, SessionId};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_endpoint::{Identity, Who};
use wherry_net::join::{Patience, join};
use wherry_protocol::io::{SessionError, Stream, send};
use wherry_protocol::message::Reply;
use wherry_protocol::{AccountId, ContainerId, ErrorCode, WireError};

/// Addresses that stand for containers, 127.64.0.0/10: a quarter of the loopback network, where nothing else of a broker is.
const STANDS_FOR: u32 = 0x7f40_0000;
const STANDS_FOR_BITS: u32 = 22;
/// Connections of containers at once, and of those of one account.
const AT_ONCE: usize = 1024;
const PER_ACCOUNT: usize = 256;

/// Who comes from which address, while they are connected.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<Everybody>);

#[derive(Debug, Default)]
struct Everybody {
    known: HashMap<SocketAddr, Identity>,
    /// Those of each account.
    accounts: HashMap<AccountId, usize>,
}

/// One of them; forgotten when dropped.
struct Known {
    callers: Arc<Callers>,
    at: SocketAddr,
    account: AccountId,
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut everybody = self.callers.lock();
        everybody.known.remove(&self.at);
        if let Some(count) = everybody.accounts.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                everybody.accounts.remove(&self.account);
            }
        }
    }
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, Everybody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who it is that has connected from `address`.
    pub(super) fn identify(&self, address: SocketAddr) -> Who {
        let ip = address.ip().to_canonical();
        match self.lock().known.get(&SocketAddr::new(ip, address.port())) {
            Some(identity) => Who::Container(*identity),
            // It was one of them a moment ago, or is a program on the broker: neither is somebody from outside.
            None if is_reserved(ip) => Who::Unknown,
            None => Who::Client,
        }
    }

    /// Known before it is connected, so that the endpoint never takes it for somebody else.
    fn admit(self: &Arc<Self>, at: SocketAddr, who: Identity, account: AccountId) -> Option<Known> {
        let mut everybody = self.lock();
        let of_account = everybody.accounts.get(&account).copied().unwrap_or_default();
        if everybody.known.len() >= AT_ONCE || of_account >= PER_ACCOUNT {
            return None;
        }
        everybody.known.insert(at, who);
        everybody.accounts.insert(account, of_account + 1);
        Some(Known { callers: Arc::clone(self), at, account })
    }
}

/// Whether an address stands for a container, known or not.
fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.to_bits() >> STANDS_FOR_BITS == STANDS_FOR >> STANDS_FOR_BITS,
        IpAddr::V6(_) => false,
    }
}

/// Connections of one container have one address, which is what the endpoint's bound per client counts.
fn stands_for(container: ContainerId) -> Ipv4Addr {
    let low = u32::try_from(container.0 % (1 << STANDS_FOR_BITS)).unwrap_or_default();
    Ipv4Addr::from_bits(STANDS_FOR | low)
}

/// Serves a container's connection.
pub(crate) async fn call(
    shared: &Shared,
    session: SessionId,
    mut stream: Stream,
    (container, tls): (ContainerId, bool),
) -> Result<(), SessionError> {
    let asked = |request| Input::CallWeb { request, session, container };
    match shared.core.ask(asked).await {
        Some(Answer::Reply(Reply::Done)) => {}
        Some(Answer::Reply(other)) => return finish(stream, other).await,
        Some(
            Answer::Route { .. }
            | Answer::Session(_)
            | Answer::Enrol(_)
            | Answer::Blob(_)
            | Answer::Lookup(_),
        )
        | None => return Ok(()),
    }
    let busy = |text: String| Reply::Error(WireError::new(ErrorCode::Busy, text));
    // In this order: who it is must be known for longer than the socket is there.
    let (_known, endpoint) = match connect(shared, container, tls).await {
        Ok(Some(connected)) => connected,
        Ok(None) => return finish(stream, busy("too many containers ask the web endpoint".into())).await,
        Err(error) => return finish(stream, busy(format!("the web endpoint: {error}"))).await,
    };
    send(&mut stream, &Reply::Done).await?;
    Ok(join(stream.compat(), endpoint, Patience::WEB).await?)
}

async fn connect(
    shared: &Shared,
    container: ContainerId,
    tls: bool,
) -> io::Result<Option<(Known, TcpStream)>> {
    let client =
        shared.core.web().borrow().callers.get(&container).map(|client| (client.account, client.address));
    // It was named a moment ago.
    let Some((account, address)) = client else { return Ok(None) };
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(stands_for(container).into(), 0))?;
    let who = Identity { container: container.0, address: address.into() };
    let Some(known) = shared.web.callers.admit(socket.local_addr()?, who, account) else { return Ok(None) };
    let port = if tls { shared.web.https } else { shared.web.http };
    let at = match shared.publish_address {
        IpAddr::V4(address) if !address.is_unspecified() => address,
        IpAddr::V4(_) | IpAddr::V6(_) => Ipv4Addr::LOCALHOST,
    };
    Ok(Some((known, socket.connect(SocketAddr::new(at.into(), port)).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_for_containers_within_the_loopback_network() {
        assert_eq!(stands_for(ContainerId(1)), Ipv4Addr::new(127, 64, 0, 1));
        assert!(stands_for(ContainerId(u64::MAX)).is_loopback());
        assert_eq!(stands_for(ContainerId(u64::MAX)), Ipv4Addr::new(127, 127, 255, 255));
    }

    #[test]
    fn who_has_left_is_nobody() {
        let callers = Arc::new(Callers::default());
        let at: SocketAddr = "127.64.0.1:4711".parse().unwrap();
        let who = Identity { container: 1, address: "10.1.0.2".parse().unwrap() };
        let known = callers.admit(at, who, AccountId(1)).unwrap();
        assert_eq!(callers.identify(at), Who::Container(who));
        assert_eq!(callers.identify("[::ffff:127.64.0.1]:4711".parse().unwrap()), Who::Container(who));
        for nobody in ["127.64.0.1:4712", "127.127.255.255:1", "[::ffff:127.64.0.1]:4712"] {
            assert_eq!(callers.identify(nobody.parse().unwrap()), Who::Unknown, "{nobody}");
        }
        for client in ["127.0.0.1:4711", "127.128.0.1:4711", "192.0.2.1:4711", "[::1]:4711"] {
            assert_eq!(callers.identify(client.parse().unwrap()), Who::Client, "{client}");
        }
        drop(known);
        assert_eq!(callers.identify(at), Who::Unknown);
        assert!(callers.lock().accounts.is_empty());
    }

    #[test]
    fn one_account_cannot_have_all_places() {
        let callers = Arc::new(Callers::default());
        let who = Identity { container: 1, address: "10.1.0.2".parse().unwrap() };
        let admit =
            |port, account| callers.admit(SocketAddr::from(([127, 64, 0, 1], port)), who, AccountId(account));
        let mut places: Vec<_> = (0..300).filter_map(|port| admit(port, 1)).collect();
        assert_eq!(places.len(), PER_ACCOUNT);
        assert!(admit(1000, 2).is_some());
        places.pop();
        assert!(admit(1001, 1).is_some());
    }
}
