//! A board's own network next to real DHCP servers (busybox's udhcpd; dnsmasq, which says no), in network namespaces: leases, their end, cables, VLANs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod netns;

use netns::{Space, attempt, isolated, run};
use std::net::Ipv4Addr;
use std::process::{Child, Command};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;
use wherry_net::setup::{Fixed, Uplink, Which, Wish, bring_up_among};

/// Patience for what takes a second on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// The interfaces that tests pretend to be the board's own.
fn ours(name: &str) -> bool {
    name.starts_with("eth")
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A cable from this namespace's `name` to a router of its own, with the address .1 of `net`.
fn cable(name: &str, net: &str) -> Space {
    let router = Space::new();
    run(&format!("ip link add {name} type veth peer name lan"));
    run(&format!("ip link set lan netns {}", router.path()));
    router.run(&format!("ip addr add {net}.1/24 dev lan"));
    router.run("ip link set lan up");
    router
}

/// udhcpd on a router; it forgets everything when it ends.
struct Dhcp {
    server: Child,
    _directory: TempDir,
}

impl Dhcp {
    /// Gives out exactly one address, `net.last`, for so many seconds.
    fn start(router: &Space, device: &str, net: &str, last: u8, seconds: u32) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let text = format!(
            "start {net}.{last}\nend {net}.{last}\ninterface {device}\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router {net}.1\noption dns {net}.1 {net}.3\noption lease {seconds}\n",
            path("leases"),
            path("pid"),
        );
        std::fs::write(directory.path().join("leases"), "").unwrap();
        std::fs::write(directory.path().join("config"), text).unwrap();
        let config = path("config");
        let server =
            router.enter(|| Command::new("busybox").args(["udhcpd", "-f", "-S"]).arg(config).spawn());
        Self { server: server.expect("busybox: `cargo xtask setup` installs it"), _directory: directory }
    }
}

impl Dhcp {
    /// dnsmasq on a router's `lan`, sure of itself: it gives out one address, to be renewed after four seconds.
    fn dnsmasq(router: &Space, text: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let leases = format!("--dhcp-leasefile={}", directory.path().join("leases").display());
        let range = format!("--dhcp-range={text},{text},255.255.255.0,2m");
        let fixed = "--keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --port=0 --interface=lan \
                     --log-facility=- --bind-interfaces --dhcp-authoritative --no-ping --dhcp-option=58,4 --dhcp-option=59,100";
        let words: Vec<&str> = fixed.split(' ').chain([leases.as_str(), &range]).collect();
        let server = router.enter(|| Command::new("dnsmasq").args(words).spawn());
        Self { server: server.expect("dnsmasq: `cargo xtask setup` installs it"), _directory: directory }
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// Runs `body` in a namespace that is the board, with a runtime that stays in it.
fn board(body: impl AsyncFnOnce() + Send + 'static) {
    isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(body());
    });
}

type Watch = watch::Receiver<Option<Uplink>>;

async fn until(uplink: &mut Watch, what: &str, is: impl FnMut(&Option<Uplink>) -> bool) -> Option<Uplink> {
    let found = timeout(SOON, uplink.wait_for(is)).await.map(|found| found.unwrap().clone());
    found.unwrap_or_else(|_| panic!("{what}: {:?}\n{}", uplink.borrow(), run("ip addr") + &run("ip route")))
}

async fn until_at(uplink: &mut Watch, interface: &str, text: &str) -> Uplink {
    let wanted = address(text);
    let is = |up: &Option<Uplink>| {
        up.as_ref().is_some_and(|up| up.interface == interface && up.lease.address == wanted)
    };
    until(uplink, &format!("{interface} at {text}"), is).await.unwrap()
}

/// Waits for the kernel to have it so.
async fn until_kernel(what: &str, is: impl Fn() -> bool) {
    for _ in 0..SOON.as_millis() / 20 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}\n{}", run("ip addr") + &run("ip route"));
}

