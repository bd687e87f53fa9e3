//! A board without a machine: a benchmark's program is its own supervisor and service, started from a read-only mount.
use super::{Part, Words};
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use wherry_init::SupervisorConfig;
use wherry_node::container::{child, exec};

/// What a service leaves below the supervisor's directory when all went well, and when it has begun.
const FINISHED: &str = "finished";
const BEGUN: &str = "begun";
/// A benchmark may compute for long before it has a runtime, which sends heartbeats.
const PATIENCE_MS: u64 = 3_600_000;

/// What the benchmark's `main` is. `parts` run one after the other, each on a board of its own; words that name parts choose
/// among them, and all words are passed on.
pub fn main(parts: &[Part]) -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next().unwrap_or_default().to_str().unwrap_or_default() {
        "init" => supervise(words),
        "serve" => serve(parts, &words.map(|word| word.into_string().unwrap()).collect::<Vec<_>>()),
        child::ARGUMENT | child::ARGUMENT_INIT => child::run().into(),
        exec::ARGUMENT => exec::run().into(),
        _ => run_all(parts, &std::env::args().skip(1).collect::<Vec<_>>()),
    }
}

fn supervise(words: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let config = SupervisorConfig::new("bench", "serve").with_copy(child::ARGUMENT, child::run);
    let mut config = config.with_arguments(words).unwrap();
    config.timing.first_heartbeat_ms = PATIENCE_MS;
    config.timing.watchdog_patience_ms = PATIENCE_MS;
    wherry_init::run(config)
}

/// `cargo test --all-targets` runs benchmarks too, without a word that it passes on here.
fn run_all(parts: &[Part], words: &[String]) -> ExitCode {
    if !words.iter().any(|word| word == "--bench") {
        return ExitCode::SUCCESS;
    }
    only_cgroup_v2();
    let named = |part: &Part| words.iter().any(|word| word == part.0);
    let all = !parts.iter().any(named);
    let good = parts.iter().filter(|part| all || named(part)).all(|part| run(part.0, words));
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(part: &str, words: &[String]) -> bool {
    let base = tempfile::tempdir().unwrap();
    let board = base.path().join("board");
    read_only(&board);
    let out = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let mut command = Command::new(board.join("bench"));
    let root = base.path().join("root");
    command.args(["init", "--process", "--root"]).arg(&root).args(["--", part]).args(words);
    let status = command.stdin(Stdio::null()).stderr(out).status().unwrap();
    // Or the directory could not be removed.
    rustix::mount::unmount(&board, rustix::mount::UnmountFlags::DETACH).unwrap();
    status.success() && root.join(FINISHED).exists()
}

/// This program on a mount of its own, as a board's root.
fn read_only(board: &Path) {
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    fs::create_dir(board).unwrap();
    fs::copy(std::env::current_exe().unwrap(), board.join("bench")).unwrap();
    mount_bind(board, board).unwrap();
    mount_remount(board, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
}

/// Runs one part and has the supervisor end. One that fails is started again, and then ends everything.
fn serve(parts: &[Part], words: Words<'_>) -> ExitCode {
    let environment = wherry_init::environment::Environment::inherited().unwrap();
    let root = environment.dirs.root;
    if fs::File::create_new(root.join(BEGUN)).is_ok() {
        let (_, part) =
            parts.iter().find(|(name, _)| words.first().is_some_and(|word| word == name)).unwrap();
        part(words);
        fs::write(root.join(FINISHED), "").unwrap();
    }
    nix::sys::signal::kill(nix::unistd::getppid(), nix::sys::signal::Signal::SIGTERM).unwrap();
    // Until the supervisor ends this too.
    loop {
        std::thread::park();
    }
}

/// crun refuses a machine that has both versions of cgroups mounted: in a mount namespace of this process there is one.
fn only_cgroup_v2() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::unmount("/sys/fs/cgroup", rustix::mount::UnmountFlags::DETACH).unwrap();
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
}
