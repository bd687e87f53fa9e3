//! One repository of one registry: requests with the right secret for the right host, and refusals as sentences.
use super::auth::{Authorization, Challenge, MAX_TOKEN_ANSWER_BYTES, question, token};
use super::credentials::{CredentialFiles, Credentials};
use super::error::{Refusal, RegistryError};
use super::reference::Reference;
use crate::http::tls::Trust;
use crate::http::url::{Origin, Url};
use crate::http::{self, Dialler, Endpoint, HttpError, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, RANGE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use std::path::PathBuf;
use tokio::sync::Mutex;
use wherry_protocol::Digest;
use wherry_protocol::text::shown;

/// Redirects followed for one request: what Go's client, and so most tools, accept.
const MAX_REDIRECTS: usize = 10;
/// Who we are.
const AGENT: &str = concat!("wherry/", env!("CARGO_PKG_VERSION"));

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// A PEM file of authorities to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// Where logins are stored.
    pub credentials: CredentialFiles,
}

/// What a request is about, for the words of a refusal.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    Manifest,
    Blob(Digest),
}

/// A repository of a registry.
#[derive(Debug)]
pub struct Registry {
    reference: Reference,
    origin: Origin,
    dialler: Dialler,
    credentials: Credentials,
    /// What the registry accepted last, and the how-manieth that is.
    authorization: Mutex<(u32, Option<Authorization>)>,
}

impl Registry {
    /// Finds out how to reach the registry of `reference`, and which login there is for it.
    ///
    /// # Errors
    /// When authorities or stored logins cannot be read. For a registry on this computer: when it cannot be reached.
    pub async fn open(reference: &Reference, options: &RegistryOptions) -> Result<Self, RegistryError> {
        let odd = || HttpError::Unreachable {
            whom: reference.host().to_owned(),
            reason: "that is no address".into(),
        };
        let origin = reference.origin().ok_or_else(odd)?;
        let dialler = Dialler::new(Trust::load(options.ca.as_deref(), origin.is_loopback())?);
        let credentials = options.credentials.find(reference.host(), reference.path()).await?;
        let authorization = match &credentials {
            Credentials::Bearer(secret) => Some(Authorization::Bearer(secret.clone())),
            Credentials::Anonymous | Credentials::Basic { .. } | Credentials::Identity(_) => None,
        };
        let mut registry = Self {
            reference: reference.clone(),
            origin,
            dialler,
            credentials,
            authorization: Mutex::new((0, authorization)),
        };
        registry.origin.secure = registry.speaks_tls().await?;
        Ok(registry)
    }

