//! The web endpoint: which names are served, by which containers, to whom.
//!
//! What the shell serves is computed from records and from how containers are, and handed over whole whenever it changes.
use super::access::Reach;
use super::ask::Now;
use super::bounds::{
    MAX_CALLERS, MAX_ENDPOINT_RULES, MAX_ENDPOINTS, MAX_METHODS, MAX_PEM_BYTES, MAX_ROUTES, WEB_PORTS,
};
use super::callers::WebClient;
use super::containers::Asker;
use super::{Broker, RequestId, error, not_found};
use crate::record::{AcmeAccount, CallerMember, Certificate, Container, Endpoint, Member, Route, RouteRule};
use std::collections::BTreeMap;
use std::sync::Arc;
use wherry_endpoint::{HostName, RulePath, StoredCertificate};
use wherry_protocol::message::{
    AcmeSettings, BackendInfo, CertificateInfo, CertificateSource, ContainerState, EndpointCaller,
    EndpointInfo, EndpointOptions, EndpointRoute, EndpointRule, EndpointRuleInfo, EndpointSpec, Health,
    Reply, RouteInfo, Transport,
};
use wherry_protocol::text::shown;
use wherry_protocol::{AccountId, ContainerId, ErrorCode, Name, Prefix, WireError};

/// Everything that the shell needs to serve the web.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// By name.
    pub hosts: BTreeMap<String, WebHost>,
    /// Containers that rules name.
    pub callers: BTreeMap<ContainerId, WebClient>,
    /// Whom to ask for certificates.
    pub acme: Option<Arc<AcmeSettings>>,
    /// The account there, if there is one.
    pub acme_account: Option<Arc<AcmeAccount>>,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebHost {
    /// Whose it is.
    pub account: AccountId,
    /// Where requests go.
    pub routes: Vec<WebRoute>,
    /// How.
    pub options: EndpointOptions,
    /// Who may ask for what.
    pub rules: Option<Vec<WebRule>>,
    /// What it proves itself with.
    pub certificate: Option<Arc<Certificate>>,
    /// Whether it gets its certificate by ACME.
    pub acme: bool,
    /// Larger whenever it was published again: who failed to get a certificate may try again.
    pub asked: u64,
}

/// Requests below a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebRoute {
    /// The path.
    pub prefix: String,
    /// Who answers.
    pub backends: Vec<WebBackend>,
}

/// A container that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebBackend {
    /// Which.
    pub container: ContainerId,
    /// What it is called.
    pub name: Name,
    /// On this port.
    pub port: u16,
    /// Whether it gets requests.
    pub healthy: bool,
}

/// Requests that some callers may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebRule {
    /// Any if there are none.
    pub methods: Vec<String>,
    /// As in [`EndpointRule`].
    pub path: String,
    /// Who, with containers one by one.
    pub callers: Vec<WebCaller>,
}

/// Who makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebCaller {
    /// Anybody.
    Anyone,
    /// Whose address is in this network.
    Network(Prefix),
    /// This container.
    Container(ContainerId),
}

impl Broker {
    /// What should be served.
    #[must_use]
    pub fn web(&self) -> Arc<Web> {
        Arc::clone(&self.web)
    }

    pub(super) fn publish_endpoint(&mut self, asker: &Asker, spec: EndpointSpec) -> Result<Reply, WireError> {
        let host = host_name(&spec.host)?;
        self.check_host(asker, &host)?;
        let routes = self.routes(asker, &spec.routes)?;
        let rules = spec.rules.map(|rules| self.rules_of(asker, rules)).transpose()?;
        check_options(&spec.options)?;
        let acme = matches!(spec.certificate, CertificateSource::Acme);
        let certificate = self.certificate(&host, spec.certificate)?;
        let created_seconds =
            self.tables.endpoints.get(&host).map_or_else(|| self.now_seconds(), |old| old.created_seconds);
        let options = spec.options;
        let endpoint = Endpoint { account: asker.account, routes, options, rules, acme, created_seconds };
        self.tables.endpoints.insert(host.clone(), endpoint);
        match certificate {
            Kept::New(certificate) => self.tables.certificates.insert(host.clone(), certificate),
            Kept::Old => {}
            Kept::None => drop(self.tables.certificates.remove(&host)),
        }
        self.certificate_problems.remove(&host);
        self.publications += 1;
        self.asked.insert(host.clone(), self.publications);
        self.web_changed = true;
        Ok(Reply::Endpoint(Box::new(self.endpoint_info(&host)?)))
    }

