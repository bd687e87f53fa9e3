//! User-space meshes of Debian between two network namespaces, as a ratio to the bare link between these: one stream, and a byte
//! there and back. What Wherry has for this is in the kernel, GRE within WireGuard, and is measured between machines that have
//! it: `machines` next to `link`.
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wherry_tests::netns::system;
use wherry_tests::{Failure, wait};

use crate::wire;
use crate::{SOON, figure, middle};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const ECHOES: usize = 1000;
const PORT: u16 = 5001;
const SIDES: [&str; 2] = ["left", "right"];
const MISSING: &str = "is missing: `cargo xtask setup` installs it";

/// A program that runs in a namespace and ends with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Its namespaces take it along in any case.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One way from left to right.
struct Way {
    name: &'static str,
    address: Ipv4Addr,
    rates: Vec<f64>,
    echoes: Vec<Duration>,
}

/// Only within `netns::inside`.
pub(crate) fn measure() -> Result<(), Failure> {
    for program in ["tincd", "nebula", "nebula-cert"] {
        // Whatever it says to this, it is there.
        Command::new(program).arg("--version").output().map_err(|_| unexpected(program, MISSING))?;
    }
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    make_link()?;
    let mut running = tinc(directory.path())?;
    running.extend(nebula(directory.path())?);
    let [left, right] = SIDES.map(|side| wire::space(&format!("/run/netns/{side}")));
    let (left, right) = (left?, right?);
    wire::serve(&right, PORT)?;
    let way = |name, network: u8| {
        let address = Ipv4Addr::new(10, network, 0, 2);
        Way { name, address, rates: vec![], echoes: vec![] }
    };
    let mut ways = [way("bare link", LINK), way("tinc", TINC), way("nebula", NEBULA)];
    for way in &ways {
        wait::until(&format!("an answer through {}", way.name), SOON, || {
            wire::open(&left, to(way)).map_err(|failure| failure.to_string())
        })?;
    }
    for round in 0..ROUNDS {
        for at in 0..ways.len() {
            let place = (at + round) % ways.len();
            ways[place].measure(&left)?;
        }
    }
    drop(running);
    print(&ways);
    Ok(())
}

fn unexpected(what: &str, problem: &str) -> Failure {
    Failure::Unexpected(format!("{what} {problem}"))
}

fn to(way: &Way) -> SocketAddr {
    SocketAddr::from((way.address, PORT))
}

impl Way {
    fn measure(&mut self, from: &File) -> Result<(), Failure> {
        self.rates.push(wire::stream(from, to(self), ROUND)?);
        self.echoes.extend(wire::echoes(from, to(self), ECHOES)?);
        Ok(())
    }
}

/// The second byte of addresses: 10.N.0.1 is left, 10.N.0.2 right.
const LINK: u8 = 1;
const TINC: u8 = 2;
const NEBULA: u8 = 3;

fn make_link() -> Result<(), Failure> {
    for line in [
        // Names of namespaces are mounts below here: ours are private.
        "mkdir -p /run/netns",
        "mount -t tmpfs netns /run/netns",
        "ip netns add left",
        "ip netns add right",
        "ip link add eth0 netns left type veth peer name eth0 netns right",
    ] {
        system(line)?;
    }
    for (side, number) in SIDES.iter().zip(1..) {
        system(&format!("ip -n {side} link set lo up"))?;
        system(&format!("ip -n {side} link set eth0 up"))?;
        system(&format!("ip -n {side} address add 10.{LINK}.0.{number}/24 dev eth0"))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(Failure::file("write", path))
}

fn start(side: &str, line: &str, log: &Path) -> Result<Running, Failure> {
    let log = File::create(log).map_err(Failure::file("create", log))?;
    let second = log.try_clone().map_err(Failure::io("share a log"))?;
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", side])
        .args(line.split(' '))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second);
    command.spawn().map(Running).map_err(Failure::io(format!("start `{line}`")))
}

