//! Real containers: what a process inside sees, may do, and how it ends.
mod support;

use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use support::{World, eventually, spec};
use wherry_node::container::report::Step;
use wherry_protocol::message::{ContainerSpec, Setting, VolumeMount};
use wherry_sys::process::End;

#[test]
fn hello_world() {
    let finished = World::new().run(&["echo", "hello"]);
    assert_eq!(
        (finished.end, finished.stdout.as_str(), finished.stderr.as_str()),
        (End::Code(0), "hello\n", "")
    );
}

#[test]
fn ends_are_exact() {
    let world = World::new();
    for code in [0, 1, 7, 127, 255] {
        assert_eq!(world.run(&["sh", "-c", &format!("exit {code}")]).end, End::Code(code));
    }
    for signal in [15, 2, 9] {
        let mut running = world.start(spec(&["sleep", "100"]));
        running.executed();
        // The first process of a pid namespace does not get what it has no handler for; KILL from outside ends it.
        running.signal(signal);
        if signal != 9 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            running.signal(9);
        }
        assert_eq!(running.finish().end, End::Signal(9));
    }
    let mut running =
        world.start(spec(&["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done"]));
    running.wait_for("up");
    running.signal(15);
    assert_eq!(running.finish().end, End::Code(3));
}

fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
}

#[test]
fn privileges_are_gone() {
    let world = World::new();
    let text = world.run(&["cat", "/proc/self/status"]).stdout;
    let root = status(&text);
    let set = "00000000000005fb";
    assert_eq!((root["CapPrm"], root["CapEff"], root["CapBnd"]), (set, set, set));
    assert_eq!((root["CapInh"], root["CapAmb"]), ("0000000000000000", "0000000000000000"));
    assert_eq!((root["NoNewPrivs"], root["Seccomp"], root["Seccomp_filters"]), ("1", "2", "1"));
    assert_eq!((root["SigBlk"], root["SigIgn"]), ("0000000000000000", "0000000000000000"));
    let ann = ContainerSpec { user: Some("ann".into()), ..spec(&["cat", "/proc/self/status"]) };
    let text = world.start(ann).finish().stdout;
    let ann = status(&text);
    assert_eq!((ann["CapPrm"], ann["CapEff"], ann["CapBnd"]), ("0000000000000000", "0000000000000000", set));
    assert_eq!(
        (ann["Uid"], ann["Gid"], ann["Groups"]),
        ("1000\t1000\t1000\t1000", "1001\t1001\t1001\t1001", "40")
    );
}

#[test]
fn no_descriptor_of_the_node_is_left_open() {
    let text = World::new().shell("ls /proc/self/fd");
    // 3 is the directory that ls itself reads.
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn namespaces_are_its_own() {
    let world = World::new();
    let own = world.shell("for n in mnt pid net uts ipc cgroup; do stat -c %N /proc/self/ns/$n; done; echo $$; cat /proc/self/cgroup");
    for name in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(!own.contains(host.to_str().unwrap()), "{name} is shared");
    }
    assert!(own.contains("\n1\n"), "it is process 1: {own}");
    assert!(own.contains("0::/\n"), "its cgroup is the root of what it sees: {own}");
    assert_eq!(world.shell("cat /proc/sys/kernel/hostname /etc/hostname; echo $HOSTNAME"), "box\nbox\nbox\n");
    assert_eq!(world.shell("echo /proc/[0-9]*"), "/proc/1\n", "the shell is all there is");
}

