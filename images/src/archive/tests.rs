//! Archives as tools write them, and as an attacker would.
use super::*;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use tar::{EntryType, Header};
use wherry_protocol::message::Media;

#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, name: &str, kind: EntryType, link: &str, size: u64, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(name, EntryType::Regular, "", data.len() as u64, data)
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string().as_bytes())
    }

    fn blob(self, data: &[u8]) -> Self {
        self.file(&format!("blobs/sha256/{}", Digest::of(data).hex()), data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn open(bytes: &[u8]) -> Result<ImageArchive, ArchiveError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.tar");
    std::fs::write(&path, bytes).unwrap();
    ImageArchive::open(&path)
}

fn images(bytes: &[u8]) -> Result<Vec<ArchivedImage>, ArchiveError> {
    open(bytes)?.images(&Platforms::All)
}

fn refusal(bytes: &[u8]) -> String {
    images(bytes).unwrap_err().to_string()
}

fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let rootfs = json!({"type": "layers", "diff_ids": ids});
    json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}).to_string().into()
}

fn descriptor(data: &[u8], media: &str) -> Value {
    json!({"mediaType": media, "digest": Digest::of(data).to_string(), "size": data.len()})
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let media = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer, media)).collect();
    let config = descriptor(config, "application/vnd.oci.image.config.v1+json");
    json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().into()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An OCI layout with one image per architecture, sharing one layer.
fn layout(architectures: &[&str]) -> Tar {
    let mut tar =
        Tar::default().json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"})).blob(b"shared layer");
    let mut entries = Vec::new();
    for architecture in architectures {
        let config = config(architecture, &[b"shared layer", architecture.as_bytes()]);
        let manifest = manifest(&config, &[b"shared layer", architecture.as_bytes()]);
        let mut entry = descriptor(&manifest, MANIFEST);
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        entries.push(entry);
        tar = tar.blob(&config).blob(&manifest).blob(architecture.as_bytes());
    }
    tar.json("index.json", &json!({"schemaVersion": 2, "manifests": entries}))
}

fn legacy(tags: &Value) -> Tar {
    let config = config("amd64", &[b"base", b"top", b"base"]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let layers = ["1/layer.tar", "2/layer.tar", "3/layer.tar"];
    Tar::default()
        .file(&name, &config)
        .raw("1/", EntryType::Directory, "", 0, b"")
        .file("1/layer.tar", b"base")
        .file("2/layer.tar", b"top")
        .raw("3/layer.tar", EntryType::Symlink, "../1/layer.tar", 0, b"")
        .json("manifest.json", &json!([{"Config": name, "RepoTags": tags, "Layers": layers}]))
}

fn contents(archive: &ImageArchive, image: &ArchivedImage) -> Vec<Vec<u8>> {
    let read = |blob: &Descriptor| {
        let mut bytes = Vec::new();
        archive.blob(image, &blob.digest).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest);
        bytes
    };
    image.manifest.layers.iter().map(read).collect()
}

#[test]
fn old_docker_save() {
    let archive = open(&legacy(&json!(["tools/web:1.2"])).end()).unwrap();
    let images = archive.images(&Platforms::All).unwrap();
    let [image] = images.as_slice() else { panic!("{images:?}") };
    assert_eq!(image.architecture, "amd64");
    assert_eq!(image.names[0].as_str(), "tools/web:1.2");
    assert_eq!(contents(&archive, image), [b"base".to_vec(), b"top".to_vec(), b"base".to_vec()]);
    assert_eq!(image.blobs().count(), 3, "the repeated layer counts once");
    assert_eq!(image.manifest.layers[0].media, Media::LayerTar);
}

#[test]
fn an_image_without_a_name_gets_the_files() {
    assert_eq!(images(&legacy(&Value::Null).end()).unwrap()[0].names[0].as_str(), "web:latest");
    assert_eq!(images(&layout(&["arm64"]).end()).unwrap()[0].names[0].as_str(), "web:v1");
}

#[test]
fn modern_docker_save_is_a_layout_with_tags() {
    let config = config("amd64", &[b"shared layer", b"amd64"]);
    let member = format!("blobs/sha256/{}", Digest::of(&config).hex());
    let docker = json!([{"Config": member, "RepoTags": ["shop:3"], "Layers": []}]);
    let images = images(&layout(&["amd64"]).json("manifest.json", &docker).end()).unwrap();
    assert_eq!(images[0].names[0].as_str(), "shop:3");
    assert_eq!(images[0].manifest.layers.len(), 2);
}

