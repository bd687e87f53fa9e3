//! Containers on one board, in namespaces that simulate it: what gets through and what does not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod board;
#[path = "../../net/tests/netns/mod.rs"]
mod netns;

use board::*;
use netns::{BOARD, INTERNET, ROUTER, Space, attempt, isolated, run};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wherry_node::dns::{self, Directory, DnsLimits, Upstream};
use wherry_node::net::{LocalContainer, NetConfig, NetError, Network};
use wherry_protocol::message::{
    Called, Drops, Egress, NetworkDesired, Peer, PublishedOn, PublishedPort, Transport,
};
use wherry_protocol::{ContainerId, NodeIndex, Overlay, Prefix};

#[test]
fn a_connection_opens_one_port_one_way_and_nothing_else() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let (_web, _other, _back) = (b.listen(80), b.listen(81), a.listen(80));
        assert!(!a.reaches(&b, 80), "nothing is open before a connection");

        let connection = allow(&a, &b, Transport::Tcp, 80);
        world.apply(&[connection], &[&a, &b]);
        assert!(a.reaches(&b, 80), "the connection");
        assert!(!a.reaches(&b, 81), "another port");
        assert!(!b.reaches(&a, 80), "the other direction");
        let quiet = b.udp(80);
        a.udp(0).send_to(b"x", (b.container.address, 80)).ok();
        assert_eq!(heard(&quiet), None, "the other protocol");

        world.apply(&[], &[&a, &b]);
        assert!(!a.reaches(&b, 80), "the connection was taken away");
    });
}

#[test]
fn containers_have_the_addresses_that_the_broker_chose() {
    isolated(|| {
        let mut world = World::with(Duration::from_secs(3600), "172.20.0.0/14".parse().unwrap());
        assert!(run("ip addr show wherry0").contains("inet 172.20.4.1/22"));
        let (a, b) = (world.attach(7, "172.20.4.2"), world.attach(8, "172.20.7.254"));
        let _server = b.listen(80);
        world.apply(&[], &[&a, &b]);
        assert!(!a.reaches(&b, 80));
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        assert!(a.reaches(&b, 80) && !b.reaches(&a, 80));
        let routes = a.space.run("ip route");
        assert!(routes.contains("172.20.0.0/14 via 172.20.4.1 dev eth0 proto static mtu 1416"), "{routes}");
        let _internet = world.router.enter(|| TcpListener::bind((INTERNET, 80)).unwrap());
        assert!(a.dial(address(INTERNET), 80).is_ok());
        // What is usually the overlay is somebody's network here.
        let mine =
            |world: &World| world.runtime.block_on(world.network.drops(ContainerId(7))).unwrap().unwrap();
        let before = mine(&world).private_network;
        assert!(a.dial(address("10.1.0.2"), 80).is_err());
        assert!(mine(&world).private_network > before);
        // Another choice, now that no container is left.
        world.runtime.block_on(world.network.detach(ContainerId(7))).unwrap();
        world.runtime.block_on(world.network.detach(ContainerId(8))).unwrap();
        world.runtime.block_on(world.network.start(NodeIndex(1), Overlay::default())).unwrap();
        let addresses = run("ip addr show wherry0");
        assert!(addresses.contains("inet 10.1.0.1/16") && !addresses.contains("172.20."), "{addresses}");
    });
}

#[test]
fn a_board_among_its_containers_addresses_says_so() {
    isolated(|| {
        let world = World::with(Duration::from_secs(3600), "192.168.0.0/16".parse().unwrap());
        let applied = world.runtime.block_on(world.network.apply(&NetworkDesired::default(), &[]));
        assert_eq!(
            applied.unwrap_err().to_string(),
            "the containers' network 192.168.0.0/16 and the board's own network 192.168.50.0/24 overlap: choose another \
             one for the containers, as in overlay = \"10.0.0.0/8\" in the broker's configuration"
        );
    });
}

