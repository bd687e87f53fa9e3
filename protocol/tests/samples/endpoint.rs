//! The web endpoint's.
use super::{Row, name, row, selector};
use std::net::Ipv4Addr;
use wherry_protocol::message::*;
use wherry_protocol::{AccountId, Prefix};

pub(super) fn rows() -> Vec<Row> {
    [requests(), replies(), parts()].into_iter().flatten().collect()
}

fn requests() -> Vec<Row> {
    let domain = || "example.org".to_owned();
    vec![
        row(Request::PublishEndpoint(Box::new(spec()))),
        row(Request::RemoveEndpoint("www.example.org".into())),
        row(Request::Endpoints { all_accounts: false }),
        row(Request::AccessLog { host: Some("www.example.org".into()), follow: true }),
        row(Request::Domains),
        row(Request::PrepareDomain(domain())),
        row(Request::ClaimDomain { domain: domain(), vouched: false }),
        row(Request::ShareDomain { domain: domain(), shared: true }),
        row(Request::ReleaseDomain(domain())),
        row(Request::ConfigureAcme(Some(Box::new(acme())))),
    ]
}

fn replies() -> Vec<Row> {
    vec![
        row(Reply::Endpoint(Box::new(info()))),
        row(Reply::Endpoints(vec![])),
        row(Reply::Domain(domain())),
        row(Reply::Domains(vec![domain()])),
        row(AccessLine::Request(Box::new(entry()))),
        row(AccessLine::Lost(3)),
    ]
}

fn parts() -> Vec<Row> {
    vec![
        row(CertificateSource::None),
        row(CertificateSource::Given { chain: b"c".to_vec(), key: b"k".to_vec() }),
        row(CertificateSource::Acme),
        row(EndpointCaller::Anyone),
        row(EndpointCaller::Network(Prefix::new(Ipv4Addr::new(192, 168, 50, 0), 24))),
        row(EndpointCaller::Containers(Party::Container(selector()))),
        row(CertificateInfo::None),
        row(CertificateInfo::Awaited { problem: Some("no".into()) }),
        row(CertificateInfo::Present { acme: true, not_before: 1, not_after: 2, problem: None }),
        row(DomainState::Prepared { token: "t".into(), expires_seconds: 1 }),
        row(DomainState::Claimed { shared: true, vouched: false, since_seconds: 1 }),
    ]
}

fn options() -> EndpointOptions {
    EndpointOptions {
        rewrite_host: Some("inner".into()),
        plain: true,
        sticky: false,
        hsts: true,
        max_body_bytes: Some(1000),
    }
}

fn spec() -> EndpointSpec {
    let labelled = || Party::Labelled { key: "service".into(), value: "web".into() };
    EndpointSpec {
        host: "www.example.org".into(),
        routes: vec![EndpointRoute { prefix: "/".into(), to: labelled(), port: 80 }],
        certificate: CertificateSource::Acme,
        options: options(),
        rules: Some(vec![EndpointRule {
            methods: vec!["GET".into()],
            path: "/*".into(),
            callers: vec![EndpointCaller::Anyone, EndpointCaller::Containers(labelled())],
        }]),
    }
}

fn info() -> EndpointInfo {
    let backends = vec![BackendInfo { container: name("web"), node: name("n1"), healthy: true }];
    EndpointInfo {
        host: "www.example.org".into(),
        account: AccountId(7),
        routes: vec![RouteInfo { prefix: "/".into(), to: "web".into(), port: 80, backends }],
        options: options(),
        rules: Some(vec![EndpointRuleInfo {
            methods: vec![],
            path: "/a".into(),
            callers: vec!["anyone".into()],
        }]),
        certificate: CertificateInfo::None,
        created_seconds: 9,
    }
}

fn domain() -> DomainInfo {
    DomainInfo {
        domain: "example.org".into(),
        account: AccountId(7),
        owner: name("ann"),
        state: DomainState::Claimed { shared: false, vouched: true, since_seconds: 5 },
    }
}

fn acme() -> AcmeSettings {
    AcmeSettings {
        directory: "https://acme.example/dir".into(),
        contacts: vec!["ann@example.org".into()],
        roots: b"r".to_vec(),
        external_account: Some(("kid".into(), "key".into())),
        terms_agreed: true,
    }
}

fn entry() -> AccessEntry {
    AccessEntry {
        unix_ms: 1,
        host: "www.example.org".into(),
        client: (Ipv4Addr::new(192, 0, 2, 1), 5000).into(),
        method: "GET".into(),
        path: "/".into(),
        status: Some(200),
        received: 0,
        sent: 5,
        micros: 900,
        backend: Some(name("web")),
        encryption: Some("TLS 1.3".into()),
        http2: true,
        refusal: None,
        complete: true,
    }
}
