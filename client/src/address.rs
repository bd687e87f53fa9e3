//! Where a broker is: a host and the port of its sessions. Enrolment listens on the next port up.
use std::fmt;
use std::str::FromStr;

/// Sessions, unless the address says otherwise.
pub const SESSION_PORT: u16 = 2020;
/// Longest host name, in bytes (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: expected host or host:port, as in 192.168.1.10 or broker.example:2020")]
pub struct AddressError(String);

/// Host and session port of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Host name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port of sessions: 2020 unless given.
    #[must_use]
    pub fn session_port(&self) -> u16 {
        self.port
    }

    /// Port of enrolment: the one after [`Self::session_port`], so 2021 by default.
    #[must_use]
    pub fn enrolment_port(&self) -> u16 {
        self.port.saturating_add(1)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (false, SESSION_PORT) => f.write_str(&self.host),
            (true, SESSION_PORT) => write!(f, "[{}]", self.host),
            (false, port) => write!(f, "{}:{port}", self.host),
            (true, port) => write!(f, "[{}]:{port}", self.host),
        }
    }
}

fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match text.matches(':').count() {
        0 => Some((text, None)),
        1 => text.split_once(':').map(|(host, port)| (host, Some(port))),
        _ => text.parse::<std::net::Ipv6Addr>().ok().map(|_| (text, None)),
    }
}

fn host_ok(host: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    !host.is_empty() && host.len() <= MAX_HOST_BYTES && !host.starts_with('-') && host.bytes().all(word)
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.chars().take(80).collect());
        let (host, port) = split(text).filter(|(host, _)| host_ok(host)).ok_or_else(error)?;
        let port = match port {
            None => SESSION_PORT,
            // 65535 has no next port for enrolment.
            Some(digits) => {
                digits.parse().ok().filter(|port| (1..u16::MAX).contains(port)).ok_or_else(error)?
            }
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised() {
        for (text, host, port, shown) in [
            ("10.0.0.1", "10.0.0.1", 2020, "10.0.0.1"),
            ("10.0.0.1:2020", "10.0.0.1", 2020, "10.0.0.1"),
            ("broker.example:7000", "broker.example", 7000, "broker.example:7000"),
            ("::1", "::1", 2020, "[::1]"),
            ("[fe80::1]:7000", "fe80::1", 7000, "[fe80::1]:7000"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.session_port()), (host, port));
            assert_eq!(address.enrolment_port(), port + 1);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in
            ["", ":2020", "a b", "host:0", "host:65535", "host:x", "host:1:2", "[::1", "[x]:1", "-x", "a/b"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} must be refused");
        }
    }
}
