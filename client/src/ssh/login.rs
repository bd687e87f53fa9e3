//! One connection: who logs in, and which channels there are.
use super::bridge::{Served, SshEvent};
use super::forward;
use super::inbound::Backlog;
use super::keys::OWN_USER;
use super::session::{self, MAX_VARIABLES};
use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Channels of one connection: sessions and forwarded ports. Far below the streams that one session with the broker has.
const MAX_CHANNELS: usize = 64;

/// What a session channel has asked for already.
#[derive(Debug, Default)]
struct Asked {
    variables: usize,
    started: bool,
}

/// One connection.
pub(super) struct Login {
    served: Arc<Served>,
    /// As whom in the container.
    user: Option<String>,
    cut: CancellationToken,
    logged_in: CancellationToken,
    permits: Arc<Semaphore>,
    backlog: Backlog,
    sessions: HashMap<ChannelId, Asked>,
}

impl Login {
    pub(super) fn new(served: Arc<Served>, cut: CancellationToken, logged_in: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CHANNELS));
        Self {
            served,
            user: None,
            cut,
            logged_in,
            permits,
            backlog: Backlog::new(),
            sessions: HashMap::new(),
        }
    }

    fn judge(&self, key: &PublicKey) -> Auth {
        if self.served.keys.allow(key) { Auth::Accept } else { Auth::reject() }
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, ChannelOpenFailure> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| ChannelOpenFailure::ResourceShortage)
    }

    /// Runs until its end or until the connection's.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = cut.cancelled() => {}
            }
        });
    }

    /// One program per channel (RFC 4254, section 6.5).
    fn first(&mut self, channel: ChannelId) -> bool {
        self.sessions.get_mut(&channel).is_some_and(|asked| !std::mem::replace(&mut asked.started, true))
    }

    /// Why a connection to there is not to be had.
    fn refusal(&self, host: &str, port: u32) -> Option<String> {
        let info = &self.served.info;
        let mine = ["localhost", "127.0.0.1", "::1", info.name.as_str()].contains(&host)
            || host == info.address.to_string()
            || host == info.id.to_string();
        // A client's words are shown on a terminal.
        let host: String = host.chars().filter(|c| !c.is_control()).take(80).collect();
        if !mine {
            let text =
                format!("{host} port {port} is not a port of {}: only its own can be reached", info.name);
            return Some(text);
        }
        (port == 0 || port > u16::MAX.into()).then(|| format!("{port} is no port"))
    }
}

fn answer(session: &mut Session, channel: ChannelId, yes: bool) -> Result<(), russh::Error> {
    if yes { session.channel_success(channel) } else { session.channel_failure(channel) }
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let judged = self.judge(key.public_key);
        if judged == Auth::Accept {
            self.user = (user != OWN_USER).then(|| user.to_owned());
        }
        Ok(judged)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.logged_in.cancel();
        self.served.report(SshEvent::LoggedIn { user: self.user.clone() });
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(failure) => {
                reply.reject(failure).await;
                return Ok(());
            }
        };
        self.sessions.insert(channel.id(), Asked::default());
        reply.accept().await;
        let (served, user, handle) = (Arc::clone(&self.served), self.user.clone(), session.handle());
        let backlog = self.backlog.clone();
        self.spawn(async move {
            session::serve(&served, user, channel, backlog, handle).await;
            drop(permit);
        });
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.sessions.remove(&channel);
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(reason) = self.refusal(host, port) {
            self.served.report(SshEvent::ForwardingRefused { reason });
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(failure) => {
                reply.reject(failure).await;
                return Ok(());
            }
        };
        let (served, port) = (Arc::clone(&self.served), u16::try_from(port).unwrap_or_default());
        let backlog = self.backlog.clone();
        self.spawn(async move {
            forward::serve(&served, channel, port, reply, backlog).await;
            drop(permit);
        });
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        self.backlog.window()
    }

    async fn data(
        &mut self,
        _channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.backlog.pause(data.len()).await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let early = self.sessions.get(&channel).is_some_and(|asked| !asked.started);
        answer(session, channel, early)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let good = session::is_variable(name, value)
            && self.sessions.get_mut(&channel).is_some_and(|asked| {
                asked.variables = asked.variables.saturating_add(1);
                !asked.started && asked.variables <= MAX_VARIABLES
            });
        answer(session, channel, good)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        let first = self.first(channel);
        answer(session, channel, first)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let first = self.first(channel);
        answer(session, channel, first)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let good = name == session::SFTP && self.first(channel);
        answer(session, channel, good)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}
