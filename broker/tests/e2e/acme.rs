//! Certificates from Pebble, the small ACME server that Let's Encrypt tests with.
use crate::web::{Client, connector, get, name_server, own, port, publish, serving, spec};
use crate::world::*;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use wherry_net::dns::Upstream;
use wherry_protocol::message::*;

const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
const HOST: &str = "www.example.org";

/// How an authority looks at names, and what it gives.
struct Policy {
    http_port: u16,
    /// Seconds.
    validity: u64,
    /// Whether accounts must be known beforehand.
    external: bool,
}

/// An authority on loopback ports of its own.
struct Pebble {
    dir: tempfile::TempDir,
    ports: (u16, u16),
    names: std::net::SocketAddr,
    root: CertificateDer<'static>,
    pem: String,
    process: Child,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

impl Pebble {
    /// Starts one that asks `names` for addresses.
    async fn start(names: std::net::SocketAddr, policy: &Policy) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let ports = (free_port(), free_port());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", ports.0),
            "managementListenAddress": format!("127.0.0.1:{}", ports.1),
            "certificate": dir.path().join("cert.pem"),
            "privateKey": dir.path().join("key.pem"),
            "httpPort": policy.http_port,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": policy.external,
            "externalAccountMACKeys": { "kid-1": KEY },
            "certificateValidityPeriod": policy.validity,
            "retryAfter": { "authz": 1, "order": 1 },
        }});
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        let process = run_pebble(dir.path(), names);
        let pebble = Self { ports, names, root: made.cert.der().clone(), pem: made.cert.pem(), process, dir };
        pebble.up().await;
        pebble
    }

    async fn up(&self) {
        soon(async {
            while TcpStream::connect(("127.0.0.1", self.ports.0)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Ends it and starts another that knows nothing of it.
    async fn anew(&mut self) {
        self.process.kill().await.expect("killed");
        self.process = run_pebble(self.dir.path(), self.names);
        self.up().await;
    }

    fn settings(&self) -> AcmeSettings {
        AcmeSettings {
            directory: format!("https://127.0.0.1:{}/dir", self.ports.0),
            contacts: vec!["ann@example.org".into()],
            roots: self.pem.clone().into_bytes(),
            external_account: None,
            terms_agreed: true,
        }
    }

    /// Whom its certificates are to be trusted by.
    async fn authority(&self) -> CertificateDer<'static> {
        let tcp = soon(TcpStream::connect(("127.0.0.1", self.ports.1))).await.expect("a connection");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let tls = soon(connector(&self.root).connect(name, tcp)).await.expect("TLS");
        let answer = Client(BufReader::new(tls)).get("127.0.0.1", "/roots/0").await;
        CertificateDer::from_pem_slice(answer.body.as_bytes()).expect("a certificate")
    }
}

fn run_pebble(dir: &Path, names: std::net::SocketAddr) -> Child {
    let log = std::fs::File::create(dir.join("log")).expect("a log");
    Command::new("pebble")
        .args(["-strict", "-dnsserver", &names.to_string(), "-config"])
        .arg(dir.join("config.json"))
        // At once, with proofs every time, and a third of all requests refused for their nonce (RFC 8555 §6.5).
        .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "30")])
        .stdout(log.try_clone().expect("a log"))
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .expect("pebble is missing: cargo xtask setup")
}

async fn certificate(user: &User) -> CertificateInfo {
    match user.ask(Request::Endpoints { all_accounts: false }).await {
        Reply::Endpoints(list) => list.into_iter().next().expect("a name").certificate,
        other => panic!("{other:?}"),
    }
}

