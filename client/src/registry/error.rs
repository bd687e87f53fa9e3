//! What can go wrong between a laptop and a registry.
use super::credentials::CredentialError;
use super::reference::ReferenceError;
use crate::http::HttpError;
use crate::http::tls::TrustError;
use wherry_images::oci::OciError;
use wherry_protocol::Digest;

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A text that is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The connection.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Authorities for TLS.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Stored logins.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The registry, or the token service it names, said no.
    #[error("{host} {refusal}")]
    Refused {
        /// Who.
        host: String,
        /// How.
        refusal: Refusal,
    },
    /// A redirect that leads on and on.
    #[error("{host} redirects more than {limit} times: that is refused")]
    Redirects {
        /// Who.
        host: String,
        /// How often is accepted.
        limit: usize,
    },
    /// A redirect, or a token service, that nobody should follow.
    #[error("{host} sends us to '{target}', which is refused: {reason}")]
    Target {
        /// Who.
        host: String,
        /// Where to, shortened.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// Something else than a registry answers.
    #[error("what answers at {host} is not a container registry: {found}; check the reference")]
    NotARegistry {
        /// Who.
        host: String,
        /// What it sent.
        found: String,
    },
    /// A document that cannot be used.
    #[error("{what} from {host} cannot be used: {reason}")]
    Document {
        /// `the manifest of web:latest`, say.
        what: String,
        /// Who sent it.
        host: String,
        /// Why not.
        reason: String,
    },
    /// What is in a document of the image.
    #[error("{reference} cannot be used: {source}")]
    Image {
        /// Which image.
        reference: String,
        /// Why not.
        #[source]
        source: OciError,
    },
    /// Bytes that are not what was asked for.
    #[error("{host} sent something else than {expected}, it is {found}: nothing was stored, pull again")]
    WrongDigest {
        /// Who.
        host: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More or fewer bytes than the image says.
    #[error(
        "{host} sent {found} bytes for {blob}, the image says {expected}: nothing was stored, pull again"
    )]
    WrongSize {
        /// Who.
        host: String,
        /// Which blob.
        blob: Digest,
        /// What the image says.
        expected: u64,
        /// What the registry says, or sent.
        found: u64,
    },
}

/// How somebody said no. None of these quote what the server wrote, which may hold anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401, and nothing is stored.
    #[error(
        "wants a login for '{path}', or there is no such image: run `docker login {login}` (or podman's), then pull again"
    )]
    Login {
        /// The repository.
        path: String,
        /// The host to log in at.
        login: String,
    },
    /// 401, although something is stored.
    #[error("does not accept the stored login for '{path}': run `docker login {login}` (or podman's) again")]
    BadLogin {
        /// The repository.
        path: String,
        /// The host to log in at.
        login: String,
    },
    /// 401 with a way of proving oneself that we do not know.
    #[error("wants to be authenticated by '{0}', which is not supported: Basic and Bearer are")]
    Scheme(String),
    /// 403.
    #[error("does not allow us to pull '{0}': ask its owner for the right, or log in as somebody else")]
    Forbidden(String),
    /// 404 for a manifest.
    #[error("has no image '{0}': check its name and its tag")]
    NoImage(String),
    /// 404 for a blob.
    #[error("has lost {0}, which the image needs: whoever pushed it has to push it again")]
    NoBlob(Digest),
    /// 429.
    #[error("has had too many requests from here: {}or log in with `docker login`, which allows more", wait(*.0))]
    TooMany(Option<u32>),
    /// 5xx.
    #[error("failed ({0}): that is its own trouble, try again later")]
    Failed(u16),
    /// Anything else.
    #[error("answered with status {0}, which makes no sense here: check that the reference names a registry")]
    Status(u16),
    /// A token service that gives no token.
    #[error("gave no usable token: {0}")]
    Token(&'static str),
}

fn wait(seconds: Option<u32>) -> String {
    match seconds {
        Some(seconds) => format!("wait {seconds} s, "),
        None => "wait a while, ".into(),
    }
}

impl RegistryError {
    /// Whether another attempt may do better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http(error) => error.is_transient(),
            // A gateway whose server is away for a moment (RFC 9110 §15.6.3 to §15.6.5).
            Self::Refused { refusal: Refusal::Failed(status), .. } => matches!(status, 502..=504),
            Self::Refused { .. }
            | Self::Reference(_)
            | Self::Trust(_)
            | Self::Credentials(_)
            | Self::Redirects { .. }
            | Self::Target { .. }
            | Self::NotARegistry { .. }
            | Self::Document { .. }
            | Self::Image { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. } => false,
        }
    }
}