/// As Debian ships it, with its own choice of ciphers.
fn tinc(directory: &Path) -> Result<Vec<Running>, Failure> {
    let folders = SIDES.map(|side| directory.join(format!("tinc-{side}")));
    for ((side, number), folder) in SIDES.iter().zip(1..).zip(&folders) {
        let hosts = folder.join("hosts");
        fs::create_dir_all(&hosts).map_err(Failure::file("make", &hosts))?;
        let peer = if number == 1 { "" } else { "ConnectTo = left\n" };
        write(&folder.join("tinc.conf"), &format!("Name = {side}\nInterface = tinc0\n{peer}"))?;
        let host = format!("Address = 10.{LINK}.0.{number}\nSubnet = 10.{TINC}.0.{number}/32\n");
        write(&hosts.join(side), &host)?;
        let up = folder.join("tinc-up");
        let script =
            format!("#!/bin/sh\nip link set tinc0 up\nip address add 10.{TINC}.0.{number}/24 dev tinc0\n");
        write(&up, &script)?;
        system(&format!("chmod 755 {}", up.display()))?;
        // It asks where to put the keys, and takes the end of its input for its own choice.
        system(&format!("tincd -c {} -K 2048", folder.display()))?;
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let name = Path::new("hosts").join(SIDES[from]);
        let (here, there) = (folders[from].join(&name), folders[to].join(&name));
        fs::copy(&here, &there).map_err(Failure::file("copy", &here))?;
    }
    let each = SIDES.iter().zip(&folders);
    each.map(|(side, folder)| {
        let pid = directory.join(format!("tinc-{side}.pid"));
        let line = format!("tincd -c {} -D --pidfile={}", folder.display(), pid.display());
        start(side, &line, &directory.join(format!("tinc-{side}.log")))
    })
    .collect()
}

/// As Debian ships it; left is the lighthouse.
fn nebula(directory: &Path) -> Result<Vec<Running>, Failure> {
    let file = |name: &str| directory.join(name).display().to_string();
    let (authority, secret) = (file("ca.crt"), file("ca.key"));
    system(&format!("nebula-cert ca -name bench -out-crt {authority} -out-key {secret}"))?;
    let mut all = Vec::new();
    for (side, number) in SIDES.iter().zip(1..) {
        let (certificate, key) = (file(&format!("{side}.crt")), file(&format!("{side}.key")));
        system(&format!(
            "nebula-cert sign -ca-crt {authority} -ca-key {secret} -name {side} -ip 10.{NEBULA}.0.{number}/24 -out-crt {certificate} -out-key {key}"
        ))?;
        let (leads, hosts) =
            if number == 1 { (true, "[]".to_owned()) } else { (false, format!("['10.{NEBULA}.0.1']")) };
        let text = format!(
            "pki: {{ca: {authority}, cert: {certificate}, key: {key}}}\n\
             static_host_map: {{'10.{NEBULA}.0.1': ['10.{LINK}.0.1:4242']}}\n\
             lighthouse: {{am_lighthouse: {leads}, interval: 10, hosts: {hosts}}}\n\
             listen: {{host: 0.0.0.0, port: 4242}}\n\
             tun: {{dev: nebula0}}\n\
             firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  inbound: [{{port: any, proto: any, host: any}}]\n"
        );
        let config = file(&format!("{side}.yml"));
        write(Path::new(&config), &text)?;
        let log = directory.join(format!("nebula-{side}.log"));
        all.push(start(side, &format!("nebula -config {config}"), &log)?);
    }
    Ok(all)
}

fn print(ways: &[Way]) {
    let rate = |way: &Way| middle(way.rates.clone());
    let echo = |way: &Way| crate::median(way.echoes.clone()).as_secs_f64() * 1e6;
    let Some(bare) = ways.first() else { return };
    for way in ways {
        figure(
            &format!("{}, one stream (namespaces)", way.name),
            &format!("{:.0} Mbit/s", rate(way) / 1e6),
            &format!(
                "{:.3} x bare link; a byte there and back {:.0} us, {:.2} x bare link; medians of {ROUNDS} rounds in turns",
                rate(way) / rate(bare),
                echo(way),
                echo(way) / echo(bare)
            ),
        );
    }
}
