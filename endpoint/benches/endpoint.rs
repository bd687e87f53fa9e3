//! Requests through the endpoint, next to Debian's nginx and HAProxy as reverse proxies before the same backend, in turns; and
//! straight to that backend, which is what no proxy can reach. One worker each, connections kept alive on both sides, no TLS.
//! `cargo bench -p wherry-endpoint --profile tools`; Debian packages `nginx-light` and `haproxy`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use wherry_endpoint::{
    Backend, Backends, Challenges, Cluster, Config, ConnectError, CookieKey, Counters, Host, HostName,
    Limits, Listeners, Table, serve,
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const CONNECTIONS: [usize; 2] = [1, 64];
/// What a browser sends, about.
const REQUEST: &[u8] = b"GET /some/path?query=1 HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
    Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\r\n";
const BODY: usize = 1024;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["backend"] => run(backend()),
        ["endpoint", backend] => run(endpoint(backend.parse().unwrap())),
        [] => {
            for (program, package) in [("nginx", "nginx-light"), ("haproxy", "haproxy")] {
                if Command::new(program).arg("-v").output().is_err() {
                    eprintln!("{program} is missing: install the Debian package {package}");
                    return ExitCode::FAILURE;
                }
            }
            run(compare());
        }
        other => {
            eprintln!("no such part of the benchmark: {other:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// Answers each head with the same response.
async fn backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let reply = reply.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 8192];
            let mut length = 0;
            while let Ok(count @ 1..) = stream.read(&mut buffer[length..]).await {
                length += count;
                if buffer[..length].ends_with(b"\r\n\r\n") {
                    length = 0;
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        });
    }
}

struct One(SocketAddr);

impl Backends for One {
    type Stream = TcpStream;

    async fn connect(&self, _: u64) -> Result<TcpStream, ConnectError> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn endpoint(backend: SocketAddr) {
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", http.local_addr().unwrap());
    let cluster = Cluster { backends: vec![Backend { id: 1, weight: 1, healthy: true }] };
    let host = Host::new(HostName::new("bench.example").unwrap(), Arc::new(cluster));
    let (_table, tables) = watch::channel(Arc::new(Table::new([host]).unwrap()));
    let config = Config {
        limits: Limits::default(),
        cookie_key: CookieKey::new(&[0; 32]),
        challenges: Challenges::default(),
        identify: Arc::new(|_| None),
        observer: Arc::new(Counters::default()),
    };
    serve(Listeners { http, https: None }, tables, One(backend), config, std::future::pending())
        .await
        .unwrap();
}

/// A process that ends with us.
struct Running(Child, SocketAddr);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ours(words: &[&str]) -> Running {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program).args(words).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    Running(child, line.trim().parse().unwrap())
}

fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn theirs(command: &mut Command, address: SocketAddr) -> Running {
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), address);
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), up)
        .await
        .expect("a proxy does not listen after 10 seconds");
    running
}

async fn nginx(folder: &Path, backend: SocketAddr) -> Running {
    let address = free();
    // One process, which is the worker: it ends when it is killed.
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log /dev/null; events {{ worker_connections 1024; }}
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
         uwsgi_temp_path u; scgi_temp_path s;
         upstream backend {{ server {backend}; keepalive 64; keepalive_requests 1000000000; }}
         server {{ listen {address}; server_name bench.example; location / {{ proxy_pass http://backend; proxy_http_version 1.1;
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; }} }} }}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    theirs(
        Command::new("nginx").arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "/dev/null"]),
        address,
    )
    .await
}

async fn haproxy(folder: &Path, backend: SocketAddr) -> Running {
    let address = free();
    let text = format!(
        "global\n nbthread 1\n maxconn 1024\ndefaults\n mode http\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
         frontend in\n bind {address}\n option forwardfor\n http-request set-header X-Forwarded-Proto http\n \
         http-request set-header X-Forwarded-Host %[req.hdr(Host)]\n default_backend out\n\
         backend out\n http-reuse always\n server one {backend}\n"
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    theirs(Command::new("haproxy").arg("-db").arg("-f").arg(&file), address).await
}

/// What was measured of one proxy.
#[derive(Default)]
struct Side {
    /// Requests a second, by round.
    rates: Vec<f64>,
    /// Seconds of each request.
    times: Vec<f64>,
}

impl Side {
    fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    fn microseconds(&mut self, part: f64) -> f64 {
        self.times.sort_by(f64::total_cmp);
        self.times[((self.times.len() - 1) as f64 * part) as usize] * 1e6
    }
}

/// So many clients, each of which asks again when it is answered.
async fn round(address: SocketAddr, connections: usize, time: Duration) -> (f64, Vec<f64>) {
    let begun = Instant::now();
    let clients: Vec<_> = (0..connections).map(|_| tokio::spawn(client(address, begun + time))).collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    (times.len() as f64 / begun.elapsed().as_secs_f64(), times)
}

async fn client(address: SocketAddr, until: Instant) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut buffer, mut times) = (vec![0; 16 * 1024], Vec::new());
    while Instant::now() < until {
        let before = Instant::now();
        stream.write_all(REQUEST).await.unwrap();
        let mut length = 0;
        loop {
            let count = stream.read(&mut buffer[length..]).await.unwrap();
            assert!(count > 0, "the connection was closed");
            length += count;
            let head = buffer[..length].windows(4).position(|part| part == b"\r\n\r\n");
            if head.is_some_and(|head| length >= head + 4 + BODY) {
                break;
            }
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..length]));
        times.push(before.elapsed().as_secs_f64());
    }
    times
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let backend = ours(&["backend"]);
    let endpoint = ours(&["endpoint", &backend.1.to_string()]);
    let nginx = nginx(folder.path(), backend.1).await;
    let haproxy = haproxy(folder.path(), backend.1).await;
    let names = ["wherry", "nginx", "haproxy", "no proxy"];
    let addresses = [endpoint.1, nginx.1, haproxy.1, backend.1];
    let mut table = format!(
        "{:11} {:9} {:>10} {:>8} {:>9} {:>9}\n",
        "connections", "", "requests/s", "ratio", "p50", "p99"
    );
    for connections in CONNECTIONS {
        let mut sides: [Side; 4] = Default::default();
        for address in addresses {
            round(address, connections, ROUND / 4).await;
        }
        for number in 0..ROUNDS {
            // Nobody comes always first, or always after the same.
            for at in (0..names.len()).map(|at| (at + number) % names.len()) {
                let (rate, times) = round(addresses[at], connections, ROUND).await;
                sides[at].rates.push(rate);
                sides[at].times.extend(times);
            }
        }
        let own = sides[0].rate();
        for (name, side) in names.iter().zip(&mut sides) {
            let (rate, p50, p99) = (side.rate(), side.microseconds(0.5), side.microseconds(0.99));
            let ratio = rate / own;
            writeln!(table, "{connections:11} {name:9} {rate:10.0} {ratio:7.2}x {p50:6.0} us {p99:6.0} us")
                .unwrap();
        }
    }
    print!("{table}");
    println!("requests/s: median of {ROUNDS} rounds of {} s, in turns; ratio: to wherry", ROUND.as_secs());
}
