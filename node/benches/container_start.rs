//! From "start this" to "it has ended", for a program that does nothing: the node's runtime next to Debian's crun and
//! runc with the same root directory, and next to what the kernel alone takes (`bare.c`). In turns, so that whatever else
//! the machine does disturbs all alike.
//! `cargo bench -p wherry-node --bench container_start [-- RUNS] [bare|wherry|crun|runc …]`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "ground/mod.rs"]
mod ground;
#[path = "../tests/support/mod.rs"]
mod support;

use ground::{CRUN, Ground, Peer, RUNC, Times, Words, bundle};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

/// Bare is the kernel alone.
const NAMES: [&str; 4] = ["bare", "wherry", "crun", "runc"];
const RUNS: u64 = 100;

fn main() -> ExitCode {
    ground::main(&[("start", start)])
}

fn start(words: Words<'_>) {
    let runs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(RUNS);
    let named = || words.iter().filter(|word| NAMES.contains(&word.as_str()));
    let wanted = |name: &str| named().count() == 0 || named().any(|word| word == name);
    let mut ground = Ground::new("start");
    let bundle = bundle(ground.base.path(), "bundle", &["/bin/true"]);
    let oci = |peer: Peer, id: u64| peer.ok(&["run", "--bundle", &bundle, &format!("wherry-bench-{id}")]);
    let mut bare = Bare::start(ground.base.path());
    let mut times: [Times; 4] = Default::default();
    for id in 1..=runs {
        let mut once = |place: usize, run: &mut dyn FnMut() -> Duration| {
            if wanted(NAMES[place]) {
                times[place].push(run());
            }
        };
        once(0, &mut || bare.once());
        once(1, &mut || ground.start_to_end(id));
        once(2, &mut || oci(CRUN, id));
        once(3, &mut || oci(RUNC, id));
    }
    print(&times);
}

fn print(times: &[Times; 4]) {
    let ours = Some(&times[1]).filter(|times| !times.is_empty()).map(Times::median);
    for (name, times) in NAMES.into_iter().zip(times).filter(|(_, times)| !times.is_empty()) {
        let ratio = ours.map(|ours| format!("; {:5.2} x wherry", times.median() / ours));
        println!("{name:7} start to end of `true`: {}{}", times.shown(), ratio.unwrap_or_default());
    }
}

/// The kernel's share.
struct Bare {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Bare {
    fn start(base: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bare.c");
        let program = base.join("bare");
        let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(source).status();
        assert!(built.unwrap().success(), "cc failed");
        let directory = |name: &str| {
            let path: PathBuf = base.join("bare-").join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let mut child = Command::new(&program)
            .args([base.join("root"), directory("upper"), directory("work"), directory("mounted")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn once(&mut self) -> Duration {
        self.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        Duration::from_nanos(line.trim().parse().expect("bare.c failed"))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}
