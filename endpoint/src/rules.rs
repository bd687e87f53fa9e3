//! Who may ask for what: rules per method and path, by the caller's identity.
use std::net::IpAddr;

use hyper::Method;

use crate::table::TableError;

/// The paths of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulePath {
    /// This one.
    Exact(String),
    /// What begins with this, which ends in a slash.
    Below(String),
}

impl RulePath {
    /// `/login` is that path alone; `/admin/*` is everything below `/admin/`, but not `/admin`; `/*` is everything.
    ///
    /// # Errors
    /// When the path is not absolute and normal, or has a `*` elsewhere.
    pub fn new(path: &str) -> Result<Self, TableError> {
        let error = || TableError::RulePath(path.to_owned());
        let (plain, below) = match path.strip_suffix('*') {
            Some(plain) if plain.ends_with('/') => (plain, true),
            Some(_) => return Err(error()),
            None => (path, false),
        };
        let normal = crate::path::Path::new(plain).ok_or_else(error)?;
        if normal.ambiguous || normal.normal != plain || plain.contains('*') {
            return Err(error());
        }
        Ok(if below { Self::Below(normal.normal) } else { Self::Exact(normal.normal) })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Below(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// Whom a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Everybody.
    Anyone,
    /// Whose address begins with so many bits of this one.
    Network(IpAddr, u8),
    /// The container of this number.
    Container(u64),
}

impl Caller {
    fn matches(self, address: IpAddr, container: Option<u64>) -> bool {
        match self {
            Self::Anyone => true,
            Self::Container(id) => container == Some(id),
            Self::Network(network, bits) => match (network, address) {
                (IpAddr::V4(network), IpAddr::V4(address)) => same_prefix(
                    u128::from(network.to_bits()) << 96,
                    u128::from(address.to_bits()) << 96,
                    bits.min(32),
                ),
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    same_prefix(network.to_bits(), address.to_bits(), bits)
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
            },
        }
    }
}

fn same_prefix(one: u128, other: u128, bits: u8) -> bool {
    (one ^ other).leading_zeros() >= u32::from(bits.min(128))
}

/// Requests that some callers may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Any when empty. `GET` does not include `HEAD`.
    pub methods: Vec<Method>,
    /// Compared with the normalised path, by bytes.
    pub path: RulePath,
    /// One of these must match.
    pub callers: Vec<Caller>,
}

/// Whether any rule names the container.
pub(crate) fn named(rules: Option<&[AccessRule]>, container: u64) -> bool {
    let mut callers = rules.unwrap_or_default().iter().flat_map(|rule| &rule.callers);
    callers.any(|caller| *caller == Caller::Container(container))
}

/// Whether any rule allows it. An IPv4 address that came through an IPv6 socket counts as IPv4.
pub(crate) fn allowed(
    rules: &[AccessRule],
    method: &Method,
    path: &str,
    address: IpAddr,
    container: Option<u64>,
) -> bool {
    let address = address.to_canonical();
    rules.iter().any(|rule| {
        (rule.methods.is_empty() || rule.methods.contains(method))
            && rule.path.matches(path)
            && rule.callers.iter().any(|caller| caller.matches(address, container))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(methods: &[Method], path: &str, callers: &[Caller]) -> AccessRule {
        AccessRule {
            methods: methods.to_vec(),
            path: RulePath::new(path).unwrap(),
            callers: callers.to_vec(),
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let lan = Caller::Network([10, 1, 0, 0].into(), 16);
        let rules = [
            rule(&[Method::GET], "/public/*", &[Caller::Anyone]),
            rule(&[], "/admin/*", &[lan, Caller::Container(7)]),
            rule(&[Method::POST], "/login", &[Caller::Anyone]),
        ];
        let (inside, outside) = ("10.1.2.3", "10.2.2.3");
        for (method, path, address, container, expected) in [
            (Method::GET, "/public/x", outside, None, true),
            (Method::HEAD, "/public/x", outside, None, false),
            (Method::GET, "/public", outside, None, false),
            (Method::GET, "/admin/x", inside, None, true),
            (Method::GET, "/admin/x", "::ffff:10.1.2.3", None, true),
            (Method::GET, "/admin/x", outside, None, false),
            (Method::GET, "/admin/x", outside, Some(7), true),
            (Method::GET, "/admin/x", outside, Some(8), false),
            (Method::GET, "/administrator", inside, None, false),
            (Method::POST, "/login", outside, None, true),
            (Method::POST, "/login/", outside, None, false),
            (Method::GET, "/", inside, Some(7), false),
        ] {
            let is = allowed(&rules, &method, path, address.parse().unwrap(), container);
            assert_eq!(is, expected, "{method} {path} from {address}");
        }
        assert!(!allowed(&[], &Method::GET, "/", inside.parse().unwrap(), None));
    }

    #[test]
    fn networks() {
        let matches = |network: &str, bits, address: &str| {
            Caller::Network(network.parse().unwrap(), bits).matches(address.parse().unwrap(), None)
        };
        assert!(matches("0.0.0.0", 0, "255.1.2.3"));
        assert!(!matches("0.0.0.0", 0, "::1"));
        assert!(matches("192.168.1.1", 32, "192.168.1.1"));
        assert!(!matches("192.168.1.1", 200, "192.168.1.2"));
        assert!(matches("fd00::", 8, "fdff::1") && !matches("fd00::", 8, "fe00::1"));
    }

    #[test]
    fn rule_paths() {
        for bad in ["", "x", "/a*", "/a/*/b", "/a/../b", "/a%2fb", "//a", "*"] {
            assert!(RulePath::new(bad).is_err(), "{bad}");
        }
        assert_eq!(RulePath::new("/*"), Ok(RulePath::Below("/".to_owned())));
    }
}
