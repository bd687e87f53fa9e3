use super::super::bundle::parse;
use super::super::error::OciError;
use serde_json::{Value, json};

/// The smallest configuration that is right.
fn base() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"] },
        "linux": { "namespaces": [{ "type": "mount" }] }
    })
}

/// Sets the value at a JSON pointer, with those above it.
fn with(pointer: &str, value: Value) -> Value {
    let mut config = base();
    let mut at = &mut config;
    for name in pointer.split('/').skip(1) {
        at = &mut at[name];
    }
    *at = value;
    config
}

fn outcome(config: &Value) -> Result<(), OciError> {
    parse(config.to_string().as_bytes()).map(drop)
}

#[test]
fn what_is_right_or_unknown_passes() {
    let namespaces =
        json!([{ "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }]);
    outcome(&base()).unwrap();
    for (pointer, value) in [
        ("/unknown", json!({ "property": 1 })),
        ("/process/unknown", json!(true)),
        ("/annotations", json!({ "org.unknown": "x" })),
        ("/ociVersion", json!("1.2.0-rc.1+build.5")),
        ("/process/apparmorProfile", json!("")),
        ("/process/selinuxLabel", json!("")),
        ("/process/capabilities", json!({ "bounding": ["CAP_CHOWN"], "ambient": [] })),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 18_446_744_073_709_551_615_u64 }]),
        ),
        ("/linux/mountLabel", json!("")),
        (
            "/linux/resources",
            json!({ "memory": { "kernel": -1, "disableOOMKiller": false }, "cpu": { "realtimeRuntime": 0 } }),
        ),
        ("/linux/namespaces", namespaces.clone()),
    ] {
        let result = outcome(&with(pointer, value));
        assert!(result.is_ok(), "{pointer}: {result:?}");
    }
    let mut config = with("/linux/namespaces", namespaces);
    config["hostname"] = "box".into();
    config["linux"]["sysctl"] =
        json!({ "net.ipv4.ip_forward": "1", "kernel/shmmax": "1", "kernel.domainname": "x" });
    outcome(&config).unwrap();
    let mut config = base();
    config.as_object_mut().unwrap().remove("process");
    outcome(&config).unwrap();
}