#[test]
fn platforms_are_picked_from_the_index() {
    let bytes = layout(&["amd64", "arm64", "riscv64"]).end();
    let archive = open(&bytes).unwrap();
    let found = |platforms: &Platforms| -> Vec<String> {
        archive.images(platforms).unwrap().into_iter().map(|image| image.architecture).collect()
    };
    assert_eq!(found(&Platforms::All), ["amd64", "arm64"]);
    assert_eq!(found(&Platforms::Only("arm64".into())), ["arm64"]);
    let refused = open(&layout(&["riscv64"]).end()).unwrap().images(&Platforms::All).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the archive has no image for linux/amd64 or linux/arm64; it has linux/riscv64"
    );
}

#[test]
fn nested_indexes_attestations_and_unsaved_platforms() {
    let config = config("arm64", &[b"layer"]);
    let manifest = manifest(&config, &[b"layer"]);
    let mut wanted = descriptor(&manifest, MANIFEST);
    wanted["platform"] = json!({"architecture": "arm64", "os": "linux", "variant": "v8"});
    let mut unsaved = descriptor(b"not saved", MANIFEST);
    unsaved["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let mut attestation = descriptor(b"neither", MANIFEST);
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    let inner = json!({"manifests": [unsaved, wanted, attestation]}).to_string().into_bytes();
    let mut outer = descriptor(&inner, "application/vnd.oci.image.index.v1+json");
    outer["annotations"] = json!({"io.containerd.image.name": "docker.io/library/web:7"});
    let tar =
        Tar::default().json("oci-layout", &json!({})).json("index.json", &json!({"manifests": [outer]}));
    let images = images(&tar.blob(&inner).blob(&manifest).blob(&config).blob(b"layer").end()).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].architecture.as_str(), images[0].names[0].as_str()), ("arm64", "web:7"));
}

#[test]
fn a_layout_directory() {
    let directory = tempfile::tempdir().unwrap();
    tar::Archive::new(layout(&["amd64"]).end().as_slice()).unpack(directory.path()).unwrap();
    let archive = ImageArchive::open(directory.path()).unwrap();
    let images = archive.images(&Platforms::All).unwrap();
    assert_eq!(contents(&archive, &images[0]), [b"shared layer".to_vec(), b"amd64".to_vec()]);
    let empty = tempfile::tempdir().unwrap();
    let refused = ImageArchive::open(empty.path()).unwrap().images(&Platforms::All).unwrap_err();
    assert!(refused.to_string().starts_with("not an image"), "{refused}");
}

#[test]
fn outer_compression_is_removed() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layout(&["amd64"]).end()).unwrap();
    let bytes = gzip.finish().unwrap();
    assert_eq!(images(&bytes).unwrap().len(), 1);
    assert!(refusal(&bytes[..bytes.len() / 2]).contains("truncated"));
    let zstd = ruzstd::encoding::compress_to_vec(
        layout(&["arm64"]).end().as_slice(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    assert_eq!(images(&zstd).unwrap().len(), 1);
    assert!(images(&zstd[..zstd.len() / 2]).is_err());
}

#[test]
fn a_compressed_archive_that_grows_without_end_is_refused() {
    let limit = 1 << 20;
    let refused = source::spool(std::io::repeat(0), limit).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the archive is refused: its size when unpacked is 1048577, more than the limit of 1048576"
    );
    let exact = source::spool(std::io::repeat(0).take(limit), limit).unwrap();
    assert_eq!(exact.metadata().unwrap().len(), limit);
}

#[test]
fn an_open_file_is_read_from_its_start() {
    for compressed in [false, true] {
        let mut file = tempfile::tempfile().unwrap();
        let archive = layout(&["amd64"]).end();
        if compressed {
            let mut gzip = flate2::write::GzEncoder::new(&file, flate2::Compression::fast());
            gzip.write_all(&archive).unwrap();
            gzip.finish().unwrap();
        } else {
            file.write_all(&archive).unwrap();
        }
        let archive = ImageArchive::from_file(file, Some("saved")).unwrap();
        let images = archive.images(&Platforms::All).unwrap();
        assert_eq!(images[0].names[0].as_str(), "saved:v1", "compressed: {compressed}");
    }
}

#[test]
fn compressed_layers_are_recognised_by_their_bytes() {
    let gzip = [0x1f, 0x8b, 8, 0, 1, 2, 3];
    let config = config("amd64", &[b"what it unpacks to"]);
    let manifest = manifest(&config, &[&gzip]);
    let index = json!({"manifests": [descriptor(&manifest, MANIFEST)]});
    let tar = Tar::default().json("oci-layout", &json!({})).json("index.json", &index);
    let images = images(&tar.blob(&gzip).blob(&manifest).blob(&config).end()).unwrap();
    assert_eq!(images[0].manifest.layers[0].media, Media::LayerTarGzip);
}

