//! What it takes to allow one more connection between two containers of a board, and to take it away again, beside few and many
//! others: the node's network as its agent calls it, from "wanted" to "the kernel has it in all three rulesets" (both containers'
//! and the board's); next to `nft add element` and `nft delete element` by Debian's nft for one set of the same size. In turns,
//! each in network namespaces of its own.
//! `cargo bench -p wherry-node --bench rules`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "../../net/tests/netns/mod.rs"]
mod netns;
#[allow(dead_code, unreachable_pub, reason = "each benchmark uses its part")]
#[path = "ground/times.rs"]
mod times;

use netns::{BOARD, ROUTER, Space, board_with_router};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use times::Times;
use tokio::runtime::Runtime;
use wherry_net::dhcp::Lease;
use wherry_net::setup::Uplink;
use wherry_node::net::{LocalContainer, NetConfig, Network};
use wherry_protocol::message::{Connection, Egress, NetworkDesired, Transport};
use wherry_protocol::{ContainerId, NodeIndex, Overlay};

/// Connections that are there before.
const EXISTING: [u16; 3] = [1, 100, 1000];
const RUNS: u64 = 200;
/// Of the connection that comes and goes.
const PORT: u16 = 80;
/// Longer than a packet takes.
const SHORT: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("nft is missing: install the Debian package nftables");
        return ExitCode::FAILURE;
    }
    let mut sides: Vec<(Board, Peer)> =
        EXISTING.into_iter().map(|existing| (Board::new(existing), Peer::new(existing))).collect();
    let mut times: [[Times; 4]; EXISTING.len()] = Default::default();
    for (board, _) in &mut sides {
        board.prove();
    }
    for _ in 0..RUNS {
        for ((board, peer), times) in sides.iter_mut().zip(&mut times) {
            times[0].push(board.change(true));
            times[1].push(board.change(false));
            times[2].push(peer.change("add"));
            times[3].push(peer.change("delete"));
        }
    }
    let first: Vec<f64> = times[0].iter().map(Times::median).collect();
    for (existing, times) in EXISTING.into_iter().zip(&times) {
        let names = ["wherry connect", "wherry disconnect", "nft add element", "nft delete element"];
        for (at, (name, of)) in names.into_iter().zip(times).enumerate() {
            println!(
                "{existing:5} connections: {name:18} {}; {:5.2} x wherry, {:4.2} x beside {}",
                of.shown(),
                of.median() / times[at % 2].median(),
                of.median() / first[at],
                EXISTING[0]
            );
        }
    }
    println!(
        "wherry: three rulesets in three namespaces, within the running service; nft: one set, its process included; {RUNS} runs in turns"
    );
    ExitCode::SUCCESS
}

/// A board with two containers.
struct Board {
    runtime: Runtime,
    network: Network,
    containers: [LocalContainer; 2],
    cells: [Space; 2],
    existing: u16,
    revision: u64,
    _board: Space,
    _router: Space,
}

fn uplink() -> Uplink {
    let address = |text: &str| text.parse().unwrap();
    let lease = Lease {
        address: address(BOARD),
        prefix: 24,
        gateway: Some(address(ROUTER)),
        dns: vec![],
        ntp: vec![],
    };
    Uplink { interface: "eth0".into(), lease }
}

impl Board {
    fn new(existing: u16) -> Self {
        let board = Space::new();
        // Nothing is looked after unasked.
        let config = NetConfig { reconcile: Duration::from_secs(3600) };
        let (router, network) = board.enter(|| (board_with_router(), Network::new(config).unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let containers = [2, 3].map(|number| LocalContainer {
            id: ContainerId(number),
            address: Ipv4Addr::new(10, 1, 0, number as u8),
            egress: vec![Egress::Internet],
            published: vec![],
        });
        let cells = [Space::new(), Space::new()];
        runtime.block_on(async {
            network.set_uplink(Some(uplink())).await.unwrap();
            network.start(NodeIndex(1), Overlay::default()).await.unwrap();
            for (container, cell) in containers.iter().zip(&cells) {
                network.attach(container.clone(), cell.fd()).await.unwrap();
            }
        });
        Self { runtime, network, containers, cells, existing, revision: 0, _board: board, _router: router }
    }

    /// Asks for all connections that shall be there, as the broker does; until the kernel has them.
    fn change(&mut self, connected: bool) -> Duration {
        self.revision += 1;
        let [from, to] = &self.containers;
        let others = (0..self.existing).map(|number| 10_000 + number);
        let connections = others.chain(connected.then_some(PORT)).map(|port| Connection {
            from: from.id,
            from_address: from.address,
            to: to.id,
            to_address: to.address,
            port,
            transport: Transport::Tcp,
        });
        let wanted = NetworkDesired {
            revision: self.revision,
            peers: vec![],
            connections: connections.collect(),
            ..NetworkDesired::default()
        };
        let before = Instant::now();
        self.runtime.block_on(self.network.apply(&wanted, &self.containers)).unwrap();
        before.elapsed()
    }

    /// The change that is measured is one that packets notice.
    fn prove(&mut self) {
        let _listener = self.cells[1].enter(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
        let to = SocketAddr::from((self.containers[1].address, PORT));
        let reached = |cell: &Space| cell.enter(|| TcpStream::connect_timeout(&to, SHORT).is_ok());
        self.change(false);
        assert!(!reached(&self.cells[0]), "open before a connection");
        self.change(true);
        assert!(reached(&self.cells[0]), "closed in spite of a connection");
        self.change(false);
        assert!(!reached(&self.cells[0]), "open after a connection");
    }
}

/// The same set as a board's, changed by the nft program.
struct Peer(Space);

impl Peer {
    fn new(existing: u16) -> Self {
        let space = Space::new();
        space.run("nft add table inet peer");
        let mut text =
            "add set inet peer connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }\n"
                .to_owned();
        for number in 0..existing {
            let port = 10_000 + number;
            writeln!(text, "add element inet peer connections {{ 10.1.0.2 . 10.1.0.3 . tcp . {port} }}")
                .unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        space.run(&format!("nft -f {}", file.path().display()));
        Self(space)
    }

    fn change(&self, verb: &str) -> Duration {
        let command =
            format!("nft {verb} element inet peer connections {{ 10.1.0.2 . 10.1.0.3 . tcp . {PORT} }}");
        self.0.enter(|| {
            let before = Instant::now();
            netns::run(&command);
            before.elapsed()
        })
    }
}
