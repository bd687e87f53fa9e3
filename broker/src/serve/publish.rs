//! Published ports: ports of the broker that lead into containers.
//!
//! ```text
//! tcp   connections, each a stream to the container's board
//! udp   datagrams, a stream for each sender
//! ```
mod tcp;
mod udp;

use super::{Shared, route};
use crate::state::{Answer, Input, PublishedPorts, RequestId};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use wherry_protocol::io::{SessionError, Stream, recv};
use wherry_protocol::message::{PublishedOn, PublishedPort, Reply, Transport};
use wherry_protocol::{ErrorCode, Limits, WireError};

/// Time between attempts to listen on a port that something else on the broker has.
const RETRY: Duration = Duration::from_secs(5);

/// Checks before a container is made that its ports can be listened on at all.
pub(crate) async fn try_ports(shared: &Shared, ports: &[PublishedPort]) -> Result<(), WireError> {
    let ours = shared.core.published().borrow().clone();
    let new = |port: &&PublishedPort| {
        port.on == PublishedOn::Broker && port.port != 0 && !ours.contains_key(&port.key())
    };
    for published in ports.iter().filter(new) {
        let at = (shared.publish_address, published.port);
        let tried = match published.transport {
            Transport::Tcp => TcpListener::bind(at).await.map(drop),
            Transport::Udp => UdpSocket::bind(at).await.map(drop),
        };
        if let Err(error) = tried {
            let text = format!("port {} of the broker cannot be published: {error}", published.port);
            return Err(WireError::new(ErrorCode::AlreadyExists, text));
        }
    }
    Ok(())
}

/// Keeps one listener for each port that the state wants published.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut wanted = shared.core.published();
    let mut listeners = JoinSet::new();
    let mut open: HashMap<(Transport, u16), (PublishedPort, AbortHandle)> = HashMap::new();
    loop {
        let ports: PublishedPorts = wanted.borrow_and_update().clone();
        open.retain(|key, (port, listener)| {
            let keep = ports.get(key) == Some(port);
            if !keep {
                listener.abort();
            }
            keep
        });
        for (key, port) in ports {
            open.entry(key).or_insert_with(|| {
                let listener = listeners.spawn(listen(Arc::clone(&shared), port.clone()));
                (port, listener)
            });
        }
        tokio::select! {
            () = shared.end.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
        // Those that were aborted; a listener does not end by itself.
        while listeners.try_join_next().is_some() {}
    }
}

async fn listen(shared: Arc<Shared>, port: PublishedPort) {
    let at = SocketAddr::new(shared.publish_address, port.port);
    loop {
        if let Err(error) = serve(&shared, at, &port).await {
            tracing::error!("cannot listen on the published port {}: {error}", port.port);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Until the socket fails.
async fn serve(shared: &Arc<Shared>, at: SocketAddr, port: &PublishedPort) -> std::io::Result<()> {
    match port.transport {
        Transport::Tcp => tcp::serve(shared, &TcpListener::bind(at).await?, port).await,
        Transport::Udp => udp::serve(shared, UdpSocket::bind(at).await?, port).await,
    }
    Ok(())
}

/// A stream to the container that `visit` is about, and its place among its account's.
pub(super) async fn open(
    shared: &Shared,
    routes: &route::Routes,
    visit: impl FnOnce(RequestId) -> Input,
) -> Result<(Stream, route::Place), SessionError> {
    let answer = shared.core.ask(visit).await;
    let (session, routed) = match answer {
        Some(Answer::Route { session, routed }) => (session, routed),
        Some(Answer::Reply(Reply::Error(error))) => return Err(SessionError::Refused(error)),
        Some(
            Answer::Reply(_) | Answer::Session(_) | Answer::Enrol(_) | Answer::Blob(_) | Answer::Lookup(_),
        )
        | None => {
            return Err(SessionError::Closed);
        }
    };
    let (mut stream, place) =
        route::open(shared, routes, session, &routed).await.map_err(SessionError::Refused)?;
    match recv::<Reply>(&mut stream, Limits::DEFAULT.message_bytes).await? {
        Some(Reply::Done) => Ok((stream, place)),
        Some(Reply::Error(error)) => Err(SessionError::Refused(error)),
        Some(_) | None => Err(SessionError::Closed),
    }
}

/// Who is not let in hears nothing.
fn admitted(port: &PublishedPort, from: IpAddr) -> bool {
    let admitted = port.admits(from);
    if !admitted {
        tracing::debug!("{from} may not connect to the published port {}", port.port);
    }
    admitted
}
