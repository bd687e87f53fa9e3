//! What a container started by the OCI command line sees as files, next to the same under crun (docs/oci.md).
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use support::oci::{BOTH, Bundle, Runtime};

/// Name, change of the configuration, script, what it prints: under both runtimes. `@` in a source is the bundle.
type Case = (&'static str, fn(&mut Value), &'static str, &'static str);

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

/// Options of the last mount at a path, and its file system.
const OF: &str = "of() { grep \"^[^ ]* [^ ]* [^ ]* [^ ]* $1 \" /proc/self/mountinfo | tail -n1 | sed 's/.* \\([^ ]*\\) [^-]*- \\([^ ]*\\) .*/\\2 \\1/'; }; ";

const CASES: [Case; 17] = [
    (
        "OCI-027 default file systems",
        |_| {},
        "for p in /proc /sys /dev/pts /dev/shm; do of $p; done",
        "proc rw,relatime\nsysfs ro,nosuid,nodev,noexec,relatime\ndevpts rw,nosuid,noexec,relatime\ntmpfs rw,nosuid,nodev,noexec,relatime\n",
    ),
    (
        "OCI-028 default devices",
        |_| {},
        "cd /dev; stat -c '%n %F %t:%T %a' null zero full random urandom tty",
        "null character special file 1:3 666\nzero character special file 1:5 666\nfull character special file 1:7 666\n\
      random character special file 1:8 666\nurandom character special file 1:9 666\ntty character special file 5:0 666\n",
    ),
    (
        "OCI-029 default links",
        |_| {},
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done",
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n",
    ),
    (
        "OCI-015 a new file system with all kinds of options",
        |c| {
            mount(
                c,
                json!({
        "destination": "/new/deep", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "nodev", "noexec", "strictatime", "mode=700", "size=64k"] }),
            )
        },
        "of /new/deep; stat -c %a /new/deep; df -k /new/deep | tail -n1 | cut -c22-33 | tr -d ' '",
        "tmpfs rw,nosuid,nodev,noexec\n700\n64\n",
    ),
    (
        "OCI-015 the order of the list",
        |c| {
            mount(c, json!({ "destination": "/a", "type": "tmpfs", "source": "t" }));
            mount(c, json!({ "destination": "/a/b", "type": "tmpfs", "source": "t", "options": ["ro"] }));
        },
        "echo x > /a/x && touch /a/b/x 2>/dev/null || echo $(ls /a)",
        "b x\n",
    ),
    (
        "OCI-015 a directory of the host",
        |c| mount(c, json!({ "destination": "/data", "source": "@/data", "options": ["bind"] })),
        "cat /data/file; echo written > /data/new",
        "content\n",
    ),
    (
        "OCI-015 a file, read-only",
        |c| {
            mount(
                c,
                json!({ "destination": "/etc/one", "type": "bind", "source": "@/data/file", "options": ["bind", "ro"] }),
            )
        },
        "cat /etc/one; echo x 2>/dev/null > /etc/one || echo refused",
        "content\nrefused\n",
    ),
    (
        "OCI-015 options of a bind mount",
        |c| {
            mount(
                c,
                json!({
        "destination": "/data", "source": "@/data", "options": ["rbind", "nosuid", "nodev", "noexec", "noatime"] }),
            )
        },
        "of /data | cut -d' ' -f2",
        "rw,nosuid,nodev,noexec,noatime\n",
    ),
    (
        // As in runtime-tools, validation/mounts.
        "OCI-015 options of file systems have no effect on a bind mount",
        |c| {
            mount(
                c,
                json!({
        "destination": "/data", "source": "@/data",
        "options": ["bind", "nosuid", "strictatime", "mode=755", "size=1k"] }),
            )
        },
        "of /data | cut -d' ' -f2; cat /data/file",
        "rw,nosuid\ncontent\n",
    ),
    (
        "OCI-018 devices",
        |c| {
            c["linux"]["devices"] = json!([
                { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 7, "gid": 8 },
                { "path": "/deep/disk", "type": "b", "major": 8, "minor": 1, "fileMode": 0o640 },
                { "path": "/deep/pipe", "type": "p", "fileMode": 0o666 },
            ])
        },
        "stat -c '%n %F %t:%T %a %u:%g' /dev/fuse /deep/disk; stat -c '%F %a' /deep/pipe",
        "/dev/fuse character special file a:e5 600 7:8\n/deep/disk block special file 8:1 640 0:0\nfifo 666\n",
    ),
    (
        "OCI-019 masked directory, file and link",
        |c| c["linux"]["maskedPaths"] = json!(["/masked", "/masked-file", "/link", "/not/there"]),
        "ls /masked; cat /masked-file; cat /link; ls /; touch /masked/x 2>/dev/null || echo refused",
        "bin\ndev\netc\nhome\nlink\nmasked\nmasked-file\nproc\nroot\nsys\ntarget\ntmp\nrefused\n",
    ),
    (
        "OCI-019 read-only directory and file",
        |c| c["linux"]["readonlyPaths"] = json!(["/masked", "/masked-file", "/not/there"]),
        "cat /masked/secret /masked-file; touch /masked/x 2>/dev/null || echo refused; echo 2>/dev/null > /masked-file || echo refused",
        "secret\nsecret\nrefused\nrefused\n",
    ),
    (
        "OCI-022 rootfsPropagation shared",
        |c| c["linux"]["rootfsPropagation"] = "shared".into(),
        "grep ' / / \\| / rw' /proc/self/mountinfo | grep -c shared:; mkdir /m /n; mount -t tmpfs t /m; grep ' /m ' /proc/self/mountinfo | grep -c shared:",
        "1\n1\n",
    ),
    (
        "OCI-022 rootfsPropagation private",
        |c| c["linux"]["rootfsPropagation"] = "private".into(),
        "grep -cE 'shared:|master:|unbindable' /proc/self/mountinfo",
        "0\n",
    ),
    (
        "OCI-022 rootfsPropagation slave",
        |c| c["linux"]["rootfsPropagation"] = "slave".into(),
        "grep -c shared: /proc/self/mountinfo",
        "0\n",
    ),
    (
        "OCI-022 rootfsPropagation unbindable",
        |c| c["linux"]["rootfsPropagation"] = "unbindable".into(),
        "mkdir /m; mount -o bind / /m 2>/dev/null || echo refused",
        "refused\n",
    ),
    (
        "a link in the place of a directory stays inside",
        |c| mount(c, json!({ "destination": "/outside/x", "type": "tmpfs", "source": "t" })),
        "ls -d /target/x; readlink /outside",
        "/target/x\n/target\n",
    ),
];

