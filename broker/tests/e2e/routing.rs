use crate::world::*;
use futures_util::AsyncWriteExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wherry_protocol::io::{recv, send};
use wherry_protocol::message::*;
use wherry_protocol::*;

async fn cluster() -> (Broker, User, Board) {
    let broker = Broker::start().await;
    let (user, board) = (broker.user(10).await, broker.board(100).await);
    user.push("web", b"layer").await;
    user.run("web").await;
    (broker, user, board)
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_reaches_the_board_with_the_name_of_who_asked() {
    let (_broker, user, _board) = cluster().await;
    let spec = ExecSpec { command: vec!["id".into()], ..ExecSpec::default() };
    let mut stream = user.open(&Request::Exec { container: by_name("web"), spec }).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    let frame = soon(recv::<Frame>(&mut stream, 65536)).await.unwrap().unwrap();
    let said = format!("{} asked", user.account).into_bytes();
    assert_eq!(frame, Frame::Data { channel: Channel::Stdout, bytes: said });
    let frame = soon(recv::<Frame>(&mut stream, 65536)).await.unwrap().unwrap();
    assert_eq!(frame, Frame::Exit(ExitStatus::Code(0)));
    assert_eq!(soon(recv::<Frame>(&mut stream, 65536)).await.unwrap(), None);
    let signal = Request::Signal { container: by_name("web"), signal: 1 };
    assert_eq!(user.ask(signal).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_carries_bytes_both_ways_and_half_closes() {
    let (_broker, user, _board) = cluster().await;
    let mut stream =
        user.open(&Request::Tunnel { container: by_name("web"), port: 80, transport: Transport::Tcp }).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let (mut reader, mut writer) = futures_util::AsyncReadExt::split(stream);
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        futures_util::AsyncWriteExt::write_all(&mut writer, &copy).await.unwrap();
        writer.close().await.unwrap();
    });
    let mut received = Vec::new();
    soon(futures_util::AsyncReadExt::read_to_end(&mut reader, &mut received)).await.unwrap();
    soon(writing).await.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_stops_stops_the_writer() {
    let (_broker, user, _board) = cluster().await;
    let mut stream =
        user.open(&Request::Tunnel { container: by_name("web"), port: 80, transport: Transport::Tcp }).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    let chunk = vec![1; 64 * 1024];
    let mut taken = 0_usize;
    // The board echoes, we do not read: soon nothing more is taken, however long we write.
    while let Ok(written) = tokio::time::timeout(
        Duration::from_millis(500),
        futures_util::AsyncWriteExt::write(&mut stream, &chunk),
    )
    .await
    {
        taken += written.unwrap();
        assert!(taken < 64 * 1024 * 1024, "nothing holds the writer back");
    }
    assert_eq!(user.ask(Request::Ping).await, Reply::Done, "other streams go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_is_noticed_while_nobody_reads() {
    let (_broker, user, _board) = cluster().await;
    let deaf = Request::Tunnel { container: by_name("web"), port: DEAF, transport: Transport::Tcp };
    let mut stream = user.open(&deaf).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    let chunk = vec![1; 64 * 1024];
    let mut write = async || {
        let writing = futures_util::AsyncWriteExt::write_all(&mut stream, &chunk);
        tokio::time::timeout(Duration::from_millis(500), writing).await
    };
    while write().await.is_ok() {}
    assert_eq!(HANG_UPS.load(Ordering::Relaxed), 0);
    drop(stream);
    soon(async {
        while HANG_UPS.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn visitor(broker: &Broker, port: u16) -> tokio::net::TcpStream {
    soon(async {
        loop {
            match tokio::net::TcpStream::connect((broker.ip, port)).await {
                Ok(tcp) => break tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_leave_room_for_those_who_look_after_the_container() {
    let (broker, user, _board) = cluster().await;
    let publish = run_with("pub", |run| {
        run.spec.publish = vec![PublishedPort::tcp(9084, 80), PublishedPort::tcp(9085, 80)];
    });
    user.container(publish).await;
    user.container(Request::Wait { container: by_name("pub"), until: WaitUntil::Started }).await;
    let mut visitors = Vec::new();
    for number in 0..500_u16 {
        let mut tcp = visitor(&broker, 9084 + number % 2).await;
        tcp.write_all(b"x").await.ok();
        visitors.push(tcp);
    }
    let mut served = 0;
    for tcp in &mut visitors {
        served += usize::from(matches!(soon(tcp.read(&mut [0])).await, Ok(1)));
    }
    assert!((200..=256).contains(&served), "{served} visitors were served");
    let spec = ExecSpec { command: vec!["id".into()], ..ExecSpec::default() };
    let mut stream = user.open(&Request::Exec { container: by_name("web"), spec }).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_can_tell_a_broken_connection_from_an_ended_one() {
    let (broker, user, board) = cluster().await;
    let publish = run_with("pub", |run| run.spec.publish = vec![PublishedPort::tcp(9086, 80)]);
    user.container(publish).await;
    user.container(Request::Wait { container: by_name("pub"), until: WaitUntil::Started }).await;
    let mut tcp = visitor(&broker, 9086).await;
    tcp.write_all(b"hello").await.unwrap();
    soon(tcp.read_exact(&mut [0; 5])).await.unwrap();
    drop(board.leave().await);
    let broken = soon(tcp.read(&mut [0])).await.unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_leads_to_the_container() {
    let (broker, user, _board) = cluster().await;
    let publish = run_with("pub", |run| {
        run.spec.publish = vec![PublishedPort::tcp(9081, 80)];
    });
    user.container(publish).await;
    user.container(Request::Wait { container: by_name("pub"), until: WaitUntil::Started }).await;
    let mut tcp = soon(async {
        loop {
            match tokio::net::TcpStream::connect((broker.ip, 9081)).await {
                Ok(tcp) => break tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    soon(tcp.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!(echoed, b"hello");
    assert_eq!(user.ask(Request::Remove { container: by_name("pub"), force: true }).await, Reply::Done);
    soon(async {
        while tokio::net::TcpStream::connect((broker.ip, 9081)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn published_ports_say_who_comes_and_ask_whether_they_may() {
    let (broker, user, _board) = cluster().await;
    let lan = || vec!["203.0.113.0/24".parse().unwrap()];
    let publish = run_with("pub", |run| {
        run.spec.publish = vec![
            PublishedPort { proxy: true, ..PublishedPort::tcp(9082, 80) },
            PublishedPort { allow: lan(), ..PublishedPort::tcp(9083, 80) },
            PublishedPort { transport: Transport::Udp, ..PublishedPort::tcp(9082, 53) },
            PublishedPort { transport: Transport::Udp, allow: lan(), ..PublishedPort::tcp(9083, 53) },
        ];
    });
    user.container(publish).await;
    user.container(Request::Wait { container: by_name("pub"), until: WaitUntil::Started }).await;
    let mut tcp = soon(async {
        loop {
            match tokio::net::TcpStream::connect((broker.ip, 9082)).await {
                Ok(tcp) => break tcp,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let port = tcp.local_addr().unwrap().port();
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    soon(tcp.read_to_end(&mut echoed)).await.unwrap();
    let (header, rest) = echoed.split_at(28);
    assert_eq!((&header[12..14], rest), (&[0x21, 0x11][..], &b"hello"[..]));
    assert_eq!(header[24..26], port.to_be_bytes(), "the visitor's own port");
    let mut closed = tokio::net::TcpStream::connect((broker.ip, 9083)).await.unwrap();
    closed.write_all(b"hello").await.ok();
    assert!(!matches!(soon(closed.read(&mut [0; 8])).await, Ok(1..)), "not from here");
    let socket = tokio::net::UdpSocket::bind((broker.ip, 0)).await.unwrap();
    let mut answer = [0; 16];
    for text in [&b"one"[..], b"", b"three"] {
        socket.send_to(text, (broker.ip, 9082)).await.unwrap();
        let length = soon(socket.recv(&mut answer)).await.unwrap();
        assert_eq!(&answer[..length], text);
    }
    socket.send_to(b"refused", (broker.ip, 9083)).await.unwrap();
    socket.send_to(b"last", (broker.ip, 9082)).await.unwrap();
    let length = soon(socket.recv(&mut answer)).await.unwrap();
    assert_eq!(&answer[..length], b"last", "nothing came from the other port");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_that_leaves_ends_its_streams_and_keeps_its_containers() {
    let (broker, user, board) = cluster().await;
    let mut stream =
        user.open(&Request::Tunnel { container: by_name("web"), port: 80, transport: Transport::Tcp }).await;
    assert_eq!(soon(reply(&mut stream)).await, Reply::Done);
    let (key, facts, containers) = board.leave().await;
    let mut byte = [0];
    let ended = soon(futures_util::AsyncReadExt::read(&mut stream, &mut byte)).await;
    assert!(!matches!(ended, Ok(1)), "{ended:?}");
    let away = soon(async {
        loop {
            let info = user.container(Request::Inspect(by_name("web"))).await;
            if !info.node_connected {
                break info;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(matches!(away.state, ContainerState::Running { .. }), "the last state stays");
    let logs = Request::Logs { container: by_name("web"), query: LogQuery::default() };
    assert_eq!(user.refused(logs).await.code, ErrorCode::NodeUnreachable);
    let _board = Board::connect(&broker, key, facts, containers).await;
    let back = user.container(Request::Inspect(by_name("web"))).await;
    assert!(back.node_connected);
    assert_eq!(back.generation, Generation(1), "it was never restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_stream_ends_the_session() {
    let (_broker, user, board) = cluster().await;
    let mut control = board.mux.open().await.unwrap();
    let greeting = NodeHello { facts: facts(1), load: load(), inventory: Vec::new() };
    send(&mut control, &NodeCall::Control(Box::new(greeting))).await.unwrap();
    soon(async {
        while user.container(Request::Inspect(by_name("web"))).await.node_connected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
