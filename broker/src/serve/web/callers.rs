//! Containers that ask the web endpoint: a stream of their board's session, which says who they are.
//!
//! Each becomes a connection to the endpoint over the loopback interface, from an address that stands for the container: so
//! the engine bounds and serves them as it does everybody, and knows by the address who it is.
use super::super::user::finish;
use crate::serve::Shared;
use crate::serve::route::BUFFER_BYTES;
use crate::state::{Answer, Input, SessionId};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_endpoint::Identity;
use wherry_protocol::io::{SessionError, Stream, send};
use wherry_protocol::message::Reply;
use wherry_protocol::{ContainerId, ErrorCode, WireError};

/// Addresses that stand for containers: a quarter of the loopback network, where nothing else of a broker is.
const STANDS_FOR: u32 = 0x7f40_0000;
const STANDS_FOR_BITS: u32 = 22;
/// Connections of containers at once.
const AT_ONCE: usize = 1024;

/// Who comes from which address, while they are connected.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<HashMap<SocketAddr, Identity>>);

/// One of them; forgotten when dropped.
struct Known {
    callers: Arc<Callers>,
    at: SocketAddr,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.callers.lock().remove(&self.at);
    }
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Identity>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who it is that has connected from `address`.
    pub(super) fn identify(&self, address: SocketAddr) -> Option<Identity> {
        self.lock().get(&SocketAddr::new(address.ip().to_canonical(), address.port())).copied()
    }

    /// Known before it is connected, so that the endpoint never takes it for somebody else.
    fn admit(self: &Arc<Self>, at: SocketAddr, who: Identity) -> Option<Known> {
        let mut known = self.lock();
        if known.len() >= AT_ONCE {
            return None;
        }
        known.insert(at, who);
        Some(Known { callers: Arc::clone(self), at })
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
    let (mut endpoint, _known) = match connect(shared, container, tls).await {
        Ok(Some(connected)) => connected,
        Ok(None) => return finish(stream, busy("too many containers ask the web endpoint".into())).await,
        Err(error) => return finish(stream, busy(format!("the web endpoint: {error}"))).await,
    };
    send(&mut stream, &Reply::Done).await?;
    let mut stream = stream.compat();
    copy_bidirectional_with_sizes(&mut stream, &mut endpoint, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

async fn connect(
    shared: &Shared,
    container: ContainerId,
    tls: bool,
) -> io::Result<Option<(TcpStream, Known)>> {
    let address = shared.core.web().borrow().callers.get(&container).map(|client| client.address);
    // It was named a moment ago.
    let Some(address) = address else { return Ok(None) };
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(stands_for(container).into(), 0))?;
    let who = Identity { container: container.0, address: address.into() };
    let Some(known) = shared.web.callers.admit(socket.local_addr()?, who) else { return Ok(None) };
    let port = if tls { shared.web.https } else { shared.web.http };
    let at = match shared.publish_address {
        IpAddr::V4(address) if !address.is_unspecified() => address,
        IpAddr::V4(_) | IpAddr::V6(_) => Ipv4Addr::LOCALHOST,
    };
    Ok(Some((socket.connect(SocketAddr::new(at.into(), port)).await?, known)))
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
        let known = callers.admit(at, who).unwrap();
        assert_eq!(callers.identify(at), Some(who));
        assert_eq!(callers.identify("[::ffff:127.64.0.1]:4711".parse().unwrap()), Some(who));
        assert_eq!(callers.identify("127.64.0.1:4712".parse().unwrap()), None);
        drop(known);
        assert_eq!(callers.identify(at), None);
    }
}
