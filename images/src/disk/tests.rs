//! The whole module: golden plan, the same bytes twice, and independent programs that read what we wrote.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::gpt::Guid;
use super::layout::{MIN_DATA_BYTES, PartitionLabel};
use super::plan::{Boot, Inputs, Plan};
use super::verity::Verity;
use super::*;

const MIB: u64 = 1 << 20;
const TOML: &str = "role = \"node\"\nhostname = \"node1\"\n";

/// A disk's ingredients in a temporary directory.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: TempDir::new().unwrap() };
        // Not zeros and not a multiple of a block, so that padding and every block's digest matter.
        let noise = |len: usize| (0..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
        std::fs::write(bench.path("binary"), noise(1_000_001)).unwrap();
        std::fs::write(bench.path("kernel"), noise(70_003)).unwrap();
        std::fs::write(bench.path("vmlinux"), noise(90_001)).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn assemble(&self, out: &str) -> (PathBuf, Manifest) {
        self.assemble_for(out, Firmware::Extlinux)
    }

    fn assemble_for(&self, out: &str, firmware: Firmware<'_>) -> (PathBuf, Manifest) {
        let (binary, kernel, direct_kernel) =
            (self.path("binary"), self.path("kernel"), self.path("vmlinux"));
        let spec = TemplateSpec {
            arch: Arch::X86_64,
            role: BoardRole::Node,
            binary: &binary,
            kernel: &kernel,
            direct_kernel: &direct_kernel,
            firmware,
            data_bytes: MIN_DATA_BYTES,
        };
        let out = self.path(out);
        let manifest = assemble(&spec, &out).unwrap();
        (out, manifest)
    }

    /// One partition of a disk, as a file of its own.
    fn extract(&self, disk: &Path, manifest: &Manifest, label: PartitionLabel) -> PathBuf {
        let partition = manifest.partition(label).unwrap();
        let mut disk = File::open(disk).unwrap();
        disk.seek(SeekFrom::Start(partition.start)).unwrap();
        let mut bytes = vec![0; partition.bytes as usize];
        disk.read_exact(&mut bytes).unwrap();
        let out = self.path(label.name());
        std::fs::write(&out, bytes).unwrap();
        out
    }
}

/// Runs a program that `cargo xtask setup` installs.
fn tool(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; run `cargo xtask setup`"))
}

fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = tool(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn plan(arch: Arch, role: BoardRole, boot: &Boot) -> Plan {
    let inputs = Inputs { arch, role, binary: b"binary", kernel: b"kernel", boot, data_bytes: 64 * MIB };
    Plan::new(&inputs).unwrap()
}

#[test]
fn the_plan_of_each_kind_of_board_is_the_golden_one() {
    let mut all = String::new();
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for role in [BoardRole::Broker, BoardRole::Node] {
            all += &format!("# {} {}\n{}", arch.name(), role.name(), plan(arch, role, &Boot::Extlinux));
        }
    }
    let files = BTreeMap::from([("start4.elf".to_owned(), vec![1; 5000])]);
    let pi = plan(Arch::Aarch64, BoardRole::Node, &Boot::RaspberryPi { files });
    all += &format!("# raspberry pi node\n{pi}");
    let golden = include_str!("testdata/plans.txt");
    assert_eq!(all, golden, "if this change is meant, replace testdata/plans.txt by:\n{all}");
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let bench = Bench::new();
    let ((one, first), (two, second)) = (bench.assemble("one"), bench.assemble("two"));
    assert_eq!(first, second);
    let config = BoardConfig::new(TOML).unwrap();
    for (template, board) in [(&one, "board1"), (&two, "board2")] {
        personalise(template, &bench.path(board), &config, 20 * MIB).unwrap();
    }
    for (a, b) in [("one/disk.img", "two/disk.img"), ("board1", "board2")] {
        let (a, b) = (std::fs::read(bench.path(a)).unwrap(), std::fs::read(bench.path(b)).unwrap());
        assert!(a == b, "two builds differ");
    }
}

#[test]
fn another_program_or_role_gives_another_root_hash_and_disk() {
    let node = plan(Arch::X86_64, BoardRole::Node, &Boot::Extlinux);
    let broker = plan(Arch::X86_64, BoardRole::Broker, &Boot::Extlinux);
    assert_ne!(node.root_hash, broker.root_hash);
    assert_ne!(node.table.disk, broker.table.disk);
}