#[test]
fn the_file_systems_are_as_planned() {
    let world = World::new();
    let text = world.shell("cat /proc/self/mountinfo");
    let mounts: BTreeMap<&str, (&str, &str)> = text
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let dash = words.iter().position(|&word| word == "-").unwrap();
            (words[4], (words[dash + 1], words[5]))
        })
        .collect();
    let check = |path: &str, kind: &str, flags: &[&str]| {
        let (found, have) = *mounts.get(path).unwrap_or_else(|| panic!("no {path}: {text}"));
        assert_eq!(found, kind, "{path}");
        let have: Vec<&str> = have.split(',').collect();
        flags.iter().for_each(|flag| assert!(have.contains(flag), "{path} lacks {flag}: {have:?}"));
    };
    check("/", "overlay", &["rw", "nodev"]);
    check("/proc", "proc", &["nosuid", "nodev", "noexec"]);
    check("/proc/sys", "proc", &["ro", "nosuid"]);
    check("/proc/keys", "tmpfs", &["nosuid"]);
    check("/dev", "tmpfs", &["nosuid"]);
    check("/dev/pts", "devpts", &["nosuid", "noexec"]);
    check("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec"]);
    check("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]);
    check("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]);
    check("/sys/fs/cgroup", "cgroup2", &["ro"]);
    assert!(!text.contains("layers"), "where the node keeps its layers is nobody's business: {text}");
    let devices =
        world.shell("ls /dev; stat -c '%n %t:%T %a' /dev/null /dev/tty; echo x > /dev/null; : < /dev/ptmx");
    for name in
        ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stdin", "tty", "urandom", "zero"]
    {
        assert!(devices.lines().any(|line| line == name), "{name}: {devices}");
    }
    assert!(devices.contains("/dev/null 1:3 666"), "{devices}");
}

#[test]
fn what_is_hidden_or_protected_is() {
    let world = World::new();
    assert_eq!(
        world.shell("cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; ls /sys/firmware"),
        ""
    );
    for write in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_seqnum",
        "/proc/sys/vm/swappiness",
    ] {
        let finished = world.run(&["sh", "-c", &format!("echo 1 > {write}")]);
        assert_ne!(finished.end, End::Code(0), "{write}");
    }
    assert_eq!(world.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0\n");
}

#[test]
fn system_calls_that_are_refused() {
    let world = World::new();
    for command in [
        "mount -t tmpfs x /tmp",
        "unshare -U true",
        "unshare -m true",
        "mknod /tmp/disk b 8 0",
        "mount -o remount,rw /sys",
    ] {
        let finished = world.run(&["sh", "-c", command]);
        assert_ne!(finished.end, End::Code(0), "{command}");
        let said = finished.stderr.to_lowercase();
        assert!(
            said.contains("operation not permitted") || said.contains("permission denied"),
            "{command}: {finished:?}"
        );
    }
    // Named pipes are nobody's business, and ordinary work goes on.
    assert_eq!(world.shell("mknod /tmp/fifo p; chown ann /tmp/fifo; chmod 600 /tmp/fifo; ls /tmp"), "fifo\n");
}

#[test]
fn what_it_writes_stays_in_its_own_layer() {
    let world = World::new();
    world.shell("echo mine > /new; echo changed > /etc/group; chmod 700 /home");
    assert!(!world.layer().join("new").exists());
    assert!(fs::read_to_string(world.layer().join("etc/group")).unwrap().contains("logs"));
    assert_eq!(world.shell("cat /new /etc/group"), "mine\nchanged\n");
}

#[test]
fn a_read_only_root_is_read_only_and_volumes_are_not() {
    let world = World::new();
    let mounts = vec![
        VolumeMount { volume: "data".parse().unwrap(), path: "/srv/data".into(), read_only: false },
        VolumeMount { volume: "conf".parse().unwrap(), path: "/srv/conf".into(), read_only: true },
    ];
    let script = "touch /x; touch /etc/hosts; touch /srv/conf/x; touch /srv/data/x && echo kept > /srv/data/y; ls /srv/data";
    // The mount points are made before the root becomes read-only.
    let spec = ContainerSpec { read_only: true, mounts, ..spec(&["sh", "-c", script]) };
    let finished = world.start(spec).finish();
    assert_eq!(finished.stdout, "x\ny\n", "{finished:?}");
    assert_eq!(finished.stderr.matches("Read-only file system").count(), 3, "{finished:?}");
    let volume = world.data.volumes_of(wherry_protocol::AccountId(3)).join("data/y");
    assert_eq!(fs::read_to_string(volume).unwrap(), "kept\n");
}

#[test]
fn environment_directory_and_user() {
    let world = World::new();
    let spec = ContainerSpec {
        env: vec![("ASKED".into(), "yes".into()), ("FROM".into(), "user".into())],
        workdir: Some("/var/new/dir".into()),
        user: Some("ann".into()),
        ..spec(&["sh", "-c", "pwd; id; env"])
    };
    let text = world.start(spec).finish().stdout;
    assert!(text.starts_with("/var/new/dir\nuid=1000(ann) gid=1001(ann) groups=40(logs)\n"), "{text}");
    for line in ["ASKED=yes", "FROM=user", "HOME=/home/ann", "HOSTNAME=box", "PATH=/bin"] {
        assert!(text.lines().any(|have| have == line), "{line}: {text}");
    }
    assert!(!text.contains("WHERRY"), "{text}");
    assert_eq!(
        world.shell("cat /etc/hosts /etc/resolv.conf | grep -e box -e nameserver"),
        "10.2.0.5\tbox\nnameserver 9.9.9.9\n"
    );
}

/// As the images of nginx and many others do it.
#[test]
fn output_can_be_opened_by_name_whoever_it_runs_as() {
    let world = World::new();
    let script = "echo one > /dev/stdout; echo two > /dev/stderr; echo three >> /proc/self/fd/1";
    let finished =
        world.start(ContainerSpec { user: Some("ann".into()), ..spec(&["sh", "-c", script]) }).finish();
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("one\nthree\n", "two\n"),
        "{finished:?}"
    );
}