fn default_route() -> String {
    run("ip route show default").trim().to_owned()
}

fn has_address(device: &str, text: &str) -> bool {
    run(&format!("ip -4 -o addr show dev {device}")).contains(&format!(" {text}/"))
}

#[test]
fn a_lease_is_renewed_and_ends_with_its_server() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        let server = Dhcp::start(&router, "lan", "192.168.50", 12, 6);
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        let up = until_at(&mut uplink, "eth0", "192.168.50.12").await;
        assert_eq!((up.lease.prefix, up.lease.gateway), (24, Some(address("192.168.50.1"))));
        assert_eq!(up.lease.dns, ["192.168.50.1", "192.168.50.3"].map(address));
        assert!(default_route().starts_with("default via 192.168.50.1 dev eth0"), "{}", default_route());
        // Longer than the lease: without renewals it would be over.
        uplink.mark_unchanged();
        assert!(timeout(Duration::from_secs(9), uplink.changed()).await.is_err(), "{:?}", uplink.borrow());
        drop(server);
        until(&mut uplink, "the lease is over", Option::is_none).await;
        until_kernel("no address any more", || !has_address("eth0", "192.168.50.12")).await;
        assert_eq!(default_route(), "");
        let _other = Dhcp::start(&router, "lan", "192.168.50", 13, 600);
        until_at(&mut uplink, "eth0", "192.168.50.13").await;
    });
}

#[test]
fn a_server_that_says_no_is_obeyed() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        let server = Dhcp::dnsmasq(&router, "192.168.50.12");
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.12").await;
        drop(server);
        // It has never given out .12, and says so when the board wants to keep it. Else the lease would last for two minutes.
        let _other = Dhcp::dnsmasq(&router, "192.168.50.77");
        until_at(&mut uplink, "eth0", "192.168.50.77").await;
        assert!(!has_address("eth0", "192.168.50.12"));
    });
}

#[test]
fn a_cable_that_comes_back_brings_address_and_routes() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        let server = Dhcp::start(&router, "lan", "192.168.50", 12, 600);
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.12").await;
        for _ in 0..3 {
            router.run("ip link set lan down");
            tokio::time::sleep(Duration::from_millis(300)).await;
            router.run("ip link set lan up");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(has_address("eth0", "192.168.50.12"), "sessions keep their address");
        // Down as a driver takes it down: the kernel forgets its routes, and the packet socket fails.
        run("ip link set eth0 down");
        assert_eq!(default_route(), "");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        run("ip link set eth0 up");
        until_kernel("the route is back", || default_route().contains("via 192.168.50.1 dev eth0")).await;
        assert!(uplink.borrow().is_some());
        // In another network now: the board learns it at once, not after half of its lease.
        router.run("ip link set lan down");
        drop(server);
        router.run("ip addr add 172.20.0.1/24 dev lan");
        let _other = Dhcp::start(&router, "lan", "172.20.0", 5, 600);
        tokio::time::sleep(Duration::from_millis(300)).await;
        router.run("ip link set lan up");
        until_at(&mut uplink, "eth0", "172.20.0.5").await;
        assert!(!has_address("eth0", "192.168.50.12"));
        until_kernel("its route", || default_route().contains("via 172.20.0.1 dev eth0")).await;
    });
}

