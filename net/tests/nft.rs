//! What our encoder sends is what `nft` reads back, for every golden ruleset.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod netns;

use netns::{attempt, isolated, run};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;
use wherry_net::address::{Overlay, Prefix};
use wherry_net::firewall::{Board, Container, Ports, Published, board, container, protect};
use wherry_net::nft::{
    Chain, Element, Family, Hook, KeyType, NftError, NftSocket, Policy, Rule, Ruleset, Set, Table, Value,
};
use wherry_protocol::message::{Connection, DropReason, Drops, Egress, Peer, Transport, WebCaller};
use wherry_protocol::{ContainerId, NodeIndex};

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn connection(from: (u64, &str), to: (u64, &str), transport: Transport, port: u16) -> Connection {
    Connection {
        from: ContainerId(from.0),
        from_address: address(from.1),
        to: ContainerId(to.0),
        to_address: address(to.1),
        port,
        transport,
    }
}

/// The listing without what has no meaning: the kernel keeps the elements of a set in no particular order.
fn normal(text: &str) -> String {
    let joined = text.replace(",\n\t\t\t     ", ", ");
    let line = |line: &str| match line.split_once("elements = { ") {
        Some((before, rest)) => {
            let elements: BTreeSet<_> = rest.trim_end_matches(" }").split(", ").collect();
            format!("{before}elements = {{ {} }}", elements.into_iter().collect::<Vec<_>>().join(", "))
        }
        None => line.to_owned(),
    };
    joined.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn read_back(ruleset: &Ruleset) {
    let ruleset = ruleset.clone();
    isolated(move || {
        let mut socket = NftSocket::open().unwrap();
        // Twice: replacing what is there must work as well as making it.
        for _ in 0..2 {
            socket.replace(&ruleset).unwrap();
            assert_eq!(normal(&run("nft -s list ruleset")), normal(&ruleset.to_string()));
        }
        run("nft -j list ruleset");
    });
}

fn full_board(containers: &BTreeMap<ContainerId, Ipv4Addr>) -> Ruleset {
    let peer =
        |index, underlay| Peer { index: NodeIndex(index), underlay: address(underlay), wireguard: None };
    let lan = Egress::Lan("192.168.50.16/28".parse().unwrap());
    let egress = [(ContainerId(7), vec![lan]), (ContainerId(8), vec![Egress::None])].into();
    board(&Board {
        ports: Ports::Broker,
        published: &[
            Published {
                transport: Transport::Tcp,
                port: 80,
                allow: vec![],
                to: Some((address("10.1.0.2"), 8080)),
            },
            Published {
                transport: Transport::Udp,
                port: 53,
                allow: vec!["192.168.50.0/24".parse().unwrap()],
                to: Some((address("10.1.0.3"), 5353)),
            },
        ],
        uplink: Some("eth0"),
        lan: &["192.168.50.12/24".parse::<Prefix>().unwrap(), "203.0.113.9/27".parse().unwrap()],
        overlay: Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]),
        index: Some(NodeIndex(1)),
        peers: &[peer(2, "192.168.50.13"), peer(3, "192.168.50.14")],
        connections: &[
            connection((7, "10.1.0.2"), (8, "10.1.0.3"), Transport::Tcp, 5432),
            connection((7, "10.1.0.2"), (9, "10.2.0.2"), Transport::Udp, 53),
        ],
        callers: &[WebCaller {
            container: ContainerId(7),
            address: address("10.1.0.2"),
            hosts: vec!["www.example.org".into()],
        }],
        containers,
        egress: &egress,
    })
}

#[test]
fn board_rules_read_back() {
    read_back(&full_board(
        &[(ContainerId(7), address("10.1.0.2")), (ContainerId(8), address("10.1.0.3"))].into(),
    ));
    read_back(&board(&Board {
        ports: Ports::Node,
        published: &[],
        uplink: None,
        lan: &[],
        overlay: Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]),
        index: None,
        peers: &[],
        connections: &[],
        callers: &[],
        containers: &BTreeMap::new(),
        egress: &BTreeMap::new(),
    }));
}

#[test]
fn container_rules_read_back() {
    let (me, near, far) = ((7, "10.1.0.2"), (8, "10.1.0.3"), (9, "10.2.0.2"));
    read_back(&container(&Container {
        id: ContainerId(7),
        address: address("10.1.0.2"),
        connections: &[connection(me, far, Transport::Tcp, 80), connection(near, me, Transport::Tcp, 5432)],
        callers: &[],
        overlay: Overlay::default().with_global([0x12, 0x34, 0x56, 0x78, 0x9a]),
        resolvers: &[address("10.1.0.1")],
        lan: &["192.168.50.12/24".parse().unwrap()],
        egress: &[Egress::Lan("192.168.50.16/28".parse().unwrap())],
        published: &[
            (Transport::Tcp, 80, vec![]),
            (Transport::Udp, 53, vec!["192.168.50.0/24".parse().unwrap()]),
        ],
    }));
}

#[test]
fn a_thousand_containers_fit_one_transaction() {
    let containers: BTreeMap<_, _> = (2..1002u64)
        .map(|id| (ContainerId(id), Ipv4Addr::from_bits(address("10.1.0.0").to_bits() + id as u32)))
        .collect();
    let ruleset = full_board(&containers);
    isolated(move || {
        NftSocket::open().unwrap().replace(&ruleset).unwrap();
        let listing = normal(&run("nft -s list ruleset"));
        assert_eq!(listing, normal(&ruleset.to_string()));
        assert_eq!(
            listing.matches("\"wv").count(),
            2002,
            "1000 elements of each kind and the two rules that ask for the prefix"
        );
    });
}

