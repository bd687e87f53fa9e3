//! The whole runtime: images fetched, containers started, watched, crashed away from and found again, removed.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::service::{Service, World, output, sh};
use support::{eventually, spec};
use wherry_node::container::execute::Execution;
use wherry_node::container::usage;
use wherry_protocol::message::{
    ContainerDesired, ContainerSpec, ContainerState, Descriptor, ExecSpec, ExitStatus, ImageManifest, Media,
    ProcessInfo, Setting,
};
use wherry_protocol::{ContainerId, ContainerRef, Digest, ErrorCode, Generation, WireError};

#[test]
fn a_container_runs_is_heard_and_ends() {
    let world = World::new();
    let mut service = Service::new(&world);
    assert!(service.adopted.is_empty());
    let (text, status) = service.run(&world.desired(1, 1, spec(&["echo", "hello"])));
    assert_eq!((text.as_str(), status), ("hello\n", ExitStatus::Code(0)));
    let (text, status) = service.run(&world.desired(2, 1, sh("echo out; echo err >&2; exit 42")));
    assert_eq!((text.len(), status), (8, ExitStatus::Code(42)));
    let trapped = world.desired(3, 1, sh("trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"));
    let instance = service.start(&trapped).unwrap();
    eventually("its first word", || output(&instance) == "up\n");
    service.tokio.block_on(service.runtime.signal(trapped.container, 15)).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(9));
    let error = service.tokio.block_on(service.runtime.signal(trapped.container, 15)).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::WrongState, "container c3 is not running"));
}

#[test]
fn the_network_is_there_before_the_program() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, spec(&["cat", "/proc/sys/net/ipv4/ip_default_ttl"]));
    let connect = |pidfd: std::os::fd::OwnedFd| async move {
        let inside = move || {
            wherry_sys::process::setns(&pidfd, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            fs::write("/proc/sys/net/ipv4/ip_default_ttl", "33").unwrap();
        };
        std::thread::spawn(inside).join().unwrap();
        Ok(())
    };
    service.tokio.block_on(service.runtime.start(&desired, &[], &world.blobs, connect)).unwrap();
    let instance = service.runtime.instance(desired.container).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(0));
    assert_eq!(output(&instance), "33\n");
}

#[test]
fn input_comes_to_its_end() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, ContainerSpec { stdin_open: true, ..sh("cat; echo over") });
    let instance = service.start(&desired).unwrap();
    service.tokio.block_on(instance.input().write(b"said\n")).unwrap();
    service.tokio.block_on(service.runtime.end_input(&instance));
    assert_eq!(service.exit().ended.status, ExitStatus::Code(0));
    assert_eq!(output(&instance), "said\nover\n");
    // Without stdin_open it reads end-of-file at once.
    assert_eq!(service.run(&world.desired(2, 1, sh("cat; echo over"))).0, "over\n");
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    let world = World::new();
    let mut service = Service::new(&world);
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done";
    let instance = service.start(&world.desired(1, 1, ContainerSpec { tty: true, ..sh(script) })).unwrap();
    eventually("the first size", || output(&instance).contains("ready"));
    instance.resize(50, 132);
    assert_eq!(service.exit().ended.status, ExitStatus::Code(0));
    assert_eq!(output(&instance), "24 80\r\nready\r\n50 132\r\n");
}

#[test]
fn output_without_a_reader_never_holds_a_container_up() {
    let world = World::new();
    let mut service = Service::new(&world);
    let script = "i=0; while [ $i -lt 20000 ]; do echo line number $i of a lot of them; i=$((i+1)); done";
    let instance = service.start(&world.desired(1, 1, sh(script))).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(0));
    let batch = instance.log.read(0, usize::MAX).unwrap();
    assert!(batch.dropped > 0, "the ring is bounded");
    assert!(output(&instance).ends_with("line number 19999 of a lot of them\n"));
}

fn processes_below(cgroup: &Path) -> String {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default()).collect()
}

