//! What people run, under the same filter, capabilities and read-only paths as everything else: nginx, redis, PostgreSQL,
//! Python and busybox from Debian, each doing real work. `cargo xtask fixtures` makes the images.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use nix::sched::CloneFlags;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::{ARCHITECTURE, Finished, PATIENCE, Running, World, spec};
use wherry_images::archive::{ImageArchive, Platforms};
use wherry_images::oci::ImageConfig;
use wherry_images::unpack::{Expected, LayerDir, Limits, unpack_layer};
use wherry_node::container::plan::Plan;
use wherry_protocol::message::{ContainerSpec, ExecSpec, Media, Setting, VolumeMount};
use wherry_sys::process::End;

/// The archive of an image that `cargo xtask fixtures` has made.
fn archive(name: &str) -> PathBuf {
    let artifacts = std::env::var_os("WHERRY_ARTIFACTS");
    let artifacts =
        artifacts.expect("WHERRY_ARTIFACTS names the directory that `cargo xtask fixtures` fills");
    let path = Path::new(&artifacts).join(std::env::consts::ARCH).join("fixtures").join(name);
    assert!(path.exists(), "{} is not there: run `cargo xtask fixtures`", path.display());
    path.with_extension("tar")
}

/// A world with one of the images, unpacked as a node does it.
fn world(name: &str) -> World {
    let mut world = World::new();
    let archive = ImageArchive::open(&archive(&format!("{name}.tar"))).unwrap();
    let image = archive.images(&Platforms::Only(ARCHITECTURE.into())).unwrap().remove(0);
    let mut config = Vec::new();
    archive.blob(&image, &image.manifest.config.digest).unwrap().read_to_end(&mut config).unwrap();
    world.image = ImageConfig::parse(&config).unwrap();
    let layers = LayerDir::new(world.data.layers());
    let diff_ids = world.image.diff_ids(image.manifest.layers.len()).unwrap();
    let unpack = |(layer, diff_id): (&wherry_protocol::message::Descriptor, _)| {
        assert_ne!(layer.media, Media::Config);
        let expected = Expected { digest: layer.digest, size: layer.size, diff_id: Some(diff_id) };
        let bytes = archive.blob(&image, &layer.digest).unwrap();
        unpack_layer(bytes, layer.media, expected, &layers, &Limits::DEFAULT).unwrap().path
    };
    world.layers = image.manifest.layers.iter().zip(diff_ids).map(unpack).collect();
    world
}

/// A container that runs, with a loopback interface as the node's network gives it.
struct Box {
    running: Running,
    plan: Plan,
}