    fn check_host(&self, asker: &Asker, host: &str) -> Result<(), WireError> {
        match self.tables.endpoints.get(&host.to_owned()) {
            Some(endpoint) if endpoint.account != asker.account => {
                let text = format!("{host} is served by another account: choose another name");
                return Err(error(ErrorCode::AlreadyExists, text));
            }
            Some(_) => {}
            None => {
                let own = self.tables.endpoints.iter().filter(|(_, e)| e.account == asker.account).count();
                if own >= MAX_ENDPOINTS {
                    let text = format!("{own} names are served, the limit is {MAX_ENDPOINTS}: remove one");
                    return Err(error(ErrorCode::NoCapacity, text));
                }
            }
        }
        match self.domain_around(host) {
            Some((_, domain)) if domain.account == asker.account => {}
            // It would take all names that nobody has yet, and those that others give up.
            Some((domain, record)) if record.shared && host.strip_prefix("*.") == Some(domain) => {
                let text = format!(
                    "{host} stands for every name in a domain of another account: publish names one by one"
                );
                return Err(error(ErrorCode::Forbidden, text));
            }
            Some((_, domain)) if domain.shared => {}
            Some((domain, _)) => {
                let text = format!("{domain} is another account's and not shared: its owner may share it");
                return Err(error(ErrorCode::Forbidden, text));
            }
            None => {
                let text = format!(
                    "{host} is in no domain of yours: claim one first, beginning with `wherry domain prepare`"
                );
                return Err(error(ErrorCode::Forbidden, text));
            }
        }
        let taken = self
            .published
            .iter()
            .find(|((transport, port), _)| *transport == Transport::Tcp && WEB_PORTS.contains(port));
        if let Some(((_, port), (id, _))) = taken {
            let text = format!(
                "the web endpoint needs port {port} of the broker, which {} has published: run that without it",
                self.member_text(&Member::Container(*id))
            );
            return Err(error(ErrorCode::InUse, text));
        }
        Ok(())
    }

    fn routes(&self, asker: &Asker, wanted: &[EndpointRoute]) -> Result<Vec<Route>, WireError> {
        let invalid = |text: String| Err(error(ErrorCode::Invalid, text));
        if wanted.is_empty() || wanted.len() > MAX_ROUTES {
            return invalid(format!("{} routes: there must be 1 to {MAX_ROUTES}", wanted.len()));
        }
        let mut routes: Vec<Route> = Vec::new();
        for EndpointRoute { prefix, to, port } in wanted {
            if *port == 0 {
                return invalid("a port is 1 to 65535, not 0".into());
            }
            wherry_endpoint::check_prefix(prefix).map_err(|e| error(ErrorCode::Invalid, e.to_string()))?;
            if routes.iter().any(|route| route.prefix.trim_end_matches('/') == prefix.trim_end_matches('/')) {
                return invalid(format!("the path {} has two routes", shown(prefix, 80)));
            }
            routes.push(Route { prefix: prefix.clone(), to: self.member(asker, to)?, port: *port });
        }
        Ok(routes)
    }

    fn rules_of(&self, asker: &Asker, wanted: Vec<EndpointRule>) -> Result<Vec<RouteRule>, WireError> {
        let invalid = |text: String| error(ErrorCode::Invalid, text);
        if wanted.len() > MAX_ENDPOINT_RULES {
            return Err(invalid(format!("{} rules, the limit is {MAX_ENDPOINT_RULES}", wanted.len())));
        }
        let rule = |EndpointRule { methods, path, callers }: EndpointRule| {
            RulePath::new(&path).map_err(|e| invalid(e.to_string()))?;
            if methods.len() > MAX_METHODS || !methods.iter().all(|method| is_method(method)) {
                let text = "the methods of a rule are words such as GET, at most 16 of them";
                return Err(invalid(text.to_owned()));
            }
            if callers.is_empty() || callers.len() > MAX_CALLERS {
                return Err(invalid(format!("a rule has 1 to {MAX_CALLERS} callers, not {}", callers.len())));
            }
            let callers =
                callers.iter().map(|caller| self.caller(asker, caller)).collect::<Result<_, _>>()?;
            Ok(RouteRule { methods, path, callers })
        };
        wanted.into_iter().map(rule).collect()
    }

    fn caller(&self, asker: &Asker, caller: &EndpointCaller) -> Result<CallerMember, WireError> {
        match caller {
            EndpointCaller::Anyone => Ok(CallerMember::Anyone),
            EndpointCaller::Network(network) => Ok(CallerMember::Network(network.network())),
            EndpointCaller::Containers(party) => self.member(asker, party).map(CallerMember::Containers),
        }
    }

