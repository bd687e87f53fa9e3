//! The life of a container by the OCI command line, as opencontainers/runtime-tools checks it (docs/oci.md).
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use support::eventually;
use support::oci::{BOTH, Bundle, Runtime, output};

fn sleeping() -> Bundle {
    Bundle::new("echo up; trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; while :; do sleep 0.02; done")
}

/// OCI-001, OCI-002, OCI-003, OCI-005: the whole way, with its states.
#[test]
fn create_start_kill_delete() {
    let bundle = Bundle::new("echo ran >> /output; sleep 100");
    bundle.create(&[]).succeeded();
    let state = bundle.inspect();
    assert_eq!((&state["status"], &state["id"]), (&"created".into(), &bundle.id.as_str().into()));
    assert_eq!(state["bundle"], bundle.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(state["ociVersion"], "1.0.0");
    let pid = state["pid"].as_i64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert!(!bundle.root().join("output").exists(), "nothing of the process before start");
    bundle.create_unsaved(&[]).refused("exists already");
    bundle.delete().refused("it is created");
    assert_eq!(bundle.status(), "created");
    bundle.start().succeeded();
    eventually("the process", || bundle.root().join("output").exists());
    assert_eq!(bundle.status(), "running");
    bundle.start().refused("it is running");
    bundle.delete().refused("it is running");
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    bundle.start().refused("it is stopped");
    bundle.oci(&["kill", &bundle.id, "TERM"]).refused("it is stopped");
    assert_eq!(fs::read_to_string(bundle.root().join("output")).unwrap(), "ran\n");
    assert_eq!(bundle.inspect()["pid"], 0);
    bundle.delete().succeeded();
    bundle.gone();
    bundle.oci(&["state", &bundle.id]).refused("no container");
    // The id is free again.
    bundle.create(&[]).succeeded();
    bundle.oci(&["delete", "--force", &bundle.id]).succeeded();
    bundle.gone();
}

/// OCI-001 to OCI-005, OCI-035: ids that are missing, unknown or none; unknown commands.
#[test]
fn commands_need_an_id_that_exists() {
    let bundle = sleeping();
    bundle.save();
    for command in ["create", "start", "state", "kill", "delete"] {
        bundle.oci(&[command]).refused("id is missing");
        for id in ["../x", "a/b", ".", "..", "", "-x", "a\nb", &"x".repeat(300)] {
            let refused = bundle.oci(&[command, "--", id]);
            refused.refused("cannot be used");
        }
        if command != "create" {
            bundle.oci(&[command, "nobody"]).refused("no container 'nobody'");
        }
    }
    bundle.oci(&["fly"]).refused("'fly' is no command");
    bundle.oci(&[]).refused("a command is missing");
    bundle.oci(&["--systemd-cgroup", "list"]).refused("leave it out");
    assert!(bundle.oci(&["--version"]).succeeded().contains("spec: 1."));
    let features: Value = serde_json::from_str(bundle.oci(&["features"]).succeeded()).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}

/// OCI-004: signals arrive, TERM if none is named.
#[test]
fn signals_are_delivered() {
    let bundle = sleeping();
    bundle.create(&[]).succeeded();
    bundle.start().succeeded();
    eventually("the trap", || bundle.said("stdout").contains("up"));
    bundle.oci(&["kill", "--signal", "SIGUSR1", &bundle.id]).succeeded();
    eventually("USR1", || bundle.said("stdout").contains("usr1"));
    bundle.oci(&["kill", &bundle.id]).succeeded();
    bundle.stopped();
    assert!(bundle.said("stdout").ends_with("term\n"));
    bundle.delete().succeeded();
    // Also before the program is there.
    bundle.create(&[]).succeeded();
    bundle.oci(&["kill", &bundle.id, "9"]).succeeded();
    bundle.stopped();
    bundle.delete().succeeded();
    bundle.gone();
}

/// OCI-003: a configuration without a process can be created, not started.
#[test]
fn without_a_process_there_is_nothing_to_start() {
    let bundle = sleeping().with(|config| drop(config.as_object_mut().unwrap().remove("process")));
    bundle.create(&[]).succeeded();
    assert_eq!(bundle.status(), "created");
    bundle.start().refused("no process to start");
    bundle.oci(&["delete", "-f", &bundle.id]).succeeded();
    bundle.gone();
}

/// OCI-006: what is written to config.json after create has no effect.
#[test]
fn later_changes_of_the_configuration_have_no_effect() {
    let mut bundle = Bundle::new("echo first");
    let hook =
        |word: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {word} >> log")] }]);
    bundle.config["hooks"]["poststop"] = hook("first");
    bundle.create(&[]).succeeded();
    bundle.config["process"]["args"] = json!(["/bin/echo", "second"]);
    bundle.config["hooks"]["poststop"] = hook("second");
    bundle.save();
    bundle.start().succeeded();
    bundle.stopped();
    assert_eq!(bundle.said("stdout"), "first\n");
    bundle.delete().succeeded();
    assert_eq!(bundle.said("log"), "first\n");
}

/// OCI-007.
#[test]
fn the_pid_file_holds_the_pid() {
    let bundle = sleeping();
    let file = bundle.path().join("pid");
    bundle.create(&["--pid-file", file.to_str().unwrap()]).succeeded();
    assert_eq!(fs::read_to_string(&file).unwrap(), bundle.inspect()["pid"].to_string());
    let other = sleeping();
    other.create(&["--pid-file", "/nowhere/pid"]).refused("writing /nowhere/pid");
    other.gone();
}

/// OCI-010: what is unknown is ignored, what is invalid is refused. The reference agrees on what is ignored.
#[test]
fn unknown_properties_are_ignored_and_invalid_ones_refused() {
    for runtime in BOTH {
        let bundle = Bundle::new("echo fine").with(|config| {
            config["annotations"] = json!({ "org.unknown": "" });
            config["unknown"] = "unknown".into();
        });
        assert_eq!(bundle.prints(runtime), "fine\n");
    }
    let bundle = sleeping().with(|config| config["ociVersion"] = "invalid".into());
    bundle.create(&[]).refused("'invalid' is no version");
    bundle.gone();
}

/// OCI-035: LISTEN_FDS and --preserve-fds hand descriptors on, and nothing else stays open.
#[test]
fn descriptors_are_handed_on_and_no_others() {
    for (runtime, words, before) in [
        (Runtime::Wherry, "--preserve-fds 1", "LISTEN_FDS=1"),
        (Runtime::Crun, "--preserve-fds 1", "LISTEN_FDS=1"),
        (Runtime::Wherry, "", ""),
    ] {
        let bundle = Bundle::new("echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4; ls /proc/self/fd");
        bundle.save();
        fs::write(bundle.path().join("a"), "third\n").unwrap();
        fs::write(bundle.path().join("b"), "fourth\n").unwrap();
        let script = format!("cd '{}'; exec env {before} \"$@\" 3<a 4<b 5<a", bundle.path().display());
        let inner = runtime.command(&bundle);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.arg("run").args(words.split_whitespace()).arg(&bundle.id);
        let ran = output(&mut command);
        if words.is_empty() {
            assert!(ran.stdout.starts_with('\n') && !ran.stdout.contains("third"), "{ran:?}");
            assert!(ran.stdout.ends_with("0\n1\n2\n3\n"), "{ran:?}");
        } else {
            // sd_listen_fds(3) wants the pid too, which that crun does not know. 5 is the directory that ls reads.
            let announced = if runtime == Runtime::Wherry { "1 1" } else { "1" };
            let expected = format!("{announced}\nthird\nfourth\n0\n1\n2\n3\n4\n5\n");
            assert_eq!(ran.succeeded(), expected, "{runtime:?}");
        }
    }
    let bundle = sleeping();
    bundle.create(&["--preserve-fds", "50"]).refused("not open");
    bundle.gone();
}

/// `run` is all in one, and gives the program's exit code on.
#[test]
fn run_ends_as_the_program_ends() {
    for runtime in BOTH {
        assert_eq!(Bundle::new("exit 7").run(runtime).code, 7, "{runtime:?}");
    }
    let bundle = Bundle::new("kill -9 $$");
    bundle.run(Runtime::Wherry);
    bundle.gone();
    let bundle = Bundle::new("sleep 100");
    bundle.save();
    let mut command = Runtime::Wherry.command(&bundle);
    command.args(["run", "-d", "-b"]).arg(bundle.path()).arg(&bundle.id);
    bundle.with_files(&mut command).succeeded();
    assert_eq!(bundle.status(), "running");
    let list: Value = serde_json::from_str(bundle.oci(&["list", "-f", "json"]).succeeded()).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&bundle.id.as_str().into(), &"running".into()));
    assert_eq!(bundle.oci(&["list", "-q"]).succeeded(), format!("{}\n", bundle.id));
    assert!(bundle.oci(&["list"]).succeeded().contains("running"));
}

