//! Local ports into containers, and back again after the session broke.
use crate::world::World;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A `wherry` that goes on until it is told to end, and the first line that it said.
fn started(world: &World, words: &[&str]) -> (Child, String) {
    let mut child = world.spawn(words, Stdio::null());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn end(mut child: Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn say(mut socket: TcpStream, text: &str) -> String {
    socket.write_all(text.as_bytes()).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn exchange(address: &str, text: &str) -> String {
    say(TcpStream::connect(address).unwrap(), text)
}

#[test]
fn bytes_travel_both_ways_also_after_a_broken_session() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    let (child, line) = started(&world, &["tunnel", "0", "web:80"]);
    let address = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap().to_owned();
    assert!(address.starts_with("127.0.0.1:"), "{line}");
    assert_eq!(line, format!("listening on {address}, leading to web port 80; ctrl-C ends it\n"));
    assert_eq!(exchange(&address, "hello"), "80 HELLO");
    world.broker.cut();
    assert_eq!(exchange(&address, "again"), "80 AGAIN");
    let several: Vec<_> = (0..8)
        .map(|number| {
            let address = address.clone();
            std::thread::spawn(move || exchange(&address, &format!("n{number}")))
        })
        .collect();
    for (number, thread) in several.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), format!("80 N{number}"));
    }
    // Who comes while the broker restarts is kept waiting, not sent away.
    world.broker.state().faults.down_until = Some(Instant::now() + Duration::from_secs(2));
    world.broker.cut();
    assert_eq!(exchange(&address, "patience"), "80 PATIENCE");
    end(child);
}

#[test]
fn datagrams_travel_both_ways_each_sender_its_own() {
    let world = World::joined();
    world.broker.state().add("dns", &["sleep"]);
    let (child, line) = started(&world, &["tunnel", "0", "dns:53/udp"]);
    let address = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(line, format!("listening on {address}, leading to dns port 53/udp; ctrl-C ends it\n"));
    let senders: Vec<UdpSocket> = (0..3)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.connect(&address).unwrap();
            socket
        })
        .collect();
    let ask = |socket: &UdpSocket, text: &[u8]| {
        socket.send(text).unwrap();
        let mut answer = vec![0; 70_000];
        let length = socket.recv(&mut answer).unwrap();
        String::from_utf8(answer[..length].to_vec()).unwrap()
    };
    for (number, socket) in senders.iter().enumerate() {
        assert_eq!(ask(socket, format!("a{number}").as_bytes()), format!("53 A{number}"));
        assert_eq!(ask(socket, b""), "53 ", "empty ones count too");
        assert_eq!(ask(socket, &[b'x'; 9000]).len(), 9003);
    }
    world.broker.cut();
    // What was on the way is lost; a new sender finds the way again.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.connect(&address).unwrap();
    assert_eq!(ask(&socket, b"new"), "53 NEW");
    end(child);
}

#[test]
fn a_tunnel_that_leads_nowhere_is_refused_at_once() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    world.line("tunnel 0 nothing:80").fails(1, "no container is called 'nothing'");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let udp = UdpSocket::bind(taken.local_addr().unwrap()).unwrap();
    let listen = format!("cannot listen on 127.0.0.1:{port}");
    world.run(&["tunnel", &port, "web:80"]).fails(1, &listen);
    world.run(&["tunnel", &port, "web:80/udp"]).fails(1, &listen);
    world.run(&["proxy", &port]).fails(1, &listen);
    drop(udp);
}

/// Asks a SOCKS5 proxy (RFC 1928) for a connection; the code of its answer, and the connection.
fn through(proxy: &str, address: &[u8], port: u16) -> (u8, TcpStream) {
    let mut socket = TcpStream::connect(proxy).unwrap();
    socket.write_all(&[5, 1, 0]).unwrap();
    let mut method = [0; 2];
    socket.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    socket.write_all(&[&[5, 1, 0], address, &port.to_be_bytes()].concat()).unwrap();
    let mut reply = [0; 10];
    socket.read_exact(&mut reply).unwrap();
    (reply[1], socket)
}

fn domain(name: &str) -> Vec<u8> {
    [&[3, name.len() as u8], name.as_bytes()].concat()
}

#[test]
fn a_proxy_leads_to_containers_by_any_name_and_nowhere_else() {
    const REFUSED_BY_RULE: u8 = 2;
    let world = World::joined();
    let id = world.broker.state().add("web", &["sleep"]);
    let address = {
        let mut state = world.broker.state();
        let info = state.containers.get_mut(&id).unwrap();
        info.spec.labels.push(("service".into(), "front".into()));
        info.address
    };
    let (child, line) = started(&world, &["proxy", "0"]);
    let proxy = line.strip_prefix("SOCKS5 on ").unwrap().split(':').take(2).collect::<Vec<_>>().join(":");
    let account = world.line("locations --json").json()[0]["label"].as_str().unwrap().to_owned();
    let long = [format!("web.{account}.wherry"), format!("front.{account}.wherry.")];
    let names = ["web", "WEB", "c1", "front", &long[0], &long[1]];
    let by_address = [&[1], address.octets().as_slice()].concat();
    for name in names.map(domain).into_iter().chain([by_address]) {
        let (code, socket) = through(&proxy, &name, 8080);
        assert_eq!(code, 0, "{name:?}");
        assert_eq!(say(socket, "hello"), "8080 HELLO");
    }
    for name in ["example.org", "web.bob.wherry", "nothing", "localhost", "10.9.9.9"].map(domain) {
        assert_eq!(through(&proxy, &name, 80).0, REFUSED_BY_RULE, "{name:?}");
    }
    assert_eq!(through(&proxy, &[1, 127, 0, 0, 1], 80).0, REFUSED_BY_RULE);
    // Nonsense ends its own connection only.
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x04\x01\x00\x50\x0a\x01\x00\x02\x00", b"\x05\x01\x02"]
    {
        let mut socket = TcpStream::connect(&proxy).unwrap();
        socket.write_all(nonsense).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        socket.read_to_end(&mut Vec::new()).ok();
    }
    let mut bind = TcpStream::connect(&proxy).unwrap();
    bind.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut reply = [0; 12];
    bind.read_exact(&mut reply).unwrap();
    assert_eq!(reply[3], 7, "UDP is not supported, and it is said so");
    assert_eq!(say(through(&proxy, &domain("web"), 80).1, "still"), "80 STILL");
    end(child);
}
