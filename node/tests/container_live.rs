//! What happens to containers besides starting and ending: pauses, sleep, an init, files put into them, what they change.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use support::service::{Service, World, output, sh};
use support::{eventually, spec};
use wherry_node::container::changes;
use wherry_node::container::runtime::Happening;
use wherry_protocol::message::{
    Condition, ContainerDesired, ContainerSpec, Descriptor, ExitStatus, Media, Setting,
};
use wherry_protocol::{Digest, ErrorCode, Generation};

fn with(settings: Vec<Setting>, spec: ContainerSpec) -> ContainerSpec {
    ContainerSpec { settings, ..spec }
}

fn next_condition(service: &mut Service<'_>) -> Condition {
    loop {
        if let Happening::Condition(_, condition) = service.happening() {
            return condition;
        }
    }
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"));
    let instance = service.start(&desired).unwrap();
    eventually("its first word", || !output(&instance).is_empty());
    let pause = |service: &Service<'_>, paused| {
        service.tokio.block_on(service.runtime.pause(desired.container, paused)).unwrap();
    };
    pause(&service, true);
    assert!(next_condition(&mut service).paused && instance.condition().borrow().paused);
    std::thread::sleep(Duration::from_millis(50));
    let before = output(&instance);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(output(&instance), before, "it stands still");
    pause(&service, true);
    pause(&service, false);
    assert!(!next_condition(&mut service).paused);
    eventually("that it goes on", || output(&instance).len() > before.len());
    // One that is paused can be asked to stop; it must not sleep through that.
    pause(&service, true);
    service.tokio.block_on(service.runtime.ask_to_stop(desired.container, 9)).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Signal(9));
    let error = service.tokio.block_on(service.runtime.pause(desired.container, true)).unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongState);
}

#[test]
fn a_container_that_is_asleep_has_all_but_its_program() {
    let world = World::new();
    let mut service = Service::new(&world);
    let asleep = with(vec![Setting::Asleep], sh("echo awake; exit 3"));
    let desired = world.desired(1, 1, asleep);
    let instance = service.start(&desired).unwrap();
    assert!(next_condition(&mut service).asleep);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((output(&instance).as_str(), instance.ended()), ("", None));
    drop(service);
    // It outlives the service, which does not start it by chance.
    let mut service = Service::new(&world);
    assert_eq!(service.adopted.len(), 1);
    let instance = service.runtime.instance(desired.container).unwrap();
    assert!(instance.condition().borrow().asleep && output(&instance).is_empty());
    service.tokio.block_on(service.runtime.wake(desired.container)).unwrap();
    assert!(!instance.condition().borrow().asleep);
    assert_eq!(service.exit().ended.status, ExitStatus::Code(3));
    assert_eq!(output(&instance), "awake\n");
}

#[test]
fn what_cannot_be_woken_says_why() {
    let world = World::new();
    let mut service = Service::new(&world);
    let desired = world.desired(1, 1, with(vec![Setting::Asleep], spec(&["foo"])));
    let instance = service.start(&desired).unwrap();
    let error = service.tokio.block_on(service.runtime.wake(desired.container)).unwrap_err();
    let words = "could not start: no such program 'foo' in the image, check the command";
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::StartFailed, words));
    assert_eq!(service.exit().ended.status, ExitStatus::Code(127));
    assert!(output(&instance).contains(words), "{}", output(&instance));
    // One that is stopped in its sleep ends at once.
    let desired = world.desired(2, 1, with(vec![Setting::Asleep], spec(&["true"])));
    service.start(&desired).unwrap();
    service.tokio.block_on(service.runtime.ask_to_stop(desired.container, 15)).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Signal(9));
}

