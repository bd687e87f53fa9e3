//! Which boards a virtual cluster has, and how each is attached: pure.
use super::error::DevError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use wherry_images::disk::{Arch, BoardRole, MANIFEST_FILE, Manifest, Template};
use wherry_protocol::{Name, Overlay};
use wherry_qemu::machine::Forward;
use wherry_qemu::{Disk, Lan, Mac, Machine, Nic};

/// The virtual LAN: 192.168.50.0/24, which is not in use in most homes.
const LAN: [u8; 3] = [192, 168, 50];
const PREFIX_LENGTH: u8 = 24;
const GATEWAY_HOST: u8 = 1;
const BROKER_HOST: u8 = 2;
/// Node N has the host number 10 + N.
const NODE_HOST_BASE: u8 = 10;
/// Most nodes: what fits a laptop's memory, and well within the LAN's host numbers.
const MAX_NODES: u8 = 32;
/// A day: longer than any run of tests, and short enough that a forgotten lease shows.
const LEASE_SECONDS: u32 = 86_400;
/// QEMU's own network behind the broker's second card; it offers the guest .15.
const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 168, 76, 0);
/// The kernel configures the second card itself (Documentation/admin-guide/nfs/nfsroot.rst, `ip=`): no gateway there.
const UPLINK_ARGUMENT: &str = "ip=192.168.76.15:::255.255.255.0::eth1:off";
/// Sessions and enrolment.
const BROKER_PORTS: [u16; 2] = [2020, 2021];
/// Without it a board refuses to crash on request, even with a test image's configuration.
const TEST_ARGUMENT: &str = "wherry.test=1";

/// What kind of cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// What it is called, also as a location.
    pub name: Name,
    /// The boards' processor.
    pub arch: Arch,
    /// How many nodes, 1 to 32.
    pub nodes: u8,
    /// Memory of each board, in MiB.
    pub memory_mib: u32,
    /// CPUs of each board.
    pub cpus: u8,
    /// Data partition of each board, in MiB; takes only what is used.
    pub data_mib: u64,
    /// Directory of the built images.
    pub images: PathBuf,
    /// Boards that may be told to crash, for tests.
    pub test_image: bool,
    /// The containers' addresses; the usual ones if absent.
    #[serde(default)]
    pub overlay: Option<Overlay>,
}

impl Options {
    /// A cluster of two nodes from `images`, everything else as usual.
    #[must_use]
    pub fn new(name: Name, arch: Arch, images: PathBuf) -> Self {
        Self {
            name,
            arch,
            nodes: 2,
            memory_mib: 256,
            cpus: 1,
            data_mib: 1024,
            images,
            test_image: false,
            overlay: None,
        }
    }

    /// Refuses what cannot be.
    pub fn check(&self) -> Result<(), DevError> {
        let range = |what, value: u64, allowed| Err(DevError::OutOfRange { what, value, allowed });
        match self {
            Self { nodes, .. } if !(1..=MAX_NODES).contains(nodes) => {
                range("the number of nodes", u64::from(*nodes), "1 to 32")
            }
            Self { memory_mib, .. } if !(64..=65_536).contains(memory_mib) => {
                range("the memory of a machine", u64::from(*memory_mib), "64 to 65536 MiB")
            }
            Self { cpus, .. } if !(1..=8).contains(cpus) => {
                range("the number of CPUs", u64::from(*cpus), "1 to 8")
            }
            Self { data_mib, .. } if !(16..=1_048_576).contains(data_mib) => {
                range("the size of a data partition", *data_mib, "16 to 1048576 MiB")
            }
            _ => Ok(()),
        }
    }

    /// Where the image of a board may be: `images` is what `cargo xtask images` makes, for all processors or for one.
    fn template_directories(&self, role: BoardRole) -> [PathBuf; 2] {
        [self.images.join(self.arch.name()).join("images").join(role.name()), self.images.join(role.name())]
    }