#[test]
fn udp_goes_there_and_back() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        world.apply(&[allow(&a, &b, Transport::Udp, 53)], &[&a, &b]);
        let (client, server) = (a.udp(0), b.udp(53));
        client.send_to(b"question", (b.container.address, 53)).unwrap();
        let from = heard(&server).expect("the question");
        assert_eq!(from.ip(), a.container.address);
        server.send_to(b"answer", from).unwrap();
        assert!(heard(&client).is_some(), "the answer");
        // Not from there to another port of the asker, though the source port is the open one.
        let closed = a.udp(9999);
        server.send_to(b"x", (a.container.address, 9999)).ok();
        assert_eq!(heard(&closed), None);
    });
}

#[test]
fn taking_a_connection_away_ends_its_flows() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let connections = [allow(&a, &b, Transport::Tcp, 80), allow(&a, &b, Transport::Tcp, 81)];
        let (listener, kept_listener) = (b.listen(80), b.listen(81));
        world.apply(&connections, &[&a, &b]);
        let mut client = a.dial(b.container.address, 80).unwrap();
        let mut server = listener.accept().unwrap().0;
        let mut kept_client = a.dial(b.container.address, 81).unwrap();
        let mut kept_server = kept_listener.accept().unwrap().0;
        assert!(says(&mut client, &mut server, b"hello") && says(&mut server, &mut client, b"hello"));

        world.apply(&connections[1..], &[&a, &b]);
        assert!(!says(&mut client, &mut server, b"still there?"));
        assert!(!says(&mut server, &mut client, b"still there?"));
        assert!(says(&mut kept_client, &mut kept_server, b"still there?"), "the other flow is not touched");
    });
}

#[test]
fn the_board_stops_what_a_container_s_own_rules_no_longer_do() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let web = b.listen(80);
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        let mut client = a.dial(b.container.address, 80).unwrap();
        let mut server = web.accept().unwrap().0;
        world.apply(&[], &[&a, &b]);
        a.break_out();
        b.break_out();
        assert!(!a.reaches(&b, 80), "a new flow");
        assert!(!says(&mut client, &mut server, b"x") && !says(&mut server, &mut client, b"x"), "a live one");
        let _session = TcpListener::bind("0.0.0.0:2020").unwrap();
        assert!(a.dial(address("10.1.0.1"), 2020).is_err(), "the board's address on the bridge");
        assert!(a.dial(address(BOARD), 2020).is_err(), "the board's address on its network");
        let _ssh = world.router.enter(|| TcpListener::bind((ROUTER, 22)).unwrap());
        assert!(a.dial(address(ROUTER), 22).is_err(), "a machine on the board's network");
        assert!(
            TcpStream::connect_timeout(&format!("{ROUTER}:22").parse().unwrap(), SHORT).is_ok(),
            "which is there"
        );
    });
}

#[test]
fn a_container_s_own_rules_do_without_the_board_s() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let (listener, _closed) = (b.listen(80), b.listen(81));
        let connection = allow(&a, &b, Transport::Tcp, 80);
        world.apply(&[connection], &[&a, &b]);
        let mut client = a.dial(b.container.address, 80).unwrap();
        let mut server = listener.accept().unwrap().0;
        run("nft delete table inet wherry");
        assert!(says(&mut client, &mut server, b"x") && !a.reaches(&b, 81) && !b.reaches(&a, 81));
        world.apply(&[], &[&a, &b]);
        run("nft delete table inet wherry");
        assert!(!says(&mut client, &mut server, b"x") && !says(&mut server, &mut client, b"x"));
        // Also when only one of the two has been told yet.
        world.apply(&[connection], &[&a, &b]);
        run("nft delete table inet wherry");
        a.break_out();
        let mut client = a.dial(b.container.address, 80).unwrap();
        let mut server = listener.accept().unwrap().0;
        world.apply(&[], &[&a, &b]);
        run("nft delete table inet wherry");
        a.break_out();
        assert!(!says(&mut client, &mut server, b"x") && !says(&mut server, &mut client, b"x"));
    });
}

