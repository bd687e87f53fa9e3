//! One session with a broker: dialled when first needed, dialled again when it broke.
use crate::address::Address;
use crate::error::ClientError;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use wherry_protocol::io::{self, Mux, Side, Stream};
use wherry_protocol::message::HelloReply;
use wherry_protocol::{Limits, OsRandom, PublicKey, SecretKey};

/// What we call ourselves.
const SOFTWARE: &str = concat!("wherry ", env!("CARGO_PKG_VERSION"));
/// Time for the TCP connection, in seconds: three SYNs (RFC 6298 §2: 1 s, doubled each time).
const CONNECT_SECONDS: u64 = 10;
/// TCP keepalive: a broker that lost power, or a laptop that moved, is noticed within idle + 3 × interval seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The same while something is on its way: keepalive does not count then, and TCP alone would go on for a quarter of an hour
/// (tcp(7), TCP_USER_TIMEOUT).
#[cfg(target_os = "linux")]
const UNANSWERED: Duration = Duration::from_secs(30);
/// What one session carries at once.
const LIMITS: Limits = Limits { streams: Limits::DEFAULT.user_streams, ..Limits::DEFAULT };

/// A first packet that came before its broker was up is repeated by TCP only after 1, 3 and 7 s (RFC 6298 §5.5): so another
/// attempt is made beside one that says nothing for so long. A session on a LAN is ready within milliseconds.
const PATIENCE_OF_ONE: Duration = Duration::from_millis(800);
/// Attempts at the same time.
const MOST_ATTEMPTS: usize = 4;

/// Connects to a port of the broker and exchanges versions. The first of several attempts that succeeds counts.
pub(crate) async fn dial(
    address: &Address,
    port: u16,
    me: &SecretKey,
    broker: &PublicKey,
) -> Result<(Mux, HelloReply), ClientError> {
    let mut attempts = FuturesUnordered::from_iter([attempt(address, port, me, broker)]);
    let mut started = attempts.len();
    loop {
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Err(_) if !attempts.is_empty() => {}
                result => return result,
            },
            () = tokio::time::sleep(PATIENCE_OF_ONE), if started < MOST_ATTEMPTS => {
                attempts.push(attempt(address, port, me, broker));
                started += 1;
            }
        }
    }
}

async fn attempt(
    address: &Address,
    port: u16,
    me: &SecretKey,
    broker: &PublicKey,
) -> Result<(Mux, HelloReply), ClientError> {
    let transport = connect(address, port).await?;
    let handshake = async {
        let secure = io::connect(transport.compat(), me, broker, &mut OsRandom).await?;
        let (mux, mut incoming, driver) = io::multiplex(secure, Side::Dialled, &LIMITS);
        let attempt = Attempt(Some(mux));
        // The driver ends with the session; whoever uses a stream then learns of it there.
        tokio::spawn(driver);
        // The broker has no reason to open streams towards us: dropped unread.
        tokio::spawn(async move { while incoming.next().await.is_some() {} });
        attempt.succeed().await
    };
    let seconds = Limits::DEFAULT.handshake_seconds;
    match tokio::time::timeout(Duration::from_secs(seconds), handshake).await {
        Ok(result) => result.map_err(|error| ClientError::connecting(address, port, error)),
        Err(_) => Err(ClientError::NotABroker {
            host: address.host().into(),
            port,
            reason: format!("it did not answer within {seconds} s"),
        }),
    }
}

/// A session that nobody has yet: given up with the attempt that made it, it ends.
struct Attempt(Option<Mux>);

impl Attempt {
    async fn succeed(mut self) -> Result<(Mux, HelloReply), io::SessionError> {
        let Some(mux) = &self.0 else { return Err(io::SessionError::Closed) };
        let reply = io::hello(mux, SOFTWARE).await?;
        self.0.take().map(|mux| (mux, reply)).ok_or(io::SessionError::Closed)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(mux) = &self.0 {
            mux.close();
        }
    }
}