#[test]
fn an_init_reaps_orphans_passes_signals_on_and_ends_as_the_program_does() {
    let world = World::new();
    let mut service = Service::new(&world);
    let init = |spec| with(vec![Setting::Init], spec);
    for (script, status) in [
        ("exit 7", ExitStatus::Code(7)),
        ("kill -9 $$", ExitStatus::Code(137)),
        ("test $$ -ne 1", ExitStatus::Code(0)),
    ] {
        let desired = world.desired(1, 1, init(sh(script)));
        assert_eq!(service.run(&desired).1, status, "{script}");
        service.remove(desired.container);
    }
    let script =
        "trap 'echo heard; exit 9' TERM; (sleep 0.1 & exit 0); echo up; while :; do sleep 0.01; done";
    let desired = world.desired(2, 1, init(sh(script)));
    let instance = service.start(&desired).unwrap();
    eventually("its first word", || output(&instance) == "up\n");
    eventually("that the orphan is reaped", || {
        let (stat, _) = service.exec(&instance, "cat /proc/[0-9]*/stat");
        !stat.contains("(sleep) Z") && !stat.contains(") Z")
    });
    let (first, _) = service.exec(&instance, "cat /proc/1/status; ls /proc/1/fd; cat /proc/1/maps");
    assert!(first.contains("NoNewPrivs:\t1") && first.contains("Seccomp:\t2"), "{first}");
    service.tokio.block_on(service.runtime.signal(desired.container, 15)).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(9));
    assert!(output(&instance).contains("heard"));
    // Failures to start are told as without it.
    let error = service.start(&world.desired(3, 1, init(spec(&["foo"])))).map(drop).unwrap_err();
    assert!(error.message.contains("no such program 'foo'"), "{error}");
    let garbage = "#!/no/such/interpreter\n";
    let desired = world.desired(4, 1, init(sh(&format!("printf '{garbage}' > /x; chmod 755 /x"))));
    service.run(&desired);
    let error = service.start(&world.desired(4, 2, init(spec(&["/x"])))).map(drop).unwrap_err();
    assert!(error.message.contains("interpreter or loader"), "{error}");
}

