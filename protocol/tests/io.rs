//! Sessions over an in-memory transport, end to end.
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use wherry_protocol::io::{
    Incoming, Mux, Secure, ServerKeys, SessionError, Side, accept, answer_hello, connect, hello, multiplex,
    read_hello, recv, send,
};
use wherry_protocol::message::{HelloReply, Reply, Request};
use wherry_protocol::{ErrorCode, Limits, OsRandom, PublicKey, Role, SecretKey, WireError};

type Pipe = Compat<DuplexStream>;

fn pipe(bytes: usize) -> (Pipe, Pipe) {
    let (a, b) = tokio::io::duplex(bytes);
    (a.compat(), b.compat())
}

async fn secure_pair(bytes: usize) -> (Secure<Pipe>, Secure<Pipe>, PublicKey) {
    let (a, b) = pipe(bytes);
    let client = SecretKey::generate(&mut OsRandom);
    let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
    let public = server.public();
    let (mut r1, mut r2) = (OsRandom, OsRandom);
    let (dialled, accepted) =
        tokio::join!(connect(a, &client, &public, &mut r1), accept(b, &server, &mut r2));
    (dialled.expect("dials"), accepted.expect("accepts"), client.public())
}

async fn mux_pair(limits: &Limits) -> ((Mux, Incoming), (Mux, Incoming)) {
    let (dialled, accepted, _) = secure_pair(64 * 1024).await;
    let (mux_a, incoming_a, driver_a) = multiplex(dialled, Side::Dialled, limits);
    let (mux_b, incoming_b, driver_b) = multiplex(accepted, Side::Accepted, limits);
    tokio::spawn(driver_a);
    tokio::spawn(driver_b);
    ((mux_a, incoming_a), (mux_b, incoming_b))
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("must not hang")
}

#[tokio::test]
async fn a_session_proves_both_keys_and_carries_bytes() {
    within(async {
        let (mut a, mut b, client) = secure_pair(1000).await;
        assert_eq!(b.peer(), client);
        let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = data.clone();
        let sender = tokio::spawn(async move {
            a.write_all(&data).await.unwrap();
            a.close().await.unwrap();
            a
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        drop(sender.await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn hello_then_request_and_reply() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let server = tokio::spawn(async move {
            let (stream, hello) = read_hello(&mut incoming).await.unwrap();
            answer_hello(stream, &hello, "broker 1", Ok(Some(Role::User))).await.unwrap();
            let mut stream = incoming.next().await.unwrap();
            let request: Request = recv(&mut stream, 1000).await.unwrap().unwrap();
            assert_eq!(request, Request::Ping);
            send(&mut stream, &Reply::Done).await.unwrap();
            stream.close().await.unwrap();
            assert!(incoming.next().await.is_none());
        });
        let reply = hello(&mux, "wherry 1").await.unwrap();
        assert!(matches!(reply, HelloReply::Accepted { version: 1, role: Some(Role::User), .. }));
        let mut stream = mux.open().await.unwrap();
        send(&mut stream, &Request::Ping).await.unwrap();
        assert_eq!(recv::<Reply>(&mut stream, 1000).await.unwrap(), Some(Reply::Done));
        assert_eq!(recv::<Reply>(&mut stream, 1000).await.unwrap(), None);
        drop(stream);
        mux.close();
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_refusal_reaches_the_dialling_side() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        let server = tokio::spawn(async move {
            let (stream, hello) = read_hello(&mut incoming).await.unwrap();
            let no = WireError::new(ErrorCode::Unauthenticated, "this key is unknown here");
            answer_hello(stream, &hello, "broker 1", Err(no)).await
        });
        let error = hello(&mux, "wherry 1").await.unwrap_err();
        assert!(matches!(error, SessionError::Refused(e) if e.code == ErrorCode::Unauthenticated));
        assert!(matches!(server.await.unwrap(), Err(SessionError::Refused(_))));
    })
    .await;
}

#[tokio::test]
async fn the_wrong_server_key_is_said_in_one_sentence() {
    within(async {
        let (a, b) = pipe(1000);
        let client = SecretKey::generate(&mut OsRandom);
        let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
        let other = SecretKey::generate(&mut OsRandom).public();
        let (mut r1, mut r2) = (OsRandom, OsRandom);
        let (dialled, accepted) =
            tokio::join!(connect(a, &client, &other, &mut r1), accept(b, &server, &mut r2));
        assert!(matches!(dialled, Err(SessionError::WrongServerKey)));
        assert!(matches!(accepted, Err(SessionError::WrongServerKey)));
    })
    .await;
}
