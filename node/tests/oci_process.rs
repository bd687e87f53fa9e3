//! What a process started by the OCI command line is and may do, next to the same under crun (docs/oci.md).
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use support::oci::{BOTH, Bundle, Runtime};

/// Name, change of the configuration, script, what it prints: under both runtimes.
type Case = (&'static str, fn(&mut Value), &'static str, &'static str);

fn process(config: &mut Value) -> &mut Value {
    &mut config["process"]
}

const CASES: [Case; 19] = [
    (
        "OCI-011 arguments, environment, directory",
        |c| {
            process(c)["env"] = json!(["PATH=/bin", "A=b c", "EMPTY="]);
            process(c)["cwd"] = "/home/ann".into();
        },
        "echo $PWD; echo $A-$EMPTY-$0",
        "/home/ann\nb c--/bin/sh\n",
    ),
    (
        "OCI-011 user, group and more groups",
        |c| {
            process(c)["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 40] });
        },
        "id -u; id -g; id -G; echo $HOME",
        "1000\n1001\n1001 5 40\n/home/ann\n",
    ),
    ("OCI-011 umask", |c| process(c)["user"]["umask"] = json!(0o077), "umask", "0077\n"),
    ("OCI-011 umask if none is given", |_| {}, "umask", "0022\n"),
    (
        "OCI-011 host name",
        |c| c["hostname"] = "somewhere".into(),
        "cat /proc/sys/kernel/hostname",
        "somewhere\n",
    ),
    (
        "OCI-011 read-only root",
        |c| c["root"]["readonly"] = true.into(),
        "touch /x 2>/dev/null || echo refused; echo x > /dev/null && echo fine",
        "refused\nfine\n",
    ),
    (
        "OCI-012 five sets of root",
        |c| {
            process(c)["capabilities"] = json!({
                "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_SETPCAP"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN", "CAP_NET_RAW"], "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"],
            })
        },
        "grep Cap /proc/self/status",
        // Root's programs get what the bounding set has, with noNewPrivileges only what was permitted (capabilities(7)).
        "CapInh:\t0000000000000001\nCapPrm:\t0000000000002001\nCapEff:\t0000000000002001\nCapBnd:\t0000000000002101\nCapAmb:\t0000000000000001\n",
    ),
    (
        "OCI-012 five sets of an ordinary user",
        |c| {
            process(c)["user"] = json!({ "uid": 1000, "gid": 1001 });
            process(c)["capabilities"] = json!({
                "bounding": ["CAP_CHOWN", "CAP_NET_RAW"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN", "CAP_NET_RAW"], "inheritable": ["CAP_CHOWN", "CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"],
            });
        },
        "grep Cap /proc/self/status",
        "CapInh:\t0000000000002001\nCapPrm:\t0000000000002000\nCapEff:\t0000000000002000\nCapBnd:\t0000000000002001\nCapAmb:\t0000000000002000\n",
    ),
    (
        "OCI-012 none at all",
        |c| drop(process(c).as_object_mut().unwrap().remove("capabilities")),
        "grep -E 'Cap(Prm|Bnd)' /proc/self/status",
        "CapPrm:\t0000000000000000\nCapBnd:\t0000000000000000\n",
    ),
    (
        "OCI-013 limits are exact",
        |c| {
            process(c)["rlimits"] = json!([
                { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
                { "type": "RLIMIT_SIGPENDING", "soft": 5, "hard": 6 }, { "type": "RLIMIT_LOCKS", "soft": 7, "hard": 8 },
                { "type": "RLIMIT_FSIZE", "soft": 1048576, "hard": 18446744073709551615_u64 },
            ])
        },
        "grep -E 'open files|core|pending sig|locks|file size' /proc/self/limits | sed 's/  */ /g'",
        "Max file size 1048576 unlimited bytes \nMax core file size 0 0 bytes \nMax open files 100 200 files \nMax file locks 7 8 locks \nMax pending signals 5 6 signals \n",
    ),
    (
        "OCI-014 adjustment of the out-of-memory score",
        |c| process(c)["oomScoreAdj"] = 123.into(),
        "cat /proc/self/oom_score_adj",
        "123\n",
    ),
    (
        "noNewPrivileges",
        |c| process(c)["noNewPrivileges"] = true.into(),
        "grep NoNew /proc/self/status",
        "NoNewPrivs:\t1\n",
    ),
    (
        "no noNewPrivileges",
        |c| process(c)["noNewPrivileges"] = false.into(),
        "grep NoNew /proc/self/status",
        "NoNewPrivs:\t0\n",
    ),
    (
        "OCI-023 a filter refuses what it names, as an ordinary process",
        |c| {
            process(c)["noNewPrivileges"] = true.into();
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }] });
        },
        "mkdir /tmp/x; grep Seccomp: /proc/self/status",
        "Seccomp:\t2\n",
    ),
    (
        "OCI-023 the same without noNewPrivileges",
        |c| {
            process(c)["noNewPrivileges"] = false.into();
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }] });
        },
        "mkdir /tmp/x 2>/dev/null || echo refused; grep -E 'Seccomp:|NoNew' /proc/self/status",
        "refused\nNoNewPrivs:\t0\nSeccomp:\t2\n",
    ),
    (
        "OCI-024 parameters of the network namespace",
        |c| {
            c["linux"]["sysctl"] =
                json!({ "net.ipv4.ip_forward": "1", "net.core.somaxconn": "256", "kernel.shmmni": "77" });
        },
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni",
        "1\n256\n77\n",
    ),
    (
        "OCI-025 maps of a user namespace",
        |c| {
            c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            c["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": 200_000, "size": 1000 }]);
        },
        "cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'; id -u; echo x > /dev/null; cat < /dev/zero | head -c 2 | wc -c",
        " 0 100000 65536\n 0 200000 1000\n0\n2\n",
    ),
    ("the loopback interface is up", |_| {}, "ip -o link show lo | grep -c 'LOOPBACK,UP'", "1\n"),
    ("OCI-026 the usual configuration", |c| c["root"]["readonly"] = true.into(), "echo $$", "1\n"),
];

