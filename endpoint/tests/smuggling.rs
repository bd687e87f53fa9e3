//! Published ways of hiding a request in another: the backend must never see a second one, and what it sees is framed by us.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod support;

use std::sync::{Arc, Mutex};

use support::{World, certificate, host, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wherry_endpoint::{Host, Refusal};

const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// A backend that takes everything down, and answers once per connection.
async fn recorder(world: &World, id: u64) -> Arc<Mutex<Vec<u8>>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.addresses.set(id, listener.local_addr().unwrap());
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&bytes);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let record = Arc::clone(&record);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let mut answered = false;
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let whole = {
                        let mut record = record.lock().unwrap();
                        record.extend_from_slice(&buffer[..count]);
                        is_whole(&String::from_utf8_lossy(&record))
                    };
                    if whole && !std::mem::replace(&mut answered, true) {
                        let reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(reply).await.unwrap();
                    }
                }
            });
        }
    });
    bytes
}

/// Whether this is a request to its end.
fn is_whole(bytes: &str) -> bool {
    let Some((head, body)) = bytes.split_once("\r\n\r\n") else { return false };
    let length =
        head.split_once("content-length: ").map(|(_, rest)| rest.lines().next().unwrap().parse().unwrap());
    let chunked = !head.contains("chunked") || body.ends_with("0\r\n\r\n");
    chunked && length.is_none_or(|length: usize| body.len() >= length)
}

fn taken(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&std::mem::take(&mut *bytes.lock().unwrap())).into_owned()
}

/// Heads with `§` for the hidden request, each of which must be refused with 400 and close.
const HEADS: &[&str] = &[
    // CL.TE and TE.CL
    "Content-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n26\r\n§\r\n0\r\n\r\n",
    "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    // CL.CL and CLs that are not numbers
    "Content-Length: 0\r\nContent-Length: 38\r\n\r\n§",
    "Content-Length: 38\r\nContent-Length: 38\r\n\r\n§",
    "Content-Length: 0, 38\r\n\r\n§",
    "Content-Length: +0\r\n\r\n§",
    "Content-Length: -0\r\n\r\n§",
    "Content-Length: 0 38\r\n\r\n§",
    "Content-Length: 0x0\r\n\r\n§",
    "Content-Length: 00000000000000000000000000038\r\n\r\n§",
    "Content-Length: 18446744073709551616\r\n\r\n§",
    "Content-Length:\r\n\r\n§",
    "Content-Length : 0\r\n\r\n§",
    "Content-Length\x0b: 0\r\n\r\n§",
    "Content-Length\r\n\r\n§",
    // TE.TE: what one server takes for chunked and another does not
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n§",
    " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "X: X\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "X: X\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "X: X\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "X: X\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "X: X\r\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: identity\r\n\r\n§",
    "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chun\0ked\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n§",
    "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n§",
    "\0Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    "Foo: bar\r\n\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n§",
    // Ends of heads
    "X: 1\n\n§",
    "X: 1\r\n\n§",
    "X: 1\n\r\n§",
    // Two hosts
    "Host: b\r\n\r\n§",
    "host : b\r\n\r\n§",
];

#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let world = World::new(vec![host("a", &[1])]).await;
    let record = recorder(&world, 1).await;
    for head in HEADS {
        let request = format!("POST /first HTTP/1.1\r\nHost: a\r\n{}", head.replace('§', HIDDEN));
        let reply = world.raw(&request).await;
        assert!(reply.starts_with("HTTP/1.1 400 "), "{head:?}: {reply:?}");
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{head:?}: {reply:?}");
        assert_eq!(taken(&record), "", "{head:?}");
    }
    let lines = [
        "POST /first /smuggled HTTP/1.1",
        "POST  /first HTTP/1.1",
        "POST\t/first HTTP/1.1",
        "POST /first HTTP/1.2",
        "POST /first\0 HTTP/1.1",
        "POST /first HTTP/1.1 ",
        "PRI * HTTP/2.0",
        "CONNECT a:80 HTTP/1.1",
        "\u{a0}POST /first HTTP/1.1",
    ];
    for line in &lines {
        let reply = world.raw(format!("{line}\r\nHost: a\r\n\r\n{HIDDEN}")).await;
        assert!(
            reply.starts_with("HTTP/1.1 400 ") && reply.matches("HTTP/1.1").count() == 1,
            "{line:?}: {reply:?}"
        );
        assert_eq!(taken(&record), "", "{line:?}");
    }
    assert!(
        world.refusals().contains(&Refusal::AmbiguousLength)
            && world.refusals().contains(&Refusal::Malformed)
    );
    // TE is unknown to HTTP/1.0.
    let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(world.raw(old).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(taken(&record), "");
}

