//! The DNS server on sockets of its own: what it answers itself, what it passes on, and what it takes from nobody.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
use domain::base::iana::{Opcode, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{A, Aaaa, Ptr};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;
use wherry_node::dns::{Directory, DnsLimits, Upstream, serve_on};
use wherry_node::net::LocalContainer;
use wherry_protocol::message::{Called, Connection, Egress, NetworkDesired, Transport};
use wherry_protocol::{ContainerId, Overlay};

/// The one container is this test itself.
const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// 10.2.0.3, if nobody has chosen anything.
const OVERLAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 3);
const LIMITS: DnsLimits =
    DnsLimits { per_asker: 4, all: 6, idle: Duration::from_millis(300), question_bytes: 4096 };

fn directory(containers: u8) -> Directory {
    let me =
        LocalContainer { id: ContainerId(1), address: ME, egress: vec![Egress::Internet], published: vec![] };
    let ids = || (2..2 + containers).map(|id| (ContainerId(id.into()), Ipv4Addr::new(10, 2, 0, id)));
    let network = NetworkDesired {
        connections: ids()
            .map(|(to, to_address)| Connection {
                from: ContainerId(1),
                from_address: ME,
                to,
                to_address,
                port: 80,
                transport: Transport::Tcp,
            })
            .collect(),
        names: ids()
            .map(|(container, _)| Called {
                container,
                name: format!("web-{}", container.0).parse().unwrap(),
                account: "ada".parse().unwrap(),
                service: Some("web".parse().unwrap()),
            })
            .collect(),
        ..NetworkDesired::default()
    };
    Directory::of(Overlay::default(), &network, &[me])
}

struct Server {
    at: SocketAddr,
    _directory: watch::Sender<Arc<Directory>>,
    _upstream: watch::Sender<Upstream>,
}

async fn server(containers: u8, servers: Vec<SocketAddr>) -> Server {
    // A port that is free for both.
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind((ME, 0)).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let at = tcp.local_addr().unwrap();
    let (sender, directory) = watch::channel(Arc::new(directory(containers)));
    let (upstream, asked) = watch::channel(Upstream::at(servers));
    tokio::spawn(serve_on(udp, tcp, directory, asked, LIMITS));
    Server { at, _directory: sender, _upstream: upstream }
}

fn question(name: &str, kind: Rtype, room: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x5157);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name.parse::<Name<Vec<u8>>>().unwrap(), kind)).unwrap();
    let mut builder = builder.additional();
    if let Some(room) = room {
        let opt = builder.opt(|opt| {
            opt.set_udp_payload_size(room);
            opt.set_dnssec_ok(true);
            Ok(())
        });
        opt.unwrap();
    }
    builder.finish()
}

async fn over_udp(server: &Server, question: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((ME, 0)).await.unwrap();
    socket.connect(server.at).await.unwrap();
    socket.send(question).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut answer)).await.ok()?.ok()?;
    answer.truncate(length);
    Some(answer)
}

async fn over_tcp(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_u16(question.len() as u16).await?;
    stream.write_all(question).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn addresses(answer: &[u8]) -> Vec<Ipv4Addr> {
    let message = Message::from_octets(answer).unwrap();
    let records = message.answer().unwrap().limit_to::<A>();
    records.map(|record| record.unwrap().data().addr()).collect()
}

/// Answers each question with itself, made a response, and `tail` behind it; tells what came.
async fn echo(tail: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let socket = UdpSocket::bind((ME, 0)).await.unwrap();
    let tcp = TcpListener::bind(socket.local_addr().unwrap()).await.unwrap();
    let at = socket.local_addr().unwrap();
    let (heard, hearing) = tokio::sync::mpsc::unbounded_channel();
    let respond = move |question: &[u8]| {
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        answer.extend(tail);
        answer
    };
    let over_tcp = heard.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            heard.send(buffer[..length].to_vec()).unwrap();
            socket.send_to(&respond(&buffer[..length]), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut question).await.unwrap();
            over_tcp.send(question.clone()).unwrap();
            let answer = respond(&question);
            stream
                .write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat())
                .await
                .unwrap();
        }
    });
    (at, hearing)
}

#[tokio::test]
async fn the_cluster_s_names() {
    let server = server(3, vec![]).await;
    let ask = async |name: &str, kind| over_udp(&server, &question(name, kind, None)).await.unwrap();
    let code = |answer: &[u8]| Message::from_octets(answer.to_vec()).unwrap().header().rcode();
    let one = ask("WEB-2.Ada.Wherry", Rtype::A).await;
    assert_eq!(addresses(&one), [Ipv4Addr::new(10, 2, 0, 2)]);
    assert!(Message::from_octets(one).unwrap().header().aa());
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let all = addresses(&ask("web", Rtype::A).await);
        assert_eq!(all.len(), 3);
        firsts.insert(all[0]);
    }
    assert_eq!(firsts.len(), 3, "each of them comes first at times");
    let six = ask("web-3", Rtype::AAAA).await;
    let message = Message::from_octets(six).unwrap();
    let mut records = message.answer().unwrap().limit_to::<Aaaa>();
    assert_eq!(records.next().unwrap().unwrap().data().addr(), OVERLAY6);
    assert!(records.next().is_none());
    let nothing = ask("web", Rtype::TXT).await;
    assert_eq!((code(&nothing), addresses(&nothing).len()), (Rcode::NOERROR, 0));
    assert_eq!(code(&ask("db.ada.wherry", Rtype::A).await), Rcode::NXDOMAIN);
    let back = ask("3.0.2.10.in-addr.arpa", Rtype::PTR).await;
    let message = Message::from_octets(back).unwrap();
    let name = message.answer().unwrap().limit_to::<Ptr<_>>().next().unwrap().unwrap();
    assert_eq!(name.data().ptrdname().to_string(), "web-3.ada.wherry");
    // Nobody to ask about the rest.
    assert_eq!(code(&ask("example.org", Rtype::A).await), Rcode::SERVFAIL);
}