#[test]
fn what_is_no_image_is_refused() {
    assert!(refusal(b"").starts_with("not an image: the file is no tar archive"));
    assert!(refusal(&[b'x'; 4096]).starts_with("not an image"));
    assert!(refusal(&[0; 4096]).starts_with("not an image: the archive is empty"));
    assert!(refusal(&Tar::default().file("hello", b"world").end()).contains("neither a manifest.json"));
    assert!(
        ImageArchive::open(Path::new("/nowhere/at/all.tar")).unwrap_err().to_string().contains("/nowhere")
    );
    assert!(ImageArchive::open(Path::new("/dev/null")).unwrap_err().to_string().contains("neither a file"));
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_is_cut() {
    let bytes = legacy(&Value::Null).end();
    let whole = bytes.len() - 1024;
    for length in (0..whole - 511).step_by(256) {
        let error = images(&bytes[..length]).expect_err("a cut archive is incomplete");
        let text = error.to_string();
        let known = ["truncated", "incomplete", "not an image"].iter().any(|word| text.contains(word));
        assert!(known, "cut at {length}: {text}");
    }
    assert!(images(&bytes[..whole]).is_ok(), "the closing zero blocks may be missing");
}

#[test]
fn every_flipped_byte_of_a_blob_is_noticed() {
    let bytes = layout(&["amd64"]).end();
    let at = bytes.windows(12).position(|window| window == b"shared layer").unwrap();
    let mut damaged = bytes.clone();
    damaged[at] ^= 1;
    assert!(refusal(&damaged).contains("should be sha256:"));
    let legacy = legacy(&Value::Null).end();
    let at = legacy.windows(3).position(|window| window == b"top").unwrap();
    let mut damaged = legacy.clone();
    damaged[at] ^= 1;
    assert!(refusal(&damaged).contains("'2/layer.tar' should be sha256:"));
}

#[test]
fn a_wrong_size_and_a_missing_blob_are_refused() {
    let config = config("amd64", &[b"layer"]);
    let manifest = manifest(&config, &[b"layer"]);
    let index = json!({"manifests": [descriptor(&manifest, MANIFEST)]});
    let tar = || Tar::default().json("oci-layout", &json!({})).json("index.json", &index).blob(&manifest);
    assert!(refusal(&tar().blob(&config).end()).contains("which is not in it"));
    let mut wrong = index.clone();
    let lying = String::from_utf8(manifest.clone()).unwrap().replace("\"size\":5", "\"size\":50");
    wrong["manifests"][0] = descriptor(lying.as_bytes(), MANIFEST);
    let tar = Tar::default().json("oci-layout", &json!({})).json("index.json", &wrong).blob(lying.as_bytes());
    assert!(refusal(&tar.blob(&config).blob(b"layer").end()).contains("should have 50 bytes but has 5"));
}

#[test]
fn absurd_sizes_are_refused() {
    let huge = Tar::default().raw("manifest.json", EntryType::Regular, "", u64::MAX - 600, b"x").end();
    assert!(refusal(&huge).contains("truncated"));
    let huge = Tar::default().raw("x", EntryType::GNULongName, "", 1 << 40, b"x").end();
    assert!(refusal(&huge).contains("truncated"));
    let large = vec![b' '; 5 * 1024 * 1024];
    assert!(refusal(&Tar::default().file("manifest.json", &large).end()).contains("more than the limit"));
    let name = vec![b'n'; 70 * 1024];
    let long = Tar::default().raw("x", EntryType::GNULongName, "", name.len() as u64, &name).end();
    assert!(refusal(&long).contains("64 KiB"));
    let sparse = Tar::default().raw("x", EntryType::GNUSparse, "", 0, b"").end();
    assert!(refusal(&sparse).contains("sparse"));
}

#[test]
fn endless_members_layers_images_and_indexes_are_refused() {
    let mut tar = Tar::default();
    for _ in 0..=MAX_MEMBERS {
        tar = tar.raw("x", EntryType::Regular, "", 0, b"");
    }
    assert!(refusal(&tar.end()).contains("number of members is 20001"));
    let layers: Vec<&[u8]> = std::iter::repeat_n(b"layer".as_slice(), 200).collect();
    let config = config("amd64", &layers);
    let manifest = manifest(&config, &layers);
    let index = json!({"manifests": [descriptor(&manifest, MANIFEST)]});
    let tar = Tar::default().json("oci-layout", &json!({})).json("index.json", &index);
    assert!(
        refusal(&tar.blob(&config).blob(&manifest).blob(b"layer").end()).contains("number of layers is 200")
    );
    // Also in the old form, where one member may stand for all of them.
    let docker = json!([{"Config": "c.json", "RepoTags": null, "Layers": vec!["layer.tar"; 10_000]}]);
    let tar = Tar::default().file("c.json", &config).file("layer.tar", b"layer");
    assert!(refusal(&tar.json("manifest.json", &docker).end()).contains("number of layers is 10000"));
    let many: Vec<Value> = std::iter::repeat_n(descriptor(&manifest, MANIFEST), 100).collect();
    let tar = Tar::default().json("oci-layout", &json!({})).json("index.json", &json!({"manifests": many}));
    assert!(refusal(&tar.end()).contains("number of images"));
    let mut inner = json!({"manifests": []}).to_string().into_bytes();
    let mut tar = Tar::default().json("oci-layout", &json!({}));
    for _ in 0..6 {
        tar = tar.blob(&inner);
        inner = json!({"manifests": [descriptor(&inner, MANIFEST)]}).to_string().into_bytes();
    }
    assert!(refusal(&tar.file("index.json", &inner).end()).contains("depth of indexes"));
}

#[test]
fn path_tricks_lead_nowhere() {
    for trick in ["../../../../etc/passwd", "/etc/passwd", "..", "", "a/../../b"] {
        let docker = json!([{"Config": trick, "RepoTags": null, "Layers": []}]);
        let text = refusal(&Tar::default().json("manifest.json", &docker).end());
        assert!(text.contains("which is not in it"), "{trick}: {text}");
    }
    let config = config("amd64", &[b"x"]);
    let docker = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["l"]}]);
    for target in ["/etc/passwd", "../../etc/passwd", "l"] {
        let tar = Tar::default().file("c.json", &config).raw("l", EntryType::Symlink, target, 0, b"");
        let text = refusal(&tar.json("manifest.json", &docker).end());
        assert!(text.contains("which is not in it"), "{target}: {text}");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("oci-layout"), "{}").unwrap();
    let evil = json!({"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]});
    std::fs::write(directory.path().join("index.json"), evil.to_string()).unwrap();
    let refused = ImageArchive::open(directory.path()).unwrap().images(&Platforms::All).unwrap_err();
    assert!(refused.to_string().contains("is not a digest"), "{refused}");
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    for bytes in [&b"{"[..], b"[]x", b"{\"a\":1}", &[b'['; 100_000]] {
        let text = refusal(&Tar::default().file("manifest.json", bytes).end());
        assert!(text.contains("manifest.json in the archive cannot be understood"), "{text}");
    }
    assert!(refusal(&Tar::default().file("manifest.json", b"[]").end()).contains("it has none at all"));
    let encrypted = json!({
        "config": descriptor(b"c", "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(b"l", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")],
    });
    let encrypted = encrypted.to_string().into_bytes();
    let index = json!({"manifests": [descriptor(&encrypted, MANIFEST)]});
    let tar = Tar::default().json("oci-layout", &json!({})).json("index.json", &index).blob(&encrypted);
    assert!(refusal(&tar.end()).contains("encrypted', which is not supported"));
}

#[test]
fn long_names_are_read_in_both_dialects() {
    let long = format!("{}/layer.tar", "d".repeat(200));
    let config = config("amd64", &[b"data"]);
    let docker = json!([{"Config": "c.json", "RepoTags": null, "Layers": [long]}]);
    let gnu =
        Tar::default().raw("././@LongLink", EntryType::GNULongName, "", long.len() as u64, long.as_bytes());
    let record = format!(" path={long}\n");
    let record = format!("{}{record}", record.len() + 3);
    let pax =
        Tar::default().raw("PaxHeaders/x", EntryType::XHeader, "", record.len() as u64, record.as_bytes());
    for tar in [gnu, pax] {
        let tar = tar.file("ddd", b"data").file("./c.json", &config).json("manifest.json", &docker);
        assert_eq!(images(&tar.end()).unwrap().len(), 1);
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damage_never_panics(position in 0usize..8192, value: u8, cut in 0usize..8192) {
            let mut bytes = legacy(&json!(["web"])).end();
            let length = bytes.len();
            bytes[position % length] = value;
            drop(images(&bytes));
            drop(images(&bytes[..cut % length]));
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(images(&bytes).is_err());
        }
    }
}
