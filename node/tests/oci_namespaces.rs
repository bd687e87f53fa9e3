//! Namespaces by the OCI command line: new, inherited, joined, wrong (OCI-021).
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Command, Stdio};
use support::oci::{BOTH, Bundle, Runtime};

/// Types of the specification, and their names in /proc.
const KINDS: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

fn own(name: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_str().unwrap().to_owned()
}

fn of(pid: &Value, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_str().unwrap().to_owned()
}

/// A configuration with exactly these.
fn with(namespaces: Value) -> Bundle {
    Bundle::new("sleep 100").with(|config| {
        config["linux"]["namespaces"] = namespaces;
        config.as_object_mut().unwrap().remove("hostname");
    })
}

fn running(bundle: &Bundle) -> Value {
    bundle.create(&[]).succeeded();
    bundle.start().succeeded();
    bundle.inspect()["pid"].clone()
}

/// A process in new namespaces of its own.
struct Other(Child);

impl Other {
    fn new(flags: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(flags).args(["sh", "-c", "echo up; exec sleep 1000"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        Self(child)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.0.id())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn those_without_a_path_are_new() {
    let all: Vec<Value> = KINDS.iter().map(|(kind, _)| json!({ "type": kind })).collect();
    let bundle = with(all.into());
    let pid = running(&bundle);
    for (kind, name) in KINDS {
        assert_ne!(of(&pid, name), own(name), "{kind}");
    }
    assert_eq!(of(&pid, "user"), own("user"));
}

#[test]
fn those_that_are_not_listed_are_inherited() {
    for (missing, name) in KINDS {
        let all: Vec<Value> = KINDS
            .iter()
            .filter(|(kind, _)| *kind != missing)
            .map(|(kind, _)| json!({ "type": kind }))
            .collect();
        let bundle = with(all.into());
        // Kernel file systems show a namespace that belongs to whoever mounts them.
        let pid = running(&bundle);
        assert_eq!(of(&pid, name), own(name), "{missing}");
        bundle.oci(&["delete", "--force", &bundle.id]).succeeded();
        bundle.gone();
    }
}

/// All of them at once; nothing of its mounts may be left on the host.
#[test]
fn a_container_without_namespaces_leaves_no_mounts() {
    let bundle = with(json!([]));
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let pid = running(&bundle);
    for (kind, name) in KINDS {
        assert_eq!(of(&pid, name), own(name), "{kind}");
    }
    let root = bundle.root().canonicalize().unwrap();
    assert!(mounts().contains(root.to_str().unwrap()));
    bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    bundle.delete().succeeded();
    assert!(!mounts().contains(root.to_str().unwrap()), "{}", mounts());
    // Nor after a create that fails.
    let bundle = bundle.with(|config| config["process"]["args"] = json!(["/nothing"]));
    bundle.create(&[]).refused("no such program");
    assert!(!mounts().contains(root.to_str().unwrap()), "{}", mounts());
    bundle.gone();
}

#[test]
fn those_with_a_path_are_joined() {
    for (kind, name) in KINDS {
        let flag = format!("--{}", if kind == "network" { "net" } else { kind });
        let other = if kind == "pid" {
            Other::new(&["--pid", "--fork", "--kill-child"])
        } else if kind == "time" {
            Other::new(&["--time", "--fork", "--kill-child"])
        } else {
            Other::new(&[&flag])
        };
        let path = match kind {
            "pid" => other.path("pid_for_children"),
            "time" => other.path("time_for_children"),
            _ => other.path(name),
        };
        let mut all: Vec<Value> =
            KINDS.iter().filter(|(one, _)| *one != kind).map(|(one, _)| json!({ "type": one })).collect();
        all.push(json!({ "type": kind, "path": path }));
        let bundle = with(all.into());
        let pid = running(&bundle);
        let wanted = fs::read_link(&path).unwrap();
        assert_eq!(of(&pid, name), wanted.to_str().unwrap(), "{kind}");
        assert_ne!(of(&pid, name), own(name), "{kind}");
        bundle.oci(&["delete", "--force", &bundle.id]).succeeded();
        bundle.gone();
        if kind == "mount" {
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", other.0.id())).unwrap();
            assert!(!mounts.contains(bundle.path().to_str().unwrap()), "{mounts}");
        }
    }
}

/// A user namespace of somebody else, and new namespaces that belong to it.
#[test]
fn a_user_namespace_can_be_joined() {
    let script = "cat /proc/self/uid_map | tr -s ' '; id -u; cat /proc/sys/kernel/hostname";
    for runtime in BOTH {
        let other = Other::new(&["--user"]);
        for map in ["gid_map", "uid_map"] {
            fs::write(format!("/proc/{}/{map}", other.0.id()), "0 100000 65536\n").unwrap();
        }
        let mut all: Vec<Value> =
            ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind })).into();
        all.push(json!({ "type": "user", "path": other.path("user") }));
        let bundle = Bundle::new(script).with(|config| {
            config["linux"]["namespaces"] = all.into();
            config["hostname"] = "joined".into();
        });
        std::os::unix::fs::symlink("busybox", bundle.root().join("bin/tr")).unwrap();
        assert_eq!(bundle.prints(runtime), " 0 100000 65536\n0\njoined\n", "{runtime:?}");
    }
}

/// Each type with the file of another type is refused, by the reference too, and so is what is no namespace.
#[test]
fn paths_of_the_wrong_type_are_refused() {
    for (kind, name) in KINDS.into_iter().chain([("user", "user")]) {
        let wrong = if name == "uts" { "ipc" } else { "uts" };
        for path in [&format!("/proc/self/ns/{wrong}"), "/etc/passwd", "/dev/null"] {
            let bundle = with(json!([{ "type": kind, "path": path }]));
            let refused = bundle.create(&[]);
            refused.refused(&format!("is no {kind} namespace"));
            bundle.gone();
        }
        if kind != "time" {
            let bundle = with(
                json!([{ "type": "mount" }, { "type": kind, "path": format!("/proc/self/ns/{wrong}") }]),
            );
            assert_ne!(bundle.run(Runtime::Crun).code, 0, "{kind}");
        }
    }
    let bundle = with(json!([{ "type": "pid", "path": "/nowhere" }]));
    bundle.create(&[]).refused("opening namespace /nowhere");
    for (list, says) in [
        (json!([{ "type": "pid" }, { "type": "pid" }]), "pid twice"),
        (json!([{ "type": "dream" }]), "unknown variant"),
        (json!([{ "type": "pid", "path": "proc/1/ns/pid" }]), "not absolute"),
    ] {
        with(list).create(&[]).refused(says);
    }
}

/// Debian's crun is older than the property.
#[test]
fn clocks_have_their_offsets() {
    let bundle = Bundle::new("cut -d. -f1 /proc/uptime").with(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 } });
    });
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/cut")).unwrap();
    let printed = bundle.prints(Runtime::Wherry);
    assert!(printed.trim().parse::<u64>().unwrap() > 1_000_000, "{printed}");
}
