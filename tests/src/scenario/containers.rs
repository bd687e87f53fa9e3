//! The life of containers.
use super::view::{container, wait_for_state};
use crate::cli::Wherry;
use crate::failure::{Failure, ensure};
use crate::wait::until;
use crate::world::World;
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
    ensure(tight, || format!("a container has {}", privileges.stdout))
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
        return inside(&["--memory", "32m", "--pids-limit", "20"], forks)?.expect_stdout("all").map(drop);
    }
    let read = "cd /sys/fs/cgroup; cat memory.max pids.max; cat cpu.max";
    inside(&["--memory", "32m", "--pids-limit", "20", "--cpus", "0.5"], read)?
        .expect_stdout("33554432\n20\n50000 100000\n")?;
    let many = inside(&["--pids-limit", "20"], forks)?;
    ensure(many.code != 0 && !many.stdout.contains("all"), || format!("60 processes of 20: {many:?}"))?;
    let grow = "x=0123456789abcdef; while true; do x=$x$x; done";
    let command = ["run", "--name", "greedy", "--memory", "16m", "client", "sh", "-c", grow];
    let grown = admin.run(&command)?.expect_code(137)?;
    ensure(grown.stderr.contains("memory"), || format!("it does not say why: {grown:?}"))?;
    let listed = admin.ok(&["ps", "-a"])?;
    ensure(listed.contains("out of memory"), || format!("`wherry ps -a`: {listed}"))?;
    admin.ok(&["rm", "greedy"])?;
    // The board itself has lost nothing.
    admin.run(&["run", "--rm", "client", "true"])?.expect_code(0).map(drop)
}
