//! Names on the web and domains: what is asked of the broker, and how its answers look.
use crate::world::World;
use serde_json::json;
use std::net::SocketAddr;
use wherry_protocol::message::*;
use wherry_protocol::{AccountId, Name};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// What the pretended broker knows of the web.
#[derive(Default)]
pub(crate) struct Web {
    pub(crate) endpoints: Vec<EndpointInfo>,
    pub(crate) domains: Vec<DomainInfo>,
    pub(crate) acme: Option<AcmeSettings>,
    pub(crate) published: Vec<EndpointSpec>,
    pub(crate) lines: Vec<AccessLine>,
}

impl Web {
    pub(crate) fn publish(&mut self, spec: EndpointSpec) -> Reply {
        let backend =
            |name_: &str, healthy| BackendInfo { container: name(name_), node: name("node1"), healthy };
        let route = |route: &EndpointRoute| RouteInfo {
            prefix: route.prefix.clone(),
            to: match &route.to {
                Party::Container(container) => format!("{container:?}"),
                Party::Labelled { key, value } => format!("label:{key}={value}"),
            },
            port: route.port,
            backends: match route.port {
                80 => vec![backend("one", true), backend("two", false)],
                _ => Vec::new(),
            },
        };
        let info = EndpointInfo {
            host: spec.host.clone(),
            account: AccountId(1),
            routes: spec.routes.iter().map(route).collect(),
            options: spec.options.clone(),
            rules: None,
            certificate: match spec.certificate {
                CertificateSource::None => CertificateInfo::None,
                CertificateSource::Acme => {
                    CertificateInfo::Awaited { problem: Some("no\x1b[31m luck".into()) }
                }
                CertificateSource::Given { .. } => CertificateInfo::Present {
                    acme: false,
                    not_before: 0,
                    not_after: u64::from(u32::MAX),
                    problem: None,
                },
            },
            created_seconds: 1_000_000_000,
        };
        self.published.push(spec);
        self.endpoints.push(info.clone());
        Reply::Endpoint(Box::new(info))
    }

    pub(crate) fn domain(&mut self, domain: &str, state: DomainState) -> Reply {
        let info = DomainInfo { domain: domain.into(), account: AccountId(1), owner: name("ada"), state };
        self.domains.retain(|old| old.domain != domain);
        self.domains.push(info.clone());
        Reply::Domain(info)
    }
}

#[test]
fn names_are_published_as_asked_and_shown() {
    let world = World::joined();
    let published = world.run(&[
        "endpoint",
        "publish",
        "www.example.org",
        "service:web:80",
        "/api=label:tier=api:8080",
        "--sticky",
        "--rewrite-host",
        "inner:81",
        "--max-body",
        "10m",
        "--allow",
        "get,HEAD /user/* for service:web,10.0.0.0/8",
        "--allow",
        "/ for anyone",
    ]);
    assert_eq!(
        published.ok(),
        "http://www.example.org is served; no container of label:tier=api is well yet\n"
    );
    let spec = world.broker.state().web.published[0].clone();
    let labelled = |key: &str, value: &str| Party::Labelled { key: key.into(), value: value.into() };
    assert_eq!(spec.routes[0].to, labelled("service", "web"));
    assert_eq!((spec.routes[1].prefix.as_str(), spec.routes[1].port), ("/api", 8080));
    assert!(spec.options.sticky && !spec.options.plain && !spec.options.hsts);
    assert_eq!(spec.options.rewrite_host.as_deref(), Some("inner:81"));
    assert_eq!(spec.options.max_body_bytes, Some(10 << 20));
    let rules = spec.rules.unwrap();
    assert_eq!(rules[0].methods, ["GET", "HEAD"]);
    assert_eq!(rules[0].callers[0], EndpointCaller::Containers(labelled("service", "web")));
    assert_eq!(rules[1].callers, [EndpointCaller::Anyone]);
    let listed = world.line("endpoint ls");
    let lines: Vec<Vec<&str>> = listed.ok().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            vec!["HOST", "PATH", "TO", "WELL", "CERTIFICATE"],
            vec!["www.example.org", "/", "label:service=web:80", "1/2", "none"],
            vec!["/api", "label:tier=api:8080", "0/0"],
        ]
    );
    let inspected = world.line("endpoint inspect WWW.example.org").json();
    assert_eq!(
        inspected[0]["routes"][0]["backends"][1],
        json!({"container": "two", "node": "node1", "healthy": false})
    );
    assert_eq!(inspected[0]["certificate"], json!({"state": "none"}));
    world.line("endpoint inspect other").fails(1, "no name of yours is 'other'");
    assert_eq!(world.line("endpoint rm www.example.org").ok(), "www.example.org\n");
    world.line("endpoint rm www.example.org").fails(1, "no endpoint is called");
}

#[test]
fn certificates_are_read_and_awaited() {
    let world = World::joined();
    let (cert, key) = (world.home.path().join("cert.pem"), world.home.path().join("key.pem"));
    std::fs::write(&cert, "chain").unwrap();
    std::fs::write(&key, "key").unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let publish = ["endpoint", "publish", "www.example.org", "service:web:80"];
    let given = world.run(&[&publish[..], &["--cert", cert, "--key", key, "--hsts"]].concat());
    assert_eq!(given.ok(), "https://www.example.org is served\n");
    let sent = world.broker.state().web.published[0].certificate.clone();
    assert!(sent == CertificateSource::Given { chain: b"chain".to_vec(), key: b"key".to_vec() });
    let missing = world.run(&[&publish[..], &["--cert", "/nowhere", "--key", key]].concat());
    missing.fails(1, "cannot read /nowhere");
    std::fs::write(cert, vec![b'x'; 70_000]).unwrap();
    let large = world.run(&[&publish[..], &["--cert", cert, "--key", key]].concat());
    large.fails(1, "no certificate or key has more than");
    let awaited = world.run(&[&publish[..], &["--acme"]].concat());
    assert_eq!(awaited.ok(), "https://www.example.org is served as soon as its certificate is there\n");
    let listed = world.line("endpoint ls");
    assert!(listed.ok().contains("not yet: no?[31m luck"), "{listed:?}");
}

