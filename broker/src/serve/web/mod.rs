//! The web endpoint: ports 80 and 443 while any name is served.
//!
//! ```text
//! acme       certificates from an authority
//! table      what the state wants served, as the endpoint's engine takes it
//! backends   the way to a container: a stream through its board's session
//! log        who asked for what
//! callers    containers that ask, through their boards
//! claim      the proof that a domain is somebody's
//! ```
mod acme;
mod backends;
mod callers;
mod claim;
mod log;
mod table;

pub(crate) use acme::run as certify;
pub(crate) use callers::call;
pub(crate) use claim::claim;
pub(crate) use log::{AccessLog, log};

use super::Shared;
use callers::Callers;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use table::Tables;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wherry_endpoint::{Challenges, Config, CookieKey, Limits, Listeners, Table};
use wherry_net::dns::Upstream;
use wherry_protocol::{Digest, SecretKey};

/// Time between attempts to listen on a port that something else on the broker has.
const RETRY: Duration = Duration::from_secs(5);
/// Least seconds between two attempts to get a certificate for one name.
pub const CERTIFICATE_PAUSE: u64 = 60;
/// Keeps the digest apart from all others that are made of the broker's key.
const COOKIE_CONTEXT: &[u8] = b"wherry web endpoint, sticky cookies, version 1\0";

/// What the web endpoint needs from outside.
#[derive(Debug)]
pub struct WebSetup {
    /// Port for HTTP: 80, but in tests.
    pub http: u16,
    /// Port for TLS: 443, but in tests.
    pub https: u16,
    /// Whom to ask about domains.
    pub resolvers: watch::Receiver<Upstream>,
    /// Least seconds between two attempts to get a certificate for one name: [`CERTIFICATE_PAUSE`], but in tests.
    pub certificate_pause: u64,
}

/// What its tasks share.
#[derive(Debug)]
pub(crate) struct WebShared {
    pub(crate) http: u16,
    pub(crate) https: u16,
    pub(crate) resolvers: watch::Receiver<Upstream>,
    pub(crate) certificate_pause: u64,
    pub(crate) cookie_key: CookieKey,
    pub(crate) challenges: Challenges,
    pub(crate) log: Arc<AccessLog>,
    pub(crate) lookups: tokio::sync::Semaphore,
    pub(crate) callers: Arc<Callers>,
    /// Cancelled when no request is in flight any more after the broker's end.
    pub(crate) drained: CancellationToken,
}

impl WebShared {
    pub(crate) fn new(setup: WebSetup, secret: &SecretKey) -> Self {
        Self {
            http: setup.http,
            https: setup.https,
            resolvers: setup.resolvers,
            certificate_pause: setup.certificate_pause,
            cookie_key: cookie_key(secret),
            challenges: Challenges::default(),
            log: Arc::default(),
            lookups: tokio::sync::Semaphore::new(LOOKUPS),
            callers: Arc::default(),
            drained: CancellationToken::new(),
        }
    }
}

/// Cookies stay good as long as the broker stays the same: their key follows from the broker's.
fn cookie_key(secret: &SecretKey) -> CookieKey {
    let text = [COOKIE_CONTEXT, secret.to_text().as_bytes()].concat();
    CookieKey::new(&Digest::of(&text).0)
}

/// Domains looked up at once, for everybody.
pub(crate) const LOOKUPS: usize = 8;

/// Serves whatever the state wants served, while there is anything. When the broker ends, requests in flight may end first.
pub(crate) async fn run(shared: Arc<Shared>) {
    // Also when it is cut off.
    let _drained = shared.web.drained.clone().drop_guard();
    let mut web = shared.core.web();
    let (table, tables) = watch::channel(Arc::new(Table::default()));
    let mut builder = Tables::default();
    let follow = async {
        loop {
            let wanted = Arc::clone(&web.borrow_and_update());
            shared.web.log.know(&wanted);
            match builder.build(&wanted) {
                Ok(new) => drop(table.send_replace(Arc::new(new))),
                // The state lets nothing in that the engine refuses.
                Err(error) => tracing::error!("what is served on the web stays as it was: {error}"),
            }
            if web.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = listen(&shared, &tables) => {}
    }
}

/// Until the broker ends, and requests in flight after that.
async fn listen(shared: &Arc<Shared>, tables: &watch::Receiver<Arc<Table>>) {
    while !shared.end.is_cancelled() {
        let mut there = tables.clone();
        let wanted = there.wait_for(|table| table.hosts().next().is_some());
        match shared.end.run_until_cancelled(wanted).await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
        match bind(shared).await {
            Ok(listeners) => {
                let mut tables = tables.clone();
                // When nothing is served any more, or the broker ends: then without new connections until it does.
                let done = {
                    let (mut there, shared) = (tables.clone(), Arc::clone(shared));
                    async move {
                        tokio::select! {
                            _ = there.wait_for(|table| table.hosts().next().is_none()) => {}
                            () = shared.end.cancelled() => {}
                        }
                    }
                };
                tables.mark_changed();
                let backends = backends::ThroughBoards(Arc::clone(shared));
                let served = wherry_endpoint::serve(listeners, tables, backends, config(shared), done).await;
                match served {
                    Ok(()) => continue,
                    Err(error) => tracing::error!("the web endpoint has ended: {error}"),
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
        // What ends it is looked at above.
        let _ended = shared.end.run_until_cancelled(tokio::time::sleep(RETRY)).await;
    }
}

fn config(shared: &Shared) -> Config {
    let callers = Arc::clone(&shared.web.callers);
    // What is cut off then has the rest of the time to end in order.
    let drain = Duration::from_secs(shared.limits.drain_seconds) / 4 * 3;
    let limits = Limits { drain, ..Limits::default() };
    Config {
        limits,
        cookie_key: shared.web.cookie_key.clone(),
        challenges: shared.web.challenges.clone(),
        identify: Arc::new(move |address| callers.identify(address)),
        observer: Arc::clone(&shared.web.log) as Arc<dyn wherry_endpoint::Observer>,
    }
}

async fn bind(shared: &Shared) -> Result<Listeners, String> {
    let at = |port| listener(shared.publish_address, port);
    Ok(Listeners { http: at(shared.web.http).await?, https: Some(at(shared.web.https).await?) })
}

async fn listener(address: IpAddr, port: u16) -> Result<TcpListener, String> {
    let at = SocketAddr::new(address, port);
    TcpListener::bind(at).await.map_err(|error| format!("the web endpoint cannot listen on {at}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::ServeLimits;

    #[test]
    fn requests_do_not_use_up_the_connections_of_an_account() {
        let (web, broker) = (Limits::default(), ServeLimits::default());
        assert!(web.requests_per_customer < broker.web_routes_per_account);
    }
}
