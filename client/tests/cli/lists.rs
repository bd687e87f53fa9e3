//! Tables, JSON, and the commands that act on containers by name.
use crate::world::World;
use serde_json::json;
use wherry_protocol::message::{ContainerState, ExitStatus};
use wherry_protocol::{ErrorCode, NodeIndex, WireError};

/// Without the columns that tell the time.
fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn nodes() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    assert_eq!(
        lines(world.line("resources").ok()),
        [
            "NODE   INDEX  ARCH   CPUS  MEMORY FREE           LOAD  CPU  DISK FREE          CONTAINERS  STATE  UP",
            "node1  n1     arm64  4     700.0 MiB / 1.0 GiB  0.25  12%  3.0 GiB / 4.0 GiB  1           up     1 day",
            "node2  n2     -      -     -                    -     -    -                  0           away   -",
        ]
        .map(|line| line.replace("MEMORY FREE           LOAD", "MEMORY FREE          LOAD"))
    );
    let nodes = world.line("--json resources").json();
    assert_eq!(nodes[0]["name"], "node1");
    assert_eq!(nodes[0]["memory_available_bytes"], 700 << 20);
    assert_eq!(
        nodes[1],
        json!({"name": "node2", "index": 2, "connected": false, "containers": 0, "labels": {}})
    );
    assert_eq!(world.line("debug crash-node node1").ok(), "node1\n");
    assert_eq!(world.line("debug crash-node n2").ok(), "node2\n");
    assert_eq!(world.broker.state().crashed, [NodeIndex(1), NodeIndex(2)]);
    world.line("debug crash-node n9").fails(1, "no node is called 'n9'");
}

#[test]
fn containers() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    let done = world.broker.state().add("done", &["sleep"]);
    world.broker.state().end(done, ExitStatus::Code(3));
    let broken = world.broker.state().add("broken", &["sleep"]);
    world.broker.state().containers.get_mut(&broken).unwrap().state =
        ContainerState::Failed(WireError::new(ErrorCode::StartFailed, "no\x1b[31m"));
    let running = world.line("ps");
    assert_eq!(
        lines(running.ok())[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "ID NAME IMAGE NODE ADDRESS STATE CREATED PORTS"
    );
    assert_eq!(lines(&running.out).len(), 2);
    assert!(running.out.contains("c1  web   web:latest  node1  10.1.0.2  up "), "{running:?}");
    let all = world.line("ps -a");
    assert!(all.ok().contains("exited (3) ") && all.out.contains("failed: no?[31m"), "{all:?}");
    assert_eq!(world.line("ps -aq").ok(), "c3\nc2\nc1\n");
    let listed = world.line("ps -a --json").json();
    assert_eq!(listed[1]["state"], "exited");
    assert_eq!(listed[1]["exit_code"], 3);
    assert_eq!(listed[2]["address"], "10.1.0.2");
    assert_eq!(listed[2]["address6"], "fd12:3456:789a:1::2");
    assert!(world.line("ps --all-accounts").ok().contains("ACCOUNT"));
    let inspected = world.line("inspect web c2").json();
    assert_eq!(inspected[0]["spec"]["command"], json!(["sleep"]));
    assert_eq!(inspected[1]["name"], "done");
}

#[test]
fn acting_on_several_goes_on_after_a_failure() {
    let world = World::joined();
    world.broker.state().add("one", &["sleep"]);
    world.broker.state().add("two", &["sleep"]);
    let stopped = world.line("stop -t 1 one nothing two");
    assert_eq!(stopped.out, "one\ntwo\n");
    stopped.fails(1, "no container is called 'nothing'");
    assert_eq!(world.line("wait one").ok(), "143\n");
    assert_eq!(world.line("start one").ok(), "one\n");
    assert_eq!(world.line("kill one").ok(), "one\n");
    assert_eq!(world.line("kill -s USR1 c1").ok(), "c1\n");
    assert_eq!(world.broker.state().signals, [9, 10]);
    world.line("rm one").fails(1, "container 'one' runs");
    assert_eq!(world.line("rm -f one two").ok(), "one\ntwo\n");
    assert!(world.broker.state().containers.is_empty());
    let json = world.line("rm --json one");
    json.fails(1, "no container is called 'one'");
}

