//! Run as root, as the node does: ownership, device nodes and `trusted.` attributes need it.
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use wherry_protocol::message::Media;

/// Writes archives that no tar program would.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(kind: u8, name: &[u8], link: &[u8], size: u64, mode: u32) -> [u8; 512] {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0001750\0");
        put(116, b"0000144\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"07363200000\0");
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        block[156] = kind;
        Self::seal(block)
    }

    fn seal(mut block: [u8; 512]) -> [u8; 512] {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: u8, name: &str, link: &str, mode: u32) -> Self {
        let header = Self::header(kind, name.as_bytes(), link.as_bytes(), 0, mode);
        self.raw(&header)
    }

    fn file(self, name: &str, content: &[u8], mode: u32) -> Self {
        let header = Self::header(b'0', name.as_bytes(), b"", content.len() as u64, mode);
        self.raw(&header).raw(content)
    }

    fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "", 0o755)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, 0o777)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l).unwrap();
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let header = Self::header(b'x', b"pax", b"", body.len() as u64, 0o644);
        self.raw(&header).raw(&body)
    }

    fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

struct World {
    base: tempfile::TempDir,
    layers: LayerDir,
}

impl World {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests run as root, as the node does");
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("layers")).unwrap();
        fs::write(base.path().join("outside"), "untouched").unwrap();
        let layers = LayerDir::new(base.path().join("layers"));
        Self { base, layers }
    }

    fn unpack_as(&self, bytes: &[u8], media: Media, limits: &Limits) -> Result<Unpacked, UnpackError> {
        let expected = Expected { digest: Digest::of(bytes), size: bytes.len() as u64, diff_id: None };
        unpack_layer(bytes, media, expected, &self.layers, limits)
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_as(bytes, Media::LayerTar, &Limits::DEFAULT)
    }

    /// Names in the directory of layers, temporary ones included.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.base.path().join("layers")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn refuse(&self, bytes: &[u8]) -> UnpackError {
        let error = self.unpack(bytes).expect_err("must be refused");
        assert_eq!(self.left(), Vec::<String>::new(), "{error}");
        assert_eq!(fs::read_to_string(self.base.path().join("outside")).unwrap(), "untouched");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 500, "one sentence: {text}");
        error
    }
}

fn refusal(error: &UnpackError) -> Refusal {
    match error {
        UnpackError::Refused { reason, .. } => *reason,
        other => panic!("not a refusal: {other}"),
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(256);
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).ok()?;
    Some(value)
}