    fn certificate(&self, host: &str, source: CertificateSource) -> Result<Kept, WireError> {
        match source {
            CertificateSource::None => Ok(Kept::None),
            CertificateSource::Given { chain, key } => {
                if chain.len().max(key.len()) > MAX_PEM_BYTES {
                    let text = format!("a certificate or key is longer than {MAX_PEM_BYTES} bytes");
                    return Err(error(ErrorCode::TooLarge, text));
                }
                let read = StoredCertificate::read(&chain, &key)
                    .and_then(|read| read.check(host, self.now_seconds()).map(|()| read))
                    .map_err(|refused| error(ErrorCode::Invalid, refused.to_string()))?;
                let (not_before, not_after) = (read.not_before(), read.not_after());
                Ok(Kept::New(Arc::new(Certificate { chain, key, acme: false, not_before, not_after })))
            }
            CertificateSource::Acme => {
                if self.tables.acme.get(&()).is_none() {
                    let text = "this cluster asks nobody for certificates yet: an admin sets that up with `wherry endpoint acme`";
                    return Err(error(ErrorCode::WrongState, text));
                }
                if host.starts_with("*.") {
                    let text = "a certificate for a wildcard cannot be had over HTTP: bring one, or publish names one by one";
                    return Err(error(ErrorCode::Invalid, text));
                }
                let there = self.tables.certificates.get(&host.to_owned()).is_some_and(|old| old.acme);
                Ok(if there { Kept::Old } else { Kept::None })
            }
        }
    }

    pub(super) fn remove_endpoint(&mut self, asker: &Asker, host: &str) -> Result<Reply, WireError> {
        let host = host_name(host)?;
        let endpoint = self.tables.endpoints.get(&host);
        let owns_domain =
            self.domain_around(&host).is_some_and(|(_, domain)| domain.account == asker.account);
        let may = |endpoint: &Endpoint| {
            endpoint.account == asker.account || asker.reach == Reach::Any || owns_domain
        };
        if !endpoint.is_some_and(may) {
            return Err(no_endpoint(&host));
        }
        self.drop_endpoint(&host);
        Ok(Reply::Done)
    }

    fn drop_endpoint(&mut self, host: &str) {
        let host = host.to_owned();
        self.tables.endpoints.remove(&host);
        self.tables.certificates.remove(&host);
        self.certificate_problems.remove(&host);
        self.asked.remove(&host);
        self.web_changed = true;
    }

    /// An account goes; so do names of others in domains that nobody has any more.
    pub(super) fn forget_endpoints_of(&mut self, account: AccountId) {
        let own = |(host, endpoint): &(&String, &Endpoint)| {
            endpoint.account == account
                || self.domain_around(host).is_none_or(|(_, domain)| domain.account == account)
        };
        let gone: Vec<String> =
            self.tables.endpoints.iter().filter(own).map(|(host, _)| host.clone()).collect();
        for host in gone {
            self.drop_endpoint(&host);
        }
    }

    pub(super) fn endpoints(&self, account: AccountId, all: bool) -> Reply {
        let hosts = self.tables.endpoints.iter().filter(|(_, e)| all || e.account == account);
        Reply::Endpoints(hosts.filter_map(|(host, _)| self.endpoint_info(host).ok()).collect())
    }

    /// Whether the account may read the requests to this name.
    pub(super) fn access_log(&self, account: AccountId, host: Option<&str>) -> Now {
        let Some(host) = host else { return Ok(Some(Reply::Done)) };
        let host = host_name(host)?;
        let own = self.tables.endpoints.get(&host).is_some_and(|endpoint| endpoint.account == account);
        if own { Ok(Some(Reply::Done)) } else { Err(no_endpoint(&host)) }
    }

    pub(super) fn configure_acme(&mut self, settings: Option<AcmeSettings>) -> Result<Reply, WireError> {
        match settings {
            None => {
                let waits =
                    |(host, e): &(&String, &Endpoint)| e.acme && !self.tables.certificates.contains(host);
                if let Some((host, _)) = self.tables.endpoints.iter().find(waits) {
                    let text =
                        format!("{host} waits for its certificate: remove it first, or publish it otherwise");
                    return Err(error(ErrorCode::InUse, text));
                }
                self.tables.acme.remove(&());
            }
            Some(settings) => {
                check_acme(&settings)?;
                self.tables.acme.insert((), Arc::new(settings));
            }
        }
        self.certificate_problems.clear();
        self.web_changed = true;
        Ok(Reply::Done)
    }

