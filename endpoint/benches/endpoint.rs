//! Requests through the endpoint, next to Debian's nginx and HAProxy as reverse proxies before the same backend, in turns; and
//! straight to that backend, which is what no proxy can reach. One worker each, connections kept alive on both sides, asked by
//! h2load: HTTP/1.1 as it is and in TLS, and HTTP/2 in TLS. Handshakes are not counted.
//! `cargo bench -p wherry-endpoint --profile tools`; Debian packages `nginx-light`, `haproxy` and `nghttp2-client`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use wherry_endpoint::{
    Backend, Backends, Challenges, Cluster, Config, ConnectError, CookieKey, Counters, Host, HostName,
    Limits, Listeners, StoredCertificate, Table, serve,
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(300);
const HOST: &str = "bench.example";
/// What a browser sends, about.
const FIELDS: [&str; 4] = [
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
    "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en",
    "Cookie: session=0123456789abcdef",
];
const BODY: usize = 1024;
const PEERS: [(&str, &str); 3] =
    [("nginx", "nginx-light"), ("haproxy", "haproxy"), ("h2load", "nghttp2-client")];

/// How clients ask.
struct Way {
    name: &'static str,
    tls: bool,
    http2: bool,
    connections: usize,
    /// Requests in flight of each connection.
    streams: usize,
}

const WAYS: [Way; 4] = [
    Way { name: "HTTP/1.1", tls: false, http2: false, connections: 1, streams: 1 },
    Way { name: "HTTP/1.1", tls: false, http2: false, connections: 64, streams: 1 },
    Way { name: "HTTP/1.1 in TLS", tls: true, http2: false, connections: 64, streams: 1 },
    Way { name: "HTTP/2 in TLS", tls: true, http2: true, connections: 8, streams: 8 },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["backend"] => run(backend()),
        ["endpoint", backend, folder] => run(endpoint(backend.parse().unwrap(), Path::new(folder))),
        [] => {
            for (program, package) in PEERS {
                if Command::new(program).arg("--version").output().is_err() {
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

async fn endpoint(backend: SocketAddr, folder: &Path) {
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let https = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{} {}", http.local_addr().unwrap(), https.local_addr().unwrap());
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let certificate = StoredCertificate::read(&read("cert.pem"), &read("key.pem")).unwrap();
    let cluster = Cluster { backends: vec![Backend { id: 1, weight: 1, healthy: true }] };
    let mut host = Host::new(HostName::new(HOST).unwrap(), Arc::new(cluster));
    host.certificate = Some(certificate.key());
    host.redirect_to_https = false;
    let (_table, tables) = watch::channel(Arc::new(Table::new([host]).unwrap()));
    let config = Config {
        limits: Limits::default(),
        cookie_key: CookieKey::new(&[0; 32]),
        challenges: Challenges::default(),
        identify: Arc::new(|_| wherry_endpoint::Who::Client),
        observer: Arc::new(Counters::default()),
    };
    let listeners = Listeners { http, https: Some(https) };
    serve(listeners, tables, One(backend), config, std::future::pending()).await.unwrap();
}

/// A process that ends with us, and where it listens: as it is, and for TLS.
struct Running(Child, [SocketAddr; 2]);

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
    let addresses: Vec<SocketAddr> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    Running(child, [addresses[0], *addresses.last().unwrap()])
}

fn free() -> [SocketAddr; 2] {
    // Both at once, or they would be the same.
    let bound = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    bound.map(|listener| listener.local_addr().unwrap())
}

async fn theirs(command: &mut Command, addresses: [SocketAddr; 2]) -> Running {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = Running(child, addresses);
    let up = async {
        while TcpStream::connect(addresses[1]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), up)
        .await
        .expect("a proxy does not listen after 10 seconds");
    running
}

async fn nginx(folder: &Path, backend: SocketAddr) -> Running {
    let addresses @ [http, https] = free();
    // One process, which is the worker: it ends when it is killed.
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log /dev/null; events {{ worker_connections 1024; }}
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
         uwsgi_temp_path u; scgi_temp_path s; ssl_protocols TLSv1.2 TLSv1.3;
         upstream backend {{ server {backend}; keepalive 64; keepalive_requests 1000000000; }}
         server {{ listen {http}; listen {https} ssl http2; server_name {HOST}; ssl_certificate cert.pem; ssl_certificate_key key.pem;
         location / {{ proxy_pass http://backend; proxy_http_version 1.1;
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; }} }} }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    theirs(command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "/dev/null"]), addresses).await
}

