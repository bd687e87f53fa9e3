//! `make bench`: the figures that Wherry holds itself to, measured on this machine with the real images and the real
//! command. What is measured of one crate alone is in its `benches`.
//!
//! ```text
//! containers  connections and tunnels, in namespaces     mesh  other overlays, in namespaces
//! wire        one TCP stream, and a byte there and back
//! ```
mod containers;
mod mesh;
mod wire;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wherry_images::disk::{Arch, BoardRole};
use wherry_qemu::{Accelerator, Host, Lan, Mac, Machine, Running, Segment};
use wherry_tests::guest::initrd;
use wherry_tests::noise::noise;
use wherry_tests::scenario::{container, wait_for_state};
use wherry_tests::{Failure, Netns, Vm, Wherry, World, given, netns, tar, vm, wait};

const SOON: Duration = Duration::from_secs(120);
/// Enough for a median that a busy moment does not move.
const RUNS: usize = 11;
const STREAM_MIB: u64 = 64;
const PUSH_MIB: usize = 32;
/// Serves [`STREAM_MIB`] of a file without content: busybox's httpd uses sendfile(2), its nc copies single kilobytes.
const SERVE: &str = "dd of=/tmp/noise bs=1M seek=64 count=0 && exec busybox httpd -f -p 5001 -h /tmp";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => parts(&["sizes", "namespaces", "machines", "link", "mesh"]),
        // Parts in namespaces start this program again inside them, as it does with a test.
        ["--exact", name, ..] => parts(&[name]),
        names => parts(names),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Bits a second between two machines.
#[derive(Debug, Default)]
struct Streams {
    overlay: Vec<(Arch, f64)>,
    bare: Vec<(Arch, f64)>,
}

fn parts(names: &[&str]) -> Result<(), Failure> {
    let mut streams = Streams::default();
    names.iter().try_for_each(|name| part(name, &mut streams))?;
    // Last, so that they stand below those of other overlays.
    for (arch, overlay) in &streams.overlay {
        if let Some((_, bare)) = streams.bare.iter().find(|(of, _)| of == arch) {
            figure(
                &format!("overlay, one stream ({})", arch.name()),
                &format!("{:.3} x", overlay / bare),
                "x bare link of the same emulated machines, which is far slower than the veth pair that `mesh` divides by",
            );
        }
    }
    Ok(())
}

fn part(name: &str, streams: &mut Streams) -> Result<(), Failure> {
    match name {
        "sizes" => built()?.into_iter().try_for_each(image_sizes),
        "machines" => built()?.into_iter().try_for_each(|arch| {
            streams.overlay.push((arch, machines(arch)?));
            Ok(())
        }),
        "link" => built()?.into_iter().try_for_each(|arch| {
            streams.bare.push((arch, bare_link(arch)?));
            Ok(())
        }),
        "namespaces" => netns::inside("namespaces", namespaces),
        "mesh" => netns::inside("mesh", mesh::measure),
        other => {
            let usage = "the parts are: sizes, machines, link, namespaces, mesh";
            Err(Failure::Unexpected(format!("there is nothing to measure called '{other}'; {usage}")))
        }
    }
}

/// The processors that images have been built for.
fn built() -> Result<Vec<Arch>, Failure> {
    let artifacts = given::artifacts()?;
    Ok([Arch::X86_64, Arch::Aarch64]
        .into_iter()
        .filter(|arch| artifacts.join(arch.name()).join("images").is_dir())
        .collect())
}

