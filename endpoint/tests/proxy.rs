//! What goes through the endpoint, both ways, and how it is shared out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use support::{World, certificate, full, get, head, host, http1, rest, stream, text, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use wherry_endpoint::{Backend, Cluster, Encryption, Host, Limits, Refusal};

const PIECES: usize = 1024;
const PIECE: usize = 64 * 1024;

fn secure(name: &str, backends: &[u64]) -> Host {
    Host { certificate: Some(certificate(name).0), ..host(name, backends) }
}

/// 64 MiB that nobody holds in whole.
fn large(host: &str) -> Request<support::Body> {
    let pieces = futures_util::stream::repeat(Bytes::from(vec![b'y'; PIECE])).take(PIECES);
    let body = stream(pieces);
    Request::post(format!("https://{host}/echo")).header("host", host).body(body).unwrap()
}

async fn length(response: Response<hyper::body::Incoming>) -> usize {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(frame) = within(body.frame()).await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    length
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let mut world = World::new(vec![secure("a.example", &[1])]).await;
    world.backend(1).await;
    let stream = world.tls("a.example", &["http/1.1"]).await.unwrap();
    let mut one = http1(stream).await;
    assert_eq!(length(one.send_request(large("a.example")).await.unwrap()).await, PIECES * PIECE);
    let access = world.access().await;
    assert_eq!((access.received, access.sent), (67_108_864, 67_108_864));
    assert_eq!((access.status, access.backend, access.complete), (Some(200), Some(1), true));
    assert_eq!((access.encryption, access.http2), (Encryption::Tls13, false));
    let mut two = world.http2("a.example").await;
    assert_eq!(length(two.send_request(large("a.example")).await.unwrap()).await, PIECES * PIECE);
    assert!(world.access().await.http2);
    assert_eq!(length(world.send(get("a.example", "/big")).await).await, PIECES * PIECE);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let world = World::new(vec![host("a", &[1])]).await;
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let _server = world
        .server(1, move |_| {
            let count = Arc::clone(&count);
            let pieces = futures_util::stream::repeat(Bytes::from(vec![0; PIECE])).take(PIECES);
            let pieces = pieces.inspect(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            });
            async { Response::new(stream(pieces)) }
        })
        .await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    head(&mut stream).await;
    // Until two looks see the same: sockets' buffers are full.
    let mut before = usize::MAX;
    while before != made.load(Ordering::SeqCst) {
        before = made.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < PIECES, "all {before} pieces were taken from the backend");
}

#[tokio::test]
async fn heads_on_their_way() {
    let mut inner = host("a.example", &[1]);
    inner.rewrite_host = Some("inner".to_owned());
    let world = World::new(vec![inner, host("b.example", &[1])]).await;
    world.backend(1).await;
    let request = Request::get("/head")
        .header("host", "A.example:8080")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("forwarded", "for=6.6.6.6")
        .body(full(""))
        .unwrap();
    let seen = text(world.send(request).await).await;
    let mut lines: Vec<&str> = seen.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "GET /head",
            "forwarded: for=127.0.0.1;proto=http;host=\"a.example:8080\"",
            "host: inner",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: a.example:8080",
            "x-forwarded-proto: http",
        ]
    );
    let (_, seen) = world.get("b.example", "/head").await;
    assert!(seen.contains("host: b.example\n"), "{seen}");
    let absolute = world
        .raw("GET http://b.example/head?q HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n")
        .await;
    assert!(absolute.contains("GET /head?q\n"), "{absolute}");
    let response = world.send(get("a.example", "/hop")).await;
    assert_eq!(response.headers().get("x-end").unwrap(), "1");
    assert!(!response.headers().contains_key("x-hop") && !response.headers().contains_key("keep-alive"));
}

#[tokio::test]
async fn responses_without_a_body() {
    let world = World::new(vec![secure("a", &[1])]).await;
    world.backend(1).await;
    let pipelined = "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\n\r\n\
                     HEAD /missing HTTP/1.1\r\nHost: b\r\n\r\nGET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let replies = world.raw(pipelined).await.to_ascii_lowercase();
    let parts: Vec<&str> = replies.split("http/1.1 ").skip(1).collect();
    assert_eq!(parts.len(), 5, "{replies}");
    assert!(
        parts[0].starts_with("200")
            && parts[0].contains("content-length: 4\r\n")
            && parts[0].ends_with("\r\n\r\n")
    );
    assert!(parts[1].starts_with("204") && !parts[1].contains("content-length"));
    assert!(parts[2].starts_with("304") && parts[2].contains("etag") && parts[2].ends_with("\r\n\r\n"));
    assert!(parts[3].starts_with("404") && parts[3].ends_with("\r\n\r\n"));
    assert!(parts[4].starts_with("200") && parts[4].ends_with("1 /end"));
    let mut two = world.http2("a").await;
    let request = Request::head("https://a/x").body(full("")).unwrap();
    let response = two.send_request(request).await.unwrap();
    assert_eq!(response.headers().get("content-length").unwrap(), "4");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn trailers_and_100_continue() {
    let world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    let request = "POST /echo HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\nExpect: 100-continue\r\n\
                   Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n").await.unwrap();
    let reply = rest(&mut stream).await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("3\r\nabc\r\n0\r\n"), "{reply}");
    // What is refused by its head is refused before its body is asked for.
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await
        .unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 404"));
    let reply = world.raw("GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 417"), "{reply}");
}