#[test]
fn connections() {
    let world = World::joined();
    world.broker.state().add("probe", &["sleep"]);
    world.broker.state().add("web", &["sleep"]);
    assert_eq!(world.line("connect probe web:80").ok(), "probe may connect to web port 80/tcp\n");
    assert_eq!(world.line("connect probe c2:53/udp").ok(), "probe may connect to c2 port 53/udp\n");
    assert_eq!(
        lines(world.line("connections").ok()),
        ["FROM        TO        PORT", "probe (c1)  web (c2)  53/udp", "probe (c1)  web (c2)  80/tcp"]
    );
    let expected =
        json!({"from": "probe", "from_id": "c1", "to": "web", "to_id": "c2", "port": 53, "transport": "udp"});
    assert_eq!(world.line("connections --json").json()["connections"][0], expected);
    assert_eq!(
        world.line("disconnect probe web:80").ok(),
        "probe may no longer connect to web port 80/tcp\n"
    );
    assert_eq!(world.broker.state().connections.len(), 1);
    world.line("connect probe gone:80").fails(1, "no container is called 'gone'");
    let rule = "label:tier=front may connect to service:db port 5432/tcp\n";
    assert_eq!(world.line("connect label:tier=front service:db:5432").ok(), rule);
    assert_eq!(
        lines(world.line("connections").ok())[3..],
        [
            "RULE              TO                PORT      CONNECTIONS",
            "label:tier=front  label:service=db  5432/tcp  3"
        ]
    );
    assert_eq!(world.line("connections --json").json()["rules"][0]["to"], json!("label:service=db"));
    let nobody = "is neither a container nor label:KEY=VALUE nor service:NAME";
    for nonsense in ["label:tier", "label:=x", "service:A!", "Web"] {
        world.line(&format!("connect {nonsense} web:80")).fails(1, nobody);
        world.line(&format!("connect probe {nonsense}:80")).fails(1, nobody);
    }
}

#[test]
fn logs() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    let all = world.line("logs web");
    assert_eq!(all.ok(), "web: one\nweb: two\nweb: three\n");
    assert_eq!(all.err, "wherry: 2.0 KiB of older output were dropped\n");
    assert_eq!(world.line("logs -n 1 web").ok(), "web: three\n");
    let followed = world.line("logs -f --tail 1 web");
    assert_eq!((followed.ok(), followed.err.as_str()), ("web: three\n", "followed\n"));
    assert_eq!(
        lines(world.line("logs --json -f -n 1 web").ok()),
        [r#"{"channel":"stdout","data":"web: three\n"}"#, r#"{"channel":"stderr","data":"followed\n"}"#,]
    );
    world.line("logs nothing").fails(1, "no container is called 'nothing'");
}

#[test]
fn logs_with_times() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    assert_eq!(world.line("logs -t -n 1 --since 10m web").ok(), "2001-09-09T01:46:40.000Z web: three\n");
    assert_eq!(
        lines(world.line("logs --json -t -n 1 web").ok()),
        [r#"{"time_ms":1000000000000,"channel":"stdout","data":"web: three\n"}"#]
    );
    assert_eq!(world.line("logs -n 1 --since 2026-11-25T18:00:00Z web").ok(), "web: three\n");
    world.line("logs --since yesterday web").fails(2, "'yesterday' is no time");
}

#[test]
fn names_and_use() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    assert_eq!(world.line("rename web front").ok(), "front\n");
    assert_eq!(world.line("restart -t 0 front").ok(), "front\n");
    world.line("restart nothing").fails(1, "no container is called 'nothing'");
    world.line("rename front Bad!").fails(2, "not a valid name");
    assert_eq!(
        lines(world.line("top front").ok()),
        [
            "PID  PARENT  UID  STATE  CPU     MEMORY   COMMAND",
            "1    0       33   S      1.25 s  4.0 KiB  sleep ?[31m 1d"
        ]
    );
    assert_eq!(world.line("top --json front").json()[0]["command"], "sleep \u{1b}[31m 1d");
    assert_eq!(
        lines(world.line("stats --no-stream").ok()),
        [
            "ID  NAME   CPU    MEMORY              RECEIVED  SENT  DROPPED  PROCESSES",
            "c1  front  25.0%  3.0 MiB / 64.0 MiB  1.0 KiB   -     5        2"
        ]
    );
    let json = world.line("stats --no-stream --json front").json();
    assert_eq!(
        (&json["cpu_percent"], &json["pids"], &json["sent_bytes"]),
        (&json!(25.0), &json!(2), &json!(null))
    );
    assert_eq!(json["dropped"]["egress"], json!(4));
    world.line("stats --no-stream nothing").fails(1, "no container is called 'nothing'");
}