#[test]
fn an_ordinary_layer_arrives_as_it_was() {
    let world = World::new();
    let tar = Tar::default()
        .dir("./")
        .dir("bin/")
        .file("bin/su", b"program", 0o4755)
        .symlink("bin/sh", "/bin/busybox")
        .entry(b'1', "bin/su2", "bin/su", 0o755)
        .entry(b'6', "run/queue", "", 0o620)
        .file("deep/er/file", b"", 0o600)
        .end();
    let unpacked = world.unpack(&tar).unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (7, 7));
    let at = |path: &str| unpacked.path.join(path);
    let su = fs::symlink_metadata(at("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o4755, 1000, 100, 2));
    assert_eq!((su.mtime(), fs::metadata(at("bin")).unwrap().mtime()), (0o7_363_200_000, 0o7_363_200_000));
    assert_eq!(fs::read(at("bin/su2")).unwrap(), b"program");
    assert_eq!(fs::read_link(at("bin/sh")).unwrap(), Path::new("/bin/busybox"));
    assert!(fs::metadata(at("run/queue")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(at("deep/er")).unwrap().mode() & 0o7777, 0o755);
    assert!(world.layers.contains(&Digest::of(&tar)));
    assert_eq!(world.left(), [Digest::of(&tar).hex()]);
}

#[test]
fn packed_layers_are_the_same() {
    let tar = Tar::default().file("a", &vec![7; 300_000], 0o644).end();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let (head, tail) = tar.split_at(1000);
    let skippable = [&0x184D_2A53_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
    for (bytes, media) in [
        (gzip(&tar), Media::LayerTarGzip),
        ([gzip(head), gzip(tail)].concat(), Media::LayerTarGzip),
        (zstd(&tar), Media::LayerTarZstd),
        ([zstd(head), skippable.clone(), zstd(tail), skippable].concat(), Media::LayerTarZstd),
    ] {
        let world = World::new();
        let unpacked = world.unpack_as(&bytes, media, &Limits::DEFAULT).unwrap();
        assert_eq!(fs::read(unpacked.path.join("a")).unwrap(), vec![7; 300_000], "{media:?}");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let world = World::new();
    let tar = Tar::default()
        .file("etc/.wh.passwd", b"", 0o644)
        .file("var/.wh..wh..opq", b"", 0o644)
        .file("kept", b"x", 0o644)
        .file(".wh.kept", b"", 0o644)
        .file(".wh.again", b"", 0o644)
        .dir("again")
        .file(".wh.deep", b"", 0o644)
        .file("deep/file", b"x", 0o644)
        .file(".wh..wh.plnk", b"", 0o644)
        .end();
    let root = world.unpack(&tar).unwrap().path;
    let hidden = fs::symlink_metadata(root.join("etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    for directory in ["var", "again", "deep"] {
        assert_eq!(xattr(&root.join(directory), "trusted.overlay.opaque").unwrap(), b"y", "{directory}");
    }
    assert_eq!(xattr(&root.join("etc"), "trusted.overlay.opaque"), None);
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"x");
    let names: BTreeSet<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn extensions_are_honoured() {
    let world = World::new();
    let long = format!("long/{}/{}", "d".repeat(200), "f".repeat(200));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let gnu = [long.as_bytes(), b"\0"].concat();
    let tar = Tar::default()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"70000"),
            ("mtime", b"12345.5"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.selinux", b"ignored"),
        ])
        .file("short", b"x", 0o755)
        .raw(&Tar::header(b'L', b"././@LongLink", b"", gnu.len() as u64 + 4, 0))
        .raw(&[&gnu[..], b"gnu\0"].concat())
        .file("short", b"y", 0o644)
        .end();
    let root = world.unpack(&tar).unwrap().path;
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"y");
    let tar = Tar::default()
        .pax(&[
            ("path", b"named"),
            ("uid", b"70000"),
            ("mtime", b"12345.5"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.selinux", b"ignored"),
        ])
        .file("short", b"x", 0o755)
        .end();
    let path = world.unpack(&tar).unwrap().path.join("named");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.mtime(), meta.mtime_nsec()), (70_000, 12_345, 500_000_000));
    assert_eq!(xattr(&path, "security.capability").unwrap(), capability);
}

#[test]
fn sparse_files_keep_their_holes() {
    let world = World::new();
    let mut old = Tar::header(b'S', b"old", b"", 512, 0o644);
    old[386..398].copy_from_slice(b"00004000000\0");
    old[398..410].copy_from_slice(b"00000001000\0");
    old[483..495].copy_from_slice(b"00010000000\0");
    let map = b"1\n1048576\n512\n";
    let data = [&map[..], &[0; 512 - 14], &[9; 512]].concat();
    let tar = Tar::default()
        .raw(&Tar::seal(old))
        .raw(&[8; 512])
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new"),
            ("GNU.sparse.realsize", b"2097152"),
        ])
        .raw(&Tar::header(b'0', b"GNUSparseFile.0/new", b"", 1024, 0o644))
        .raw(&data)
        .end();
    let root = world.unpack(&tar).unwrap().path;
    for (name, at, byte) in [("old", 0o4_000_000_usize, 8), ("new", 1_048_576, 9)] {
        let content = fs::read(root.join(name)).unwrap();
        assert_eq!((content.len(), &content[at..at + 512]), (2 * 1024 * 1024, &[byte; 512][..]));
        assert!(content[..at].iter().all(|&byte| byte == 0));
        assert!(fs::metadata(root.join(name)).unwrap().blocks() < 64, "{name} has holes");
    }
}

#[test]
fn nothing_leaves_the_directory() {
    let cases: [(Refusal, Tar); 12] = [
        (Refusal::ParentComponent, Tar::default().file("../outside", b"x", 0o644)),
        (Refusal::ParentComponent, Tar::default().file("a/../../outside", b"x", 0o644)),
        (Refusal::ParentComponent, Tar::default().pax(&[("path", b"/../outside")]).file("a", b"x", 0o644)),
        (Refusal::SymlinkEscape, Tar::default().symlink("a", "/").file("a/outside", b"x", 0o644)),
        (Refusal::SymlinkEscape, Tar::default().symlink("a", "../..").file("a/outside", b"x", 0o644)),
        (Refusal::SymlinkEscape, Tar::default().symlink("a", "/proc/self/root").dir("a/b/c")),
        (
            Refusal::SymlinkEscape,
            Tar::default().symlink("a", "b").symlink("b", "..").file("a/outside", b"x", 0o644),
        ),
        (Refusal::SymlinkEscape, Tar::default().symlink("a", "a").file("a/x", b"x", 0o644)),
        (Refusal::ParentComponent, Tar::default().entry(b'1', "link", "../outside", 0o644)),
        (Refusal::LinkTarget, Tar::default().entry(b'1', "link", "/etc/passwd", 0o644)),
        (
            Refusal::SymlinkEscape,
            Tar::default().symlink("a", "../..").entry(b'1', "link", "a/outside", 0o644),
        ),
        (Refusal::SymlinkEscape, Tar::default().symlink("etc", "/etc").file("etc/.wh.passwd", b"", 0o644)),
    ];
    for (expected, tar) in cases {
        let error = World::new().refuse(&tar.end());
        assert_eq!(refusal(&error), expected, "{error}");
    }
}

