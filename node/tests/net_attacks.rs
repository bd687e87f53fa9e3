//! What a container, or a machine on the board's network, can try against the board and its other containers. Each test
//! shows that it comes to nothing and is counted, and that what is allowed goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod board;
#[path = "../../net/tests/netns/mod.rs"]
mod netns;

use board::{
    Cell, SHORT, World, address, allow, board_drops, heard, icmpv6_frame, send_frame, send_frame_through,
    udp_frame,
};
use netns::{BOARD, ROUTER, Space, isolated, run};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;
use wherry_protocol::message::{Connection, Egress, PublishedOn, PublishedPort, Transport};
use wherry_protocol::{ContainerId, Overlay};

const EVERYBODY: [u8; 6] = [0xff; 6];

fn mac(last: u8) -> [u8; 6] {
    [0x02, 0x57, 10, 1, 0, last]
}

/// a may reach b at 80; c may reach nobody.
fn three(world: &mut World) -> ([Cell; 3], TcpListener) {
    let cells = [(7, "10.1.0.2"), (8, "10.1.0.3"), (9, "10.1.0.4")].map(|(id, ip)| world.attach(id, ip));
    let web = cells[1].listen(80);
    world.apply(&[allow(&cells[0], &cells[1], Transport::Tcp, 80)], &[&cells[0], &cells[1], &cells[2]]);
    (cells, web)
}

/// An ARP message (RFC 826): `operation` 1 asks, 2 answers.
fn arp(ether: [u8; 6], operation: u8, sender: ([u8; 6], &str), target: &str) -> Vec<u8> {
    let ip = |text: &str| address(text).octets();
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&EVERYBODY[..], &ether, &head, &sender.0, &ip(sender.1), &[0; 6], &ip(target)].concat()
}

#[test]
fn nobody_takes_another_s_place_by_arp() {
    isolated(|| {
        let mut world = World::new();
        let ([a, b, c], _web) = three(&mut world);
        assert!(a.reaches(&b, 80));
        let neighbours = || run("ip -4 neigh show dev wherry0");
        let before = board_drops("spoofed");
        let lies = [
            // Of one's own accord, as an answer and as a question: another container, and the board.
            arp(mac(4), 2, (mac(4), "10.1.0.3"), "10.1.0.3"),
            arp(mac(4), 1, (mac(4), "10.1.0.3"), "10.1.0.3"),
            arp(mac(4), 2, (mac(4), "10.1.0.1"), "10.1.0.2"),
            // With the other's address on the frame too, or within only.
            arp(mac(3), 2, (mac(3), "10.1.0.3"), "10.1.0.1"),
            arp(mac(4), 2, (mac(3), "10.1.0.3"), "10.1.0.1"),
            arp(mac(4), 2, (mac(3), "10.1.0.4"), "10.1.0.1"),
        ];
        for lie in &lies {
            send_frame(&c.space, lie);
        }
        std::thread::sleep(SHORT / 4);
        assert_eq!(board_drops("spoofed"), before + lies.len() as u64);
        for line in neighbours().lines().filter(|line| line.starts_with("10.1.0.3 ")) {
            assert!(line.contains("02:57:0a:01:00:03"), "{line}");
        }
        assert!(a.reaches(&b, 80));
    });
}

#[test]
fn frames_for_bridges_reach_nobody_and_teach_nothing() {
    isolated(|| {
        let mut world = World::new();
        let ([a, b, c], _web) = three(&mut world);
        assert!(a.reaches(&b, 80) && !c.reaches(&a, 80));
        let board = UdpSocket::bind("0.0.0.0:68").unwrap();
        board.set_read_timeout(Some(SHORT)).unwrap();
        let from = SocketAddrV4::new(address("10.1.0.3"), 67);
        let to = |ip: &str| SocketAddrV4::new(address(ip), 68);
        for group in [0x00, 0x02, 0x03, 0x0d, 0x0e, 0x0f] {
            let bridges = [0x01, 0x80, 0xc2, 0, 0, group];
            for own in ["10.1.0.1", BOARD] {
                send_frame(&c.space, &udp_frame(mac(3), bridges, from, to(own), b"x"));
            }
            let mut asks = arp(mac(3), 2, (mac(4), "10.1.0.3"), "10.1.0.1");
            asks[..6].copy_from_slice(&bridges);
            send_frame(&c.space, &asks);
        }
        assert_eq!(heard(&board), None, "a DHCP server's answer, from a container");
        let learned = run("bridge fdb show dev wv9");
        assert!(!learned.contains("02:57:0a:01:00:03"), "{learned}");
        assert!(a.reaches(&b, 80), "b's packets still go to b");
        assert!(board_drops("spoofed") > 0);
    });
}