#[test]
fn a_program_that_is_not_there_is_told_at_create() {
    let bundle = sleeping().with(|config| config["process"]["args"] = json!(["/bin/nothing"]));
    bundle.create(&[]).refused("no such program '/bin/nothing'");
    bundle.gone();
    let bundle = sleeping();
    fs::write(bundle.root().join("bin/text"), "nothing\n").unwrap();
    fs::set_permissions(bundle.root().join("bin/text"), fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = bundle.with(|config| config["process"]["args"] = json!(["text"]));
    bundle.create(&[]).succeeded();
    bundle.start().refused("is not a program");
    bundle.stopped();
    bundle.delete().succeeded();
}

/// Hostile: many at once want the same id. One gets it, and it is whole.
#[test]
fn of_creates_that_race_one_wins() {
    let bundle = sleeping();
    bundle.save();
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Runtime::Wherry.command(&bundle);
            command.args(["create", "-b"]).arg(bundle.path()).arg(&bundle.id);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert_eq!(bundle.status(), "created");
    let left: Vec<_> =
        fs::read_dir(bundle.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [bundle.id.as_str()]);
    // So for starts.
    let started = (0..2).map(|_| bundle.start().code == 0).filter(|started| *started).count();
    assert_eq!(started, 1);
}

/// Hostile: a state that was changed is reported and left alone.
#[test]
fn a_tampered_state_is_reported() {
    let bundle = sleeping();
    bundle.create(&[]).succeeded();
    let record = bundle.state().join(&bundle.id).join("state.json");
    let good = fs::read_to_string(&record).unwrap();
    for bad in ["", "{}", "[1]", &good.replace("\"version\":\"1\"", "\"version\":\"9\"")] {
        fs::write(&record, bad).unwrap();
        for command in ["state", "start", "kill", "delete"] {
            bundle.oci(&[command, &bundle.id]).refused("cannot be trusted");
        }
        bundle.oci(&["delete", "--force", &bundle.id]).refused("cannot be trusted");
        bundle.oci(&["list"]).refused("cannot be trusted");
        assert_eq!(fs::read_to_string(&record).unwrap(), bad);
    }
    // A number that is another process's by now is never signalled.
    let mut value: Value = serde_json::from_str(&good).unwrap();
    value["first"]["pid"] = std::process::id().into();
    fs::write(&record, value.to_string()).unwrap();
    bundle.oci(&["kill", &bundle.id, "KILL"]).refused("it is stopped");
    fs::write(&record, &good).unwrap();
    // A link in the place of a container.
    symlink("/etc", bundle.state().join("linked")).unwrap();
    bundle.oci(&["state", "linked"]).refused("opening");
    bundle.oci(&["delete", "--force", "linked"]).refused("opening");
    assert!(Path::new("/etc/passwd").exists());
    fs::remove_file(bundle.state().join("linked")).unwrap();
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(bundle.state(), everybody).unwrap();
    bundle.oci(&["state", &bundle.id]).refused("nobody else can write");
    fs::set_permissions(bundle.state(), fs::Permissions::from_mode(0o700)).unwrap();
}

/// Hostile: configurations that are no configurations.
#[test]
fn hostile_configurations_are_refused() {
    let bundle = sleeping();
    let path = bundle.path().join("config.json");
    bundle.create_unsaved(&[]).refused("No such file");
    fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    bundle.create_unsaved(&[]).refused("longer than 4194304 bytes");
    for bad in ["", "{", "null", "\u{0}", &"[".repeat(100_000), "{\"ociVersion\":\"1.0.2\"}"] {
        fs::write(&path, bad).unwrap();
        bundle.create_unsaved(&[]).refused("config.json: ");
    }
    let bundle = sleeping().with(|config| config["root"]["path"] = "nowhere".into());
    bundle.create(&[]).refused("is no directory");
    let bundle = sleeping().with(|config| config["root"]["path"] = "config.json".into());
    bundle.create(&[]).refused("is no directory");
    bundle.gone();
}

/// Errors are where programs above look for them.
#[test]
fn errors_are_logged_as_asked() {
    let bundle = sleeping();
    let log = bundle.path().join("log.json");
    let words = ["--log", log.to_str().unwrap(), "--log-format=json", "state", "nobody"];
    bundle.oci(&words).refused("no container 'nobody'");
    let entry: Value = serde_json::from_str(&bundle.said("log.json")).unwrap();
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().unwrap().contains("nobody"));
}

/// A record whose `create` was killed can be removed.
#[test]
fn what_a_killed_create_left_can_be_deleted() {
    let slow = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo $PPID > parent; sleep 100"] }]);
    let bundle = sleeping().with(|config| config["hooks"]["createRuntime"] = slow);
    bundle.save();
    let mut command = Runtime::Wherry.command(&bundle);
    command.args(["create", "-b"]).arg(bundle.path()).arg(&bundle.id);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut create = command.spawn().unwrap();
    eventually("the hook", || bundle.said("parent").ends_with('\n'));
    assert_eq!(bundle.status(), "creating");
    let first = bundle.inspect()["pid"].clone();
    let pid = nix::unistd::Pid::from_raw(bundle.said("parent").trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    create.wait().unwrap();
    eventually("the end of the first process", || !Path::new(&format!("/proc/{first}/root/proc")).exists());
    bundle.oci(&["kill", &bundle.id, "KILL"]).refused("it is creating");
    bundle.delete().refused("it is creating");
    bundle.oci(&["delete", "--force", &bundle.id]).succeeded();
    bundle.gone();
}
