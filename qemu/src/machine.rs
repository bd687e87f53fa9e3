//! What a virtual board consists of, and the QEMU command line that makes it.
use crate::host::{Accelerator, Host};
use std::ffi::OsString;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Instruction set of a virtual board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit PC, as QEMU's `microvm` without ACPI.
    X86_64,
    /// 64-bit ARM, as QEMU's `virt` with a Cortex-A53.
    Aarch64,
}

impl Arch {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name Linux and Rust use: `x86_64` or `aarch64`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The emulator's program name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The architecture this program was built for, if it is one of ours.
    #[must_use]
    pub fn of_this_host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An architecture that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an architecture: use x86_64 or aarch64")]
pub struct ArchError(String);

impl FromStr for Arch {
    type Err = ArchError;
    fn from_str(text: &str) -> Result<Self, ArchError> {
        match text {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(ArchError(other.chars().take(40).collect())),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The all-ones address that every station listens to.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// A locally administered unicast address (IEEE 802 §8.4: second bit of the first octet) that ends in `group` and `number`.
    #[must_use]
    pub const fn local(group: u8, number: u8) -> Self {
        Self([0x52, 0x54, 0x00, 0x77, group, number])
    }

    /// Whether it names a group of stations (broadcast included) rather than one.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A raw disk image, attached as a virtio block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// The guest cannot write to it, and several machines may share it.
    pub read_only: bool,
}

/// A virtio network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// A port of a [`crate::Segment`]: datagrams between two unix sockets.
    Segment {
        /// The card's address.
        mac: Mac,
        /// Socket that QEMU makes and listens on.
        local: PathBuf,
        /// Socket of the segment that QEMU sends to.
        remote: PathBuf,
    },
    /// QEMU's user-mode network, closed to the outside: only the forwarded ports lead in, and nothing leads out.
    Forwarded {
        /// The card's address.
        mac: Mac,
        /// The private network, a /24 that ends in 0; the guest is offered .15 by DHCP.
        network: Ipv4Addr,
        /// TCP ports of the host that lead to the guest.
        ports: Vec<Forward>,
    },
}

/// One forwarded TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Address to listen on at the host; a loopback address unless the world should come in.
    pub host_address: Ipv4Addr,
    /// Port to listen on at the host.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

/// A virtual board: everything its command line depends on, except for how it is accelerated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Shown in `ps` and in errors.
    pub name: String,
    /// Instruction set.
    pub arch: Arch,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The kernel: `vmlinux` for x86_64 (0.3 s faster than a bzImage), `Image` for aarch64.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel arguments besides those the machine type and accelerator need.
    pub append: String,
    /// Disks, the first is `vda`.
    pub disks: Vec<Disk>,
    /// Network cards, the first is `eth0`.
    pub nics: Vec<Nic>,
    /// File that receives the serial console, appended to.
    pub console: PathBuf,
}

impl Machine {
    /// The kernel's whole command line.
    #[must_use]
    pub fn kernel_arguments(&self, accelerator: Accelerator, host: &Host) -> String {
        // Ours come last: the kernel believes the last of two that contradict each other.
        let mut words: Vec<String> = vec![self.append.trim().into()];
        words.push(match self.arch {
            Arch::X86_64 => "console=ttyS0".into(),
            Arch::Aarch64 => "console=ttyAMA0".into(),
        });
        // With -no-reboot a guest that panics or reboots ends QEMU, instead of looping unseen.
        words.push("panic=-1".into());
        if self.arch == Arch::X86_64 {
            words.push("reboot=t".into());
            words.extend(self.x86_timer_arguments(accelerator, host));
        }
        words.retain(|word| !word.is_empty());
        words.join(" ")
    }

    /// Under TCG the guest cannot calibrate its clocks against each other on a busy host: without these it panics
    /// in the IO-APIC check or falls back to a 10 ms clock.
    fn x86_timer_arguments(&self, accelerator: Accelerator, host: &Host) -> Vec<String> {
        match accelerator {
            Accelerator::Kvm => Vec::new(),
            Accelerator::Tcg => {
                let mut words = vec!["no_timer_check".to_owned()];
                if self.cpus == 1 {
                    words.push("nolapic_timer".into());
                }
                // TCG's time stamp counter is the host's, so it runs at the host's rate.
                if let Some(khz) = host.tsc_khz {
                    words.push(format!("tsc_early_khz={khz}"));
                    words.push("tsc=reliable".into());
                }
                words
            }
        }
    }

