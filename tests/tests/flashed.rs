//! What `wherry flash` writes is what boards understand.
use std::net::Ipv4Addr;
use wherry_client::{BoardNetwork, ClusterSeed, SeedOptions};
use wherry_protocol::OsRandom;

#[test]
fn boards_understand_their_network() {
    let server = Ipv4Addr::new(192, 168, 50, 1);
    let node_network = BoardNetwork { vlan: Some(4094), dns: vec![server], ..BoardNetwork::default() };
    let options = SeedOptions {
        broker_network: BoardNetwork {
            interface: Some("dc:a6:32:01:02:03".into()),
            address: Some("192.168.50.2/24".into()),
            gateway: Some(server),
            ..node_network.clone()
        },
        node_network,
        ntp: vec![server],
        ..SeedOptions::new("shed".parse().unwrap(), 1)
    };
    let seed = ClusterSeed::generate(&options, 0, &mut OsRandom).unwrap();

    let broker = wherry_broker::config::Config::parse(&seed.broker_toml).unwrap();
    assert_eq!(broker.network.interface.unwrap().to_string(), "dc:a6:32:01:02:03");
    assert_eq!((broker.network.vlan, broker.network.dns), (Some(4094), vec![server]));
    assert_eq!((broker.network.fixed.unwrap().gateway, broker.ntp), (Some(server), vec![server]));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wherry.toml");
    std::fs::write(&path, &seed.node_tomls[0]).unwrap();
    let node = wherry_node::config::Config::read(&path).unwrap();
    assert_eq!((node.network.vlan, node.network.dns), (Some(4094), vec![server]));
    assert_eq!((node.network.fixed, node.network.interface, node.ntp), (None, None, vec![server]));
}
