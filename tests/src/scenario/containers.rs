//! The life of containers.
use super::view::{container, wait_for_state};
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::noise::noise;
use crate::wait::until;
use crate::world::World;
use std::fs;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

pub(super) fn lifecycle(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    admin.ok(&["run", "-d", "--name", "box", "client", "sh", "-c", "echo started; exec sleep 1d"])?;
    let first = wait_for_state(admin, "box", "running", SOON)?;
    ensure(world.nodes().contains(&first.node), || format!("it runs on no node of ours: {first:?}"))?;
    ensure(admin.ok(&["ps"])?.contains("box"), || "`wherry ps` does not list it".into())?;
    until("its output", SOON, || match admin.ok(&["logs", "box"]) {
        Ok(text) if text == "started\n" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    admin.run(&["exec", "box", "--", "true"])?.expect_code(0)?;
    admin.run(&["exec", "box", "--", "sh", "-c", "exit 42"])?.expect_code(42)?;
    admin.run(&["exec", "box", "--", "no-such-program"])?.expect_code(127)?;
    follow(admin)?;
    // PID 1 of a container ignores SIGTERM unless it handles it, so this ends with SIGKILL after the grace.
    admin.ok(&["stop", "-t", "1", "box"])?;
    let stopped = wait_for_state(admin, "box", "exited", SOON)?;
    ensure(stopped.exit_code == Some(137), || format!("stopped: {stopped:?}"))?;
    admin.refused(&["exec", "box", "--", "true"], "box")?;
    admin.ok(&["start", "box"])?;
    let again = wait_for_state(admin, "box", "running", SOON)?;
    ensure(again.node == first.node, || format!("it moved from {first:?} to {again:?}"))?;
    admin.refused(&["rm", "box"], "running")?;
    admin.ok(&["rm", "-f", "box"])?;
    ensure(container(admin, "box").is_err(), || "it is still listed after rm".into())?;
    // Its name is free again.
    admin.run(&["run", "--name", "box", "--rm", "client", "true"])?.expect_code(0)?;
    until("the removal of a --rm container", SOON, || match container(admin, "box") {
        Err(_) => Ok(()),
        Ok(view) => Err(format!("{view:?}")),
    })
}

/// `logs -f` shows what comes and ends with ctrl-C.
fn follow(admin: &Wherry) -> Result<(), Failure> {
    let logs = admin.start(&["logs", "-f", "box"])?;
    until("the log so far", SOON, || match logs.stdout() {
        text if text.contains("started") => Ok(()),
        text => Err(text),
    })?;
    let ended = logs.interrupt()?;
    ensure(ended.code == 130, || format!("an interrupted `logs -f` ended with {}", ended.code))
}

pub(super) fn streams(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let shell =
        |script: &str| admin.run(&["run", "--rm", "-e", "GREETING=good day", "client", "sh", "-c", script]);
    let both = shell("echo \"$GREETING\"; echo bad >&2; exit 3")?;
    let right = (both.code, both.stdout.as_str(), both.stderr.trim()) == (3, "good day\n", "bad");
    ensure(right, || format!("run gave {both:?}"))?;
    shell("sh -c 'kill -9 $$'; exit $?")?.expect_code(137)?;
    let many = shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")?;
    ensure(many.stdout.lines().count() == 20_000, || {
        format!("20000 lines became {}", many.stdout.lines().count())
    })?;
    // Much more than a node holds, to somebody who reads slowly: nothing is lost, the container waits.
    let reader = Wherry::new("/bin/sh".into(), admin.home().to_owned());
    let slowly =
        format!("'{}' run --rm client seq 100000 | (sleep 1; tail -n 1; )", admin.binary().display());
    let outcome = reader.run(&["-c", &slowly])?.expect_stdout("100000\n")?;
    ensure(!outcome.stderr.contains("dropped"), || format!("output was lost: {outcome:?}"))?;
    let counted = format!("'{}' run --rm client seq 100000 | (sleep 1; wc -l)", admin.binary().display());
    reader.run(&["-c", &counted])?.expect_stdout("100000\n")?;
    admin.run(&["run", "--rm", "client", "/no/such/program"])?.expect_code(127).map(drop)
}

/// What a container may not do, tried from inside.
pub(super) fn confinement(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let inside = |script: &str| admin.run(&["run", "--rm", "client", "sh", "-c", script]);
    for (what, script) in [
        ("mounts", "mount -t tmpfs t /mnt"),
        ("loads a kernel's configuration", "echo 1 > /proc/sys/kernel/sysrq"),
        ("reads kernel memory", "cat /proc/kcore"),
        ("makes a device", "mknod /tmp/d b 254 0"),
        ("sets the clock", "! date -s 2001-01-01 2>&1 | grep -q 'not permitted'"),
        ("reboots", "reboot -f"),
        ("changes the host name", "hostname evil"),
    ] {
        let outcome = inside(script)?;
        ensure(outcome.code != 0, || format!("a container {what}: {outcome:?}"))?;
    }
    let processes = inside("ls -d /proc/[0-9]* | wc -l")?.expect_code(0)?;
    let count: u32 = processes.stdout.trim().parse().unwrap_or(u32::MAX);
    ensure(count <= 4, || format!("a container sees {count} processes"))?;
    let privileges = inside("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status")?.expect_code(0)?;
    let tight = privileges.stdout.contains("NoNewPrivs:\t1") && privileges.stdout.contains("Seccomp:\t2");
    ensure(tight, || format!("a container has {}", privileges.stdout))?;
    let ids =
        inside("cat /proc/self/uid_map; stat -c %u /bin/busybox /etc/hosts /dev/null")?.expect_code(0)?;
    let words: Vec<&str> = ids.stdout.split_whitespace().collect();
    let own = matches!(words[..], ["0", first, "65536", "0", "0", "0"] if first != "0");
    ensure(own, || format!("a container has no ids of its own: {}", ids.stdout))
}

/// A shell in a terminal, as people use it.
pub(super) fn terminal(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let mut shell = admin.in_terminal(&["run", "-it", "--rm", "--name", "shell", "client", "sh"], 33, 99)?;
    shell.expect("# ", SOON)?;
    // The words of the answers must not be in the questions: the terminal shows both.
    shell.press("busybox stty size; echo over$((6 * 7))there\r")?;
    shell.expect("33 99", SOON)?;
    shell.expect("over42there", SOON)?;
    shell.resize(44, 111)?;
    until("the new size", SOON, || {
        shell.press("busybox stty size\r").map_err(|error| error.to_string())?;
        shell.expect("44 111", Duration::from_secs(2)).map_err(|error| error.to_string())
    })?;
    // Ctrl-C reaches the program in front, not the shell and not `wherry`.
    shell.press("sleep 1000; echo inter$((1 + 1))rupted\r")?;
    std::thread::sleep(Duration::from_secs(1));
    shell.press("\x03")?;
    shell.press("echo still$((2 + 2))here\r")?;
    shell.expect("still4here", SOON)?;
    let mut second = admin.in_terminal(&["exec", "-it", "shell", "sh"], 20, 80)?;
    second.expect("# ", SOON)?;
    second.press("tty; exit 9\r")?;
    second.expect("/dev/", SOON)?;
    second.expect_code(9, SOON)?;
    shell.press("exit 7\r")?;
    shell.expect_code(7, SOON)
}

/// Bounds hold, and who exceeds them is told which one it was.
pub(super) fn limits(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let inside = |flags: &[&str], script: &str| {
        admin.run(&[&["run", "--rm"], flags, &["client", "sh", "-c", script]].concat())
    };
    let forks = "i=0; while [ $i -lt 60 ]; do sleep 3 & i=$((i+1)); done; echo all; wait";
    if !world.abilities().limits {
        // Without controllers the node says so (see `resources`), and bounds are not enforced.
        return inside(&["--memory", "16m", "--pids-limit", "20"], forks)?.expect_stdout("all").map(drop);
    }
    let read = "cd /sys/fs/cgroup; cat memory.max pids.max; cat cpu.max";
    inside(&["--memory", "16m", "--pids-limit", "20", "--cpus", "0.5"], read)?
        .expect_stdout("16777216\n20\n50000 100000\n")?;
    let many = inside(&["--pids-limit", "20"], forks)?;
    ensure(many.code != 0 && !many.stdout.contains("all"), || format!("60 processes of 20: {many:?}"))?;
    let grow = "x=0123456789abcdef; while true; do x=$x$x; done";
    let command = ["run", "--name", "greedy", "--memory", "16m", "client", "sh", "-c", grow];
    let grown = admin.run(&command)?.expect_code(137)?;
    ensure(grown.stderr.contains("memory"), || format!("it does not say why: {grown:?}"))?;
    let listed = admin.ok(&["ps", "-a"])?;
    ensure(listed.contains("out of memory"), || format!("`wherry ps -a`: {listed}"))?;
    admin.ok(&["rm", "greedy"])?;
    // The least that may be asked for is enough to start in, or it is said that it was not.
    admin.refused(&["run", "--memory", "1023k", "client", "true"], "at least 1m")?;
    let least = admin.run(&["run", "--rm", "--memory", "1m", "client", "true"])?;
    ensure(least.code == 0 || (least.code == 137 && least.stderr.contains("memory")), || {
        format!("1 MiB of memory: {least:?}")
    })?;
    // The board itself has lost nothing.
    admin.run(&["run", "--rm", "client", "true"])?.expect_code(0).map(drop)
}

/// What should run is started again, with its log, its files and its address; what somebody stopped is not.
pub(super) fn restarts(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    // Each life lasts until somebody asks it to end; `end` is gone with the life that it ended.
    let life =
        "echo life >> /lives; wc -l < /lives; while [ ! -e /end ]; do sleep 0.1; done; rm /end; exit 3";
    let command = ["run", "-d", "--restart", "always", "--name", "phoenix", "client", "sh", "-c", life];
    admin.ok(&command)?;
    let first = wait_for_state(admin, "phoenix", "running", SOON)?;
    for count in 2..=3_u32 {
        admin.run(&["exec", "phoenix", "--", "touch", "/end"])?.expect_code(0)?;
        until(&format!("life {count}"), SOON, || match admin.ok(&["logs", "phoenix"]) {
            Ok(log) if log.lines().count() >= count as usize => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        let view = wait_for_state(admin, "phoenix", "running", SOON)?;
        ensure(view.address == first.address && view.pid != first.pid, || {
            format!("{first:?}, now {view:?}")
        })?;
    }
    let lives = admin.ok(&["logs", "phoenix"])?;
    ensure(lives == "1\n2\n3\n", || format!("its lives are {lives}"))?;
    let inspected = admin.json(&["inspect", "phoenix"])?;
    ensure(inspected[0]["restarts"] == 2, || format!("restarts: {}", inspected[0]["restarts"]))?;
    admin.ok(&["stop", "-t", "0", "phoenix"])?;
    wait_for_state(admin, "phoenix", "exited", SOON)?;
    std::thread::sleep(Duration::from_secs(1));
    wait_for_state(admin, "phoenix", "exited", Duration::ZERO)?;
    admin.ok(&["rm", "phoenix"])?;
    // One that fails at once is tried so often and no more.
    let command = [
        "run",
        "-d",
        "--restart",
        "on-failure:2",
        "--name",
        "moth",
        "client",
        "sh",
        "-c",
        "echo try; exit 9",
    ];
    admin.ok(&command)?;
    let moth = wait_for_state(admin, "moth", "exited", SOON)?;
    ensure(moth.exit_code == Some(9), || format!("{moth:?}"))?;
    let tries = admin.ok(&["logs", "moth"])?;
    ensure(tries == "try\ntry\ntry\n", || format!("its tries are {tries}"))?;
    admin.ok(&["rm", "moth"]).map(drop)
}

/// Names change; what runs and what it uses can be seen; wishes are granted or refused in one sentence.
pub(super) fn settings(world: &mut dyn World) -> Result<(), Failure> {
    let admin = world.admin();
    let flags = "run -d --name old --stop-signal USR1 --tmpfs /scratch:size=1m --cap-drop ALL --cap-add NET_RAW \
                 --ulimit nofile=99 --sysctl net.ipv4.tcp_fin_timeout=55 --add-host db:10.9.0.9 --dns 9.8.7.6 client";
    let mut run: Vec<&str> = flags.split_whitespace().collect();
    run.extend(["sh", "-c", "trap 'echo bye; exit 4' USR1; echo up; while :; do sleep 0.1; done"]);
    admin.ok(&run)?;
    wait_for_state(admin, "old", "running", SOON)?;
    admin.ok(&["rename", "old", "new"])?;
    admin.refused(&["logs", "old"], "old")?;
    let look = "df -k /scratch | tail -1 | awk '{print $2}'; grep CapBnd /proc/self/status; ulimit -n
cat /proc/sys/net/ipv4/tcp_fin_timeout; grep -c db /etc/hosts; cat /etc/resolv.conf";
    admin
        .run(&["exec", "new", "--", "sh", "-c", look])?
        .expect_stdout("1024\nCapBnd:\t0000000000002000\n99\n55\n1\nnameserver 9.8.7.6\n")?;
    let top = admin.ok(&["top", "new"])?;
    ensure(top.contains("sh -c trap"), || format!("`wherry top`: {top}"))?;
    let stats = admin.run(&["--json", "stats", "--no-stream", "new"])?.expect_code(0)?;
    let stats: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap_or_default();
    let counted = stats["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    ensure(counted == world.abilities().limits, || format!("`wherry stats`: {stats}"))?;
    let stamped = admin.ok(&["logs", "-t", "new"])?;
    ensure(stamped.starts_with("20") && stamped.ends_with("Z up\n"), || format!("`logs -t`: {stamped}"))?;
    ensure(admin.ok(&["logs", "--since", "1h", "new"])? == "up\n", || "`logs --since 1h` lacks it".into())?;
    ensure(admin.ok(&["logs", "--since", "2035-01-01T00:00:00Z", "new"])?.is_empty(), || {
        "`logs --since` shows what came before".into()
    })?;
    admin.ok(&["stop", "new"])?;
    let ended = wait_for_state(admin, "new", "exited", SOON)?;
    ensure(ended.exit_code == Some(4), || format!("its own stop signal did not reach it: {ended:?}"))?;
    admin.ok(&["restart", "-t", "0", "new"])?;
    wait_for_state(admin, "new", "running", SOON)?;
    admin.ok(&["rm", "-f", "new"])?;
    // Older kernels need a network namespace of another kind for this one.
    let look = "cat /proc/sys/net/core/somaxconn; wc -l < /proc/self/uid_map; ls /sys/class/net";
    let core = ["run", "--rm", "--sysctl", "net.core.somaxconn=55", "client", "sh", "-c", look];
    admin.run(&core)?.expect_stdout("55\n1\neth0\nlo\n")?;
    admin.refused(&["run", "--cap-add", "SYS_ADMIN", "client"], "SYS_ADMIN")?;
    admin.refused(&["run", "--sysctl", "kernel.core_pattern=x", "client"], "kernel.core_pattern")?;
    admin.refused(&["run", "--tmpfs", "/proc", "client"], "/proc").map(drop)
}

/// Files go in and come out as they were, and nothing gets where it should not.
pub(super) fn copies(world: &mut dyn World) -> Result<(), Failure> {
    const NOISE_BYTES: usize = 3 << 20;
    let admin = world.admin();
    let here = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let path = |name: &str| here.path().join(name).display().to_string();
    let noise = noise(NOISE_BYTES, 7);
    fs::create_dir_all(here.path().join("site/sub")).map_err(Failure::io("make a directory"))?;
    fs::write(here.path().join("site/sub/noise"), &noise).map_err(Failure::io("write a file"))?;
    admin.ok(&["run", "-d", "--name", "box", "client", "sleep", "1d"])?;
    wait_for_state(admin, "box", "running", SOON)?;
    admin.ok(&["cp", &path("site"), "box:/srv"])?;
    admin.ok(&["cp", &path("site"), "box:/tmp"])?;
    let sizes = "wc -c < /srv/sub/noise; wc -c < /tmp/site/sub/noise; stat -c %u /srv/sub/noise";
    let expected = format!("{NOISE_BYTES}\n{NOISE_BYTES}\n0\n");
    admin.run(&["exec", "box", "--", "sh", "-c", sizes])?.expect_stdout(&expected)?;
    admin.ok(&["cp", "box:/srv", &path("back")])?;
    let back = fs::read(here.path().join("back/sub/noise")).map_err(Failure::io("read what came back"))?;
    ensure(back == noise, || format!("{} bytes came back, and not the same", back.len()))?;
    let wherry = admin.binary().display().to_string();
    let shell = Wherry::new("/bin/sh".into(), admin.home().to_owned());
    // Archives of other programs, as they come and go through pipes.
    let piped = format!(
        "tar cC '{}' . | '{wherry}' cp - box:/tmp/dot && '{wherry}' cp box:/tmp/dot/sub/noise - | tar xO | wc -c",
        path("site")
    );
    shell.run(&["-c", &piped])?.expect_stdout(&format!("{NOISE_BYTES}\n"))?;
    let nonsense = format!("echo no archive | '{wherry}' cp - box:/tmp");
    shell.refused(&["-c", &nonsense], "no whole tar archive")?;
    admin.ok(&["cp", "box:/etc/hostname", &path("name")])?;
    let name = fs::read_to_string(here.path().join("name")).map_err(Failure::io("read what came back"))?;
    ensure(name == "box\n", || format!("its /etc/hostname is {name:?}"))?;
    // A link out of the image's root leads nowhere else inside.
    admin.run(&["exec", "box", "--", "ln", "-s", "/../../../etc", "/tmp/up"])?.expect_code(0)?;
    admin.ok(&["cp", "box:/tmp/up/", &path("etc")])?;
    let shadow = here.path().join("etc/shadow").exists();
    ensure(!shadow && here.path().join("etc/hostname").exists(), || {
        "a link led out of the container".into()
    })?;
    admin.refused(&["cp", "box:/no/such", &path("x")], "no such file")?;
    admin.refused(&["cp", &path("site"), "box:/no/such/place"], "/no/such")?;
    admin.refused(&["cp", &path("missing"), "box:/tmp"], "missing")?;
    admin.refused(&["cp", &path("site"), "nobody:/tmp"], "nobody")?;
    // Output of which much is still on its way when the program has ended.
    let slowly =
        format!("'{wherry}' exec box -- dd if=/dev/zero bs=64k count=48 2>/dev/null | (sleep 2; wc -c)");
    shell.run(&["-c", &slowly])?.expect_stdout(&format!("{}\n", 48 * 64 * 1024))?;
    admin.ok(&["rm", "-f", "box"]).map(drop)
}
