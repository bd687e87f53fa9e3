//! Accepting connections: the gate, the handshake, the exchange of versions, and what the key is here.
use super::gate::Pass;
use super::{SOFTWARE, Shared, node, user};
use crate::state::{Answer, Input, SessionId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use wherry_protocol::io::{
    self, Driver, Incoming, Mux, Secure, SessionError, Side, accept, answer_hello, multiplex, read_hello,
};
use wherry_protocol::message::{EnrolReply, EnrolRequest};
use wherry_protocol::{AccountId, ErrorCode, Limits, OsRandom, PublicKey, Role, WireError};

/// Pause after accept(2) failed, which it does when descriptors run out: time for some to be given back.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time in which a stranger that is turned away must read why.
const REFUSAL: Duration = Duration::from_secs(2);
/// Streams on one connection to the enrolment port: hello and a claim, and one to try again.
const ENROLMENT_STREAMS: usize = 4;
/// Largest claim, in bytes: role, secret and label take at most 90.
const MAX_CLAIM_BYTES: usize = 256;
/// Idle time after which TCP asks whether the peer is still there, and between questions; after three it is not.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The same while something is on its way to the peer: keepalive does not count then (tcp(7), TCP_USER_TIMEOUT).
const UNANSWERED: Duration = Duration::from_secs(80);

type Transport = Compat<TcpStream>;

/// An authenticated, versioned session.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) account: AccountId,
    pub(crate) mux: Mux,
    pub(crate) incoming: Incoming,
    pub(crate) driver: Driver,
    pub(crate) role: Role,
}

/// Serves tcp/2020.
pub(crate) async fn sessions(shared: Arc<Shared>, listener: TcpListener) {
    accept_all(&shared, &listener, session).await;
}

/// Serves tcp/2021.
pub(crate) async fn enrolment(shared: Arc<Shared>, listener: TcpListener) {
    accept_all(&shared, &listener, enrol).await;
}

/// One task per connection, all of them ended with this one.
async fn accept_all<F>(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    serve: fn(Arc<Shared>, TcpStream, Pass) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shared.end.cancelled() => break,
            Some(done) = tasks.join_next() => {
                report_panic(done);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => admit(shared, &mut tasks, tcp, peer, serve),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        report_panic(done);
    }
}

pub(crate) fn report_panic(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!("a connection's task failed, the others go on: {error}");
    }
}

/// Makes a lost peer noticed within a minute and a half. Without it the connection works, a little slower and later to notice.
pub(crate) fn watch_peer(tcp: &TcpStream) {
    drop(tcp.set_nodelay(true));
    let keepalive =
        socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(3);
    let socket = socket2::SockRef::from(tcp);
    drop(socket.set_tcp_keepalive(&keepalive));
    drop(socket.set_tcp_user_timeout(Some(UNANSWERED)));
}

fn admit<F>(
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    tcp: TcpStream,
    peer: SocketAddr,
    serve: fn(Arc<Shared>, TcpStream, Pass) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    watch_peer(&tcp);
    let permitted = shared.handshakes.available_permits() > 0;
    match shared.gate.enter(peer.ip(), Instant::now()).filter(|_| permitted) {
        Some(pass) => drop(tasks.spawn(serve(Arc::clone(shared), tcp, pass))),
        // Turning away is cheap, but not free: beyond this many a stranger gets no word.
        None if tasks.len() < shared.limits.sessions => {
            tasks.spawn(async move {
                drop(tokio::time::timeout(REFUSAL, io::refuse_busy(tcp.compat())).await);
            });
        }
        None => {}
    }
}

async fn handshake(shared: &Shared, tcp: TcpStream) -> Result<Secure<Transport>, SessionError> {
    let _permit = shared.handshakes.acquire().await.map_err(|_| SessionError::Closed)?;
    accept(tcp.compat(), &shared.keys, &mut OsRandom).await
}

fn patience() -> Duration {
    Duration::from_secs(Limits::DEFAULT.handshake_seconds)
}

async fn session(shared: Arc<Shared>, tcp: TcpStream, pass: Pass) {
    let opened = tokio::time::timeout(patience(), open(&shared, tcp, pass)).await;
    match opened {
        Ok(Ok(session)) => match session.role {
            Role::User | Role::Admin => user::serve(&shared, session).await,
            Role::Node => node::serve(&shared, session).await,
        },
        Ok(Err(error)) => tracing::debug!("a connection to the session port came to nothing: {error}"),
        Err(_) => tracing::debug!("a connection to the session port took too long to say who it is"),
    }
}