#[test]
fn of_two_networks_one_leads_and_the_other_stands_in() {
    board(async || {
        let first = cable("eth0", "192.168.50");
        let second = cable("eth1", "192.168.60");
        let _first = Dhcp::start(&first, "lan", "192.168.50", 12, 600);
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.12").await;
        let _second = Dhcp::start(&second, "lan", "192.168.60", 12, 600);
        until_kernel("eth1 has its address", || has_address("eth1", "192.168.60.12")).await;
        assert_eq!(uplink.borrow().as_ref().unwrap().interface, "eth0");
        assert!(default_route().starts_with("default via 192.168.50.1 dev eth0"), "{}", default_route());
        assert_eq!(default_route().lines().count(), 1);
        first.run("ip link set lan down");
        until_at(&mut uplink, "eth1", "192.168.60.12").await;
        until_kernel("one way out", || {
            default_route().starts_with("default via 192.168.60.1 dev eth1")
                && default_route().lines().count() == 1
        })
        .await;
        assert!(!has_address("eth0", "192.168.50.12"), "nothing is sent into the void");
        first.run("ip link set lan up");
        until_kernel("eth0 is back", || has_address("eth0", "192.168.50.12")).await;
        assert_eq!(uplink.borrow().as_ref().unwrap().interface, "eth1", "no change without need");
    });
}

/// Undoes what the board has made, as somebody at its console may, and waits until it is made again.
async fn meddle(device: &str, at: &str, router: &str) {
    let way_out = || default_route().starts_with(&format!("default via {router} dev {device}"));
    let whole = || has_address(device, at) && way_out() && default_route().lines().count() == 1;
    until_kernel("all as it should be", whole).await;
    for command in [
        "ip route del default".to_owned(),
        format!("ip route replace default via {router} dev {device} metric 7"),
        format!("ip addr flush dev {device}"),
        format!("ip link set {device} down"),
        format!("ip addr add 203.0.113.9/24 dev {device}"),
    ] {
        run(&command);
        until_kernel(&command, || whole() && !has_address(device, "203.0.113.9")).await;
    }
}

#[test]
fn what_others_change_is_changed_back() {
    board(async || {
        let _fixed = cable("eth0", "192.168.50");
        let fixed =
            Fixed { address: address("192.168.50.9"), prefix: 24, gateway: Some(address("192.168.50.1")) };
        let wish = Wish { fixed: Some(fixed), ..Wish::default() };
        let mut uplink = bring_up_among(wish, ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.9").await;
        meddle("eth0", "192.168.50.9", "192.168.50.1").await;
    });
    board(async || {
        let router = cable("eth0", "192.168.50");
        let _server = Dhcp::start(&router, "lan", "192.168.50", 12, 600);
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.12").await;
        meddle("eth0", "192.168.50.12", "192.168.50.1").await;
    });
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        let _server = Dhcp::start(&router, "lan", "192.168.50", 12, 600);
        let mut uplink = bring_up_among(Wish::default(), ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.12").await;
        // Whatever is still on its way.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("seen");
        let mut monitor = Command::new("ip")
            .args(["-4", "monitor", "link", "address", "route"])
            .stdout(std::fs::File::create(&path).unwrap())
            .spawn()
            .unwrap();
        // Longer than between two looks without need.
        tokio::time::sleep(Duration::from_secs(12)).await;
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    });
}

#[test]
fn a_fixed_address_stays_where_it_is_when_a_step_fails() {
    board(async || {
        let _other = cable("eth1", "192.168.60");
        // It cannot be switched on while somebody else has its port.
        let port = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
        run("ip link add eth0 type vxlan id 5 dstport 4789");
        assert!(!attempt("ip link set eth0 up").status.success());
        let fixed =
            Fixed { address: address("192.168.50.9"), prefix: 24, gateway: Some(address("192.168.50.1")) };
        let wish = Wish { fixed: Some(fixed), ..Wish::default() };
        let mut uplink = bring_up_among(wish, ours).unwrap();
        until_at(&mut uplink, "eth0", "192.168.50.9").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!has_address("eth1", "192.168.50.9"));
        assert_eq!(default_route(), "");
        drop(port);
        until_kernel("all as it should be", || {
            has_address("eth0", "192.168.50.9") && default_route().contains("via 192.168.50.1 dev eth0")
        })
        .await;
        assert!(!has_address("eth1", "192.168.50.9"));
    });
}

