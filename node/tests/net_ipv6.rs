//! IPv6 between the containers of one board, in namespaces that simulate it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod board;
#[path = "../../net/tests/netns/mod.rs"]
mod netns;

use board::{Cell, SHORT, World, address, allow, board_drops, heard, icmpv6_frame, send_frame};
use netns::{isolated, run};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use wherry_protocol::message::{Drops, Transport};
use wherry_protocol::{ContainerId, Overlay};

fn overlay() -> Overlay {
    Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a])
}

fn world() -> World {
    World::with(Duration::from_secs(3600), overlay())
}

fn six(cell: &Cell) -> Ipv6Addr {
    overlay().address6(cell.container.address)
}

fn listen(cell: &Cell, port: u16) -> TcpListener {
    cell.space.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
}

fn dial(cell: &Cell, to: Ipv6Addr, port: u16) -> bool {
    cell.space.enter(|| TcpStream::connect_timeout(&SocketAddr::from((to, port)), SHORT)).is_ok()
}

fn drops(world: &World, cell: &Cell) -> Drops {
    world.runtime.block_on(world.network.drops(cell.container.id)).unwrap().unwrap()
}

#[test]
fn a_connection_opens_both_kinds_of_address() {
    isolated(|| {
        let mut world = world();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let (_web, _other) = (listen(&b, 80), listen(&b, 81));
        world.apply(&[], &[&a, &b]);
        assert!(!dial(&a, six(&b), 80), "closed by default");
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b]);
        assert!(dial(&a, six(&b), 80) && a.reaches(&b, 80), "the socket takes both");
        assert!(!dial(&a, six(&b), 81) && !dial(&b, six(&a), 80));
        assert!(drops(&world, &a).not_connected > 0);
        // A stream that is open when its connection is taken away carries nothing more.
        let to = SocketAddr::from((six(&b), 80));
        let mut stream = a.space.enter(|| TcpStream::connect_timeout(&to, SHORT)).unwrap();
        let (mut server, _) = _web.accept().and_then(|_| _web.accept()).and_then(|_| _web.accept()).unwrap();
        assert!(board::says(&mut stream, &mut server, b"before"));
        world.apply(&[], &[&a, &b]);
        assert!(!board::says(&mut stream, &mut server, b"after") && !dial(&a, six(&b), 80));
    });
}

#[test]
fn a_container_reaches_itself_and_udp_goes_there_and_back() {
    isolated(|| {
        let mut world = world();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let _own = listen(&a, 80);
        assert!(dial(&a, six(&a), 80) && dial(&a, Ipv6Addr::LOCALHOST, 80));
        let bound = |cell: &Cell| {
            let socket = cell.space.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
            socket.set_read_timeout(Some(SHORT)).unwrap();
            socket
        };
        let (from, to) = (bound(&a), bound(&b));
        world.apply(&[allow(&a, &b, Transport::Udp, 53)], &[&a, &b]);
        from.send_to(b"question", (six(&b), 53)).unwrap();
        let asker = heard(&to).unwrap();
        assert_eq!(asker.ip(), six(&a));
        to.send_to(b"answer", asker).unwrap();
        assert_eq!(heard(&from).unwrap().ip(), six(&b));
    });
}

#[test]
fn the_board_checks_what_a_container_s_own_rules_no_longer_do() {
    isolated(|| {
        let mut world = world();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        let _web = listen(&b, 80);
        world.apply(&[], &[&a, &b]);
        a.break_out();
        b.break_out();
        assert!(!dial(&a, six(&b), 80));
        assert!(board_drops("not-connected") > 0);
        let gateway = overlay().address6(address("10.1.0.1"));
        let _board = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 2020)).unwrap();
        assert!(!dial(&a, gateway, 2020), "the board itself");
    });
}

#[test]
fn nobody_poses_as_another() {
    isolated(|| {
        let mut world = world();
        let cells = [(7, "10.1.0.2"), (8, "10.1.0.3"), (9, "10.1.0.4")];
        let [a, b, c] = cells.map(|(id, ip)| world.attach(id, ip));
        world.apply(&[allow(&a, &b, Transport::Udp, 53)], &[&a, &b, &c]);
        let server = b.space.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap());
        server.set_read_timeout(Some(SHORT)).unwrap();
        c.break_out();
        c.space.run(&format!("ip addr add {}/128 dev eth0 nodad", six(&a)));
        let as_a = c.space.enter(|| UdpSocket::bind((six(&a), 0)).unwrap());
        let before = board_drops("spoofed");
        as_a.send_to(b"x", (six(&b), 53)).unwrap();
        assert_eq!(heard(&server), None);
        assert!(board_drops("spoofed") > before);
        // The real one still can.
        let real = a.space.enter(|| UdpSocket::bind((six(&a), 0)).unwrap());
        real.send_to(b"x", (six(&b), 53)).unwrap();
        assert_eq!(heard(&server).unwrap().ip(), six(&a));
    });
}

/// A neighbour advertisement that nobody asked for, as a whole Ethernet frame: `target` is at `mac` (RFC 4861 §4.4).
fn advertisement(mac: [u8; 6], to: [u8; 6], target: Ipv6Addr, receiver: Ipv6Addr) -> Vec<u8> {
    let mut icmp = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend([2, 1]);
    icmp.extend(mac);
    icmpv6_frame(mac, to, target, receiver, icmp)
}