#[test]
fn no_container_gives_addresses_out() {
    isolated(|| {
        let mut world = World::new();
        let ([a, b, c], _web) = three(&mut world);
        let clients: Vec<UdpSocket> = [&a, &b].map(|cell| cell.udp(68)).into();
        let servers = UdpSocket::bind("0.0.0.0:67").unwrap();
        servers.set_read_timeout(Some(SHORT)).unwrap();
        let before = board_drops("spoofed");
        let at = |ip: &str, port| SocketAddrV4::new(address(ip), port);
        // An offer from its own address and from the board's, to everybody and to one.
        let offers = [
            udp_frame(mac(4), EVERYBODY, at("10.1.0.4", 67), at("255.255.255.255", 68), b"offer"),
            udp_frame(mac(4), mac(2), at("10.1.0.4", 67), at("10.1.0.2", 68), b"offer"),
            udp_frame(mac(1), EVERYBODY, at("10.1.0.1", 67), at("255.255.255.255", 68), b"offer"),
        ];
        offers.iter().for_each(|offer| send_frame(&c.space, offer));
        // And it is nobody's client.
        let discover =
            udp_frame(mac(4), EVERYBODY, at("0.0.0.0", 68), at("255.255.255.255", 67), b"discover");
        send_frame(&c.space, &discover);
        assert_eq!(heard(&servers), None);
        assert!(clients.iter().all(|client| heard(client).is_none()));
        assert_eq!(board_drops("spoofed"), before + 4);
    });
}

#[test]
fn nobody_poses_as_an_ipv6_router() {
    isolated(|| {
        let overlay = Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]);
        let mut world = World::with(Duration::from_secs(3600), overlay);
        let ([a, _b, c], _web) = three(&mut world);
        let sender = "fe80::57:aff:fe01:4".parse().unwrap();
        let all = "ff02::1".parse().unwrap();
        // A router for half an hour, with a network to take addresses from (RFC 4861 §4.2, §4.6.2).
        let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        advertisement.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0]);
        advertisement.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let group = [0x33, 0x33, 0, 0, 0, 1];
        let frame = icmpv6_frame(mac(4), group, sender, all, advertisement);
        let before = board_drops("spoofed");
        send_frame(&c.space, &frame);
        assert_eq!(board_drops("spoofed"), before + 1);
        // Nor from the board's own network, even where its kernel would listen to one.
        run("sysctl -qw net.ipv6.conf.eth0.accept_ra=2");
        send_frame_through(&world.router, "lan", &frame);
        std::thread::sleep(SHORT);
        let seen =
            [run("ip -6 route"), run("ip -6 addr"), a.space.run("ip -6 route"), a.space.run("ip -6 addr")];
        for seen in seen {
            assert!(!seen.contains("default") && !seen.contains("2001:db8"), "{seen}");
        }
    });
}

