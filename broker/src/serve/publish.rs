//! Published ports: TCP ports of the broker that lead into containers.
use super::{Shared, route};
use crate::state::{Answer, Input};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use wherry_protocol::io::{SessionError, recv};
use wherry_protocol::message::{PublishedPort, Reply};
use wherry_protocol::{ErrorCode, Limits, WireError};

/// Time between attempts to listen on a port that something else on the broker has.
const RETRY: Duration = Duration::from_secs(5);

/// Checks before a container is made that its ports can be listened on at all.
pub(crate) async fn try_ports(shared: &Shared, ports: &[PublishedPort]) -> Result<(), WireError> {
    let ours = shared.core.published().borrow().clone();
    for published in ports.iter().filter(|published| published.port != 0 && !ours.contains(&published.port)) {
        if let Err(error) = TcpListener::bind((shared.publish_address, published.port)).await {
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
    let mut open: HashMap<u16, AbortHandle> = HashMap::new();
    loop {
        let ports: BTreeSet<u16> = wanted.borrow_and_update().clone();
        open.retain(|port, listener| {
            let keep = ports.contains(port);
            if !keep {
                listener.abort();
            }
            keep
        });
        for port in ports {
            open.entry(port).or_insert_with(|| listeners.spawn(listen(Arc::clone(&shared), port)));
        }
        tokio::select! {
            () = shared.end.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
        }
        // Those that were aborted; a listener does not end by itself.
        while listeners.try_join_next().is_some() {}
    }
}

async fn listen(shared: Arc<Shared>, port: u16) {
    let places = Arc::new(Semaphore::new(shared.limits.visitors_per_port));
    let mut visitors = JoinSet::new();
    loop {
        match TcpListener::bind((shared.publish_address, port)).await {
            Ok(listener) => serve(&shared, &listener, port, &places, &mut visitors).await,
            Err(error) => tracing::error!("cannot listen on the published port {port}: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    port: u16,
    places: &Arc<Semaphore>,
    visitors: &mut JoinSet<()>,
) {
    loop {
        let accepted = tokio::select! {
            Some(_) = visitors.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else { return };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { continue };
        let shared = Arc::clone(shared);
        visitors.spawn(async move {
            let _place = place;
            if let Err(error) = visit(&shared, tcp, port).await {
                tracing::debug!("a connection to the published port {port} came to nothing: {error}");
            }
        });
    }
}

async fn visit(shared: &Shared, mut tcp: TcpStream, port: u16) -> Result<(), SessionError> {
    let answer = shared.core.ask(|request| Input::Visit { request, port }).await;
    let (session, routed) = match answer {
        Some(Answer::Route { session, routed }) => (session, routed),
        Some(Answer::Reply(Reply::Error(error))) => return Err(SessionError::Refused(error)),
        Some(Answer::Reply(_) | Answer::Session(_) | Answer::Enrol(_) | Answer::Blob(_)) | None => {
            return Ok(());
        }
    };
    let (mut stream, _place) = route::open(shared, session, &routed).await.map_err(SessionError::Refused)?;
    match recv::<Reply>(&mut stream, Limits::DEFAULT.message_bytes).await? {
        Some(Reply::Done) => {}
        Some(Reply::Error(error)) => return Err(SessionError::Refused(error)),
        Some(_) | None => return Err(SessionError::Closed),
    }
    let mut stream = stream.compat();
    copy_bidirectional_with_sizes(&mut tcp, &mut stream, route::BUFFER_BYTES, route::BUFFER_BYTES).await?;
    Ok(())
}