#[test]
fn nothing_is_left_after_removal() {
    let world = World::new();
    let service = Service::new(&world);
    let mounts = || {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .matches(world.base.path().to_str().unwrap())
            .count()
    };
    let desired = world.desired(1, 1, sh("sleep 1000 & touch /written; echo up; wait"));
    let instance = service.start(&desired).unwrap();
    eventually("its first word", || output(&instance) == "up\n");
    assert!(world.data().join("containers/1/upper/written").exists());
    let process = PathBuf::from(format!("/proc/{}", instance.pid));
    let waiting = service.tokio.spawn({
        let instance = Arc::clone(&instance);
        async move { instance.wait().await }
    });
    service.remove(desired.container);
    assert!(!process.exists(), "its process is gone when removal is done");
    assert_eq!(service.tokio.block_on(waiting).unwrap().status, ExitStatus::Signal(9), "who waits is told");
    assert!(!world.data().join("containers/1").exists());
    assert!(!world.cgroup.join("c1").exists());
    assert_eq!((mounts(), processes_below(&world.cgroup).as_str()), (0, ""));
    assert!(service.runtime.instance(desired.container).is_none());
    // Again is fine, and so is what never was.
    service.remove(desired.container);
    service.remove(ContainerRef { id: ContainerId(99), generation: Generation(1) });
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing_running() {
    let mut world = World::new();
    let no_image =
        ImageManifest { config: world.blobs.add(b"{".to_vec(), Media::Config), layers: Vec::new() };
    let gone = Descriptor { digest: Digest::of(b"gone"), size: 4, media: Media::Config };
    let service = Service::new(&world);
    let fail = |desired: &ContainerDesired| {
        let error = service.start(desired).map(drop).unwrap_err();
        assert!(service.runtime.instance(desired.container).is_none());
        (error.code, error.message)
    };
    let expected = "could not start: no such program 'foo' in the image, check the command";
    assert_eq!(fail(&world.desired(1, 1, spec(&["foo"]))), (ErrorCode::StartFailed, expected.to_owned()));
    let bob = ContainerSpec { user: Some("bob".into()), ..spec(&["true"]) };
    assert!(fail(&world.desired(2, 1, bob)).1.contains("no user or group 'bob'"));
    let (code, text) = fail(&world.desired(3, 1, spec(&[])));
    assert_eq!(
        (code, text.as_str()),
        (ErrorCode::Invalid, "the image names no program to run: give a command")
    );
    let damaged = ContainerDesired { image: no_image, ..world.desired(4, 1, spec(&["true"])) };
    assert_eq!(fail(&damaged).0, ErrorCode::BadImage);
    let image = ImageManifest { config: gone, layers: Vec::new() };
    assert_eq!(
        fail(&ContainerDesired { image, ..world.desired(5, 1, spec(&["true"])) }).0,
        ErrorCode::NotFound
    );
    let desired = world.desired(6, 1, spec(&["true"]));
    let refuse = |_| async { Err(WireError::new(ErrorCode::Internal, "no network today")) };
    let error =
        service.tokio.block_on(service.runtime.start(&desired, &[], &world.blobs, refuse)).unwrap_err();
    assert_eq!(error.message, "no network today");
    assert_eq!(processes_below(&world.cgroup), "");
    // The same container may try again in its next life.
    service.start(&world.desired(1, 2, spec(&["true"]))).unwrap();
}

#[test]
fn a_new_generation_keeps_the_files_and_never_doubles() {
    let world = World::new();
    let mut service = Service::new(&world);
    service.run(&world.desired(1, 1, sh("echo first >> /file")));
    assert_eq!(service.run(&world.desired(1, 2, sh("echo second >> /file; cat /file"))).0, "first\nsecond\n");
    let sleeping = world.desired(1, 3, spec(&["sleep", "1000"]));
    service.start(&sleeping).unwrap();
    let error = service.start(&world.desired(1, 4, spec(&["true"]))).map(drop).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::WrongState, "container c1 is still running")
    );
    service.remove(ContainerRef { generation: Generation(2), ..sleeping.container });
    assert!(service.runtime.instance(sleeping.container).is_some(), "a late removal touches nothing");
    service.remove(sleeping.container);
    service.exit();
    assert_eq!(service.run(&world.desired(1, 4, sh("test -e /file || echo gone"))).0, "gone\n");
}

