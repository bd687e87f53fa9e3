//! The web endpoint: names that the broker answers for on ports 80 and 443, and the domains they are in.
use super::user::Party;
use crate::Prefix;
use crate::id::{AccountId, Name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// Asks for a name to be served, or to be served otherwise: what it says replaces what was said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// `www.example.org`, or `*.example.org` for all names with one label more. Within a domain of the account's, or a
    /// shared one.
    pub host: String,
    /// Where requests go; the longest prefix that matches the path counts.
    pub routes: Vec<EndpointRoute>,
    /// What proves the name to clients.
    pub certificate: CertificateSource,
    /// How it is served.
    pub options: EndpointOptions,
    /// Who may ask for what; everybody for everything if there are no rules. With rules, what none allows is refused.
    pub rules: Option<Vec<EndpointRule>>,
}

/// Requests below a path go to containers, the least busy of those that are well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRoute {
    /// `/api` stands for itself and what is below it; `/` for everything.
    pub prefix: String,
    /// Whom.
    pub to: Party,
    /// Their port, which speaks HTTP/1.1.
    pub port: u16,
}

/// How a name is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointOptions {
    /// The `Host` that containers see; otherwise the one that was asked for.
    pub rewrite_host: Option<String>,
    /// Also without TLS, where there is a certificate; otherwise such requests are sent on to `https`.
    pub plain: bool,
    /// A signed cookie keeps a client at its container.
    pub sticky: bool,
    /// Tells clients to come by TLS only, for a year (RFC 6797).
    pub hsts: bool,
    /// Bytes of a request body; the endpoint's own bound if absent.
    pub max_body_bytes: Option<u64>,
}

/// A certificate and where it comes from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateSource {
    /// There is none: no TLS.
    None,
    /// The account brings it.
    Given {
        /// Certificates as PEM, the name's own first.
        #[serde(with = "super::bytes")]
        chain: Vec<u8>,
        /// Its private key as PEM.
        #[serde(with = "super::bytes")]
        key: Vec<u8>,
    },
    /// The broker gets one, and a new one in time, by ACME (RFC 8555).
    Acme,
}

impl fmt::Debug for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Given { .. } => "Given(..)",
            Self::Acme => "Acme",
        })
    }
}

/// Requests that some callers may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRule {
    /// `GET` and so on; any if there are none.
    pub methods: Vec<String>,
    /// `/login` is that path alone, `/admin/*` what is below, `/*` everything.
    pub path: String,
    /// One of these.
    pub callers: Vec<EndpointCaller>,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointCaller {
    /// Anybody.
    Anyone,
    /// Whose address is in this network.
    Network(Prefix),
    /// The account's containers, by where their packets come from.
    Containers(Party),
}

/// A name that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The name.
    pub host: String,
    /// Whose it is.
    pub account: AccountId,
    /// Where requests go.
    pub routes: Vec<RouteInfo>,
    /// How.
    pub options: EndpointOptions,
    /// Who may ask for what.
    pub rules: Option<Vec<EndpointRuleInfo>>,
    /// Its certificate.
    pub certificate: CertificateInfo,
    /// When it was first asked for, Unix seconds.
    pub created_seconds: u64,
}

/// Where requests below a path go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteInfo {
    /// The path.
    pub prefix: String,
    /// A container's name, or `label:KEY=VALUE`.
    pub to: String,
    /// Their port.
    pub port: u16,
    /// Who that is now.
    pub backends: Vec<BackendInfo>,
}

/// A container that answers requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Its name.
    pub container: Name,
    /// Where it is.
    pub node: Name,
    /// Whether it gets requests: it runs, its board is there and its health check, if it has one, is content.
    pub healthy: bool,
}

/// [`EndpointRule`] as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRuleInfo {
    /// Any if there are none.
    pub methods: Vec<String>,
    /// As it was given.
    pub path: String,
    /// `anyone`, a network, a container's name or `label:KEY=VALUE`.
    pub callers: Vec<String>,
}

/// The state of a name's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateInfo {
    /// There is none, and none is wanted.
    None,
    /// By ACME, but it is not there yet.
    Awaited {
        /// Why not, if something went wrong.
        problem: Option<String>,
    },
    /// It is there.
    Present {
        /// Whether the broker renews it.
        acme: bool,
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        not_after: u64,
        /// Why it could not be renewed, if that went wrong.
        problem: Option<String>,
    },
}

/// A domain in which names may be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// Its name.
    pub domain: String,
    /// Who has it.
    pub account: AccountId,
    /// Their name for people.
    pub owner: Name,
    /// How far they are.
    pub state: DomainState,
}

/// How far the claim to a domain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainState {
    /// The proof is awaited.
    Prepared {
        /// What its TXT record must say.
        token: String,
        /// Until when, Unix seconds.
        expires_seconds: u64,
    },
    /// It is theirs.
    Claimed {
        /// Whether everybody may serve names in it.
        shared: bool,
        /// An admin's word stands for the proof.
        vouched: bool,
        /// Since when, Unix seconds.
        since_seconds: u64,
    },
}

/// Whom the broker asks for certificates.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeSettings {
    /// The directory, `https://…` (RFC 8555 §7.1.1).
    pub directory: String,
    /// Mail addresses where the authority may warn.
    pub contacts: Vec<String>,
    /// Further authorities to trust when talking to it, as PEM; for one's own, which the public ones do not vouch for.
    #[serde(with = "super::bytes")]
    pub roots: Vec<u8>,
    /// Key identifier and key (base64url) of an account one has there already (RFC 8555 §7.3.4).
    pub external_account: Option<(String, String)>,
    /// The authority's terms are agreed to.
    pub terms_agreed: bool,
}

impl fmt::Debug for AcmeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The external account's key is a secret.
        f.debug_struct("AcmeSettings")
            .field("directory", &self.directory)
            .field("contacts", &self.contacts)
            .field("terms_agreed", &self.terms_agreed)
            .finish_non_exhaustive()
    }
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessLine {
    /// A request is over.
    Request(Box<AccessEntry>),
    /// So many lines are missing here, because the reader was too slow.
    Lost(u64),
}

/// One request to the web endpoint, when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessEntry {
    /// When it was over, Unix milliseconds.
    pub unix_ms: u64,
    /// The name that was asked for.
    pub host: String,
    /// Who asked.
    pub client: SocketAddr,
    /// `GET` and so on.
    pub method: String,
    /// Without the query, which may be confidential.
    pub path: String,
    /// What was answered; `None` when the client went before there was an answer.
    pub status: Option<u16>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Microseconds from the end of the request's head to the end of the answer.
    pub micros: u64,
    /// The container that answered.
    pub backend: Option<Name>,
    /// `TLS 1.2`, `TLS 1.3`, or nothing.
    pub encryption: Option<String>,
    /// HTTP/2 rather than HTTP/1.1.
    pub http2: bool,
    /// Why the endpoint itself refused it.
    pub refusal: Option<String>,
    /// Whether the answer was sent to its end.
    pub complete: bool,
}