    /// On this computer a registry may do without TLS, as for Docker. Elsewhere nobody is asked.
    async fn speaks_tls(&self) -> Result<bool, RegistryError> {
        if !self.origin.is_loopback() {
            return Ok(true);
        }
        let url = Url { origin: self.origin.clone(), path_and_query: "/v2/".into() };
        match self.send(Method::GET, &url, &[], Bytes::new()).await {
            Err(RegistryError::Http(HttpError::NotTls { .. } | HttpError::Broken { .. })) => Ok(false),
            Err(error) => Err(error),
            Ok(_) => Ok(true),
        }
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// As people call it.
    pub(super) fn host(&self) -> String {
        self.reference.host().to_owned()
    }

    /// Gets `manifests/…` or `blobs/…` of the repository, from byte `from` on if the server can do that.
    pub(super) async fn get(
        &self,
        what: &str,
        accept: &'static str,
        from: u64,
        asked: Asked,
    ) -> Result<Response, RegistryError> {
        let path_and_query = format!("/v2/{}/{what}", self.reference.path());
        let mut url = Url { origin: self.origin.clone(), path_and_query };
        let (mut at_home, mut renewed, mut redirects) = (true, false, 0);
        loop {
            let current = if at_home { Some(self.authorization.lock().await.clone()) } else { None };
            let authorization = current.as_ref().and_then(|(_, authorization)| authorization.as_ref());
            let mut headers = vec![(ACCEPT, accept.to_owned())];
            if from > 0 {
                headers.push((RANGE, format!("bytes={from}-")));
            }
            let response = self.request(&url, &headers, authorization).await?;
            match (response.status, current) {
                (StatusCode::OK | StatusCode::PARTIAL_CONTENT, _) => return Ok(response),
                // Only the registry itself may ask who we are: others are not told.
                (StatusCode::UNAUTHORIZED, Some((number, _))) if !renewed => {
                    renewed = true;
                    self.renew(number, &response).await?;
                }
                (status, _) if is_redirect(status) => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(RegistryError::Redirects { host: self.host(), limit: MAX_REDIRECTS });
                    }
                    url = self.follow(&url, &response)?;
                    // Once away, a secret is not sent again, not even back home.
                    at_home = at_home && url.origin == self.origin;
                }
                _ => return Err(self.refused(&response, asked, at_home)),
            }
        }
    }

    async fn request(
        &self,
        url: &Url,
        headers: &[(hyper::header::HeaderName, String)],
        authorization: Option<&Authorization>,
    ) -> Result<Response, RegistryError> {
        let mut all = Vec::new();
        for (name, value) in headers {
            all.push((name.clone(), value.parse().map_err(|_| self.unusable(url))?));
        }
        if let Some(authorization) = authorization {
            all.push((AUTHORIZATION, authorization.header().map_err(|_| self.unusable(url))?));
        }
        self.send(Method::GET, url, &all, Bytes::new()).await
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &[(hyper::header::HeaderName, hyper::header::HeaderValue)],
        body: Bytes,
    ) -> Result<Response, RegistryError> {
        let mut request = Request::builder()
            .method(method)
            .uri(url.path_and_query.as_str())
            .header(HOST, url.origin.authority())
            .header(USER_AGENT, AGENT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|_| self.unusable(url))?;
        Ok(http::send(&self.dialler, &Endpoint::Net(url.origin.clone()), request).await?)
    }

    fn unusable(&self, url: &Url) -> RegistryError {
        self.target(&url.to_string(), "it cannot be asked for over HTTP")
    }

    fn target(&self, target: &str, reason: &'static str) -> RegistryError {
        // Signatures of blob storage are after the question mark.
        let target = shown(target.split('?').next().unwrap_or_default(), 200);
        RegistryError::Target { host: self.host(), target, reason }
    }

    /// Where a redirect leads, if one may go there.
    fn follow(&self, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.header(LOCATION.as_str()).unwrap_or_default();
        let to =
            from.join(location).ok_or_else(|| self.target(location, "it is not a URL of http or https"))?;
        self.allow(to)
    }

    /// No plain HTTP over the network, and nothing from the network reaches into this computer.
    fn allow(&self, url: Url) -> Result<Url, RegistryError> {
        let (local, from_here) = (url.origin.is_loopback(), self.origin.is_loopback());
        match (local, from_here, url.origin.secure) {
            (true, true, _) | (false, _, true) => Ok(url),
            (true, false, _) => {
                Err(self.target(&url.to_string(), "a registry elsewhere has no business on this computer"))
            }
            (false, _, false) => {
                Err(self.target(&url.to_string(), "plain HTTP is used for registries on this computer only"))
            }
        }
    }

    /// Gets what the challenge asks for, unless somebody else has got it since `number`.
    async fn renew(&self, number: u32, response: &Response) -> Result<(), RegistryError> {
        let mut current = self.authorization.lock().await;
        if current.0 != number {
            return Ok(());
        }
        let refused = |refusal| RegistryError::Refused { host: self.host(), refusal };
        let challenge =
            Challenge::choose(&response.headers).map_err(|names| refused(Refusal::Scheme(names)))?;
        let new = match (challenge, &self.credentials) {
            (Challenge::Basic, Credentials::Basic { user, password }) => Authorization::basic(user, password),
            (
                Challenge::Basic,
                Credentials::Anonymous | Credentials::Identity(_) | Credentials::Bearer(_),
            ) => {
                return Err(refused(self.login()));
            }
            (Challenge::Bearer { .. }, Credentials::Bearer(_)) => return Err(refused(self.login())),
            (
                Challenge::Bearer { realm, service },
                Credentials::Anonymous | Credentials::Basic { .. } | Credentials::Identity(_),
            ) => self.token(&realm, service.as_deref()).await?,
        };
        *current = (number.wrapping_add(1), Some(new));
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Authorization, RegistryError> {
        let url = Url::parse(realm).ok_or_else(|| self.target(realm, "it is not a URL of http or https"))?;
        let asked = question(self.allow(url)?, service, self.reference.path(), &self.credentials);
        let host = asked.url.origin.authority();
        let response = match &asked.form {
            None => self.request(&asked.url, &[], asked.authorization.as_ref()).await?,
            Some(form) => {
                let kind = hyper::header::HeaderValue::from_static("application/x-www-form-urlencoded");
                let body = Bytes::copy_from_slice(form.reveal().as_bytes());
                self.send(Method::POST, &asked.url, &[(CONTENT_TYPE, kind)], body).await?
            }
        };
        let refused = |refusal| Err(RegistryError::Refused { host: host.clone(), refusal });
        match response.status {
            StatusCode::OK => token(&host, &response.body.document("a token", MAX_TOKEN_ANSWER_BYTES).await?),
            // Whoever it would send us to is not whom the registry named.
            status if is_redirect(status) => refused(Refusal::Token("it sends us elsewhere")),
            StatusCode::UNAUTHORIZED => refused(self.login()),
            status => refused(general(status, &response, self.reference.path())),
        }
    }

    fn login(&self) -> Refusal {
        let (path, login) = (self.reference.path().to_owned(), self.reference.host().to_owned());
        match self.credentials {
            Credentials::Anonymous => Refusal::Login { path, login },
            Credentials::Basic { .. } | Credentials::Identity(_) | Credentials::Bearer(_) => {
                Refusal::BadLogin { path, login }
            }
        }
    }

    fn refused(&self, response: &Response, asked: Asked, at_home: bool) -> RegistryError {
        let refusal = match (response.status, asked) {
            (StatusCode::NOT_FOUND, Asked::Manifest) if response.media_type() == "text/html" => {
                return self.not_a_registry("text/html");
            }
            (StatusCode::UNAUTHORIZED, _) if at_home => self.login(),
            (StatusCode::NOT_FOUND, Asked::Manifest) => Refusal::NoImage(self.reference.to_string()),
            (StatusCode::NOT_FOUND, Asked::Blob(digest)) => Refusal::NoBlob(digest),
            (status, _) => general(status, response, self.reference.path()),
        };
        RegistryError::Refused { host: self.host(), refusal }
    }

    /// What answers is something else, such as a login page.
    pub(super) fn not_a_registry(&self, media: &str) -> RegistryError {
        let found = match media {
            "text/html" => "it sent a web page".into(),
            other => format!("it sent '{}'", shown(other, 80)),
        };
        RegistryError::NotARegistry { host: self.host(), found }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn general(status: StatusCode, response: &Response, path: &str) -> Refusal {
    match status.as_u16() {
        403 => Refusal::Forbidden(path.to_owned()),
        429 => Refusal::TooMany(response.header("retry-after").and_then(|text| text.parse().ok())),
        code @ 500..=599 => Refusal::Failed(code),
        code => Refusal::Status(code),
    }
}