#[test]
fn writing_through_a_link_replaces_the_link() {
    let world = World::new();
    let outside = world.base.path().join("outside");
    let target = outside.to_str().unwrap();
    let tar = Tar::default().symlink("a", target).file("a", b"mine", 0o644).end();
    let root = world.unpack(&tar).unwrap().path;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"mine");
    let tar = Tar::default()
        .symlink("d", world.base.path().to_str().unwrap())
        .dir("d")
        .file("d/outside", b"mine", 0o600)
        .end();
    world.unpack(&tar).unwrap();
    assert_eq!(fs::read_to_string(outside).unwrap(), "untouched");
}

#[test]
fn a_link_inside_is_followed_and_absolute_names_stay_inside() {
    let world = World::new();
    let tar = Tar::default()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/x", b"1", 0o644)
        .file("/etc/abs", b"2", 0o644)
        .end();
    let root = world.unpack(&tar).unwrap().path;
    assert_eq!(fs::read(root.join("usr/lib/x")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("etc/abs")).unwrap(), b"2");
}

#[test]
fn unwanted_entries_are_refused() {
    let long = "n".repeat(256);
    let cases: [(Refusal, Tar); 10] = [
        (Refusal::Device, Tar::default().entry(b'3', "dev/mem", "", 0o666)),
        (Refusal::Device, Tar::default().entry(b'4', "dev/sda", "", 0o666)),
        (Refusal::NoName, Tar::default().file("./", b"", 0o644).symlink(".", "x")),
        (Refusal::NoName, Tar::default().symlink("/", "x")),
        (Refusal::NameTooLong, Tar::default().pax(&[("path", long.as_bytes())]).file("a", b"", 0o644)),
        (Refusal::NotADirectory, Tar::default().file("a", b"", 0o644).file("a/b", b"", 0o644)),
        (Refusal::ReplacesDirectory, Tar::default().file("a/b", b"", 0o644).file("a", b"", 0o644)),
        (Refusal::Whiteout, Tar::default().file("a/.wh...", b"", 0o644)),
        (Refusal::Whiteout, Tar::default().file(".wh.", b"", 0o644)),
        (
            Refusal::OverlayAttribute,
            Tar::default().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("a"),
        ),
    ];
    for (expected, tar) in cases {
        let error = World::new().refuse(&tar.end());
        assert_eq!(refusal(&error), expected, "{error}");
    }
}