#[test]
fn nobody_poses_as_another() {
    isolated(|| {
        let mut world = World::new();
        let (a, b, c) =
            (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"), world.attach(9, "10.1.0.4"));
        world.apply(&[allow(&a, &b, Transport::Udp, 53)], &[&a, &b, &c]);
        let server = b.udp(53);
        a.udp(0).send_to(b"x", (b.container.address, 53)).unwrap();
        assert!(heard(&server).is_some(), "a itself gets through");

        c.break_out();
        c.space.run("ip addr add 10.1.0.2/32 dev eth0");
        let as_a = c.space.enter(|| UdpSocket::bind("10.1.0.2:0").unwrap());
        as_a.send_to(b"x", (b.container.address, 53)).unwrap();
        assert_eq!(heard(&server), None, "a's address from c");
        // With a's MAC address as well.
        c.space.run("ip link set eth0 down");
        c.space.run("ip link set eth0 address 02:57:0a:01:00:02");
        c.space.run("ip link set eth0 up");
        c.space.run("ip route add 10.1.0.1 dev eth0");
        c.space.run("ip route add default via 10.1.0.1");
        as_a.send_to(b"x", (b.container.address, 53)).ok();
        assert_eq!(heard(&server), None, "a's addresses from c");
        assert!(a.udp(0).send_to(b"x", (b.container.address, 53)).is_ok());
        assert!(heard(&server).is_some(), "a is still where it was");
    });
}

#[test]
fn the_internet_is_open_and_sees_the_board_s_address() {
    isolated(|| {
        let mut world = World::new();
        let a = world.attach(7, "10.1.0.2");
        world.apply(&[], &[&a]);
        let server = world.router.enter(|| TcpListener::bind((INTERNET, 80)).unwrap());
        let mut client = a.dial(address(INTERNET), 80).expect("the internet");
        let (mut peer, from) = server.accept().unwrap();
        assert_eq!(from.ip(), address(BOARD), "masqueraded");
        assert!(says(&mut client, &mut peer, b"x") && says(&mut peer, &mut client, b"y"));
        // And nobody out there can open anything inwards, even knowing the address.
        world.router.run(&format!("ip route add 10.1.0.0/16 via {BOARD}"));
        let _inside = a.listen(8080);
        let inwards = SocketAddr::V4(SocketAddrV4::new(a.container.address, 8080));
        assert!(world.router.enter(|| TcpStream::connect_timeout(&inwards, SHORT)).is_err());
    });
}

/// A question for the address of `name`, with recursion desired.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// What `cell` is answered: the code, and the last four bytes.
fn ask(cell: &Cell, name: &str) -> Option<(u8, [u8; 4])> {
    let socket = cell.udp(0);
    socket.send_to(&question(name), ("10.1.0.1", 53)).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    let last = answer[..length].last_chunk().copied().unwrap();
    Some((answer[3] & 15, last))
}

#[test]
fn of_the_board_s_network_only_its_own_dns_is_open() {
    const REFUSED: u8 = 5;
    const NO_SUCH_NAME: u8 = 3;
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let closed = world.attach_with(9, "10.1.0.4", &[Egress::None]);
        let connections = [allow(&a, &b, Transport::Tcp, 80), allow(&closed, &b, Transport::Tcp, 80)];
        world.apply(&connections, &[&a, &b, &closed]);
        let (ada, web) = ("ada".parse().unwrap(), "web".parse().unwrap());
        let names = vec![Called { container: b.container.id, name: web, account: ada, service: None }];
        let wanted = NetworkDesired { connections: connections.to_vec(), names, ..NetworkDesired::default() };
        let locals: Vec<_> = [&a, &b, &closed].iter().map(|cell| cell.container.clone()).collect();
        // The server outside, which says 203.0.113.1 to everything.
        let outside = world.router.enter(|| UdpSocket::bind((ROUTER, 53)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = outside.recv_from(&mut buffer) {
                let mut answer = buffer[..length].to_vec();
                answer[2] |= 0x80;
                answer[7] = 1;
                answer.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xcb\x00\x71\x01");
                outside.send_to(&answer, from).ok();
            }
        });
        let (_directory, directory) =
            watch::channel(Arc::new(Directory::of(Overlay::default(), &wanted, &locals)));
        let (_upstream, upstream) = watch::channel(Upstream::of(&[address(ROUTER)]));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(dns::serve(address("10.1.0.1"), directory, upstream, DnsLimits::BOARD));
        });
        while ask(&a, "web").is_none() {}
        assert_eq!(ask(&a, "web.ada.wherry"), Some((0, [10, 1, 0, 3])));
        assert_eq!(ask(&a, "example.org"), Some((0, [203, 0, 113, 1])));
        assert_eq!(ask(&closed, "web"), Some((0, [10, 1, 0, 3])));
        assert_eq!(ask(&closed, "example.org").unwrap().0, REFUSED, "nothing leaves, not even in questions");
        assert_eq!(ask(&b, "web").unwrap().0, NO_SUCH_NAME, "it may not connect");
        // Nothing else of the board and its network.
        let other = world.router.enter(|| UdpSocket::bind((ROUTER, 54)).unwrap());
        other.set_read_timeout(Some(SHORT)).unwrap();
        a.udp(0).send_to(b"x", (ROUTER, 53)).unwrap_err();
        a.udp(0).send_to(b"x", (ROUTER, 54)).unwrap_err();
        assert_eq!(heard(&other), None);
        let _mine = TcpListener::bind("0.0.0.0:2020").unwrap();
        assert!(a.dial(address("10.1.0.1"), 2020).is_err());
    });
}