#[test]
fn what_makes_no_sense_is_refused_before_the_broker_is_asked() {
    let world = World::joined();
    let publish = ["endpoint", "publish", "www.example.org"];
    let wrong: [(&[&str], &str); 9] = [
        (&["web"], "is not a route: use [/path=]to:port"),
        (&["web:0"], "is not a route"),
        (&["web:80/udp"], "is not a route"),
        (&["web:80", "--cert", "a"], "--key"),
        (&["web:80", "--plain"], "required"),
        (&["web:80", "--hsts"], "required"),
        (&["web:80", "--max-body", "much"], "is not a size"),
        (&["web:80", "--allow", "GET /"], "is not a rule: use [methods] path for callers"),
        (&["web:80", "--allow", "/ for 10.0.0.0/40"], "10.0.0.0/40"),
    ];
    for (more, words) in wrong {
        world.run(&[&publish[..], more].concat()).fails(2, words);
    }
    world.line("endpoint acme --external-account nobody").fails(2, "kid-1:");
    world.line("endpoint acme --off --contact a@b.c").fails(2, "cannot be used with");
    assert!(world.broker.state().web.published.is_empty());
}

#[test]
fn the_authority_is_chosen_by_the_admin() {
    let world = World::joined();
    let chosen =
        world.line("endpoint acme --agree-terms --contact ada@example.org --external-account kid:a2V5");
    assert_eq!(chosen.ok(), "certificates come from https://acme-v02.api.letsencrypt.org/directory\n");
    let settings = world.broker.state().web.acme.clone().unwrap();
    assert_eq!(settings.contacts, ["ada@example.org"]);
    assert_eq!(settings.external_account, Some(("kid".into(), "a2V5".into())));
    assert!(settings.terms_agreed && settings.roots.is_empty());
    assert_eq!(world.line("endpoint acme --off").ok(), "nobody is asked for certificates any more\n");
    assert!(world.broker.state().web.acme.is_none());
}

#[test]
fn domains_are_proven_shared_and_released() {
    let world = World::joined();
    let prepared = world.line("domain prepare example.org");
    let lines: Vec<&str> = prepared.ok().lines().collect();
    assert!(lines[0].starts_with("put this TXT record into the DNS within "), "{prepared:?}");
    assert!(lines[0].ends_with("then run `wherry domain claim example.org`:"), "{prepared:?}");
    assert_eq!(lines[1], "_wherry.example.org  wherry-0123");
    assert_eq!(world.line("domain ls --json").json()[0]["record"], "_wherry.example.org");
    assert_eq!(world.line("domain claim example.org").ok(), "example.org is yours\n");
    assert_eq!(world.line("domain share example.org").ok(), "everybody may serve names in example.org\n");
    let listed = world.line("domain ls");
    let rows: Vec<Vec<&str>> = listed.ok().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["example.org", "ada", "for", "everybody", "DNS"]);
    world.line("domain claim example.com --vouch").ok();
    assert!(world.line("domain ls").ok().contains("an admin's word"));
    assert_eq!(world.line("domain release example.org").ok(), "example.org\n");
}

#[test]
fn requests_are_told_of() {
    let world = World::joined();
    let client: SocketAddr = "[::ffff:192.0.2.7]:4711".parse().unwrap();
    let entry = AccessEntry {
        unix_ms: 1_000_000_000_123,
        host: "www.example.org".into(),
        client,
        method: "GET".into(),
        path: "/a\x1b[31m".into(),
        status: Some(200),
        received: 0,
        sent: 5,
        micros: 1234,
        backend: Some(name("one")),
        encryption: Some("TLS 1.3".into()),
        http2: true,
        refusal: None,
        complete: true,
    };
    let refused = AccessEntry {
        status: Some(403),
        backend: None,
        encryption: None,
        http2: false,
        refusal: Some("no rule allows it".into()),
        complete: false,
        ..entry.clone()
    };
    world.broker.state().web.lines = vec![
        AccessLine::Request(Box::new(entry)),
        AccessLine::Lost(3),
        AccessLine::Request(Box::new(refused)),
    ];
    let log = world.line("endpoint log");
    assert_eq!(
        log.ok(),
        "2001-09-09T01:46:40.123Z 192.0.2.7 www.example.org GET /a?[31m HTTP/2 TLS 1.3 200 5 bytes in 1.234 ms, one\n\
         2001-09-09T01:46:40.123Z 192.0.2.7 www.example.org GET /a?[31m HTTP/1.1 plain 403 5 bytes in 1.234 ms, refused: no rule allows it (cut off)\n"
    );
    assert!(log.err.contains("3 lines were lost"), "{log:?}");
    let lines = world.line("endpoint log --json");
    let lines: Vec<serde_json::Value> =
        lines.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["backend"]), (&json!("request"), &json!("one")));
    assert_eq!(lines[1], json!({"event": "lost", "count": 3}));
}
