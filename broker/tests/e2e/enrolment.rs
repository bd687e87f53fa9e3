use crate::world::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wherry_broker::serve::ServeLimits;
use wherry_protocol::io::{SessionError, hello, recv, send};
use wherry_protocol::message::*;
use wherry_protocol::*;

fn code(reply: EnrolReply) -> ErrorCode {
    match reply {
        EnrolReply::Refused(error) => error.code,
        EnrolReply::Enrolled { .. } => panic!("enrolled"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_an_account_once() {
    let broker = Broker::start().await;
    let key = SecretKey::generate(&mut OsRandom);
    let first = broker.enrol(&key, Role::User, token_secret(10)).await;
    let EnrolReply::Enrolled { account, role: Role::User, location } = first.clone() else {
        panic!("{first:?}")
    };
    assert_eq!(location.as_str(), "test");
    assert_eq!(broker.enrol(&key, Role::User, token_secret(10)).await, first, "the same claim again");
    let other = SecretKey::generate(&mut OsRandom);
    assert_eq!(code(broker.enrol(&other, Role::User, token_secret(10)).await), ErrorCode::BadToken);
    assert_eq!(code(broker.enrol(&key, Role::User, token_secret(11)).await), ErrorCode::AlreadyExists);
    let user = broker.session(key, account).await;
    assert!(matches!(user.ask(Request::Status).await, Reply::Status(info) if info.account.id == account));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_expired_and_misused_tokens_are_refused_alike() {
    let broker = Broker::start().await;
    let key = SecretKey::generate(&mut OsRandom);
    let wrong = broker.enrol(&key, Role::User, token_secret(255)).await;
    let expired = broker.enrol(&key, Role::User, token_secret(200)).await;
    let role = broker.enrol(&key, Role::Admin, token_secret(10)).await;
    assert_eq!(wrong, expired);
    assert_eq!(wrong, role);
    assert_eq!(code(wrong), ErrorCode::BadToken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_told_to_enrol() {
    let broker = Broker::start().await;
    let (mux, _incoming) = broker.dial(broker.sessions, &SecretKey::generate(&mut OsRandom)).await.unwrap();
    match hello(&mux, "test").await {
        Err(SessionError::Refused(error)) => {
            assert_eq!(error.code, ErrorCode::Unauthenticated);
            assert!(error.message.contains("wherry join"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_told_so_on_both_ports() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    for port in [broker.sessions, broker.enrolment] {
        let (mux, _incoming) = broker.dial(port, &user.key).await.unwrap();
        let mut stream = mux.open().await.unwrap();
        let old = Hello { version: 0, oldest: 0, features: 0, software: "old".into() };
        send(&mut stream, &old).await.unwrap();
        let reply = soon(recv::<HelloReply>(&mut stream, 4096)).await.unwrap().unwrap();
        assert!(matches!(reply, HelloReply::Refused(error) if error.code == ErrorCode::Version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    for port in [broker.sessions, broker.enrolment] {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\0", b""] {
            let mut tcp = TcpStream::connect(port).await.unwrap();
            drop(tcp.write_all(garbage).await);
            drop(tcp.shutdown().await);
            let mut rest = Vec::new();
            drop(soon(tcp.read_to_end(&mut rest)).await);
            assert!(rest.len() < 256, "no long answer to garbage");
        }
    }
    assert_eq!(user.ask(Request::Ping).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_inside_a_session_is_answered_with_a_sentence() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    use futures_util::AsyncWriteExt as _;
    for bytes in [&[3, 0, 0, 0, 0xff, 0xff, 0xff][..], &[0xff, 0xff, 0xff, 0xff]] {
        let mut stream = user.mux.open().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let reply = soon(reply(&mut stream)).await;
        assert!(matches!(reply, Reply::Error(_)), "{reply:?}");
    }
    assert_eq!(user.ask(Request::Ping).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_only_fails_is_turned_away() {
    let limits = ServeLimits { failures_burst: 5, failures_per_second: 1, ..ServeLimits::default() };
    let place = Place::Own(tempfile::tempdir().unwrap());
    let broker = Broker::start_in(place.into(), SecretKey::generate(&mut OsRandom), limits).await;
    let mut refused = false;
    for _ in 0..10 {
        let key = SecretKey::generate(&mut OsRandom);
        match broker.dial(broker.sessions, &key).await {
            Ok((mux, _incoming)) => assert!(hello(&mux, "test").await.is_err()),
            Err(SessionError::Refused(error)) => {
                assert_eq!(error.code, ErrorCode::Busy);
                refused = true;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(broker.dial(broker.sessions, &SecretKey::generate(&mut OsRandom)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_may_not_ask_and_a_user_may_not_pose_as_board() {
    let broker = Broker::start().await;
    let user = broker.user(10).await;
    let mut stream = user.mux.open().await.unwrap();
    let greeting = NodeHello { facts: facts(1), load: load(), inventory: Vec::new() };
    send(&mut stream, &NodeCall::Control(Box::new(greeting))).await.unwrap();
    let answered = soon(recv::<Reply>(&mut stream, 4096)).await;
    assert!(!matches!(answered, Ok(Some(Reply::Nodes(_)))), "{answered:?}");
    let Reply::Nodes(nodes) = user.ask(Request::Nodes).await else { panic!() };
    assert!(nodes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_account_loses_its_session_and_its_key() {
    let broker = Broker::start().await;
    let (admin, user) = (broker.user(1).await, broker.user(10).await);
    assert_eq!(admin.ask(Request::RemoveAccount(user.account)).await, Reply::Done);
    soon(async {
        while user.mux.open().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let (mux, _incoming) = broker.dial(broker.sessions, &user.key).await.unwrap();
    assert!(matches!(hello(&mux, "test").await, Err(SessionError::Refused(_))));
    assert_eq!(admin.refused(Request::RemoveAccount(admin.account)).await.code, ErrorCode::WrongState);
}