#[test]
fn containers_get_out_only_where_they_may() {
    isolated(|| {
        let mut world = World::new();
        let host = Egress::Lan(Prefix::host(address(ROUTER)));
        let usual = world.attach(7, "10.1.0.2");
        let closed = world.attach_with(8, "10.1.0.3", &[Egress::None]);
        let lan = world.attach_with(9, "10.1.0.4", &[host]);
        let both = world.attach_with(10, "10.1.0.5", &[host, Egress::Internet]);
        world.apply(&[], &[&usual, &closed, &lan, &both]);
        let _servers =
            world.router.enter(|| [INTERNET, ROUTER].map(|at| TcpListener::bind((at, 80)).unwrap()));
        let reached = |cell: &Cell| [INTERNET, ROUTER].map(|to| cell.dial(address(to), 80).is_ok());
        assert_eq!(reached(&usual), [true, false]);
        assert_eq!(reached(&closed), [false, false]);
        assert_eq!(reached(&lan), [false, true]);
        assert_eq!(reached(&both), [true, true]);
        let drops =
            |cell: &Cell| world.runtime.block_on(world.network.drops(cell.container.id)).unwrap().unwrap();
        assert!(drops(&usual).private_network > 0 && drops(&usual).egress == 0);
        assert!(drops(&closed).egress > 0 && drops(&lan).egress > 0);
        assert_eq!(drops(&both), Drops::default());
        let before = drops(&closed);
        for cell in [&usual, &closed, &lan] {
            cell.break_out();
        }
        assert_eq!(reached(&usual), [true, false], "not even around its own rules");
        assert_eq!(reached(&closed), [false, false], "not even around its own rules");
        assert_eq!(reached(&lan), [false, true], "not even around its own rules");
        // Rules that come back count on.
        world.apply(&[], &[&usual, &closed, &lan, &both]);
        closed.dial(address(INTERNET), 80).unwrap_err();
        let drops = world.runtime.block_on(world.network.drops(closed.container.id)).unwrap().unwrap();
        assert!(drops.egress > 0 && before.egress > 0, "{drops:?}");
    });
}

