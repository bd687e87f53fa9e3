//! Images in a registry: OCI distribution-spec v1.1, which is Docker's registry API v2.
//!
//! ```text
//! reference     host/path:tag@digest as people write it
//! credentials   what `docker login` and its relatives have stored
//! auth          challenges, tokens: which secret goes where    (RFC 7235, distribution's token specification)
//! client        one request: authorised, redirected, its failures as sentences
//! manifest      from a reference to a verified manifest and configuration
//! blob          layers as a stream that survives cuts
//! ```
//!
//! A registry is not trusted with more than the secret that is for it: all it sends is bounded and verified by digest.
mod auth;
mod blob;
mod client;
mod credentials;
mod error;
mod manifest;
mod reference;

pub use crate::http::HttpError;
pub use crate::http::tls::TrustError;
pub use client::{Registry, RegistryOptions};
pub use credentials::{CredentialError, CredentialFiles, Credentials, Secret};
pub use error::{Refusal, RegistryError};
pub use manifest::{Remote, RemoteImage};
pub use reference::{Reference, ReferenceError};