    /// The image of a board.
    pub fn template(&self, role: BoardRole) -> Result<(PathBuf, Template), DevError> {
        for directory in self.template_directories(role) {
            if directory.join(MANIFEST_FILE).exists() {
                let template = Template::open(&directory)?;
                if template.manifest().arch == self.arch && template.manifest().role == role {
                    return Ok((directory, template));
                }
            }
        }
        let (role, arch) = (role.name(), self.arch.name());
        Err(DevError::NoImages { role, arch, directory: self.images.clone() })
    }
}

/// One board of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// `broker`, `node1`, `node2`, …
    pub name: String,
    /// Which program it runs.
    pub role: BoardRole,
    /// Its card on the LAN.
    pub mac: Mac,
    /// Its address on the LAN.
    pub address: Ipv4Addr,
}

/// The boards of a cluster with so many nodes, broker first.
#[must_use]
pub fn boards(nodes: u8) -> Vec<Board> {
    let board = |name, role, host| Board { name, role, mac: Mac::local(1, host), address: on_lan(host) };
    let broker = board("broker".to_owned(), BoardRole::Broker, BROKER_HOST);
    let node =
        |number: u8| board(format!("node{number}"), BoardRole::Node, NODE_HOST_BASE.saturating_add(number));
    std::iter::once(broker).chain((1..=nodes).map(node)).collect()
}

fn on_lan(host: u8) -> Ipv4Addr {
    let [a, b, c] = LAN;
    Ipv4Addr::new(a, b, c, host)
}

/// The broker's address on the LAN.
pub(super) fn broker_address() -> Ipv4Addr {
    on_lan(BROKER_HOST)
}

/// The broker's address as its static configuration wants it.
pub(super) fn broker_cidr() -> String {
    format!("{}/{PREFIX_LENGTH}", broker_address())
}

/// What the LAN's DHCP server tells.
pub(super) fn lan(boards: &[Board]) -> Lan {
    let leases: BTreeMap<Mac, Ipv4Addr> = boards.iter().map(|board| (board.mac, board.address)).collect();
    let gateway = on_lan(GATEWAY_HOST);
    Lan { gateway, prefix_length: PREFIX_LENGTH, dns: None, lease_seconds: LEASE_SECONDS, leases }
}

/// Files of one machine.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) disk: PathBuf,
    pub(super) console: PathBuf,
}

impl Files {
    pub(super) fn of(directory: &Path, board: &Board) -> Self {
        let file = |suffix| directory.join(format!("{}.{suffix}", board.name));
        Self { disk: file("img"), console: file("console") }
    }
}

/// The virtual machine of `board`. `way_in` is the host's loopback address that leads to the broker.
pub(super) fn machine(
    options: &Options,
    board: &Board,
    template: (&Manifest, PathBuf),
    files: Files,
    lan: Nic,
    way_in: Ipv4Addr,
) -> Machine {
    let (manifest, kernel) = template;
    let mut append = manifest.command_line.clone();
    let mut nics = vec![lan];
    if board.role == BoardRole::Broker {
        append = format!("{append} {UPLINK_ARGUMENT}");
        nics.push(uplink(way_in));
    }
    if options.test_image {
        append = format!("{append} {TEST_ARGUMENT}");
    }
    Machine {
        name: format!("{}-{}", options.name, board.name),
        arch: match options.arch {
            Arch::X86_64 => wherry_qemu::Arch::X86_64,
            Arch::Aarch64 => wherry_qemu::Arch::Aarch64,
        },
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        kernel,
        initrd: None,
        append,
        disks: vec![Disk { path: files.disk, read_only: false }],
        nics,
        console: files.console,
    }
}

fn uplink(host_address: Ipv4Addr) -> Nic {
    let forward = |port| Forward { host_address, host_port: port, guest_port: port };
    Nic::Forwarded {
        mac: Mac::local(2, BROKER_HOST),
        network: UPLINK,
        ports: BROKER_PORTS.map(forward).into(),
    }
}

