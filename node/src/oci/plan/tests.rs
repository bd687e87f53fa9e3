use super::*;
use crate::oci::bundle;

/// What `crun spec` writes, and one with everything.
const USUAL: &str = include_str!("golden/usual.json");
const FULL: &str = include_str!("golden/full.json");

fn planned(config: &str) -> Plan {
    let spec = bundle::parse(config.as_bytes()).unwrap();
    let bundle = Bundle { path: "/bundle".into(), spec };
    plan(&Id::parse("box").unwrap(), &bundle).unwrap()
}

/// Line by line, so that a difference shows where it is. `WHERRY_GOLDEN=write` writes what is there.
fn compare(config: &str, name: &str, golden: &str) {
    let mut plan = planned(config);
    // Numbers of calls are different on every processor; plan/seccomp.rs has tests of its own.
    plan.process.iter_mut().for_each(|process| process.filter = None);
    let text = format!("{plan:#?}\n");
    if std::env::var_os("WHERRY_GOLDEN").is_some_and(|word| word == "write") {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/oci/plan/golden");
        std::fs::write(directory.join(name), &text).unwrap();
    }
    for (number, (have, want)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(have, want, "line {} of {name}", number + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{name}");
}

#[test]
fn the_usual_configuration_is_planned_as_recorded() {
    compare(USUAL, "usual.plan", include_str!("golden/usual.plan"));
}

#[test]
fn a_configuration_with_everything_is_planned_as_recorded() {
    compare(FULL, "full.plan", include_str!("golden/full.plan"));
}

#[test]
fn names_of_sysctls_become_files() {
    for (name, file) in [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("net.ipv4.conf.eth0/5.forwarding", "net/ipv4/conf/eth0.5/forwarding"),
    ] {
        assert_eq!(sysctl_file(name), file);
    }
}

#[test]
fn the_hosts_own_dev_is_left_alone() {
    let mut config: serde_json::Value = serde_json::from_str(USUAL).unwrap();
    config["mounts"] = serde_json::json!([{ "destination": "/dev", "source": "/dev", "options": ["rbind"] }]);
    let plan = planned(&config.to_string());
    assert!(plan.devices.is_empty() && plan.links.is_empty());
}

#[test]
fn options_that_mean_nothing_are_told() {
    let mut config: serde_json::Value = serde_json::from_str(USUAL).unwrap();
    assert_eq!(planned(USUAL).warnings().count(), 0);
    config["mounts"] = serde_json::json!([
        { "destination": "/x", "source": "/y", "options": ["bind", "ro", "size=1", "sync"] },
        { "destination": "/z", "type": "tmpfs", "options": ["size=1"] },
    ]);
    let warnings: Vec<String> = planned(&config.to_string()).warnings().collect();
    assert_eq!(warnings, ["options size=1,sync of the mount at /x mean nothing for a bind mount"]);
}

#[test]
fn wrong_words_are_refused() {
    let spec = |change: fn(&mut serde_json::Value)| {
        let mut config: serde_json::Value = serde_json::from_str(USUAL).unwrap();
        change(&mut config);
        let spec = bundle::parse(config.to_string().as_bytes()).unwrap();
        plan(&Id::parse("box").unwrap(), &Bundle { path: "/b".into(), spec }).unwrap_err().to_string()
    };
    let refused = spec(|config| config["linux"]["rootfsPropagation"] = "sideways".into());
    assert!(refused.contains("'sideways' is none of"), "{refused}");
    let refused = spec(|config| config["mounts"] = serde_json::json!([{ "destination": "/x" }]));
    assert!(refused.contains("no type and is no bind mount"), "{refused}");
    let refused = spec(|config| {
        config["linux"]["devices"] = serde_json::json!([{ "path": "/x", "type": "c", "major": -1 }])
    });
    assert!(refused.contains("is no device number"), "{refused}");
}
