//! Datagrams: each sender has a stream of its own for as long as something comes or goes.
use super::{admitted, open};
use crate::serve::Shared;
use crate::state::Input;
use futures_util::AsyncReadExt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wherry_protocol::io::{MAX_DATAGRAM_BYTES, SessionError, recv_datagram, send_datagram};
use wherry_protocol::message::PublishedPort;

/// After so long without a datagram either way a sender is forgotten, as connection tracking does
/// (nf_conntrack_udp_timeout_stream).
const IDLE: Duration = Duration::from_secs(120);
/// The same while nothing has come back yet (nf_conntrack_udp_timeout): its address may be made up.
const UNANSWERED: Duration = Duration::from_secs(30);
/// When all places are taken, the oldest sender that was never answered makes room, unless it is newer than this.
const GRACE: Duration = Duration::from_secs(1);
/// Datagrams of one sender that wait for their stream; what comes beyond is lost, as on any full link.
const QUEUE: usize = 32;

/// Somebody whose datagrams go to the container.
#[derive(Debug)]
struct Sender {
    queue: mpsc::Sender<Vec<u8>>,
    answered: Arc<AtomicBool>,
    since: Instant,
}

/// Room for one more: those whose flow has ended go, and if that is not enough, one that may never have been there.
fn make_room(senders: &mut HashMap<SocketAddr, Sender>, places: usize) -> bool {
    if senders.len() < places {
        return true;
    }
    senders.retain(|_, sender| !sender.queue.is_closed());
    let unanswered = senders
        .iter()
        .filter(|(_, sender)| !sender.answered.load(Ordering::Relaxed) && sender.since.elapsed() >= GRACE);
    if let Some(oldest) = unanswered.min_by_key(|(_, sender)| sender.since).map(|(from, _)| *from) {
        senders.remove(&oldest);
    }
    senders.len() < places
}

/// Serves until the socket fails.
pub(super) async fn serve(shared: &Arc<Shared>, socket: UdpSocket, port: &PublishedPort) {
    let socket = Arc::new(socket);
    let mut senders: HashMap<SocketAddr, Sender> = HashMap::new();
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            Some(_) = flows.join_next() => {
                senders.retain(|_, sender| !sender.queue.is_closed());
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
            sender.queue.try_send(datagram).ok();
            continue;
        }
        if !admitted(port, from.ip()) || !make_room(&mut senders, shared.limits.visitors_per_port) {
            continue;
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        sender.try_send(datagram).ok();
        let answered = Arc::new(AtomicBool::new(false));
        let since = Instant::now();
        senders.insert(from, Sender { queue: sender, answered: Arc::clone(&answered), since });
        let (shared, socket, port) = (Arc::clone(shared), Arc::clone(&socket), port.clone());
        flows.spawn(async move {
            if let Err(error) = flow(&shared, &socket, from, &port, queue, &answered).await {
                tracing::debug!("datagrams to the published port {} came to nothing: {error}", port.port);
            }
        });
    }
}

async fn flow(
    shared: &Shared,
    socket: &UdpSocket,
    from: SocketAddr,
    port: &PublishedPort,
    mut queue: mpsc::Receiver<Vec<u8>>,
    answered: &AtomicBool,
) -> Result<(), SessionError> {
    let (stream, _place) =
        open(shared, &shared.visits, |request| Input::Visit { request, port: port.key() }).await?;
    let (mut reader, mut writer) = stream.split();
    let (heard, mut hearing) = mpsc::channel::<()>(1);
    // One future from beginning to end, for a datagram must not be left half read when something else happens first.
    let back = async move {
        let mut datagram = Vec::new();
        while recv_datagram(&mut reader, &mut datagram).await? {
            answered.store(true, Ordering::Relaxed);
            socket.send_to(&datagram, from).await.ok();
            heard.try_send(()).ok();
        }
        Ok::<(), SessionError>(())
    };
    let towards = async {
        loop {
            let next = async {
                tokio::select! {
                    datagram = queue.recv() => datagram.map(Some),
                    Some(()) = hearing.recv() => Some(None),
                }
            };
            let idle = if answered.load(Ordering::Relaxed) { IDLE } else { UNANSWERED };
            match timeout(idle, next).await {
                // Long nothing, or another one needs the place.
                Err(_) | Ok(None) => return Ok(()),
                Ok(Some(Some(datagram))) => send_datagram(&mut writer, &datagram).await?,
                // Something came back.
                Ok(Some(None)) => {}
            }
        }
    };
    tokio::select! {
        ended = back => ended,
        ended = towards => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(age: Duration, answered: bool) -> (Sender, mpsc::Receiver<Vec<u8>>) {
        let (queue, receiver) = mpsc::channel(1);
        let since = Instant::now().checked_sub(age).unwrap();
        (Sender { queue, answered: Arc::new(AtomicBool::new(answered)), since }, receiver)
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn the_oldest_that_was_never_answered_makes_room() {
        let second = Duration::from_secs(1);
        let of = [(10, true), (5, false), (7, false), (0, false)]
            .map(|(age, answered)| sender(second * age, answered));
        let (senders, mut receivers): (Vec<_>, Vec<_>) = of.into_iter().unzip();
        let mut senders: HashMap<_, _> = (1..).map(at).zip(senders).collect();
        assert!(make_room(&mut senders, 5), "there is room");
        assert!(make_room(&mut senders, 4));
        assert!(!senders.contains_key(&at(3)) && receivers[2].try_recv().is_err(), "{senders:?}");
        assert!(make_room(&mut senders, 3) && !senders.contains_key(&at(2)));
        // One that was answered, and one that has just come.
        assert!(!make_room(&mut senders, 2), "{senders:?}");
        receivers.remove(0);
        assert!(make_room(&mut senders, 2), "its flow has ended");
    }
}
