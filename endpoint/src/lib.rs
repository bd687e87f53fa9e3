//! The web endpoint: HTTP/1.1, HTTP/2 and TLS in front of clusters of backends.
//!
//! A library that knows neither containers nor Wherry's protocol: [`serve`] takes listeners, a [`Table`] of virtual hosts that
//! may be replaced at any time, and [`Backends`] that reach a backend by its number. What a client sends is checked byte by
//! byte before hyper sees it (`framing.rs`), and what a backend receives is framed anew by us, so that both always agree on where
//! a request ends.
mod body;
mod certificate;
mod challenge;
mod clients;
mod cookie;
mod framing;
mod guard;
mod headers;
mod limits;
mod observe;
mod path;
mod pool;
mod proxy;
mod refusal;
mod rules;
mod server;
mod service;
mod stall;
mod table;
mod ticket;
mod tls;
mod tunnel;

pub use certificate::{Age, CertificateError, StoredCertificate, trusted_roots};
pub use challenge::Challenges;
pub use cookie::CookieKey;
pub use hyper::Method;
pub use limits::Limits;
pub use observe::{Access, Counters, Encryption, Observer};
pub use refusal::Refusal;
pub use rules::{AccessRule, Caller, RulePath};
pub use server::{Backends, Config, ConnectError, Identify, Identity, Listeners, Who, serve};
pub use table::{
    Backend, Cluster, Host, HostName, Route, Table, TableError, check_prefix, check_rewrite_host,
};
pub use tokio_rustls::rustls::sign::CertifiedKey;