#[test]
fn a_crash_of_the_service_loses_nothing() {
    let world = World::new();
    let service = Service::new(&world);
    let talking = world.desired(
        1,
        1,
        sh("n=0; while [ ! -e /stop ]; do echo $n; n=$((n+1)); sleep 0.02; done; exit 7"),
    );
    let ending = world.desired(2, 1, sh("read x; echo last word; exit 5"));
    let terminal = world.desired(3, 1, ContainerSpec { tty: true, ..sh("echo tty; read x; exit 6") });
    let first = service.start(&talking).unwrap();
    let second = service
        .start(&ContainerDesired {
            spec: ContainerSpec { stdin_open: true, ..ending.spec.clone() },
            ..ending.clone()
        })
        .unwrap();
    let third = service.start(&terminal).unwrap();
    eventually("some words", || output(&first).lines().count() > 5 && output(&third).contains("tty"));
    let pids = [first.pid, second.pid, third.pid];
    // The crash: every task and descriptor of the service is gone at once.
    drop((first, second, third));
    service.tokio.shutdown_timeout(std::time::Duration::from_millis(100));
    drop(service.runtime);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut service = Service::new(&world);
    assert_eq!(service.adopted.len(), 3);
    for report in &service.adopted {
        let ContainerState::Running { pid, .. } = report.state else { panic!("it runs: {report:?}") };
        assert!(pids.contains(&pid), "the same processes");
    }
    let first = service.runtime.instance(talking.container).unwrap();
    eventually("words from the time of the crash and after", || output(&first).lines().count() > 30);
    let second = service.runtime.instance(ending.container).unwrap();
    service.tokio.block_on(second.input().write(b"go\n")).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(5));
    assert_eq!(output(&second), "last word\n");
    let third = service.runtime.instance(terminal.container).unwrap();
    service.tokio.block_on(third.input().write(b"go\n")).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(6));
    assert_eq!(service.exec(&first, "touch /stop; echo done"), ("done\n".into(), Ok(ExitStatus::Code(0))));
    assert_eq!(service.exit().ended.status, ExitStatus::Code(7));
    let text = output(&first);
    let expected: String = (0..text.lines().count()).map(|n| format!("{n}\n")).collect();
    assert_eq!(text, expected, "every word, once, in order");
}

#[test]
fn an_end_during_the_crash_is_still_told() {
    let world = World::new();
    let service = Service::new(&world);
    let desired = world.desired(1, 1, sh("echo before; sleep 0.3; echo after; exit 3"));
    drop(service.start(&desired).unwrap());
    service.tokio.shutdown_timeout(std::time::Duration::from_millis(100));
    drop(service.runtime);
    std::thread::sleep(std::time::Duration::from_millis(600));
    let service = Service::new(&world);
    let [report] = service.adopted.as_slice() else { panic!("one: {:?}", service.adopted) };
    assert!(matches!(report.state, ContainerState::Exited { status: ExitStatus::Code(3), .. }), "{report:?}");
    let instance = service.runtime.instance(desired.container).unwrap();
    assert_eq!(output(&instance), "before\nafter\n");
    service.remove(desired.container);
    assert!(!world.data().join("containers/1").exists());
}

#[test]
fn exec_in_a_running_container() {
    let world = World::new();
    let service = Service::new(&world);
    let desired = world.desired(1, 1, spec(&["sleep", "1000"]));
    let instance = service.start(&desired).unwrap();
    assert_eq!(service.exec(&instance, "hostname || cat /etc/hostname; exit 4").1, Ok(ExitStatus::Code(4)));
    assert_eq!(service.exec(&instance, "kill -9 $$").1, Ok(ExitStatus::Signal(9)));
    let spec = ExecSpec { command: vec!["foo".into()], ..ExecSpec::default() };
    let error = service.tokio.block_on(async {
        let execution = Execution::start(service.runtime.supervisor(), &instance, &spec).await.unwrap();
        execution.wait().await.unwrap_err()
    });
    assert_eq!(error.message, "could not start: no such program 'foo' in the image, check the command");
    service.remove(desired.container);
    let gone = service.tokio.block_on(Execution::start(service.runtime.supervisor(), &instance, &spec));
    assert_eq!(gone.map(drop).unwrap_err().code, ErrorCode::WrongState);
}

/// The same life goes on: the same files, the same log.
#[test]
fn a_restart_keeps_the_log() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, sh("echo again >> /count; cat /count | wc -l; exit 3"));
    for expected in ["1\n", "1\n2\n", "1\n2\n3\n"] {
        assert_eq!(service.run(&desired), (expected.to_owned(), ExitStatus::Code(3)));
    }
    let anew = world.desired(1, 2, desired.spec.clone());
    assert_eq!(service.run(&anew).0, "4\n", "a new life has a log of its own");
    service.remove(anew.container);
}