async fn connect(address: &Address, port: u16) -> Result<TcpStream, ClientError> {
    let unreachable = |reason: String| ClientError::Unreachable { host: address.host().into(), port, reason };
    let connecting = TcpStream::connect((address.host(), port));
    let stream = tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS), connecting)
        .await
        .map_err(|_| unreachable(format!("no answer within {CONNECT_SECONDS} s")))?
        .map_err(|error| unreachable(plain(&error)))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    let socket = socket2::SockRef::from(&stream);
    let prepare = || {
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNANSWERED))?;
        stream.set_nodelay(true)
    };
    prepare().map_err(|error| unreachable(plain(&error)))?;
    Ok(stream)
}

/// The system's words without `(os error N)`.
pub(crate) fn plain(error: &std::io::Error) -> String {
    plain_text(&error.to_string())
}

/// The same of a longer text that ends with the system's words.
pub(crate) fn plain_text(text: &str) -> String {
    let cut = text.split(" (os error").next().unwrap_or(text).to_owned();
    match cut.chars().next() {
        Some(first) => {
            first.to_lowercase().collect::<String>() + cut.get(first.len_utf8()..).unwrap_or_default()
        }
        None => cut,
    }
}

/// A session that comes back.
#[derive(Debug)]
pub(crate) struct Session {
    address: Address,
    secret: SecretKey,
    broker: PublicKey,
    current: tokio::sync::Mutex<Option<Mux>>,
}