fn figure(name: &str, value: &str, how: &str) {
    println!("{name:46} {value:>14}   {how}");
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

fn megabits(bytes: u64, time: Duration) -> String {
    format!("{:.0} Mbit/s", bytes as f64 * 8.0 / 1e6 / time.as_secs_f64())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn middle(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

fn image_sizes(arch: Arch) -> Result<(), Failure> {
    let built = given::artifacts()?.join(arch.name());
    for role in [BoardRole::Broker, BoardRole::Node] {
        let name = role.name();
        for (what, path) in [
            ("program", built.join("bin").join(format!("wherry-{name}"))),
            ("image, zstd", built.join("images").join(name).join("disk.img.zst")),
        ] {
            let bytes = fs::metadata(&path).map_err(Failure::file("read", &path))?.len();
            figure(&format!("{name} {what} ({})", arch.name()), &mebibytes(bytes as f64), "file size");
        }
    }
    Ok(())
}

/// Bits a second through the overlay, beside figures that are printed.
fn machines(arch: Arch) -> Result<f64, Failure> {
    let mut world = Vm::start(arch, 2)?;
    let label = |what: &str| format!("{what} ({})", arch.name());
    idle_memory(&mut world, &label)?;
    boot_to_joined(&mut world, &label)?;
    push_and_run(&world, &label)?;
    let overlay = overlay_stream(&world, &label)?;
    healing(&mut world, &label)?;
    Ok(overlay)
}

/// How long after a board's power comes back a connection to a container there works again, untouched by anybody.
fn healing(world: &mut Vm, label: &dyn Fn(&str) -> String) -> Result<(), Failure> {
    let run = |name: &str, node: &str, command: &str| {
        world.admin().ok(&["run", "-d", "--name", name, "--node", node, "client", "sh", "-c", command])
    };
    run("asker", "node1", "sleep 1d")?;
    run("web", "node2", "echo well > /tmp/answer && exec busybox httpd -f -p 5001 -h /tmp")?;
    wait_for_state(world.admin(), "asker", "running", SOON)?;
    let web = wait_for_state(world.admin(), "web", "running", SOON)?;
    world.admin().ok(&["connect", "asker", "web:5001"])?;
    // Not wget's own -T: Debian's static busybox crashes with it.
    let ask = format!("timeout 1 wget -qO - http://{}:5001/answer", web.address);
    let heals = |world: &Vm| {
        wait::until("the connection heals", vm::BOOT, || {
            match world.admin().run(&["exec", "asker", "--", "sh", "-c", &ask]) {
                Ok(outcome) if outcome.code == 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    };
    heals(world)?;
    let mut times = Vec::new();
    for _ in 0..3 {
        world.power_cut("node2")?;
        let started = Instant::now();
        world.boot("node2")?;
        heals(world)?;
        times.push(started.elapsed());
    }
    world.admin().ok(&["rm", "-f", "asker", "web"])?;
    let how = "median of 3, QEMU start included, until a container of another board is answered again";
    figure(&label("connection, power-on to healed"), &milliseconds(median(times)), how);
    Ok(())
}

fn node_field(world: &dyn World, node: &str, field: &str) -> Result<serde_json::Value, String> {
    let list = world.admin().json(&["resources"]).map_err(|failure| failure.to_string())?;
    let found = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == *node && entry["connected"] == true);
    found.map(|entry| entry[field].clone()).ok_or_else(|| list.to_string())
}

fn idle_memory(world: &mut Vm, label: &dyn Fn(&str) -> String) -> Result<(), Failure> {
    // Nothing is placed yet; what boot has left in caches counts as available.
    std::thread::sleep(Duration::from_secs(10));
    let of = |field| {
        let value = node_field(world, "node1", field).map_err(Failure::Unexpected)?;
        value.as_f64().ok_or_else(|| Failure::Unexpected(format!("{field} is {value}")))
    };
    let used = of("memory_bytes")? - of("memory_available_bytes")?;
    figure(
        &label("idle node, memory in use"),
        &mebibytes(used),
        "MemTotal - MemAvailable, as the node reports",
    );
    let report = world.cluster()?.report();
    let node = report.machines.iter().find(|machine| machine.name == "node1");
    let resident = node.and_then(|node| node.host_memory_bytes).unwrap_or_default();
    figure(&label("idle node, QEMU's resident set"), &mebibytes(resident as f64), "/proc/PID/smaps_rollup");
    Ok(())
}

fn boot_to_joined(world: &mut Vm, label: &dyn Fn(&str) -> String) -> Result<(), Failure> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let boot = |world: &Vm| node_field(world, "node1", "boot_id");
        let before = boot(world).map_err(Failure::Unexpected)?;
        world.power_cut("node1")?;
        let started = Instant::now();
        world.boot("node1")?;
        wait::until("node1 joined again", vm::BOOT, || {
            // Until the broker hears from it anew, it tells of its earlier life.
            let now = boot(world)?;
            if now == before { Err(now.to_string()) } else { Ok(()) }
        })?;
        times.push(started.elapsed());
    }
    figure(
        &label("node, power-on to joined"),
        &milliseconds(median(times)),
        "median of 5, QEMU start included",
    );
    Ok(())
}

fn push_and_run(world: &dyn World, label: &dyn Fn(&str) -> String) -> Result<(), Failure> {
    let admin = world.admin();
    let client = world.archive("client.tar")?;
    admin.ok(&["image", "push", &client.display().to_string()])?;
    let (bytes, took) = push_noise(world)?;
    figure(
        &label("push"),
        &megabits(bytes, took),
        &format!("{PUSH_MIB} MiB that do not compress, one layer"),
    );
    let node = world.nodes().first().cloned().unwrap_or_default();
    // The first one unpacks the image.
    run_once(admin, &node)?;
    let times = (0..RUNS).map(|_| run_once(admin, &node)).collect::<Result<Vec<_>, _>>()?;
    let how = format!("median of {RUNS}, `wherry run -d` until `running`, image cached");
    figure(&label("run to running"), &milliseconds(median(times)), &how);
    Ok(())
}

fn run_once(admin: &Wherry, node: &str) -> Result<Duration, Failure> {
    let started = Instant::now();
    admin.ok(&["run", "-d", "--name", "once", "--node", node, "client", "sleep", "1d"])?;
    let took = match container(admin, "once")?.state.as_str() {
        "running" => started.elapsed(),
        _ => {
            wait_for_state(admin, "once", "running", SOON)?;
            started.elapsed()
        }
    };
    admin.ok(&["rm", "-f", "once"])?;
    Ok(took)
}

/// Pushes an image of noise, so that no layer of compression helps.
fn push_noise(world: &dyn World) -> Result<(u64, Duration), Failure> {
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let path = directory.path().join("noise.tar");
    let layer = tar::Tar::new().file("noise", &noise(PUSH_MIB << 20, 0)).finish();
    let archive = tar::docker_archive("noise", world.arch(), &layer);
    fs::write(&path, archive).map_err(Failure::file("write", &path))?;
    let started = Instant::now();
    world.admin().ok(&["image", "push", &path.display().to_string()])?;
    let took = started.elapsed();
    world.admin().ok(&["rmi", "noise"])?;
    Ok((layer.len() as u64, took))
}

/// One TCP stream between containers of two boards: bits a second.
fn overlay_stream(world: &dyn World, label: &dyn Fn(&str) -> String) -> Result<f64, Failure> {
    let admin = world.admin();
    admin.ok(&["run", "-d", "--name", "sink", "--node", "node1", "client", "sleep", "1d"])?;
    admin.ok(&["run", "-d", "--name", "source", "--node", "node2", "client", "sleep", "1d"])?;
    wait_for_state(admin, "sink", "running", SOON)?;
    let source = wait_for_state(admin, "source", "running", SOON)?;
    admin.ok(&["connect", "sink", "source:5001"])?;
    let server = admin.start(&["exec", "source", "--", "sh", "-c", SERVE])?;
    let fetch = format!("wget -qO /dev/null http://{}:5001/noise", source.address);
    let took = wait::until("the stream through the overlay", SOON, || {
        let started = Instant::now();
        match admin.run(&["exec", "sink", "--", "sh", "-c", &fetch]) {
            Ok(outcome) if outcome.code == 0 => Ok(started.elapsed()),
            other => Err(format!("{other:?}; {}", server.stderr())),
        }
    })?;
    drop(server);
    admin.ok(&["rm", "-f", "sink", "source"])?;
    let how = format!("{STREAM_MIB} MiB from container to container on two boards, busybox httpd and wget");
    figure(&label("overlay stream"), &megabits(STREAM_MIB << 20, took), &how);
    Ok((STREAM_MIB << 20) as f64 * 8.0 / took.as_secs_f64())
}

/// The same network without Wherry: two bare kernels with busybox. Bits a second.
fn bare_link(arch: Arch) -> Result<f64, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::io("start a runtime"))?;
    let took = runtime.block_on(bare_stream(arch))?;
    let how = format!(
        "{STREAM_MIB} MiB between the same kernels without containers, GRE and WireGuard, busybox httpd and wget"
    );
    figure(&format!("bare link stream ({})", arch.name()), &megabits(STREAM_MIB << 20, took), &how);
    Ok((STREAM_MIB << 20) as f64 * 8.0 / took.as_secs_f64())
}

async fn bare_stream(arch: Arch) -> Result<Duration, Failure> {
    let directory = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let failed = |error: &dyn std::fmt::Display| Failure::Unexpected(error.to_string());
    let mut segment = Segment::new(1).map_err(|error| failed(&error))?;
    let address = |number: u8| std::net::Ipv4Addr::new(192, 168, 50, 10 + number);
    let leases = [1, 2].map(|number| (Mac::local(1, number), address(number))).into();
    let gateway = std::net::Ipv4Addr::new(192, 168, 50, 1);
    segment.serve(Lan { gateway, prefix_length: 24, dns: None, lease_seconds: 3600, leases });
    let fetch = format!(
        "sleep 3; echo fetching; wget -qO /dev/null http://{}:5001/noise && echo fetched; reboot -f\n",
        address(1)
    );
    let serve = format!("mkdir -p /tmp; mount -t tmpfs t /tmp; {SERVE}\n");
    let mut guests = Vec::new();
    for (number, script) in [(1, &serve), (2, &fetch)] {
        let (_, nic) = segment.plug(Mac::local(1, number)).map_err(|error| failed(&error))?;
        let machine = bare_machine(arch, directory.path(), number, script, nic)?;
        let running = Running::start(&machine, Accelerator::Tcg, &Host::detect()).await;
        guests.push(running.map_err(|error| failed(&error))?);
    }
    let fetcher = guests.last_mut().ok_or_else(|| Failure::Unexpected("no guest".into()))?;
    fetcher.expect("fetching", SOON).await.map_err(|error| failed(&error))?;
    let started = Instant::now();
    fetcher.expect("fetched", SOON).await.map_err(|error| failed(&error))?;
    Ok(started.elapsed())
}

fn bare_machine(
    arch: Arch,
    directory: &Path,
    number: u8,
    script: &str,
    nic: wherry_qemu::Nic,
) -> Result<Machine, Failure> {
    let path = directory.join(format!("{number}.initrd"));
    fs::write(&path, initrd(&given::busybox(arch)?, script)).map_err(Failure::file("write", &path))?;
    Ok(Machine {
        name: format!("bare{number}"),
        arch: match arch {
            Arch::X86_64 => wherry_qemu::Arch::X86_64,
            Arch::Aarch64 => wherry_qemu::Arch::Aarch64,
        },
        cpus: 1,
        memory_mib: 256,
        kernel: given::kernel(arch)?,
        initrd: Some(path),
        append: "quiet".into(),
        disks: Vec::new(),
        nics: vec![nic],
        console: directory.join(format!("{number}.console")),
    })
}

fn namespaces() -> Result<(), Failure> {
    let world = Netns::start(1)?;
    let label = |what: &str| format!("{what} (namespaces)");
    for (board, process, bytes) in world.memory()? {
        figure(
            &label(&format!("{board} {process}, resident set")),
            &mebibytes(bytes as f64),
            "/proc/PID/smaps_rollup",
        );
    }
    push_and_run(&world, &label)?;
    containers::measure(&world)
}
