//! Cgroups by the OCI command line (OCI-016, OCI-017). Which controllers cgroup v2 has depends on the machine: bounds are
//! tested with those that are there, and refused with those that are not. tests/tests/oci.rs runs this on the boards' kernel,
//! which has them all but hugetlb; that every resource becomes the right line in the right file is tested in
//! src/oci/plan/cgroup.rs.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::oci::{Bundle, Runtime};
use support::{cgroup_hierarchy, eventually};

fn controllers() -> Vec<String> {
    let text = fs::read_to_string(cgroup_hierarchy().join("cgroup.controllers")).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

fn sleeping(cgroups_path: &str) -> Bundle {
    Bundle::new("echo up; sleep 100 & sleep 100 & wait").with(|config| {
        if !cgroups_path.is_empty() {
            config["linux"]["cgroupsPath"] = cgroups_path.into();
        }
    })
}

fn pids(cgroup: &Path) -> String {
    fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default()
}

/// OCI-016 absolute, OCI-017 relative, and none: where the container is, and that all that was made is gone afterwards.
#[test]
fn cgroups_are_where_they_should_be_and_go_again() {
    let name = format!("wherry-test-{}", std::process::id());
    for (path, place) in [
        (format!("/{name}/deep/box"), Some(format!("{name}/deep/box"))),
        (format!("{name}/box"), Some(format!("wherry-oci/{name}/box"))),
        (String::new(), None),
    ] {
        let bundle = sleeping(&path);
        let cgroup: PathBuf =
            cgroup_hierarchy().join(place.unwrap_or_else(|| format!("wherry-oci/{}", bundle.id)));
        bundle.create(&[]).succeeded();
        let pid = bundle.inspect()["pid"].to_string();
        assert_eq!(pids(&cgroup).trim(), pid, "{path}");
        bundle.start().succeeded();
        eventually("the second process", || pids(&cgroup).lines().count() > 1);
        bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
        bundle.stopped();
        bundle.delete().succeeded();
        assert!(!cgroup.exists(), "{path}");
        bundle.gone();
    }
    assert!(!cgroup_hierarchy().join(name).exists());
}

/// OCI-005: only what create made is removed; what runs in it is killed with it, also without a pid namespace.
#[test]
fn only_what_was_made_is_removed() {
    let name = format!("wherry-test-kept-{}", std::process::id());
    let kept = cgroup_hierarchy().join(&name);
    fs::create_dir(&kept).unwrap();
    let bundle = sleeping(&format!("/{name}/box")).with(|config| {
        let list = config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "pid");
    });
    bundle.create(&[]).succeeded();
    bundle.start().succeeded();
    let cgroup = kept.join("box");
    eventually("all its processes", || pids(&cgroup).lines().count() == 3);
    bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    assert_eq!(pids(&cgroup).lines().count(), 2);
    // Something that the container could have made itself.
    fs::create_dir(cgroup.join("inner")).unwrap();
    bundle.delete().succeeded();
    assert!(kept.exists() && !cgroup.exists());
    // An existing one that is empty is used and stays.
    let bundle = sleeping(&format!("/{name}"));
    bundle.create(&[]).succeeded();
    bundle.oci(&["kill", "--all", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    bundle.delete().succeeded();
    assert!(kept.exists());
    fs::remove_dir(&kept).unwrap();
}

/// Containers that come and go at once share the directories above theirs: none takes one away from another.
#[test]
fn containers_that_come_and_go_do_not_disturb_each_other() {
    let path = format!("/wherry-test-crowd-{}", std::process::id());
    let rounds = |number: usize| {
        for round in 0..10 {
            let bundle = Bundle::new("true").with(|config| {
                config["linux"]["cgroupsPath"] = format!("{path}/deep/{number}-{round}").into()
            });
            bundle.prints(Runtime::Wherry);
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|number| drop(scope.spawn(move || rounds(number))));
    });
    // Whoever made these may have ended while others were in them: then they stay, but empty.
    for directory in [format!("{path}/deep"), path] {
        let directory = cgroup_hierarchy().join(&directory[1..]);
        assert!(!directory.exists() || fs::remove_dir(&directory).is_ok(), "{}", directory.display());
    }
}

/// A cgroup that is in use would be bounded and killed with the container.
#[test]
fn a_cgroup_in_use_is_refused() {
    let path = format!("/wherry-test-used-{}", std::process::id());
    let first = sleeping(&path);
    first.create(&[]).succeeded();
    let second = sleeping(&path);
    second.create(&[]).refused("has processes already");
    second.gone();
    assert_eq!(first.status(), "created");
    assert_eq!(pids(&cgroup_hierarchy().join(&path[1..])).lines().count(), 1);
}

/// OCI-016: bounds are in the kernel's files, for every controller that this machine offers.
#[test]
fn bounds_are_set_where_the_kernel_offers_them() {
    let offered = controllers();
    assert!(!offered.is_empty(), "this machine's cgroup v2 has no controller at all");
    for (controller, resources, file, expected) in [
        ("memory", json!({ "memory": { "limit": 67_108_864 } }), "memory.max", "67108864\n"),
        (
            "memory",
            json!({ "memory": { "limit": 67_108_864, "reservation": 33_554_432 } }),
            "memory.low",
            "33554432\n",
        ),
        ("pids", json!({ "pids": { "limit": 77 } }), "pids.max", "77\n"),
        ("cpu", json!({ "cpu": { "shares": 1024 } }), "cpu.weight", "39\n"),
        ("cpu", json!({ "cpu": { "quota": 50_000, "shares": 1024 } }), "cpu.max", "50000 100000\n"),
        ("cpuset", json!({ "cpu": { "cpus": "0" } }), "cpuset.cpus", "0\n"),
        ("io", json!({ "blockIO": { "weight": 500 } }), "io.weight", "default 4950\n"),
        (
            "hugetlb",
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            "hugetlb.2MB.max",
            "4194304\n",
        ),
        ("hugetlb", json!({ "unified": { "hugetlb.2MB.max": "2097152" } }), "hugetlb.2MB.max", "2097152\n"),
    ] {
        for path in [format!("/wherry-test-bounds-{}/box", std::process::id()), "bounds/box".to_owned()] {
            let bundle = sleeping(&path).with(|config| config["linux"]["resources"] = resources.clone());
            if offered.iter().any(|name| name == controller) {
                bundle.create(&[]).succeeded();
                let place =
                    path.strip_prefix('/').map_or_else(|| format!("wherry-oci/{path}"), str::to_owned);
                let cgroup = cgroup_hierarchy().join(place);
                assert_eq!(fs::read_to_string(cgroup.join(file)).unwrap(), expected);
                bundle.oci(&["delete", "--force", &bundle.id]).succeeded();
                assert!(!cgroup.exists());
            } else {
                bundle.create(&[]).refused(&format!("needs the {controller} controller"));
                bundle.gone();
            }
        }
    }
}

/// OCI-016: what cgroup v2 does not have is refused, and so is what the kernel refuses.
#[test]
fn bounds_that_cannot_be_set_are_refused() {
    for (resources, says) in [
        (json!({ "unified": { "nothing.max": "1" } }), "needs the nothing controller"),
        (json!({ "unified": { "cgroup.nothing": "1" } }), "writing '1' to"),
        (json!({ "unified": { "../cgroup.kill": "1" } }), "no file of a cgroup"),
        (json!({ "network": { "classID": 1 } }), "cgroup v2 has not"),
        (json!({ "memory": { "swappiness": 60 } }), "cgroup v2 has not"),
        (json!({ "devices": [{ "allow": true, "type": "q" }] }), "unknown variant"),
    ] {
        let bundle = sleeping("").with(|config| config["linux"]["resources"] = resources);
        bundle.create(&[]).refused(says);
        bundle.gone();
        assert!(!cgroup_hierarchy().join("wherry-oci").join(&bundle.id).exists());
    }
}

fn devices(rules: Value, script: &str) -> String {
    let bundle = Bundle::new(script).with(|config| {
        config["linux"]["resources"] = json!({ "devices": rules });
        config["linux"]["devices"] =
            json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 438 }]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
        }
    });
    bundle.prints(Runtime::Wherry)
}