#[test]
fn published_ports_lead_to_their_container_and_show_who_comes() {
    isolated(|| {
        let mut world = World::new();
        let port = |port, container_port, allow: &[&str]| PublishedPort {
            on: PublishedOn::Node,
            allow: allow.iter().map(|network| network.parse().unwrap()).collect(),
            ..PublishedPort::tcp(port, container_port)
        };
        let udp = PublishedPort { transport: Transport::Udp, ..port(5353, 53, &[]) };
        let published = vec![
            port(8080, 80, &[]),
            port(8081, 81, &["203.0.113.0/24"]),
            port(8082, 82, &["192.168.50.0/24"]),
            udp,
        ];
        let (id, address) = (ContainerId(7), address("10.1.0.2"));
        let web = world.attach_one(LocalContainer { id, address, egress: vec![Egress::None], published });
        let other = world.attach(8, "10.1.0.3");
        world.apply(&[], &[&web, &other]);
        let servers = [80, 81, 82, 83].map(|port| web.listen(port));
        let come = |port| {
            let to = SocketAddr::new(BOARD.parse().unwrap(), port);
            world.router.enter(|| TcpStream::connect_timeout(&to, SHORT))
        };
        let mut visitor = come(8080).unwrap();
        let (mut inside, from) = servers[0].accept().unwrap();
        assert_eq!(from, visitor.local_addr().unwrap(), "the visitor's own address");
        assert!(says(&mut visitor, &mut inside, b"x") && says(&mut inside, &mut visitor, b"y"));
        assert!(come(8081).is_err(), "not from this network");
        assert!(come(8082).is_ok() && come(8083).is_err());
        let asked = web.udp(53);
        let asker = world.router.enter(|| UdpSocket::bind((ROUTER, 0)).unwrap());
        asker.set_read_timeout(Some(SHORT)).unwrap();
        asker.send_to(b"question", (BOARD, 5353)).unwrap();
        asked.send_to(b"answer", heard(&asked).expect("the question")).unwrap();
        assert!(heard(&asker).is_some(), "the answer");
        // It leads in, not out: the container itself reaches nothing, and other containers need a connection.
        assert!(web.dial(ROUTER.parse().unwrap(), 80).is_err());
        assert!(other.dial(BOARD.parse().unwrap(), 8080).is_err() && !other.reaches(&web, 80));
        // Nor does it help to know the way.
        world.router.run(&format!("ip route add 10.1.0.0/16 via {BOARD}"));
        let direct = SocketAddr::new(web.container.address.into(), 80);
        assert!(world.router.enter(|| TcpStream::connect_timeout(&direct, SHORT)).is_err());
        world.runtime.block_on(world.network.detach(web.container.id)).unwrap();
        assert!(come(8080).is_err() && !run("nft list ruleset").contains("dnat"), "gone with its container");
    });
}

#[test]
fn the_board_counts_what_it_drops() {
    isolated(|| {
        let mut world = World::looked_after(SHORT);
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        world.apply(&[], &[&a, &b]);
        assert_eq!(world.network.board_drops().spoofed, 0);
        a.space.run("ip addr add 10.1.0.99/32 dev eth0");
        let forged = a.space.enter(|| UdpSocket::bind("10.1.0.99:0").unwrap());
        let counted = |drops: Drops| drops.spoofed > 0 && drops.not_connected > 0;
        while !counted(world.network.board_drops()) {
            // Its own rules come back again and again.
            a.space.enter(|| attempt("nft delete table inet wherry"));
            a.udp(0).send_to(b"x", (b.container.address, 80)).ok();
            forged.send_to(b"x", (b.container.address, 80)).ok();
            std::thread::sleep(SHORT / 10);
        }
    });
}

#[test]
fn an_address_that_went_on_takes_no_connection_along() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let stale = allow(&a, &b, Transport::Tcp, 80);
        world.apply(&[stale], &[&a, &b]);
        world.runtime.block_on(world.network.detach(a.container.id)).unwrap();
        assert!(!run("ip link").contains("wv7"));
        // The broker has not said yet that the connection is gone; its address already is another's.
        let new = world.attach(9, "10.1.0.2");
        let _web = b.listen(80);
        assert!(!new.reaches(&b, 80));
        new.break_out();
        assert!(!new.reaches(&b, 80), "not even around its own rules");
        world.apply(&[], &[&new, &b]);
        assert!(!run("nft list ruleset").contains("tcp . 80"));
        assert!(!b.space.run("nft list ruleset").contains("tcp . 80"));
    });
}

