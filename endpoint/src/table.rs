//! What is served: virtual hosts, the paths below them and the clusters behind those. Immutable; a change is a new table.
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::sign::CertifiedKey;

use crate::headers::Authority;
use crate::rules::AccessRule;

/// The longest name of the DNS (RFC 1035 §2.3.4), and its longest label.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// A table that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Not a name of the DNS.
    #[error("{0:?} is not a domain name such as `example.org` or `*.example.org`")]
    Name(String),
    /// A prefix that is no absolute, normal path.
    #[error("{0:?} is not a path such as `/` or `/api`, without dot segments and percent signs")]
    Prefix(String),
    /// Two hosts of one name.
    #[error("host {0} is there twice")]
    DuplicateHost(HostName),
    /// A `Host` for backends that is none.
    #[error("{0:?} is not a host such as `inner.example` or `inner.example:8080`")]
    RewriteHost(String),
    /// Two routes of one prefix.
    #[error("host {0} has the prefix {1} twice")]
    DuplicatePrefix(HostName, String),
    /// A rule's path that is neither exact nor ends in `/*`.
    #[error("{0:?} is not a rule path such as `/login` or `/admin/*`")]
    RulePath(String),
}

/// A lower-case domain name, of which the first label may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Checks a name, of any case: letters, digits, hyphens and underscores in labels of up to 63 bytes, 253 in all.
    ///
    /// # Errors
    /// When it is not a domain name.
    pub fn new(name: &str) -> Result<Self, TableError> {
        let error = || TableError::Name(name.to_owned());
        let lower = name.to_ascii_lowercase();
        let plain = lower.strip_prefix("*.").unwrap_or(&lower);
        is_domain(plain).then_some(Self(lower.clone())).ok_or_else(error)
    }

    /// The name, lower-case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether this is a domain name as clients may send it.
pub(crate) fn is_domain(name: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(label)
}

/// One container or other server that answers requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The same number means the same backend in every cluster and table.
    pub id: u64,
    /// Its share among the backends of a cluster; 0 takes new requests off it.
    pub weight: u32,
    /// Unhealthy ones are skipped.
    pub healthy: bool,
}

/// Backends that answer alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// In any order.
    pub backends: Vec<Backend>,
}

/// Requests below a path go to a cluster.
#[derive(Clone, Debug)]
pub struct Route {
    /// `/api` stands for `/api` and everything below `/api/`; `/` for everything.
    pub prefix: String,
    /// Where they go; shared between routes as one likes.
    pub cluster: Arc<Cluster>,
}

/// A virtual host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Exact names win over wildcards.
    pub name: HostName,
    /// Whose it is: some bounds are for all hosts of one customer together.
    pub customer: u64,
    /// The longest prefix that matches wins.
    pub routes: Vec<Route>,
    /// The `Host` that backends see; otherwise the one of the client.
    pub rewrite_host: Option<String>,
    /// 308 for what comes without TLS.
    pub redirect_to_https: bool,
    /// Without one there is no TLS for this host.
    pub certificate: Option<Arc<CertifiedKey>>,
    /// A cookie keeps a client at its backend.
    pub sticky: bool,
    /// When there are any, what none of them allows is refused; `None` is no rules, an empty list refuses everything.
    pub rules: Option<Vec<AccessRule>>,
    /// Bytes of a request body.
    pub max_body_bytes: u64,
    /// `Strict-Transport-Security` of one year on responses over TLS.
    pub hsts: bool,
}

impl Host {
    /// A host with one cluster at `/`, and everything else off; request bodies of up to 64 MiB.
    #[must_use]
    pub fn new(name: HostName, cluster: Arc<Cluster>) -> Self {
        Self {
            name,
            customer: 0,
            routes: vec![Route { prefix: "/".to_owned(), cluster }],
            rewrite_host: None,
            redirect_to_https: false,
            certificate: None,
            sticky: false,
            rules: None,
            max_body_bytes: 64 * 1024 * 1024,
            hsts: false,
        }
    }

    /// The cluster of a normalised path.
    pub(crate) fn cluster(&self, path: &str) -> Option<&Arc<Cluster>> {
        self.routes.iter().find(|route| is_below(path, &route.prefix)).map(|route| &route.cluster)
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All virtual hosts.
#[derive(Clone, Debug, Default)]
pub struct Table {
    hosts: HashMap<String, Arc<Host>>,
}

impl Table {
    /// Checks what is to be served.
    ///
    /// # Errors
    /// When names or prefixes are not well-formed or not unique.
    pub fn new(hosts: impl IntoIterator<Item = Host>) -> Result<Self, TableError> {
        let mut table = Self::default();
        for mut host in hosts {
            check_routes(&host)?;
            host.rewrite_host.as_deref().map_or(Ok(()), check_rewrite_host)?;
            host.routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
            let name = host.name.clone();
            if table.hosts.insert(name.as_str().to_owned(), Arc::new(host)).is_some() {
                return Err(TableError::DuplicateHost(name));
            }
        }
        Ok(table)
    }

    /// The host of a lower-case name without a port: the exact one, else the wildcard in place of its first label.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&Arc<Host>> {
        self.hosts.get(name).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.hosts.get(&format!("*.{rest}"))
        })
    }

    /// All hosts, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.values()
    }

    /// The numbers of all backends of a customer's hosts, some several times.
    pub(crate) fn backends_of(&self, customer: u64) -> impl Iterator<Item = u64> {
        let hosts = self.hosts().filter(move |host| host.customer == customer);
        hosts
            .flat_map(|host| &host.routes)
            .flat_map(|route| &route.cluster.backends)
            .map(|backend| backend.id)
    }

    /// All backends; those of several clusters several times.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.hosts().flat_map(|host| &host.routes).flat_map(|route| &route.cluster.backends)
    }
}

