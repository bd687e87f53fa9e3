//! Copying files with a hostile container: no path, no link and no archive leads out of it, and whoever runs inside gets
//! nothing out of the process that copies for the node.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::fs;
use std::io::{Read as _, Write as _};
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

/// A packet of SFTP: kind, number, and what follows.
fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    let body: Vec<u8> = fields
        .iter()
        .flat_map(|field| {
            u32::try_from(field.len()).unwrap().to_be_bytes().into_iter().chain(field.iter().copied())
        })
        .collect();
    let length = u32::try_from(body.len() + 5).unwrap();
    [&length.to_be_bytes()[..], &[kind], &id.to_be_bytes(), &body].concat()
}

/// An SFTP client that asks for what it must not get: the numbers of its requests, and what it was told.
fn asked(ground: &Ground, user: Option<&str>, requests: &[Vec<u8>]) -> (Vec<(u32, u8, Vec<u8>)>, Finished) {
    let copy = CopySpec::Sftp { user: user.map(str::to_owned) };
    let mut running = ground.container.copy(&ground.plan.process, &copy);
    let mut stdin = running.stdin.take().unwrap();
    let all = [&[0, 0, 0, 5, 1, 0, 0, 0, 3][..], &requests.concat()].concat();
    // Refused, it does not read to the end.
    let writer = std::thread::spawn(move || stdin.write_all(&all).ok());
    let mut bytes = Vec::new();
    running.stdout.read_to_end(&mut bytes).unwrap();
    writer.join().unwrap();
    let mut rest = bytes.as_slice();
    let mut replies = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk() {
        let (reply, more) = more.split_at(u32::from_be_bytes(*length) as usize);
        let (id, kind) = (u32::from_be_bytes(reply[1..5].try_into().unwrap()), reply[0]);
        replies.push((id, kind, reply[5..].to_vec()));
        rest = more;
    }
    (replies, running.finish())
}

/// SSH_FXP_OPEN, to read, of a path.
fn open(id: u32, path: &str) -> Vec<u8> {
    let mut open = packet(3, id, &[path.as_bytes()]);
    open.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    let length = u32::try_from(open.len() - 4).unwrap();
    open[..4].copy_from_slice(&length.to_be_bytes());
    open
}

/// SSH_FXP_READ of the handle that the first open gives, at 0.
fn read(id: u32, handle: u32) -> Vec<u8> {
    let mut read = packet(5, id, &[&handle.to_be_bytes()]);
    read.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    let length = u32::try_from(read.len() - 4).unwrap();
    read[..4].copy_from_slice(&length.to_be_bytes());
    read
}

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;

#[test]
fn no_request_of_sftp_leads_out() {
    let ground = Ground::new();
    let secret = ground.outside.join("secret");
    let below = secret.to_str().unwrap().trim_start_matches('/');
    let roots = ["/proc/1/root", "/proc/self/root", "/proc/self/cwd", "/first", "/../../..", ".."];
    let descriptors = (0..32).map(|fd| format!("/proc/self/fd/{fd}/{below}"));
    let paths: Vec<String> = roots.iter().map(|root| format!("{root}/{below}")).chain(descriptors).collect();
    let also = ["/out/secret".to_owned(), format!("/{below}")];
    let requests: Vec<_> = (0..).zip(paths.iter().chain(&also)).map(|(id, path)| open(id, path)).collect();
    let (replies, finished) = asked(&ground, None, &requests);
    assert_eq!(replies.len(), requests.len() + 1, "{finished:?}");
    assert!(replies[1..].iter().all(|(_, kind, _)| *kind == STATUS), "{replies:?}");
    assert!(matches!(finished.reports.last(), Some(Report::Code(0))), "{finished:?}");

    // `..` of the root is the root; /etc/passwd is the container's; nothing of ours is left open for it.
    let mut requests = vec![packet(16, 1, &[b"/../../.."]), open(2, "../../../../etc/passwd"), read(3, 0)];
    requests.extend((0..64).map(|fd| packet(7, 100 + fd, &[format!("/proc/self/fd/{fd}").as_bytes()])));
    let (replies, _) = asked(&ground, None, &requests);
    let reply = |wanted: u32| replies.iter().skip(1).find(|(id, _, _)| *id == wanted).unwrap();
    assert_eq!((reply(1).1, &reply(1).2[..9]), (NAME, &[0, 0, 0, 1, 0, 0, 0, 1, b'/'][..]));
    assert_eq!((reply(2).1, reply(3).1), (HANDLE, DATA));
    assert!(String::from_utf8_lossy(&reply(3).2).contains("root:x:0:0"));
    assert!(!String::from_utf8_lossy(&reply(3).2).contains("systemd"), "it is this machine's");
    let open = (0..64).filter(|fd| reply(100 + fd).1 != STATUS).count();
    // Its three streams, two of them once more, and the file that it opened.
    assert!(open <= 6, "{open} descriptors");

    // Another user has that user's rights, and one that is not there is told.
    let (replies, _) =
        asked(&ground, Some("65534"), &[packet(14, 1, &[b"/new", &[]]), packet(9, 2, &[b"/etc", &[]])]);
    assert_eq!(replies[1].1, STATUS);
    assert_eq!(replies[1].2[..4], [0, 0, 0, 3], "permission denied: {replies:?}");
    let (replies, finished) = asked(&ground, Some("nobody-here"), &[]);
    assert!(replies.is_empty());
    assert!(matches!(finished.reports.last(), Some(Report::Failed(_))), "{finished:?}");
    ground.check_outside();
    ground.container.kill();
}

#[test]
fn garbage_for_sftp_ends_it_without_harm() {
    let ground = Ground::new();
    for garbage in [vec![0xff; 4096], vec![0; 4096], vec![0, 4, 0, 1, 3], b"GET / HTTP/1.0\r\n\r\n".to_vec()]
    {
        let (replies, finished) = asked(&ground, None, std::slice::from_ref(&garbage));
        assert_eq!(replies.len(), 1, "{finished:?}");
        assert!(failed(&finished) && finished.stderr.starts_with("sftp: "), "{garbage:?}: {finished:?}");
    }
    // More files than one client may have open; the same client goes on.
    let many: Vec<_> = (0..300).map(|id| open(id, "/etc/passwd")).chain([read(300, 0)]).collect();
    let (replies, finished) = asked(&ground, None, &many);
    assert!(matches!(finished.reports.last(), Some(Report::Code(0))), "{finished:?}");
    assert_eq!(replies.iter().filter(|(_, kind, _)| *kind == HANDLE).count(), 256);
    assert_eq!(replies.last().unwrap().1, DATA);
    ground.container.kill();
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
