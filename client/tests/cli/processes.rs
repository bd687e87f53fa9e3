//! `run`, `exec` and `attach` without a terminal: bytes, signals, exit codes.
use crate::world::{Ran, World, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

#[test]
fn the_exit_code_is_the_container_s() {
    let world = World::joined();
    let hello = world.line("run web hello world");
    assert_eq!((hello.ok(), hello.err.as_str()), ("hello world\n", ""));
    assert_eq!(world.line("run web exit 7").code, Some(7));
    let split = world.line("run web err oops");
    assert_eq!((split.ok(), split.err.as_str()), ("", "oops"));
    world.line("run web hungry").fails(137, "it reached its memory limit");
    world.line("run web missing").fails(127, "no such program 'missing' in the image");
    world.line("run nothing").fails(125, "no image is called 'nothing:latest': push it first");
    world.line("run Bad!").fails(2, "'Bad!' names no image");
    world.line("run -it web sh").fails(125, "-it needs a terminal");
    let late = world.line("run --name late web quick");
    assert_eq!((late.code, late.out.as_str()), (Some(5), "late: one\nlate: two\nlate: three\n"));
}

#[test]
fn detached_containers_stay_and_foreground_ones_can_be_removed() {
    let world = World::joined();
    assert_eq!(world.line("run -d --name web web sleep").ok(), "c1\n");
    let shown = world.line("run -d --json web sleep").json();
    assert_eq!((&shown["id"], &shown["detached"]), (&"c2".into(), &true.into()));
    world.line("run -d web missing").fails(127, "no such program");
    assert_eq!(world.broker.state().containers.len(), 3);
    world.line("run --rm web hello").ok();
    world.line("run --rm web missing").fails(127, "no such program");
    assert_eq!(world.line("run --rm web exit 3").code, Some(3));
    assert_eq!(world.broker.state().containers.len(), 3, "those with --rm are gone");
    world.line("run web hello").ok();
    assert_eq!(world.broker.state().containers.len(), 4, "the one without stays");
}

#[test]
fn standard_input_travels() {
    let world = World::joined();
    let big: Vec<u8> = (0..1_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let ran = world.run_with_input(&["run", "-i", "web", "cat"], &big);
    assert!(ran.ok().as_bytes() == big, "a million bytes come back");
    world.broker.state().add("there", &["cat"]);
    assert_eq!(world.run_with_input(&["exec", "-i", "there", "cat"], b"in\n").ok(), "in\n");
    assert_eq!(world.run_with_input(&["attach", "there"], b"again\n").ok(), "again\n");
}

#[test]
fn exec_has_docker_s_exit_codes() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    assert_eq!(world.line("exec web hello").ok(), "hello\n");
    assert_eq!(world.line("exec web -- ls -l").ok(), "ls -l\n");
    assert_eq!(world.line("exec c1 exit 9").code, Some(9));
    world.line("exec web missing").fails(127, "no such program");
    world.line("exec nothing ls").fails(125, "no container is called 'nothing'");
    assert_eq!(world.line("exec web").code, Some(2));
    world.line("exec web --").fails(2, "no command");
    world.line("stop web").ok();
    world.line("exec web ls").fails(125, "container 'web' does not run");
}

#[test]
fn json_lines_carry_output_and_exit_code() {
    let world = World::joined();
    let ran = world.line("--json run web hello");
    assert_eq!(ran.ok(), "{\"channel\":\"stdout\",\"data\":\"hello\\n\"}\n{\"exit_code\":0}\n");
    assert_eq!(world.line("--json run web exit 4").code, Some(4));
}

/// Starts a command that prints `ready` and waits for that.
fn ready(world: &World, arguments: &[&str]) -> Child {
    let mut child = world.spawn(arguments, Stdio::null());
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn signals_are_forwarded() {
    let world = World::joined();
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15)] {
        let child = ready(&world, &["run", "web", "sleep"]);
        kill_process(pid(&child), signal).unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!(ran.code, Some(128 + number), "{ran:?}");
    }
    assert_eq!(world.broker.state().signals, [2, 15]);
}

#[test]
fn the_third_interrupt_leaves_a_process_that_does_not_listen() {
    let world = World::joined();
    let mut child = ready(&world, &["run", "web", "stubborn"]);
    eventually("the end", || {
        kill_process(pid(&child), Signal::INT).unwrap_or_default();
        std::thread::sleep(std::time::Duration::from_millis(20));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_broker_that_goes_away_is_reported() {
    let world = World::joined();
    let child = ready(&world, &["run", "web", "sleep"]);
    world.broker.cut();
    let ran: Ran = child.wait_with_output().unwrap().into();
    ran.fails(125, "lost the connection to the broker at 127.0.0.1");
}
