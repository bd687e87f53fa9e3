//! Absolute URLs of HTTP, and where a redirect leads.
use hyper::Uri;
use std::fmt;
use std::net::IpAddr;

/// Longest URL taken from a server, in bytes: signed ones of blob storage have some 1500.
const MAX_URL_BYTES: usize = 8 * 1024;

/// Whom one talks to: a secret given to one origin is for no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// TLS.
    pub(crate) secure: bool,
    /// Lower case; an IPv6 address in brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
}

impl Origin {
    /// The host without the brackets of an IPv6 address.
    pub(crate) fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether it is this computer itself, by its name alone.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.bare_host();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// As the Host header has it: without the usual port (RFC 9110 §7.2).
    pub(crate) fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

/// An absolute URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Begins with a slash.
    pub(crate) path_and_query: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.origin.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.origin.authority(), self.path_and_query)
    }
}

impl Url {
    /// Reads `http://…` or `https://…`; `None` for anything else, and if it carries a user or a password.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_URL_BYTES {
            return None;
        }
        let uri: Uri = text.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let origin = Origin { secure, host: authority.host().to_ascii_lowercase(), port };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self { origin, path_and_query: format!("{slash}{path}") })
    }

    /// Where `location`, as a redirect of this URL says it, leads (RFC 3986 §5.2). `.` and `..` are left to the server.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = if self.origin.secure { "https" } else { "http" };
        let start = format!("{scheme}://{}", self.origin.authority());
        if location.contains("://") && !location.starts_with('/') {
            return Self::parse(location);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{start}{location}"));
        }
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        if location.starts_with('?') {
            return Self::parse(&format!("{start}{path}{location}"));
        }
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        Self::parse(&format!("{start}{directory}/{location}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(from: &str, location: &str) -> String {
        Url::parse(from).unwrap().join(location).unwrap().to_string()
    }

    #[test]
    fn redirects_lead_where_the_standard_says() {
        let from = "https://hub.example/v2/web/blobs/x?a=b";
        for (location, to) in [
            ("https://CDN.example:8443/b?sig=1#part", "https://cdn.example:8443/b?sig=1"),
            ("http://cdn.example/b", "http://cdn.example/b"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/other", "https://hub.example/other"),
            ("y", "https://hub.example/v2/web/blobs/y"),
            ("?c=d", "https://hub.example/v2/web/blobs/x?c=d"),
        ] {
            assert_eq!(shown(from, location), to, "{location}");
        }
        assert_eq!(shown("https://[::1]:5000/v2/", "/x"), "https://[::1]:5000/x");
    }

    #[test]
    fn what_is_no_address_of_a_server_is_refused() {
        let long = format!("https://x/{}", "a".repeat(MAX_URL_BYTES));
        for text in
            ["", "ftp://x/", "file:///etc/passwd", "https://user:secret@x/", "https://", "/v2/", "x", &long]
        {
            assert_eq!(Url::parse(text), None, "{text}");
        }
        assert_eq!(Url::parse("https://hub/").unwrap().join("https://a@b/"), None);
    }

    #[test]
    fn this_computer_is_known_by_its_names_only() {
        let local = |host: &str| Url::parse(&format!("http://{host}/")).unwrap().origin.is_loopback();
        assert!(local("localhost") && local("127.0.0.1:5000") && local("127.8.9.1") && local("[::1]:5000"));
        assert!(
            !local("localhost.example")
                && !local("10.0.0.1")
                && !local("127.0.0.1.example")
                && !local("[::2]")
        );
    }
}
