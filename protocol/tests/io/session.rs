//! Handshake, hello, requests: how sessions begin and end.
use crate::{mux_pair, pipe, secure_pair, within};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use wherry_protocol::io::{
    ServerKeys, SessionError, accept, answer_hello, connect, hello, read_hello, recv, refuse_busy, send,
};
use wherry_protocol::message::{Hello, HelloReply, PROTOCOL_VERSION, Reply, Request};
use wherry_protocol::{ErrorCode, Limits, OsRandom, Role, SecretKey, WireError};

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
        assert!(matches!(
            reply,
            HelloReply::Accepted { version: PROTOCOL_VERSION, role: Some(Role::User), .. }
        ));
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

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_refused_at_once() {
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2p1\r\n", &[0; 8], &[0xff; 500]] {
        within(async {
            let (mut a, b) = pipe(4096);
            let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
            a.write_all(garbage).await.unwrap();
            // The peer keeps its end open: the server must not wait for more.
            let error = accept(b, &server, &mut OsRandom).await.unwrap_err();
            assert!(matches!(error, SessionError::Garbage { .. }), "{error}");
            let mut answer = Vec::new();
            a.read_to_end(&mut answer).await.unwrap();
            assert!(answer.is_empty(), "strangers learn nothing");
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_named() {
    within(async {
        let (a, mut b) = pipe(4096);
        b.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let me = SecretKey::generate(&mut OsRandom);
        let error = connect(a, &me, &me.public(), &mut OsRandom).await.unwrap_err();
        assert!(error.to_string().contains("check host and port"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn silence_and_hanging_up_are_no_panic() {
    within(async {
        let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
        for sent in [0, 1, 7, 8, 9, 231] {
            let (mut a, b) = pipe(4096);
            let mut hello = b"WHERRY\x01H".to_vec();
            hello.resize(232, 0);
            a.write_all(&hello[..sent]).await.unwrap();
            drop(a);
            let error = accept(b, &server, &mut OsRandom).await.unwrap_err();
            assert!(matches!(error, SessionError::Closed), "{sent}: {error}");
        }
        let (a, b) = pipe(4096);
        drop(b);
        let me = SecretKey::generate(&mut OsRandom);
        assert!(matches!(connect(a, &me, &server.public(), &mut OsRandom).await, Err(SessionError::Closed)));
    })
    .await;
}

#[tokio::test]
async fn another_generation_is_told_to_update() {
    within(async {
        let (mut a, b) = pipe(4096);
        let server = ServerKeys::new(SecretKey::generate(&mut OsRandom), &mut OsRandom);
        a.write_all(b"WHERRY\x00H").await.unwrap();
        assert!(matches!(accept(b, &server, &mut OsRandom).await, Err(SessionError::Version { .. })));
        let mut notice = [0; 8];
        a.read_exact(&mut notice).await.unwrap();
        assert_eq!(&notice, b"WHERRY\x01V");
    })
    .await;
}

#[tokio::test]
async fn a_busy_broker_says_so() {
    within(async {
        let (a, b) = pipe(4096);
        let me = SecretKey::generate(&mut OsRandom);
        let (server, mut random) = (me.public(), OsRandom);
        let (dialled, ()) = tokio::join!(connect(a, &me, &server, &mut random), refuse_busy(b));
        assert!(matches!(dialled, Err(SessionError::Refused(error)) if error.code == ErrorCode::Busy));
    })
    .await;
}

#[tokio::test]
async fn a_cut_connection_is_an_error_and_a_close_is_an_end() {
    within(async {
        let (a, mut b, _) = secure_pair(4096).await;
        drop(a);
        let error = b.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);

        let (mut a, mut b, _) = secure_pair(4096).await;
        a.close().await.unwrap();
        assert_eq!(b.read(&mut [0; 10]).await.unwrap(), 0);
        // Half closed: the other direction goes on.
        b.write_all(b"still here").await.unwrap();
        b.flush().await.unwrap();
        let mut got = [0; 10];
        a.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still here");
        assert!(a.write_all(b"x").await.is_err());
    })
    .await;
}

#[tokio::test]
async fn versions_without_overlap_are_refused_in_words() {
    for (oldest, version, fine) in
        [(6, 6, true), (6, 9, true), (1, 6, true), (1, 5, false), (7, 9, false), (9, 6, false)]
    {
        within(async {
            let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
            let server = tokio::spawn(async move {
                let (stream, hello) = read_hello(&mut incoming).await.unwrap();
                answer_hello(stream, &hello, "broker 1", Ok(None)).await
            });
            let mut stream = mux.open().await.unwrap();
            let hello = Hello { version, oldest, features: u64::MAX, software: "other 9".into() };
            send(&mut stream, &hello).await.unwrap();
            let reply: HelloReply = recv(&mut stream, 4096).await.unwrap().unwrap();
            drop(stream);
            match reply {
                HelloReply::Accepted { version, features, .. } => {
                    assert!(fine, "{oldest}..={version}");
                    assert_eq!((version, features), (PROTOCOL_VERSION, 0));
                }
                HelloReply::Refused(error) => {
                    assert!(!fine, "{oldest}..={version}");
                    assert_eq!(error.code, ErrorCode::Version);
                    assert!(error.message.contains("update"), "{error}");
                }
            }
            assert_eq!(server.await.unwrap().is_ok(), fine);
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_in_a_version_that_was_not_offered_is_refused() {
    within(async {
        let ((mux, _incoming), (_mux, mut incoming)) = mux_pair(&Limits::DEFAULT).await;
        tokio::spawn(async move {
            let (mut stream, _) = read_hello(&mut incoming).await.unwrap();
            let reply = HelloReply::Accepted { version: 0, features: 0, software: "old".into(), role: None };
            send(&mut stream, &reply).await.unwrap();
            stream.close().await.unwrap();
        });
        assert!(matches!(hello(&mux, "wherry 1").await, Err(SessionError::Version { .. })));
    })
    .await;
}

#[tokio::test]
async fn messages_are_bounded_whole_and_exact() {
    within(async {
        let mut long = futures_util::io::Cursor::new(1001u32.to_le_bytes().to_vec());
        let error = recv::<Request>(&mut long, 1000).await.unwrap_err();
        assert!(matches!(error, SessionError::TooLarge { bytes: 1001, limit: 1000 }), "{error}");

        let mut huge = futures_util::io::Cursor::new(u32::MAX.to_le_bytes().to_vec());
        // Allowed but never sent: fails for want of bytes, not of memory.
        assert!(matches!(recv::<Request>(&mut huge, usize::MAX).await, Err(SessionError::Closed)));

        for cut in 1..5 {
            let bytes = [1, 0, 0, 0, 0][..cut].to_vec();
            let mut cut_short = futures_util::io::Cursor::new(bytes);
            let result = recv::<Request>(&mut cut_short, 1000).await;
            assert!(matches!(result, Err(SessionError::Closed)), "{cut}");
        }
        let mut none = futures_util::io::Cursor::new(Vec::new());
        assert_eq!(recv::<Request>(&mut none, 1000).await.unwrap(), None);

        for bad in [&[0, 0, 0, 0][..], &[2, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 99]] {
            let mut bad = futures_util::io::Cursor::new(bad.to_vec());
            let result = recv::<Request>(&mut bad, 1000).await;
            assert!(matches!(result, Err(SessionError::Garbage { .. })));
        }
    })
    .await;
}

#[test]
fn every_error_is_one_sentence_for_a_person() {
    let errors = [
        SessionError::Io(std::io::Error::other("no route to host")),
        SessionError::WrongServerKey,
        SessionError::Refused(WireError::new(ErrorCode::Unauthenticated, "this key is unknown here")),
        SessionError::Version { message: "update".into() },
        SessionError::Garbage { what: "nonsense".into() },
        SessionError::Closed,
        SessionError::TooLarge { bytes: 2, limit: 1 },
        SessionError::TooManyStreams { limit: 1 },
    ];
    for error in errors {
        let text = error.to_string();
        assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
    }
}