async fn open(shared: &Arc<Shared>, tcp: TcpStream, mut pass: Pass) -> Result<Session, SessionError> {
    let secure = handshake(shared, tcp).await?;
    let key = secure.peer();
    let (mux, mut incoming, mut driver) = multiplex(secure, Side::Accepted, &Limits::DEFAULT);
    // Until it is known who it is, as many as a user may have.
    mux.limit_streams(shared.limits.user_streams);
    let id = SessionId(shared.core.number());
    let verdict = async {
        let (stream, hello) = read_hello(&mut incoming).await?;
        let known = who(shared, id, key).await;
        let opening = Opening { shared, id, keep: false };
        let role = known.as_ref().map(|(_, role)| Some(*role)).map_err(Clone::clone);
        answer_hello(stream, &hello, SOFTWARE, role).await?;
        let (account, role) = known.map_err(SessionError::Refused)?;
        Ok::<_, SessionError>((opening, account, role))
    };
    let (mut opening, account, role) = alongside(&mut driver, verdict).await?;
    match role {
        Role::Node => mux.limit_streams(Limits::DEFAULT.streams),
        Role::User | Role::Admin => {}
    }
    pass.known();
    opening.keep = true;
    drop(opening);
    Ok(Session { id, account, mux, incoming, driver, role })
}

/// A session that the state knows, until its own task takes care of it.
struct Opening<'a> {
    shared: &'a Shared,
    id: SessionId,
    keep: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.shared.core.tell_later(Input::Closed(self.id));
        }
    }
}

async fn who(shared: &Shared, session: SessionId, key: PublicKey) -> Result<(AccountId, Role), WireError> {
    match shared.core.ask(|request| Input::Open { request, session, key }).await {
        Some(Answer::Session(known)) => known,
        Some(
            Answer::Reply(_) | Answer::Route { .. } | Answer::Enrol(_) | Answer::Blob(_) | Answer::Lookup(_),
        )
        | None => Err(WireError::new(ErrorCode::Busy, "the broker is shutting down: try again in a moment")),
    }
}

/// Runs `work` while the session's bytes move.
pub(crate) async fn alongside<T>(
    driver: &mut Driver,
    work: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::select! {
        biased;
        done = work => done,
        ended = driver => Err(ended.err().unwrap_or(SessionError::Closed)),
    }
}

async fn enrol(shared: Arc<Shared>, tcp: TcpStream, pass: Pass) {
    match tokio::time::timeout(patience(), claim(&shared, tcp, pass)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection to the enrolment port came to nothing: {error}"),
        Err(_) => tracing::debug!("a connection to the enrolment port took too long"),
    }
}

async fn claim(shared: &Shared, tcp: TcpStream, mut pass: Pass) -> Result<(), SessionError> {
    let secure = handshake(shared, tcp).await?;
    let key = secure.peer();
    let limits = Limits { streams: ENROLMENT_STREAMS, ..Limits::DEFAULT };
    let (_mux, mut incoming, mut driver) = multiplex(secure, Side::Accepted, &limits);
    let work = async {
        let (stream, hello) = read_hello(&mut incoming).await?;
        answer_hello(stream, &hello, SOFTWARE, Ok(None)).await?;
        // Each connection makes one claim; whoever wants to try again pays for another handshake.
        let mut stream = incoming.next().await.ok_or(SessionError::Closed)?;
        let claim: EnrolRequest =
            io::recv(&mut stream, MAX_CLAIM_BYTES).await?.ok_or(SessionError::Closed)?;
        let reply = ask_enrol(shared, key, claim).await;
        if let EnrolReply::Enrolled { account, role, .. } = &reply {
            pass.known();
            tracing::info!("{key:?} enrolled as {role} {account}");
        }
        io::send(&mut stream, &reply).await?;
        futures_util::AsyncWriteExt::close(&mut stream).await?;
        // The peer ends the connection once it has read the answer.
        while incoming.next().await.is_some() {}
        Ok(())
    };
    alongside(&mut driver, work).await
}

async fn ask_enrol(shared: &Shared, key: PublicKey, claim: EnrolRequest) -> EnrolReply {
    match shared.core.ask(|request| Input::Enrol { request, key, claim }).await {
        Some(Answer::Enrol(reply)) => reply,
        Some(
            Answer::Reply(_)
            | Answer::Route { .. }
            | Answer::Session(_)
            | Answer::Blob(_)
            | Answer::Lookup(_),
        )
        | None => EnrolReply::Refused(WireError::new(
            ErrorCode::Busy,
            "the broker is shutting down: try again in a moment",
        )),
    }
}