async fn haproxy(folder: &Path, backend: SocketAddr) -> Running {
    let addresses @ [http, https] = free();
    let certificate = folder.join("both.pem");
    let text = format!(
        "global\n nbthread 1\n maxconn 1024\ndefaults\n mode http\n timeout connect 3s\n timeout client 60s\n timeout server 60s\n\
         frontend in\n bind {http}\n bind {https} ssl crt {} alpn h2,http/1.1\n option forwardfor\n \
         http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n \
         http-request set-header X-Forwarded-Host %[req.hdr(Host)]\n default_backend out\n\
         backend out\n http-reuse always\n server one {backend}\n",
        certificate.display()
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    theirs(Command::new("haproxy").arg("-db").arg("-f").arg(&file), addresses).await
}

/// A certificate of [`HOST`], for each of the three as it wants it.
fn certify(folder: &Path) {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let certificate = pem("CERTIFICATE", made.cert.der());
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    fs::write(folder.join("cert.pem"), &certificate).unwrap();
    fs::write(folder.join("key.pem"), &key).unwrap();
    fs::write(folder.join("both.pem"), certificate + &key).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    // OpenSSL wants short lines.
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// What was measured of one proxy.
#[derive(Default)]
struct Side {
    /// Requests a second, by round.
    rates: Vec<f64>,
    /// Microseconds of each request.
    times: Vec<u32>,
    /// Microseconds of a processor for each request, by round.
    work: Vec<f64>,
}

/// Clock ticks a second in /proc, on every Linux that Wherry runs on.
const TICKS: f64 = 100.0;

/// Seconds that a process has had a processor for.
fn worked(process: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    // proc(5): utime and stime.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / TICKS).sum()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Side {
    fn microseconds(&mut self, percent: usize) -> u32 {
        let at = (self.times.len() - 1) * percent / 100;
        *self.times.select_nth_unstable(at).1
    }

    /// One round of h2load: all that came back is the answer that was asked for.
    fn ask(&mut self, folder: &Path, way: &Way, Running(process, addresses): &Running, time: Duration) {
        let log = folder.join("requests");
        let (scheme, address) = if way.tls { ("https", addresses[1]) } else { ("http", addresses[0]) };
        let mut command = Command::new("h2load");
        command.arg(format!("--duration={}ms", time.as_millis()));
        command.arg(format!("--warm-up-time={}ms", WARM_UP.as_millis()));
        command.arg(format!("--connect-to={address}")).arg(format!("--log-file={}", log.display()));
        command.args(["-c", &way.connections.to_string(), "-m", &way.streams.to_string()]);
        command.args(FIELDS.iter().flat_map(|field| ["-H", field]));
        command.args((!way.http2).then_some("--h1"));
        let before = worked(process.id());
        let output = command.arg(format!("{scheme}://{HOST}/some/path?query=1")).output().unwrap();
        let work = worked(process.id()) - before;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "h2load: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!way.http2 || said.contains("Application protocol: h2"), "h2load: {said}");
        let lines = fs::read_to_string(&log).unwrap();
        // Otherwise the next round would be added.
        fs::remove_file(&log).unwrap();
        let (mut done, mut unknown) = (0_u32, 0);
        for line in lines.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            match columns[1] {
                "200" => self.times.push(columns[2].parse().unwrap()),
                // The status came while h2load was still warming up, and it does not count those.
                "0" => unknown += 1,
                other => panic!("status {other}, h2load: {said}"),
            }
            done += 1;
        }
        assert!(
            said.contains(" 0 failed, 0 errored") && unknown <= way.connections * way.streams,
            "h2load: {said}"
        );
        let rate = f64::from(done) / time.as_secs_f64();
        self.rates.push(rate);
        // What was asked while warming up is not in the log.
        self.work.push(work * 1e6 / (rate * (time + WARM_UP).as_secs_f64()));
    }
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder);
    let backend = ours(&["backend"]);
    let endpoint = ours(&["endpoint", &backend.1[0].to_string(), &folder.display().to_string()]);
    let nginx = nginx(folder, backend.1[0]).await;
    let haproxy = haproxy(folder, backend.1[0]).await;
    let all = [("wherry", &endpoint), ("nginx", &nginx), ("haproxy", &haproxy), ("no proxy", &backend)];
    println!(
        "{:15} {:>11} {:9} {:>10} {:>7} {:>9} {:>9} {:>10} {:>7}",
        "endpoint", "in flight", "", "requests/s", "ratio", "p50", "p99", "processor", "ratio"
    );
    for way in &WAYS {
        // The backend speaks no TLS.
        let those = &all[..if way.tls { 3 } else { 4 }];
        let mut sides: Vec<Side> = those.iter().map(|_| Side::default()).collect();
        for number in 0..ROUNDS {
            // Nobody comes always first, or always after the same.
            for at in (0..those.len()).map(|at| (at + number) % those.len()) {
                sides[at].ask(folder, way, those[at].1, ROUND);
            }
        }
        let [own, own_work] = [median(&sides[0].rates), median(&sides[0].work)];
        for ((name, _), side) in those.iter().zip(&mut sides) {
            let (rate, work) = (median(&side.rates), median(&side.work));
            let (p50, p99) = (side.microseconds(50), side.microseconds(99));
            let in_flight = format!("{} x {}", way.connections, way.streams);
            let (ratio, work_ratio) = (rate / own, work / own_work);
            println!(
                "{:15} {in_flight:>11} {name:9} {rate:10.0} {ratio:6.2}x {p50:6} us {p99:6} us {work:7.1} us {work_ratio:6.2}x",
                way.name
            );
        }
    }
    println!(
        "requests/s: median of {ROUNDS} rounds of {} s, in turns, one worker each, answers of {BODY} bytes; processor: its time \
         for each request; ratio: to wherry; in flight: connections x requests of each",
        ROUND.as_secs()
    );
}
