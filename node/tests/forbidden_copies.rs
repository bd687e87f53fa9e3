//! Copying files with a hostile container: no path, no link and no archive leads out of it, and whoever runs inside gets
//! nothing out of the process that copies for the node.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use support::{Finished, PROGRAM, Running, World, spec};
use tar::{Builder, EntryType, Header};
use wherry_node::container::plan::{self, Plan};
use wherry_node::container::report::Report;
use wherry_protocol::message::{CopySpec, ExecSpec};

/// A container, and a directory of the node with a secret that its own file system knows nothing of.
struct Ground {
    /// Its directories go with it.
    _world: World,
    outside: PathBuf,
    container: Running,
    plan: Plan,
}

const SECRET: &str = "nobody inside knows this";

impl Ground {
    fn new() -> Self {
        let world = World::new();
        let outside = world.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        // The image has links that would lead there if they were followed out here.
        symlink(&outside, world.layer().join("out")).unwrap();
        symlink("/proc/1/root", world.layer().join("first")).unwrap();
        let plan = world.plan(spec(&["sh", "-c", "echo up; exec sleep 1000"]));
        let mut container = world.start_plan(&plan);
        container.wait_for("up");
        Self { _world: world, outside, container, plan }
    }

    fn out(&self, path: &str) -> Finished {
        self.container.copy(&self.plan.process, &CopySpec::Out { path: path.into() }).finish()
    }

    fn put(&self, path: &str, archive: &[u8]) -> Finished {
        let mut running = self.container.copy(&self.plan.process, &CopySpec::In { path: path.into() });
        // Refused, it does not read to the end.
        running.stdin.as_mut().unwrap().write_all(archive).ok();
        running.finish()
    }

    fn shell(&self, script: &str) -> Running {
        let command = ["sh", "-c", script].map(str::to_owned).into();
        self.container.exec(&self.plan.process, &ExecSpec { command, ..ExecSpec::default() })
    }

    /// Nothing but the secret is there, and it is as it was.
    fn check_outside(&self) {
        let names: Vec<_> =
            fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read_to_string(self.outside.join("secret")).unwrap(), SECRET);
    }
}

fn failed(finished: &Finished) -> bool {
    matches!(finished.reports.last(), Some(Report::Code(code)) if *code != 0)
}

/// An entry of an archive: kind, name, and what it links to or contains.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for &(kind, name, text) in entries {
        let mut header = Header::new_gnu();
        header.set_mode(0o4755);
        header.set_entry_type(kind);
        let content = if kind == EntryType::Regular { text } else { "" };
        header.set_size(content.len() as u64);
        // As they are, also names that climb.
        let bytes = header.as_old_mut();
        bytes.name[..name.len()].copy_from_slice(name.as_bytes());
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(1).unwrap();
        } else if content.is_empty() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn no_path_leads_out() {
    let ground = Ground::new();
    let secret = ground.outside.join("secret");
    let below = secret.to_str().unwrap().trim_start_matches('/');
    let roots = ["/proc/1/root", "/proc/self/root", "/proc/self/cwd", "/proc/thread-self/root", "/first"];
    let descriptors = (0..32).flat_map(|fd| {
        let fd = format!("/proc/self/fd/{fd}");
        [format!("{fd}/{below}"), fd]
    });
    let paths = roots.iter().map(|root| format!("{root}/{below}")).chain(descriptors);
    for path in paths.chain(["/out/secret".into(), format!("/{below}")]) {
        let finished = ground.out(&path);
        assert!(!finished.stdout.contains(SECRET), "{path}: {finished:?}");
        // The link to an open descriptor is copied as the link that it is.
        let is_link = path.starts_with("/proc/self/fd/") && !path.contains("secret");
        assert!(is_link || failed(&finished), "{path}: {finished:?}");
    }
    let climbs = CopySpec::Out { path: format!("/{}{below}", "../".repeat(20)) };
    let refused = plan::copy(&ground.plan.process, &climbs).unwrap_err();
    assert!(refused.to_string().contains("without '..'"), "{refused}");
    // What is inside does come out.
    assert!(ground.out("/etc/passwd").stdout.contains("root:x:0:0"));
    ground.container.kill();
}

