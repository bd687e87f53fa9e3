//! Addresses and default routes of interfaces in network namespaces: made so, left alone when they are so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod netns;

use netns::{isolated, run};
use std::net::Ipv4Addr;
use wherry_net::link::{Ethernet, Links};

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Runs `body` in a fresh namespace with `eth0` and `eth1`, both of them on.
fn with_interfaces(body: impl AsyncFnOnce(Links, Ethernet, Ethernet) + Send + 'static) {
    isolated(|| {
        for (name, peer) in [("eth0", "lan0"), ("eth1", "lan1")] {
            run(&format!("ip link add {name} type veth peer name {peer}"));
            run(&format!("ip link set {name} up"));
            run(&format!("ip link set {peer} up"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let links = Links::open().unwrap();
            let found = links.ethernets(|name| name.starts_with("eth")).await.unwrap();
            let [first, second] = <[Ethernet; 2]>::try_from(found).unwrap();
            assert!(first.up && second.up);
            body(links, first, second).await;
        });
    });
}

/// Address and prefix, each of them.
fn addresses(name: &str) -> Vec<String> {
    let text = run(&format!("ip -4 -o addr show dev {name}"));
    text.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect()
}

fn routes(words: &str) -> Vec<String> {
    run(&format!("ip -4 route show {words}")).lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn an_address_is_written_once_and_is_the_only_one() {
    with_interfaces(async |links, eth0, _| {
        let set = async |text: &str, prefix| links.set_address(&eth0, address(text), prefix).await.unwrap();
        assert!(set("192.168.50.12", 24).await);
        assert!(!set("192.168.50.12", 24).await, "it is so already");
        // The same address in a larger network.
        assert!(set("192.168.50.12", 23).await);
        assert_eq!(addresses("eth0"), ["192.168.50.12/23"]);
        assert_eq!(routes("proto kernel"), ["192.168.50.0/23 dev eth0 scope link src 192.168.50.12"]);
        assert!(!set("192.168.50.12", 23).await);
        // Another one of the same network, which would go with its elder one.
        assert!(set("192.168.51.7", 23).await);
        assert_eq!(addresses("eth0"), ["192.168.51.7/23"]);
        // Somebody else's, and an end to ours.
        run("ip addr add 203.0.113.5/24 dev eth0");
        run("ip addr change 192.168.51.7/23 dev eth0 valid_lft 900 preferred_lft 900");
        assert!(set("192.168.51.7", 23).await);
        assert_eq!(addresses("eth0"), ["192.168.51.7/23"]);
        assert!(run("ip addr show dev eth0").contains("valid_lft forever"));
        assert!(links.remove_addresses(&eth0).await.unwrap());
        assert!(!links.remove_addresses(&eth0).await.unwrap());
        assert_eq!(addresses("eth0"), [""; 0]);
    });
}

#[test]
fn the_way_out_is_written_once_and_is_the_only_one() {
    with_interfaces(async |links, eth0, eth1| {
        links.set_address(&eth0, address("192.168.50.12"), 24).await.unwrap();
        links.set_address(&eth1, address("192.168.60.12"), 24).await.unwrap();
        run("ip route add default via 192.168.60.1 metric 100");
        run("ip route add default via 192.168.60.1 table 7");
        let gateway = Some(address("192.168.50.1"));
        let set = async |gateway| links.set_gateway(&eth0, gateway, &[eth1.index]).await.unwrap();
        assert!(set(gateway).await);
        let ours = ["default via 192.168.50.1 dev eth0 proto static"];
        assert_eq!(routes("default"), ours);
        assert_eq!(routes("table 7").len(), 1, "not our table");
        assert!(!set(gateway).await, "it is so already");
        run("ip route replace default via 192.168.50.99");
        run("ip route add default via 192.168.50.98 metric 5");
        assert!(set(gateway).await);
        assert_eq!(routes("default"), ours);
        run("ip route del default");
        assert!(set(gateway).await);
        assert_eq!(routes("default"), ours);
        assert!(set(None).await);
        assert_eq!(routes("default"), [""; 0]);
        assert!(!set(None).await);
    });
}