fn prepare(bundle: &Bundle) {
    let root = bundle.root();
    for applet in ["sed", "tail", "cut", "df", "tr", "readlink"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::create_dir(bundle.path().join("data")).unwrap();
    fs::write(bundle.path().join("data/file"), "content\n").unwrap();
}

fn with_secrets(bundle: &Bundle) {
    let root = bundle.root();
    ["masked", "target"].iter().for_each(|name| fs::create_dir(root.join(name)).unwrap());
    ["masked/secret", "masked-file", "target/secret"]
        .iter()
        .for_each(|name| fs::write(root.join(name), "secret\n").unwrap());
    symlink("/target/secret", root.join("link")).unwrap();
}

#[test]
fn files_are_as_configured() {
    for (name, change, script, expected) in CASES {
        for runtime in BOTH {
            let mut bundle = Bundle::new(&format!("{OF}{script}"));
            prepare(&bundle);
            with_secrets(&bundle);
            if name.starts_with("a link") {
                symlink("/target", bundle.root().join("outside")).unwrap();
            }
            change(&mut bundle.config);
            let rights = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
            for set in ["bounding", "effective", "permitted"] {
                bundle.config["process"]["capabilities"][set] = rights.clone();
            }
            let text = bundle.config.to_string().replace("@/", &format!("{}/", bundle.path().display()));
            bundle.config = serde_json::from_str(&text).unwrap();
            let output = bundle.run(runtime);
            assert_eq!(output.stdout, expected, "{name} by {runtime:?}: {output:?}");
        }
    }
}

/// OCI-015: of single mounts. (The reference sets that of the root on all of them afterwards.)
#[test]
fn mounts_have_their_propagation() {
    let script = "for p in /s /p /u; do grep -o \" $p .* - \" /proc/self/mountinfo | grep -oE 'shared|unbindable' || echo none; done";
    let bundle = Bundle::new(script).with(|config| {
        for (path, option) in [("/s", "shared"), ("/p", "rprivate"), ("/u", "unbindable")] {
            mount(
                config,
                json!({ "destination": path, "type": "tmpfs", "source": "t", "options": [option] }),
            );
        }
    });
    assert_eq!(bundle.prints(Runtime::Wherry), "shared\nnone\nunbindable\n");
}

/// Nothing that a container mounts is seen outside, whatever its propagation.
#[test]
fn mounts_stay_inside() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    for propagation in ["shared", "slave", "private", "unbindable"] {
        let before = mounts();
        let bundle = Bundle::new("mkdir -p /m; mount -t tmpfs inside /m").with(|config| {
            config["linux"]["rootfsPropagation"] = propagation.into();
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
            }
        });
        bundle.prints(Runtime::Wherry);
        let root = bundle.root();
        assert!(!mounts().contains(root.to_str().unwrap()), "{propagation}: {before} {}", mounts());
    }
}

