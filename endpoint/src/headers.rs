//! Header fields on their way through: which ones end here, and which ones we set.
use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Request, Version};

use crate::refusal::Refusal;
use crate::table::is_domain;

/// Of one connection, whether or not `Connection` names them (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("http2-settings"),
];
/// Who asks, beside `X-Forwarded-*`. `Proxy` becomes the variable `HTTP_PROXY` in CGI programs (CVE-2016-5385).
const OURS: [&str; 6] = ["x-forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "forwarded", "proxy"];
/// Another method or path than those of the request line.
const OVERRIDES: [&str; 5] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"];
/// What frames, routes or authenticates a request.
const HEAD_ONLY: [&str; 5] = ["host", "content-length", "cookie", "authorization", "expect"];
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Removes the fields of this connection.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether the list fields of this name have such a member, of any case.
fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.trim().eq_ignore_ascii_case(member))
}

/// Whether this asks for, or grants, a WebSocket and nothing else. Other protocols do not go through: with `h2c` requests would
/// reach the backend that we never see.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let only = upgrades.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    only && upgrades.next().is_none() && lists(headers, &CONNECTION, "upgrade")
}

/// Grants or asks for a WebSocket.
pub(crate) fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// A field that tells a backend who asks, in any spelling that CGI takes for it: only we may set those.
fn is_ours(name: &str) -> bool {
    has_prefix(name, "x-forwarded-") || OURS.iter().any(|lower| is_name(name, lower))
}

/// Whether it is this name, in any spelling that CGI takes for it.
fn is_name(name: &str, lower: &str) -> bool {
    name.len() == lower.len() && has_prefix(name, lower)
}

fn has_prefix(name: &str, lower: &str) -> bool {
    name.len() >= lower.len()
        && name
            .bytes()
            .zip(lower.bytes())
            .all(|(byte, expected)| byte == expected || (byte == b'_' && expected == b'-'))
}

fn remove_where(headers: &mut HeaderMap, removed: fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| removed(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn is_override(name: &str) -> bool {
    OVERRIDES.iter().any(|lower| is_name(name, lower))
}

/// Removes what some servers take in place of the method and path that the rules of a host were applied to.
pub(crate) fn remove_overrides(headers: &mut HeaderMap) {
    remove_where(headers, is_override);
}

/// Removes from a request's trailers what only its head may say (RFC 9110 §6.5.1): servers that merge the two would believe it.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    remove_where(trailers, |name| {
        is_ours(name) || is_override(name) || HEAD_ONLY.iter().any(|lower| is_name(name, lower))
    });
}

/// HTTP/2 may send a cookie field for each cookie; there is one of them in HTTP/1 (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (lines.next(), lines.next()) {
        let lines: Vec<&[u8]> = [first, second].into_iter().chain(lines).map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(b"; ".as_slice())) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Who asks, for backends.
pub(crate) struct Origin<'a> {
    pub(crate) client: IpAddr,
    pub(crate) https: bool,
    /// As the client named it, with its port.
    pub(crate) authority: &'a str,
}

/// Makes a client's header fields those of a request of ours. What frames the body is gone: hyper frames it anew.
pub(crate) fn to_backend(headers: &mut HeaderMap, origin: &Origin<'_>, host: &str) -> Result<(), Refusal> {
    let trailers = lists(headers, &TE, "trailers");
    remove_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
    // Hyper sends 100 when we begin to read the body, which is when the backend is there.
    headers.remove(EXPECT);
    remove_where(headers, is_ours);
    join_cookies(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    let value = |text: String| HeaderValue::from_maybe_shared(text).map_err(|_| Refusal::BadHost);
    let Origin { client, https, authority } = origin;
    let client = client.to_canonical();
    let proto = if *https { "https" } else { "http" };
    let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
    headers.insert(HOST, value(host.to_owned())?);
    headers.insert(HeaderName::from_static("x-forwarded-for"), value(client.to_string())?);
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static(proto));
    headers.insert(HeaderName::from_static("x-forwarded-host"), value((*authority).to_owned())?);
    headers.insert(FORWARDED, value(format!("for={node};proto={proto};host=\"{authority}\""))?);
    Ok(())
}

/// Makes a backend's header fields those of a response of ours.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    // With both the body was read by chunks, and the length means nothing.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
}

/// The authority of a request, lower-case with its port, and its host name without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) whole: String,
    name_bytes: usize,
}

