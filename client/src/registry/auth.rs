//! Challenges and tokens (RFC 7235; distribution's "Token Authentication Specification" and its OAuth 2 form).
use super::credentials::{Credentials, Secret};
use super::error::{Refusal, RegistryError};
use crate::http::url::Url;
use data_encoding::BASE64;
use hyper::header::{HeaderMap, HeaderValue, InvalidHeaderValue, WWW_AUTHENTICATE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Largest answer of a token service, in bytes; the longest tokens known have some 12 000.
pub(super) const MAX_TOKEN_ANSWER_BYTES: usize = 64 * 1024;
/// Longest realm and service taken from a challenge, in bytes.
const MAX_FIELD_BYTES: usize = 2048;
/// What need not be escaped in a query (RFC 3986 §2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What is sent to the registry with every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    Basic(Secret),
    Bearer(Secret),
}

impl Authorization {
    pub(super) fn basic(user: &str, password: &Secret) -> Self {
        let both = Zeroizing::new(format!("{user}:{}", password.reveal()));
        Self::Basic(Secret::new(BASE64.encode(both.as_bytes())))
    }

    pub(super) fn header(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let text = Zeroizing::new(match self {
            Self::Basic(secret) => format!("Basic {}", secret.reveal()),
            Self::Bearer(secret) => format!("Bearer {}", secret.reveal()),
        });
        let mut value = HeaderValue::from_str(&text)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How a registry wants us to prove who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// The best of those offered; otherwise the names of what is offered.
    pub(super) fn choose(headers: &HeaderMap) -> Result<Self, String> {
        let (mut basic, mut others) = (false, Vec::new());
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let challenges = value.to_str().ok().and_then(|text| http_auth::parse_challenges(text).ok());
            for challenge in challenges.unwrap_or_default() {
                let field = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped()).filter(|text| text.len() <= MAX_FIELD_BYTES)
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = field("realm") {
                        return Ok(Self::Bearer { realm, service: field("service") });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                }
                others.push(challenge.scheme.chars().take(40).collect::<String>());
            }
        }
        match (basic, others.is_empty()) {
            (true, _) => Ok(Self::Basic),
            (false, true) => Err("nothing".into()),
            (false, false) => Err(others.join(", ")),
        }
    }
}

/// What to ask a token service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenQuestion {
    /// With the question in it, unless it is a form.
    pub(super) url: Url,
    /// Only for the token service.
    pub(super) authorization: Option<Authorization>,
    /// The body of a POST: it holds a refresh token.
    pub(super) form: Option<Secret>,
}

/// `realm` is where a token for pulling from `path` can be had. Whatever else the challenge may ask for, no more right
/// is asked for than that.
pub(super) fn question(
    realm: Url,
    service: Option<&str>,
    path: &str,
    credentials: &Credentials,
) -> TokenQuestion {
    let escape = |text: &str| utf8_percent_encode(text, QUERY).to_string();
    let mut fields = Vec::new();
    if let Some(service) = service {
        fields.push(format!("service={}", escape(service)));
    }
    fields.push(format!("scope={}", escape(&format!("repository:{path}:pull"))));
    match credentials {
        Credentials::Identity(token) => {
            let token = Zeroizing::new(escape(token.reveal()));
            let form = format!(
                "grant_type=refresh_token&client_id=wherry&{}&refresh_token={}",
                fields.join("&"),
                *token
            );
            TokenQuestion { url: realm, authorization: None, form: Some(Secret::new(form)) }
        }
        Credentials::Basic { user, password } => TokenQuestion {
            url: with_query(realm, &fields),
            authorization: Some(Authorization::basic(user, password)),
            form: None,
        },
        // A ready token is for the registry, not for its token service.
        Credentials::Anonymous | Credentials::Bearer(_) => {
            TokenQuestion { url: with_query(realm, &fields), authorization: None, form: None }
        }
    }
}