#[test]
fn sfdisk_finds_no_fault_with_template_and_board() {
    let bench = Bench::new();
    let (template, _) = bench.assemble("template");
    let board = bench.path("board");
    personalise(&template, &board, &BoardConfig::new(TOML).unwrap(), 100 * MIB + 1).unwrap();
    for disk in [template.join("disk.img"), board.clone()] {
        let text = succeed("sfdisk", &["--verify", disk.to_str().unwrap()]);
        assert!(text.contains("No errors detected"), "{text}");
    }
    let dump = succeed("sfdisk", &["--dump", board.to_str().unwrap()]);
    for label in PartitionLabel::ALL {
        assert!(dump.contains(&format!("name=\"{}\"", label.name())), "{dump}");
    }
    assert!(dump.contains(&format!("size={:>12}", 100 * MIB / 512)), "data rounded to MiB: {dump}");
}

#[test]
fn a_raspberry_pi_finds_its_files_in_both_tables() {
    let bench = Bench::new();
    let firmware = bench.path("firmware");
    std::fs::create_dir_all(firmware.join("overlays")).unwrap();
    std::fs::write(firmware.join("config.txt"), "arm_64bit=1\n").unwrap();
    let (template, manifest) = bench.assemble_for("template", Firmware::RaspberryPi { files: &firmware });
    assert_eq!(manifest.firmware, FirmwareKind::RaspberryPi);
    let board = bench.path("board");
    personalise(&template, &board, &BoardConfig::new(TOML).unwrap(), 20 * MIB).unwrap();
    let esp = bench.extract(&board, &manifest, PartitionLabel::Esp);
    assert_eq!(succeed("mtype", &["-i", esp.to_str().unwrap(), "::config.txt"]), "arm_64bit=1\n");
    assert_eq!(succeed("mtype", &["-i", esp.to_str().unwrap(), "::cmdline.txt"]), manifest.command_line);
    let gpt = succeed("sfdisk", &["--dump", board.to_str().unwrap()]);
    assert!(gpt.contains("wherry-data"), "{gpt}");
    let mbr = succeed("sfdisk", &["--label-nested", "dos", "--dump", board.to_str().unwrap()]);
    let esp = format!("start={:>12}, size={:>12}, type=e, bootable", 2048, 48 * MIB / 512);
    assert!(mbr.contains(&esp), "{mbr}");
}

#[test]
fn veritysetup_agrees_with_our_hash_tree_and_sees_one_flipped_byte() {
    let bench = Bench::new();
    let (template, manifest) = bench.assemble("template");
    let root = bench.extract(&template.join("disk.img"), &manifest, PartitionLabel::RootA);
    let blocks = data_blocks(&manifest);
    let offset = (blocks * 4096).to_string();
    let blocks = blocks.to_string();
    let file = root.to_str().unwrap().to_owned();
    let arguments =
        ["verify", "--no-superblock", "--salt=-", "--data-blocks", &blocks, "--hash-offset", &offset];
    let arguments = [&arguments[..], &[&file, &file, &manifest.root_hash]].concat();
    succeed("veritysetup", &arguments);
    let mut bytes = std::fs::read(&root).unwrap();
    bytes[300_000] ^= 1;
    std::fs::write(&root, bytes).unwrap();
    assert!(!tool("veritysetup", &arguments).status.success());
}

