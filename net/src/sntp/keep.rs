//! Asks, again and again, and has the clock set.
use super::floor::Floor;
use super::packet::{self, Nanos, Refusal};
use super::select::{Adjustment, Sample, decide, select};
use crate::dns::{self, Upstream};
use crate::setup::Uplink;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// NTP's port.
const PORT: u16 = 123;
/// Where nobody says anything else: the pool's own names for devices like this.
const POOL: [&str; 4] = ["0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org", "3.pool.ntp.org"];
/// Servers asked each time.
const MAX_SERVERS: usize = 4;
/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A way there and back that took longer says too little about the time.
const MAX_DELAY: Nanos = 1_500_000_000;

/// When to ask, and when to write.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Until the clock was set for the first time.
    pub unset: Duration,
    /// From then on at first; doubled each time all is well.
    pub first: Duration,
    /// At most.
    pub most: Duration,
    /// A server that asks to be left alone is, for so long.
    pub banned: Duration,
    /// How often the time is remembered on disk while all is well.
    pub remember: Duration,
}

impl Schedule {
    /// A board's: RFC 4330 §10 wants at least 15 s, and a pool wants much more in the long run. One write a day.
    pub const BOARD: Self = Self {
        unset: Duration::from_secs(16),
        first: Duration::from_secs(64),
        most: Duration::from_secs(1024),
        banned: Duration::from_secs(24 * 3600),
        remember: Duration::from_secs(24 * 3600),
    };
}

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Those of the configuration; if there are none, those that DHCP names, or else the public pool.
    pub fixed: Vec<Ipv4Addr>,
    /// The port: 123 but in tests.
    pub port: u16,
}

impl Servers {
    /// At their usual port.
    #[must_use]
    pub fn of(fixed: Vec<Ipv4Addr>) -> Self {
        Self { fixed, port: PORT }
    }

    async fn find(&self, uplink: Option<&Uplink>) -> Vec<SocketAddr> {
        let lease = uplink.map(|uplink| &uplink.lease);
        let named = lease.map(|lease| lease.ntp.clone()).unwrap_or_default();
        let mut found = if self.fixed.is_empty() { named } else { self.fixed.clone() };
        if found.is_empty() {
            let resolvers = Upstream::of(lease.map_or(&[], |lease| lease.dns.as_slice()));
            for name in POOL {
                match dns::addresses(&resolvers, name).await {
                    // One of each name: they are different servers every time.
                    Ok(addresses) => found.extend(addresses.first()),
                    Err(error) => tracing::debug!("{name}: {error}"),
                }
            }
        }
        found.truncate(MAX_SERVERS);
        found.into_iter().map(|address| SocketAddr::from((address, self.port))).collect()
    }
}

/// Keeps the clock of a board.
#[derive(Debug)]
pub struct Keeper<F> {
    /// Whom to ask.
    pub servers: Servers,
    /// When.
    pub schedule: Schedule,
    /// Where the time is remembered.
    pub floor: Floor,
    /// Changes the clock.
    pub adjust: F,
}

impl<F: Fn(Adjustment) -> io::Result<()>> Keeper<F> {
    /// At the start, before anything relies on the clock: it is never earlier than it has been.
    pub fn lift(&self) {
        let (now, earliest) = (seconds(SystemTime::now()), self.floor.seconds());
        if now < earliest {
            let behind = i64::try_from(earliest - now).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
            match (self.adjust)(Adjustment::Step(behind)) {
                Ok(()) => {
                    tracing::info!("the clock goes on from the last known time, {earliest} s after 1970")
                }
                Err(error) => tracing::error!("the clock cannot be set: {error}"),
            }
        }
    }

    /// Remembers the time, unless it is earlier than what is remembered: at the end, and now and then.
    pub fn remember(&self) {
        let now = seconds(SystemTime::now());
        if now > self.floor.seconds()
            && let Err(error) = self.floor.remember(now)
        {
            tracing::warn!("the time cannot be remembered: {error}");
        }
    }