    /// The shell has an account with the authority.
    pub(super) fn acme_account(&mut self, account: AcmeAccount) {
        self.tables.acme_account.insert((), Arc::new(account));
        self.web_changed = true;
    }

    /// The shell has a certificate, or could not get one.
    pub(super) fn certified(&mut self, host: &str, result: Result<Certificate, String>) {
        // It may have been removed, or published otherwise, in the meantime.
        if !self.tables.endpoints.get(&host.to_owned()).is_some_and(|endpoint| endpoint.acme) {
            return;
        }
        match result {
            Ok(certificate) => {
                self.certificate_problems.remove(host);
                self.tables.certificates.insert(host.to_owned(), Arc::new(certificate));
                self.web_changed = true;
            }
            Err(problem) => {
                self.certificate_problems.insert(host.to_owned(), problem);
            }
        }
    }

    /// Somebody asks for what a container serves on the web.
    pub(super) fn visit_web(&mut self, request: RequestId, container: ContainerId, port: u16) {
        let serves = |backend: &WebBackend| (backend.container, backend.port) == (container, port);
        let routes = self.web.hosts.values().flat_map(|host| &host.routes);
        let served = routes.flat_map(|route| &route.backends).any(serves);
        let result = if served {
            self.visit_container(request, container, (Transport::Tcp, port))
        } else {
            Err(error(ErrorCode::NotFound, "it serves nothing on the web"))
        };
        if let Err(error) = result {
            self.reply(request, Reply::Error(error));
        }
    }

    /// Works out what should be served. Whether it is something else than before.
    pub(super) fn renew_web(&mut self) -> bool {
        let certificate = |host: &String| self.tables.certificates.get(host).map(Arc::clone);
        let hosts = self.tables.endpoints.iter().map(|(host, endpoint)| {
            let routes =
                endpoint.routes.iter().map(|route| self.web_route(endpoint.account, route)).collect();
            let rules = endpoint
                .rules
                .as_ref()
                .map(|rules| rules.iter().map(|rule| self.web_rule(endpoint.account, rule)).collect());
            let (account, options) = (endpoint.account, endpoint.options.clone());
            let web = WebHost {
                account,
                routes,
                options,
                rules,
                certificate: certificate(host),
                acme: endpoint.acme,
                asked: self.asked.get(host).copied().unwrap_or_default(),
            };
            (host.clone(), web)
        });
        let hosts: BTreeMap<String, WebHost> = hosts.collect();
        let web = Web {
            callers: self.web_callers(&hosts),
            hosts,
            acme: self.tables.acme.get(&()).map(Arc::clone),
            acme_account: self.tables.acme_account.get(&()).map(Arc::clone),
        };
        let changed = *self.web != web;
        if changed {
            self.web = Arc::new(web);
        }
        changed
    }

    fn web_route(&self, account: AccountId, route: &Route) -> WebRoute {
        let backends = self.members(account, &route.to).map(|(container, record)| WebBackend {
            container,
            name: record.name.clone(),
            port: route.port,
            healthy: self.is_well(container, record),
        });
        WebRoute { prefix: route.prefix.clone(), backends: backends.collect() }
    }

    fn web_rule(&self, account: AccountId, rule: &RouteRule) -> WebRule {
        let mut callers = Vec::new();
        for caller in &rule.callers {
            match caller {
                CallerMember::Anyone => callers.push(WebCaller::Anyone),
                CallerMember::Network(network) => callers.push(WebCaller::Network(*network)),
                CallerMember::Containers(member) => {
                    callers.extend(self.members(account, member).map(|(id, _)| WebCaller::Container(id)));
                }
            }
        }
        WebRule { methods: rule.methods.clone(), path: rule.path.clone(), callers }
    }

