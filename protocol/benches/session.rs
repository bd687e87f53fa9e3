//! What a session costs, next to plain TCP in the same run: `cargo bench -p wherry-protocol`.
//!
//! Loopback. With one thread for both ends the CPU time of each step is printed too: unlike the rest it hardly depends
//! on what else the machine does. Compare ratios: absolute figures are those of the machine.
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]
use chacha20poly1305::{AeadInPlace as _, ChaCha20Poly1305, KeyInit as _};
use crypto_box::ChaChaBox;
use futures_util::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use wherry_protocol::io::{Mux, Secure, ServerKeys, Side, accept, connect, multiplex};
use wherry_protocol::{Limits, OsRandom, SecretKey};

/// Of each kind of measurement.
const TIME: Duration = Duration::from_secs(2);
const WARM_UP_ROUNDS: usize = 200;
const BULK_BYTES: usize = 256 * 1024 * 1024;
const MESSAGE_BYTES: usize = 64;

type Tcp = Compat<TcpStream>;

async fn tcp_pair(listener: &TcpListener) -> (Tcp, Tcp) {
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (dialled, (accepted, _)) = (dialled.unwrap(), accepted.unwrap());
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled.compat(), accepted.compat())
}

struct Server {
    keys: Arc<ServerKeys>,
    client: SecretKey,
    listener: TcpListener,
}

impl Server {
    async fn secure_pair(&self) -> (Secure<Tcp>, Secure<Tcp>) {
        let (a, b) = tcp_pair(&self.listener).await;
        let public = self.keys.public();
        let (mut r1, mut r2) = (OsRandom, OsRandom);
        let (a, b) = tokio::join!(connect(a, &self.client, &public, &mut r1), accept(b, &self.keys, &mut r2));
        (a.unwrap(), b.unwrap())
    }

    async fn mux_pair(&self) -> (Mux, wherry_protocol::io::Incoming, Mux) {
        let (a, b) = self.secure_pair().await;
        let (mux, _, driver) = multiplex(a, Side::Dialled, &Limits::DEFAULT);
        tokio::spawn(driver);
        let (other, incoming, driver) = multiplex(b, Side::Accepted, &Limits::DEFAULT);
        tokio::spawn(driver);
        (mux, incoming, other)
    }
}

/// CPU seconds of this thread (proc(5), schedstat): all of the work when one thread does both ends.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).map_or(0.0, |ns: f64| ns / 1e9)
}

async fn connections<F: AsyncFnMut()>(name: &str, mut connect: F) {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut count = 0u32;
    while start.elapsed() < TIME {
        connect().await;
        count += 1;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    let each = (cpu_seconds() - cpu) * 1e6 / f64::from(count);
    println!("connections, {name:<32} {rate:7.0} /s    cpu {each:7.1} µs each");
}

async fn ping<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut buffer = [7; MESSAGE_BYTES];
    stream.write_all(&buffer).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut buffer).await.unwrap();
}

