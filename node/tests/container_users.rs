//! A container's ids are its own: on the node they are nobody else's, on the disk and inside they are as ever.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use support::service::{Service, World as NodeWorld, output, sh};
use support::{World, eventually, spec};
use wherry_node::container::usage;
use wherry_protocol::message::{ContainerSpec, ExecSpec, ExitStatus, Setting, VolumeMount};

fn volume(name: &str) -> Vec<VolumeMount> {
    vec![VolumeMount { volume: name.parse().unwrap(), path: "/data".into(), read_only: false }]
}

/// User, group and supplementary groups on the node.
fn ids_outside(pid: impl std::fmt::Display) -> Vec<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    vec![line("Uid:"), line("Gid:"), line("Groups:")]
}

#[test]
fn root_inside_is_nobody_outside() {
    let world = World::new();
    let plan = world.plan(spec(&["sleep", "1000"]));
    let first = plan.process.first_id.unwrap();
    let mut running = world.start_plan(&plan);
    running.executed();
    assert_eq!(ids_outside(running.pid), [vec![first; 4], vec![first; 4], vec![]]);
    let map = fs::read_to_string(format!("/proc/{}/uid_map", running.pid)).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &first.to_string(), "65536"]);
    // One that is added is in the same namespace, whoever it is.
    let added = |user: &str| {
        let command = ["sh", "-c", "cat /proc/self/uid_map; id; readlink /proc/self/ns/user"];
        let command = command.map(str::to_owned).to_vec();
        let finished = running
            .exec(&plan.process, &ExecSpec { command, user: Some(user.into()), ..ExecSpec::default() });
        finished.finish().stdout
    };
    let namespace = fs::read_link(format!("/proc/{}/ns/user", running.pid)).unwrap();
    assert_ne!(namespace, fs::read_link("/proc/self/ns/user").unwrap());
    let (root, ann) = (added("root"), added("ann"));
    for (text, id) in
        [(root, "uid=0(root) gid=0(root)"), (ann, "uid=1000(ann) gid=1001(ann) groups=40(logs)")]
    {
        assert!(text.contains(&first.to_string()) && text.contains(id), "{text}");
        assert!(text.trim_end().ends_with(namespace.to_str().unwrap()), "{text}");
    }
    running.kill();
}

