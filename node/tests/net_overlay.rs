//! Two boards and the tunnel between them. GRE is a property of the kernel: `tests/tests/overlay.rs` runs these, ignored
//! here, in a guest with the boards' kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#[path = "../../net/tests/netns/mod.rs"]
mod netns;

use netns::{Space, isolated, run, wait_for_carrier};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;
use wherry_net::dhcp::Lease;
use wherry_net::setup::Uplink;
use wherry_node::net::{LocalContainer, NetConfig, Network};
use wherry_protocol::message::{Connection, Egress, NetworkDesired, Peer, Transport};
use wherry_protocol::{ContainerId, NodeIndex, Overlay};

/// Longer than any packet takes, also under emulation.
const SHORT: Duration = Duration::from_secs(2);

struct Board {
    space: Space,
    network: Network,
    runtime: Runtime,
    container: LocalContainer,
    cell: Space,
    peer: Peer,
}

fn underlay(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, 10 + index)
}

fn uplink(index: u8) -> Uplink {
    let lease = Lease { address: underlay(index), prefix: 24, gateway: None, dns: vec![], ntp: vec![] };
    Uplink { interface: "eth0".into(), lease }
}

impl Board {
    /// A board with the number `index` and one container, 10.N.0.2, in a namespace that already has its `eth0`.
    fn new(space: Space, index: u8) -> Self {
        space.run(&format!("ip addr add {}/24 dev eth0", underlay(index)));
        space.run("ip link set eth0 up");
        let config = NetConfig { reconcile: Duration::from_millis(200) };
        let network = space.enter(|| Network::new(config)).unwrap();
        let keys = network.keys().expect("this kernel has no GRE or no WireGuard");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let container = LocalContainer {
            id: ContainerId(index.into()),
            address: Ipv4Addr::new(10, index, 0, 2),
            egress: vec![Egress::Internet],
            published: vec![],
        };
        let cell = Space::new();
        let local = container.clone();
        runtime.block_on(async {
            network.set_uplink(Some(uplink(index))).await.unwrap();
            network.start(NodeIndex(index), Overlay::default()).await.unwrap();
            network.attach(local, cell.fd()).await.unwrap();
        });
        cell.enter(|| wait_for_carrier("eth0"));
        let peer = Peer { index: NodeIndex(index), underlay: underlay(index), wireguard: Some(keys) };
        Self { space, network, runtime, container, cell, peer }
    }

    fn apply(&self, peers: &[&Peer], connections: &[Connection]) {
        let wanted = NetworkDesired {
            revision: 1,
            peers: peers.iter().map(|peer| (*peer).clone()).collect(),
            connections: connections.to_vec(),
            ..NetworkDesired::default()
        };
        self.runtime.block_on(self.network.apply(&wanted, std::slice::from_ref(&self.container))).unwrap();
    }

    fn dial(&self, to: &Self, port: u16) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from((to.container.address, port));
        self.cell.enter(|| TcpStream::connect_timeout(&to, SHORT))
    }
}

fn two_boards() -> (Board, Board) {
    let (one, two) = (Space::new(), Space::new());
    one.enter(|| {
        run("ip link add eth0 type veth peer name far");
        run(&format!("ip link set far netns {}", two.path()));
    });
    two.run("ip link set far name eth0");
    let boards = (Board::new(one, 1), Board::new(two, 2));
    boards.0.space.enter(|| wait_for_carrier("eth0"));
    boards
}

fn allow(from: &LocalContainer, to: &LocalContainer, transport: Transport, port: u16) -> Connection {
    Connection {
        from: from.id,
        from_address: from.address,
        to: to.id,
        to_address: to.address,
        port,
        transport,
    }
}