#[tokio::test]
async fn bad_chunks_break_off() {
    let world = World::new(vec![host("a", &[1])]).await;
    let record = recorder(&world, 1).await;
    for chunks in [
        "3\nabc\r\n0\r\n\r\n§",
        "3\rabc\r\n0\r\n\r\n§",
        "3\r\nabc\n0\r\n\r\n§",
        "3\r\nabcdef\r\n0\r\n\r\n§",
        "3;x\nabc\r\n0\r\n\r\n§",
        "3;\n§",
        "3 \r\nabc\r\n0\r\n\r\n§",
        "0x3\r\nabc\r\n0\r\n\r\n§",
        "+3\r\nabc\r\n0\r\n\r\n§",
        "10000000000000003\r\nabc\r\n0\r\n\r\n§",
        "\r\n§",
        "0\n\r\n§",
        "0\r\nX: 1\n\r\n§",
        "0\r\nX : 1\r\n\r\n§",
        "0\r\n X: 1\r\n\r\n§",
        "0\r\n\n§",
    ] {
        let head = "POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let reply = world.raw(format!("{head}{}", chunks.replace('§', HIDDEN))).await;
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 400 "), "{chunks:?}: {reply:?}");
        assert!(reply.matches("HTTP/1.1").count() <= 1, "{chunks:?}: {reply:?}");
        let seen = taken(&record);
        assert!(!seen.contains("smuggled") && !seen.ends_with("0\r\n\r\n"), "{chunks:?}: {seen:?}");
    }
}

#[tokio::test]
async fn bodies_are_framed_anew() {
    let world = World::new(vec![host("a", &[1])]).await;
    let record = recorder(&world, 1).await;
    let head = "POST /first HTTP/1.1\r\nHost: a\r\nConnection: close, Content-Length, Transfer-Encoding\r\n";
    let chunked = world
        .raw(format!("{head}Transfer-Encoding: CHUNKED\r\n\r\n03;x=\"y\"\r\nabc\r\n00\r\n\r\n{HIDDEN}"))
        .await;
    assert!(chunked.starts_with("HTTP/1.1 200"), "{chunked}");
    let seen = taken(&record);
    assert!(
        seen.starts_with("POST /first HTTP/1.1\r\n") && seen.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        "{seen:?}"
    );
    assert!(
        seen.contains("\r\ntransfer-encoding: chunked\r\n") && !seen.contains("content-length"),
        "{seen:?}"
    );
    // A request in a body is a body.
    let sized = world.raw(format!("{head}Content-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len())).await;
    assert!(sized.starts_with("HTTP/1.1 200"), "{sized}");
    let seen = taken(&record);
    assert!(
        seen.contains(&format!("\r\ncontent-length: {}\r\n", HIDDEN.len())) && seen.ends_with(HIDDEN),
        "{seen:?}"
    );
    assert!(!seen.contains("transfer-encoding"), "{seen:?}");
}

#[tokio::test]
async fn bytes_one_by_one() {
    let world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let mut stream = tokio::net::TcpStream::connect(world.http).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let requests = "\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n\
                    POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ndefGET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for byte in requests.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let replies = support::rest(&mut stream).await;
    assert_eq!(replies.matches("HTTP/1.1 200").count(), 3, "{replies}");
    // In chunks as they came.
    let joined =
        ["\r\n1\r\n", "\r\n2\r\n"].iter().fold(replies.clone(), |text, chunk| text.replace(chunk, ""));
    assert!(joined.contains("abc") && replies.contains("def") && replies.ends_with("1 /x"), "{replies}");
}

#[tokio::test]
async fn good_requests_before_a_bad_one_are_answered() {
    let world = World::new(vec![host("a", &[1])]).await;
    world.backend(1).await;
    let reply = world.raw("GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\nGET /z HTTP/1.1\nHost: a\r\n\r\n").await;
    let places = ["1 /x", "1 /y", "HTTP/1.1 400 ", Refusal::Malformed.text()].map(|part| reply.find(part));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{reply}");
}

/// An HTTP/2 frame (RFC 9113 §4.1) of stream 1 or 0.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = u8::from(kind <= 1);
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A literal field without indexing (RFC 7541 §6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let lengths = [name, value].map(|part| u8::try_from(part.len()).unwrap());
    [&[0, lengths[0]], name.as_bytes(), &[lengths[1]], value.as_bytes()].concat()
}

/// The status of stream 1 when it is in the static table (RFC 7541 A), or 0 when the stream or the connection was broken off.
async fn http2(world: &World, fields: &[(&str, &str)], data: &str) -> u16 {
    let mut stream = world.tls("a", &["h2"]).await.unwrap();
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    let flags = if data.is_empty() { 5 } else { 4 };
    let mut bytes =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, b""), frame(1, flags, &block)].concat();
    if !data.is_empty() {
        bytes.extend(frame(0, 1, data.as_bytes()));
    }
    stream.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        if within(stream.read_exact(&mut head)).await.is_err() {
            return 0;
        }
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        within(stream.read_exact(&mut payload)).await.unwrap();
        match (head[3], payload.first()) {
            (1, Some(first)) => return [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
            (3 | 7, _) => return 0,
            _ => {}
        }
    }
}

