//! The node's tunnels on the boards' own kernel: its tests that need GRE, which this host's kernel may lack, run in a
//! guest, with the tools they use.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use wherry_images::disk::Arch;
use wherry_qemu::{Host, Machine, Running, accelerator_for};
use wherry_tests::given;
use wherry_tests::guest::bare_initrd;

/// The tests wait for things that must not happen, each for seconds.
const PATIENCE: Duration = Duration::from_secs(240);
const SCRIPT: &str = "mkdir -p /run; mount -t tmpfs t /run; mount -t tmpfs t /tmp
export PATH=/usr/sbin:/sbin:/bin RUST_BACKTRACE=0
/net_overlay --ignored --test-threads=1 && echo all of it passed || echo it failed
reboot -f
";

/// Where a tool of this host is.
fn tool(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .map(|directory| Path::new(directory).join(name))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not installed: `cargo xtask setup` does that"))
}

/// The libraries and the loader that a program needs, as its loader says.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    paths.collect()
}

fn stripped(program: &Path, directory: &Path) -> PathBuf {
    let to = directory.join("net_overlay");
    let status = Command::new("strip").arg("-o").arg(&to).arg(program).status().unwrap();
    assert!(status.success(), "strip {}", program.display());
    to
}

/// Everything that goes into the guest, by path.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let tests = given::test_program("net_overlay").unwrap();
    let tools = ["ip", "nft"].map(tool);
    let libraries: Vec<PathBuf> =
        tools.iter().chain([&tests]).flat_map(|program| libraries(program)).collect();
    let inside = |path: &Path| path.to_str().unwrap().trim_start_matches('/').to_owned();
    let read = |path: &Path| std::fs::read(path).unwrap();
    let same_place = tools.iter().chain(&libraries).map(|path| (inside(path), read(path)));
    same_place.chain([("net_overlay".to_owned(), read(&stripped(&tests, directory)))]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_between_boards_on_their_own_kernel() {
    let arch = given::host_arch().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("initrd");
    let archive = bare_initrd(&given::busybox(arch).unwrap(), &files(directory.path()), SCRIPT);
    std::fs::write(&path, archive).unwrap();
    let machine = Machine {
        name: "overlay".into(),
        arch: match arch {
            Arch::X86_64 => wherry_qemu::Arch::X86_64,
            Arch::Aarch64 => wherry_qemu::Arch::Aarch64,
        },
        cpus: 1,
        memory_mib: 384,
        kernel: given::kernel(arch).unwrap(),
        initrd: Some(path),
        append: "quiet".into(),
        disks: Vec::new(),
        nics: Vec::new(),
        console: directory.path().join("console"),
    };
    let accelerator = accelerator_for(machine.arch, &machine.kernel).await;
    let mut guest = Running::start(&machine, accelerator, &Host::detect()).await.unwrap();
    let ended = guest.expect("all of it passed", PATIENCE).await;
    let console = std::fs::read_to_string(&machine.console).unwrap();
    assert!(ended.is_ok(), "{ended:?}\n{console}");
    // A filter that matches nothing passes as well.
    assert!(console.contains("running 5 tests") && console.contains("5 passed"), "{console}");
    guest.quit().await.unwrap();
}
