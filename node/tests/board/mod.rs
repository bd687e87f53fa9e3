//! A board in a namespace that simulates it, and containers on it.
#![allow(dead_code, reason = "every test file uses its own part of this")]
use crate::netns::{BOARD, ROUTER, Space, board_with_router, run, wait_for_carrier};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tokio::runtime::Runtime;
use wherry_net::dhcp::Lease;
use wherry_net::setup::Uplink;
use wherry_node::net::{LocalContainer, NetConfig, Network};
use wherry_protocol::message::{Connection, Egress, NetworkDesired, Transport};
use wherry_protocol::{ContainerId, NodeIndex, Overlay};

/// Longer than any packet takes here, shorter than anybody's patience.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// A board with its network started, in the calling thread's namespace.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) network: Network,
    pub(crate) router: Space,
    pub(crate) revision: u64,
}

pub(crate) struct Cell {
    pub(crate) space: Space,
    pub(crate) container: LocalContainer,
}

pub(crate) fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(crate) fn uplink() -> Uplink {
    let lease = Lease {
        address: address(BOARD),
        prefix: 24,
        gateway: Some(address(ROUTER)),
        dns: vec![address(ROUTER)],
        ntp: vec![],
    };
    Uplink { interface: "eth0".into(), lease }
}

pub(crate) fn start(reconcile: Duration, overlay: Overlay) -> (Runtime, Network) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let network = Network::new(NetConfig { reconcile }).unwrap();
    runtime.block_on(network.set_uplink(Some(uplink()))).unwrap();
    runtime.block_on(network.start(NodeIndex(1), overlay)).unwrap();
    (runtime, network)
}

impl World {
    /// Nothing is looked after unasked: some tests break things on purpose.
    pub(crate) fn new() -> Self {
        Self::looked_after(Duration::from_secs(3600))
    }

    pub(crate) fn looked_after(reconcile: Duration) -> Self {
        Self::with(reconcile, Overlay::default())
    }

    pub(crate) fn with(reconcile: Duration, overlay: Overlay) -> Self {
        let router = board_with_router();
        let (runtime, network) = start(reconcile, overlay);
        Self { runtime, network, router, revision: 0 }
    }

    pub(crate) fn attach(&self, id: u64, ip: &str) -> Cell {
        self.attach_with(id, ip, &[Egress::Internet])
    }

    pub(crate) fn attach_with(&self, id: u64, ip: &str, egress: &[Egress]) -> Cell {
        let (id, address, egress) = (ContainerId(id), address(ip), egress.to_vec());
        self.attach_one(LocalContainer { id, address, egress, published: vec![] })
    }

    pub(crate) fn attach_one(&self, container: LocalContainer) -> Cell {
        let space = Space::new();
        let id = container.id.0;
        self.runtime.block_on(self.network.attach(container.clone(), space.fd())).unwrap();
        for device in ["wherry0", &format!("wv{id}")] {
            wait_for_carrier(device);
        }
        space.enter(|| wait_for_carrier("eth0"));
        Cell { space, container }
    }

    pub(crate) fn apply(&mut self, connections: &[Connection], cells: &[&Cell]) {
        self.revision += 1;
        let wanted = NetworkDesired {
            revision: self.revision,
            peers: vec![],
            connections: connections.to_vec(),
            ..NetworkDesired::default()
        };
        let containers: Vec<_> = cells.iter().map(|cell| cell.container.clone()).collect();
        self.runtime.block_on(self.network.apply(&wanted, &containers)).unwrap();
    }
}

pub(crate) fn allow(from: &Cell, to: &Cell, transport: Transport, port: u16) -> Connection {
    Connection {
        from: from.container.id,
        from_address: from.container.address,
        to: to.container.id,
        to_address: to.container.address,
        port,
        transport,
    }
}

impl Cell {
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.space.enter(|| TcpListener::bind(("0.0.0.0", port)).unwrap())
    }

    pub(crate) fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.space.enter(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        socket.set_read_timeout(Some(SHORT)).unwrap();
        socket
    }

    pub(crate) fn dial(&self, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        let to = SocketAddr::V4(SocketAddrV4::new(to, port));
        self.space.enter(|| TcpStream::connect_timeout(&to, SHORT))
    }

    pub(crate) fn reaches(&self, to: &Cell, port: u16) -> bool {
        self.dial(to.container.address, port).is_ok()
    }

    /// What a container could do that broke out of its own rules.
    pub(crate) fn break_out(&self) {
        self.space.run("nft delete table inet wherry");
    }
}

pub(crate) fn heard(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 100]).ok().map(|(_, from)| from)
}

pub(crate) fn says(stream: &mut TcpStream, peer: &mut TcpStream, word: &[u8]) -> bool {
    peer.set_read_timeout(Some(SHORT)).unwrap();
    stream.write_all(word).unwrap();
    peer.read_exact(&mut vec![0; word.len()]).is_ok()
}

/// What the board's rules have dropped for this reason, read from the kernel.
pub(crate) fn board_drops(reason: &str) -> u64 {
    let listing = run("nft list ruleset");
    let lines = listing.lines().filter(|line| line.contains(&format!("comment \"{reason}\"")));
    lines.filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Sends a whole Ethernet frame through a device of a namespace.
pub(crate) fn send_frame_through(space: &Space, device: &str, frame: &[u8]) {
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let program = format!(
        "import socket;s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind(('{device}',0));s.send(bytes.fromhex('{hex}'))"
    );
    let sent = space.enter(|| std::process::Command::new("python3").args(["-c", &program]).status());
    assert!(sent.unwrap().success());
}

/// The same through `eth0`.
pub(crate) fn send_frame(space: &Space, frame: &[u8]) {
    send_frame_through(space, "eth0", frame);
}

/// The checksum of the internet (RFC 1071), over what has an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An ICMPv6 message with its checksum filled in, in an Ethernet frame.
pub(crate) fn icmpv6_frame(
    mac: [u8; 6],
    to: [u8; 6],
    sender: Ipv6Addr,
    receiver: Ipv6Addr,
    mut icmp: Vec<u8>,
) -> Vec<u8> {
    let length = (icmp.len() as u32).to_be_bytes();
    let pseudo = [&sender.octets()[..], &receiver.octets(), &length, &[0, 0, 0, 58], &icmp].concat();
    icmp[2..4].copy_from_slice(&checksum(&pseudo));
    let head = [0x86, 0xdd, 0x60, 0, 0, 0, length[2], length[3], 58, 255];
    [&to[..], &mac, &head, &sender.octets(), &receiver.octets(), &icmp].concat()
}

/// A UDP datagram (without the checksum that IPv4 leaves out, RFC 768) in an Ethernet frame.
pub(crate) fn udp_frame(
    mac: [u8; 6],
    to: [u8; 6],
    from: SocketAddrV4,
    at: SocketAddrV4,
    data: &[u8],
) -> Vec<u8> {
    let udp_bytes = (8 + data.len()) as u16;
    let mut head = [&[0x45, 0][..], &(20 + udp_bytes).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    head.extend([from.ip().octets(), at.ip().octets()].concat());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    let udp = [from.port().to_be_bytes(), at.port().to_be_bytes(), udp_bytes.to_be_bytes(), [0, 0]].concat();
    [&to[..], &mac, &[8, 0], &head, &udp, data].concat()
}