#[test]
fn a_restart_that_fails_loses_no_log() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, sh("echo life"));
    assert_eq!(service.run(&desired).0, "life\n");
    let no_network = |_pidfd| async { Err(WireError::new(ErrorCode::StartFailed, "no network")) };
    let failed = service.tokio.block_on(service.runtime.start(&desired, &[], &world.blobs, no_network));
    assert_eq!(failed.unwrap_err().message, "no network");
    let log = service.runtime.log(desired.container).expect("a log between two starts");
    assert_eq!(log.read(0, usize::MAX).unwrap().entries.first().unwrap().bytes, b"life\n");
    assert_eq!(service.run(&desired).0, "life\nlife\n");
    service.remove(desired.container);
    assert!(service.runtime.log(desired.container).is_none());
    assert_eq!(service.run(&desired).0, "life\n", "removed is removed");
    service.remove(desired.container);
}

/// What it writes into them is its own memory, and gone with it.
#[test]
fn generated_files_are_written_anew_for_each_life() {
    let world = World::new();
    let mut service = Service::new(&world);
    let script =
        "cat /etc/hostname; stat -c %a /etc/hosts; ls -A /dev | grep -c generated; echo x > /etc/hostname";
    let desired = world.desired(1, 1, sh(script));
    let expected = "box\n644\n0\n";
    assert_eq!(service.run(&desired).0, expected);
    assert_eq!(service.run(&desired).0, expected.repeat(2));
    service.remove(desired.container);
}

#[test]
fn its_own_stop_signal_is_used() {
    let world = World::new();
    let mut service = Service::new(&world);
    let script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done";
    let spec = ContainerSpec { settings: vec![Setting::StopSignal(10)], ..sh(script) };
    let desired = world.desired(1, 1, spec);
    let instance = service.start(&desired).unwrap();
    eventually("it is ready", || output(&instance) == "ready\n");
    service.tokio.block_on(service.runtime.ask_to_stop(desired.container, 15)).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(5));
    service.remove(desired.container);
}

#[test]
fn what_runs_and_what_it_uses_is_told() {
    let world = World::new();
    let service = Service::new(&world);
    let desired = world.desired(1, 1, sh("sleep 1000 & sleep 1000 & wait"));
    let instance = service.start(&desired).unwrap();
    let shown = || {
        let processes = usage::processes(&instance).unwrap();
        let line = |p: &ProcessInfo| format!("{} {} {} {}", p.pid, p.parent, p.uid, p.command);
        processes.iter().map(line).collect::<Vec<_>>()
    };
    eventually("all of it runs", || shown().iter().filter(|line| line.ends_with(" sleep 1000")).count() == 2);
    let lines = shown();
    assert!(lines[0].starts_with("1 0 0 sh -c sleep 1000 & sleep"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "2 1 0 sleep 1000"), "{lines:?}");
    let stats = usage::stats(&instance).unwrap();
    assert!(stats.time_ms > 1_700_000_000_000);
    // Whether the rest is counted depends on the cgroups of the machine; what is counted is right.
    assert!(stats.pids.is_none_or(|pids| pids == 3), "{stats:?}");
    service.remove(desired.container);
    assert_eq!(usage::stats(&instance).unwrap_err().code, ErrorCode::WrongState);
    assert_eq!(usage::processes(&instance).unwrap_err().code, ErrorCode::WrongState);
}