/// Whether a route may have this prefix.
///
/// # Errors
/// When it is no absolute, normal path.
pub fn check_prefix(prefix: &str) -> Result<(), TableError> {
    let normal = crate::path::Path::new(prefix);
    if normal.as_ref().is_none_or(|path| path.normal != prefix) || prefix.contains('%') {
        return Err(TableError::Prefix(prefix.to_owned()));
    }
    Ok(())
}

/// Whether backends may see this `Host`.
///
/// # Errors
/// When it is no host with or without a port.
pub fn check_rewrite_host(host: &str) -> Result<(), TableError> {
    Authority::new(host).map(|_| ()).ok_or_else(|| TableError::RewriteHost(host.to_owned()))
}

fn check_routes(host: &Host) -> Result<(), TableError> {
    let mut seen = std::collections::HashSet::new();
    for Route { prefix, .. } in &host.routes {
        check_prefix(prefix)?;
        if !seen.insert(prefix.strip_suffix('/').unwrap_or(prefix)) {
            return Err(TableError::DuplicatePrefix(host.name.clone(), prefix.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Host {
        Host::new(HostName::new(name).unwrap(), Arc::default())
    }

    fn cluster(id: u64) -> Arc<Cluster> {
        Arc::new(Cluster { backends: vec![Backend { id, weight: 1, healthy: true }] })
    }

    #[test]
    fn names() {
        for good in ["example.org", "EXAMPLE.org", "*.example.org", "a", "xn--bcher-kva.example", "_x.y"] {
            assert!(HostName::new(good).is_ok(), "{good}");
        }
        let long = format!("{}.org", "a".repeat(64));
        for bad in
            ["", "*", "*.", "*.*.org", "a..b", ".a", "a.", "a b", "a/b", "-a.org", "a:80", "ü.de", &long]
        {
            assert_eq!(HostName::new(bad), Err(TableError::Name(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn exact_names_win_and_a_wildcard_is_one_label() {
        let table = Table::new([named("*.example.org"), named("www.example.org")]).unwrap();
        let of = |name: &str| table.host(name).map(|host| host.name.as_str().to_owned());
        assert_eq!(of("www.example.org").as_deref(), Some("www.example.org"));
        assert_eq!(of("other.example.org").as_deref(), Some("*.example.org"));
        assert_eq!(of("a.b.example.org"), None);
        assert_eq!(of("example.org"), None);
    }

    #[test]
    fn the_longest_prefix_wins_at_a_segment_border() {
        let mut host = named("a");
        host.routes = ["/", "/api", "/api/v2"]
            .iter()
            .zip(1..)
            .map(|(prefix, id)| Route { prefix: (*prefix).to_owned(), cluster: cluster(id) })
            .collect();
        let table = Table::new([host]).unwrap();
        let of = |path: &str| table.host("a").unwrap().cluster(path).unwrap().backends[0].id;
        let expected =
            [("/", 1), ("/apix", 1), ("/api", 2), ("/api/v1", 2), ("/api/v2", 3), ("/api/v2/x", 3)];
        for (path, id) in expected {
            assert_eq!(of(path), id, "{path}");
        }
    }

    #[test]
    fn tables_that_cannot_be() {
        let prefixed = |prefixes: &[&str]| {
            let mut host = named("a");
            host.routes = prefixes
                .iter()
                .map(|prefix| Route { prefix: (*prefix).to_owned(), cluster: cluster(1) })
                .collect();
            Table::new([host]).map(|_| ())
        };
        for bad in ["", "api", "/a/../b", "//", "/%61"] {
            assert_eq!(prefixed(&[bad]), Err(TableError::Prefix(bad.to_owned())), "{bad}");
        }
        for bad in ["", "a b", "a/b", "a\r\nx: y"] {
            let inner = Host { rewrite_host: Some(bad.to_owned()), ..named("a") };
            assert!(matches!(Table::new([inner]), Err(TableError::RewriteHost(_))), "{bad}");
        }
        assert!(matches!(prefixed(&["/a", "/a/"]), Err(TableError::DuplicatePrefix(..))));
        assert!(matches!(Table::new([named("a"), named("A")]), Err(TableError::DuplicateHost(_))));
    }
}