/// Waits for a certificate that `good` finds good, longer than for anything else.
async fn certified(user: &User, good: impl Fn(&CertificateInfo) -> bool) -> CertificateInfo {
    let started = std::time::Instant::now();
    loop {
        let info = certificate(user).await;
        if good(&info) {
            return info;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "after a minute: {info:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn end(info: &CertificateInfo) -> Option<u64> {
    match info {
        CertificateInfo::Present { acme: true, not_after, problem: None, .. } => Some(*not_after),
        CertificateInfo::Present { .. } | CertificateInfo::Awaited { .. } | CertificateInfo::None => None,
    }
}

struct World {
    broker: Broker,
    admin: User,
    user: User,
    _board: Board,
    names: std::net::SocketAddr,
    /// What the name server says.
    address: watch::Sender<IpAddr>,
}

/// A cluster whose domain is proven, and a name server that leads everybody to it.
async fn world() -> World {
    let broker = Broker::start().await;
    let (admin, user, board) = (broker.user(1).await, broker.user(10).await, broker.board(100).await);
    user.push("web", b"layer").await;
    own(&broker, &user, "example.org").await;
    let (address, told) = watch::channel(broker.ip);
    let names = name_server("nothing".into(), told).await;
    broker.names.send_replace(Upstream::at(vec![names]));
    serving(&user, "one").await;
    World { broker, admin, user, _board: board, names, address }
}

impl World {
    async fn configure(&self, settings: AcmeSettings) {
        let reply = self.admin.ask(Request::ConfigureAcme(Some(Box::new(settings)))).await;
        assert_eq!(reply, Reply::Done);
    }
}

async fn over_tls(broker: &Broker, root: &CertificateDer<'static>) -> u16 {
    let tcp = soon(TcpStream::connect((broker.ip, 443))).await.expect("a connection");
    let name = ServerName::try_from(HOST).expect("a name");
    let tls = soon(connector(root).connect(name, tcp)).await.expect("a certificate of the authority's");
    Client(BufReader::new(tls)).get(HOST, "/").await.status
}

fn by_acme() -> EndpointSpec {
    EndpointSpec { certificate: CertificateSource::Acme, ..spec(HOST) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_and_is_renewed() {
    let world = world().await;
    // Renewed eight seconds after it came.
    let policy = Policy { http_port: 80, validity: 12, external: false };
    let mut pebble = Pebble::start(world.names, &policy).await;
    world.configure(pebble.settings()).await;
    let info = publish(&world.user, by_acme()).await;
    assert_eq!(info.certificate, CertificateInfo::Awaited { problem: None });
    let first = certified(&world.user, |info| end(info).is_some()).await;
    assert_eq!(over_tls(&world.broker, &pebble.authority().await).await, 200);
    assert_eq!(get(&world.broker, HOST, "/").await.status, 308, "to https from now on");
    // The authority has forgotten the account.
    pebble.anew().await;
    let second = certified(&world.user, |info| end(info) > end(&first)).await;
    assert_eq!(over_tls(&world.broker, &pebble.authority().await).await, 200);
    // The account and the certificate outlive a restart of the broker.
    let broker = world.broker.restart().await;
    world.address.send_replace(broker.ip);
    broker.names.send_replace(Upstream::at(vec![world.names]));
    port(&broker, 443, true).await;
    let user = broker.session(world.user.key.clone(), world.user.account).await;
    certified(&user, |info| end(info) > end(&second)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_port_80_does_not_lead_here_the_other_way_is_tried() {
    let world = world().await;
    let policy = Policy { http_port: free_port(), validity: 3600, external: true };
    let pebble = Pebble::start(world.names, &policy).await;
    // An account of one's own is needed, and this is none.
    world.configure(pebble.settings()).await;
    publish(&world.user, by_acme()).await;
    let problem = |info: &CertificateInfo, word: &str| match info {
        CertificateInfo::Awaited { problem: Some(problem) } => problem.contains(word),
        CertificateInfo::Awaited { .. } | CertificateInfo::Present { .. } | CertificateInfo::None => false,
    };
    certified(&world.user, |info| problem(info, "no account with the authority")).await;
    let external_account = Some(("kid-1".to_owned(), KEY.to_owned()));
    world.configure(AcmeSettings { external_account, ..pebble.settings() }).await;
    // The first proof is looked for at a port where nobody listens.
    certified(&world.user, |info| problem(info, "refuses the proof")).await;
    certified(&world.user, |info| end(info).is_some()).await;
    assert_eq!(over_tls(&world.broker, &pebble.authority().await).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_nobody_vouches_for_is_not_talked_to() {
    let world = world().await;
    let policy = Policy { http_port: 80, validity: 3600, external: false };
    let pebble = Pebble::start(world.names, &policy).await;
    world.configure(AcmeSettings { roots: Vec::new(), ..pebble.settings() }).await;
    publish(&world.user, by_acme()).await;
    let refused = |info: &CertificateInfo| match info {
        CertificateInfo::Awaited { problem: Some(problem) } => {
            problem.contains("127.0.0.1 does not prove who it is")
        }
        CertificateInfo::Awaited { .. } | CertificateInfo::Present { .. } | CertificateInfo::None => false,
    };
    certified(&world.user, refused).await;
    // And it is served without TLS meanwhile.
    assert_eq!(get(&world.broker, HOST, "/").await.status, 200);
}