#[test]
fn access() {
    let world = World::joined();
    let token = world.line("token create --role user --expires 2h");
    let address = world.broker.address();
    assert!(token.ok().starts_with("wry1-user-") && token.out.trim_end().ends_with(&format!("@{address}")));
    let json = world.line("token create --role node --json").json();
    assert_eq!(json["expires_seconds"], 1_000_003_600);
    assert!(world.line("token create --role king").err.contains("role is not one of"));
    assert!(world.line("accounts").ok().contains("a3  ada-laptop  admin"));
    assert_eq!(world.line("account rm ada-laptop").ok(), "ada-laptop\n");
    world.line("account rm eve").fails(1, "no account is called 'eve'");
    let status = world.line("status --json").json();
    assert_eq!((&status["location"], &status["account"]["role"]), (&json!("demo"), &json!("admin")));
}

#[test]
fn events() {
    let world = World::joined();
    world.broker.state().add("web", &["sleep"]);
    let told = world.line("events");
    assert!(lines(told.ok())[0].ends_with("container web (c1) on node1: running, pid 42"), "{told:?}");
    assert!(lines(&told.out)[1].ends_with("node n1: away"), "{told:?}");
    let told = world.line("events --json");
    let first: serde_json::Value = serde_json::from_str(lines(told.ok())[0]).unwrap();
    assert_eq!((&first["event"], &first["name"]), (&json!("container"), &json!("web")));
    assert_eq!(lines(&told.out)[1], r#"{"event":"node","index":1,"connected":false}"#);
}

#[test]
fn usage() {
    let world = World::empty();
    assert_eq!(world.line("").code, Some(2));
    world.line("frobnicate").fails(2, "unrecognized subcommand 'frobnicate'; --help tells more");
    world.line("ps Bad!").fails(2, "unexpected argument 'Bad!'");
    world.line("run --memory lots web").fails(2, "'lots' is not a size");
    world.line("stop").fails(2, "<CONTAINERS>...");
    assert_eq!(world.line("--version").ok(), format!("wherry {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.run(&["completions", shell]).ok().contains("tunnel"), "{shell}");
    }
    let world = World::joined();
    world.line("inspect Bad!").fails(2, "'Bad!' is not a valid name");
}

#[test]
fn output_that_nobody_reads_ends_quietly() {
    let world = World::joined();
    let mut child = world.spawn(&["completions", "bash"], std::process::Stdio::null());
    drop(child.stdout.take());
    let ran: crate::world::Ran = child.wait_with_output().unwrap().into();
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
}

#[test]
fn flashing_without_images_makes_no_token_and_no_file() {
    let world = World::joined();
    let empty = world.home.path().join("images");
    std::fs::create_dir(&empty).unwrap();
    let (images, out) = (empty.to_str().unwrap(), world.home.path().join("out"));
    let out_text = out.to_str().unwrap();
    let tokens = world.broker.state().tokens.len();
    for arguments in [["flash", "cluster", "shed"], ["flash", "node", "node3"]] {
        let ran = world.run(&[arguments.as_slice(), &["--images", images, "--out", out_text]].concat());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("for aarch64: build it with `cargo xtask images`"), "{ran:?}");
    }
    assert_eq!(world.broker.state().tokens.len(), tokens);
    assert!(!out.exists());
    let nodes = ["flash", "cluster", "shed", "--nodes", "300", "--images", images, "--out", out_text];
    world.run(&nodes).fails(2, "a cluster has 1 to 254 nodes, not 300");
    let fixed = ["flash", "cluster", "shed", "--static", "10.0.0.1", "--images", images, "--out", out_text];
    assert!(world.run(&fixed).err.contains("not an address with a prefix length"));
}
