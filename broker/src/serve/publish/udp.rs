//! Datagrams: each sender has a stream of its own for as long as something comes or goes.
use super::{admitted, open};
use crate::serve::Shared;
use crate::state::Input;
use futures_util::AsyncReadExt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wherry_protocol::io::{MAX_DATAGRAM_BYTES, SessionError, recv_datagram, send_datagram};
use wherry_protocol::message::PublishedPort;

/// After so long without a datagram either way a sender is forgotten, as connection tracking does
/// (nf_conntrack_udp_timeout_stream).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams of one sender that wait for their stream; what comes beyond is lost, as on any full link.
const QUEUE: usize = 32;

/// Serves until the socket fails.
pub(super) async fn serve(shared: &Arc<Shared>, socket: UdpSocket, port: &PublishedPort) {
    let socket = Arc::new(socket);
    let mut senders: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut flows: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            Some(ended) = flows.join_next() => {
                if let Ok(from) = ended {
                    senders.remove(&from);
                }
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok(received) => received,
            // Of an earlier answer that did not arrive.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let datagram = buffer.get(..length).unwrap_or_default().to_vec();
        if let Some(sender) = senders.get(&from) {
            sender.try_send(datagram).ok();
            continue;
        }
        if !admitted(port, from.ip()) || senders.len() >= shared.limits.visitors_per_port {
            continue;
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        sender.try_send(datagram).ok();
        senders.insert(from, sender);
        let (shared, socket, port) = (Arc::clone(shared), Arc::clone(&socket), port.clone());
        flows.spawn(async move {
            if let Err(error) = flow(&shared, &socket, from, &port, queue).await {
                tracing::debug!("datagrams to the published port {} came to nothing: {error}", port.port);
            }
            from
        });
    }
}

async fn flow(
    shared: &Shared,
    socket: &UdpSocket,
    from: SocketAddr,
    port: &PublishedPort,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> Result<(), SessionError> {
    let (stream, _place) =
        open(shared, &shared.routes, |request| Input::Visit { request, port: port.key() }).await?;
    let (mut reader, mut writer) = stream.split();
    let (heard, mut hearing) = mpsc::channel::<()>(1);
    // One future from beginning to end, for a datagram must not be left half read when something else happens first.
    let back = async move {
        let mut datagram = Vec::new();
        while recv_datagram(&mut reader, &mut datagram).await? {
            socket.send_to(&datagram, from).await.ok();
            heard.try_send(()).ok();
        }
        Ok::<(), SessionError>(())
    };
    let towards = async {
        loop {
            let next = async {
                tokio::select! {
                    Some(datagram) = queue.recv() => Some(datagram),
                    Some(()) = hearing.recv() => None,
                }
            };
            match timeout(IDLE, next).await {
                Err(_) => return Ok(()),
                Ok(Some(datagram)) => send_datagram(&mut writer, &datagram).await?,
                // Something came back.
                Ok(None) => {}
            }
        }
    };
    tokio::select! {
        ended = back => ended,
        ended = towards => ended,
    }
}