/// The number of data blocks in the command line's table.
fn data_blocks(manifest: &Manifest) -> u64 {
    let (_, rest) = manifest.command_line.split_once(" 4096 4096 ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_tree_of_several_levels_is_what_veritysetup_makes() {
    let bench = Bench::new();
    // 300 blocks need three hash blocks, and one above them.
    let data: Vec<u8> = (0..300 * 4096u32).map(|i| (i % 253) as u8).collect();
    let ours = Verity::over(&data);
    let (file, tree) = (bench.path("data"), bench.path("tree"));
    std::fs::write(&file, &data).unwrap();
    let arguments = ["format", "--no-superblock", "--salt=-", "--uuid=00000000-0000-0000-0000-000000000000"];
    let text =
        succeed("veritysetup", &[&arguments[..], &[file.to_str().unwrap(), tree.to_str().unwrap()]].concat());
    let hash: String = ours.root_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(text.contains(&hash), "{text}");
    assert_eq!(ours.tree.len(), 4 * 4096);
    assert!(std::fs::read(tree).unwrap() == ours.tree);
}

#[test]
fn fsck_erofs_accepts_the_root_and_finds_the_program_in_it() {
    let bench = Bench::new();
    let (template, manifest) = bench.assemble("template");
    let root = bench.extract(&template.join("disk.img"), &manifest, PartitionLabel::RootA);
    let out = bench.path("tree");
    succeed("fsck.erofs", &[&format!("--extract={}", out.display()), root.to_str().unwrap()]);
    assert!(std::fs::read(out.join("sbin/init")).unwrap() == std::fs::read(bench.path("binary")).unwrap());
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config", "data", "dev", "etc", "proc", "run", "sbin", "sys", "tmp", "var"]);
}

#[test]
fn fsck_and_mtools_accept_both_fat_partitions() {
    let bench = Bench::new();
    let (template, manifest) = bench.assemble("template");
    let board = bench.path("board");
    personalise(&template, &board, &BoardConfig::new(TOML).unwrap(), 20 * MIB).unwrap();
    let config = bench.extract(&board, &manifest, PartitionLabel::Config);
    let esp = bench.extract(&board, &manifest, PartitionLabel::Esp);
    for image in [&config, &esp] {
        succeed("fsck.vfat", &["-n", image.to_str().unwrap()]);
    }
    assert_eq!(succeed("mtype", &["-i", config.to_str().unwrap(), "::wherry.toml"]), TOML);
    let copy = bench.path("copy");
    succeed("mcopy", &["-i", esp.to_str().unwrap(), "::wherry/kernel-a", copy.to_str().unwrap()]);
    assert!(std::fs::read(copy).unwrap() == std::fs::read(bench.path("kernel")).unwrap());
}

#[test]
fn fsck_ext4_accepts_the_data_partition_and_the_file_is_sparse_and_private() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let (template, manifest) = bench.assemble("template");
    let board = bench.path("board");
    personalise(&template, &board, &BoardConfig::new(TOML).unwrap(), 4096 * MIB).unwrap();
    let start = manifest.partition(PartitionLabel::Data).unwrap().start;
    succeed("e2fsck", &["-f", "-n", &format!("{}?offset={start}", board.display())]);
    let metadata = std::fs::metadata(&board).unwrap();
    assert!(metadata.len() > 4096 * MIB);
    assert!(metadata.blocks() * 512 < 80 * MIB, "{} blocks", metadata.blocks());
    assert_eq!(metadata.mode() & 0o777, 0o600);
}

#[test]
fn impossible_boards_are_refused_in_one_sentence_and_leave_nothing() {
    let bench = Bench::new();
    let (template, _) = bench.assemble("template");
    let config = BoardConfig::new(TOML).unwrap();
    let board = bench.path("board");
    for bytes in [0, MIN_DATA_BYTES - 1, MAX_DATA_BYTES + 1, u64::MAX] {
        let error = personalise(&template, &board, &config, bytes).unwrap_err();
        assert!(matches!(error, DiskError::DataSize { .. }), "{error}");
    }
    assert!(matches!(BoardConfig::new("x".repeat(MAX_CONFIG_BYTES + 1)), Err(DiskError::TooLarge { .. })));
    std::fs::write(template.join("disk.img"), b"cut short").unwrap();
    assert!(personalise(&template, &board, &config, 20 * MIB).is_err());
    let left = std::fs::read_dir(bench.dir.path()).unwrap();
    assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with("board")));
}

#[test]
fn hostile_manifests_are_refused() {
    let bench = Bench::new();
    let (template, manifest) = bench.assemble("template");
    let reject = |change: &dyn Fn(&mut Manifest)| {
        let mut bad = manifest.clone();
        change(&mut bad);
        std::fs::write(template.join(MANIFEST_FILE), serde_json::to_vec(&bad).unwrap()).unwrap();
        assert!(matches!(Template::open(&template), Err(DiskError::Template { .. })), "{bad:?}");
    };
    reject(&|m| m.format += 1);
    reject(&|m| m.disk.name = "../disk.img".into());
    reject(&|m| m.kernel.name = "/etc/passwd".into());
    reject(&|m| m.partitions.truncate(4));
    reject(&|m| m.partitions.swap(1, 2));
    reject(&|m| m.partitions[1].start = u64::MAX);
    reject(&|m| m.partitions[2].start = 0);
    reject(&|m| m.disk.bytes = 1);
    std::fs::write(template.join(MANIFEST_FILE), b"{").unwrap();
    assert!(matches!(Template::open(&template), Err(DiskError::Manifest { .. })));
}

#[test]
fn a_program_too_large_for_the_slot_is_refused() {
    let binary = vec![1; (33 * MIB) as usize];
    let inputs = Inputs {
        arch: Arch::X86_64,
        role: BoardRole::Node,
        binary: &binary,
        kernel: b"",
        boot: &Boot::Extlinux,
        data_bytes: 64 * MIB,
    };
    assert!(matches!(Plan::new(&inputs), Err(DiskError::TooLarge { .. })));
}

#[test]
fn a_board_config_does_not_print_its_secrets() {
    let config = BoardConfig::new("secret_key = \"abc\"").unwrap();
    assert_eq!(format!("{config:?}"), "BoardConfig(18 bytes)");
    assert_ne!(Guid::derive(&[b"a"]), Guid::derive(&[b"b"]));
}
