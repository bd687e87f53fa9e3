//! One more process in a running container.
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use support::{Running, World, eventually, spec};
use wherry_node::container::plan::Plan;
use wherry_node::container::report::{Report, Step};
use wherry_protocol::message::{ContainerSpec, ExecSpec};
use wherry_sys::process::End;

/// A container that waits, and its plan.
fn waiting(world: &World, spec: ContainerSpec) -> (Running, Plan) {
    let plan = world.plan(spec);
    let mut running = world.start_plan(&plan);
    running.wait_for("up");
    (running, plan)
}

const WAIT: [&str; 3] = ["sh", "-c", "echo up; exec sleep 100"];

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec { command: words.iter().map(|&word| word.to_owned()).collect(), ..ExecSpec::default() }
}

fn script(text: &str) -> ExecSpec {
    command(&["sh", "-c", text])
}

#[test]
fn it_is_inside_with_the_same_rights() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let text = "grep -e Cap -e NoNew -e Seccomp: /proc/self/status; for n in mnt pid net uts ipc cgroup; do ls -l /proc/1/ns/$n /proc/self/ns/$n; done; ls /proc/self/fd";
    let finished = container.exec(&plan.process, &script(text)).finish();
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
    let out = finished.stdout;
    for line in ["CapEff:\t00000000000005fb", "CapBnd:\t00000000000005fb", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    for name in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let links: Vec<&str> = out
            .lines()
            .filter_map(|line| line.split_once(&format!("-> {name}:")))
            .map(|(_, id)| id)
            .collect();
        assert!(links.len() == 2 && links[0] == links[1], "{name}: {out}");
    }
    assert!(out.ends_with("\n0\n1\n2\n3\n"), "no descriptor of the node is left: {out}");
    container.kill();
}

#[test]
fn its_end_is_told_exactly() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    for code in [0, 1, 42, 255] {
        let finished = container.exec(&plan.process, &script(&format!("exit {code}"))).finish();
        assert_eq!(finished.reports, [Report::Executing, Report::Code(code)]);
    }
    for signal in [9, 15, 6] {
        let finished = container.exec(&plan.process, &script(&format!("kill -{signal} $$"))).finish();
        assert_eq!(finished.reports, [Report::Executing, Report::Signal(signal)]);
    }
    container.kill();
}

#[test]
fn signals_to_the_helper_reach_the_process() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let trap = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done";
    let mut process = container.exec(&plan.process, &script(trap));
    process.wait_for("ready");
    process.signal(10);
    let finished = process.finish();
    assert_eq!((finished.stdout.as_str(), finished.reports.last()), ("\ngot\n", Some(&Report::Code(5))));
    let mut process = container.exec(&plan.process, &script("echo ready; exec sleep 100"));
    process.wait_for("ready");
    process.signal(34 + 3);
    assert_eq!(process.finish().reports.last(), Some(&Report::Signal(37)), "real-time signals too");
    container.kill();
}

#[test]
fn a_killed_helper_takes_the_process_along() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    for user in ["root", "ann"] {
        let spec = ExecSpec { user: Some(user.into()), ..script("echo ready; exec sleep 4242") };
        let mut process = container.exec(&plan.process, &spec);
        process.wait_for("ready");
        process.kill();
        let gone = || {
            let list =
                container.exec(&plan.process, &script("cat /proc/[0-9]*/cmdline | grep -c 4242")).finish();
            // The shell's own command line has the number too.
            list.stdout.trim() == "1"
        };
        eventually("the end of the process", gone);
    }
    container.kill();
}

#[test]
fn input_environment_user_and_directory() {
    let world = World::new();
    let first = ContainerSpec { env: vec![("A".into(), "1".into())], ..spec(&WAIT) };
    let (container, plan) = waiting(&world, first);
    let spec = ExecSpec {
        env: vec![("B".into(), "2".into())],
        user: Some("ann".into()),
        workdir: Some("/tmp".into()),
        stdin: true,
        ..script("cat; echo $A$B$HOME; id -u; pwd")
    };
    let mut process = container.exec(&plan.process, &spec);
    process.stdin.as_mut().unwrap().write_all(b"said\n").unwrap();
    assert_eq!(process.finish().stdout, "said\n12/home/ann\n1000\n/tmp\n");
    container.kill();
}

#[test]
fn a_terminal_is_controlled() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let spec = ExecSpec {
        tty: Some((24, 80)),
        ..script("stty size; test -t 1 && echo all; echo direct > /dev/tty; echo end")
    };
    let mut process = container.exec(&plan.process, &spec);
    let mut terminal = process.terminal.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.contains("end") {
        let length = terminal.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert_eq!(text, "24 80\r\nall\r\ndirect\r\nend\r\n");
    assert_eq!(process.finish().reports.last(), Some(&Report::Code(0)));
    container.kill();
}

#[test]
fn failures_are_sentences() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let failure = container.exec(&plan.process, &command(&["foo"])).finish().failure();
    assert_eq!(failure.to_string(), "could not start: no such program 'foo' in the image, check the command");
    let finished = container.exec(&plan.process, &command(&["foo"])).finish();
    assert_eq!(finished.reports.len(), 1, "nothing follows a failure: {finished:?}");
    container.signal(9);
    let pidfd = container.pidfd.try_clone().unwrap();
    eventually("the end of the container", || {
        wherry_sys::process::pidfd_send_signal(&pidfd, 0).is_err() || {
            let text = fs::read_to_string(format!("/proc/{}/stat", container.pid)).unwrap_or_default();
            text.contains(") Z ")
        }
    });
    assert_eq!(container.exec(&plan.process, &command(&["true"])).finish().failure().step, Step::Join);
    assert_eq!(container.finish().end, End::Signal(9));
}

#[test]
fn the_end_of_the_container_is_the_end_of_the_process() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let mut process = container.exec(&plan.process, &script("echo ready; exec sleep 100"));
    process.wait_for("ready");
    container.kill();
    assert_eq!(process.finish().reports.last(), Some(&Report::Signal(9)));
}

#[test]
fn the_node_s_program_cannot_be_written_through_a_helper() {
    let world = World::new();
    let (container, plan) = waiting(&world, spec(&WAIT));
    let program = env!("CARGO_BIN_EXE_wherry-node");
    let before = fs::read(program).unwrap();
    // Somebody inside waits for helpers and tries to get at the program behind them.
    let attack = "echo ready; while :; do for p in /proc/[0-9]*; do echo x >> $p/exe; done; done 2>/dev/null";
    let mut attacker = container.exec(&plan.process, &script(attack));
    attacker.wait_for("ready");
    for _ in 0..20 {
        container.exec(&plan.process, &command(&["/proc/self/exe", "container"])).finish();
    }
    attacker.kill();
    container.kill();
    assert_eq!(fs::read(program).unwrap(), before);
}