    /// Asks for as long as it is polled, and whenever the board's network changes.
    pub async fn run(&self, mut uplink: watch::Receiver<Option<Uplink>>) {
        let (mut set, mut pause) = (false, self.schedule.unset);
        let (mut banned, mut remembered) = (HashMap::new(), None::<Instant>);
        loop {
            let now = uplink.borrow_and_update().clone();
            let servers = self.servers.find(now.as_ref()).await;
            match self.look(&servers, &mut banned).await {
                Some(offset) => {
                    let well = self.apply(offset, set);
                    pause = match (set, well) {
                        (true, true) => (pause * 2).min(self.schedule.most),
                        (false, _) | (_, false) => self.schedule.first,
                    };
                    set = true;
                    if remembered.is_none_or(|at| at.elapsed() >= self.schedule.remember) {
                        self.remember();
                        remembered = Some(Instant::now());
                    }
                }
                None if !set => pause = self.schedule.unset,
                None => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = uplink.changed() => if changed.is_err() {
                    // The network stays as it is, then.
                    tokio::time::sleep(pause).await;
                },
            }
        }
    }

    /// What the servers agree on.
    async fn look(&self, servers: &[SocketAddr], banned: &mut HashMap<SocketAddr, Instant>) -> Option<Nanos> {
        banned.retain(|_, since| since.elapsed() < self.schedule.banned);
        let mut samples = Vec::new();
        for server in
            servers.iter().filter(|server| !banned.contains_key(*server)).copied().collect::<Vec<_>>()
        {
            match timeout(PATIENCE, ask(server)).await {
                Ok(Ok(sample)) => samples.push(sample),
                Ok(Err(AskError::Refused(Refusal::LeaveAlone))) => {
                    tracing::warn!(%server, "the time server asks to be left alone, and is for a day");
                    banned.insert(server, Instant::now());
                }
                Ok(Err(error)) => tracing::debug!(%server, "time server: {error}"),
                Err(_) => tracing::debug!(%server, "time server: no answer"),
            }
        }
        let offset = select(&samples);
        if offset.is_none() && samples.len() > 1 {
            tracing::warn!("{} time servers do not agree, the clock stays as it is", samples.len());
        }
        offset
    }

    /// Whether there was little to do.
    fn apply(&self, offset: Nanos, set: bool) -> bool {
        let Some(adjustment) = decide(offset, set) else { return true };
        if let Err(error) = (self.adjust)(adjustment) {
            tracing::error!("the clock cannot be set: {error}");
            return false;
        }
        let off = offset as f64 / 1e9;
        match adjustment {
            Adjustment::Step(_) => tracing::info!("the clock was {off:+.3} s off, it is set"),
            Adjustment::Slew(_) => tracing::debug!("the clock is {off:+.6} s off"),
        }
        matches!(adjustment, Adjustment::Slew(_))
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the answer took {} ms", .0 / 1_000_000)]
    Slow(Nanos),
}

async fn ask(server: SocketAddr) -> Result<Sample, AskError> {
    // Connected: datagrams of others do not come in.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    let mut cookie = [0; 8];
    getrandom::fill(&mut cookie).map_err(io::Error::other)?;
    // The clock is read once; how long things take is measured by one that nobody sets.
    let (began, start) = (nanos(SystemTime::now()), Instant::now());
    socket.send(&packet::question(cookie)).await?;
    let mut buffer = [0; 256];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        match packet::answer(buffer.get(..length).unwrap_or_default(), cookie) {
            // Somebody guesses, or an old answer: the right one may still come.
            Err(Refusal::WrongQuestion | Refusal::NotAnAnswer) => {}
            other => break other?,
        }
    };
    let took = i64::try_from(start.elapsed().as_nanos()).unwrap_or(i64::MAX);
    let ended = began.saturating_add(took);
    let delay = took.saturating_sub(answer.sent.saturating_sub(answer.received)).max(0);
    if delay > MAX_DELAY {
        return Err(AskError::Slow(delay));
    }
    let offset =
        i128::from(answer.received) - i128::from(began) + i128::from(answer.sent) - i128::from(ended);
    let offset = i64::try_from(offset / 2).unwrap_or(i64::MAX);
    Ok(Sample { offset, uncertainty: (delay / 2).saturating_add(answer.root_distance) })
}

fn nanos(time: SystemTime) -> Nanos {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