impl Authority {
    /// From the target, or from the only `Host`; where both are given they must be the same.
    pub(crate) fn of<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().map(|value| value.to_str().map_err(|_| Refusal::BadHost)).transpose()?;
        let target = request.uri().authority().map(hyper::http::uri::Authority::as_str);
        if hosts.next().is_some() || (request.version() < Version::HTTP_2 && host.is_none()) {
            return Err(Refusal::BadHost);
        }
        let whole = match (target, host) {
            (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => return Err(Refusal::BadHost),
            (Some(one), _) | (None, Some(one)) => one,
            (None, None) => return Err(Refusal::BadHost),
        };
        Self::new(whole).ok_or(Refusal::BadHost)
    }

    /// Checks a host name with or without a port.
    pub(crate) fn new(whole: &str) -> Option<Self> {
        let whole = whole.to_ascii_lowercase();
        let (name, port) = match whole.rsplit_once(':') {
            Some((name, port)) if !name.ends_with(':') => (name, port),
            Some(_) => return None,
            None => (whole.as_str(), ""),
        };
        let port = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
        // A final dot is the same name (RFC 3986 §3.2.2). Addresses in brackets are no virtual hosts of ours.
        let name_bytes = name.strip_suffix('.').unwrap_or(name).len();
        let valid = port && name.get(..name_bytes).is_some_and(is_domain);
        valid.then_some(Self { whole, name_bytes })
    }

    /// Lower-case, without port.
    pub(crate) fn name(&self) -> &str {
        self.whole.get(..self.name_bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn one_authority() {
        for (uri, hosts, name) in [
            ("/", &["a.example"] as &[_], "a.example"),
            ("/", &["A.example:8080"], "a.example"),
            ("/", &["a.example."], "a.example"),
            ("/", &["a.example:"], "a.example"),
            ("http://a.example/", &["a.example"], "a.example"),
        ] {
            assert_eq!(Authority::of(&request(uri, hosts)).unwrap().name(), name, "{uri} {hosts:?}");
        }
        for (uri, hosts) in [
            ("/", &[] as &[_]),
            ("/", &["a", "a"]),
            ("/", &["a, b"]),
            ("/", &["a/b"]),
            ("/", &["user@a"]),
            ("/", &["a:80:80"]),
            ("/", &["a:http"]),
            ("/", &["[::1]"]),
            ("/", &[""]),
            ("/", &["a\tb"]),
            ("http://a/", &["b"]),
            ("http://a/", &[]),
        ] {
            assert_eq!(Authority::of(&request(uri, hosts)), Err(Refusal::BadHost), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn what_reaches_a_backend() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private, X-Forwarded-For"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-port", "1"),
            ("x-real_ip", "6.6.6.6"),
            ("x-forwarded", "6.6.6.6"),
            ("x-client-ip", "6.6.6.6"),
            ("true_client_ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("proxy", "evil"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
            ("cookie", "a=1"),
            ("cookie", "b=2; c=3"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let origin = Origin { client: [10, 0, 0, 1].into(), https: true, authority: "a.example:444" };
        to_backend(&mut headers, &origin, "inner").unwrap();
        let mut left: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "accept: */*",
                "connection: te",
                "cookie: a=1; b=2; c=3",
                "forwarded: for=10.0.0.1;proto=https;host=\"a.example:444\"",
                "host: inner",
                "te: trailers",
                "x-forwarded-for: 10.0.0.1",
                "x-forwarded-host: a.example:444",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn trailers_do_not_say_who_asks() {
        let mut trailers = HeaderMap::new();
        for name in
            ["x-forwarded-for", "forwarded", "x_real_ip", "cookie", "host", "authorization", "x-http-method"]
        {
            trailers.append(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        trailers.append("x-checksum", HeaderValue::from_static("1"));
        clean_trailers(&mut trailers);
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-checksum"]);
    }

    #[test]
    fn only_websockets() {
        let is = |upgrades: &[&str], connection: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, connection.parse().unwrap());
            for upgrade in upgrades {
                headers.append(UPGRADE, upgrade.parse().unwrap());
            }
            is_websocket(&headers)
        };
        assert!(is(&["WebSocket"], "keep-alive, Upgrade"));
        assert!(!is(&["h2c"], "upgrade") && !is(&["websocket, h2c"], "upgrade"));
        assert!(!is(&["websocket", "h2c"], "upgrade") && !is(&["websocket"], "close"));
    }
}