#[tokio::test]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let server = server(200, vec![]).await;
    for (room, most) in [(None, 512), (Some(1232), 1232), (Some(65_000), 1232)] {
        let cut = over_udp(&server, &question("web", Rtype::A, room)).await.unwrap();
        let message = Message::from_octets(cut.clone()).unwrap();
        assert!(message.header().tc() && cut.len() <= most, "{} bytes for {room:?}", cut.len());
        assert_eq!(message.opt().is_some(), room.is_some());
    }
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    for _ in 0..2 {
        let whole = over_tcp(&mut stream, &question("web", Rtype::A, None)).await.unwrap();
        assert_eq!(addresses(&whole).len(), 200);
    }
}

#[tokio::test]
async fn what_is_not_the_cluster_s_passes_untouched() {
    let (silent, _keep) = {
        let socket = UdpSocket::bind((ME, 0)).await.unwrap();
        (socket.local_addr().unwrap(), socket)
    };
    let (at, mut heard) = echo(b"signatures and all\xff\x00").await;
    let server = server(0, vec![silent, at]).await;
    let asked = question("example.org", Rtype::DNSKEY, Some(4096));
    let answer = over_udp(&server, &asked).await.unwrap();
    let went = heard.recv().await.unwrap();
    assert_eq!(went[2..], asked[2..], "but for its number");
    assert_ne!(went[..2], asked[..2], "which nobody can guess");
    assert_eq!(answer[..2], asked[..2]);
    assert_eq!(answer[3..], [&asked[3..], b"signatures and all\xff\x00"].concat());
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    assert_eq!(over_tcp(&mut stream, &asked).await.unwrap()[3..], answer[3..]);
}

#[tokio::test]
async fn nonsense_is_answered_in_order_or_not_at_all() {
    let server = server(1, vec![]).await;
    let code = |answer: Vec<u8>| Message::from_octets(answer).unwrap().header().rcode();
    let plain = question("web", Rtype::A, None);
    let mut update = plain.clone();
    Message::from_octets(&mut update[..]).unwrap().header_mut().set_opcode(Opcode::UPDATE);
    assert_eq!(code(over_udp(&server, &update).await.unwrap()), Rcode::NOTIMP);
    let mut chaos = plain.clone();
    let end = chaos.len();
    chaos[end - 1] = 3;
    assert_eq!(code(over_udp(&server, &chaos).await.unwrap()), Rcode::REFUSED);
    let mut two = plain.clone();
    two[5] = 2;
    assert_eq!(code(over_udp(&server, &two).await.unwrap()), Rcode::FORMERR);
    let looping = [&plain[..12], b"\xc0\x0c\x00\x01\x00\x01"].concat();
    assert_eq!(code(over_udp(&server, &looping).await.unwrap()), Rcode::FORMERR);
    // Answers, and what is too short for anything, are not answered: the next real question is.
    let socket = UdpSocket::bind((ME, 0)).await.unwrap();
    socket.connect(server.at).await.unwrap();
    let mut response = plain.clone();
    response[2] |= 0x80;
    for ignored in [&response[..], b"", b"x", &[0xff; 11]] {
        socket.send(ignored).await.unwrap();
    }
    socket.send(&plain).await.unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await.unwrap();
    assert_eq!(addresses(&answer[..length]).len(), 1);
}

#[tokio::test]
async fn nobody_can_keep_all_places() {
    let server = server(1, vec![]).await;
    let mut held = Vec::new();
    for _ in 0..LIMITS.per_asker {
        held.push(TcpStream::connect(server.at).await.unwrap());
    }
    // One that asks nothing loses its place after a while, and one too many gets none until then.
    let asked = question("web", Rtype::A, None);
    let mut refused = 0;
    loop {
        let mut stream = TcpStream::connect(server.at).await.unwrap();
        match over_tcp(&mut stream, &asked).await {
            Ok(answer) => break assert_eq!(addresses(&answer).len(), 1),
            Err(_) => refused += 1,
        }
        assert!(over_udp(&server, &asked).await.is_some(), "UDP goes on meanwhile");
    }
    assert!(refused > 0);
    assert_eq!(held[0].read(&mut [0; 1]).await.unwrap(), 0, "closed");
}
