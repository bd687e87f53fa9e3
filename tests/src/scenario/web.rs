//! Names on the web, from a browser's side: curl stands for it.
use super::view::{container, wait_for_state};
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::wait::until;
use crate::world::World;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const HOST: &str = "www.shop.test";

/// Somebody with a browser, who finds the name at the broker.
struct Visitor {
    broker: Ipv4Addr,
    directory: TempDir,
}

/// What curl tells of an answer.
#[derive(Debug)]
struct Answer {
    status: String,
    version: String,
    location: String,
    body: String,
    error: String,
}

impl Visitor {
    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn get(&self, url: &str, more: &[&str]) -> Result<Answer, Failure> {
        let resolve = |port: u16| format!("{HOST}:{port}:{}", self.broker);
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*"])
            .args(["--resolve", &resolve(80), "--resolve", &resolve(443), "--cacert", &self.path("cert.pem")])
            .args(["--write-out", "\n%{http_code} %{http_version} %{redirect_url}"])
            .args(more)
            .arg(url)
            .output()
            .map_err(Failure::io("run curl"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, told) = text.rsplit_once('\n').unwrap_or(("", &text));
        let mut told = told.split(' ').map(str::to_owned);
        let mut next = || told.next().unwrap_or_default();
        Ok(Answer {
            status: next(),
            version: next(),
            location: next(),
            body: body.to_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn expect(&self, url: &str, more: &[&str], status: &str) -> Result<Answer, Failure> {
        let answer = self.get(url, more)?;
        ensure(answer.status == status, || format!("{url} gives {answer:?} rather than {status}"))?;
        Ok(answer)
    }
}

/// One of the service, on this node, that answers when it is asked.
fn start(admin: &Wherry, name: &str, node: &str) -> Result<(), Failure> {
    admin.ok(&["run", "-d", "--name", name, "--node", node, "--label", "service=shop", "web"])?;
    wait_for_state(admin, name, "running", SOON)?;
    admin.ok(&["wait", "--tcp", "80", name]).map(drop)
}

/// A name leads to containers on all boards, in the clear and by TLS, and to nobody but those who may.
pub(super) fn endpoint(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let nodes = world.nodes();
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let visitor = Visitor { broker: world.broker(), directory };
    let (first, last) =
        (nodes.first().cloned().unwrap_or_default(), nodes.last().cloned().unwrap_or_default());
    let url = format!("http://{HOST}/");
    let unclaimed = admin.run(&["endpoint", "publish", HOST, "service:shop:80"])?;
    ensure(unclaimed.code == 1 && unclaimed.stderr.contains("wherry domain prepare"), || {
        format!("{unclaimed:?}")
    })?;
    admin.ok(&["domain", "claim", "shop.test", "--vouch"])?;
    let closed = visitor.get(&url, &[])?;
    ensure(closed.error.contains("refused") || closed.error.contains("Couldn't connect"), || {
        format!("port 80 without a name: {closed:?}")
    })?;
    start(admin, "shop1", &first)?;
    start(admin, "shop2", &last)?;
    admin.ok(&["endpoint", "publish", HOST, "service:shop:80"])?;
    let page =
        until("the page", SOON, || visitor.expect(&url, &[], "200").map_err(|failure| failure.to_string()))?;
    ensure(page.body.contains("Hello from a container"), || format!("the page is {page:?}"))?;
    visitor.expect(&url, &["--header", "Host: other.test"], "404")?;
    both_answer(admin, &visitor, &url)?;
    encrypted(admin, &visitor)?;
    rules(admin, &visitor)?;
    callers(admin, &last)?;
    changes(world, &visitor, &url)?;
    admin.ok(&["endpoint", "rm", HOST])?;
    until("closed ports", SOON, || match visitor.get(&url, &[]) {
        Ok(answer) if answer.status == "000" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    admin.ok(&["domain", "release", "shop.test"])?;
    admin.ok(&["rm", "-f", "shop2", "shop3"]).map(drop)
}

/// Requests are spread, and told of in the access log.
fn both_answer(admin: &Wherry, visitor: &Visitor, url: &str) -> Result<(), Failure> {
    for _ in 0..6 {
        visitor.expect(&format!("{url}?secret=1"), &[], "200")?;
    }
    let log = admin.ok(&["endpoint", "log", HOST])?;
    ensure(log.contains("shop1") && log.contains("shop2"), || format!("the log is {log}"))?;
    ensure(!log.contains("secret"), || format!("the log tells of queries: {log}"))?;
    let listed = admin.ok(&["endpoint", "ls"])?;
    ensure(listed.contains(HOST) && listed.contains("service=shop:80"), || format!("listed is {listed}"))
}

/// A certificate of one's own: TLS, HTTP/2, and everybody is sent there.
fn encrypted(admin: &Wherry, visitor: &Visitor) -> Result<(), Failure> {
    let (cert, key) = (visitor.path("cert.pem"), visitor.path("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=shop", "-addext", &format!("subjectAltName=DNS:{HOST}")])
        .args(["-keyout", &key, "-out", &cert])
        .output()
        .map_err(Failure::io("run openssl"))?;
    ensure(made.status.success(), || String::from_utf8_lossy(&made.stderr).into_owned())?;
    let wrong = ["endpoint", "publish", "shop.test", "service:shop:80", "--cert", &cert, "--key", &key];
    admin.refused(&wrong, "the certificate is not for shop.test")?;
    ensure(Path::new(&key).exists(), || "the key is gone".into())?;
    admin.ok(&["endpoint", "publish", HOST, "service:shop:80", "--cert", &cert, "--key", &key])?;
    let url = format!("https://{HOST}/");
    let answer = until("the page by TLS", SOON, || {
        visitor.expect(&url, &[], "200").map_err(|failure| failure.to_string())
    })?;
    ensure(answer.version == "2", || format!("{answer:?}"))?;
    visitor.expect(&url, &["--http1.1", "--tls-max", "1.2"], "200")?;
    let sent_on = visitor.expect(&format!("http://{HOST}/a?b"), &[], "308")?;
    ensure(sent_on.location == format!("https://{HOST}/a?b"), || format!("{sent_on:?}"))
}

/// What no rule allows is refused.
fn rules(admin: &Wherry, visitor: &Visitor) -> Result<(), Failure> {
    let url = format!("http://{HOST}/");
    let publish = ["endpoint", "publish", HOST, "service:shop:80", "--allow"];
    admin.ok(&[&publish[..], &["GET / for anyone", "--allow", "/admin/* for 10.99.0.0/16"]].concat())?;
    until("the rules", SOON, || {
        visitor.expect(&url, &["--request", "POST"], "403").map_err(|failure| failure.to_string())
    })?;
    visitor.expect(&url, &[], "200")?;
    visitor.expect(&format!("{url}admin/"), &[], "403")?;
    visitor.expect(&format!("{url}x/..%2fadmin/"), &["--path-as-is"], "400")?;
    admin.ok(&["endpoint", "publish", HOST, "service:shop:80"]).map(drop)
}

/// A container may ask what a rule allows it, by the name, and nothing else.
fn callers(admin: &Wherry, node: &str) -> Result<(), Failure> {
    let label = ["--label", "service=buyer", "--egress", "none", "client", "sleep", "1d"];
    admin.ok(&[&["run", "-d", "--name", "buyer", "--node", node], &label[..]].concat())?;
    wait_for_state(admin, "buyer", "running", SOON)?;
    let fetch = |path: &str| {
        let url = format!("http://{HOST}{path}");
        admin.run(&["exec", "buyer", "--", "busybox", "timeout", "3", "wget", "-qO-", &url])
    };
    let stranger = fetch("/")?;
    ensure(stranger.code != 0, || format!("a container that no rule names: {stranger:?}"))?;
    let publish = ["endpoint", "publish", HOST, "service:shop:80", "--allow"];
    admin.ok(&[&publish[..], &["GET / for service:buyer"]].concat())?;
    let page = until("the page for a container", SOON, || match fetch("/") {
        Ok(outcome) if outcome.code == 0 => Ok(outcome.stdout),
        other => Err(format!("{other:?}")),
    })?;
    ensure(page.contains("Hello from a container"), || format!("the page is {page}"))?;
    let other = fetch("/index.html")?;
    ensure(other.code != 0 && other.stderr.contains("403"), || format!("what no rule allows: {other:?}"))?;
    let board = admin.run(&["exec", "buyer", "--", "busybox", "timeout", "3", "nc", "10.2.0.1", "22"])?;
    ensure(board.code != 0, || format!("another port of the board: {board:?}"))?;
    admin.ok(&["endpoint", "publish", HOST, "service:shop:80"])?;
    until("a way that is closed", SOON, || match fetch("/") {
        Ok(outcome) if outcome.code != 0 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    admin.ok(&["rm", "-f", "buyer"]).map(drop)
}

/// Somebody asks without a pause while containers go and come.
fn changes(world: &dyn World, visitor: &Visitor, url: &str) -> Result<(), Failure> {
    let (admin, over) = (world.admin(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut count = 0_u32;
            while !over.load(Ordering::Relaxed) {
                visitor.expect(url, &[], "200")?;
                count += 1;
            }
            Ok::<u32, Failure>(count)
        });
        let changed = (|| {
            let second = container(admin, "shop2")?;
            start(admin, "shop3", &second.node)?;
            admin.ok(&["stop", "-t", "5", "shop1"])?;
            admin.ok(&["rm", "shop1"])?;
            admin.ok(&["endpoint", "publish", "new.shop.test", "service:shop:80"])?;
            admin.ok(&["endpoint", "rm", "new.shop.test"]).map(drop)
        })();
        over.store(true, Ordering::Relaxed);
        let count = asking.join().map_err(|_| Failure::Unexpected("a visitor panicked".into()))??;
        changed?;
        ensure(count > 10, || format!("only {count} requests"))
    })
}