fn echo<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut stream: S) {
    tokio::spawn(async move {
        let mut buffer = [0; MESSAGE_BYTES];
        while stream.read_exact(&mut buffer).await.is_ok() {
            stream.write_all(&buffer).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
}

async fn round_trips<F: AsyncFnMut()>(name: &str, mut once: F) {
    for _ in 0..WARM_UP_ROUNDS {
        once().await;
    }
    let mut times = Vec::new();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    while start.elapsed() < TIME {
        let before = Instant::now();
        once().await;
        times.push(before.elapsed());
    }
    times.sort_unstable();
    let micros = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
    let each = (cpu_seconds() - cpu) * 1e6 / times.len() as f64;
    println!(
        "round trip 64 B, {name:<24} p50 {:7.1} µs   p99 {:7.1} µs   cpu {each:5.1} µs",
        micros(50),
        micros(99)
    );
}

async fn bulk<W, R>(name: &str, mut writer: W, mut reader: R)
where
    W: AsyncWrite + Unpin + Send + 'static,
    R: AsyncRead + Unpin,
{
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let sender = tokio::spawn(async move {
        let block = vec![7; 128 * 1024];
        for _ in 0..BULK_BYTES / block.len() {
            writer.write_all(&block).await.unwrap();
        }
        writer.close().await.unwrap();
        writer
    });
    let mut buffer = vec![0; 128 * 1024];
    let mut total = 0;
    while total < BULK_BYTES {
        total += reader.read(&mut buffer).await.unwrap();
    }
    let rate = BULK_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64();
    let each = (cpu_seconds() - cpu) * 1e9 / BULK_BYTES as f64;
    println!("one way, bulk, {name:<30} {rate:7.0} MB/s   cpu {each:5.2} ns/B");
    drop(sender.await.unwrap());
}

/// Sealing alone: why the ciphers are the ones they are.
fn ciphers() {
    let rate = |name: &str, bytes: usize, seal: &mut dyn FnMut(&mut [u8])| {
        let mut buffer = vec![7; bytes];
        let start = Instant::now();
        let mut count = 0u32;
        while start.elapsed() < Duration::from_millis(500) {
            seal(black_box(&mut buffer));
            count += 1;
        }
        let each = start.elapsed().as_secs_f64() / f64::from(count);
        let (each_us, rate) = (each * 1e6, bytes as f64 / 1e6 / each);
        println!("seal {bytes:>5} B, {name:<34} {each_us:7.2} µs   {rate:7.0} MB/s");
    };
    let key = [7; 32];
    let rfc8439 = ChaCha20Poly1305::new(&key.into());
    let boxed = ChaChaBox::new(&[9; 32].into(), &crypto_box::SecretKey::from(key));
    for bytes in [64, 16 * 1024] {
        rate("ChaCha20-Poly1305 (records)", bytes, &mut |buffer| {
            rfc8439.encrypt_in_place_detached(&[1; 12].into(), b"", buffer).unwrap();
        });
        rate("XChaCha20 box (handshake)", bytes, &mut |buffer| {
            boxed.encrypt_in_place_detached(&[1; 24].into(), b"", buffer).unwrap();
        });
    }
}

async fn run() {
    let server = Server {
        keys: Arc::new(ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom)),
        client: SecretKey::generate(&mut OsRandom),
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
    };
    connections("plain TCP", async || drop(tcp_pair(&server.listener).await)).await;
    connections("handshake of both ends", async || drop(server.secure_pair().await)).await;

    let (mut a, b) = tcp_pair(&server.listener).await;
    echo(b);
    round_trips("plain TCP", async || ping(&mut a).await).await;
    let (mut a, b) = server.secure_pair().await;
    echo(b);
    round_trips("sealed", async || ping(&mut a).await).await;
    let (mux, mut incoming, _other) = server.mux_pair().await;
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            echo(stream);
        }
    });
    let mut stream = mux.open().await.unwrap();
    round_trips("a stream of a session", async || ping(&mut stream).await).await;
    round_trips("a new stream each time", async || {
        let mut stream = mux.open().await.unwrap();
        ping(&mut stream).await;
        stream.close().await.unwrap();
    })
    .await;

    let (a, b) = tcp_pair(&server.listener).await;
    bulk("plain TCP", a, b).await;
    let (a, b) = server.secure_pair().await;
    bulk("sealed", a, b).await;
    let (mux, mut incoming, _other) = server.mux_pair().await;
    let mut stream = mux.open().await.unwrap();
    stream.flush().await.unwrap();
    let accepted = incoming.next().await.unwrap();
    bulk("a stream of a session", stream, accepted).await;
}

fn main() {
    ciphers();
    for (name, threads) in [("one thread for both ends", 1), ("two threads", 2)] {
        println!("\n{name}{}", if threads > 1 { " (cpu: of the first only)" } else { "" });
        let mut builder = match threads {
            1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(threads).enable_all().build().unwrap().block_on(run());
    }
}