/// A terminal whose name means the same terminal inside; whoever uses it owns it.
#[test]
fn the_terminal_of_an_exec_is_the_container_s() {
    let world = World::new();
    let service = Service::new(&world);
    let desired = world.desired(1, 1, spec(&["sleep", "1000"]));
    let instance = service.start(&desired).unwrap();
    let script = "tty; stty size; echo by name > $(tty); id -u; stat -c %u $(tty)";
    let command = ["sh", "-c", script].map(str::to_owned).into();
    let spec = ExecSpec { command, tty: Some((30, 90)), user: Some("ann".into()), ..ExecSpec::default() };
    let text = service.tokio.block_on(async {
        let execution = Execution::start(service.runtime.supervisor(), &instance, &spec).await.unwrap();
        let mut text = String::new();
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = execution.stdout.read(&mut buffer).await {
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        assert_eq!(execution.wait().await, Ok(ExitStatus::Code(0)), "{text}");
        text
    });
    assert_eq!(text, "/dev/pts/0\r\n30 90\r\nby name\r\n1000\r\n1000\r\n");
    service.remove(desired.container);
}

#[test]
fn many_at_once() {
    const COUNT: u64 = 24;
    let world = World::new();
    let mut service = Service::new(&world);
    let connect = |_| async { Ok(()) };
    service.tokio.block_on(async {
        let all = (1..=COUNT).map(|id| {
            let desired = world.desired(id, 1, sh(&format!("exit {id}")));
            let (runtime, blobs) = (&service.runtime, &world.blobs);
            async move { runtime.start(&desired, &[], blobs, connect).await }
        });
        for started in futures_util::future::join_all(all).await {
            started.unwrap();
        }
    });
    let mut ended: Vec<u64> = (0..COUNT)
        .map(|_| {
            let exit = service.exit();
            assert_eq!(exit.ended.status, ExitStatus::Code(u8::try_from(exit.container.id.0).unwrap()));
            exit.container.id.0
        })
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, (1..=COUNT).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(world.data().join("layers")).unwrap().count(), 1, "one layer, unpacked once");
}

/// A disk of one mebibyte at a directory, gone with the guard.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn of(path: &Path, size: &CStr) -> Self {
        fs::create_dir_all(path).unwrap();
        rustix::mount::mount("small", path, "tmpfs", rustix::mount::MountFlags::empty(), size).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

/// Layers of containers that are gone stay until their room is needed; those of containers that are there always stay.
#[test]
fn unused_layers_make_room_and_used_ones_never_do() {
    let mut world = World::new();
    let _disk = SmallDisk::of(&world.data(), c"size=4m");
    let small = |world: &mut World, name: &str| {
        let root = world.base.path().join(name);
        fs::create_dir_all(&root).unwrap();
        // Two of them do not fit beside each other and a busybox.
        fs::write(root.join("ballast"), vec![name.as_bytes()[0]; 1 << 20]).unwrap();
        world.blobs.busybox(&root)
    };
    let images = ["a", "b", "c"].map(|name| small(&mut world, name));
    let mut service = Service::new(&world);
    let of = |id: u64, image: &ImageManifest, command: &[&str]| ContainerDesired {
        image: image.clone(),
        ..world.desired(id, 1, spec(command))
    };
    let layer = |image: &ImageManifest| {
        let path = world.data().join("layers").join(image.layers[0].digest.hex());
        path.is_dir()
    };
    // Ended, but not removed: it may start again.
    assert_eq!(service.run(&of(1, &images[0], &["true"])).1, ExitStatus::Code(0));
    let error = service.start(&of(2, &images[1], &["true"])).map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    assert!(layer(&images[0]) && !layer(&images[1]));
    service.remove(ContainerRef { id: ContainerId(1), generation: Generation(1) });
    assert!(layer(&images[0]), "removing a container removes no layer");
    let running = of(3, &images[2], &["sleep", "1000"]);
    service.start(&running).unwrap();
    assert!(!layer(&images[0]) && layer(&images[2]));
    // A service that starts anew knows what is used.
    drop(service);
    let service = Service::new(&world);
    let error = service.start(&of(4, &images[0], &["true"])).map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    assert!(layer(&images[2]));
    let instance = service.runtime.instance(running.container).unwrap();
    assert_eq!(service.exec(&instance, "true").1, Ok(ExitStatus::Code(0)));
    service.remove(running.container);
}

/// It fills in the middle of the layer; with room again the same start works.
#[test]
fn a_full_disk_is_said_and_leaves_no_layer() {
    let world = World::new();
    let _disk = SmallDisk::of(&world.data(), c"size=4m");
    let mut service = Service::new(&world);
    let ballast = world.data().join("ballast");
    let desired = world.desired(1, 1, spec(&["echo", "hello"]));
    for mebibytes in [3, 4] {
        // As much of it as fits.
        fs::write(&ballast, vec![1; mebibytes << 20]).ok();
        let error = service.start(&desired).map(drop).unwrap_err();
        assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
        assert!(error.message.contains("disk"), "{error}");
        assert_eq!(fs::read_dir(world.data().join("layers")).unwrap().count(), 0);
        assert_eq!(processes_below(&world.cgroup), "");
        fs::remove_file(&ballast).unwrap();
    }
    assert_eq!(service.run(&desired), ("hello\n".into(), ExitStatus::Code(0)));
    service.remove(desired.container);
}