#[test]
fn no_archive_leads_out() {
    use EntryType::{Char, Link, Regular, Symlink};
    let ground = Ground::new();
    let outside = ground.outside.to_str().unwrap();
    let archives: &[&[(EntryType, &str, &str)]] = &[
        &[(Symlink, "d", outside), (Regular, "d/new", "x")],
        &[(Symlink, "d", "/proc/1/root"), (Regular, "d/tmp/new", "x")],
        &[(Symlink, "d", outside), (Regular, "d/secret", "x")],
        &[(Link, "d", &format!("{outside}/secret")), (Regular, "d", "x")],
        &[(Regular, "../../../../../../tmp/wherry-escaped", "x")],
        &[(Regular, "/tmp/wherry-escaped", "x")],
        &[(Char, "mem", "")],
    ];
    for (number, entries) in archives.iter().enumerate() {
        for to in ["/tmp", "/out", "/first/tmp", "/proc/self/cwd", "/tmp/new/place"] {
            let finished = ground.put(to, &archive(entries));
            let code = finished.reports.last();
            assert!(matches!(code, Some(Report::Code(0 | 1))), "{number} to {to}: {finished:?}");
            ground.check_outside();
        }
    }
    assert!(!std::path::Path::new("/tmp/wherry-escaped").exists());
    let devices = ground
        .shell("busybox find / -xdev -type c | grep -v ^/dev; busybox find / -xdev -name passwd")
        .finish();
    assert_eq!(devices.stdout, "/etc/passwd\n", "no device, and the search does find");
    ground.container.kill();
}

#[test]
fn the_kernel_s_files_and_the_node_s_program_take_nothing() {
    let ground = Ground::new();
    let program = fs::read(PROGRAM).unwrap();
    let one = archive(&[(EntryType::Regular, "one", "|/bin/evil")]);
    for path in [
        "/proc/self/exe",
        "/proc/1/exe",
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
        "/proc/self/oom_score_adj",
        "/proc/self/uid_map",
    ] {
        let finished = ground.put(path, &one);
        assert!(failed(&finished) && !finished.stderr.is_empty(), "{path}: {finished:?}");
    }
    assert_eq!(fs::read(PROGRAM).unwrap(), program);
    ground.container.kill();
}

/// Whoever is root inside sees the process that copies: nothing of it can be read, written or joined.
#[test]
fn who_lies_in_wait_gets_nothing() {
    let ground = Ground::new();
    let program = fs::read(PROGRAM).unwrap();
    let outside = ground.outside.to_str().unwrap();
    let attack = format!(
        "echo ready; while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 -o $p = /proc/$$ ] && continue
         echo x >> $p/exe; for f in $p/fd/*; do echo forged >> $f; done; cat $p/environ $p/root{outside}/secret >> /tmp/loot
         cat $p/cwd{outside}/secret >> /tmp/loot; done; done 2>/dev/null"
    );
    let mut attacker = ground.shell(&attack);
    attacker.wait_for("ready");
    // Another one exchanges a directory for a link, over and over.
    let mut other = ground.shell(&format!(
        "echo ready; cd /tmp; while :; do busybox ln -sfn {outside} d; busybox rm d; mkdir d; busybox rmdir d; done 2>/dev/null"
    ));
    other.wait_for("ready");
    let two = archive(&[(EntryType::Regular, "d/new", "x"), (EntryType::Regular, "d/secret", "x")]);
    for _ in 0..12 {
        let finished = ground.out("/etc/group");
        assert_eq!(finished.reports, [Report::Executing, Report::Code(0)], "{finished:?}");
        assert!(
            finished.stdout.contains("logs:x:40:ann") && !finished.stdout.contains("forged"),
            "{finished:?}"
        );
        let finished = ground.put("/tmp", &two);
        assert!(matches!(finished.reports[..], [Report::Executing, Report::Code(0 | 1)]), "{finished:?}");
        ground.check_outside();
    }
    attacker.kill();
    other.kill();
    assert!(!ground.shell("cat /tmp/loot").finish().stdout.contains(SECRET));
    assert_eq!(fs::read(PROGRAM).unwrap(), program);
    ground.container.kill();
}