fn with(settings: Vec<Setting>, command: &[&str]) -> ContainerSpec {
    ContainerSpec { settings, ..spec(command) }
}

#[test]
fn capabilities_are_added_and_dropped() {
    let world = World::new();
    let bounding = |settings: Vec<Setting>| {
        let text = world.start(with(settings, &["cat", "/proc/self/status"])).finish().stdout;
        status(&text)["CapBnd"].to_owned()
    };
    let drop = |name: &str| Setting::DropCapability(name.into());
    let add = |name: &str| Setting::AddCapability(name.into());
    assert_eq!(bounding(vec![drop("ALL")]), "0000000000000000");
    // CAP_NET_RAW is 13 (linux/capability.h).
    assert_eq!(bounding(vec![drop("ALL"), add("NET_RAW")]), "0000000000002000");
    assert_eq!(bounding(vec![drop("CHOWN")]), "00000000000005fa");
    let chown = |settings| world.start(with(settings, &["chown", "ann", "/tmp"])).finish().end;
    assert_eq!((chown(vec![]), chown(vec![drop("CHOWN")])), (End::Code(0), End::Code(1)));
}

#[test]
fn limits_parameters_and_memory_are_as_wished() {
    let world = World::new();
    let limit = |name: &str, soft, hard| Setting::Limit { name: name.into(), soft, hard };
    let sysctl = |name: &str, value: &str| Setting::Sysctl { name: name.into(), value: value.into() };
    let tmpfs = Setting::Tmpfs { path: "/var/cache".into(), size_bytes: 1 << 20 };
    let settings = vec![
        limit("nofile", 100, 200),
        limit("stack", 1 << 20, u64::MAX),
        sysctl("net.core.somaxconn", "77"),
        sysctl("kernel.msgmax", "4096"),
        tmpfs,
        Setting::Host { name: "db".into(), address: [10, 9, 0, 9].into() },
        Setting::Nameserver([9, 8, 7, 6].into()),
    ];
    let script = "ulimit -n; ulimit -Hn; ulimit -s; ulimit -Hs
cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax
grep -o '/var/cache tmpfs rw,nosuid,nodev,noexec.*size=1024k' /proc/mounts
grep db /etc/hosts; cat /etc/resolv.conf";
    let text = world.start(with(settings, &["sh", "-c", script])).finish().stdout;
    let mut lines: Vec<&str> = text.lines().collect();
    let mount = lines.remove(6);
    assert!(mount.starts_with("/var/cache tmpfs"), "{text}");
    let expected = ["100", "200", "1024", "unlimited", "77", "4096", "10.9.0.9\tdb", "nameserver 9.8.7.6"];
    assert_eq!(lines, expected, "{text}");
}