#[test]
fn the_interface_that_is_named_leads() {
    board(async || {
        let first = cable("eth0", "192.168.50");
        let _first = Dhcp::start(&first, "lan", "192.168.50", 12, 600);
        let mac = [2, 0, 0, 0, 0, 9];
        let wish = Wish { interface: Some(Which::Mac(mac)), ..Wish::default() };
        let mut uplink = bring_up_among(wish, ours).unwrap();
        until_kernel("eth0 has its address", || has_address("eth0", "192.168.50.12")).await;
        assert_eq!(*uplink.borrow(), None, "not the one that was named");
        // It is plugged in late.
        let second = cable("late", "192.168.60");
        run("ip link set late address 02:00:00:00:00:09");
        let _second = Dhcp::start(&second, "lan", "192.168.60", 12, 600);
        run("ip link set late name eth1");
        until_at(&mut uplink, "eth1", "192.168.60.12").await;
        // And pulled out, with all that it had.
        run("ip link del eth1");
        until(&mut uplink, "gone", Option::is_none).await;
    });
}

#[test]
#[ignore = "needs a kernel with 802.1Q, as the boards have: tests/overlay.rs runs it in a guest"]
fn a_fixed_address_on_a_vlan() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        router.run("ip link add link lan name lan5 type vlan id 5");
        router.run("ip addr add 192.168.70.1/24 dev lan5");
        router.run("ip link set lan5 up");
        // On the wire itself there is DHCP too, and nobody is to ask for it.
        let _server = Dhcp::start(&router, "lan", "192.168.50", 12, 600);
        let gateway = Some(address("192.168.70.1"));
        let wish = Wish {
            vlan: Some(5),
            fixed: Some(Fixed { address: address("192.168.70.9"), prefix: 24, gateway }),
            dns: vec![address("9.9.9.9")],
            ..Wish::default()
        };
        let mut uplink = bring_up_among(wish.clone(), ours).unwrap();
        let up = until_at(&mut uplink, "vlan5", "192.168.70.9").await;
        assert_eq!((up.lease.dns, up.lease.gateway), (wish.dns.clone(), gateway));
        until_kernel("a way out", || default_route().starts_with("default via 192.168.70.1 dev vlan5")).await;
        assert!(attempt("ping -c 1 -W 5 192.168.70.1").status.success());
        run("ip link set eth0 down");
        assert_eq!(default_route(), "");
        run("ip link set eth0 up");
        until_kernel("the way out is back", || default_route().contains("dev vlan5")).await;
        assert!(attempt("ping -c 1 -W 5 192.168.70.1").status.success());
        assert!(!has_address("eth0", "192.168.50.12"));
        // Somebody takes it away.
        run("ip link del vlan5");
        until_kernel("the VLAN is back", || default_route().contains("via 192.168.70.1 dev vlan5")).await;
        assert!(has_address("vlan5", "192.168.70.9"));
        // A service that starts again finds its VLAN there.
        let mut again = bring_up_among(wish, ours).unwrap();
        until_at(&mut again, "vlan5", "192.168.70.9").await;
    });
}

#[test]
#[ignore = "needs a kernel with 802.1Q, as the boards have: tests/overlay.rs runs it in a guest"]
fn dhcp_on_a_vlan_with_name_servers_of_ones_own() {
    board(async || {
        let router = cable("eth0", "192.168.50");
        router.run("ip link add link lan name lan7 type vlan id 7");
        router.run("ip addr add 192.168.77.1/24 dev lan7");
        router.run("ip link set lan7 up");
        let _server = Dhcp::start(&router, "lan7", "192.168.77", 12, 600);
        let wish = Wish {
            interface: Some(Which::Name("eth0".into())),
            vlan: Some(7),
            dns: vec![address("9.9.9.9")],
            ..Wish::default()
        };
        let mut uplink = bring_up_among(wish, ours).unwrap();
        let up = until_at(&mut uplink, "vlan7", "192.168.77.12").await;
        assert_eq!(up.lease.dns, [address("9.9.9.9")]);
    });
}
