//! What people wait for between the laptop and containers: a connection that was just allowed, and tunnels, next to a direct
//! connection to the same server.
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wherry_tests::scenario::wait_for_state;
use wherry_tests::{Failure, Netns, World, wait};

use crate::wire::{self, within};
use crate::{RUNS, SOON, figure, median, milliseconds};

/// How often it is tried whether packets pass.
const KNOCK: Duration = Duration::from_micros(100);
/// So long without a knock, and none comes any more.
const QUIET: Duration = Duration::from_millis(20);
const UDP_PORT: u16 = 5002;
const TCP_PORT: u16 = 5001;
/// Where the board publishes the server.
const PUBLISHED: u16 = 8080;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const ECHOES: usize = 1000;
const OPENINGS: usize = 40;

/// Two containers of one board, which the parts below use.
pub(crate) fn measure(world: &Netns) -> Result<(), Failure> {
    let admin = world.admin();
    let publish = format!("node:{PUBLISHED}:{TCP_PORT}");
    // The seconds tell their processes apart.
    admin.ok(&["run", "-d", "--name", "asker", "--node", "node1", "client", "sleep", "86401"])?;
    admin.ok(&[
        "run", "-d", "--name", "server", "--node", "node1", "-p", &publish, "client", "sleep", "86402",
    ])?;
    wait_for_state(admin, "asker", "running", SOON)?;
    let server = wait_for_state(admin, "server", "running", SOON)?;
    let address: Ipv4Addr =
        server.address.parse().map_err(|_| Failure::Unexpected(format!("address {}", server.address)))?;
    let (asker_space, server_space) = (space_of("86401")?, space_of("86402")?);
    first_packet(world, &asker_space, &server_space, address)?;
    tunnel(world, &server_space)?;
    admin.ok(&["rm", "-f", "asker", "server"])?;
    Ok(())
}

/// The network namespace of the process whose last argument is `word`.
fn space_of(word: &str) -> Result<File, Failure> {
    let found = fs::read_dir("/proc").map_err(Failure::io("read /proc"))?.flatten().find(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.ends_with(format!("\0{word}\0").as_bytes()) && line.starts_with(b"sleep\0")
    });
    let process = found.ok_or_else(|| Failure::Unexpected(format!("no process `sleep {word}`")))?;
    wire::space(&process.path().join("ns/net").display().to_string())
}

/// Datagrams knock all the time; the first one that comes through after `wherry connect` was started counts.
fn first_packet(world: &Netns, from: &File, to: &File, address: Ipv4Addr) -> Result<(), Failure> {
    let admin = world.admin();
    let target = &format!("server:{UDP_PORT}/udp");
    let receiver = within(to, || UdpSocket::bind(("0.0.0.0", UDP_PORT)))?;
    receiver.set_read_timeout(Some(SOON)).map_err(Failure::io("bound a socket's patience"))?;
    let sender = within(from, || UdpSocket::bind(("0.0.0.0", 0)))?;
    let done = AtomicBool::new(false);
    let (mut first, mut command) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The firewall refuses it as EPERM until it may pass.
                sender.send_to(b"knock", (address, UDP_PORT)).ok();
                std::thread::sleep(KNOCK);
            }
        });
        let mut measured = || -> Result<(), Failure> {
            // The first one fills caches.
            for number in 0..=RUNS {
                let started = Instant::now();
                let connecting = scope.spawn(move || {
                    let outcome = admin.ok(&["connect", "asker", target]);
                    outcome.map(|_| started.elapsed())
                });
                receiver.recv(&mut [0; 16]).map_err(Failure::io("wait for the first packet"))?;
                let came = started.elapsed();
                let returned = connecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                if number > 0 {
                    first.push(came);
                    command.push(returned);
                }
                admin.ok(&["disconnect", "asker", target])?;
                drain(&receiver)?;
            }
            Ok(())
        };
        let outcome = measured();
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    let how = format!(
        "median of {RUNS}, from the start of `wherry connect`, which itself ends after {}; UDP between containers of one board",
        milliseconds(median(command))
    );
    figure("connect to first packet (namespaces)", &milliseconds(median(first)), &how);
    Ok(())
}

/// Forgets what came while it was allowed, until nothing comes any more.
fn drain(receiver: &UdpSocket) -> Result<(), Failure> {
    let patience =
        |time| receiver.set_read_timeout(Some(time)).map_err(Failure::io("bound a socket's patience"));
    patience(QUIET)?;
    let begun = Instant::now();
    while receiver.recv(&mut [0; 16]).is_ok() {
        if begun.elapsed() > SOON {
            return Err(Failure::Unexpected("packets pass though their connection was taken away".into()));
        }
    }
    patience(SOON)
}

/// One way to the server.
struct Path {
    name: &'static str,
    to: SocketAddr,
    rates: Vec<f64>,
    echoes: Vec<Duration>,
    openings: Vec<Duration>,
}

/// From the laptop through a tunnel, and directly to a port of the board, both to the same server in the container.
fn tunnel(world: &Netns, server: &File) -> Result<(), Failure> {
    wire::serve(server, TCP_PORT)?;
    let here = wire::space("/proc/thread-self/ns/net")?;
    let plan = wherry_client::dev::boards(1);
    let node = plan.get(1).map(|board| board.address).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8099));
    let command =
        world.admin().start(&["tunnel", &local.port().to_string(), &format!("server:{TCP_PORT}")])?;
    let path = |name, to| Path { name, to, rates: vec![], echoes: vec![], openings: vec![] };
    let mut paths = [path("direct", SocketAddr::from((node, PUBLISHED))), path("tunnel", local)];
    for path in &paths {
        wait::until("a server's answer", SOON, || {
            wire::open(&here, path.to).map_err(|failure| format!("{failure}; {}", command.stderr()))
        })?;
    }
    for round in 0..ROUNDS {
        for at in 0..paths.len() {
            // In turns, and each as often before the other as after it.
            let path = &mut paths[(at + round) % 2];
            path.rates.push(wire::stream(&here, path.to, ROUND)?);
            path.echoes.extend(wire::echoes(&here, path.to, ECHOES)?);
            for _ in 0..OPENINGS {
                path.openings.push(wire::open(&here, path.to)?);
            }
        }
    }
    drop(command.interrupt()?);
    print_paths(paths);
    Ok(())
}

fn print_paths([direct, tunnel]: [Path; 2]) {
    let how =
        format!("the same server by a port published on its board; medians of {ROUNDS} rounds in turns");
    let rate = |path: &Path| crate::middle(path.rates.clone()) / 1e6;
    let (fast, slow) = (rate(&direct), rate(&tunnel));
    figure(
        "tunnel, one stream (namespaces)",
        &format!("{slow:.0} Mbit/s"),
        &format!("{:.3} x {} ({fast:.0} Mbit/s): {how}", slow / fast, direct.name),
    );
    type Of = fn(&Path) -> &Vec<Duration>;
    let kinds: [(&str, Of); 2] = [
        ("a byte there and back", |path| &path.echoes),
        ("a new connection and a byte there and back", |path| &path.openings),
    ];
    for (name, of) in kinds {
        let [direct, tunnel] = [&direct, &tunnel].map(|path| {
            let mut times = of(path).clone();
            times.sort_unstable();
            [50, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6)
        });
        figure(
            &format!("tunnel, {name}"),
            &format!("{:.0} us", tunnel[0]),
            &format!(
                "p99 {:.0} us; direct {:.0} us, p99 {:.0} us: {:.0} us more",
                tunnel[1],
                direct[0],
                direct[1],
                tunnel[0] - direct[0]
            ),
        );
    }
}