#[test]
fn files_have_the_owners_of_the_image_on_the_disk_and_inside() {
    let world = World::new();
    let odd = world.layer().join("odd");
    fs::write(&odd, "x").unwrap();
    chown(&odd, Some(70_000), Some(70_000)).unwrap();
    chown(world.layer().join("home/ann"), Some(1000), Some(1001)).unwrap();
    let script = "stat -c '%n %u:%g %a' /bin/busybox /home/ann /odd /tmp /dev /dev/null /dev/shm /dev/pts/ptmx /etc/hosts /data
        touch /mine; touch /annes; chown 1000:1001 /annes; chmod 750 /bin/busybox; echo z > /data/new; chown 33 /data/new
        mkdir /tmp/deep; rm /home/ann/x 2>/dev/null; chmod 700 /home/ann; chown 5 /odd || echo 'no owner for it'";
    let wanted = ContainerSpec { mounts: volume("shared"), ..spec(&["sh", "-c", script]) };
    let finished = world.start(wanted).finish();
    assert_eq!(
        finished.stdout,
        "/bin/busybox 0:0 755\n/home/ann 1000:1001 755\n/odd 65534:65534 644\n/tmp 0:0 1777\n/dev 0:0 755\n\
         /dev/null 0:0 666\n/dev/shm 0:0 1777\n/dev/pts/ptmx 0:0 666\n/etc/hosts 0:0 644\n/data 0:0 755\n\
         no owner for it\n",
        "{finished:?}"
    );
    let upper = world.plan(spec(&["true"])).root.upper;
    let owner = |path: &str| {
        let meta = fs::symlink_metadata(upper.join(path)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!((owner("mine"), owner("annes"), owner("tmp/deep")), ((0, 0), (1000, 1001), (0, 0)));
    assert_eq!((owner("home/ann"), owner("bin/busybox")), ((1000, 1001), (0, 0)), "copied up with its owner");
    // Another container, with other ids, sees the same owners in the same volume.
    let script = "stat -c '%u:%g' /data/new; cat /data/new; touch /data/second";
    let other = world.start(ContainerSpec { mounts: volume("shared"), ..spec(&["sh", "-c", script]) });
    assert_eq!(other.finish().stdout, "33:0\nz\n");
}

#[test]
fn ids_that_a_container_does_not_have_are_refused() {
    let world = World::new();
    for (user, what) in [("70000", "user 70000"), ("0:65536", "group 65536")] {
        let failed = world.start(ContainerSpec { user: Some(user.into()), ..spec(&["true"]) }).finish();
        assert_eq!(
            failed.failure().to_string(),
            format!(
                "could not start: {what} is above 65535, the highest that a container has: give a lower one"
            )
        );
    }
    let last = world.start(ContainerSpec { user: Some("65535:65535".into()), ..spec(&["id"]) }).finish();
    assert_eq!(last.stdout, "uid=65535 gid=65535\n");
    // Without user namespaces every id of the node is one.
    let without = World::without_user_namespaces();
    let finished =
        without.start(ContainerSpec { user: Some("70000".into()), ..spec(&["id", "-u"]) }).finish();
    assert_eq!(finished.stdout, "70000\n");
}

#[test]
fn parameters_of_its_namespaces_are_set_and_terminals_are_its_own() {
    let world = World::new();
    let sysctl = |name: &str, value: &str| Setting::Sysctl { name: name.into(), value: value.into() };
    let settings = vec![
        sysctl("kernel.shmmni", "77"),
        sysctl("fs.mqueue.queues_max", "11"),
        sysctl("net.ipv4.tcp_fin_timeout", "33"),
        sysctl("net.core.somaxconn", "99"),
    ];
    let script =
        "cd /proc/sys; cat kernel/shmmni fs/mqueue/queues_max net/ipv4/tcp_fin_timeout net/core/somaxconn
        cat net/ipv4/ping_group_range; stat -c '%u:%g' $(tty) /dev/console";
    let wanted =
        ContainerSpec { settings, tty: true, user: Some("ann".into()), ..spec(&["sh", "-c", script]) };
    let mut running = world.start(wanted);
    let mut terminal = running.terminal.take().unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while let Ok(length @ 1..) = std::io::Read::read(&mut terminal, &mut buffer) {
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    running.finish();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..4], ["77", "11", "33", "99"], "{text}");
    assert_eq!(lines[5..], ["1000:5", "1000:5"], "{text}");
}

#[test]
fn no_two_containers_share_ids_also_after_the_service_came_back() {
    let world = NodeWorld::new();
    let (long, mut firsts) = ("echo up; exec sleep 1000", Vec::new());
    {
        let service = Service::new(&world);
        for id in 1..=3 {
            let instance = service.start(&world.desired(id, 1, sh(long))).unwrap();
            eventually("its first word", || output(&instance) == "up\n");
            firsts.push(ids_outside(instance.pid)[0][0]);
            assert_eq!(Some(firsts[firsts.len() - 1]), instance.process.first_id);
            assert_eq!(usage::processes(&instance).unwrap()[0].uid, 0, "as it is inside");
        }
    }
    let mut service = Service::new(&world);
    assert_eq!(service.adopted.len(), 3);
    for id in 4..=6 {
        let instance = service.start(&world.desired(id, 1, sh(long))).unwrap();
        firsts.push(instance.process.first_id.unwrap());
    }
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), 6, "{firsts:?}");
    // One that survived is still worked with.
    let survivor = service.runtime.instance(world.desired(2, 1, sh(long)).container).unwrap();
    let (text, status) = service.exec(&survivor, "cat /proc/self/uid_map; id -u");
    assert_eq!(status.unwrap(), ExitStatus::Code(0));
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", &survivor.process.first_id.unwrap().to_string(), "65536", "0"]);
    for id in 1..=6 {
        service.remove(world.desired(id, 1, sh(long)).container);
    }
    // What was theirs can be had again.
    let instance = service.start(&world.desired(7, 1, sh("true"))).unwrap();
    assert!(instance.process.first_id.is_some());
    service.exit();
}