impl Box {
    fn start(world: &World, spec: ContainerSpec) -> Self {
        let plan = world.plan(spec);
        let (running, mut gate) = world.start_gated(&plan);
        let network = running.network.try_clone().unwrap();
        let join = move || {
            wherry_sys::process::setns(&network, CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        };
        std::thread::spawn(join).join().unwrap();
        gate.write_all(b"g").unwrap();
        Self { running, plan }
    }

    fn exec(&self, command: &[&str]) -> Finished {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let spec = ExecSpec { command, ..ExecSpec::default() };
        self.running.exec(&self.plan.process, &spec).finish()
    }

    /// What a command prints that must succeed.
    fn ok(&self, command: &[&str]) -> String {
        let finished = self.exec(command);
        assert_eq!(finished.end, End::Code(0), "{command:?}: {finished:?}");
        finished.stdout
    }

    /// Waits until a command succeeds and prints `word`.
    fn until(&self, command: &[&str], word: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let finished = self.exec(command);
            if finished.end == End::Code(0) && finished.stdout.contains(word) {
                return finished.stdout;
            }
            assert!(Instant::now() < deadline, "no '{word}' from {command:?}: {finished:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn finish(self) -> Finished {
        self.running.finish()
    }
}

#[test]
fn nginx_serves_files_and_takes_new_settings() {
    let world = world("nginx");
    let server = Box::start(&world, ContainerSpec::default());
    let page = ["wget", "-qO-", "http://127.0.0.1/"];
    assert_eq!(server.until(&page, "nginx"), "from nginx\n");
    // A large file, by sendfile(2) and by a thread with O_DIRECT.
    let make =
        "mkdir /srv/data; seq 1 200000 > /srv/data/large; cp /srv/data/large /srv/large; wc -c < /srv/large";
    let size = server.ok(&["sh", "-c", make]);
    for path in ["large", "data/large"] {
        let fetch = format!("wget -qO- http://127.0.0.1/{path} | wc -c");
        assert_eq!(server.ok(&["sh", "-c", &fetch]), size, "{path}");
    }
    let workers = "ps -o user,args | grep -c '^nobody.*worker process'";
    assert_eq!(server.ok(&["sh", "-c", workers]), "2\n");
    let change = "sed -i 's/root .srv;/return 200 changed;/; s/processes 2/processes 3/' /etc/nginx.conf && nginx -c /etc/nginx.conf -t && nginx -c /etc/nginx.conf -s reload";
    server.ok(&["sh", "-c", change]);
    server.until(&page, "changed");
    server.until(&["sh", "-c", workers], "3");
    server.ok(&["nginx", "-c", "/etc/nginx.conf", "-s", "reopen"]);
    server.ok(&["nginx", "-c", "/etc/nginx.conf", "-s", "quit"]);
    let finished = server.finish();
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
    assert!(finished.stdout.contains("GET / HTTP/1.1"), "its log of accesses: {finished:?}");
    assert!(!finished.stderr.contains("[alert]") && !finished.stderr.contains("[emerg]"), "{finished:?}");
}

#[test]
fn redis_keeps_what_it_is_told() {
    let world = world("redis");
    let command = ["redis-server", "--dir", "/data", "--appendonly", "yes", "--save", "3600 1"];
    let server = Box::start(&world, spec(&command));
    server.until(&["redis-cli", "ping"], "PONG");
    assert_eq!(server.ok(&["redis-cli", "set", "colour", "green"]), "OK\n");
    // Both fork(2): a snapshot, and a rewritten journal.
    for (ask, field) in
        [("bgsave", "rdb_last_bgsave_status:ok"), ("bgrewriteaof", "aof_last_bgrewrite_status:ok")]
    {
        server.ok(&["redis-cli", ask]);
        server.until(&["redis-cli", "info", "persistence"], field);
        server.until(&["redis-cli", "info", "persistence"], "_in_progress:0");
    }
    server.until(&["sh", "-c", "test -s /data/dump.rdb && echo there"], "there");
    server.ok(&["redis-benchmark", "-q", "-n", "2000", "-c", "20", "-t", "set,lpush", "--threads", "2"]);
    // The power goes; the journal has it all.
    server.ok(&["redis-cli", "set", "colour", "blue"]);
    server.ok(&["redis-cli", "config", "set", "appendfsync", "always"]);
    server.ok(&["redis-cli", "set", "shape", "round"]);
    server.running.kill();
    let server = Box::start(&world, spec(&command));
    server.until(&["redis-cli", "get", "colour"], "blue");
    assert_eq!(server.ok(&["redis-cli", "get", "shape"]), "round\n");
    server.running.signal(15);
    let finished = server.finish();
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
}

#[test]
fn postgres_keeps_its_transactions() {
    let world = world("postgres");
    let refused = Box::start(&world, spec(&["initdb", "-D", "/tmp/db"])).finish();
    assert!(refused.stderr.contains("cannot be run as root"), "{refused:?}");
    let start = "initdb -D /tmp/db -A trust --locale=C -E UTF8 && exec postgres -D /tmp/db -k /tmp";
    let as_postgres = |script| ContainerSpec { user: Some("postgres".into()), ..spec(&["sh", "-c", script]) };
    let server = Box::start(&world, as_postgres(start));
    let ready = server.until(&["pg_isready", "-h", "127.0.0.1"], "accepting");
    assert!(ready.contains("5432"), "{ready}");
    let psql =
        |host: &str, text: &str| server.ok(&["psql", "-h", host, "-d", "postgres", "-qAt", "-c", text]);
    psql(
        "/tmp",
        "create table t as select n, n % 10 as k from generate_series(1, 200000) n; create index on t (k)",
    );
    psql("127.0.0.1", "begin; delete from t where k = 0; rollback");
    psql("127.0.0.1", "begin; delete from t where k = 1; commit");
    // Parallel workers share memory of /dev/shm.
    let parallel =
        "set min_parallel_table_scan_size = 0; set parallel_setup_cost = 0; set parallel_tuple_cost = 0;";
    let plan = psql("/tmp", &format!("{parallel} explain analyze select sum(n) from t"));
    assert!(plan.contains("Workers Launched: 2"), "{plan}");
    assert_eq!(psql("/tmp", &format!("{parallel} select count(*) from t")), "180000\n");
    psql("/tmp", "checkpoint; vacuum analyze t");
    server.ok(&["sh", "-c", "pg_dump -h /tmp postgres | grep -q '^COPY public.t'"]);
    // A backend that dies takes the others along, and the server comes back by itself.
    server.exec(&["sh", "-c", "kill -9 $(psql -h /tmp -d postgres -qAt -c 'select pid from pg_stat_activity where backend_type = $$walwriter$$')"]);
    server.until(&["psql", "-h", "/tmp", "-d", "postgres", "-qAt", "-c", "select count(*) from t"], "180000");
    server.ok(&["pg_ctl", "-D", "/tmp/db", "-m", "fast", "stop"]);
    let finished = server.finish();
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
}

#[test]
fn python_does_all_kinds_of_things() {
    let world = world("python");
    fs::write(world.layers[1].join("work.py"), include_str!("support/work.py")).unwrap();
    for (user, id) in [("root", 0), ("nobody", 65534)] {
        let spec = ContainerSpec { user: Some(user.into()), ..spec(&["python3.11", "/work.py"]) };
        let finished = Box::start(&world, spec).finish();
        let expected = format!("threads\nprocesses\nsockets\nsecure\nfiles\nkernel\ndone by {id}\n");
        assert_eq!(
            (finished.end, finished.stdout.as_str()),
            (End::Code(0), expected.as_str()),
            "{finished:?}"
        );
    }
}

/// It knows raw sockets only; what asks for a socket that can do nothing but ping needs no capability (see `work.py`).
#[test]
fn busybox_pings_with_its_capability() {
    let world = world("client");
    let ping = |settings| {
        let spec = ContainerSpec { settings, ..spec(&["ping", "-c", "2", "-i", "0.1", "127.0.0.1"]) };
        Box::start(&world, spec).finish()
    };
    let refused = ping(vec![]);
    assert!(refused.stderr.contains("permission denied"), "{refused:?}");
    let finished = ping(vec![Setting::AddCapability("NET_RAW".into())]);
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
    assert!(finished.stdout.contains("2 packets received"), "{finished:?}");
}

/// A shell on a terminal: jobs are stopped, go on behind, come back, and end.
#[test]
fn a_shell_controls_its_jobs() {
    let world = world("client");
    let mut shell = Box::start(&world, ContainerSpec { tty: true, ..spec(&["sh"]) });
    let mut terminal = shell.running.terminal.take().unwrap();
    let mut text = String::new();
    // What is typed comes back, so the words of answers are not in the questions.
    let mut dialogue = |typed: &str, answer: &str| {
        terminal.write_all(typed.as_bytes()).unwrap();
        let from = text.len();
        let mut buffer = [0; 1024];
        while !text[from..].contains(answer) {
            let length = terminal.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "no '{answer}' in {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    dialogue("", "# ");
    dialogue("sleep 1000; echo en$((40 + 2))ded\n", "ded");
    std::thread::sleep(std::time::Duration::from_millis(300));
    dialogue("\x1a", "Stopped");
    dialogue("bg; jobs\n", "Running");
    dialogue("kill %1; wait %1; echo code $((100 + $?))\n", "code 243");
    dialogue("(sleep 0.2; exit 7) & fg; echo code $((100 + $?))\n", "code 107");
    dialogue("sleep 1000\n", "sleep 1000");
    std::thread::sleep(std::time::Duration::from_millis(300));
    dialogue("\x03", "# ");
    dialogue("exit 5\n", "exit 5");
    assert_eq!(shell.finish().end, End::Code(5));
}

/// What the entry points of many images do before they give up root.
#[test]
fn a_volume_can_be_given_to_another_user() {
    let world = world("redis");
    let mounts =
        vec![VolumeMount { volume: "data".parse().unwrap(), path: "/data".into(), read_only: false }];
    let script = "chown nobody /data && touch /data/x && chown nobody /data/x && stat -c %U /data/x";
    let finished = Box::start(&world, ContainerSpec { mounts, ..spec(&["sh", "-c", script]) }).finish();
    assert_eq!((finished.end, finished.stdout.as_str()), (End::Code(0), "nobody\n"), "{finished:?}");
}
