//! A small HTTP/1.1 client: one connection per request, every answer bounded, nothing followed by itself.
//!
//! ```text
//! url      where to, and what a redirect means from there     (RFC 3986)
//! tls      whom to trust                                        (rustls)
//! connect  TCP, TLS or a Unix socket, with a time for each step
//! ```
//!
//! Redirects and credentials are the business of the caller, who knows which host a secret is for.
mod connect;
pub(crate) mod tls;
pub(crate) mod url;

use connect::Wire;
pub(crate) use connect::{Dialler, Endpoint};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Time for a TCP connection, in seconds: three SYNs (RFC 6298 §2: 1 s, doubled each time).
pub(crate) const CONNECT_SECONDS: u64 = 10;
/// Time for a TLS handshake, in seconds.
pub(crate) const HANDSHAKE_SECONDS: u64 = 15;
/// Time until an answer begins, in seconds: a registry may have to fetch what it is asked for from another one.
const ANSWER_SECONDS: u64 = 60;
/// Time between two pieces of an answer, in seconds: stops a server that holds us for ever without a word.
const SILENCE_SECONDS: u64 = 30;
/// Header lines of an answer, and bytes of them all: stops headers without end.
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("cannot reach {whom} ({reason}): check the name, the network and that no firewall is between")]
    Unreachable {
        /// `host port 443`, or a socket's path.
        whom: String,
        /// The system's words.
        reason: String,
    },
    /// Something without TLS answers where TLS is needed.
    #[error(
        "{whom} does not speak TLS: plain HTTP is used for registries on this computer only; give it a certificate, and \
         name its authority with --ca if it is your own"
    )]
    NotTls {
        /// `host port 443`.
        whom: String,
    },
    /// The certificate is not good for this host.
    #[error(
        "{whom} cannot prove who it is ({reason}): name its authority's certificate with --ca if it is your own registry"
    )]
    Untrusted {
        /// `host port 443`.
        whom: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// Plain HTTP over the network, from wherever it was named.
    #[error("'{0}' is refused: plain HTTP is used for registries on this computer only")]
    Plain(String),
    /// The answer stopped before its end.
    #[error("the connection to {whom} broke: {reason}")]
    Broken {
        /// `host port 443`.
        whom: String,
        /// How.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{whom} said nothing for {seconds} s: try again later")]
    Silent {
        /// `host port 443`.
        whom: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Larger than accepted.
    #[error("{whom} sent more than {limit} bytes of {what}: that is refused")]
    TooLarge {
        /// `host port 443`.
        whom: String,
        /// What was expected.
        what: &'static str,
        /// How much is accepted.
        limit: usize,
    },
}

impl HttpError {
    /// Whether another attempt may do better: the way was cut, not the door shut.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Silent { .. } => true,
            Self::NotTls { .. } | Self::Untrusted { .. } | Self::Plain(_) | Self::TooLarge { .. } => false,
        }
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Response {
    /// A header's text; `None` if it is not there or no text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The media type, without parameters, in lower case; empty if it is not said.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// `Content-Length`.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header("content-length").and_then(|text| text.parse().ok())
    }
}

/// The rest of an answer. The connection ends with it.
#[derive(Debug)]
pub(crate) struct Body {
    incoming: Incoming,
    whom: String,
    driver: JoinHandle<()>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Body {
    /// The next piece; `None` at the end, which is known to be the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(Duration::from_secs(SILENCE_SECONDS), self.incoming.frame());
            let silent = || HttpError::Silent { whom: self.whom.clone(), seconds: SILENCE_SECONDS };
            match frame.await.map_err(|_| silent())? {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    // Trailers say nothing that we want to know.
                    Err(_) => {}
                },
                Some(Err(error)) => return Err(broken(&self.whom, &error)),
            }
        }
    }

    /// All of it, at most `limit` bytes.
    pub(crate) async fn document(mut self, what: &'static str, limit: usize) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len().saturating_add(chunk.len()) > limit {
                return Err(HttpError::TooLarge { whom: self.whom.clone(), what, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

fn broken(whom: &str, error: &hyper::Error) -> HttpError {
    let mut reason = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        reason = format!("{reason}: {cause}");
    }
    HttpError::Broken { whom: whom.to_owned(), reason: crate::session::plain_text(&reason) }
}

/// Sends a request over a connection of its own.
pub(crate) async fn send(
    dialler: &Dialler,
    endpoint: &Endpoint,
    request: Request<Full<Bytes>>,
) -> Result<Response, HttpError> {
    let whom = endpoint.to_string();
    match dialler.dial(endpoint).await? {
        Wire::Plain(stream) => exchange(stream, whom, request).await,
        Wire::Tls(stream) => exchange(stream, whom, request).await,
        Wire::Unix(stream) => exchange(stream, whom, request).await,
    }
}

async fn exchange<T>(stream: T, whom: String, request: Request<Full<Bytes>>) -> Result<Response, HttpError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_header_size(MAX_HEADER_BYTES).max_buf_size(4 * MAX_HEADER_BYTES);
    let asked = async {
        let (mut sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| broken(&whom, &error))?;
        // What it ends with is told to whoever waits for the answer or a piece of it.
        let driver = tokio::spawn(async move { connection.await.unwrap_or_default() });
        match sender.send_request(request).await {
            Ok(response) => Ok((response, driver)),
            Err(error) => {
                driver.abort();
                Err(broken(&whom, &error))
            }
        }
    };
    let silent = || HttpError::Silent { whom: whom.clone(), seconds: ANSWER_SECONDS };
    let answered = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS), asked);
    let (response, driver) = answered.await.map_err(|_| silent())??;
    let (head, incoming) = response.into_parts();
    Ok(Response { status: head.status, headers: head.headers, body: Body { incoming, whom, driver } })
}
