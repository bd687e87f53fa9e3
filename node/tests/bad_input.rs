//! Containers that cannot start, whatever the reason: one sentence, nothing running, nothing mounted, and the next container
//! starts as if nothing had been.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use support::{World, spec};
use wherry_protocol::message::{ContainerSpec, Setting, VolumeMount};
use wherry_sys::process::End;

/// An image with all that can be wrong in one.
fn world() -> World {
    let world = World::new();
    let bin = world.layer().join("bin");
    let file = |name: &str, bytes: &[u8], mode| {
        fs::write(bin.join(name), bytes).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    file("plain", b"no program", 0o644);
    file("empty", b"", 0o755);
    file("garbage", b"\x7fELF garbage of another world", 0o755);
    file("script", b"#!/no/such/interpreter\n", 0o755);
    file("bare", b"#!\n", 0o755);
    file("locked", b"#!/bin/sh\n", 0o700);
    symlink("nowhere", bin.join("dangling")).unwrap();
    symlink("loop", bin.join("loop")).unwrap();
    symlink("/no/such/place", world.layer().join("hanging")).unwrap();
    nix::unistd::mkfifo(&bin.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    world
}

fn volume(path: &str) -> VolumeMount {
    VolumeMount { volume: "data".parse().unwrap(), path: path.into(), read_only: false }
}

fn at(path: &str) -> ContainerSpec {
    ContainerSpec { mounts: vec![volume(path)], ..spec(&["true"]) }
}

fn memory(path: &str) -> Setting {
    Setting::Tmpfs { path: path.into(), size_bytes: 1 << 20 }
}

fn as_user(user: &str, command: &[&str]) -> ContainerSpec {
    ContainerSpec { user: Some(user.into()), ..spec(command) }
}

/// Mounts of this machine that have something to do with `path`.
fn mounts(path: &Path) -> usize {
    fs::read_to_string("/proc/self/mountinfo").unwrap().matches(path.to_str().unwrap()).count()
}

/// Each with its sentence; no process, mount or file of it is left, and another container starts.
fn fail(world: &World, cases: Vec<(ContainerSpec, &str)>) {
    for (spec, sentence) in cases {
        let shown = format!("{spec:?}");
        let finished = world.start(spec).finish();
        assert_eq!(finished.failure().to_string(), format!("could not start: {sentence}"), "{shown}");
        assert_eq!((finished.end, finished.stdout.as_str()), (End::Code(127), ""), "{shown}");
        assert_eq!(mounts(world.path()), 0, "{shown}");
    }
    assert_eq!(world.shell("echo well"), "well\n");
}

#[test]
fn programs_that_are_none() {
    let not_found = |name: &str| format!("no such program '{name}' in the image, check the command");
    let no_program = |name: &str| format!("'{name}' is not executable, check the command");
    let other = |name: &str| format!("'{name}' is not a program for this node's processor");
    let entrypoint = |words: &[&str]| ContainerSpec {
        entrypoint: Some(words.iter().map(|&word| word.to_owned()).collect()),
        ..spec(&["argument"])
    };
    let world = world();
    let cases = [
        (entrypoint(&["missing"]), not_found("missing")),
        (entrypoint(&["/no/such/path"]), not_found("/no/such/path")),
        (entrypoint(&["/bin/true/x"]), not_found("/bin/true/x")),
        (entrypoint(&["dangling"]), not_found("dangling")),
        (entrypoint(&["plain"]), no_program("plain")),
        (entrypoint(&["/etc"]), no_program("/etc")),
        (entrypoint(&["/bin/pipe"]), no_program("/bin/pipe")),
        (as_user("ann", &["locked"]), no_program("locked")),
        (entrypoint(&["empty"]), other("empty")),
        (entrypoint(&["garbage"]), other("garbage")),
        (entrypoint(&["bare"]), other("bare")),
        (entrypoint(&["script"]), "the interpreter or loader that 'script' needs is not in the image".into()),
    ];
    fail(&world, cases.iter().map(|(spec, text)| (spec.clone(), text.as_str())).collect());
}

#[test]
fn users_that_are_none() {
    let nobody =
        |name: &str| format!("no user or group '{name}' in the image, give one that /etc/passwd has");
    let world = world();
    let cases = [
        ("bob", nobody("bob")),
        ("ann:bobs", nobody("bobs")),
        ("1000:bobs", nobody("bobs")),
        ("root:root:root", nobody("root:root")),
        ("4294967295", nobody("4294967295")),
        ("99999999999", nobody("99999999999")),
        ("-1", nobody("-1")),
        ("a b", nobody("a b")),
    ];
    fail(&world, cases.iter().map(|(user, text)| (as_user(user, &["true"]), text.as_str())).collect());
    // Numbers need no entry; without the files names are unknown and numbers still work.
    assert_eq!(world.start(as_user("4242:17", &["id", "-u"])).finish().stdout, "4242\n");
    fs::remove_file(world.layer().join("etc/passwd")).unwrap();
    let text = nobody("ann");
    fail(&world, vec![(as_user("ann", &["true"]), text.as_str())]);
    assert_eq!(world.start(as_user("7", &["id", "-u"])).finish().stdout, "7\n");
}

#[test]
fn places_that_are_none() {
    let world = world();
    let within = |workdir: &str| ContainerSpec { workdir: Some(workdir.into()), ..spec(&["true"]) };
    let tmpfs = |path: &str| ContainerSpec { settings: vec![memory(path)], ..spec(&["true"]) };
    let cases = vec![
        (at("/bin/busybox"), "mounting /bin/busybox failed: Not a directory"),
        (at("/bin/busybox/below"), "mounting /bin/busybox/below failed: Not a directory"),
        (at("/etc/hosts"), "mounting /etc/hosts failed: Not a directory"),
        (at("/hanging/below"), "mounting /hanging/below failed: No such file or directory"),
        (at("/bin/loop"), "mounting /bin/loop failed: Too many symbolic links encountered"),
        (tmpfs("/bin/busybox"), "mounting /bin/busybox failed: Not a directory"),
        (tmpfs("/hanging"), "mounting /hanging failed: No such file or directory"),
        (within("/bin/busybox"), "entering /bin/busybox failed: Not a directory"),
        (within("/bin/loop"), "entering /bin/loop failed: Too many symbolic links encountered"),
    ];
    let read_only = |(spec, text): &(ContainerSpec, &'static str)| {
        (ContainerSpec { read_only: true, ..spec.clone() }, *text)
    };
    fail(&world, cases.iter().map(read_only).collect());
    fail(&world, cases);
}

/// What is read-only is the image; what is mounted stays as it was wished, wherever it is, whether or not the place is there.
#[test]
fn mounts_of_a_read_only_root_are_where_they_should_be() {
    let world = world();
    let look = "touch /x; touch /new/x; touch /bin/x; touch /made/deep/x; touch /made/x; touch /tmp/x; touch /tmp/in/x; \
                touch /a/b/x; ls /new /made/deep /tmp /a/b";
    let mounts = vec![
        VolumeMount { volume: "one".parse().unwrap(), path: "/new".into(), read_only: true },
        VolumeMount { volume: "two".parse().unwrap(), path: "/made/deep".into(), read_only: false },
        VolumeMount { volume: "three".parse().unwrap(), path: "/tmp/in".into(), read_only: false },
        // Named before what it is in.
        VolumeMount { volume: "four".parse().unwrap(), path: "/a".into(), read_only: true },
    ];
    let settings = vec![memory("/a/b"), memory("/tmp")];
    fs::create_dir_all(world.data.volumes_of(wherry_protocol::AccountId(3)).join("four/b")).unwrap();
    let spec = ContainerSpec { read_only: true, mounts, settings, ..spec(&["sh", "-c", look]) };
    let finished = world.start(spec).finish();
    assert_eq!(finished.stdout, "/a/b:\nx\n\n/made/deep:\nx\n\n/new:\n\n/tmp:\nin\nx\n", "{finished:?}");
    for path in ["/x", "/new/x", "/bin/x", "/made/x"] {
        assert!(finished.stderr.contains(&format!("{path}: Read-only file system")), "{path}: {finished:?}");
    }
    assert_eq!(finished.stderr.lines().count(), 4, "{finished:?}");
    let volume = |name: &str| world.data.volumes_of(wherry_protocol::AccountId(3)).join(name);
    assert!(volume("two/x").exists() && volume("three/x").exists() && !volume("four/b/x").exists());
}

/// A read-only volume has no place for a mount that is not there yet.
#[test]
fn a_place_in_a_read_only_volume_must_be_there() {
    let world = world();
    let mounts = vec![VolumeMount { volume: "data".parse().unwrap(), path: "/data".into(), read_only: true }];
    let spec = ContainerSpec { mounts, settings: vec![memory("/data/cache")], ..spec(&["true"]) };
    fail(&world, vec![(spec, "mounting /data/cache failed: Read-only file system")]);
}

/// A program that needs more memory than it may have is told by the kernel; what it was started with is not damaged.
#[test]
fn limits_below_what_a_program_needs() {
    let world = world();
    let with = |name: &str, value| {
        let limit = Setting::Limit { name: name.into(), soft: value, hard: value };
        ContainerSpec { settings: vec![limit], ..spec(&["true"]) }
    };
    // Too little for execve itself (ENOMEM, or SIGKILL after the point of no return).
    let finished = world.start(with("as", 4096)).finish();
    assert!(matches!(finished.end, End::Signal(9 | 11) | End::Code(127)), "{finished:?}");
    // No descriptor may be opened at all: none is needed to run `true`.
    assert_eq!(world.start(with("nofile", 0)).finish().end, End::Code(0));
    assert_eq!(world.shell("echo well"), "well\n");
}
