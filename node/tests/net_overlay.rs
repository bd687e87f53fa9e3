//! Two boards and the tunnel between them. GRE is a property of the kernel: `tests/tests/overlay.rs` runs these, ignored
//! here, in a guest with the boards' kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#[path = "../../net/tests/netns/mod.rs"]
mod netns;

use netns::{Space, isolated, run, wait_for_carrier};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tokio::runtime::Runtime;
use wherry_net::dhcp::Lease;
use wherry_net::setup::Uplink;
use wherry_node::net::{LocalContainer, NetConfig, Network};
use wherry_protocol::message::{Connection, NetworkDesired, Peer, Transport};
use wherry_protocol::{ContainerId, NodeIndex};

/// Longer than any packet takes, also under emulation.
const SHORT: Duration = Duration::from_secs(2);

struct Board {
    space: Space,
    network: Network,
    runtime: Runtime,
    container: LocalContainer,
    cell: Space,
}

fn underlay(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, 10 + index)
}

fn uplink(index: u8) -> Uplink {
    let lease = Lease { address: underlay(index), prefix: 24, gateway: None, dns: vec![] };
    Uplink { interface: "eth0".into(), lease }
}

impl Board {
    /// A board with the number `index` and one container, 10.N.0.2, in a namespace that already has its `eth0`.
    fn new(space: Space, index: u8) -> Self {
        space.run(&format!("ip addr add {}/24 dev eth0", underlay(index)));
        space.run("ip link set eth0 up");
        let config = NetConfig { reconcile: Duration::from_millis(200) };
        let network = space.enter(|| Network::new(config)).unwrap();
        assert!(network.facts().overlay, "this kernel has no GRE");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let container =
            LocalContainer { id: ContainerId(index.into()), address: Ipv4Addr::new(10, index, 0, 2) };
        let cell = Space::new();
        runtime.block_on(async {
            network.set_uplink(Some(uplink(index))).await.unwrap();
            network.start(NodeIndex(index)).await.unwrap();
            network.attach(container, cell.fd()).await.unwrap();
        });
        cell.enter(|| wait_for_carrier("eth0"));
        Self { space, network, runtime, container, cell }
    }

    fn apply(&self, peers: &[u8], connections: &[Connection]) {
        let peer =
            |index: &u8| Peer { index: NodeIndex(*index), underlay: underlay(*index), wireguard: None };
        let wanted = NetworkDesired {
            revision: 1,
            peers: peers.iter().map(peer).collect(),
            connections: connections.to_vec(),
        };
        self.runtime.block_on(self.network.apply(&wanted, &[self.container])).unwrap();
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

fn allow(from: LocalContainer, to: LocalContainer, transport: Transport, port: u16) -> Connection {
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
        let connection = allow(one.container, two.container, Transport::Tcp, 80);
        one.apply(&[2], &[connection]);
        two.apply(&[1], &[connection]);
        for board in [&one, &two] {
            board.space.run("ip link set eth0 mtu 1300");
        }
        std::thread::sleep(Duration::from_secs(1));
        assert!(one.space.run("ip link show gre-2").contains("mtu 1276"));
        assert!(one.cell.run("ip link show eth0").contains("mtu 1300"));
        assert!(one.cell.run("ip route").contains("mtu 1276"));
        transfer(&one, &two, 80, 1 << 20);
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn containers_of_two_boards_reach_each_other_as_allowed() {
    isolated(|| {
        let (one, two) = two_boards();
        let _other = two.cell.enter(|| TcpListener::bind("0.0.0.0:81").unwrap());
        let connection = allow(one.container, two.container, Transport::Tcp, 80);
        one.apply(&[2], &[]);
        two.apply(&[1], &[]);
        assert!(one.dial(&two, 81).is_err(), "a tunnel alone opens nothing");
        one.apply(&[2], &[connection]);
        two.apply(&[1], &[connection]);
        transfer(&one, &two, 80, 1 << 20);
        assert!(one.dial(&two, 81).is_err(), "another port");
        let tunnel = one.space.run("ip -d link show gre-2");
        assert!(
            tunnel.contains("mtu 1476") && tunnel.contains("remote 192.168.50.12 local 192.168.50.11"),
            "{tunnel}"
        );
        one.apply(&[], &[]);
        assert!(!one.space.run("ip link").contains("gre-2"), "a tunnel that nobody needs is gone");
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_smaller_network_between_the_boards_is_noticed() {
    isolated(|| {
        let (one, two) = two_boards();
        let connection = allow(one.container, two.container, Transport::Tcp, 80);
        one.apply(&[2], &[connection]);
        two.apply(&[1], &[connection]);
        for (board, peer) in [(&one, underlay(2)), (&two, underlay(1))] {
            board.space.run(&format!("ip route add {peer} dev eth0 mtu 1300"));
        }
        // The containers believe in 1476: "fragmentation needed" from the board must reach them.
        assert!(one.cell.run("ip route").contains("mtu 1476"));
        transfer(&one, &two, 80, 1 << 20);
        assert!(one.cell.run("ip route get 10.2.0.2").contains("mtu 1276"), "learnt from the board");
    });
}

#[test]
#[ignore = "needs a kernel with GRE, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_tunnel_carries_its_own_board_s_addresses_only() {
    isolated(|| {
        let (one, two) = two_boards();
        let third = LocalContainer { id: ContainerId(3), address: Ipv4Addr::new(10, 3, 0, 2) };
        let connections = [
            allow(two.container, one.container, Transport::Udp, 53),
            allow(third, one.container, Transport::Udp, 53),
        ];
        one.apply(&[2, 3], &connections);
        two.apply(&[1], &connections[..1]);
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
        let connection = allow(one.container, two.container, Transport::Tcp, 80);
        one.apply(&[2], &[connection]);
        two.apply(&[1], &[connection]);
        transfer(&one, &two, 80, 1000);
        two.space.run("ip addr add 192.168.50.99/24 dev eth0");
        let mut moved = uplink(2);
        moved.lease.address = Ipv4Addr::new(192, 168, 50, 99);
        two.runtime.block_on(two.network.set_uplink(Some(moved.clone()))).unwrap();
        let peer = Peer { index: NodeIndex(2), underlay: moved.lease.address, wireguard: None };
        let wanted = NetworkDesired { revision: 2, peers: vec![peer], connections: vec![connection] };
        one.runtime.block_on(one.network.apply(&wanted, &[one.container])).unwrap();
        transfer(&one, &two, 80, 1000);
    });
}