#[tokio::test]
async fn trailers_reach_the_backend() {
    let world = World::new(vec![host("a", &[1])]).await;
    let _server = world
        .server(1, |request| async {
            let body = request.into_body().collect().await.unwrap();
            let sum = body
                .trailers()
                .and_then(|trailers| trailers.get("x-sum"))
                .map(|sum| sum.to_str().unwrap().to_owned());
            Response::new(full(sum.unwrap_or_default()))
        })
        .await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n";
    let reply = world.raw(request).await;
    assert!(reply.ends_with("\r\n\r\n7"), "{reply}");
}

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn websockets_are_spliced() {
    let mut world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    // The first bytes come along with the head, and look like anything but HTTP.
    stream.write_all(format!("{WEBSOCKET}\0\n\n").as_bytes()).await.unwrap();
    let switched = head(&mut stream).await;
    assert!(
        switched.starts_with("HTTP/1.1 101") && switched.contains("sec-websocket-accept: x"),
        "{switched}"
    );
    let mut echo = [0; 3];
    within(stream.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"\0\n\n");
    for _ in 0..100 {
        stream.write_all(&[b'z'; 1000]).await.unwrap();
        within(stream.read_exact(&mut [0; 1000])).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
    let access = world.access().await;
    assert_eq!((access.status, access.received, access.sent), (Some(101), 100_003, 100_003));
}

#[tokio::test]
async fn other_upgrades_do_not_go_through() {
    let world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let request = "GET /head HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n\
                   GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let reply = world.raw(request).await;
    assert!(!reply.contains("upgrade") && !reply.contains("http2-settings"), "{reply}");
    assert!(reply.ends_with("1 /end"), "{reply}");
    // A backend that switches unasked.
    assert_eq!(world.get("a", "/ws").await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_swapped_under_load() {
    let world = Arc::new(World::new(vec![host("a", &[1])]).await);
    world.backend(1).await;
    world.backend(2).await;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut sender = http1(TcpStream::connect(world.http).await.unwrap()).await;
                let mut seen = [0; 3];
                for number in 0..300 {
                    sender.ready().await.unwrap();
                    let request = if number % 2 == 0 {
                        get("a", "/x")
                    } else {
                        Request::post("/x").header("host", "a").body(full("body")).unwrap()
                    };
                    let response = within(sender.send_request(request)).await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    seen[usize::from(text(response).await.as_bytes()[0] - b'0')] += 1;
                }
                seen
            })
        })
        .collect();
    for round in 0..200 {
        world.table(vec![host("a", &[1 + round % 2])]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut seen = [0; 3];
    for client in clients {
        client.await.unwrap().iter().zip(&mut seen).for_each(|(one, all)| *all += one);
    }
    assert_eq!(seen[1] + seen[2], 8 * 300);
    assert!(seen[1] > 0 && seen[2] > 0, "{seen:?}");
}

#[tokio::test]
async fn a_removed_backend_finishes_what_it_has() {
    let world = World::new(vec![host("a", &[1])]).await;
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notify = (Arc::clone(&begun), Arc::clone(&go));
    let _server = world
        .server(1, move |_| {
            let (begun, go) = notify.clone();
            async move {
                begun.notify_one();
                go.notified().await;
                Response::new(full("late"))
            }
        })
        .await;
    world.backend(2).await;
    let slow = world.get("a", "/");
    let swap = async {
        begun.notified().await;
        world.table(vec![host("a", &[2])]);
        assert_eq!(world.get("a", "/x").await.1, "2 /x");
        world.table(vec![]);
        assert_eq!(world.get("a", "/x").await.0, StatusCode::NOT_FOUND);
        go.notify_one();
    };
    let (slow, ()) = within(async { tokio::join!(slow, swap) }).await;
    assert_eq!(slow, (StatusCode::OK, "late".to_owned()));
}

#[tokio::test]
async fn a_backend_that_is_down_is_passed_over() {
    let world = World::new(vec![host("a", &[1, 2])]).await;
    world.backend(2).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.addresses.set(1, gone.local_addr().unwrap());
    drop(gone);
    for _ in 0..20 {
        let request = Request::post("/echo").header("host", "a").body(full("body")).unwrap();
        assert_eq!(text(world.send(request).await).await, "body");
    }
    world.table(vec![host("a", &[1])]);
    let (status, said) = world.get("a", "/").await;
    assert_eq!((status, said.as_str()), (StatusCode::SERVICE_UNAVAILABLE, Refusal::NoBackend.text()));
    let backends = vec![Backend { id: 2, weight: 1, healthy: false }];
    world
        .table(vec![Host::new(wherry_endpoint::HostName::new("a").unwrap(), Arc::new(Cluster { backends }))]);
    assert_eq!(world.get("a", "/").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn connections_to_backends_are_kept() {
    let limits = Limits { backend_idle_timeout: Duration::from_millis(200), ..Limits::default() };
    let world = World::with(vec![host("a", &[1])], limits, None).await;
    world.backend(1).await;
    let ask = async || {
        for path in ["/x", "/204", "/304"] {
            world.get("a", path).await;
        }
        let request = Request::post("/echo").header("host", "a").body(full("body")).unwrap();
        assert_eq!(text(world.send(request).await).await, "body");
    };
    ask().await;
    ask().await;
    assert_eq!(world.addresses.asked(), 1);
    tokio::time::sleep(Duration::from_millis(250)).await;
    ask().await;
    assert_eq!(world.addresses.asked(), 2);
}

/// Servers close idle connections at about the time when the next request comes: who may not ask twice does not take the risk.
#[tokio::test]
async fn what_may_not_be_repeated_gets_no_old_connection() {
    let limits = Limits { unrepeatable_idle_timeout: Duration::from_millis(100), ..Limits::default() };
    assert!(limits.backend_idle_timeout < Duration::from_secs(5));
    let world = World::with(vec![host("a", &[1])], limits, None).await;
    world.backend(1).await;
    world.get("a", "/x").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    world.get("a", "/x").await;
    assert_eq!(world.addresses.asked(), 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let request = Request::post("/echo").header("host", "a").body(full("body")).unwrap();
    assert_eq!(text(world.send(request).await).await, "body");
    assert_eq!(world.addresses.asked(), 2);
    world.get("a", "/x").await;
    assert_eq!(world.addresses.asked(), 2);
}

#[tokio::test]
async fn cookies_of_http2_are_one_field_for_backends() {
    let world = World::new(vec![secure("a", &[1])]).await;
    world.backend(1).await;
    let mut two = world.http2("a").await;
    let request = Request::get("https://a/head")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=3; d=4")
        .body(full(""))
        .unwrap();
    let seen = text(two.send_request(request).await.unwrap()).await;
    assert!(seen.contains("cookie: a=1; b=2; c=3; d=4\n"), "{seen}");
}

#[tokio::test]
async fn bodies_of_unknown_length_arrive_with_every_method() {
    let world = World::new(vec![secure("a", &[1])]).await;
    world.backend(1).await;
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        let chunked = format!(
            "{method} /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\n"
        );
        let reply = world.raw(chunked).await;
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("abc"), "{method}: {reply}");
        let mut two = world.http2("a").await;
        let pieces = futures_util::stream::iter([Bytes::from("abc"), Bytes::from("def")]);
        let request = Request::builder().method(method).uri("https://a/echo").body(stream(pieces)).unwrap();
        assert_eq!(text(within(two.send_request(request)).await.unwrap()).await, "abcdef", "{method}");
    }
}

#[tokio::test]
async fn trailers_say_nothing_of_who_asks() {
    let world = World::new(vec![host("a", &[1])]).await;
    let server = world.server(1, |request| async {
        let body = request.into_body().collect().await.unwrap();
        let names: Vec<&str> = body.trailers().unwrap().keys().map(|name| name.as_str()).collect();
        Response::new(full(names.join(",")))
    });
    let _server = server.await;
    let reply = world
        .raw(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
             Trailer: x-forwarded-for, cookie, x-sum\r\n\r\n\
             3\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: a=1\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    assert!(reply.ends_with("\r\n\r\nx-sum"), "{reply}");
}

#[tokio::test]
async fn a_backend_that_starts_anew() {
    let world = World::new(vec![host("a", &[1])]).await;
    let mut sender = http1(TcpStream::connect(world.http).await.unwrap()).await;
    for method in [Method::GET, Method::POST, Method::GET] {
        let server = world.backend(1).await;
        for _ in 0..2 {
            sender.ready().await.unwrap();
            let request =
                Request::builder().method(&method).uri("/x").header("host", "a").body(full("")).unwrap();
            let response = within(sender.send_request(request)).await.unwrap();
            assert_eq!(text(response).await, "1 /x");
        }
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test]
async fn an_idempotent_request_is_repeated_when_an_idle_connection_dies() {
    let world = World::new(vec![host("a", &[1])]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.addresses.set(1, listener.local_addr().unwrap());
    // Answers the first request of each connection, and closes at the second without an answer.
    let server = tokio::spawn(async move {
        let mut heads = 0;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let mut byte = [0];
            heads += 1;
            if heads < 4 && stream.read(&mut byte).await.unwrap() > 0 {
                drop(stream);
            }
        }
    });
    let mut sender = http1(TcpStream::connect(world.http).await.unwrap()).await;
    let mut ask = async |method: Method| {
        sender.ready().await.unwrap();
        let request = Request::builder().method(method).uri("/").header("host", "a").body(full("")).unwrap();
        within(sender.send_request(request)).await.unwrap().status()
    };
    assert_eq!(ask(Method::GET).await, StatusCode::OK);
    assert_eq!(ask(Method::GET).await, StatusCode::OK);
    // What may have been done is not done again.
    assert_eq!(ask(Method::POST).await, StatusCode::BAD_GATEWAY);
    server.abort();
}

#[tokio::test]
async fn silent_backends() {
    let limits = Limits {
        first_byte_timeout: Duration::from_millis(200),
        progress_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut world = World::with(vec![host("a", &[1])], limits, None).await;
    let server = world
        .server(1, |request| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            let first = futures_util::stream::iter([Bytes::from("first")]);
            Response::new(stream(first.chain(futures_util::stream::pending())))
        })
        .await;
    assert_eq!(world.get("a", "/never").await.0, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(world.access().await.refusal, Some(Refusal::BackendTimeout));
    let broken = world.send(get("a", "/stalls")).await;
    assert!(within(broken.into_body().collect()).await.is_err());
    assert!(!world.access().await.complete);
    server.abort();
}

#[tokio::test]
async fn clients_stay_at_their_backend() {
    let sticky = Host { sticky: true, ..secure("a.example", &[1, 2]) };
    let world = World::new(vec![sticky.clone()]).await;
    world.backend(1).await;
    world.backend(2).await;
    let ask = async |cookie: Option<&str>, path: &str| {
        let mut request = get("a.example", path);
        if let Some(cookie) = cookie {
            request.headers_mut().insert("cookie", cookie.parse().unwrap());
        }
        let response = world.send(request).await;
        let set = response.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        (text(response).await, set)
    };
    let (first, set) = ask(None, "/x").await;
    let set = set.unwrap();
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{set}");
    let cookie = set.split(';').next().unwrap();
    for _ in 0..20 {
        assert_eq!(ask(Some(cookie), "/x").await, (first.clone(), None));
    }
    let (seen, _) = ask(Some(&format!("a=1; {cookie}; b=2")), "/head").await;
    assert!(seen.contains("cookie: a=1; b=2\n") && !seen.contains("wherry"), "{seen}");
    let forged = format!("{}x", cookie);
    let (seen, set) = ask(Some(&forged), "/head").await;
    assert!(set.is_some() && !seen.contains("cookie"), "{seen}");
    let other = if first.starts_with('1') { 2 } else { 1 };
    world.table(vec![Host { sticky: true, ..host("a.example", &[other]) }]);
    let (moved, set) = ask(Some(cookie), "/x").await;
    assert_eq!(moved, format!("{other} /x"));
    assert!(set.unwrap().starts_with(&format!("wherry-backend={other}.")));
    world.table(vec![sticky]);
    let mut two = world.http2("a.example").await;
    let response =
        two.send_request(Request::get("https://a.example/x").body(full("")).unwrap()).await.unwrap();
    assert!(response.headers().get("set-cookie").unwrap().to_str().unwrap().ends_with("; Secure"));
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let mut world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let mut idle = TcpStream::connect(world.http).await.unwrap();
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    head(&mut idle).await;
    let mut busy = TcpStream::connect(world.http).await.unwrap();
    busy.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc").await.unwrap();
    head(&mut busy).await;
    let served = world.stop();
    assert_eq!(rest(&mut idle).await, "1 /x");
    busy.write_all(b"def").await.unwrap();
    assert_eq!(rest(&mut busy).await, "abcdef");
    within(served).await.unwrap().unwrap();
    assert!(TcpStream::connect(world.http).await.is_err());
}

#[tokio::test]
async fn websockets_end_with_the_endpoint() {
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
    let mut world = World::with(vec![host("a", &[1])], limits, None).await;
    world.backend(1).await;
    let stream = TcpStream::connect(world.http).await.unwrap();
    let request = Request::get("/ws")
        .header("host", "a")
        .header("connection", "upgrade")
        .header("upgrade", "websocket");
    let response = http1(stream).await.send_request(request.body(full("")).unwrap()).await.unwrap();
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    within(world.stop()).await.unwrap().unwrap();
    assert_eq!(rest(&mut socket).await, "");
}