#[test]
fn a_restart_of_the_service_interrupts_nothing() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let connection = allow(&a, &b, Transport::Tcp, 80);
        let listener = b.listen(80);
        world.apply(&[connection], &[&a, &b]);
        let mut client = a.dial(b.container.address, 80).unwrap();
        let mut server = listener.accept().unwrap().0;
        let devices = || {
            let all = run("ip -o link");
            all.lines().map(|line| line.split_whitespace().take(2).collect::<String>()).collect::<Vec<_>>()
        };
        let before = (devices(), run("nft -s list ruleset"), b.space.run("nft -s list ruleset"));

        let outside = world.router.enter(|| TcpListener::bind((INTERNET, 80)).unwrap());
        let mut download = a.dial(address(INTERNET), 80).unwrap();
        let mut site = outside.accept().unwrap().0;

        drop(world.network);
        world.network = Network::new(NetConfig { reconcile: Duration::from_millis(100) }).unwrap();
        world.runtime.block_on(world.network.start(NodeIndex(1), Overlay::default())).unwrap();
        assert!(says(&mut client, &mut server, b"between the lives"));
        // The broker is back before the board knows its own address again.
        let wanted = NetworkDesired {
            revision: 9,
            peers: vec![],
            connections: vec![connection],
            ..NetworkDesired::default()
        };
        let told =
            world.runtime.block_on(world.network.apply(&wanted, &[a.container.clone(), b.container.clone()]));
        assert_eq!(told, Err(NetError::NoUplink));
        assert!(
            says(&mut site, &mut download, b"goes on") && says(&mut client, &mut server, b"so does this")
        );
        world.runtime.block_on(world.network.set_uplink(Some(uplink()))).unwrap();
        assert!(says(&mut site, &mut download, b"and on") && says(&mut client, &mut server, b"and this"));
        for cell in [&a, &b] {
            world.runtime.block_on(world.network.attach(cell.container.clone(), cell.space.fd())).unwrap();
        }
        assert!(says(&mut client, &mut server, b"attached again"));
        world.apply(&[connection], &[&a, &b]);
        assert!(says(&mut client, &mut server, b"and told again"));
        assert!(says(&mut site, &mut download, b"and told again"));
        assert_eq!((devices(), run("nft -s list ruleset"), b.space.run("nft -s list ruleset")), before);
        // The new life is in charge: it can close what the old one opened.
        world.apply(&[], &[&a, &b]);
        assert!(!says(&mut client, &mut server, b"closed"));
    });
}

#[test]
fn what_is_deleted_by_hand_comes_back() {
    isolated(|| {
        let mut world = World::looked_after(Duration::from_millis(100));
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let _web = b.listen(80);
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        let rules = run("nft -s list ruleset");
        for harm in [
            "nft flush ruleset",
            "ip link del wherry0",
            "ip link set wv8 nomaster",
            "ip link set wv7 down",
            "ip link del wv8",
            "ip route del 10.1.0.0/16 dev wherry0",
            "ip addr del 10.1.0.1/16 dev wherry0",
        ] {
            run(harm);
            std::thread::sleep(Duration::from_millis(500));
            assert!(a.reaches(&b, 80), "after `{harm}`");
        }
        assert_eq!(run("nft -s list ruleset"), rules);
        b.space.run("nft flush ruleset");
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            b.space.run("nft list ruleset").contains("policy drop"),
            "a container's rules come back, too"
        );
    });
}