/// Sends `bytes` both ways over one connection.
fn transfer(from: &Board, to: &Board, port: u16, bytes: usize) {
    let listener = to.cell.enter(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
    let mut client = from.dial(to, port).expect("the connection");
    let mut server = listener.accept().unwrap().0;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let data = vec![7; bytes];
    for round in 0..2 {
        let (sender, receiver) =
            if round == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&data).unwrap());
            let mut got = vec![0; bytes];
            receiver.read_exact(&mut got).expect("all of it");
        });
    }
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_board_s_network_that_takes_smaller_packets_is_followed() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(&one.container, &two.container, Transport::Tcp, 80);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        for board in [&one, &two] {
            board.space.run("ip link set eth0 mtu 1300");
        }
        std::thread::sleep(Duration::from_secs(1));
        assert!(one.space.run("ip link show gre-2").contains("mtu 1216"));
        assert!(one.cell.run("ip link show eth0").contains("mtu 1300"));
        assert!(one.cell.run("ip route").contains("mtu 1216"));
        // Less than IPv6 works with: there is none until there is room again.
        for space in [&one.space, &one.cell] {
            assert!(!space.run("ip -6 addr").contains("inet6 fd00:"), "{}", space.run("ip -6 addr"));
        }
        transfer(&one, &two, 80, 1 << 20);
        for board in [&one, &two] {
            board.space.run("ip link set eth0 mtu 1500");
        }
        std::thread::sleep(Duration::from_secs(2));
        assert!(one.cell.run("ip -6 addr").contains("inet6 fd00:0:0:1::2/128"));
        let bridge = one.space.run("ip -6 addr show wherry0");
        assert!(bridge.contains("fd00:0:0:1::1/64") && !bridge.contains("fe80"), "{bridge}");
        assert!(one.space.run("ip -6 route").contains("fd00:0:0:2::/64 dev gre-2"));
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn containers_of_two_boards_reach_each_other_as_allowed() {
    isolated(|| {
        let (one, two) = two_boards();
        let _other = two.cell.enter(|| TcpListener::bind("0.0.0.0:81").unwrap());
        let connection = allow(&one.container, &two.container, Transport::Tcp, 80);
        one.apply(&[&two.peer], &[]);
        two.apply(&[&one.peer], &[]);
        assert!(one.dial(&two, 81).is_err(), "a tunnel alone opens nothing");
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        transfer(&one, &two, 80, 1 << 20);
        assert!(one.dial(&two, 81).is_err(), "another port");
        let tunnel = one.space.run("ip -d link show gre-2");
        assert!(
            tunnel.contains("mtu 1416") && tunnel.contains("remote 10.0.255.2 local 10.0.255.1"),
            "{tunnel}"
        );
        // What somebody deletes comes back, with the same key: the other board need not know.
        one.space.run("ip link del wherry-wg");
        std::thread::sleep(Duration::from_secs(1));
        transfer(&one, &two, 80, 1000);
        // A service that starts anew finds the board's key in the device.
        let config = NetConfig { reconcile: Duration::from_secs(3600) };
        let again = one.space.enter(|| Network::new(config)).unwrap();
        assert_eq!(again.keys(), one.peer.wireguard);
        drop(again);
        one.apply(&[], &[]);
        assert!(!one.space.run("ip link").contains("gre-2"), "a tunnel that nobody needs is gone");
        let left = one.space.run("ip -d link show wherry-wg");
        assert!(left.contains("wireguard") && left.contains("mtu 1440"), "{left}");
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn ipv6_goes_through_the_tunnels_as_allowed_and_nobody_poses_there() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(&two.container, &one.container, Transport::Udp, 53);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        let six = |board: &Board| Overlay::default().address6(board.container.address);
        let server = one.cell.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
        server.set_read_timeout(Some(SHORT)).unwrap();
        let heard = || server.recv_from(&mut [0; 2000]).ok();
        let client = two.cell.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        client.set_read_timeout(Some(SHORT)).unwrap();
        // As large as goes through in one piece: 40 bytes of IPv6 and 8 of UDP.
        client.send_to(&[7; 1416 - 48], (six(&one), 53)).unwrap();
        let (length, from) = heard().expect("a packet through the tunnel");
        assert_eq!((length, from.ip()), (1416 - 48, six(&two).into()));
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv_from(&mut [0; 10]).unwrap().1.ip(), six(&one));
        client.send_to(b"x", (six(&one), 54)).ok();
        one.cell.enter(|| {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap().send_to(b"x", (six(&two), 53)).ok()
        });
        assert_eq!(heard(), None, "another port, and the other way round");
        let spoofed = || {
            let rules = one.space.run("nft list chain inet wherry from_peers");
            let counted = rules.lines().filter(|line| line.contains("ip6 saddr"));
            counted.filter(|line| !line.contains("packets 0 ")).count()
        };
        assert_eq!(spoofed(), 0);
        // Board two itself, as a container of board three.
        let other = Overlay::default().address6(Ipv4Addr::new(10, 3, 0, 2));
        two.space.run(&format!("ip -6 addr add {other}/128 dev lo nodad"));
        two.space.enter(|| UdpSocket::bind((other, 0)).unwrap().send_to(b"x", (six(&one), 53)).unwrap());
        assert_eq!((heard(), spoofed()), (None, 1));
        // What is no longer allowed is over, for packets of known flows too.
        one.apply(&[&two.peer], &[]);
        client.send_to(b"x", (six(&one), 53)).unwrap();
        assert_eq!(heard(), None);
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_smaller_network_between_the_boards_is_got_over() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(&one.container, &two.container, Transport::Tcp, 80);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        for (board, peer) in [(&one, underlay(2)), (&two, underlay(1))] {
            board.space.run(&format!("ip route add {peer} dev eth0 mtu 1300"));
        }
        // What WireGuard sends may be taken apart on the way; the containers need not know.
        assert!(one.cell.run("ip route").contains("mtu 1416"));
        transfer(&one, &two, 80, 1 << 20);
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn nothing_between_the_boards_can_be_read_or_forged() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(&two.container, &one.container, Transport::Udp, 53);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        one.space.run("nft add table inet probe");
        one.space.run("nft add chain inet probe wire { type filter hook prerouting priority raw ; }");
        for what in ["ip protocol 47", "udp dport 51820"] {
            one.space.run(&format!("nft add rule inet probe wire iifname eth0 {what} counter"));
        }
        let server = one.cell.enter(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        server.set_read_timeout(Some(SHORT)).unwrap();
        let heard = || {
            let (_, from) = server.recv_from(&mut [0; 10]).ok()?;
            // An answer makes it a flow that connection tracking knows, of the tunnel too.
            server.send_to(b"y", from).ok();
            Some(from.ip())
        };
        let to = (one.container.address, 53);
        let true_one = Some(two.container.address.into());
        two.cell.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
        assert_eq!(heard(), true_one);
        let counted = || -> Vec<u32> {
            let rules = one.space.run("nft list chain inet probe wire");
            let packets = rules.split("counter packets ").skip(1);
            packets.map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap()).collect()
        };
        let [gre, sealed] = counted()[..] else { panic!("two counters") };
        assert!(gre == 0 && sealed > 0, "{gre} packets of GRE, {sealed} of WireGuard");
        // Somebody with board two's address on the network, but not with its key.
        two.apply(&[], &[]);
        let posing = format!("{}/32 dev lo", two.container.address);
        two.space.run(&format!("ip addr add {posing}"));
        two.space.run("ip route add 10.0.255.1/32 via 192.168.50.11 dev eth0");
        let ends = |one: &str, two: &str| format!("local {one} remote {two}");
        // And somebody who is no board at all.
        two.space.run("ip addr add 192.168.50.66/24 dev eth0");
        let refused = || -> u64 {
            let rules = one.space.run("nft list table inet wherry");
            let line = rules.lines().find(|line| line.contains("comment \"unencrypted\"")).unwrap();
            line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        for ends in [
            ends("192.168.50.12", "192.168.50.11"),
            ends("10.0.255.2", "10.0.255.1"),
            ends("192.168.50.66", "192.168.50.11"),
        ] {
            let before = (counted()[0], refused());
            two.space.run(&format!("ip link add forged type gre {ends}"));
            two.space.run("ip link set forged up");
            two.space.run("ip route add 10.1.0.0/16 dev forged");
            two.space.enter(|| {
                UdpSocket::bind((two.container.address, 0)).unwrap().send_to(b"x", to).unwrap();
            });
            assert_eq!(heard(), None, "plain GRE is let in: {ends}");
            assert!(counted()[0] > before.0, "nothing was forged: {ends}");
            assert!(refused() > before.1, "it was not counted: {ends}");
            two.space.run("ip link del forged");
        }
        two.space.run("ip addr del 192.168.50.66/24 dev eth0");
        two.space.run("ip route del 10.0.255.1/32");
        two.space.run(&format!("ip addr del {posing}"));
        // And one with another key.
        let other = Peer { wireguard: Some([[9; 32]; 2]), ..two.peer.clone() };
        one.apply(&[&other], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        two.cell.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
        assert_eq!(heard(), None, "another board's key is let in");
        one.apply(&[&two.peer], &[connection]);
        // Board two believes in a session that is gone, until board one begins another.
        let again = (0..3).any(|_| {
            two.cell.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
            heard() == true_one
        });
        assert!(again, "the right key is not let in");
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_tunnel_carries_its_own_board_s_addresses_only() {
    isolated(|| {
        let (one, two) = two_boards();
        let board_three = Peer { index: NodeIndex(3), underlay: underlay(3), wireguard: Some([[3; 32]; 2]) };
        let third = LocalContainer {
            id: ContainerId(3),
            address: Ipv4Addr::new(10, 3, 0, 2),
            egress: vec![Egress::Internet],
            published: vec![],
        };
        let connections = [
            allow(&two.container, &one.container, Transport::Udp, 53),
            allow(&third, &one.container, Transport::Udp, 53),
        ];
        one.apply(&[&two.peer, &board_three], &connections);
        two.apply(&[&one.peer], &connections[..1]);
        let server = one.cell.enter(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        server.set_read_timeout(Some(SHORT)).unwrap();
        let heard = || server.recv_from(&mut [0; 10]).ok().map(|(_, from)| from.ip());
        let to = (one.container.address, 53);
        two.cell.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to).unwrap());
        assert_eq!(heard(), Some(two.container.address.into()), "the true one");
        // Board two is taken over, and poses as a container of board three.
        two.space.run("nft flush ruleset");
        two.space.run(&format!("ip addr add {}/32 dev lo", third.address));
        two.space.enter(|| UdpSocket::bind((third.address, 0)).unwrap().send_to(b"x", to).unwrap());
        assert_eq!(heard(), None);
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_board_that_gets_another_address_gets_other_tunnels() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(&one.container, &two.container, Transport::Tcp, 80);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        transfer(&one, &two, 80, 1000);
        two.space.run("ip addr add 192.168.50.99/24 dev eth0");
        let mut moved = uplink(2);
        moved.lease.address = Ipv4Addr::new(192, 168, 50, 99);
        two.runtime.block_on(two.network.set_uplink(Some(moved.clone()))).unwrap();
        let peer = Peer { underlay: moved.lease.address, ..two.peer.clone() };
        let wanted = NetworkDesired {
            revision: 2,
            peers: vec![peer],
            connections: vec![connection],
            ..NetworkDesired::default()
        };
        one.runtime.block_on(one.network.apply(&wanted, std::slice::from_ref(&one.container))).unwrap();
        transfer(&one, &two, 80, 1000);
    });
}

/// Segments of this container that were lost, since ever: those that were sent again, without those of which the other end says that
/// they had come already, only later than what was sent after them (RFC 2883). And how often nothing came back in time.
fn lost(board: &Board) -> [i64; 2] {
    let counters = board.cell.run("cat /proc/self/net/snmp /proc/self/net/netstat");
    let count = |group: &str, name: &str| -> i64 {
        let rows: Vec<Vec<&str>> = counters
            .lines()
            .filter_map(|line| line.strip_prefix(group))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let column = rows[0].iter().position(|found| *found == name).unwrap();
        rows[1][column].parse().unwrap()
    };
    let again = count("Tcp:", "RetransSegs") - count("TcpExt:", "TCPDSACKRecv");
    [again, count("TcpExt:", "TCPTimeouts")]
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn keys_change_under_a_stream_that_does_not_notice() {
    isolated(|| {
        let (mut one, mut two) = two_boards();
        let connection = allow(&one.container, &two.container, Transport::Tcp, 80);
        one.apply(&[&two.peer], &[connection]);
        two.apply(&[&one.peer], &[connection]);
        let listener = two.cell.enter(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let mut client = one.dial(&two, 80).expect("the connection");
        let mut server = listener.accept().unwrap().0;
        let ended = Arc::new(AtomicBool::new(false));
        let sending = {
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                let mut sent = 0_u64;
                while !ended.load(Ordering::Relaxed) {
                    client.write_all(&[7; 4096]).unwrap();
                    sent += 4096;
                    std::thread::sleep(Duration::from_millis(2));
                }
                sent
            })
        };
        let receiving = std::thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()).unwrap());
        let way = |board: &Board, to: &str| board.space.run(&format!("ip route get {to}"));
        std::thread::sleep(Duration::from_secs(1));
        let before = [lost(&one), lost(&two)];
        // Each plane in its turn, twice.
        for plane in [1, 0, 1, 0] {
            let old = one.peer.clone();
            for board in [&mut one, &mut two] {
                let keys = board.runtime.block_on(board.network.rekey(plane)).unwrap();
                board.peer.wireguard = keys;
            }
            let (kept, new) = (usize::from(1 - plane), usize::from(plane));
            let (was, is) = (old.wireguard.unwrap(), one.peer.wireguard.unwrap());
            assert!(was[kept] == is[kept] && was[new] != is[new], "one of them is new");
            // Before they know each other's new keys the way is the old one, whatever they are told.
            for board in [&one, &two] {
                board.runtime.block_on(board.network.set_plane(plane)).unwrap();
            }
            let devices = ["wherry-wg ", "wherry-wg1"];
            assert!(way(&one, "10.0.255.2").contains(&format!("dev {}", devices[kept])));
            one.apply(&[&two.peer], &[connection]);
            two.apply(&[&one.peer], &[connection]);
            let changed = |board: &Board, to| way(board, to).contains(&format!("dev {}", devices[new]));
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while !(changed(&one, "10.0.255.2") && changed(&two, "10.0.255.1")) {
                assert!(std::time::Instant::now() < deadline, "they do not find each other on plane {plane}");
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        std::thread::sleep(Duration::from_secs(1));
        let after = [lost(&one), lost(&two)];
        ended.store(true, Ordering::Relaxed);
        let sent = sending.join().unwrap();
        assert_eq!(receiving.join().unwrap(), sent);
        assert_eq!(after, before, "segments were lost");
        println!("{sent} bytes went through four changes of keys, no segment was lost");
    });
}

#[test]
#[ignore = "changes the machine's clock: tests/overlay.rs runs it in a guest"]
fn a_board_s_clock_is_set_and_led() {
    let here = std::env::current_exe().unwrap();
    assert_eq!(here, std::path::Path::new("/net_overlay"), "a guest's clock, nobody else's");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    wherry_sys::clock::step(1_000_000_500_000_000).unwrap();
    assert!((1_000_000.0..1_000_100.0).contains(&(now() - before)));
    wherry_sys::clock::step(-1_000_000_500_000_000).unwrap();
    assert!((0.0..100.0).contains(&(now() - before)));
    // Half a second is made up at 0.05 %: forward and back differ by milliseconds. The other clocks are led along, but for the
    // raw one.
    let raw = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_RAW).unwrap();
        time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
    };
    let gained = |nanos| {
        wherry_sys::clock::slew(nanos).unwrap();
        let (start, began) = (raw(), now());
        std::thread::sleep(Duration::from_secs(4));
        (now() - began) - (raw() - start)
    };
    let (forward, back) = (gained(500_000_000), gained(-500_000_000));
    assert!(forward - back > 0.001, "{forward} s, {back} s");
    assert!(wherry_sys::clock::step(i64::MIN).is_err(), "before 1970");
}