#[test]
fn bounds_hold() {
    let limits = Limits { entries: 2, bytes: 1000, extension_bytes: 2048, ..Limits::DEFAULT };
    let refuse = |tar: Tar| World::new().unpack_as(&tar.end(), Media::LayerTar, &limits).unwrap_err();
    let three = Tar::default().dir("a").dir("b").dir("c");
    assert!(matches!(refuse(three), UnpackError::TooLarge { what: "entries", limit: 2, .. }));
    let large = Tar::default().file("a", &[0; 600], 0o644).file("b", &[0; 600], 0o644);
    assert!(matches!(refuse(large), UnpackError::TooLarge { what: "bytes", .. }));
    let mut sparse = Tar::header(b'S', b"bomb", b"", 0, 0o644);
    sparse[483..495].copy_from_slice(b"77777777777\0");
    assert!(matches!(refuse(Tar::default().raw(&Tar::seal(sparse))), UnpackError::TooLarge { .. }));
    let tar_error = |tar: Tar| match refuse(tar) {
        UnpackError::Tar { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    let pax = Tar::default().pax(&[("comment", &[b'x'; 3000])]).dir("a");
    assert_eq!(tar_error(pax), "the extension header of an entry is longer than 2048");
    let announced = Tar::default().raw(&Tar::header(b'L', b"x", b"", 1 << 32, 0));
    assert_eq!(tar_error(announced), "the extension header of an entry is longer than 2048");
    let path = Tar::default().pax(&[("path", "a/".repeat(900).as_bytes())]).dir("a");
    let short = Limits { path_bytes: 1000, ..Limits::DEFAULT };
    let error = World::new().unpack_as(&path.end(), Media::LayerTar, &short).unwrap_err();
    assert!(error.to_string().ends_with("the path of an entry is longer than 1000"), "{error}");
}

#[test]
fn malformed_archives_are_refused() {
    let good = || Tar::default().file("a", &[1; 700], 0o644);
    let text = |bytes: Vec<u8>| World::new().refuse(&bytes).to_string();
    let sentence = |tail: &str| format!("is not a usable tar archive: {tail}");
    let mut truncated = good().0;
    truncated.truncate(900);
    assert!(text(truncated).ends_with(&sentence("it is truncated")));
    assert!(text(good().0[..300].to_vec()).ends_with(&sentence("it is truncated")));
    assert!(text([good().end(), b"garbage".to_vec()].concat()).ends_with(&sentence("it is truncated")));
    let after = text([good().end(), vec![7; 512]].concat());
    assert!(after.ends_with(&sentence("there is something after its end")), "{after}");
    let mut flipped = good().end();
    flipped[0] ^= 1;
    assert!(text(flipped).ends_with(&sentence("a header has a wrong checksum")));
    let unknown = Tar::default().entry(b'Z', "a", "", 0).end();
    assert!(text(unknown).ends_with(&sentence("entries of type 'Z' are not supported")));
    let nul = Tar::default().pax(&[("path", b"a\0b")]).dir("a").end();
    assert!(text(nul).ends_with(&sentence("the path of an entry is not valid")));
    let dangling = Tar::default().pax(&[("path", b"a")]).0;
    assert!(text(dangling).ends_with(&sentence("it is truncated")));
    let mut negative = Tar::header(b'0', b"a", b"", 0, 0o644);
    negative[124..136].fill(0xff);
    assert!(
        text(Tar::default().raw(&Tar::seal(negative)).end()).ends_with("the size of an entry is not valid")
    );
    assert!(text(b"not a tar".repeat(100)).ends_with(&sentence("a header has a wrong checksum")));
}

#[test]
fn damage_is_reported_as_damage() {
    let world = World::new();
    let tar = Tar::default().file("a", &[1; 700], 0o644).end();
    let size = tar.len() as u64;
    let expected = Expected { digest: Digest::of(&tar), size, diff_id: None };
    let unpack = |bytes: &[u8], expected| {
        unpack_layer(bytes, Media::LayerTar, expected, &world.layers, &Limits::DEFAULT).unwrap_err()
    };
    let mut flipped = tar.clone();
    flipped[0] ^= 1;
    assert!(matches!(unpack(&flipped, expected), UnpackError::DigestMismatch { .. }));
    assert!(matches!(unpack(&tar[..800], expected), UnpackError::Size { found: 800, .. }));
    let longer = [&tar[..], &[0; 512]].concat();
    assert!(matches!(unpack(&longer, expected), UnpackError::Size { .. }));
    let other = Expected { diff_id: Some(Digest::of(b"other")), ..expected };
    assert!(matches!(unpack(&tar, other), UnpackError::DiffIdMismatch { .. }));
    assert_eq!(ErrorCode::from(&unpack(&flipped, expected)), ErrorCode::DigestMismatch);
    assert_eq!(world.left(), Vec::<String>::new());
    let same = Expected { diff_id: Some(Digest::of(&tar)), ..expected };
    unpack_layer(&tar[..], Media::LayerTar, same, &world.layers, &Limits::DEFAULT).unwrap();
    unpack_layer(&tar[..], Media::LayerTar, same, &world.layers, &Limits::DEFAULT).unwrap();
    assert_eq!(world.left().len(), 1);
}

#[test]
fn broken_compression_is_named() {
    for (media, format) in [(Media::LayerTarGzip, "gzip"), (Media::LayerTarZstd, "zstd")] {
        let error = World::new().unpack_as(&[3; 600], media, &Limits::DEFAULT).unwrap_err();
        assert!(matches!(&error, UnpackError::Compression { format: f, .. } if *f == format), "{error}");
        assert_eq!(ErrorCode::from(&error), ErrorCode::BadImage);
    }
    // A frame header that asks for a window of 2 GiB (RFC 8878 §3.1.1.1.2: exponent 21).
    let window = [&0xFD2F_B528_u32.to_le_bytes()[..], &[0, 21 << 3], &[0; 20]].concat();
    let error = World::new().unpack_as(&window, Media::LayerTarZstd, &Limits::DEFAULT).unwrap_err();
    assert!(matches!(&error, UnpackError::Compression { .. }), "{error}");
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    struct Full;
    impl Read for Full {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let world = World::new();
    let expected = Expected { digest: Digest::of(b""), size: 1, diff_id: None };
    let result = unpack_layer(Full, Media::LayerTar, expected, &world.layers, &Limits::DEFAULT);
    assert!(matches!(result, Err(UnpackError::DiskFull { .. })));
    assert_eq!(world.left(), Vec::<String>::new());
}

#[test]
fn leftovers_are_cleaned_and_layers_stay() {
    let world = World::new();
    let tar = Tar::default().dir("a").end();
    world.unpack(&tar).unwrap();
    fs::create_dir_all(world.base.path().join("layers/.tmp-dead/root/x")).unwrap();
    assert_eq!(clean(&world.base.path().join("layers")).unwrap(), 1);
    assert_eq!(world.left(), [Digest::of(&tar).hex()]);
}

#[derive(Debug, Clone)]
enum Item {
    File(String),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let target = prop::sample::select(vec!["/", "..", "../..", "a", "b/..", "/proc/self/root", "."]);
    prop_oneof![
        path().prop_map(Item::File),
        path().prop_map(Item::Dir),
        (path(), target).prop_map(|(path, target)| Item::Symlink(path, target.to_owned())),
        (path(), path()).prop_map(|(path, target)| Item::Link(path, target)),
    ]
}

/// Everything below `path`, without following links.
fn listing(path: &Path, out: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        out.insert(path.display().to_string());
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            listing(&path, out);
        }
    }
}

proptest! {
    #[test]
    fn no_archive_reaches_outside(items in prop::collection::vec(item(), 1..12)) {
        let world = World::new();
        let tar = items.iter().fold(Tar::default(), |tar, item| match item {
            Item::File(path) => tar.file(path, b"x", 0o644),
            Item::Dir(path) => tar.dir(path),
            Item::Symlink(path, target) => tar.symlink(path, target),
            Item::Link(path, target) => tar.entry(b'1', path, target, 0o644),
        });
        let done = world.unpack(&tar.end()).is_ok();
        prop_assert_eq!(world.left().len(), usize::from(done));
        let mut base = BTreeSet::new();
        listing(world.base.path(), &mut base);
        let layers = world.base.path().join("layers").display().to_string();
        let outside: Vec<_> = base.iter().filter(|path| !path.starts_with(&layers)).collect();
        prop_assert_eq!(outside.len(), 1);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        at in 0_usize..512,
        byte: u8,
    ) {
        let mut near = Tar::default().pax(&[("path", b"x"), ("size", b"3")]).file("a", b"abc", 0o644).end();
        let length = near.len();
        near[at % length] = byte;
        let mut header: [u8; 512] = near[..512].try_into().unwrap();
        header[at] = byte;
        near[..512].copy_from_slice(&Tar::seal(header));
        for bytes in [&noise, &near] {
            let mut reader = TarReader::new(&bytes[..], Limits::DEFAULT);
            while let Ok(Some(_)) = reader.next_entry() {
                drop(io::copy(&mut reader, &mut io::sink()));
            }
        }
    }
}

#[test]
fn unused_layers_go_and_nothing_else_does() {
    let base = tempfile::tempdir().unwrap();
    let layers = LayerDir::new(base.path());
    let [used, unused] = [Digest([1; 32]), Digest([2; 32])];
    for digest in [used, unused] {
        fs::create_dir_all(layers.path(&digest).join("etc")).unwrap();
        fs::write(layers.path(&digest).join("etc/passwd"), "x").unwrap();
    }
    for other in [".tmp-being-unpacked", "lost+found"] {
        fs::create_dir(base.path().join(other)).unwrap();
    }
    let mut all = layers.all().unwrap();
    all.sort();
    assert_eq!(all, [layers.path(&used), layers.path(&unused)]);
    fs::write(layers.path(&used).join("large"), [1; 100_000]).unwrap();
    fs::hard_link(layers.path(&used).join("large"), layers.path(&used).join("etc/same")).unwrap();
    let bytes = LayerDir::disk_bytes(&layers.path(&used)).unwrap();
    assert!((100_000..150_000).contains(&bytes), "{bytes}");
    let kept = BTreeSet::from([layers.path(&used)]);
    assert_eq!(layers.remove_all_but(&kept).unwrap(), 1);
    assert!(layers.contains(&used) && !layers.contains(&unused));
    assert!(base.path().join(".tmp-being-unpacked").exists() && base.path().join("lost+found").exists());
    assert_eq!(layers.remove_all_but(&kept).unwrap(), 0);
    assert!(LayerDir::new(base.path().join("nowhere")).remove_all_but(&kept).is_err());
}
