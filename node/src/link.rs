//! The session with the broker: dialled, and enrolled first if the broker does not know this board yet.
use crate::config::BrokerAddress;
use crate::facts::SOFTWARE;
use futures_util::io::AsyncWriteExt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::compat::TokioAsyncReadCompatExt;
use wherry_protocol::io::{self, Incoming, Mux, SessionError, Side};
use wherry_protocol::message::{EnrolReply, EnrolRequest, HelloReply};
use wherry_protocol::{ErrorCode, Limits, Name, OsRandom, Role, SecretKey, Token, WireError};

/// Time for TCP, handshake and version exchange together: twice what the broker allows a handshake, because a board
/// on a bad link also waits for retransmitted SYNs.
const DIAL_SECONDS: u64 = 2 * Limits::DEFAULT.handshake_seconds;
/// A broker that vanished without a word (power cut) is noticed by TCP keepalive after this long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
/// The same while something is on its way: keepalive does not count then, and TCP alone would go on for a quarter of an hour,
/// from an address that the board may no longer have (tcp(7), TCP_USER_TIMEOUT).
const UNANSWERED: Duration = Duration::from_secs(14);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No TCP connection.
    #[error("cannot reach the broker at {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Took too long.
    #[error("the broker at {address} did not answer within {DIAL_SECONDS} s")]
    Timeout {
        /// Where.
        address: SocketAddr,
    },
    /// The session failed or was refused.
    #[error("no session with the broker at {address}: {source}")]
    Session {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: SessionError,
    },
    /// The token was not accepted.
    #[error("the broker refused to enrol this board: {0}")]
    Enrolment(WireError),
}

/// An open session.
#[derive(Debug)]
pub struct Link {
    /// Opens streams to the broker.
    pub mux: Mux,
    /// Streams that the broker opens.
    pub incoming: Incoming,
    /// This board's address as the connection shows it: the outer end of its tunnels.
    pub underlay: Ipv4Addr,
    /// Ends when the session has ended.
    pub driver: JoinHandle<Result<(), SessionError>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What the board shows the broker.
#[derive(Debug)]
pub struct Credentials {
    /// Its long-term key.
    pub key: SecretKey,
    /// The token it was flashed with; names the broker's key.
    pub token: Token,
    /// What it calls itself.
    pub label: Name,
}

/// Opens a session, enrolling first where the broker does not know the key yet.
///
/// # Errors
/// When the broker cannot be reached, is not the one of the token, or refuses.
pub async fn open(address: BrokerAddress, credentials: &Credentials) -> Result<Link, LinkError> {
    match dial(address.session, credentials).await {
        Err(LinkError::Session { source: SessionError::Refused(refusal), .. })
            if refusal.code == ErrorCode::Unauthenticated =>
        {
            enrol(address.enrolment, credentials).await?;
            dial(address.session, credentials).await
        }
        other => other,
    }
}

async fn dial(address: SocketAddr, credentials: &Credentials) -> Result<Link, LinkError> {
    match tokio::time::timeout(Duration::from_secs(DIAL_SECONDS), establish(address, credentials)).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Timeout { address }),
    }
}

async fn establish(address: SocketAddr, credentials: &Credentials) -> Result<Link, LinkError> {
    let session = |source| LinkError::Session { address, source };
    let tcp = connect(address).await.map_err(|source| LinkError::Connect { address, source })?;
    let underlay = match tcp.local_addr().map(|local| local.ip()) {
        Ok(IpAddr::V4(ip)) => ip,
        Ok(IpAddr::V6(_)) | Err(_) => Ipv4Addr::UNSPECIFIED,
    };
    let secure = io::connect(tcp.compat(), &credentials.key, &credentials.token.broker, &mut OsRandom)
        .await
        .map_err(session)?;
    let (mux, incoming, driver) = io::multiplex(secure, Side::Dialled, &Limits::DEFAULT);
    let link = Link { mux, incoming, underlay, driver: tokio::spawn(driver) };
    match io::hello(&link.mux, SOFTWARE).await.map_err(session)? {
        HelloReply::Accepted { .. } => Ok(link),
        HelloReply::Refused(refusal) => Err(session(SessionError::Refused(refusal))),
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let socket = socket2::SockRef::from(&tcp);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    Ok(tcp)
}

async fn enrol(address: SocketAddr, credentials: &Credentials) -> Result<(), LinkError> {
    let session = |source| LinkError::Session { address, source };
    let link = dial(address, credentials).await?;
    let mut stream = link.mux.open().await.map_err(session)?;
    let request =
        EnrolRequest { role: Role::Node, secret: credentials.token.secret, label: credentials.label.clone() };
    io::send(&mut stream, &request).await.map_err(session)?;
    let reply = io::recv(&mut stream, Limits::DEFAULT.message_bytes).await.map_err(session)?;
    // The answer is here; whether the goodbye arrives does not matter.
    stream.close().await.ok();
    match reply {
        Some(EnrolReply::Enrolled { .. }) => Ok(()),
        Some(EnrolReply::Refused(refusal)) => Err(LinkError::Enrolment(refusal)),
        None => Err(session(SessionError::Closed)),
    }
}