/// OCI-016: devices, by a program that the kernel asks.
#[test]
fn devices_are_allowed_and_denied() {
    let script = "try() { \"$@\" 2>/dev/null && echo yes || echo no; }; try sh -c ': < /dev/kmsg'; try sh -c ': > /dev/kmsg'; \
        try sh -c ': > /dev/null'; try mknod /tmp/a c 1 11; try mknod /tmp/b c 1 3";
    let nothing = json!({ "allow": false, "access": "rwm" });
    let read = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" });
    assert_eq!(devices(json!([]), script), "yes\nyes\nyes\nyes\nyes\n");
    assert_eq!(devices(json!([nothing]), script), "no\nno\nyes\nno\nyes\n");
    assert_eq!(devices(json!([nothing, read]), script), "yes\nno\nyes\nno\nyes\n");
    assert_eq!(devices(json!([read, nothing]), script), "no\nno\nyes\nno\nyes\n");
}

/// Without cgroups, when the caller says that it has its own ways.
#[test]
fn cgroups_can_be_left_to_the_caller() {
    let bundle = Bundle::new("echo fine");
    bundle.save();
    let mut command = Runtime::Wherry.command_with(&bundle, false);
    command.args(["run", "-b"]).arg(bundle.path()).arg(&bundle.id);
    assert_eq!(support::oci::output(&mut command).succeeded(), "fine\n");
    assert!(!cgroup_hierarchy().join("wherry-oci").join(&bundle.id).exists());
}