#[tokio::test]
async fn http2_brings_nothing_in() {
    let secure = Host { certificate: Some(certificate("a").0), ..host("a", &[1]) };
    let world = World::new(vec![secure]).await;
    let record = recorder(&world, 1).await;
    let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/first")];
    let of = |extra: &[(&'static str, &'static str)]| [&pseudo, extra].concat();
    assert_eq!(http2(&world, &of(&[]), "abc").await, 200);
    let seen = taken(&record);
    assert!(seen.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n") && seen.contains("host: a\r\n"), "{seen:?}");
    let hostile: &[&[(&str, &str)]] = &[
        &[("content-length", "0")],
        &[("content-length", "3")],
        &[("content-length", "9999")],
        &[("content-length", "0"), ("content-length", "38")],
        &[("content-length", "x")],
        &[("transfer-encoding", "chunked")],
        &[("connection", "transfer-encoding")],
        &[("x", "1\r\ntransfer-encoding: chunked")],
        &[("x", "1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a")],
        &[("x", "1\nx: y")],
        &[("x", "1\0")],
        &[("x: y\r\ntransfer-encoding", "chunked")],
        &[("x y", "1")],
        &[("Transfer-Encoding", "chunked")],
        &[("host", "b")],
        &[("host", "a"), ("host", "a")],
    ];
    for extra in hostile {
        let status = http2(&world, &of(extra), HIDDEN).await;
        assert!(matches!(status, 0 | 400), "{extra:?}: {status}");
        let seen = taken(&record);
        assert!(
            !seen.contains("smuggled") && !seen.contains("y:") && !seen.ends_with("0\r\n\r\n"),
            "{extra:?}: {seen:?}"
        );
    }
    for (name, value) in [
        (":method", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nPOST"),
        (":method", "CONNECT"),
        (":path", "/first HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled"),
        (":path", "/first /smuggled"),
        (":path", "*"),
        (":path", ""),
        (":authority", "a\r\nx: y"),
        (":authority", "user@a"),
        (":scheme", "https://a/smuggled?"),
    ] {
        let fields: Vec<_> =
            pseudo.iter().map(|one| if one.0 == name { (name, value) } else { *one }).collect();
        let status = http2(&world, &fields, "").await;
        assert!(matches!(status, 0 | 400), "{name} {value:?}: {status}");
        assert_eq!(taken(&record), "", "{name} {value:?}");
    }
}