#[test]
fn processes_are_as_configured() {
    for (name, change, script, expected) in CASES {
        for runtime in BOTH {
            let bundle = Bundle::new(script).with(|config| {
                change(config);
            });
            for applet in ["umask", "sed", "head", "wc", "ip"] {
                std::os::unix::fs::symlink("busybox", bundle.root().join("bin").join(applet)).unwrap();
            }
            let output = bundle.run(runtime);
            assert_eq!(output.stdout, expected, "{name} by {runtime:?}: {output:?}");
            if name.contains("as an ordinary") {
                assert!(output.stderr.contains("No space left"), "{output:?}");
            }
        }
    }
}

/// OCI-014: left alone if it is not asked for.
#[test]
fn the_adjustment_is_inherited_otherwise() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let bundle = Bundle::new("cat /proc/self/oom_score_adj")
        .with(|config| drop(config["process"].as_object_mut().unwrap().remove("oomScoreAdj")));
    assert_eq!(bundle.prints(Runtime::Wherry), own);
}

/// OCI-012, OCI-013: what is unknown or twice is refused, by both, and nothing is left.
#[test]
fn unknown_rights_and_limits_are_refused() {
    let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 10 });
    for (change, says) in [
        (json!({ "capabilities": { "bounding": ["TEST_CAP"] } }), "TEST_CAP"),
        (json!({ "rlimits": [{ "type": "RLIMIT_TEST", "soft": 1, "hard": 1 }] }), "RLIMIT_TEST"),
        (json!({ "rlimits": [limit, limit] }), "twice"),
        (json!({ "apparmorProfile": "acme" }), "AppArmor"),
    ] {
        let bundle = Bundle::new("true").with(|config| {
            let process = config["process"].as_object_mut().unwrap();
            process.extend(change.as_object().unwrap().clone());
        });
        bundle.run(Runtime::Wherry).refused(says);
        bundle.gone();
    }
}

/// Ambient capabilities that cannot be had are told, not dropped in silence.
#[test]
fn impossible_ambient_capabilities_are_told() {
    let bundle = Bundle::new("grep CapAmb /proc/self/status")
        .with(|config| config["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]));
    let output = bundle.run(Runtime::Wherry);
    assert_eq!(output.succeeded(), "CapAmb:\t0000000000000000\n");
    assert!(output.stderr.contains("warning: ambient capabilities"), "{output:?}");
}

/// A terminal is made inside; its other end comes over the console socket. OCI-028: /dev/console is there then.
#[test]
fn a_terminal_goes_to_the_console_socket() {
    let script = "tty; stat -c %t:%T /dev/console /dev/pts/0; stty size; read word; echo got $word";
    let bundle = Bundle::new(script).with(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["consoleSize"] = json!({ "height": 33, "width": 101 });
    });
    let socket = bundle.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.create(&[]).refused("needs --console-socket");
    bundle.create(&["--console-socket", socket.to_str().unwrap()]).succeeded();
    let (connection, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let received = wherry_sys::fdpass::recv(std::os::fd::AsFd::as_fd(&connection), &mut name).unwrap();
    assert_eq!(&name[..received.len], b"/dev/pts/0");
    let mut terminal = fs::File::from(received.descriptors.into_iter().next().unwrap());
    bundle.start().succeeded();
    std::io::Write::write_all(&mut terminal, b"word\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.contains("got word") {
        let length = terminal.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(
        text.contains("/dev/pts/0") && text.contains("88:0\r\n88:0") && text.contains("33 101"),
        "{text}"
    );
    drop(terminal);
    bundle.stopped();
    bundle.delete().succeeded();
    let bundle = Bundle::new("true");
    bundle.create(&["--console-socket", "/nowhere"]).refused("needs process.terminal");
}

/// Hostile (CVE-2019-5736): a process of the container writes to the program that starts it, which is the host's. Whoever can
/// see that process sees a read-only copy of the mount that the program is on.
#[test]
fn the_process_cannot_write_to_the_runtime() {
    let read_only = |path: &str| {
        let program = fs::File::open(path).unwrap();
        nix::sys::statvfs::fstatvfs(program).unwrap().flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY)
    };
    assert!(!read_only(support::PROGRAM), "the test needs its program on a writable file system");
    let bundle = Bundle::new("true");
    bundle.create(&[]).succeeded();
    let exe = format!("/proc/{}/exe", bundle.inspect()["pid"]);
    let (here, there) = (fs::metadata(support::PROGRAM).unwrap(), fs::metadata(&exe).unwrap());
    assert_eq!((here.dev(), here.ino()), (there.dev(), there.ino()));
    assert!(read_only(&exe));
}