#[test]
fn what_is_deleted_comes_back_however_much_is_asked_meanwhile() {
    isolated(|| {
        let mut world = World::looked_after(Duration::from_millis(200));
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let _web = b.listen(80);
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        run("nft flush ruleset");
        run("ip link set wv8 nomaster");
        let harmed = std::time::Instant::now();
        while !run("nft list ruleset").contains("policy drop") || !a.reaches(&b, 80) {
            assert!(harmed.elapsed() < Duration::from_secs(5), "nobody looked");
            for _ in 0..20 {
                world.runtime.block_on(world.network.drops(a.container.id)).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
}

#[test]
fn what_is_right_is_left_alone() {
    isolated(|| {
        let mut world = World::looked_after(Duration::from_millis(50));
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        std::thread::sleep(SHORT);
        let seen = attempt("timeout 1 ip monitor link address route");
        let seen_of_ours = String::from_utf8_lossy(&seen.stdout);
        let ours = seen_of_ours.lines().filter(|line| line.contains("wherry") || line.contains("wv"));
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
        assert!(seen.status.code() == Some(124), "{seen:?}");
    });
}

#[test]
fn a_container_that_starts_anew_is_connected_anew() {
    isolated(|| {
        let mut world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        // The next generation: same container, same address, another namespace, while the old one is still there.
        let next = world.attach(8, "10.1.0.3");
        let _web = next.listen(80);
        assert!(a.reaches(&next, 80));
        assert!(!b.space.run("ip link").contains("eth0"));
    });
}

#[test]
fn without_gre_tunnels_are_an_error_and_the_board_works() {
    isolated(|| {
        let world = World::new();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let _web = b.listen(80);
        let wanted = NetworkDesired {
            revision: 1,
            peers: vec![Peer { index: NodeIndex(2), underlay: address("192.168.50.13"), wireguard: None }],
            connections: vec![allow(&a, &b, Transport::Tcp, 80)],
            ..NetworkDesired::default()
        };
        let result =
            world.runtime.block_on(world.network.apply(&wanted, &[a.container.clone(), b.container.clone()]));
        if world.network.keys().is_some() {
            result.unwrap();
            assert!(run("ip -d link show gre-2").contains("remote 192.168.50.13"));
            assert!(run("ip route").contains("10.2.0.0/16 dev gre-2"));
        } else {
            assert_eq!(result, Err(NetError::NoTunnels { peers: 1 }));
        }
        assert!(a.reaches(&b, 80));
    });
}

#[test]
fn tunnels_end_inside_the_container() {
    isolated(|| {
        let mut world = World::new();
        let a = world.attach(7, "10.1.0.2");
        world.apply(&[], &[&a]);
        let dial = |port| world.runtime.block_on(world.network.connect(ContainerId(7), port));
        let outside = a.listen(80);
        dial(80).expect("the container's address");
        assert_eq!(outside.accept().unwrap().1.ip(), a.container.address);
        let loopback = a.space.enter(|| TcpListener::bind("127.0.0.1:81").unwrap());
        dial(81).expect("the container's loopback");
        loopback.accept().unwrap();
        let refused = dial(82).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let unknown = world.runtime.block_on(world.network.connect(ContainerId(99), 80)).unwrap_err();
        assert_eq!(unknown.kind(), std::io::ErrorKind::NotFound);
        let server = a.udp(53);
        world.runtime.block_on(async {
            let socket = world.network.connect_udp(ContainerId(7), 53).await.unwrap();
            socket.send(b"question").await.unwrap();
            let from = heard(&server).expect("the datagram");
            assert_eq!(from.ip(), a.container.address);
            server.send_to(b"answer", from).unwrap();
            assert_eq!(socket.recv(&mut [0; 16]).await.unwrap(), 6);
        });
    });
}

#[test]
fn wrong_addresses_are_refused_and_leave_nothing() {
    isolated(|| {
        let world = World::new();
        let attach = |id, ip: &str| {
            let container = LocalContainer {
                id: ContainerId(id),
                address: address(ip),
                egress: vec![Egress::Internet],
                published: vec![],
            };
            world.runtime.block_on(world.network.attach(container, Space::new().fd()))
        };
        for bad in ["10.1.0.1", "10.1.0.0", "10.1.255.255", "10.2.0.2", BOARD] {
            assert!(matches!(attach(7, bad), Err(NetError::Address { .. })), "{bad}");
        }
        assert_eq!(attach(u64::MAX, "10.1.0.2"), Err(NetError::Id(ContainerId(u64::MAX))));
        attach(7, "10.1.0.2").unwrap();
        assert!(matches!(attach(8, "10.1.0.2"), Err(NetError::AddressInUse { .. })));
        let no_namespace = std::fs::File::open("/dev/null").unwrap().into();
        let container = LocalContainer {
            id: ContainerId(9),
            address: address("10.1.0.9"),
            egress: vec![Egress::Internet],
            published: vec![],
        };
        let refused = world.runtime.block_on(world.network.attach(container, no_namespace));
        assert!(matches!(refused, Err(NetError::Namespace { .. })), "{refused:?}");
        assert!(!run("ip link").contains("wv8") && !run("ip link").contains("wv9"));
        world.runtime.block_on(world.network.detach(ContainerId(1234))).unwrap();
    });
}

#[test]
fn a_container_s_end_is_as_documented() {
    isolated(|| {
        let world = World::new();
        let a = world.attach(7, "10.1.0.2");
        assert!(a.space.run("ip -o addr show eth0").contains("inet 10.1.0.2/32"));
        let routes = a.space.run("ip route");
        assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
        assert!(routes.contains("10.0.0.0/8 via 10.1.0.1 dev eth0 proto static mtu 1416"), "{routes}");
        assert!(a.space.run("ip link show eth0").contains("mtu 1500"));
        assert!(run("ip -d link show wv7").contains("isolated on"));
        assert!(run("ip addr show wherry0").contains("inet 10.1.0.1/16"));
    });
}
