//! Hooks by the OCI command line, as opencontainers/runtime-tools checks them (docs/oci.md).
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use support::eventually;
use support::oci::Bundle;

fn sleeping() -> Bundle {
    Bundle::new("sleep 100")
}

fn log_hook(name: &str) -> Value {
    let script = format!("cat >> states; echo >> states; echo {name} >> log");
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] })
}

/// OCI-008: every hook, in the order of the list, with the state on standard input.
#[test]
fn hooks_are_called_in_order_with_the_state() {
    let inside =
        json!({ "path": "/bin/sh", "args": ["sh", "-c", "cat > /state; echo startContainer > /seen"] });
    let bundle = Bundle::new("cat /seen; sleep 100").with(|config| {
        config["annotations"] = json!({ "org.example": "x" });
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            config["hooks"][kind] = json!([log_hook(&format!("{kind}1")), log_hook(&format!("{kind}2"))]);
        }
        config["hooks"]["startContainer"] = json!([inside]);
    });
    bundle.create(&[]).succeeded();
    let created =
        "prestart1\nprestart2\ncreateRuntime1\ncreateRuntime2\ncreateContainer1\ncreateContainer2\n";
    assert_eq!(bundle.said("log"), created);
    let pid = bundle.inspect()["pid"].clone();
    bundle.start().succeeded();
    assert_eq!(bundle.said("log"), format!("{created}poststart1\npoststart2\n"));
    eventually("the hook's word", || bundle.said("stdout") == "startContainer\n");
    bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    bundle.delete().succeeded();
    assert!(bundle.said("log").ends_with("poststop1\npoststop2\n"));
    let states: Vec<Value> =
        bundle.said("states").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let statuses: Vec<&str> = states.iter().map(|state| state["status"].as_str().unwrap()).collect();
    let expected = [["creating"; 6].as_slice(), &["running"; 2], &["stopped"; 2]].concat();
    assert_eq!(statuses, expected);
    for state in &states {
        assert_eq!(
            (&state["id"], &state["annotations"]["org.example"]),
            (&bundle.id.as_str().into(), &"x".into())
        );
        assert!(state["pid"] == pid || state["status"] == "stopped", "{state}");
    }
    let inside: Value =
        serde_json::from_str(&fs::read_to_string(bundle.root().join("state")).unwrap()).unwrap();
    assert_eq!((&inside["status"], &inside["pid"]), (&"created".into(), &pid));
}

/// OCI-009: hooks before the program must succeed, those after it only warn. An endless one is killed.
#[test]
fn failing_hooks() {
    let fail =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no way >&2; exit 7"] }, log_hook("after")]);
    let slow = json!([{ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 }]);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = sleeping().with(|config| {
            config["hooks"][kind] = fail.clone();
            config["hooks"]["poststop"] = json!([log_hook("poststop")]);
        });
        let output = bundle.create(&[]);
        output.refused(&format!("{kind} hook /bin/sh failed: exit status: 7: no way"));
        assert_eq!(bundle.said("log"), "poststop\n", "{kind}");
        bundle.gone();
    }
    let bundle = sleeping().with(|config| config["hooks"]["createRuntime"] = slow);
    bundle.create(&[]).refused("took longer than 1 seconds");
    let bundle = sleeping().with(|config| config["hooks"]["startContainer"] = fail.clone());
    bundle.create(&[]).succeeded();
    bundle.start().refused("startContainer hook /bin/sh failed");
    bundle.stopped();
    let bundle = sleeping().with(|config| {
        config["hooks"]["poststart"] = fail.clone();
        config["hooks"]["poststop"] = fail;
    });
    bundle.create(&[]).succeeded();
    let started = bundle.start();
    started.succeeded();
    assert!(started.stderr.contains("warning: poststart hook /bin/sh failed"), "{started:?}");
    assert_eq!((bundle.status().as_str(), bundle.said("log").as_str()), ("running", "after\n"));
    bundle.oci(&["kill", &bundle.id, "KILL"]).succeeded();
    bundle.stopped();
    let deleted = bundle.delete();
    deleted.succeeded();
    assert!(deleted.stderr.contains("warning: poststop hook"), "{deleted:?}");
    bundle.gone();
}