fn with_query(url: Url, fields: &[String]) -> Url {
    let between = if url.path_and_query.contains('?') { '&' } else { '?' };
    Url { path_and_query: format!("{}{between}{}", url.path_and_query, fields.join("&")), ..url }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

/// The token in an answer.
pub(super) fn token(host: &str, bytes: &[u8]) -> Result<Authorization, RegistryError> {
    let unusable = |why| RegistryError::Refused { host: host.to_owned(), refusal: Refusal::Token(why) };
    let answer: TokenAnswer =
        serde_json::from_slice(bytes).map_err(|_| unusable("its answer is not JSON"))?;
    let some = |secret: &Secret| !secret.reveal().is_empty();
    let token = answer.token.filter(some).or(answer.access_token.filter(some));
    let authorization = Authorization::Bearer(token.ok_or_else(|| unusable("there is none in its answer"))?);
    match authorization.header() {
        Ok(_) => Ok(authorization),
        Err(_) => Err(unusable("it has characters that no header may have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(values: &[&str]) -> Result<Challenge, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::choose(&headers)
    }

    #[test]
    fn the_best_challenge_is_chosen() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:x:pull,push""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
        };
        assert_eq!(chosen(&[docker]), Ok(bearer.clone()));
        assert_eq!(chosen(&["Basic realm=\"x\"", docker]), Ok(bearer));
        assert_eq!(chosen(&["Negotiate, BASIC realm=\"x\""]), Ok(Challenge::Basic));
        assert_eq!(chosen(&["Negotiate, Digest realm=\"x\""]), Err("Negotiate, Digest".into()));
        assert_eq!(chosen(&["Bearer service=\"x\""]), Err("Bearer".into()));
        assert_eq!(chosen(&["\"\"", "=,=,", "Bearer realm=\"unfinished"]), Err("nothing".into()));
        assert_eq!(chosen(&[&format!("Bearer realm=\"{}\"", "a".repeat(9000))]), Err("Bearer".into()));
    }

    #[test]
    fn a_token_is_asked_for_pulling_and_nothing_else() {
        let realm = Url::parse("https://auth.lan/token?x=y").unwrap();
        let login = Credentials::Basic { user: "ada".into(), password: Secret::new("one".into()) };
        let asked = question(realm.clone(), Some("a&b c"), "tools/web", &login);
        let query = "/token?x=y&service=a%26b%20c&scope=repository%3Atools%2Fweb%3Apull";
        assert_eq!(asked.url.path_and_query, query);
        assert_eq!(asked.authorization.unwrap().header().unwrap(), "Basic YWRhOm9uZQ==");
        let asked = question(realm.clone(), None, "web", &Credentials::Identity(Secret::new("t&t".into())));
        assert_eq!((asked.url, asked.authorization), (realm.clone(), None));
        let form =
            "grant_type=refresh_token&client_id=wherry&scope=repository%3Aweb%3Apull&refresh_token=t%26t";
        assert_eq!(asked.form.unwrap().reveal(), form);
        let asked =
            question(realm, None, "web", &Credentials::Bearer(Secret::new("for the registry".into())));
        assert_eq!((asked.authorization, asked.form), (None, None));
    }

    #[test]
    fn both_names_of_a_token_are_known_and_odd_ones_refused() {
        let bearer = |text: &str| Authorization::Bearer(Secret::new(text.into()));
        assert_eq!(token("h", br#"{"token": "a", "access_token": "b"}"#).unwrap(), bearer("a"));
        assert_eq!(token("h", br#"{"access_token": "b", "expires_in": 60}"#).unwrap(), bearer("b"));
        for odd in ["", "<html>", "{}", r#"{"token": ""}"#, r#"{"token": "a\r\nX: y"}"#, r#"{"token": 5}"#] {
            assert!(token("h", odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let basic = Authorization::basic("ada", &Secret::new("one".into()));
        assert_eq!(format!("{basic:?}"), "Basic((secret))");
        assert!(!format!("{:?}", basic.header().unwrap()).contains("YWRh"));
    }
}
