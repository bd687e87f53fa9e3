//! Two real guests on a segment: DHCP from the built-in server, pings through the switch, faults, QMP, power cut.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use wherry_qemu::machine::Forward;
use wherry_qemu::qmp::Status;
use wherry_qemu::{
    Arch, Counters, Disk, Faults, Host, Lan, Mac, Machine, Nic, Running, Segment, accelerator_for,
};
use wherry_tests::given;
use wherry_tests::guest::initrd;

const BOOT: Duration = Duration::from_secs(60);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);

fn image_arch(arch: Arch) -> wherry_images::disk::Arch {
    match arch {
        Arch::X86_64 => wherry_images::disk::Arch::X86_64,
        Arch::Aarch64 => wherry_images::disk::Arch::Aarch64,
    }
}

struct World {
    directory: tempfile::TempDir,
    segment: Segment,
    arch: Arch,
}

impl World {
    fn new(arch: Arch) -> Self {
        let mut segment = Segment::new(1).unwrap();
        let leases = (1..=9).map(|n| (Mac::local(1, n), Ipv4Addr::new(192, 168, 50, 10 + n)));
        let leases: BTreeMap<_, _> = leases.collect();
        segment.serve(Lan { gateway: GATEWAY, prefix_length: 24, dns: None, lease_seconds: 3600, leases });
        Self { directory: tempfile::tempdir().unwrap(), segment, arch }
    }

    /// Where the forwarded port of a guest is: tests run side by side, so each architecture has its own.
    fn loopback(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 99, self.arch as u8, number)
    }

    fn kernel(&self) -> PathBuf {
        given::kernel(image_arch(self.arch)).unwrap()
    }

    /// A guest with two disks (1 and 2 MiB) and a second card, so that their order shows.
    fn machine(&mut self, number: u8, script: &str) -> (Machine, wherry_qemu::Port) {
        let (port, nic) = self.segment.plug(Mac::local(1, number)).unwrap();
        let file = |name: &str| self.directory.path().join(format!("{number}.{name}"));
        let busybox = given::busybox(image_arch(self.arch)).unwrap();
        std::fs::write(file("initrd"), initrd(&busybox, script)).unwrap();
        for (name, bytes) in [("vda", 1 << 20), ("vdb", 2 << 20)] {
            std::fs::write(file(name), vec![0; bytes]).unwrap();
        }
        let forward = Forward { host_address: self.loopback(number), host_port: 2020, guest_port: 2020 };
        let outside = Nic::Forwarded {
            mac: Mac::local(2, number),
            network: Ipv4Addr::new(192, 168, 76, 0),
            ports: vec![forward],
        };
        let machine = Machine {
            name: format!("guest{number}"),
            arch: self.arch,
            cpus: 1,
            memory_mib: 96,
            kernel: self.kernel(),
            initrd: Some(file("initrd")),
            append: "quiet ip=192.168.76.15:::255.255.255.0::eth1:off".into(),
            disks: ["vda", "vdb"].map(|name| Disk { path: file(name), read_only: false }).into(),
            nics: vec![nic, outside],
            console: file("console"),
        };
        (machine, port)
    }

    async fn start(&self, machine: &Machine) -> Running {
        let accelerator = accelerator_for(self.arch, &machine.kernel).await;
        Running::start(machine, accelerator, &Host::detect()).await.unwrap()
    }
}

/// What a forwarded port sends until it closes. QEMU accepts before the guest listens, so an empty answer is tried again.
async fn read_all(address: (Ipv4Addr, u16)) -> String {
    let attempts = async {
        loop {
            let mut text = String::new();
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            if stream.read_to_string(&mut text).await.is_ok() && !text.is_empty() {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(BOOT, attempts).await.expect("the forwarded port answers")
}

async fn two_guests_ping_each_other(arch: Arch) {
    let mut world = World::new(arch);
    let capture = world.directory.path().join("wire.pcap");
    world.segment.capture(&capture).unwrap();
    let served = "echo ready; while true; do echo hello from guest | nc -l -p 2020; done\n";
    let (first, _) = world.machine(1, served);
    let pings = "for i in 1 2 3 4 5 6 7 8 9; do ping -c 3 192.168.50.11 && break; done
ping -c 1 -s 8000 192.168.50.11
ping -c 1 192.168.50.1 && echo all good; reboot -f\n";
    let (second, _) = world.machine(2, pings);
    let (mut one, mut two) = (world.start(&first).await, world.start(&second).await);
    let line = one.expect("eth0 is", BOOT).await.unwrap();
    assert!(line.ends_with("eth0 is 52:54:00:77:01:01, vda has 2048 sectors"), "first is first: {line}");
    assert!(one.expect("bound", BOOT).await.unwrap().contains("bound 192.168.50.11/24 via 192.168.50.1"));
    one.expect("ready", BOOT).await.unwrap();
    assert_eq!(read_all((world.loopback(1), 2020)).await, "hello from guest\n");
    two.expect("bound 192.168.50.12", BOOT).await.unwrap();
    two.expect(" 0% packet loss", BOOT).await.unwrap();
    two.expect("all good", BOOT).await.unwrap();
    assert!(one.memory().unwrap().rss_bytes > 20 << 20);
    assert_eq!(one.qmp().query_status().await.unwrap(), Status::Running);
    one.qmp().stop().await.unwrap();
    assert_eq!(one.qmp().query_status().await.unwrap(), Status::Paused);
    one.qmp().cont().await.unwrap();
    one.quit().await.unwrap();
    let Counters { received, delivered, malformed, .. } = world.segment.counters();
    assert!(received > 10 && delivered > 10 && malformed == 0, "{:?}", world.segment.counters());
    drop(world.segment);
    assert!(std::fs::metadata(&capture).unwrap().len() > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn x86_64_guests_ping_each_other() {
    two_guests_ping_each_other(Arch::X86_64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aarch64_guests_ping_each_other() {
    two_guests_ping_each_other(Arch::Aarch64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_partition_and_loss() {
    let mut world = World::new(Arch::X86_64);
    let (machine, port) = world
        .machine(3, "while true; do ping -c 1 -W 1 192.168.50.1 >/dev/null && echo up || echo down; done\n");
    let mut guest = world.start(&machine).await;
    guest.expect("up", BOOT).await.unwrap();
    world.segment.set_cut(port, true);
    guest.expect("down", BOOT).await.unwrap();
    world.segment.set_cut(port, false);
    guest.expect("up", BOOT).await.unwrap();
    world.segment.set_faults(Faults { loss_per_million: 1_000_000 });
    guest.expect("down", BOOT).await.unwrap();
    world.segment.set_faults(Faults::default());
    let pid = guest.pid();
    guest.power_cut().await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // The same machine again: same sockets, same console file.
    let mut again = world.start(&machine).await;
    again.expect("bound 192.168.50.13", BOOT).await.unwrap();
    again.expect("up", BOOT).await.unwrap();
    again.quit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_command_line_and_an_early_end_are_explained() {
    let mut world = World::new(Arch::X86_64);
    let (machine, _) = world.machine(4, "reboot -f\n");
    let missing = Machine { kernel: "/nonexistent/kernel".into(), ..machine.clone() };
    let error = Running::start(&missing, wherry_qemu::Accelerator::Tcg, &Host::detect()).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kernel"), "{error}");
    let mut guest = world.start(&machine).await;
    let error = guest.expect("what is never said", BOOT).await.unwrap_err().to_string();
    assert!(error.contains("guest4 ended") && error.contains("eth0 is"), "{error}");
}
