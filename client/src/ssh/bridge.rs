//! Connections to the bridge: who may come, how many, how long until they have logged in.
use super::guard::Guarded;
use super::keys::{self, SshKeys};
use super::login::Login;
use crate::container::Container;
use crate::error::ClientError;
use russh::server::{self, run_stream};
use russh::{MethodKind, MethodSet, Preferred, compression};
use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wherry_protocol::Name;
use wherry_protocol::message::ContainerInfo;

/// Connections at the same time. Stops other users of this computer from using up its memory.
const MAX_CONNECTIONS: usize = 32;
/// Time to log in; OpenSSH's is 120 s, for people who type a password. Stops silent connections from keeping others out.
const LOGIN_TIME: Duration = Duration::from_secs(20);
/// Keys that one connection may try; OpenSSH's MaxAuthTries.
const MAX_ATTEMPTS: usize = 6;
/// Bytes that a client may have on the way in one channel, and messages that wait to be taken off a connection's loop.
pub(super) const WINDOW_BYTES: u32 = 1024 * 1024;
const QUEUE: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What happens on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshEvent {
    /// Somebody logged in.
    LoggedIn {
        /// As whom in the container; `None`: its own user.
        user: Option<String>,
    },
    /// A connection ended before anybody had logged in.
    NotLoggedIn,
    /// A forwarding that is not to be had.
    ForwardingRefused {
        /// What was asked for, and why not, as a sentence.
        reason: String,
    },
    /// Something that was asked for failed.
    Failed {
        /// As a sentence.
        reason: String,
        /// Whether who asked has read it already, in the session that failed.
        told: bool,
    },
}

/// What all connections share.
#[derive(Debug)]
pub struct Served {
    pub(super) container: Container,
    pub(super) info: ContainerInfo,
    pub(super) keys: SshKeys,
    config: Arc<server::Config>,
    report: Reporter,
}

/// Who is told what happens.
struct Reporter(Box<dyn Fn(SshEvent) + Send + Sync>);

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

impl Served {
    /// A bridge to a container. Asks for the container, so that one that is not there is learnt of now.
    ///
    /// # Errors
    /// As [`Container::inspect`].
    pub async fn new(
        container: Container,
        keys: SshKeys,
        report: impl Fn(SshEvent) + Send + Sync + 'static,
    ) -> Result<Self, ClientError> {
        let info = container.inspect().await?;
        let config = Arc::new(configuration(&keys));
        Ok(Self { container, info, keys, config, report: Reporter(Box::new(report)) })
    }

    pub(super) fn report(&self, event: SshEvent) {
        (self.report.0)(event);
    }

    /// The container that a host name of the written ssh_config(5) means.
    #[must_use]
    pub fn container_of<'a>(host: &'a str, location: &Name) -> &'a str {
        keys::container_of(host, location)
    }

    /// Serves one connection, over any stream, to its end.
    pub async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let cut = CancellationToken::new();
        // Whoever stops waiting for this one has no use for it.
        let _cut_in_the_end = cut.clone().drop_guard();
        let logged_in = CancellationToken::new();
        let login = Login::new(Arc::clone(&self), cut.clone(), logged_in.clone());
        let config = Arc::clone(&self.config);
        let served = async {
            match run_stream(config, Guarded::new(stream, &cut), login).await {
                Ok(session) => session.await,
                Err(error) => Err(error),
            }
        };
        let in_time = async {
            if tokio::time::timeout(LOGIN_TIME, logged_in.cancelled()).await.is_err() {
                cut.cancel();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Clients end connections as they like; what matters to people was said on a channel.
            _ = served => {}
            () = in_time => {}
        }
        if !logged_in.is_cancelled() {
            self.report(SshEvent::NotLoggedIn);
        }
    }
}

fn configuration(keys: &SshKeys) -> server::Config {
    server::Config {
        // Nothing that tells versions to whoever asks.
        server_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-Wherry")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(500),
        // Clients ask by "none" what there is, and are not to wait for that.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![keys.host.clone()],
        window_size: WINDOW_BYTES,
        channel_buffer_size: QUEUE,
        preferred: Preferred { compression: Cow::Borrowed(&[compression::NONE]), ..Preferred::DEFAULT },
        max_auth_attempts: MAX_ATTEMPTS,
        // Sessions may be silent for days; TCP and the other end's death are noticed without this.
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(60)),
        nodelay: true,
        ..server::Config::default()
    }
}

/// A listening port of this computer, on 127.0.0.1 and nowhere else.
#[derive(Debug)]
pub struct Bridge {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bridge {
    /// Listens on a port of 127.0.0.1; 0 is any free one.
    ///
    /// # Errors
    /// [`ClientError::Listen`].
    pub async fn bind(port: u16) -> Result<Self, ClientError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| ClientError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until it is dropped.
    pub async fn run(self, served: Arc<Served>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let Ok((socket, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let served = Arc::clone(&served);
            connections.spawn(async move {
                // Delaying small packets here would only add to what the path does anyway.
                socket.set_nodelay(true).unwrap_or_default();
                served.serve(socket).await;
                drop(permit);
            });
        }
    }
}
