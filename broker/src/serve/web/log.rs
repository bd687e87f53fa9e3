//! Who asked for what: the last requests, in memory, and those that come for whoever listens.
use super::super::user::{User, finish};
use super::table::backend_of;
use crate::serve::Shared;
use crate::state::{Answer, RequestId, Web};
use futures_util::AsyncWriteExt as _;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;
use wherry_endpoint::{Access, Encryption, Observer, Refusal};
use wherry_protocol::io::{SessionError, Stream, send};
use wherry_protocol::message::{AccessEntry, AccessLine, Reply, Request};
use wherry_protocol::{AccountId, ContainerId, Name};

/// Requests kept: half a megabyte at most with names and paths as bounded below.
const KEPT: usize = 1000;
/// Lines that a reader may fall behind before it loses some.
const BEHIND: usize = 1000;
/// Characters of a path or host that are kept.
const MAX_TEXT: usize = 256;
/// Refused connections and requests are told of together, this often: there may be thousands a second.
const TELL: Duration = Duration::from_secs(60);

/// A request and whose name it was for.
type Line = (AccountId, Arc<AccessEntry>);

/// The log of the web endpoint.
#[derive(Debug)]
pub(crate) struct AccessLog {
    inner: Mutex<Inner>,
    lines: broadcast::Sender<Line>,
}

#[derive(Debug)]
struct Inner {
    kept: VecDeque<Line>,
    /// Whose the names are.
    hosts: BTreeMap<String, AccountId>,
    containers: BTreeMap<ContainerId, Name>,
    refused: BTreeMap<Refusal, u64>,
    told: Option<Instant>,
}

impl Default for AccessLog {
    fn default() -> Self {
        let inner = Inner {
            kept: VecDeque::new(),
            hosts: BTreeMap::new(),
            containers: BTreeMap::new(),
            refused: BTreeMap::new(),
            told: None,
        };
        Self { inner: Mutex::new(inner), lines: broadcast::channel(BEHIND).0 }
    }
}

impl AccessLog {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Lines stay lines whatever panicked while they were held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns whose the names are, and what containers are called. Lines of names that are gone go too.
    pub(crate) fn know(&self, web: &Web) {
        let mut inner = self.lock();
        inner.hosts = web.hosts.iter().map(|(name, host)| (name.clone(), host.account)).collect();
        let routes = web.hosts.values().flat_map(|host| &host.routes);
        let backends = routes.flat_map(|route| &route.backends);
        inner.containers = backends.map(|backend| (backend.container, backend.name.clone())).collect();
    }

    /// The lines there are, and those that will come.
    fn read(&self) -> (Vec<Line>, broadcast::Receiver<Line>) {
        let inner = self.lock();
        (inner.kept.iter().cloned().collect(), self.lines.subscribe())
    }
}

impl Inner {
    /// Whose a name is: the exact one, else the wildcard in place of its first label.
    fn owner(&self, host: &str) -> Option<AccountId> {
        let wildcard = || self.hosts.get(&format!("*.{}", host.split_once('.')?.1));
        self.hosts.get(host).or_else(wildcard).copied()
    }

    fn tell_refused(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return;
        }
        self.told = Some(Instant::now());
        let counts = std::mem::take(&mut self.refused);
        let list: Vec<String> =
            counts.iter().map(|(refusal, count)| format!("{refusal:?} {count}")).collect();
        tracing::info!("the web endpoint refused, up to now or in the last minute: {}", list.join(", "));
    }
}

impl Observer for AccessLog {
    fn access(&self, access: &Access) {
        let mut inner = self.lock();
        let Some(account) = inner.owner(&access.host) else { return };
        let container = access.backend.map(|number| backend_of(number).0);
        let backend = container.and_then(|id| inner.containers.get(&id).cloned());
        let line = (account, Arc::new(entry(access, backend)));
        if inner.kept.len() >= KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(line.clone());
        // Under the lock: whoever subscribes sees each line once.
        drop(self.lines.send(line));
    }

    fn refused(&self, client: SocketAddr, refusal: Refusal) {
        tracing::debug!(%client, ?refusal, "refused on the web endpoint");
        let mut inner = self.lock();
        *inner.refused.entry(refusal).or_default() += 1;
        inner.tell_refused();
    }
}

fn entry(access: &Access, backend: Option<Name>) -> AccessEntry {
    let bounded = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    AccessEntry {
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        host: bounded(&access.host),
        client: access.client,
        method: bounded(&access.method),
        path: bounded(&access.path),
        status: access.status,
        received: access.received,
        sent: access.sent,
        micros: u64::try_from(access.duration.as_micros()).unwrap_or(u64::MAX),
        backend,
        encryption: match access.encryption {
            Encryption::None => None,
            Encryption::Tls12 => Some("TLS 1.2".into()),
            Encryption::Tls13 => Some("TLS 1.3".into()),
        },
        http2: access.http2,
        refusal: access.refusal.map(|refusal| refusal.text().trim_end().trim_end_matches('.').to_owned()),
        complete: access.complete,
    }
}

/// Answers [`Request::AccessLog`].
pub(crate) async fn log(
    shared: &Shared,
    user: User,
    request: RequestId,
    mut stream: Stream,
    (host, follow): (Option<String>, bool),
) -> Result<(), SessionError> {
    let body = Request::AccessLog { host: host.clone(), follow };
    match shared.core.request(request, user.session, body).await {
        Answer::Reply(Reply::Done) => send(&mut stream, &Reply::Done).await?,
        Answer::Reply(other) => return finish(stream, other).await,
        Answer::Route { .. }
        | Answer::Session(_)
        | Answer::Enrol(_)
        | Answer::Blob(_)
        | Answer::Lookup(_) => {
            return Ok(());
        }
    }
    let host = host.map(|host| host.to_ascii_lowercase());
    let wanted = |(account, entry): &Line| {
        *account == user.account && host.as_ref().is_none_or(|host| is_of(&entry.host, host))
    };
    let (kept, mut lines) = shared.web.log.read();
    for (_, entry) in kept.iter().filter(|line| wanted(line)) {
        send(&mut stream, &AccessLine::Request(Box::new(AccessEntry::clone(entry)))).await?;
    }
    if !follow {
        return Ok(stream.close().await?);
    }
    loop {
        let line = match lines.recv().await {
            Ok(line) if wanted(&line) => AccessLine::Request(Box::new(AccessEntry::clone(&line.1))),
            Ok(_) => continue,
            Err(broadcast::error::RecvError::Lagged(count)) => AccessLine::Lost(count),
            Err(broadcast::error::RecvError::Closed) => return Ok(stream.close().await?),
        };
        send(&mut stream, &line).await?;
    }
}

/// Whether a request for `asked` is one for `host`, which may be a wildcard.
fn is_of(asked: &str, host: &str) -> bool {
    match host.strip_prefix("*.") {
        Some(domain) => asked.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => asked == host,
    }
}
