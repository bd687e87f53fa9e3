//! The rendered command lines, word by word.
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use wherry_qemu::machine::Forward;
use wherry_qemu::{Accelerator, Arch, Disk, Host, Mac, Machine, Nic};

fn broker(arch: Arch) -> Machine {
    Machine {
        name: "broker".into(),
        arch,
        cpus: 1,
        memory_mib: 96,
        kernel: "/images/kernel".into(),
        initrd: None,
        append: "quiet root=/dev/dm-0".into(),
        disks: vec![
            Disk { path: "/state/broker.img".into(), read_only: false },
            Disk { path: "/state/a,b.img".into(), read_only: true },
        ],
        nics: vec![
            Nic::Segment { mac: Mac::local(1, 2), local: "/run/s/p0".into(), remote: "/run/s/s0".into() },
            Nic::Forwarded {
                mac: Mac::local(2, 2),
                network: Ipv4Addr::new(192, 168, 76, 0),
                ports: vec![
                    Forward { host_address: Ipv4Addr::new(127, 7, 8, 9), host_port: 2020, guest_port: 2020 },
                    Forward { host_address: Ipv4Addr::new(127, 7, 8, 9), host_port: 2021, guest_port: 2021 },
                ],
            },
        ],
        console: "/state/broker.console".into(),
    }
}

/// One option per line.
fn render(machine: &Machine, accelerator: Accelerator, host: &Host) -> String {
    let mut text = machine.arch.program().to_owned();
    for word in machine.command_line(accelerator, host) {
        let word = word.into_string().expect("test paths are text");
        write!(text, "{}{word}", if word.starts_with('-') { "\n" } else { " " }).expect("a String takes all");
    }
    text + "\n"
}

const HOST: Host = Host { tsc_khz: Some(2_596_122) };

#[test]
fn x86_64_translated() {
    let golden = include_str!("golden/x86_64-tcg.txt");
    assert_eq!(render(&broker(Arch::X86_64), Accelerator::Tcg, &HOST), golden);
}

#[test]
fn x86_64_accelerated() {
    let golden = include_str!("golden/x86_64-kvm.txt");
    assert_eq!(render(&broker(Arch::X86_64), Accelerator::Kvm, &HOST), golden);
}

#[test]
fn aarch64_translated() {
    let golden = include_str!("golden/aarch64-tcg.txt");
    assert_eq!(render(&broker(Arch::Aarch64), Accelerator::Tcg, &HOST), golden);
}

#[test]
fn several_cpus_keep_their_local_timers() {
    let machine = Machine { cpus: 2, ..broker(Arch::X86_64) };
    let arguments = machine.kernel_arguments(Accelerator::Tcg, &HOST);
    assert!(arguments.contains("no_timer_check") && !arguments.contains("nolapic_timer"), "{arguments}");
}

#[test]
fn an_unknown_counter_rate_is_left_to_the_guest() {
    let arguments = broker(Arch::X86_64).kernel_arguments(Accelerator::Tcg, &Host { tsc_khz: None });
    assert!(!arguments.contains("tsc"), "{arguments}");
}
