//! The cookie that keeps a client at its backend: the backend's number, and a code that only we can make.
use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use hyper::header::{COOKIE, HeaderMap, HeaderValue};
use ring::hmac;

const NAME: &str = "wherry-backend";

/// The key of sticky cookies. Endpoints that share it honour each other's cookies.
#[derive(Clone)]
pub struct CookieKey(hmac::Key);

impl fmt::Debug for CookieKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CookieKey(..)")
    }
}

impl CookieKey {
    /// From 32 secret random bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The value for a host's backend: `id.code`.
    fn value(&self, host: &str, backend: u64) -> String {
        let code = hmac::sign(&self.0, &signed(host, backend));
        format!("{backend}.{}", BASE64URL_NOPAD.encode(code.as_ref()))
    }

    fn verify(&self, host: &str, value: &str) -> Option<u64> {
        let (id, code) = value.split_once('.')?;
        let code = BASE64URL_NOPAD.decode(code.as_bytes()).ok()?;
        let backend: u64 = id.parse().ok()?;
        hmac::verify(&self.0, &signed(host, backend), &code).ok()?;
        Some(backend)
    }

    /// `Set-Cookie` for a host's backend.
    pub(crate) fn set(&self, host: &str, backend: u64, secure: bool) -> Option<HeaderValue> {
        let secure = if secure { "; Secure" } else { "" };
        let value = self.value(host, backend);
        HeaderValue::from_maybe_shared(format!("{NAME}={value}; Path=/; HttpOnly; SameSite=Lax{secure}")).ok()
    }

    /// Takes our cookie out of the request: the backend never sees it, valid or not. The first valid one counts. All others stay
    /// as they are, whatever bytes they are made of.
    pub(crate) fn take(&self, host: &str, headers: &mut HeaderMap) -> Option<u64> {
        let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
        if !lines.iter().any(|line| line.as_bytes().windows(NAME.len()).any(|part| part == NAME.as_bytes())) {
            return None;
        }
        headers.remove(COOKIE);
        let mut found = None;
        for line in &lines {
            let mut rest = Vec::new();
            for pair in line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                match ours(pair) {
                    Some(value) => {
                        let value = str::from_utf8(value).ok();
                        found = found.or_else(|| self.verify(host, value?));
                    }
                    None => rest.push(pair),
                }
            }
            let rest = rest.join(b"; ".as_slice());
            if !rest.is_empty()
                && let Ok(value) = HeaderValue::from_bytes(&rest)
            {
                headers.append(COOKIE, value);
            }
        }
        found
    }
}

/// The value, when the cookie is ours.
fn ours(pair: &[u8]) -> Option<&[u8]> {
    let value = pair.strip_prefix(NAME.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?;
    Some(value.trim_ascii())
}

fn signed(host: &str, backend: u64) -> Vec<u8> {
    // The number has a fixed length, so no two pairs give the same bytes.
    [&backend.to_be_bytes(), host.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> CookieKey {
        CookieKey::new(&[7; 32])
    }

    fn take(lines: &[&str]) -> (Option<u64>, Vec<String>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, line.parse().unwrap());
        }
        let found = key().take("a.example", &mut headers);
        (found, headers.get_all(COOKIE).iter().map(|line| line.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn taken_out_of_the_request() {
        let ours = format!("wherry-backend={}", key().value("a.example", 42));
        assert_eq!(take(&[&ours]), (Some(42), vec![]));
        assert_eq!(take(&[&format!("a=1; {ours}; b=2")]), (Some(42), vec!["a=1; b=2".to_owned()]));
        assert_eq!(take(&["a=1", &ours]), (Some(42), vec!["a=1".to_owned()]));
        assert_eq!(take(&["a=1; b=2"]), (None, vec!["a=1; b=2".to_owned()]));
        assert_eq!(take(&["xwherry-backend=1"]), (None, vec!["xwherry-backend=1".to_owned()]));
    }

    #[test]
    fn cookies_of_others_stay_whatever_their_bytes_are() {
        let line = format!("name=Zo\u{eb}; wherry-backend={}; b=2", key().value("a.example", 42));
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        assert_eq!(key().take("a.example", &mut headers), Some(42));
        assert_eq!(headers.get(COOKIE).unwrap().as_bytes(), "name=Zo\u{eb}; b=2".as_bytes());
    }

    #[test]
    fn forged_ones_are_no_good() {
        let good = key().value("a.example", 42);
        let code = good.split_once('.').unwrap().1;
        let other_host = key().value("b.example", 42);
        let other_key = CookieKey::new(&[8; 32]).value("a.example", 42);
        let short = &good[..good.len() - 2];
        for bad in [
            &format!("43.{code}"),
            &other_host,
            &other_key,
            short,
            "",
            ".",
            "42",
            "42.",
            "99999999999999999999.x",
        ] {
            assert_eq!(take(&[&format!("wherry-backend={bad}")]), (None, vec![]), "{bad}");
        }
    }

    #[test]
    fn attributes() {
        let set = |secure| key().set("a.example", 1, secure).unwrap().to_str().unwrap().to_owned();
        assert!(set(false).ends_with("; Path=/; HttpOnly; SameSite=Lax"));
        assert!(set(true).ends_with("; HttpOnly; SameSite=Lax; Secure"));
    }
}