/// The same on a tree whose mounts are shared with others, as on hosts with systemd, and a volume that is to be shared.
#[test]
fn shared_volumes_are_shared_and_nothing_else_is() {
    let bundle = Bundle::new("mkdir -p /v/m; mount -t tmpfs t /v/m; touch /v/m/inside").with(|config| {
        config["linux"]["rootfsPropagation"] = "shared".into();
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
    });
    for (options, seen) in
        [(["rbind", "rshared"], true), (["rbind", "rprivate"], false), (["rbind", "rslave"], false)]
    {
        let volume = bundle.path().join(options[1]);
        fs::create_dir(&volume).unwrap();
        let id = format!("{}-{}", bundle.id, options[1]);
        let mut config = bundle.config.clone();
        mount(&mut config, json!({ "destination": "/v", "source": volume, "options": options }));
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let command = Runtime::Wherry.command(&bundle);
        let words: Vec<_> = command.get_args().collect();
        // In a mount namespace of its own, whose mounts are a peer group of their own.
        let script = "mount --make-rprivate / && mount --bind \"$1\" \"$1\" && mount --make-rshared / && v=$1 id=$2 b=$3 && shift 3 \
            && timeout \"$@\" run -b $b $id && ls $v/m; grep -c \" $b/rootfs\" /proc/self/mountinfo";
        let mut outer = std::process::Command::new("unshare");
        outer.args(["-m", "sh", "-c", script, "sh"]).arg(&volume).arg(&id).arg(bundle.path()).args(words);
        let output = support::oci::output(&mut outer);
        let expected = if seen { "inside\n0\n" } else { "0\n" };
        assert_eq!(output.stdout, expected, "{options:?} {output:?}");
    }
}

/// OCI-018: what is there already must be the same device.
#[test]
fn devices_that_do_not_match_are_refused() {
    let with = |path: &str| {
        Bundle::new("true").with(|config| {
            config["linux"]["devices"] = json!([{ "path": path, "type": "c", "major": 10, "minor": 229 }]);
        })
    };
    let bundle = with("/etc/passwd");
    bundle.create(&[]).refused("making /etc/passwd failed: File exists");
    bundle.gone();
    with("/dev/null").create(&[]).refused("making /dev/null failed: File exists");
    let bundle = with("/dev/link");
    symlink("/etc/passwd", bundle.root().join("dev/link")).unwrap();
    let bundle = bundle.with(|config| config["mounts"] = json!([]));
    bundle.create(&[]).refused("making /dev/link failed: File exists");
}

/// OCI-019: relative paths are errors.
#[test]
fn relative_masks_are_refused() {
    for list in ["maskedPaths", "readonlyPaths"] {
        let bundle = Bundle::new("true").with(|config| config["linux"][list] = json!(["proc/kcore"]));
        bundle.create(&[]).refused("not absolute");
    }
}

