//! Clients that ask for too much, say too little, or come to the wrong door.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, Request, Response, StatusCode};
use support::{NOBODY, World, certificate, full, get, head, host, http1, rest, text, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use wherry_endpoint::{AccessRule, Caller, Host, Limits, Refusal, RulePath};

const SHORT: Duration = Duration::from_millis(300);

fn secure(name: &str) -> Host {
    Host { certificate: Some(certificate(name).0), ..host(name, &[1]) }
}

#[tokio::test]
async fn hosts_and_redirects() {
    let redirected = Host { redirect_to_https: true, hsts: true, ..secure("a.example") };
    let world = World::new(vec![redirected, host("*.b.example", &[1])]).await;
    world.backend(1).await;
    let response = world.send(get("A.example:80", "/x/../y?q=1")).await;
    assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(response.headers().get("location").unwrap(), "https://a.example/x/../y?q=1");
    assert!(!response.headers().contains_key("strict-transport-security"));
    let mut secure = http1(world.tls("a.example", &[]).await.unwrap()).await;
    let response = secure.send_request(get("a.example", "/x")).await.unwrap();
    assert_eq!(response.headers().get("strict-transport-security").unwrap(), "max-age=31536000");
    assert_eq!(world.get("www.b.example", "/x").await, (StatusCode::OK, "1 /x".to_owned()));
    let (status, said) = world.get("b.example", "/x").await;
    assert_eq!((status, said.as_str()), (StatusCode::NOT_FOUND, Refusal::UnknownHost.text()));
    for bad in ["", "a b", "[::1]", "a/b"] {
        assert_eq!(world.get(bad, "/x").await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
    let reply = world.raw("GET http://c.example/ HTTP/1.1\r\nHost: www.b.example\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
}

#[tokio::test]
async fn tls_is_for_known_names_only() {
    let world = World::new(vec![secure("a.example"), secure("b.example"), host("plain.example", &[1])]).await;
    world.backend(1).await;
    for name in ["c.example", "plain.example", "127.0.0.1"] {
        let refused = world.tls(name, &["http/1.1"]).await.unwrap_err();
        assert!(refused.to_string().contains("alert"), "{name}: {refused}");
    }
    assert_eq!(world.refusals(), [Refusal::UnknownServerName; 3]);
    let stream = world.tls("b.example", &[]).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], world.roots[1]);
    let mut sender = http1(stream).await;
    let response = sender.send_request(get("a.example", "/x")).await.unwrap();
    assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(text(response).await, Refusal::Misdirected.text());
    let mut two = world.http2("b.example").await;
    let request = Request::get("https://a.example/x").body(full("")).unwrap();
    assert_eq!(two.send_request(request).await.unwrap().status(), StatusCode::MISDIRECTED_REQUEST);
    let request = Request::get("https://b.example/x").body(full("")).unwrap();
    assert_eq!(two.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn garbage_at_either_port() {
    let limits = Limits { handshake_timeout: SHORT, ..Limits::default() };
    let world = World::with(vec![secure("a.example")], limits, None).await;
    world.backend(1).await;
    for garbage in ["GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "\x16\x03\x01\x7f\x7f", "\0\0\0\0\0\0\0\0\0"]
    {
        let mut stream = TcpStream::connect(world.https).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.unwrap();
        assert!(!rest(&mut stream).await.contains("HTTP"), "{garbage:?}");
    }
    let mut silent = TcpStream::connect(world.https).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(world.refusals(), [Refusal::Handshake; 4]);
    let hello = "\x16\x03\x01\x02\0\x01\0";
    assert!(world.raw(hello).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(world.get("a.example", "/x").await.0, StatusCode::OK);
}

#[tokio::test]
async fn slow_heads_are_ended_while_others_are_served() {
    let limits = Limits { head_timeout: SHORT, ..Limits::default() };
    let mut world = World::with(vec![host("a", &[1])], limits, None).await;
    world.backend(1).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(world.http).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
        slow.push(stream);
    }
    let mut silent = TcpStream::connect(world.http).await.unwrap();
    assert_eq!(world.get("a", "/x").await.0, StatusCode::OK);
    // On a slow machine some of the others are over already.
    while world.access().await.status != Some(200) {}
    // A byte now and then does not help.
    let mut dripping = slow.pop().unwrap();
    let drip = async {
        let mut every = tokio::time::interval(SHORT / 10);
        while dripping.write_all(b"x").await.is_ok() {
            every.tick().await;
        }
    };
    let ended = async {
        for mut stream in slow {
            let reply = rest(&mut stream).await;
            assert!(
                reply.starts_with("HTTP/1.1 408 ") && reply.ends_with(Refusal::HeadTimeout.text()),
                "{reply}"
            );
        }
    };
    within(async { tokio::join!(drip, ended) }).await;
    assert_eq!(rest(&mut silent).await, "");
    let access = world.access().await;
    assert_eq!((access.refusal, access.method.as_str()), (Some(Refusal::HeadTimeout), ""));
    assert_eq!(world.get("a", "/x").await.0, StatusCode::OK);
}

#[tokio::test]
async fn idle_connections_are_closed_and_busy_ones_are_not() {
    let limits = Limits { idle_timeout: SHORT, ..Limits::default() };
    let world = World::with(vec![secure("a")], limits, None).await;
    let _server = world
        .server(1, |_| async {
            tokio::time::sleep(SHORT * 3).await;
            Response::new(full("late"))
        })
        .await;
    let mut one = TcpStream::connect(world.http).await.unwrap();
    one.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(rest(&mut one).await.ends_with("late"));
    // TLS, and then nothing at all.
    let mut two = world.tls("a", &["h2"]).await.unwrap();
    rest(&mut two).await;
    let mut two = world.http2("a").await;
    let request = || Request::get("https://a/").body(full("")).unwrap();
    let late = two.send_request(request()).await.unwrap();
    assert_eq!(text(late).await, "late");
    while !two.is_closed() {
        drop(tokio::time::timeout(SHORT, two.ready()).await);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bodies_that_stop() {
    let limits = Limits { progress_timeout: SHORT, ..Limits::default() };
    let mut world = World::with(vec![secure("a")], limits, None).await;
    world.backend(1).await;
    let all = world.server(2, |request| async {
        drop(http_body_util::BodyExt::collect(request.into_body()).await);
        Response::new(full("all"))
    });
    let _server = all.await;
    world.table(vec![host("b", &[2]), secure("a")]);
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    let reply = rest(&mut stream).await;
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.ends_with(Refusal::BodyTimeout.text()), "{reply}");
    assert_eq!(world.access().await.refusal, Some(Refusal::BodyTimeout));
    // Nothing is read of a long response, over HTTP/1 and over a stream of HTTP/2.
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(!world.access().await.complete);
}

#[tokio::test]
async fn streams_that_are_not_read() {
    let limits = Limits { progress_timeout: SHORT, ..Limits::default() };
    let mut world = World::with(vec![secure("a")], limits, None).await;
    world.backend(1).await;
    let mut two = world.http2("a").await;
    let response = two.send_request(Request::get("https://a/big").body(full("")).unwrap()).await.unwrap();
    let access = world.access().await;
    assert!(!access.complete && access.http2 && access.sent < 64 << 20, "{access:?}");
    drop(response);
}

#[tokio::test]
async fn sizes() {
    let small = Host { max_body_bytes: 10, ..secure("a") };
    let world = World::new(vec![small]).await;
    world.backend(1).await;
    let long = "x".repeat(20_000);
    let many = "X: 1\r\n".repeat(100);
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "414"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "431"),
        (format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n{long}"), "413"),
        (
            format!(
                "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n{long}\r\n0\r\n\r\n"
            ),
            "413",
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123456789"
                .to_owned(),
            "200",
        ),
    ] {
        let start = &request[..30];
        let reply = world.raw(&request).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{start:?}: {reply}");
    }
    let mut two = world.http2("a").await;
    let mut request = Request::get("https://a/").body(full("")).unwrap();
    for number in 0..101 {
        request.headers_mut().append("x", number.into());
    }
    let response = two.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits { connections_per_client: 2, ..Limits::default() };
    let world = World::with(vec![host("a", &[1])], limits, None).await;
    world.backend(1).await;
    let mut one = http1(TcpStream::connect(world.http).await.unwrap()).await;
    let mut two = http1(TcpStream::connect(world.http).await.unwrap()).await;
    for sender in [&mut one, &mut two] {
        assert_eq!(text(sender.send_request(get("a", "/x")).await.unwrap()).await, "1 /x");
    }
    assert_eq!(world.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    assert_eq!(world.refusals(), [Refusal::ClientConnections]);
    two.ready().await.unwrap();
    assert_eq!(two.send_request(get("a", "/x")).await.unwrap().status(), StatusCode::OK);
    drop(one);
    within(async {
        while !world.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.contains("200 OK") {}
    })
    .await;
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let whose = |customer, name: &str, id| Host { customer, ..host(name, &[id]) };
    let (usual, busy) = (Limits::default(), StatusCode::SERVICE_UNAVAILABLE);
    for (limits, same_customer, other_customer) in [
        (Limits { requests_per_host: 1, ..usual.clone() }, StatusCode::OK, StatusCode::OK),
        (Limits { requests_per_customer: 1, ..usual.clone() }, busy, StatusCode::OK),
        (Limits { requests: 1, ..usual }, busy, busy),
    ] {
        let hosts = vec![whose(1, "a", 1), whose(1, "b", 2), whose(2, "c", 2)];
        let world = World::with(hosts, limits.clone(), None).await;
        let (begun, go, _server) = world.held(1).await;
        world.backend(2).await;
        let others = async {
            begun.notified().await;
            let response = world.send(get("a", "/")).await;
            assert_eq!(response.status(), busy, "{limits:?}");
            assert_eq!(response.headers().get("retry-after").unwrap(), "1");
            assert_eq!(text(response).await, Refusal::HostBusy.text());
            assert_eq!(world.get("b", "/x").await.0, same_customer, "{limits:?}");
            assert_eq!(world.get("c", "/x").await.0, other_customer, "{limits:?}");
            go.notify_one();
        };
        let (slow, ()) = within(async { tokio::join!(world.get("a", "/"), others) }).await;
        assert_eq!(slow.1, "late");
        within(async { while world.get("b", "/x").await.0 != StatusCode::OK {} }).await;
    }
}

#[tokio::test]
async fn one_client_cannot_have_all_requests() {
    let limits = Limits { requests_per_client: 1, ..Limits::default() };
    let world = World::with(vec![host("a", &[1]), host("b", &[2])], limits, None).await;
    let (begun, go, _server) = world.held(1).await;
    world.backend(2).await;
    let others = async {
        begun.notified().await;
        let response = world.send(get("b", "/x")).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers().get("retry-after").unwrap(), "1");
        assert_eq!(text(response).await, Refusal::ClientBusy.text());
        assert_eq!(world.get_from([127, 0, 0, 2], "b", "/x").await, StatusCode::OK);
        go.notify_one();
    };
    let (slow, ()) = within(async { tokio::join!(world.get("a", "/"), others) }).await;
    assert_eq!(slow.1, "late");
    within(async { while world.get("b", "/x").await.0 != StatusCode::OK {} }).await;
}

#[tokio::test]
async fn websockets_are_bounded() {
    let usual = Limits::default();
    for (limits, status) in [
        (Limits { tunnels_per_client: 1, ..usual.clone() }, "429"),
        (Limits { tunnels_per_host: 1, ..usual }, "503"),
    ] {
        let world = World::with(vec![host("a", &[1])], limits, None).await;
        world.backend(1).await;
        let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let open = async || {
            let mut stream = TcpStream::connect(world.http).await.unwrap();
            stream.write_all(upgrade.as_bytes()).await.unwrap();
            let said = head(&mut stream).await;
            (stream, said)
        };
        let (first, said) = open().await;
        assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
        let (_second, said) = open().await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
        assert_eq!(world.get("a", "/x").await.0, StatusCode::OK, "requests are not in the way");
        drop(first);
        within(async { while !open().await.1.starts_with("HTTP/1.1 101 ") {} }).await;
    }
}

/// Neither the backend nor its host is to blame, and idle connections make room.
#[tokio::test]
async fn a_way_that_is_full_is_no_failure_of_backends() {
    let world = World::new(vec![host("a", &[1]), host("b", &[2])]).await;
    let (begun, go, _server) = world.held(1).await;
    world.backend(2).await;
    world.addresses.bound(1);
    let others = async {
        begun.notified().await;
        let asked = (0..8).map(|_| async {
            let response = world.send(get("b", "/x")).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers().get("retry-after").unwrap(), "1");
            assert_eq!(text(response).await, Refusal::HostBusy.text());
        });
        futures_util::future::join_all(asked).await;
        go.notify_one();
    };
    let (slow, ()) = within(async { tokio::join!(world.get("a", "/"), others) }).await;
    assert_eq!(slow.1, "late");
    // The connection to the one is idle now, and the only one there may be.
    assert_eq!(world.get("b", "/x").await, (StatusCode::OK, "2 /x".to_owned()));
}

#[tokio::test]
async fn dripping_bodies_are_ended_and_slow_ones_are_not() {
    let limits = Limits { body_grace: SHORT, body_rate: 200, ..Limits::default() };
    let world = World::with(vec![host("a", &[1])], limits, None).await;
    let server = world.server(1, |request| async {
        let body = http_body_util::BodyExt::collect(request.into_body()).await;
        Response::new(full(body.map_or(0, |body| body.to_bytes().len()).to_string()))
    });
    let _server = server.await;
    let drip = async |first: usize, pieces: usize, piece: &[u8]| {
        let (mut reads, mut writes) = TcpStream::connect(world.http).await.unwrap().into_split();
        let length = first + pieces * piece.len();
        let head =
            format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        writes.write_all(head.as_bytes()).await.unwrap();
        let write = async {
            writes.write_all(&vec![b'x'; first]).await.unwrap();
            for _ in 0..pieces {
                tokio::time::sleep(SHORT / 10).await;
                // The endpoint may have had enough.
                drop(writes.write_all(piece).await);
            }
        };
        let (reply, ()) = tokio::join!(rest(&mut reads), write);
        reply
    };
    // Nor does it help to have been quick before.
    for first in [0, 100_000] {
        let ended = drip(first, 100, b"x").await;
        assert!(
            ended.starts_with("HTTP/1.1 408 ") && ended.ends_with(Refusal::BodyTimeout.text()),
            "{ended}"
        );
    }
    let slow = drip(0, 40, &[b'x'; 100]).await;
    assert!(slow.starts_with("HTTP/1.1 200 ") && slow.ends_with("4000"), "{slow}");
}

/// A page of somebody else's whose name is led to this address (DNS rebinding) reaches nothing.
#[tokio::test]
async fn dns_rebinding_reaches_nothing() {
    let world = World::new(vec![secure("a.example"), host("plain.example", &[1])]).await;
    world.backend(1).await;
    for name in [
        "evil.example",
        "evil.example:80",
        "127.0.0.1",
        "127.0.0.1:80",
        "localhost",
        "a.example.evil.example",
    ] {
        let (status, said) = world.get(name, "/x").await;
        assert_eq!((status, said.as_str()), (StatusCode::NOT_FOUND, Refusal::UnknownHost.text()), "{name}");
        let misdirected = StatusCode::MISDIRECTED_REQUEST;
        let mut one = http1(world.tls("a.example", &["http/1.1"]).await.unwrap()).await;
        assert_eq!(one.send_request(get(name, "/x")).await.unwrap().status(), misdirected, "{name}");
        let mut two = world.http2("a.example").await;
        let request = Request::get(format!("https://{name}/x")).body(full("")).unwrap();
        assert_eq!(two.send_request(request).await.unwrap().status(), misdirected, "{name}");
    }
    // An address of IPv6 is no name of a host.
    assert_eq!(world.get("[::1]", "/x").await.0, StatusCode::BAD_REQUEST);
    for name in ["evil.example", "127.0.0.1", "localhost"] {
        world.tls(name, &["http/1.1"]).await.unwrap_err();
    }
}

#[tokio::test]
async fn nobody_comes_from_an_address_that_stands_for_a_container() {
    let world = World::with(vec![host("a", &[1])], Limits::default(), Some(NOBODY)).await;
    world.backend(1).await;
    assert_eq!(world.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    assert_eq!(world.refusals(), [Refusal::UnknownCaller]);
}

/// A redirect would tell that there is such a name.
#[tokio::test]
async fn a_container_learns_nothing_of_names_that_do_not_name_it() {
    let redirected = Host { redirect_to_https: true, ..secure("a.example") };
    let world = World::with(vec![redirected], Limits::default(), Some(7)).await;
    world.backend(1).await;
    let (status, said) = world.get("a.example", "/x").await;
    assert_eq!((status, said.as_str()), (StatusCode::NOT_FOUND, Refusal::UnknownHost.text()));
}

#[tokio::test]
async fn rules_are_not_evaded_by_other_fields() {
    let path = RulePath::new("/*").unwrap();
    let rule = AccessRule { methods: vec![], path, callers: vec![Caller::Anyone] };
    let ruled = Host { rules: Some(vec![rule]), ..host("ruled", &[1]) };
    let world = World::new(vec![ruled, host("open", &[1])]).await;
    world.backend(1).await;
    for name in
        ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X_Rewrite_URL"]
    {
        let ask = async |host: &str| {
            let request = Request::get("/head").header("host", host).header(name, "override");
            text(world.send(request.body(full("")).unwrap()).await).await
        };
        assert!(!ask("ruled").await.contains("override"), "{name}");
        assert!(ask("open").await.contains("override"), "{name}");
    }
}

/// It answers bit by bit, and never takes what the client sends.
#[tokio::test]
async fn backends_that_take_nothing_are_given_up() {
    let limits = Limits { progress_timeout: SHORT, ..Limits::default() };
    let mut world = World::with(vec![host("a", &[1])], limits, None).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.addresses.set(1, listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    });
    let (mut reads, mut writes) = TcpStream::connect(world.http).await.unwrap().into_split();
    writes.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n").await.unwrap();
    let write = tokio::spawn(async move { while writes.write_all(&[0; 65_536]).await.is_ok() {} });
    let (_, access) = within(async { tokio::join!(rest(&mut reads), world.access()) }).await;
    assert!(!access.complete, "{access:?}");
    server.abort();
    write.abort();
}

/// A request counts until the last byte of its response is written, for until then it takes memory.
#[tokio::test]
async fn http2_requests_count_until_they_are_written() {
    let limits = Limits { requests_per_client: 2, ..Limits::default() };
    let mut world = World::with(vec![secure("a")], limits, None).await;
    let server = world.server(1, |request| async move {
        let long = request.uri().path() == "/long";
        Response::new(full(vec![0; if long { 1 << 20 } else { 1024 }]))
    });
    let _server = server.await;
    let stream = world.tls("a", &["h2"]).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    builder.initial_stream_window_size(1);
    let (mut two, connection) = builder.handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |path: &str| {
        let request = Request::get(format!("https://a{path}")).body(full("")).unwrap();
        within(two.send_request(request)).await.unwrap()
    };
    let (short, long) = (ask("/short").await, ask("/long").await);
    assert_eq!((short.status(), long.status()), (StatusCode::OK, StatusCode::OK));
    // The backend is done with the first, but its client has not taken it.
    let access = world.access().await;
    assert_eq!((access.sent, access.complete), (1024, true));
    assert_eq!(ask("/short").await.status(), StatusCode::TOO_MANY_REQUESTS);
    tokio::time::sleep(SHORT).await;
    drop(long);
    while world.access().await.status != Some(429) {}
    let long = world.access().await;
    assert!(!long.complete && long.sent <= 80 * 1024, "{long:?}");
    assert_eq!(text(short).await.len(), 1024);
    within(async { while ask("/short").await.status() != StatusCode::OK {} }).await;
}

#[tokio::test]
async fn access_rules() {
    let rule = |methods: &[Method], path: &str, callers: &[Caller]| AccessRule {
        methods: methods.to_vec(),
        path: RulePath::new(path).unwrap(),
        callers: callers.to_vec(),
    };
    let rules = vec![
        rule(&[Method::GET], "/user/*", &[Caller::Network([127, 0, 0, 0].into(), 8)]),
        rule(&[], "/admin/*", &[Caller::Container(7)]),
        rule(&[], "/other/*", &[Caller::Container(8), Caller::Network([10, 0, 0, 0].into(), 8)]),
    ];
    let ruled = Host { rules: Some(rules), ..host("a", &[1]) };
    let none = Host { rules: Some(vec![]), ..host("closed", &[1]) };
    let world =
        World::with(vec![ruled.clone(), none.clone(), host("open", &[1])], Limits::default(), Some(7)).await;
    world.backend(1).await;
    for (host, method, path, status, seen) in [
        ("a", "GET", "/user/x", "200", "/user/x"),
        ("a", "POST", "/user/x", "403", ""),
        ("a", "GET", "/user", "403", ""),
        ("a", "GET", "/other/x", "403", ""),
        ("a", "GET", "/admin/x", "200", "/admin/x"),
        ("a", "GET", "/user/../other/x", "403", ""),
        ("a", "GET", "/other/../user/x", "200", "/user/x"),
        ("a", "GET", "/user/%2e%2e/other/x", "403", ""),
        ("a", "GET", "//other/x", "403", ""),
        ("a", "GET", "/%6fther/x", "403", ""),
        ("a", "GET", "/%75ser//x", "200", "/user/x"),
        ("a", "GET", "/user/..%2fother/x", "400", ""),
        ("a", "GET", "/user/..%5cother/x", "400", ""),
        ("a", "GET", "/user/x%00", "400", ""),
        ("a", "GET", "/user/..;/other/x", "400", ""),
        ("a", "GET", "/user/%252e%252e/other", "400", ""),
        ("a", "GET", "http://a/user/x", "200", "/user/x"),
        ("a", "OPTIONS", "*", "400", ""),
        // They name nobody.
        ("closed", "GET", "/", "404", ""),
        ("open", "GET", "/x", "404", ""),
    ] {
        let reply =
            world.raw(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {reply}");
        if status == "200" {
            assert!(reply.ends_with(&format!("\r\n1 {seen}")), "{method} {path}: {reply}");
        }
    }
    let outside = World::new(vec![ruled, none, host("open", &[1])]).await;
    outside.backend(1).await;
    assert_eq!(outside.get("a", "/admin/x").await.0, StatusCode::FORBIDDEN);
    assert_eq!(outside.get("closed", "/").await.0, StatusCode::FORBIDDEN);
    assert_eq!(outside.get("open", "/a%2fb;c/../x").await.1, "1 /a%2fb;c/../x");
}

#[tokio::test]
async fn http_01() {
    let redirected = Host { redirect_to_https: true, ..secure("a.example") };
    let world = World::new(vec![redirected]).await;
    let path = "/.well-known/acme-challenge/token";
    assert_eq!(world.get("a.example", path).await.0, StatusCode::PERMANENT_REDIRECT);
    world.challenges.set_http("a.example", "token", "token.print");
    world.challenges.set_http("new.example", "token", "other.print");
    assert_eq!(world.get("A.example:80", path).await, (StatusCode::OK, "token.print".to_owned()));
    // Before the host is served at all.
    assert_eq!(world.get("new.example", path).await, (StatusCode::OK, "other.print".to_owned()));
    assert_eq!(world.get("new.example", "/").await.0, StatusCode::NOT_FOUND);
    world.challenges.remove_http("a.example", "token");
    assert_eq!(world.get("a.example", path).await.0, StatusCode::PERMANENT_REDIRECT);
}

#[tokio::test]
async fn tls_alpn_01() {
    let mut world = World::new(vec![secure("a.example")]).await;
    world.backend(1).await;
    let (key, answer) = certificate("a.example");
    let (new_key, new_answer) = certificate("new.example");
    world.challenges.set_tls("a.example", key);
    world.challenges.set_tls("new.example", new_key);
    let usual = world.roots[0].clone();
    world.roots.extend([answer.clone(), new_answer.clone()]);
    for (name, protocols, expected) in [
        ("a.example", &["acme-tls/1"] as &[_], &answer),
        ("new.example", &["acme-tls/1"], &new_answer),
        ("a.example", &["acme-tls/1", "http/1.1"], &usual),
        ("a.example", &["http/1.1"], &usual),
    ] {
        let mut stream = world.tls(name, protocols).await.unwrap();
        assert_eq!(&stream.get_ref().1.peer_certificates().unwrap()[0], expected, "{name} {protocols:?}");
        if expected != &usual {
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"acme-tls/1".as_slice()));
            // Nothing but the end comes, whatever is said.
            drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await);
            assert_eq!(rest(&mut stream).await, "");
        }
    }
    assert!(world.tls("new.example", &["http/1.1"]).await.is_err());
    world.challenges.remove_tls("a.example");
    assert!(world.tls("a.example", &["acme-tls/1"]).await.is_err());
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_backend() {
    let mut world = World::new(vec![host("a", &[1])]).await;
    let begun = Arc::new(Notify::new());
    let notify = Arc::clone(&begun);
    let _server = world
        .server(1, move |_| {
            notify.notify_one();
            std::future::pending()
        })
        .await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    within(begun.notified()).await;
    drop(stream);
    let access = world.access().await;
    assert_eq!((access.status, access.complete, access.path.as_str()), (None, false, "/x"));
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET /.. HTTP/1.1\r\nHost: c\r\n\r\n").await.unwrap();
    head(&mut stream).await;
    let mut text = [0; 4];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"No s");
}
