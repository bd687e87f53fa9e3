//! Sessions over an in-memory transport, end to end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod session;
mod streams;

use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use wherry_protocol::io::{
    Incoming, Mux, Secure, ServerKeys, SessionError, Side, accept_with, connect_with, multiplex,
};
use wherry_protocol::{Limits, OsRandom, PublicKey, SecretKey};

type Pipe = Compat<DuplexStream>;

fn pipe(bytes: usize) -> (Pipe, Pipe) {
    let (a, b) = tokio::io::duplex(bytes);
    (a.compat(), b.compat())
}

async fn secure_pair(bytes: usize) -> (Secure<Pipe>, Secure<Pipe>, PublicKey) {
    secure_pair_with(bytes, &Limits::DEFAULT).await
}

async fn secure_pair_with(bytes: usize, limits: &Limits) -> (Secure<Pipe>, Secure<Pipe>, PublicKey) {
    let (a, b) = pipe(bytes);
    let client = SecretKey::generate(&mut OsRandom);
    let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
    let public = server.public();
    let (mut r1, mut r2) = (OsRandom, OsRandom);
    let (dialled, accepted) = tokio::join!(
        connect_with(a, &client, &public, &mut r1, limits),
        accept_with(b, &server, &mut r2, limits)
    );
    (dialled.unwrap(), accepted.unwrap(), client.public())
}

/// One end of a multiplexed session.
struct Ends {
    mux: Mux,
    incoming: Incoming,
    driver: JoinHandle<Result<(), SessionError>>,
}

impl Ends {
    fn new(secure: Secure<Pipe>, side: Side, limits: &Limits) -> Self {
        let (mux, incoming, driver) = multiplex(secure, side, limits);
        Self { mux, incoming, driver: tokio::spawn(driver) }
    }
}

async fn mux_pair_with_drivers(limits: &Limits) -> (Ends, Ends) {
    let (dialled, accepted, _) = secure_pair_with(64 * 1024, limits).await;
    (Ends::new(dialled, Side::Dialled, limits), Ends::new(accepted, Side::Accepted, limits))
}

async fn mux_pair_of(dialling: &Limits, accepting: &Limits) -> ((Mux, Incoming), (Mux, Incoming)) {
    let (dialled, accepted, _) = secure_pair_with(64 * 1024, dialling).await;
    let a = Ends::new(dialled, Side::Dialled, dialling);
    let b = Ends::new(accepted, Side::Accepted, accepting);
    ((a.mux, a.incoming), (b.mux, b.incoming))
}

async fn mux_pair(limits: &Limits) -> ((Mux, Incoming), (Mux, Incoming)) {
    mux_pair_of(limits, limits).await
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("must not hang")
}