    fn members<'a>(
        &'a self,
        account: AccountId,
        member: &'a Member,
    ) -> impl Iterator<Item = (ContainerId, &'a Container)> {
        self.tables
            .containers()
            .filter(move |(id, c)| c.account == account && c.is_present() && member.matches(*id, c))
    }

    /// Whether a container can answer requests: it runs, its board is there, and its health check is content.
    fn is_well(&self, id: ContainerId, container: &Container) -> bool {
        let running = matches!(container.state, ContainerState::Running { .. });
        let condition = self.conditions.get(&id);
        let content = condition.is_none_or(|condition| {
            let healthy = condition.health.as_ref().is_none_or(|report| match report.health {
                Health::Healthy => true,
                Health::Starting | Health::Unhealthy => false,
            });
            healthy && !condition.paused && !condition.asleep
        });
        running && content && self.connected.contains_key(&container.node)
    }

    fn endpoint_info(&self, host: &str) -> Result<EndpointInfo, WireError> {
        let endpoint = self.tables.endpoints.get(&host.to_owned()).ok_or_else(|| no_endpoint(host))?;
        let routes = endpoint.routes.iter().map(|route| RouteInfo {
            prefix: route.prefix.clone(),
            to: self.member_text(&route.to),
            port: route.port,
            backends: self
                .members(endpoint.account, &route.to)
                .map(|(id, container)| BackendInfo {
                    container: container.name.clone(),
                    node: self.board_label(container.node, container),
                    healthy: self.is_well(id, container),
                })
                .collect(),
        });
        let rules = endpoint.rules.as_ref().map(|rules| {
            let info = |rule: &RouteRule| EndpointRuleInfo {
                methods: rule.methods.clone(),
                path: rule.path.clone(),
                callers: rule.callers.iter().map(|caller| self.caller_text(caller)).collect(),
            };
            rules.iter().map(info).collect()
        });
        Ok(EndpointInfo {
            host: host.to_owned(),
            account: endpoint.account,
            routes: routes.collect(),
            options: endpoint.options.clone(),
            rules,
            certificate: self.certificate_info(host, endpoint.acme),
            created_seconds: endpoint.created_seconds,
        })
    }

    fn caller_text(&self, caller: &CallerMember) -> String {
        match caller {
            CallerMember::Anyone => "anyone".to_owned(),
            CallerMember::Network(network) => network.to_string(),
            CallerMember::Containers(member) => self.member_text(member),
        }
    }

    fn certificate_info(&self, host: &str, acme: bool) -> CertificateInfo {
        let problem = self.certificate_problems.get(host).cloned();
        match self.tables.certificates.get(&host.to_owned()) {
            Some(certificate) => CertificateInfo::Present {
                acme,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
                problem,
            },
            None if acme => CertificateInfo::Awaited { problem },
            None => CertificateInfo::None,
        }
    }
}

/// What becomes of a name's certificate when it is published again.
enum Kept {
    New(Arc<Certificate>),
    Old,
    None,
}

fn host_name(text: &str) -> Result<String, WireError> {
    HostName::new(text)
        .map(|name| name.as_str().to_owned())
        .map_err(|e| error(ErrorCode::Invalid, e.to_string()))
}

fn check_options(options: &EndpointOptions) -> Result<(), WireError> {
    if let Some(inner) = &options.rewrite_host {
        wherry_endpoint::check_rewrite_host(inner).map_err(|e| error(ErrorCode::Invalid, e.to_string()))?;
    }
    if options.max_body_bytes == Some(0) {
        return Err(error(ErrorCode::Invalid, "a request body may have at least 1 byte, not 0"));
    }
    Ok(())
}

fn check_acme(settings: &AcmeSettings) -> Result<(), WireError> {
    let invalid = |text: &str| Err(error(ErrorCode::Invalid, text));
    let AcmeSettings { directory, contacts, roots, external_account, terms_agreed } = settings;
    if !terms_agreed {
        return invalid(
            "the authority gives certificates only to those who agree to its terms: read them, and add --agree-terms",
        );
    }
    if !directory.starts_with("https://") || directory.len() > 512 {
        return invalid("the directory of a certificate authority is a URL that begins with https://");
    }
    if roots.len() > MAX_PEM_BYTES {
        return invalid("the authorities to trust take more than 64 KiB");
    }
    if let Err(refused) = wherry_endpoint::trusted_roots(roots) {
        return Err(error(ErrorCode::Invalid, format!("the authorities to trust cannot be read: {refused}")));
    }
    let plain =
        |text: &String| !text.is_empty() && text.len() <= 254 && text.chars().all(|c| c.is_ascii_graphic());
    if contacts.len() > 8 || !contacts.iter().all(|contact| plain(contact) && contact.contains('@')) {
        return invalid("contacts are mail addresses, at most 8");
    }
    let decodes =
        |key: &str| data_encoding::BASE64URL_NOPAD.decode(key.trim_end_matches('=').as_bytes()).is_ok();
    if external_account.as_ref().is_some_and(|(id, key)| !plain(id) || key.len() > 512 || !decodes(key)) {
        return invalid("an external account is its identifier and its key in base64url");
    }
    Ok(())
}

/// A token of RFC 9110 §5.6.2, and not a long one.
fn is_method(method: &str) -> bool {
    (1..=32).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
}

fn no_endpoint(host: &str) -> WireError {
    not_found("endpoint", host, "list yours with `wherry endpoint ls`")
}