/// Loopback addresses to try for a cluster, best first: 127.64.0.0/10 spread by its name, so that the same cluster
/// mostly gets the same address and different ones rarely collide.
pub(super) fn way_in_candidates(seed: &str) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let [a, b, c, ..] = wherry_protocol::Digest::of(seed.as_bytes()).0;
    (0..16_u8).map(move |step| Ipv4Addr::new(127, 64 | (a & 0x3f), b, c.wrapping_add(step).clamp(1, 254)))
}

/// The ports that must be free there.
pub(super) fn broker_ports() -> [u16; 2] {
    BROKER_PORTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn options() -> Options {
        Options::new("demo".parse().unwrap(), Arch::X86_64, "/images".into())
    }

    fn manifest() -> Manifest {
        let file = |name: &str| wherry_images::disk::FileEntry {
            name: name.into(),
            bytes: 1,
            sha256: String::new(),
        };
        Manifest {
            format: 1,
            arch: Arch::X86_64,
            role: BoardRole::Broker,
            disk: file("disk.img"),
            kernel: file("vmlinux"),
            command_line: "root=/dev/dm-0 quiet".into(),
            root_hash: String::new(),
            firmware: wherry_images::disk::FirmwareKind::Uefi,
            partitions: Vec::new(),
        }
    }

    fn machine_of(board: &Board, options: &Options) -> Machine {
        let lan = Nic::Segment { mac: board.mac, local: "/s/m0".into(), remote: "/s/s0".into() };
        let files = Files::of(Path::new("/state"), board);
        machine(options, board, (&manifest(), "/images/k".into()), files, lan, Ipv4Addr::new(127, 80, 0, 1))
    }

    #[test]
    fn boards_have_names_and_addresses_of_their_own() {
        let boards = boards(MAX_NODES);
        let addresses: BTreeSet<_> = boards.iter().map(|b| b.address).collect();
        let macs: BTreeSet<_> = boards.iter().map(|b| b.mac).collect();
        assert_eq!((boards.len(), addresses.len(), macs.len()), (33, 33, 33));
        assert_eq!(boards[0].address, Ipv4Addr::new(192, 168, 50, 2));
        assert_eq!((boards[2].name.as_str(), boards[2].address), ("node2", Ipv4Addr::new(192, 168, 50, 12)));
        assert!(lan(&boards).leases.len() == 33 && !addresses.contains(&lan(&boards).gateway));
    }

    #[test]
    fn only_the_broker_has_a_way_in() {
        let boards = boards(1);
        let broker = machine_of(&boards[0], &options());
        assert_eq!(broker.append, "root=/dev/dm-0 quiet ip=192.168.76.15:::255.255.255.0::eth1:off");
        assert_eq!(broker.nics.len(), 2);
        let node = machine_of(&boards[1], &options());
        assert_eq!((node.append.as_str(), node.nics.len()), ("root=/dev/dm-0 quiet", 1));
        assert_eq!(node.disks[0].path, Path::new("/state/node1.img"));
    }

    #[test]
    fn crashing_on_request_must_be_asked_for() {
        let node = machine_of(&boards(1)[1], &Options { test_image: true, ..options() });
        assert!(node.append.ends_with(" wherry.test=1"));
    }

    #[test]
    fn absurd_wishes_are_refused() {
        for bad in [
            Options { nodes: 0, ..options() },
            Options { nodes: 33, ..options() },
            Options { memory_mib: 8, ..options() },
            Options { cpus: 0, ..options() },
            Options { data_mib: 1, ..options() },
        ] {
            assert!(matches!(bad.check(), Err(DevError::OutOfRange { .. })), "{bad:?}");
        }
        assert!(options().check().is_ok());
    }

    #[test]
    fn ways_in_are_loopback_and_spread() {
        let firsts: BTreeSet<_> =
            (0..50).filter_map(|n| way_in_candidates(&format!("c{n}")).next()).collect();
        assert!(firsts.len() > 45);
        let good = |a: Ipv4Addr| a.is_loopback() && a.octets()[1] >= 64 && (1..=254).contains(&a.octets()[3]);
        assert!((0..50).flat_map(|n| way_in_candidates(&format!("c{n}"))).all(good));
    }
}
