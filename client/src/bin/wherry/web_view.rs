//! Names, domains and requests as JSON. The names of fields do not follow the wire.
use serde::Serialize;
use wherry_protocol::message::{
    AccessEntry, AccessLine as Wire, BackendInfo, CertificateInfo, DomainInfo, DomainState, EndpointInfo,
    EndpointRuleInfo, RouteInfo,
};

/// A name that is served.
#[derive(Debug, Serialize)]
pub(crate) struct Endpoint<'a> {
    host: &'a str,
    account: String,
    routes: Vec<Route<'a>>,
    rewrite_host: Option<&'a str>,
    plain: bool,
    sticky: bool,
    hsts: bool,
    max_body_bytes: Option<u64>,
    rules: Option<Vec<Rule<'a>>>,
    certificate: Certificate<'a>,
    created_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Route<'a> {
    path: &'a str,
    to: &'a str,
    port: u16,
    backends: Vec<Backend<'a>>,
}

#[derive(Debug, Serialize)]
struct Backend<'a> {
    container: &'a str,
    node: &'a str,
    healthy: bool,
}

#[derive(Debug, Serialize)]
struct Rule<'a> {
    methods: &'a [String],
    path: &'a str,
    callers: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Certificate<'a> {
    None,
    Awaited { problem: Option<&'a str> },
    Present { acme: bool, not_before_seconds: u64, not_after_seconds: u64, problem: Option<&'a str> },
}

impl<'a> Endpoint<'a> {
    pub(crate) fn of(info: &'a EndpointInfo) -> Self {
        let backend = |backend: &'a BackendInfo| Backend {
            container: backend.container.as_str(),
            node: backend.node.as_str(),
            healthy: backend.healthy,
        };
        let route = |route: &'a RouteInfo| Route {
            path: &route.prefix,
            to: &route.to,
            port: route.port,
            backends: route.backends.iter().map(backend).collect(),
        };
        let rule = |rule: &'a EndpointRuleInfo| Rule {
            methods: &rule.methods,
            path: &rule.path,
            callers: &rule.callers,
        };
        Self {
            host: &info.host,
            account: info.account.to_string(),
            routes: info.routes.iter().map(route).collect(),
            rewrite_host: info.options.rewrite_host.as_deref(),
            plain: info.options.plain,
            sticky: info.options.sticky,
            hsts: info.options.hsts,
            max_body_bytes: info.options.max_body_bytes,
            rules: info.rules.as_ref().map(|rules| rules.iter().map(rule).collect()),
            certificate: Certificate::of(&info.certificate),
            created_seconds: info.created_seconds,
        }
    }
}

impl<'a> Certificate<'a> {
    fn of(info: &'a CertificateInfo) -> Self {
        match info {
            CertificateInfo::None => Self::None,
            CertificateInfo::Awaited { problem } => Self::Awaited { problem: problem.as_deref() },
            CertificateInfo::Present { acme, not_before, not_after, problem } => Self::Present {
                acme: *acme,
                not_before_seconds: *not_before,
                not_after_seconds: *not_after,
                problem: problem.as_deref(),
            },
        }
    }
}

/// A domain.
#[derive(Debug, Serialize)]
pub(crate) struct Domain<'a> {
    domain: &'a str,
    account: String,
    owner: &'a str,
    #[serde(flatten)]
    state: State<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State<'a> {
    Prepared { record: String, token: &'a str, expires_seconds: u64 },
    Claimed { shared: bool, vouched: bool, since_seconds: u64 },
}

impl<'a> Domain<'a> {
    pub(crate) fn of(info: &'a DomainInfo) -> Self {
        let state = match &info.state {
            DomainState::Prepared { token, expires_seconds } => State::Prepared {
                record: format!("_wherry.{}", info.domain),
                token,
                expires_seconds: *expires_seconds,
            },
            DomainState::Claimed { shared, vouched, since_seconds } => {
                State::Claimed { shared: *shared, vouched: *vouched, since_seconds: *since_seconds }
            }
        };
        Self { domain: &info.domain, account: info.account.to_string(), owner: info.owner.as_str(), state }
    }
}

/// One line of the access log.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum AccessLine<'a> {
    Request(Box<Entry<'a>>),
    Lost { count: u64 },
}

#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    unix_ms: u64,
    host: &'a str,
    client: String,
    method: &'a str,
    path: &'a str,
    status: Option<u16>,
    received_bytes: u64,
    sent_bytes: u64,
    micros: u64,
    backend: Option<&'a str>,
    encryption: Option<&'a str>,
    http2: bool,
    refusal: Option<&'a str>,
    complete: bool,
}

impl<'a> AccessLine<'a> {
    pub(crate) fn of(line: &'a Wire) -> Self {
        match line {
            Wire::Request(entry) => Self::Request(Box::new(Entry::of(entry))),
            Wire::Lost(count) => Self::Lost { count: *count },
        }
    }
}

impl<'a> Entry<'a> {
    fn of(entry: &'a AccessEntry) -> Self {
        Self {
            unix_ms: entry.unix_ms,
            host: &entry.host,
            client: entry.client.to_string(),
            method: &entry.method,
            path: &entry.path,
            status: entry.status,
            received_bytes: entry.received,
            sent_bytes: entry.sent,
            micros: entry.micros,
            backend: entry.backend.as_ref().map(|name| name.as_str()),
            encryption: entry.encryption.as_deref(),
            http2: entry.http2,
            refusal: entry.refusal.as_deref(),
            complete: entry.complete,
        }
    }
}