#[test]
fn a_parameter_that_this_kernel_does_not_have_is_an_error_if_somebody_wants_it() {
    let world = World::new();
    let missing = Setting::Sysctl { name: "net.ipv4.tcp_no_such_thing".into(), value: "1".into() };
    let failure = world.start(with(vec![missing], &["true"])).finish().failure();
    assert_eq!((failure.step, failure.errno), (Step::Sysctl, Errno::ENOENT as i32));
}

#[test]
fn input_reaches_it() {
    let world = World::new();
    let mut running = world.start(spec(&["cat"]));
    running.stdin.as_mut().unwrap().write_all(b"over there").unwrap();
    assert_eq!(running.finish().stdout, "over there");
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = World::new();
    let script =
        "tty; stty size; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo all; echo direct > /dev/tty; echo end";
    let mut running = world.start(ContainerSpec { tty: true, ..spec(&["sh", "-c", script]) });
    let mut terminal = running.terminal.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.contains("end") {
        let length = terminal.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert_eq!(text, "/dev/console\r\n24 80\r\nxterm\r\nall\r\ndirect\r\nend\r\n");
    assert_eq!(running.finish().end, End::Code(0));
}

#[test]
fn failures_to_start_are_sentences() {
    let world = World::new();
    let layer = world.layer();
    fs::write(layer.join("bin/text"), "no program").unwrap();
    fs::write(layer.join("bin/other"), b"\x7fELF garbage of another world").unwrap();
    fs::write(layer.join("bin/script"), "#!/no/such/interpreter\n").unwrap();
    for name in ["other", "script"] {
        fs::set_permissions(layer.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let cases: [(ContainerSpec, &str); 8] = [
        (spec(&["foo"]), "could not start: no such program 'foo' in the image, check the command"),
        (spec(&["/bin/foo"]), "could not start: no such program '/bin/foo' in the image, check the command"),
        (spec(&["text"]), "could not start: 'text' is not executable, check the command"),
        (spec(&["/etc"]), "could not start: '/etc' is not executable, check the command"),
        (spec(&["other"]), "could not start: 'other' is not a program for this node's processor"),
        (
            spec(&["script"]),
            "could not start: the interpreter or loader that 'script' needs is not in the image",
        ),
        (
            ContainerSpec { user: Some("bob".into()), ..spec(&["true"]) },
            "could not start: no user or group 'bob' in the image, give one that /etc/passwd has",
        ),
        (
            ContainerSpec { workdir: Some("/etc/passwd".into()), ..spec(&["true"]) },
            "could not start: entering /etc/passwd failed: Not a directory",
        ),
    ];
    for (spec, sentence) in cases {
        let finished = world.start(spec).finish();
        assert_eq!(finished.failure().to_string(), sentence);
        assert_eq!(finished.end, End::Code(127));
    }
}

#[test]
fn links_in_the_image_lead_nowhere_outside() {
    let world = World::new();
    let layer = world.layer();
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::remove_dir_all(layer.join("etc")).unwrap();
    symlink(&outside, layer.join("etc")).unwrap();
    symlink("../../../../../../../../..", layer.join("srv")).unwrap();
    symlink("/proc/1/root", layer.join("magic")).unwrap();
    let finished = world.run(&["true"]);
    assert_eq!(
        finished.failure().step,
        Step::Mount,
        "a link to nothing is not followed and not made: {finished:?}"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    fs::remove_file(layer.join("etc")).unwrap();
    let at = |path: &str| {
        let mount = VolumeMount { volume: "v".parse().unwrap(), path: path.into(), read_only: false };
        ContainerSpec { mounts: vec![mount], ..spec(&["ls", "-d", "/inside"]) }
    };
    let finished = world.start(at("/srv/inside")).finish();
    assert_eq!(finished.stdout, "/inside\n", "climbing ends at the container's own root: {finished:?}");
    assert_eq!(world.start(at("/magic/x")).finish().failure().errno, Errno::ELOOP as i32);
    assert!(!std::path::Path::new("/inside").exists());
}

#[test]
fn a_pipe_for_a_user_file_does_not_hold_it_up() {
    let world = World::new();
    fs::remove_file(world.layer().join("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&world.layer().join("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(world.run(&["true"]).failure().step, Step::User);
}

#[test]
fn the_node_s_program_cannot_be_written_from_inside() {
    let world = World::new();
    // An image may ask to run the runtime itself; what /proc then shows must not open for writing.
    symlink("/proc/self/exe", world.layer().join("bin/sneaky")).unwrap();
    let before = fs::read(env!("CARGO_BIN_EXE_wherry-node")).unwrap();
    let mut running = world.start(spec(&["sneaky", "container"]));
    let mut reports = String::new();
    drop(running.stderr.read_to_string(&mut reports));
    drop(running.finish());
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_wherry-node")).unwrap(), before);
    let writable = "cat /proc/self/exe > /dev/null; echo x >> /proc/1/exe; echo tried";
    assert_eq!(world.shell(writable), "tried\n");
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_wherry-node")).unwrap(), before);
}

#[test]
fn before_the_gate_opens_it_can_be_joined_and_not_be_written() {
    let world = World::new();
    let plan = world.plan(spec(&["cat", "/proc/sys/net/ipv4/ip_forward"]));
    let (running, mut gate) = world.start_gated(&plan);
    let process = format!("/proc/{}", running.pid);
    // While it waits, its root is the container's already.
    eventually("the change of its root", || fs::metadata(format!("{process}/root/home/ann")).is_ok());
    // The node attaches the network meanwhile.
    let network = running.network.try_clone().unwrap();
    let join = move || {
        wherry_sys::process::setns(&network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    };
    std::thread::spawn(join).join().unwrap();
    // The program that is about to become the container's is seen through a mount that nobody can write to.
    let flags = nix::sys::statvfs::statvfs(&*format!("{process}/exe")).unwrap().flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    gate.write_all(b"g").unwrap();
    assert_eq!(running.finish().stdout, "1\n");
}

#[test]
fn without_a_network_it_does_not_start() {
    let world = World::new();
    let (running, gate) = world.start_gated(&world.plan(spec(&["true"])));
    drop(gate);
    let finished = running.finish();
    assert_eq!(finished.failure().to_string(), "could not start: the network was not set up");
}

#[test]
fn many_layers_fit() {
    let mut world = World::new();
    for number in 0..127 {
        let layer = world.data.layers().join(format!("{number:064}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("which"), number.to_string()).unwrap();
        fs::write(layer.join(format!("file{number}")), "").unwrap();
        world.layers.push(layer);
    }
    assert_eq!(world.shell("cat /which; ls / | grep -c file"), "126127\n");
}

#[test]
fn nothing_is_left_on_the_node() {
    let world = World::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let mut running = world.start(spec(&["sh", "-c", "sleep 100 & echo up; wait"]));
    running.wait_for("up");
    assert_eq!(mounts(), before, "its mounts are its own");
    running.kill();
    let dir = world.data.container(wherry_protocol::ContainerId(7));
    dir.remove().unwrap();
    assert!(!dir.exists());
    assert_eq!(mounts(), before);
}