impl Session {
    pub(crate) fn new(address: Address, secret: SecretKey, broker: PublicKey) -> Self {
        Self { address, secret, broker, current: tokio::sync::Mutex::default() }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A new stream. A session that has ended since is replaced by a new one.
    pub(crate) async fn open(&self) -> Result<Stream, ClientError> {
        let lost = |error| ClientError::on_session(&self.address, error);
        // Not under the lock: opening may have to wait for streams that others hold.
        let current = self.current.lock().await.clone();
        if let Some(mux) = current {
            match mux.open().await {
                Err(io::SessionError::Closed) => self.forget(&mux).await,
                result => return result.map_err(lost),
            }
        }
        self.redial().await?.open().await.map_err(lost)
    }

    /// Forgets a session that has ended. Another caller may have dialled a new one meanwhile, which stays.
    async fn forget(&self, ended: &Mux) {
        self.current.lock().await.take_if(|current| current.same(ended));
    }

    /// The session there is, or a new one; several callers get the same.
    async fn redial(&self) -> Result<Mux, ClientError> {
        let mut current = self.current.lock().await;
        if let Some(mux) = current.as_ref() {
            return Ok(mux.clone());
        }
        let (mux, _) = dial(&self.address, self.address.session_port(), &self.secret, &self.broker).await?;
        *current = Some(mux.clone());
        Ok(mux)
    }

    /// Ends the session in order; the next [`Self::open`] dials anew.
    pub(crate) async fn close(&self) {
        if let Some(mux) = self.current.lock().await.take() {
            mux.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A broker on this port that gives what is asked on each connection to `serve`, in order of the connections.
    async fn broker(
        listener: TcpListener,
        secret: SecretKey,
        serve: impl Fn(usize, Mux, io::Incoming) -> tokio::task::JoinHandle<()>,
    ) {
        for number in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let keys = io::ServerKeys::new(secret.clone(), &mut OsRandom);
            let secure = io::accept(tcp.compat(), &keys, &mut OsRandom).await.unwrap();
            let (mux, mut incoming, driver) = io::multiplex(secure, Side::Accepted, &Limits::DEFAULT);
            tokio::spawn(driver);
            let (stream, hello) = io::read_hello(&mut incoming).await.unwrap();
            io::answer_hello(stream, &hello, "test", Ok(None)).await.unwrap();
            drop(serve(number, mux, incoming));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_lose_a_session_share_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (secret, me) = (SecretKey::generate(&mut OsRandom), SecretKey::generate(&mut OsRandom));
        let public = secret.public();
        let dialled = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&dialled);
        let server = tokio::spawn(broker(listener, secret, move |number, mux, mut incoming| {
            count.store(number + 1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let first = incoming.next().await.unwrap();
                if number == 0 {
                    return mux.close();
                }
                let mut kept = vec![first];
                while let Some(stream) = incoming.next().await {
                    kept.push(stream);
                }
            })
        }));
        let address: Address = format!("127.0.0.1:{}", at.port()).parse().unwrap();
        let session = std::sync::Arc::new(Session::new(address, me, public));
        let begin = async |session: std::sync::Arc<Session>| {
            let mut stream = session.open().await.unwrap();
            futures_util::AsyncWriteExt::flush(&mut stream).await.unwrap();
            stream
        };
        begin(std::sync::Arc::clone(&session)).await.hung_up().await;
        let opening: Vec<_> = (0..32).map(|_| tokio::spawn(begin(std::sync::Arc::clone(&session)))).collect();
        let mut streams = Vec::new();
        for opened in opening {
            streams.push(opened.await.unwrap());
        }
        let any = futures_util::future::select_all(streams.iter().map(Stream::hung_up));
        assert!(tokio::time::timeout(Duration::from_millis(200), any).await.is_err(), "one was cut off");
        assert_eq!(dialled.load(std::sync::atomic::Ordering::Relaxed), 2);
        server.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_that_breaks_takes_no_other_along() {
        use wherry_protocol::message::Request;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (secret, me) = (SecretKey::generate(&mut OsRandom), SecretKey::generate(&mut OsRandom));
        let stored = crate::store::StoredLocation {
            name: "test".parse().unwrap(),
            address: format!("127.0.0.1:{}", at.port()).parse().unwrap(),
            broker: secret.public(),
            secret: me,
            role: wherry_protocol::Role::User,
            account: wherry_protocol::AccountId(1),
            label: "ann".parse().unwrap(),
            token: wherry_protocol::Digest::of(b"token"),
        };
        // Whoever pings is cut off, again and again.
        let server = tokio::spawn(broker(listener, secret, |_, mux, mut incoming| {
            tokio::spawn(async move {
                let mut kept = Vec::new();
                while let Some(mut stream) = incoming.next().await {
                    match io::recv(&mut stream, 1024).await.unwrap() {
                        Some(Request::Ping) => drop(stream),
                        _ => {
                            io::send(&mut stream, &wherry_protocol::message::Reply::Done).await.unwrap();
                            kept.push(stream);
                        }
                    }
                }
                drop(mux);
            })
        }));
        let location = crate::location::Location::stored(stored);
        let (_, kept) = location.open(&Request::Events).await.unwrap();
        let error = location.ping().await.unwrap_err();
        assert!(error.is_lost(), "{error}");
        let cut_off = tokio::time::timeout(Duration::from_millis(200), kept.hung_up()).await;
        assert!(cut_off.is_err(), "the other one was cut off");
        location.events().await.unwrap();
        server.abort();
    }

    /// As QEMU's port forwarding does while the guest boots: it takes the connection and says nothing.
    #[tokio::test]
    async fn a_silent_start_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (broker, me) = (SecretKey::generate(&mut OsRandom), SecretKey::generate(&mut OsRandom));
        let public = broker.public();
        let server = tokio::spawn(async move {
            let (_silent, _) = listener.accept().await.unwrap();
            let (second, _) = listener.accept().await.unwrap();
            let keys = io::ServerKeys::new(broker, &mut OsRandom);
            let secure = io::accept(second.compat(), &keys, &mut OsRandom).await.unwrap();
            let (mux, mut incoming, driver) = io::multiplex(secure, Side::Accepted, &Limits::DEFAULT);
            tokio::spawn(driver);
            let (stream, hello) = io::read_hello(&mut incoming).await.unwrap();
            io::answer_hello(stream, &hello, "test", Ok(None)).await.unwrap();
            std::future::pending::<()>().await;
            drop(mux);
        });
        let address: Address = format!("127.0.0.1:{port}").parse().unwrap();
        let before = std::time::Instant::now();
        dial(&address, port, &me, &public).await.unwrap();
        assert!(before.elapsed() >= PATIENCE_OF_ONE);
        server.abort();
    }

    #[tokio::test]
    async fn a_refusal_is_told_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let address: Address = format!("127.0.0.1:{port}").parse().unwrap();
        let (me, broker) = (SecretKey::generate(&mut OsRandom), SecretKey::generate(&mut OsRandom).public());
        let error = dial(&address, port, &me, &broker).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn the_systems_words_are_made_to_fit_a_sentence() {
        let error = std::io::Error::from_raw_os_error(111);
        assert_eq!(plain(&error), "connection refused");
        assert_eq!(plain(&std::io::Error::other("")), "");
    }
}