fn archive(entries: &[(&str, u32, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(1000);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn files_are_there_before_the_program_and_again_with_every_start() {
    let mut world = World::new();
    let bytes =
        archive(&[("etc/app/app.conf", 0o600, "wanted\n"), ("bin/tool", 0o755, "#!/bin/sh\necho tool\n")]);
    let files = Setting::Files(world.blobs.add(bytes, Media::LayerTar));
    let mut service = Service::new(&world);
    let script = "cat /etc/app/app.conf; tool; stat -c '%u %a' /etc/app /etc/app/app.conf; stat -c %a /etc; echo x > /etc/app/app.conf";
    let given = |settings: &[&Setting], script: &str| {
        with(settings.iter().map(|&setting| setting.clone()).collect(), sh(script))
    };
    let expected = "wanted\ntool\n0 755\n0 600\n755\n";
    assert_eq!(service.run(&world.desired(1, 1, given(&[&files], script))).0, expected);
    assert_eq!(service.run(&world.desired(1, 2, given(&[&files], script))).0, expected, "again");
    // They need no place to write to.
    let read_only = ContainerSpec { read_only: true, ..given(&[&files], "cat /etc/app/app.conf") };
    assert_eq!(service.run(&world.desired(2, 1, read_only)).0, "wanted\n");
    let directory = world.data().join("containers/1/files");
    assert!(directory.exists());
    service.remove(world.desired(1, 2, sh("")).container);
    assert!(!directory.exists());
}

#[test]
fn hostile_files_stay_inside_or_are_refused() {
    let mut world = World::new();
    let through = archive(&[("link/core_pattern", 0o644, "|/evil"), ("up/escaped", 0o644, "x")]);
    let through = Setting::Files(world.blobs.add(through, Media::LayerTar));
    let climbing = archive(&[("aa/escaped", 0o644, "x")]);
    let climbing: Vec<u8> = {
        // The builder would not write such a name.
        let mut bytes = climbing;
        bytes[..10].copy_from_slice(b"../escaped");
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    let climbing = Setting::Files(world.blobs.add(climbing, Media::LayerTar));
    let none = Setting::Files(world.blobs.add(b"no archive".to_vec(), Media::LayerTar));
    let wrong = Descriptor { digest: Digest::of(b"other"), size: 5, media: Media::LayerTar };
    world.blobs.set(wrong.digest, b"othes".to_vec());
    let mut service = Service::new(&world);
    let before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    // A first life makes links, over which the archive of the second one goes.
    service.run(&world.desired(1, 1, sh("ln -s /proc/sys/kernel /link; ln -s ../../../.. /up")));
    let second =
        world.desired(1, 2, with(vec![through], sh("cat /proc/sys/kernel/core_pattern; ls /up/escaped")));
    let (text, _) = service
        .start(&second)
        .map(|instance| {
            service.tokio.block_on(instance.wait());
            (output(&instance), ())
        })
        .unwrap_or_else(|error| (error.message, ()));
    assert!(!text.contains("evil"), "{text}");
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), before);
    assert!(!world.base.path().join("escaped").exists() && !std::path::Path::new("/escaped").exists());
    for (id, setting, words) in [(2, climbing, "the archive climbs"), (3, none, "no whole tar archive")] {
        let error =
            service.start(&world.desired(id, 1, with(vec![setting], sh("true")))).map(drop).unwrap_err();
        assert_eq!(error.code, ErrorCode::StartFailed);
        assert!(error.message.contains(words), "{error}");
    }
    let desired = world.desired(4, 1, with(vec![Setting::Files(wrong)], sh("true")));
    assert_eq!(service.start(&desired).map(drop).unwrap_err().code, ErrorCode::DigestMismatch);
}

#[test]
fn a_clean_start_throws_away_what_was_written() {
    let world = World::new();
    let mut service = Service::new(&world);
    let life = |generation, clean_since| ContainerDesired {
        clean_since: Generation(clean_since),
        ..world.desired(1, generation, sh("test -e /mark && echo kept; touch /mark"))
    };
    assert_eq!(service.run(&life(1, 0)).0, "");
    assert_eq!(service.run(&life(2, 0)).0, "kept\n");
    assert_eq!(service.run(&life(3, 3)).0, "", "thrown away");
    assert_eq!(service.run(&life(4, 3)).0, "kept\n", "once");
}

#[test]
fn changes_are_named_and_become_a_layer() {
    let world = World::new();
    let mut service = Service::new(&world);
    let script = "echo new > /etc/new; echo more >> /etc/passwd; rm /etc/group; rm -r /home; mkdir /home; \
                  touch /home/other; chmod 700 /root; ln /etc/new /etc/same; ln -s new /etc/soft; chown 1000 /etc/new";
    let desired = world.desired(1, 1, sh(script));
    let instance = service.start(&desired).unwrap();
    assert_eq!(service.exit().ended.status, ExitStatus::Code(0), "{}", output(&instance));
    let mut names = Vec::new();
    changes::names(&instance.root, &mut names).unwrap();
    let names = String::from_utf8(names).unwrap();
    let mut names: Vec<&str> = names.split_terminator('\0').collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "A/etc/new",
            "A/etc/same",
            "A/etc/soft",
            "A/home/other",
            "C/etc",
            "C/etc/passwd",
            "C/home",
            "C/root",
            "D/etc/group"
        ]
    );
    let mut layer = Vec::new();
    changes::layer(&instance.root, &mut layer).unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let mut entries: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = entry.path().unwrap().display().to_string();
            format!("{path} {:o} {}", header.mode().unwrap(), header.uid().unwrap())
        })
        .collect();
    entries.sort_unstable();
    for expected in [
        "etc/.wh.group 600 0",
        "etc/new 644 1000",
        "etc/passwd 644 0",
        "home/.wh..wh..opq 600 0",
        "root 700 0",
    ] {
        assert!(entries.iter().any(|entry| entry == expected), "{expected}: {entries:?}");
    }
    // The layer over the image is what the container saw.
    let mut manifest = world.image.clone();
    let config = String::from_utf8(world.blobs.get(&manifest.config.digest)).unwrap();
    let mut blobs = World::new();
    for layer in &manifest.layers {
        blobs.blobs.add(world.blobs.get(&layer.digest), layer.media);
    }
    let diff_id = Digest::of(&layer);
    manifest.layers.push(blobs.blobs.add(layer, Media::LayerTar));
    let config = config.replace("\"]}", &format!("\",\"{diff_id}\"]}}"));
    manifest.config = blobs.blobs.add(config.into_bytes(), Media::Config);
    let mut service = Service::new(&blobs);
    let script = "cat /etc/new /etc/same; ls /home /etc; stat -c '%u %h' /etc/new; stat -c %a /root";
    let desired = ContainerDesired { image: manifest, ..blobs.desired(1, 1, sh(script)) };
    let (text, _) = service.run(&desired);
    assert!(text.starts_with("new\nnew\n"), "{text}");
    assert!(text.contains("other") && !text.contains("ann\n") && !text.contains("group\n"), "{text}");
    assert!(text.contains("1000 2\n") && text.ends_with("700\n"), "{text}");
    let mode = fs::metadata(blobs.data().join("containers")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