    /// Arguments for [`Arch::program`].
    #[must_use]
    pub fn command_line(&self, accelerator: Accelerator, host: &Host) -> Vec<OsString> {
        let mut line = Line::default();
        line.pair("-name", &comma(&self.name));
        match accelerator {
            Accelerator::Kvm => line.pair("-accel", "kvm"),
            Accelerator::Tcg => line.pair("-accel", "tcg,thread=multi"),
        }
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.word(flag);
        }
        line.pair("-display", "none");
        match self.arch {
            Arch::X86_64 => line.pair("-M", "microvm,acpi=off"),
            Arch::Aarch64 => line.pair("-M", "virt"),
        }
        match (self.arch, accelerator) {
            (_, Accelerator::Kvm) => line.pair("-cpu", "host"),
            (Arch::Aarch64, Accelerator::Tcg) => line.pair("-cpu", "cortex-a53"),
            (Arch::X86_64, Accelerator::Tcg) => {}
        }
        line.pair("-smp", &self.cpus.to_string());
        line.pair("-m", &self.memory_mib.to_string());
        line.path("-kernel", &self.kernel);
        if let Some(initrd) = &self.initrd {
            line.path("-initrd", initrd);
        }
        line.pair("-append", &self.kernel_arguments(accelerator, host));
        line.option("-chardev", "file,id=console,append=on,path=", &self.console);
        line.pair("-serial", "chardev:console");
        line.pair("-chardev", "stdio,id=qmp,signal=off");
        line.pair("-mon", "chardev=qmp,mode=control");
        line.pair("-device", "virtio-rng-device");
        self.disk_arguments(&mut line);
        self.nic_arguments(&mut line);
        line.words
    }

    /// The order in which devices must be given for the guest to number them as they are: `microvm` hands out its
    /// virtio-mmio slots upwards; `virt` downwards, while Linux counts upwards on both.
    fn slot_order<'a, T>(&self, devices: &'a [T]) -> Vec<(usize, &'a T)> {
        let in_order = devices.iter().enumerate();
        match self.arch {
            Arch::X86_64 => in_order.collect(),
            Arch::Aarch64 => in_order.rev().collect(),
        }
    }

    fn disk_arguments(&self, line: &mut Line) {
        for (number, disk) in self.slot_order(&self.disks) {
            let read_only = if disk.read_only { "on" } else { "off" };
            let head = format!("id=disk{number},if=none,format=raw,read-only={read_only},file=");
            line.option("-drive", &head, &disk.path);
            line.pair("-device", &format!("virtio-blk-device,drive=disk{number}"));
        }
    }

    fn nic_arguments(&self, line: &mut Line) {
        for (number, nic) in self.slot_order(&self.nics) {
            let mac = match nic {
                Nic::Segment { mac, local, remote } => {
                    let mut value: OsString =
                        format!("dgram,id=net{number},local.type=unix,local.path=").into();
                    value.push(comma_path(local));
                    value.push(",remote.type=unix,remote.path=");
                    value.push(comma_path(remote));
                    line.words.extend(["-netdev".into(), value]);
                    mac
                }
                Nic::Forwarded { mac, network, ports } => {
                    line.pair("-netdev", &forwarded(number, *network, ports));
                    mac
                }
            };
            line.pair("-device", &format!("virtio-net-device,netdev=net{number},mac={mac}"));
        }
    }
}

fn forwarded(number: usize, network: Ipv4Addr, ports: &[Forward]) -> String {
    let mut value = format!("user,id=net{number},restrict=on,net={network}/24");
    for Forward { host_address, host_port, guest_port } in ports {
        value.push_str(&format!(",hostfwd=tcp:{host_address}:{host_port}-:{guest_port}"));
    }
    value
}

/// QEMU splits option values at commas; a doubled comma stands for one.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

fn comma_path(path: &Path) -> OsString {
    // Only a path with a comma needs to be text; others pass byte for byte.
    match path.to_str() {
        Some(text) => comma(text).into(),
        None => path.as_os_str().to_owned(),
    }
}

#[derive(Default)]
struct Line {
    words: Vec<OsString>,
}

impl Line {
    fn word(&mut self, word: &str) {
        self.words.push(word.into());
    }

    fn pair(&mut self, flag: &str, value: &str) {
        self.words.extend([flag.into(), value.into()]);
    }

    fn path(&mut self, flag: &str, path: &Path) {
        self.words.extend([flag.into(), path.as_os_str().to_owned()]);
    }

    /// An option whose value ends in a path.
    fn option(&mut self, flag: &str, head: &str, path: &Path) {
        let mut value: OsString = head.into();
        value.push(comma_path(path));
        self.words.extend([flag.into(), value]);
    }
}