#[test]
fn forged_neighbour_advertisements_do_nothing() {
    isolated(|| {
        let mut world = world();
        let cells = [(7, "10.1.0.2"), (8, "10.1.0.3"), (9, "10.1.0.4")];
        let [a, b, c] = cells.map(|(id, ip)| world.attach(id, ip));
        let _web = listen(&b, 80);
        world.apply(&[allow(&a, &b, Transport::Tcp, 80)], &[&a, &b, &c]);
        let mac = [0x02, 0x57, 10, 1, 0, 4];
        let gateway = [0x02, 0x57, 10, 1, 0, 1];
        let board = overlay().address6(address("10.1.0.1"));
        let neighbours = || run("ip -6 neigh show dev wherry0");
        let before = (neighbours(), a.space.run("ip -6 neigh show dev eth0"), board_drops("spoofed"));
        assert!(
            before.0.contains(&format!("{} lladdr 02:57:0a:01:00:03 PERMANENT", six(&b))),
            "{}",
            before.0
        );
        // c says to the board that b is where c is, and to everybody that the board is.
        send_frame(&c.space, &advertisement(mac, gateway, six(&b), board));
        let all = "ff02::1".parse().unwrap();
        send_frame(&c.space, &advertisement(mac, [0x33, 0x33, 0, 0, 0, 1], board, all));
        // With its own address too: it has nothing to say there.
        send_frame(&c.space, &advertisement(mac, gateway, six(&c), board));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((neighbours(), a.space.run("ip -6 neigh show dev eth0")), (before.0, before.1));
        assert_eq!(board_drops("spoofed"), before.2 + 3);
        assert!(dial(&a, six(&b), 80));
    });
}

#[test]
fn nothing_leaves_the_cluster_and_it_is_counted() {
    isolated(|| {
        let mut world = world();
        let a = world.attach(7, "10.1.0.2");
        world.apply(&[], &[&a]);
        let outside: Ipv6Addr = "2001:db8::1".parse().unwrap();
        world.router.run("ip addr add 2001:db8::1/64 dev lan nodad");
        run("ip addr add 2001:db8::2/64 dev eth0 nodad");
        let _server = world.router.enter(|| TcpListener::bind((outside, 80)).unwrap());
        assert!(
            TcpStream::connect_timeout(&SocketAddr::from((outside, 80)), SHORT).is_err(),
            "the board has no IPv6"
        );
        assert!(!dial(&a, outside, 80), "there is no way");
        let gateway = overlay().address6(address("10.1.0.1"));
        a.space.run(&format!("ip -6 route add default via {gateway} dev eth0"));
        let before = drops(&world, &a).ipv6;
        assert!(!dial(&a, outside, 80));
        assert!(drops(&world, &a).ipv6 > before, "the container's own rules");
        a.break_out();
        let before = board_drops("ipv6");
        assert!(!dial(&a, outside, 80));
        assert!(board_drops("ipv6") > before, "the board's");
    });
}

#[test]
fn what_the_kernel_says_by_itself_is_not_counted() {
    isolated(|| {
        let mut world = world();
        let (a, b) = (world.attach(7, "10.1.0.2"), world.attach(8, "10.1.0.3"));
        world.apply(&[], &[&a, &b]);
        // Longer than the kernel takes to report the groups that it listens to (RFC 3810 §9.11).
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!((drops(&world, &a), drops(&world, &b)), (Drops::default(), Drops::default()));
        let listing = run("nft list ruleset");
        let counted = listing.lines().filter(|line| line.contains("packets") && !line.contains("packets 0"));
        assert_eq!(counted.collect::<Vec<_>>(), Vec::<&str>::new());
    });
}

#[test]
fn both_ends_are_as_documented_and_stay_so() {
    isolated(|| {
        let world = World::with(Duration::from_millis(200), overlay());
        let a = world.attach(7, "10.1.0.2");
        let addresses = a.space.run("ip -6 -o addr show eth0");
        assert!(
            addresses.contains("inet6 fd12:3456:789a:1::2/128") && !addresses.contains("fe80"),
            "{addresses}"
        );
        let routes = a.space.run("ip -6 route");
        let overlay = "fd12:3456:789a::/48 via fd12:3456:789a:1::1 dev eth0 proto static";
        assert!(routes.contains(overlay) && routes.contains("mtu 1416"), "{routes}");
        assert!(!routes.contains("default"), "{routes}");
        let bridge = || run("ip -6 -o addr show wherry0");
        assert!(
            bridge().contains("inet6 fd12:3456:789a:1::1/64") && !bridge().contains("fe80"),
            "{}",
            bridge()
        );
        assert_eq!(run("ip -6 -o addr show wv7"), "", "a port has no addresses");
        let neighbour = || run("ip -6 neigh show dev wherry0");
        assert!(
            neighbour().contains("fd12:3456:789a:1::2 lladdr 02:57:0a:01:00:02 PERMANENT"),
            "{}",
            neighbour()
        );
        run("ip -6 neigh del fd12:3456:789a:1::2 dev wherry0");
        run("ip -6 addr del fd12:3456:789a:1::1/64 dev wherry0");
        run("ip -6 neigh replace fd12:3456:789a:1::9 lladdr 02:00:00:00:00:09 dev wherry0");
        std::thread::sleep(Duration::from_secs(1));
        assert!(
            bridge().contains("fd12:3456:789a:1::1/64")
                && neighbour().contains("02:57:0a:01:00:02 PERMANENT")
        );
        assert!(!neighbour().contains("1::9"), "{}", neighbour());
        world.runtime.block_on(world.network.detach(ContainerId(7))).unwrap();
        assert_eq!(neighbour().trim(), "");
    });
}