#[test]
fn what_the_specification_forbids_is_wrong() {
    let hook = |timeout| json!([{ "path": "/bin/true", "timeout": timeout }]);
    for (pointer, value, says) in [
        ("/ociVersion", json!("invalid"), "is no version"),
        ("/ociVersion", json!("1.0"), "is no version"),
        ("/ociVersion", json!("1.00.0"), "is no version"),
        ("/ociVersion", json!(1), "invalid type"),
        ("/root", Value::Null, "root is missing"),
        ("/root/path", json!(""), "root.path is empty"),
        ("/linux", Value::Null, "linux is missing"),
        ("/process/cwd", json!("tmp"), "not absolute"),
        ("/process/args", json!([]), "args is empty"),
        ("/process/args", json!([""]), "args is empty"),
        ("/process/args", json!(["a\0b"]), "zero byte"),
        ("/process/env", json!(["NOVALUE"]), "not NAME=value"),
        ("/process/capabilities", json!({ "bounding": ["CAP_FLY"] }), "no variant for CAP_FLY"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_TEST", "soft": 1, "hard": 1 }]),
            "unknown variant `RLIMIT_TEST`",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }, { "type": "RLIMIT_CPU", "soft": 2, "hard": 2 }]),
            "twice",
        ),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]), "above its hard one"),
        ("/process/oomScoreAdj", json!(1001), "between -1000 and 1000"),
        ("/process/user/umask", json!(0o1000), "more than 0777"),
        ("/mounts", json!([{ "destination": "tmp", "type": "tmpfs" }]), "not absolute"),
        ("/hooks/poststop", json!([{ "path": "true" }]), "not absolute"),
        ("/hooks/prestart", hook(0), "not above 0"),
        ("/hooks/createRuntime", hook(-1), "not above 0"),
        ("/linux/namespaces", json!([{ "type": "pid" }, { "type": "pid" }]), "pid twice"),
        ("/linux/namespaces", json!([{ "type": "dream" }]), "unknown variant `dream`"),
        ("/linux/namespaces", json!([{ "type": "pid", "path": "proc/1" }]), "not absolute"),
        ("/linux/namespaces", json!([{ "type": "user" }]), "go with a new user namespace"),
        (
            "/linux/uidMappings",
            json!([{ "containerID": 0, "hostID": 1, "size": 1 }]),
            "go with a new user namespace",
        ),
        ("/linux/maskedPaths", json!(["proc/kcore"]), "not absolute"),
        ("/linux/readonlyPaths", json!(["proc/sys"]), "not absolute"),
        ("/linux/devices", json!([{ "path": "null", "type": "c" }]), "not absolute"),
        ("/linux/devices", json!([{ "path": "/a", "type": "p" }, { "path": "/a", "type": "p" }]), "twice"),
        ("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }), "needs a network namespace"),
        ("/linux/sysctl", json!({ "vm.swappiness": "1" }), "the host's"),
        ("/linux/sysctl", json!({ "net.../../x": "1" }), "name that is none"),
        ("/linux/cgroupsPath", json!("/a/../b"), "contains '..'"),
        ("/linux/cgroupsPath", json!("system.slice:runc:x"), "systemd's"),
        ("/linux/timeOffsets", json!({ "monotonic": { "secs": 1 } }), "needs a new time namespace"),
        (
            "/linux/resources",
            json!({ "devices": [{ "allow": true, "access": "rwx" }] }),
            "other than r, w and m",
        ),
        ("/hostname", json!("box"), "needs a uts namespace"),
    ] {
        match outcome(&with(pointer, value)) {
            Err(OciError::Config(text)) => assert!(text.contains(says), "{pointer}: {text}"),
            other => panic!("{pointer} {says}: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_given_is_refused_and_never_dropped() {
    let map = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
    for (pointer, value, says) in [
        ("/ociVersion", json!("2.0.0"), "instead of 1.x"),
        ("/windows", json!({}), "Windows"),
        ("/mounts", json!([{ "destination": "/x", "type": "tmpfs", "uidMappings": map }]), "id mappings"),
        ("/process/apparmorProfile", json!("acme"), "AppArmor"),
        ("/process/selinuxLabel", json!("a:b:c"), "SELinux"),
        ("/process/scheduler", json!({ "policy": "SCHED_FIFO" }), "scheduler"),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }), "ioPriority"),
        ("/linux/mountLabel", json!("a:b:c"), "SELinux"),
        ("/linux/intelRdt", json!({ "closID": "x" }), "intelRdt"),
        ("/linux/personality", json!({ "domain": "LINUX32" }), "personality"),
        ("/linux/netDevices", json!({ "eth0": {} }), "netDevices"),
        ("/linux/resources", json!({ "memory": { "swappiness": 0 } }), "swappiness"),
        ("/linux/resources", json!({ "memory": { "kernel": 5 } }), "kernel memory"),
        ("/linux/resources", json!({ "memory": { "disableOOMKiller": true } }), "disableOOMKiller"),
        ("/linux/resources", json!({ "cpu": { "realtimePeriod": 5 } }), "real-time"),
        ("/linux/resources", json!({ "blockIO": { "leafWeight": 10 } }), "leafWeight"),
        ("/linux/resources", json!({ "network": { "classID": 1 } }), "network"),
    ] {
        match outcome(&with(pointer, value)) {
            Err(OciError::Unsupported(text)) => assert!(text.contains(says), "{pointer}: {text}"),
            other => panic!("{pointer} {says}: {other:?}"),
        }
    }
}

#[test]
fn a_user_namespace_must_map_its_root() {
    let map = |id: u32| json!([{ "containerID": id, "hostID": 1000, "size": 10 }]);
    let config = |users: Value| {
        let mut config = with("/linux/namespaces", json!([{ "type": "mount" }, { "type": "user" }]));
        config["linux"]["uidMappings"] = users;
        config["linux"]["gidMappings"] = map(0);
        config
    };
    outcome(&config(map(0))).unwrap();
    let error = outcome(&config(map(5))).unwrap_err().to_string();
    assert!(error.contains("no entry for id 0"), "{error}");
}
