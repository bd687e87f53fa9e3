//! Sending images: only what is missing, again after a cut, never what is damaged.
use crate::world::{Ran, World};
use serde_json::{Value, json};
use std::path::PathBuf;
use wherry_protocol::Digest;

fn descriptor(data: &[u8], media: &str) -> Value {
    json!({"mediaType": media, "digest": Digest::of(data).to_string(), "size": data.len()})
}

pub(crate) fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, data).unwrap();
}

/// An OCI layout with these layers, per architecture.
pub(crate) fn archive(architectures: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "oci-layout", b"{}");
    let mut blobs = layers.to_vec();
    let mut manifests = Vec::new();
    for architecture in architectures {
        let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config =
            json!({"architecture": architecture, "os": "linux", "rootfs": {"diff_ids": ids}}).to_string();
        let media = "application/vnd.oci.image.layer.v1.tar";
        let described: Vec<Value> = layers.iter().map(|layer| descriptor(layer, media)).collect();
        let config_media = "application/vnd.oci.image.config.v1+json";
        let manifest =
            json!({"config": descriptor(config.as_bytes(), config_media), "layers": described}).to_string();
        let mut entry = descriptor(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(entry);
        blobs.extend([config.into_bytes(), manifest.into_bytes()]);
    }
    for blob in blobs {
        append(&mut tar, &format!("blobs/sha256/{}", Digest::of(&blob).hex()), &blob);
    }
    append(&mut tar, "index.json", json!({"manifests": manifests}).to_string().as_bytes());
    tar.into_inner().unwrap()
}

pub(crate) fn layers(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|number| vec![number; 400_000]).collect()
}

pub(crate) fn file(world: &World, name: &str, bytes: &[u8]) -> PathBuf {
    let path = world.home.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn only_missing_blobs_travel() {
    let world = World::joined();
    let path = file(&world, "web.tar", &archive(&["arm64"], &layers(4)));
    let path = path.to_str().unwrap();
    let first = world.run(&["image", "push", path]);
    assert!(first.ok().starts_with("web:latest (arm64) pushed: 1.5 MiB in 5 of 5 blobs"), "{first:?}");
    assert_eq!(world.broker.state().sent.len(), 5);
    let again = world.run(&["image", "push", path, "other:2"]);
    assert_eq!(again.ok(), "other:2 (arm64) pushed: everything was there already\n");
    assert_eq!(world.broker.state().sent.len(), 5);
    let grown = file(&world, "grown.tar", &archive(&["arm64"], &layers(5)));
    let grown = world.run(&["--json", "image", "push", grown.to_str().unwrap()]).json();
    assert_eq!((&grown["name"], &grown["sent_blobs"]), (&json!("grown:latest"), &json!(2)));
    assert_eq!(world.line("images -q").ok().lines().count(), 3);
    let listed = world.line("image ls");
    assert!(listed.ok().contains("other:2") && listed.out.contains("1.5 MiB"), "{listed:?}");
    assert_eq!(world.line("rmi web other:2").ok(), "web:latest\nother:2\n");
    world.line("image rm web").fails(1, "no image is called 'web:latest'");
}

#[test]
fn an_archive_may_come_by_standard_input() {
    let world = World::joined();
    let archive = archive(&["arm64"], &layers(2));
    let sent = world.run_with_input(&["push", "-", "web:3"], &gzip(&archive));
    assert!(sent.ok().starts_with("web:3 (arm64) pushed: 781.5 KiB in 3 of 3 blobs"), "{sent:?}");
    world
        .run_with_input(&["push", "-"], &archive)
        .fails(2, "does not say what the image is called: add a name");
    world
        .run_with_input(&["push", "-", "web"], &archive[..500_000])
        .fails(1, "cannot push -: the archive is truncated");
    world.run_with_input(&["push", "-", "web"], b"").fails(1, "cannot push -: not an image");
}

#[test]
fn a_cut_in_the_middle_is_survived_without_sending_anything_twice() {
    let world = World::joined();
    let path = file(&world, "web.tar", &archive(&["arm64"], &layers(6)));
    world.broker.state().faults.cut_blob = 2;
    let pushed = world.run(&["image", "push", path.to_str().unwrap()]);
    assert!(pushed.ok().contains("pushed"), "{pushed:?}");
    assert_eq!(pushed.err, "wherry: lost the connection, waiting for the broker to go on\n");
    let mut sent = world.broker.state().sent.clone();
    assert_eq!(sent.len(), 7);
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 7, "nothing was stored twice");
}

#[test]
fn a_full_disk_is_told_as_such() {
    let world = World::joined();
    let path = file(&world, "web.tar", &archive(&["arm64"], &[vec![1; 8_000_000]]));
    world.broker.state().faults.disk_full = 9;
    world.run(&["image", "push", path.to_str().unwrap()]).fails(1, "the broker's disk is full");
    assert!(world.broker.state().images.is_empty());
}

#[test]
fn the_boards_choose_among_architectures() {
    let world = World::joined();
    let both = file(&world, "both.tar", &archive(&["amd64", "arm64"], &layers(1)));
    let both = both.to_str().unwrap();
    // The one node that was ever seen is arm64.
    assert!(world.run(&["image", "push", both]).ok().contains("(arm64)"));
    assert!(world.run(&["image", "push", both, "--platform", "amd64"]).ok().contains("(amd64)"));
    let arm = file(&world, "arm.tar", &archive(&["arm64"], &layers(1)));
    let refused = world.run(&["image", "push", arm.to_str().unwrap(), "--platform", "amd64"]);
    refused.fails(1, "the archive has no image for linux/amd64; it has linux/arm64");
}

#[test]
fn what_is_no_image_is_refused_before_anything_travels() {
    let world = World::joined();
    let temporary = world.home.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let good = archive(&["arm64"], &layers(2));
    let mut flipped = good.clone();
    flipped[100_000] ^= 1;
    let bomb = gzip(&vec![0; 16 << 20]);
    assert!(bomb.len() < 1 << 20);
    for (name, bytes, words) in [
        (
            "layers.tar",
            archive(&["arm64"], &vec![vec![1]; 10_000]),
            "its number of layers is 10000, more than the limit of 128",
        ),
        ("bomb.tar", bomb, "not an image: the archive is empty"),
        (
            "s390x.tar",
            archive(&["s390x"], &layers(1)),
            "no image for linux/amd64 or linux/arm64; it has linux/s390x",
        ),
        ("text.tar", b"hello".to_vec(), "not an image"),
        ("cut.tar", good[..good.len() / 2].to_vec(), "truncated"),
        ("flipped.tar", flipped, "should be sha256:"),
    ] {
        let path = file(&world, name, &bytes);
        let path = path.to_str().unwrap();
        let mut command = world.command(&["push", path]);
        let ran: Ran = command.env("TMPDIR", &temporary).output().unwrap().into();
        ran.fails(1, words);
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "{name} leaves nothing behind");
    }
    world.line("image push /nowhere.tar").fails(1, "cannot read /nowhere.tar: No such file");
    assert!(world.broker.state().sent.is_empty());
    let odd = file(&world, "Ünnamed.tar", &good);
    world.run(&["image", "push", odd.to_str().unwrap()]).fails(2, "add a name");
}
