//! The web endpoint, as browsers and their owners see it.
use crate::world::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::compat::FuturesAsyncReadCompatExt as _;
use wherry_net::dns::Upstream;
use wherry_protocol::Limits;
use wherry_protocol::io::{hello, recv, send};
use wherry_protocol::message::*;

/// A name server that says `text` for every name, and that it is at `address`.
pub(crate) async fn name_server(text: String, address: watch::Receiver<IpAddr>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let own = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut buffer).await {
            let answer = dns_answer(&buffer[..length], &text, *address.borrow());
            drop(socket.send_to(&answer, asker).await);
        }
    });
    own
}

/// The question alone, and behind it what is known: TXT (16) or A (1) of the name that was asked for.
fn dns_answer(asked: &[u8], text: &str, address: IpAddr) -> Vec<u8> {
    let mut end = 12;
    while asked[end] != 0 {
        end += usize::from(asked[end]) + 1;
    }
    let mut answer = asked[..end + 5].to_vec();
    let data = match asked[end + 2] {
        16 => [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat(),
        1 => address.to_string().split('.').map(|part| part.parse().expect("IPv4")).collect(),
        _ => Vec::new(),
    };
    // A response, with as many answers, and nothing after them.
    answer[2] |= 0x80;
    answer[6..12].copy_from_slice(&[0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    if !data.is_empty() {
        answer.extend_from_slice(&[0xc0, 12, 0, asked[end + 2], 0, 1, 0, 0, 0, 60, 0]);
        answer.push(u8::try_from(data.len()).expect("short data"));
        answer.extend_from_slice(&data);
    }
    answer
}

async fn prepare(user: &User, domain: &str) -> String {
    match user.ask(Request::PrepareDomain(domain.into())).await {
        Reply::Domain(DomainInfo { state: DomainState::Prepared { token, .. }, .. }) => token,
        other => panic!("{other:?}"),
    }
}

fn claim(domain: &str) -> Request {
    Request::ClaimDomain { domain: domain.into(), vouched: false }
}

pub(crate) async fn own(broker: &Broker, user: &User, domain: &str) {
    let token = prepare(user, domain).await;
    broker.names.send_replace(Upstream::at(vec![name_server(token, broker.address()).await]));
    let reply = user.ask(claim(domain)).await;
    let claimed = matches!(
        &reply,
        Reply::Domain(DomainInfo { state: DomainState::Claimed { vouched: false, .. }, .. })
    );
    assert!(claimed, "{reply:?}");
}

pub(crate) fn spec(host: &str) -> EndpointSpec {
    EndpointSpec {
        host: host.into(),
        routes: vec![EndpointRoute {
            prefix: "/".into(),
            to: Party::Labelled { key: "service".into(), value: "web".into() },
            port: HTTP,
        }],
        certificate: CertificateSource::None,
        options: EndpointOptions::default(),
        rules: None,
    }
}

pub(crate) async fn publish(user: &User, spec: EndpointSpec) -> EndpointInfo {
    match user.ask(Request::PublishEndpoint(Box::new(spec))).await {
        Reply::Endpoint(info) => *info,
        other => panic!("{other:?}"),
    }
}

/// Runs a container that is one of the service.
pub(crate) async fn serving(user: &User, name: &str) -> ContainerInfo {
    let run = run_with(name, |run| {
        run.spec.labels = vec![("service".into(), "web".into())];
    });
    user.container(run).await;
    user.container(Request::Wait { container: by_name(name), until: WaitUntil::Started }).await
}

async fn cluster() -> (Broker, User, Board) {
    let broker = Broker::start().await;
    let (user, board) = (broker.user(10).await, broker.board(100).await);
    user.push("web", b"layer").await;
    own(&broker, &user, "example.org").await;
    (broker, user, board)
}

/// Waits until the port answers, or does not any more.
pub(crate) async fn port(broker: &Broker, port: u16, open: bool) {
    soon(async {
        while TcpStream::connect((broker.ip, port)).await.is_ok() != open {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Reads one response with a length.
async fn response(stream: &mut (impl AsyncBufRead + Unpin)) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = soon(stream.read_line(&mut head)).await.expect("a line");
        assert_ne!(read, 0, "ended within {head:?}");
    }
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    soon(stream.read_exact(&mut body)).await.expect("the body");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    Answer { status, head, body: String::from_utf8(body).expect("text") }
}

/// A client that keeps its connection.
pub(crate) struct Client<S>(pub(crate) BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.expect("sent");
        response(&mut self.0).await
    }
}

async fn plain(broker: &Broker) -> Client<TcpStream> {
    Client(BufReader::new(soon(TcpStream::connect((broker.ip, 80))).await.expect("a connection")))
}

pub(crate) async fn get(broker: &Broker, host: &str, path: &str) -> Answer {
    plain(broker).await.get(host, path).await
}

pub(crate) fn connector(root: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_open_while_a_name_is_served() {
    let (broker, user, _board) = cluster().await;
    port(&broker, 80, false).await;
    let info = serving(&user, "one").await;
    publish(&user, spec("www.example.org")).await;
    port(&broker, 80, true).await;
    port(&broker, 443, true).await;
    let answer = get(&broker, "www.example.org", "/hello?x=1").await;
    assert_eq!((answer.status, answer.body), (200, format!("GET /hello?x=1 at {}\n", info.id)));
    let other = get(&broker, "www.example.com", "/").await;
    assert_eq!(other.status, 404, "{}", other.head);
    // Names survive a restart, and so does the proof.
    let broker = broker.restart().await;
    port(&broker, 80, true).await;
    assert_eq!(get(&broker, "www.example.org", "/").await.status, 503, "its board is not back");
    let user = broker.session(user.key.clone(), user.account).await;
    assert_eq!(user.ask(Request::RemoveEndpoint("www.example.org".into())).await, Reply::Done);
    port(&broker, 80, false).await;
    port(&broker, 443, false).await;
    // And again.
    publish(&user, spec("*.example.org")).await;
    port(&broker, 80, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_proven_in_the_dns() {
    let broker = Broker::start().await;
    let (ann, bob) = (broker.user(10).await, broker.user(11).await);
    let token = prepare(&ann, "example.org").await;
    let silent = ann.refused(claim("example.org")).await;
    assert!(silent.message.contains("no name server answers"), "{silent}");
    broker.names.send_replace(Upstream::at(vec![name_server("v=spf1 -all".into(), broker.address()).await]));
    let other = ann.refused(claim("example.org")).await;
    assert!(other.message.contains(&token) && other.message.contains("_wherry.example.org"), "{other}");
    broker.names.send_replace(Upstream::at(vec![name_server(token, broker.address()).await]));
    // What Ann published proves nothing for Bob.
    prepare(&bob, "example.org").await;
    let theirs = bob.refused(claim("example.org")).await;
    assert!(theirs.message.contains("_wherry.example.org"), "{theirs}");
    let unowned = bob.refused(Request::PublishEndpoint(Box::new(spec("www.example.org")))).await;
    assert!(unowned.message.contains("domain prepare"), "{unowned}");
    let reply = ann.ask(claim("example.org")).await;
    assert!(matches!(reply, Reply::Domain(_)), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ones_own_brings_tls() {
    let (broker, user, _board) = cluster().await;
    let container = serving(&user, "one").await;
    let made = rcgen::generate_simple_self_signed(["www.example.org".to_owned()]).unwrap();
    let certificate = CertificateSource::Given {
        chain: made_pem("CERTIFICATE", made.cert.der()),
        key: made_pem("PRIVATE KEY", &made.signing_key.serialize_der()),
    };
    let info = publish(&user, EndpointSpec { certificate, ..spec("www.example.org") }).await;
    assert!(matches!(info.certificate, CertificateInfo::Present { acme: false, .. }), "{info:?}");
    port(&broker, 443, true).await;
    let redirect = get(&broker, "www.example.org", "/a?b").await;
    assert_eq!(redirect.status, 308, "{}", redirect.head);
    assert!(redirect.head.contains("location: https://www.example.org/a?b\r\n"), "{}", redirect.head);
    let tcp = soon(TcpStream::connect((broker.ip, 443))).await.unwrap();
    let name = ServerName::try_from("www.example.org").unwrap();
    let tls = soon(connector(made.cert.der()).connect(name, tcp)).await.unwrap();
    let answer = Client(BufReader::new(tls)).get("www.example.org", "/a").await;
    assert_eq!((answer.status, answer.body), (200, format!("GET /a at {}\n", container.id)));
    // Nobody else's name is answered for.
    let tcp = soon(TcpStream::connect((broker.ip, 443))).await.unwrap();
    let name = ServerName::try_from("www.example.com").unwrap();
    soon(connector(made.cert.der()).connect(name, tcp)).await.expect_err("no certificate for that");
}

/// A board passes on what its containers say; who it is that says it counts for rules.
#[tokio::test(flavor = "multi_thread")]
async fn containers_ask_as_who_they_are() {
    let (broker, user, board) = cluster().await;
    let (shop, other) = (serving(&user, "shop").await, user.run("other").await);
    let rule = |method: &str, path: &str, callers| EndpointRule {
        methods: vec![method.into()],
        path: path.into(),
        callers,
    };
    let shops = || EndpointCaller::Containers(Party::Labelled { key: "service".into(), value: "web".into() });
    let rules = vec![rule("GET", "/user", vec![shops()]), rule("GET", "/", vec![EndpointCaller::Anyone])];
    publish(&user, EndpointSpec { rules: Some(rules), ..spec("api.example.org") }).await;
    publish(&user, spec("www.example.org")).await;
    port(&broker, 80, true).await;
    let mut log = user.open(&Request::AccessLog { host: None, follow: true }).await;
    assert_eq!(soon(reply(&mut log)).await, Reply::Done);
    let mut client = Client(BufReader::new(board.call(&shop, false).await.expect("a way").compat()));
    let answer = client.get("api.example.org", "/user").await;
    assert_eq!((answer.status, answer.body), (200, format!("GET /user at {}\n", shop.id)));
    let line = soon(recv::<AccessLine>(&mut log, 65_536)).await.unwrap().unwrap();
    let AccessLine::Request(entry) = line else { panic!("{line:?}") };
    assert_eq!(entry.client.ip(), IpAddr::V4(shop.address), "by its own address");
    assert_eq!(client.get("api.example.org", "/other").await.status, 403);
    // What is open to everybody is open to those outside; a container needs to be named.
    assert_eq!(client.get("www.example.org", "/").await.status, 404);
    assert_eq!(get(&broker, "api.example.org", "/user").await.status, 403);
    assert_eq!(get(&broker, "api.example.org", "/").await.status, 200);
    let refused = board.call(&other, false).await.expect_err("a refusal");
    assert_eq!(refused.code, wherry_protocol::ErrorCode::Forbidden);
}

fn made_pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = data_encoding::BASE64.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

/// Two clients ask without a pause, one on one connection and one on ever new ones, while all else changes.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_names_and_containers_come_and_go() {
    let (broker, user, _board) = cluster().await;
    serving(&user, "zero").await;
    publish(&user, spec("www.example.org")).await;
    port(&broker, 80, true).await;
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ip = broker.ip;
    let client = |keeps: bool| {
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            let fresh = || async { Client(BufReader::new(TcpStream::connect((ip, 80)).await.unwrap())) };
            let (mut client, mut count) = (fresh().await, 0_u32);
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                if !keeps {
                    client = fresh().await;
                }
                let answer = client.get("www.example.org", "/").await;
                assert_eq!(answer.status, 200, "after {count}: {}", answer.body);
                count += 1;
            }
            count
        })
    };
    let clients = [client(true), client(false)];
    let mut old = "zero".to_owned();
    for round in 0..12 {
        let (name, host) = (format!("c{round}"), format!("n{round}.example.org"));
        serving(&user, &name).await;
        publish(&user, spec(&host)).await;
        let stop = Request::Remove { container: by_name(&old), force: true };
        assert_eq!(user.ask(stop).await, Reply::Done);
        assert_eq!(user.ask(Request::RemoveEndpoint(host)).await, Reply::Done);
        old = name;
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        let count = soon(client).await.unwrap();
        assert!(count > 12, "only {count} requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_answered_when_the_broker_ends() {
    let (broker, user, board) = cluster().await;
    serving(&user, "one").await;
    publish(&user, spec("www.example.org")).await;
    port(&broker, 80, true).await;
    // The board comes back as one that takes its time.
    let (key, facts, containers) = board.leave().await;
    let (mux, mut incoming) = broker.dial(broker.sessions, &key).await.expect("a session");
    hello(&mux, "slow board").await.expect("a welcome");
    let mut control = mux.open().await.expect("a stream");
    let inventory = containers.lock().await.values().cloned().collect();
    let greeting = NodeHello { facts, load: load(), inventory };
    send(&mut control, &NodeCall::Control(Box::new(greeting))).await.expect("sent");
    // Connected means: it has been told what to do.
    soon(recv::<ToNode>(&mut control, Limits::DEFAULT.message_bytes)).await.unwrap().expect("an order");
    let mut waiting = plain(&broker).await;
    waiting.0.write_all(b"GET /late HTTP/1.1\r\nhost: www.example.org\r\n\r\n").await.unwrap();
    let mut asked = soon(incoming.next()).await.expect("a connection to the container");
    let at = (broker.ip, 80);
    let stopped = tokio::spawn(broker.stop());
    soon(async { while TcpStream::connect(at).await.is_ok() {} }).await;
    soon(recv::<Routed>(&mut asked, Limits::DEFAULT.message_bytes)).await.unwrap().expect("a request");
    send(&mut asked, &Reply::Done).await.expect("sent");
    let said = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
    asked.compat().write_all(said).await.expect("sent");
    let answer = response(&mut waiting.0).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "late"), "{}", answer.head);
    soon(stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_tells_accounts_of_their_own_names() {
    let (broker, user, _board) = cluster().await;
    let other = broker.user(11).await;
    serving(&user, "one").await;
    publish(&user, spec("www.example.org")).await;
    port(&broker, 80, true).await;
    let mut follow = user.open(&Request::AccessLog { host: None, follow: true }).await;
    assert_eq!(soon(reply(&mut follow)).await, Reply::Done);
    assert_eq!(get(&broker, "www.example.org", "/secret?token=1").await.status, 200);
    let line = soon(recv::<AccessLine>(&mut follow, 65_536)).await.unwrap().unwrap();
    let AccessLine::Request(entry) = line else { panic!("{line:?}") };
    assert_eq!((entry.host.as_str(), entry.status), ("www.example.org", Some(200)), "{entry:?}");
    assert!(!entry.path.contains("token"), "queries hold secrets: {entry:?}");
    let mut theirs = other.open(&Request::AccessLog { host: None, follow: false }).await;
    assert_eq!(soon(reply(&mut theirs)).await, Reply::Done);
    assert_eq!(soon(recv::<AccessLine>(&mut theirs, 65_536)).await.unwrap(), None);
    let named =
        other.refused(Request::AccessLog { host: Some("www.example.org".into()), follow: false }).await;
    assert_eq!(named.code, wherry_protocol::ErrorCode::NotFound, "{named}");
}
