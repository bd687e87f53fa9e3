//! Docker's Engine API, as far as it is needed to save an image (docker/docker, `api/swagger.yaml`).
use super::{EngineError, Spool, words};
use crate::error::ClientError;
use crate::http::tls::Trust;
use crate::http::{self, Dialler, Endpoint, HttpError, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use serde::Deserialize;

/// Largest description of an image, or error message, in bytes.
const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "Id")]
    id: String,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// Writes the image `name` into `spool`.
pub(super) async fn save(
    host: &Endpoint,
    name: &str,
    spool: &mut Spool,
    progress: impl Fn(u64),
) -> Result<(), ClientError> {
    let dialler = Dialler::new(Trust::nobody().map_err(crate::registry::RegistryError::Trust)?);
    let ask = async |what: &str| -> Result<Response, EngineError> {
        let request = Request::get(format!("/images/{name}/{what}"))
            .header(HOST, "docker")
            .body(Full::new(Bytes::new()));
        let request = request.map_err(|_| EngineError::Name(name.to_owned()))?;
        let response = http::send(&dialler, host, request).await.map_err(|error| connecting(host, error))?;
        match response.status {
            StatusCode::OK => Ok(response),
            _ => Err(refused(host, name, response).await),
        }
    };
    let described = ask("json").await?;
    let bytes = described.body.document("a description", MAX_DOCUMENT_BYTES).await;
    let bytes = bytes.map_err(|error| connecting(host, error))?;
    serde_json::from_slice::<Described>(&bytes)
        .ok()
        .filter(|described| !described.id.is_empty())
        .ok_or_else(|| no_engine(host, "its description of the image makes no sense".into()))?;
    let mut response = ask("get").await?;
    let broken = |error: HttpError| EngineError::Broken { name: name.to_owned(), reason: error.to_string() };
    while let Some(chunk) = response.body.chunk().await.map_err(broken)? {
        spool.write(&chunk)?;
        progress(chunk.len() as u64);
    }
    Ok(())
}

fn connecting(host: &Endpoint, error: HttpError) -> EngineError {
    let at = host.to_string();
    match error {
        HttpError::Unreachable { reason, .. } if reason.contains("ermission denied") => {
            EngineError::Denied(at)
        }
        HttpError::Unreachable { reason, .. } => EngineError::NoDocker { at, reason },
        other => EngineError::NotDocker { at, reason: other.to_string() },
    }
}

fn no_engine(host: &Endpoint, reason: String) -> EngineError {
    EngineError::NotDocker { at: host.to_string(), reason }
}

async fn refused(host: &Endpoint, name: &str, response: Response) -> EngineError {
    let status = response.status;
    let bytes = response.body.document("an error", MAX_DOCUMENT_BYTES).await.unwrap_or_default();
    match serde_json::from_slice::<Message>(&bytes) {
        Ok(_) if status == StatusCode::NOT_FOUND => EngineError::NoImage(name.to_owned()),
        Ok(Message { message }) => EngineError::Refused {
            name: name.to_owned(),
            status: status.as_u16(),
            message: words(message.as_bytes()),
        },
        Err(_) => no_engine(host, format!("it answered with status {}", status.as_u16())),
    }
}