/// Of all ports of `to`, those that answer to TCP.
fn scan(space: &Space, to: Ipv4Addr) -> String {
    let program = format!(
        "import socket, select
found = []
for first in range(1, 65536, 16384):
    wait = select.poll(); open = {{}}
    for port in range(first, min(first + 16384, 65536)):
        s = socket.socket(); s.setblocking(False)
        if s.connect_ex(('{to}', port)) == 0: found.append(port)
        open[s.fileno()] = (s, port); wait.register(s, select.POLLOUT)
    for fd, _ in wait.poll(200):
        s, port = open[fd]
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0: found.append(port)
    for s, _ in open.values(): s.close()
print(sorted(set(found)))"
    );
    let limited = "ulimit -n 17000; exec python3 -c \"$0\"";
    let output =
        space.enter(|| std::process::Command::new("sh").args(["-c", limited, &program]).output().unwrap());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether `to` answers an echo request.
fn pinged(space: &Space, to: Ipv4Addr) -> bool {
    let program = format!(
        "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(0.3)
s.connect(('{to}', 0)); s.send(bytes.fromhex('0800f7ff00000000'))
while s.recv(2000)[20] != 0: pass"
    );
    let answered = space.enter(|| std::process::Command::new("python3").args(["-c", &program]).output());
    answered.unwrap().status.success()
}

#[test]
fn a_scan_finds_nothing() {
    isolated(|| {
        let mut world = World::new();
        let ([_a, b, c], _web) = three(&mut world);
        // A machine on the board's network besides the router.
        world.router.run("ip addr add 192.168.50.77/24 dev lan");
        let ports = [22, 53, 80, 2020, 2021, 8080, 65535];
        let on_the_board: Vec<_> = ports.map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).into();
        let outside: Vec<_> =
            world.router.enter(|| ports.map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap())).into();
        let datagrams: Vec<UdpSocket> =
            [67, 68, 123, 1026, 51820].map(|port| UdpSocket::bind(("0.0.0.0", port)).unwrap()).into();
        let found = scan(&world.router, address(ROUTER));
        assert!(ports.iter().all(|port| found.contains(&port.to_string())), "they are there: {found}");
        assert!(pinged(&world.router, address(ROUTER)));
        let targets = ["10.1.0.1", BOARD, ROUTER, "192.168.50.77", "10.1.0.3"].map(address);
        for broken_out in [false, true] {
            if broken_out {
                c.break_out();
            }
            for to in targets {
                let expected = match to == address("10.1.0.1") {
                    // Its name server.
                    true => "[53]",
                    false => "[]",
                };
                assert_eq!(scan(&c.space, to).trim(), expected, "{to}, broken out: {broken_out}");
                assert!(!pinged(&c.space, to), "{to} answers a ping, broken out: {broken_out}");
                let speaker = c.udp(0);
                for port in [67, 68, 123, 1026, 51820] {
                    speaker.send_to(b"x", (to, port)).ok();
                }
            }
        }
        for socket in &datagrams {
            socket.set_read_timeout(Some(SHORT / 10)).unwrap();
            assert_eq!(heard(socket), None, "{socket:?}");
        }
        assert!(board_drops("private-network") > 1000 && board_drops("not-connected") > 1000);
        drop((on_the_board, outside, b));
    });
}

#[test]
fn whoever_comes_by_a_published_port_is_no_container() {
    isolated(|| {
        let mut world = World::new();
        let port = PublishedPort {
            transport: Transport::Udp,
            on: PublishedOn::Node,
            ..PublishedPort::tcp(5353, 53)
        };
        let server = world.attach_one(wherry_node::net::LocalContainer {
            id: ContainerId(7),
            address: address("10.1.0.2"),
            egress: vec![Egress::None],
            published: vec![port],
        });
        // A container of another board may ask it.
        let connection = Connection {
            from: ContainerId(9),
            from_address: address("10.2.0.2"),
            to: server.container.id,
            to_address: server.container.address,
            port: 53,
            transport: Transport::Udp,
        };
        world.apply(&[connection], &[&server]);
        let inside = server.udp(53);
        let board = SocketAddrV4::new(address(BOARD), 5353);
        let visitor = world.router.enter(|| UdpSocket::bind((ROUTER, 0)).unwrap());
        visitor.send_to(b"x", board).unwrap();
        assert_eq!(heard(&inside).map(|from| from.ip()), Some(address(ROUTER).into()), "visitors come");
        world.router.run("ip addr add 10.2.0.2/32 dev lo");
        let forger = world.router.enter(|| UdpSocket::bind(("10.2.0.2", 0)).unwrap());
        forger.send_to(b"x", board).unwrap();
        assert_eq!(heard(&inside), None, "one with a container's address");
    });
}