#[test]
fn a_broker_offers_its_ports_and_nothing_else() {
    isolated(|| {
        let open = |port| Published { transport: Transport::Tcp, port, allow: vec![], to: None };
        protect(Ports::Broker, &[open(25)]).unwrap();
        let router = netns::board_with_router();
        let board: Ipv4Addr = address(netns::BOARD);
        let _listening: Vec<_> =
            [22, 25, 2020, 2021].map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).into();
        let reach = |port| {
            let to = SocketAddr::from((board, port));
            router.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_ok()
        };
        assert!(reach(2020) && reach(2021) && reach(25) && !reach(22));
        protect(Ports::Broker, &[]).unwrap();
        assert!(!reach(25), "no longer published");
    });
}

fn small(rules: Vec<Rule>) -> Ruleset {
    let chains = vec![Chain::at(Hook::Input, Policy::Accept, "input", rules)];
    Ruleset { tables: vec![Table { family: Family::Inet, name: "wherry", sets: vec![], chains }] }
}

#[test]
fn a_refused_transaction_changes_nothing_and_says_where() {
    isolated(|| {
        let mut socket = NftSocket::open().unwrap();
        socket.replace(&small(vec![Rule::new().accept()])).unwrap();
        let before = run("nft list ruleset");
        let refused = socket.replace(&small(vec![Rule::new().accept(), Rule::new().jump("nowhere")]));
        assert!(matches!(refused, Err(NftError::Refused { .. })), "{refused:?}");
        assert_eq!(run("nft list ruleset"), before);
        // The socket is as good as before.
        socket.replace(&small(vec![Rule::new().drop(DropReason::Egress)])).unwrap();
        assert!(run("nft list ruleset").contains("drop"));
    });
}

#[test]
fn changed_elements_are_all_that_is_sent() {
    let containers =
        |ids: &[u64]| ids.iter().map(|id| (ContainerId(*id), Ipv4Addr::new(10, 1, 0, *id as u8))).collect();
    let (from, to) = (full_board(&containers(&[8, 11])), full_board(&containers(&[8, 9, 10])));
    isolated(move || {
        let handles = || run("nft -a list chain bridge wherry prerouting");
        let mut socket = NftSocket::open().unwrap();
        socket.replace(&from).unwrap();
        let before = handles();
        assert!(socket.change(&from, &to).unwrap());
        assert_eq!(normal(&run("nft -s list ruleset")), normal(&to.to_string()));
        assert_eq!(handles(), before, "the rules themselves were not touched");
        // The kernel has `to`, not `from`: what cannot be a change becomes a replacement.
        assert!(!socket.change(&from, &to).unwrap());
        socket.replace(&to).unwrap();
        assert_eq!(normal(&run("nft -s list ruleset")), normal(&to.to_string()));
        let other = small(vec![Rule::new().accept()]);
        assert!(!socket.change(&to, &other).unwrap());
        socket.replace(&other).unwrap();
        assert!(run("nft list chain inet wherry input").contains("accept"));
    });
}

#[test]
fn drops_are_counted_by_reason() {
    isolated(|| {
        run("ip link set lo up");
        let to_port = |port| Rule::new().port(Transport::Udp, port);
        let mut socket = NftSocket::open().unwrap();
        assert_eq!(socket.drops("wherry").unwrap(), Drops::default(), "no table yet");
        let rules = vec![
            to_port(7).drop(DropReason::Egress),
            to_port(8).drop(DropReason::Spoofed),
            Rule::new().accept(),
        ];
        socket.replace(&small(rules)).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [7, 8, 8, 9] {
            sender.send_to(b"x", ("127.0.0.1", port)).ok();
        }
        let expected = Drops { egress: 1, spoofed: 2, ..Drops::default() };
        assert_eq!(socket.drops("wherry").unwrap(), expected);
        assert!(run("nft list ruleset").contains("drop comment \"spoofed\""));
    });
}

#[test]
fn other_tables_are_left_alone() {
    isolated(|| {
        run("nft add table inet theirs");
        let mut socket = NftSocket::open().unwrap();
        socket.replace(&small(vec![Rule::new().accept()])).unwrap();
        assert!(run("nft list tables").contains("theirs"));
    });
}

#[test]
fn the_generation_changes_with_every_change() {
    isolated(|| {
        let mut socket = NftSocket::open().unwrap();
        socket.replace(&small(vec![])).unwrap();
        let ours = socket.generation().unwrap();
        assert_eq!(socket.generation().unwrap(), ours);
        assert!(attempt("nft delete table inet wherry").status.success());
        assert_ne!(socket.generation().unwrap(), ours);
    });
}

#[test]
fn large_sets_are_split() {
    let elements =
        (0..5000u32).map(|n| Element::new([Value::Ipv4(Ipv4Addr::from_bits(0x0a01_0000 + n))])).collect();
    let set = Set { name: "many", key: vec![KeyType::Ipv4], elements };
    let table = Table { family: Family::Inet, name: "wherry", sets: vec![set], chains: vec![] };
    isolated(move || {
        NftSocket::open().unwrap().replace(&Ruleset { tables: vec![table] }).unwrap();
        assert_eq!(run("nft list ruleset").matches("10.1.").count(), 5000);
    });
}

#[test]
fn the_documentation_shows_the_rules_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../docs/network.md")).unwrap();
    for name in ["container-connected.nft", "board-node.nft", "board-broker.nft"] {
        let rules = std::fs::read_to_string(root.join("tests/golden").join(name)).unwrap();
        assert!(document.contains(&rules), "docs/network.md does not show {name} as it is");
    }
}