/// Hostile: an image whose links lead out of it. What is mounted or made stays in it, and what would not is refused.
#[test]
fn links_of_the_image_cannot_lead_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    let out = outside.path().to_str().unwrap();
    for target in [
        out.to_owned(),
        format!("../../../../../..{out}"),
        format!("/proc/self/root{out}"),
        "/proc/1/root".into(),
    ] {
        let bundle = Bundle::new("true").with(|config| {
            mount(config, json!({ "destination": "/esc/mounted", "type": "tmpfs", "source": "t" }));
            mount(
                config,
                json!({ "destination": "/esc/victim", "source": "/etc/hostname", "options": ["bind"] }),
            );
            config["linux"]["devices"] = json!([{ "path": "/esc/pipe", "type": "p" }]);
            config["linux"]["maskedPaths"] = json!(["/esc/victim"]);
            config["process"]["cwd"] = "/esc/cwd".into();
        });
        symlink(&target, bundle.root().join("esc")).unwrap();
        // Inside the place may exist or not: both ways nothing may be seen outside.
        bundle.run(Runtime::Wherry);
        bundle.gone();
        let left: Vec<_> =
            fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["victim"], "{target}");
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    }
}

/// Hostile: /proc or /sys as a link, so that masks would miss (CVE-2019-16884, CVE-2023-27561); /dev/null as a link, so
/// that a mask would show another file (CVE-2025-31133).
#[test]
fn kernel_file_systems_are_never_mounted_through_links() {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new("true");
        fs::remove_dir(bundle.root().join(name)).unwrap();
        fs::create_dir(bundle.root().join("elsewhere")).unwrap();
        symlink("elsewhere", bundle.root().join(name)).unwrap();
        bundle.create(&[]).refused(&format!("mounting /{name} failed: Too many symbolic links"));
        bundle.gone();
    }
    let bundle = Bundle::new("true").with(|config| config["mounts"] = json!([]));
    symlink("/etc/passwd", bundle.root().join("dev/null")).unwrap();
    bundle.create(&[]).refused("making /dev/null failed: File exists");
    bundle.gone();
}

/// What cannot be mounted is told with its name.
#[test]
fn mounts_that_fail_are_told() {
    for (one, says) in [
        (
            json!({ "destination": "/x", "source": "/nowhere", "options": ["bind"] }),
            "opening /nowhere failed",
        ),
        (json!({ "destination": "/x", "type": "nofs", "source": "x" }), "mounting /x failed: No such device"),
        (
            json!({ "destination": "/x", "type": "tmpfs", "options": ["wrong=1"] }),
            "mounting /x failed: Invalid argument",
        ),
        (
            json!({ "destination": "/etc/passwd", "type": "tmpfs" }),
            "mounting /etc/passwd failed: Not a directory",
        ),
        (json!({ "destination": "x", "type": "tmpfs" }), "not absolute"),
        (json!({ "destination": "/x", "type": "tmpfs", "options": ["remount"] }), "option 'remount'"),
    ] {
        let bundle = Bundle::new("true").with(|config| mount(config, one));
        bundle.create(&[]).refused(says);
        bundle.gone();
    }
}

/// The host's own nodes are bound where there is no right to make some.
#[test]
fn devices_in_a_user_namespace_are_the_hosts() {
    let bundle = Bundle::new("stat -c %t:%T /dev/null").with(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        for map in ["uidMappings", "gidMappings"] {
            config["linux"][map] = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        }
    });
    assert_eq!(bundle.prints(Runtime::Wherry), "1:3\n");
    let bundle = bundle.with(|config| {
        config["linux"]["devices"] = json!([{ "path": "/dev/zero2", "type": "c", "major": 1, "minor": 5 }]);
    });
    bundle.create(&[]).refused("/dev/zero2 failed");
    let null = fs::metadata("/dev/null").unwrap();
    assert!(
        null.file_type().is_char_device()
            && null.rdev() == 0x103
            && null.permissions().mode() & 0o777 == 0o666
    );
    assert!(Path::new("/dev/zero").exists());
}
