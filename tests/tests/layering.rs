//! The direction of dependencies between crates, where `unsafe` may stand, and how many packages we take in.
//!
//! The rules are data, the check is pure, and the last test shows that a broken rule is found.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Packages that a board's programs are made of, ours and those of build scripts and macros included: fewer than this.
const MAX_BOARD_PACKAGES: usize = 210;
/// Packages in `Cargo.lock`: fewer than this. The rest runs on laptops, or tests, or is named by an option that nobody takes:
/// the ACME client alone brings thirty of those.
const MAX_PACKAGES: usize = 430;

/// What a crate of ours may use.
struct Rule {
    name: &'static str,
    /// Crates of ours that it may name.
    may_use: &'static [&'static str],
    /// Crates that it must not reach, directly or through others.
    never: &'static [&'static str],
}

const RULES: [Rule; 10] = [
    // Usable on any machine, in a fuzzer, in a simulation: no runtime, no system calls.
    Rule { name: "wherry-protocol", may_use: &[], never: &["tokio", "nix", "rustix", "socket2"] },
    Rule { name: "wherry-images", may_use: &["wherry-protocol"], never: &["tokio", "nix"] },
    Rule { name: "wherry-sys", may_use: &[], never: &["tokio"] },
    // PID 1 is one thread: threads of a runtime would break fork, and a panic of theirs the board.
    Rule { name: "wherry-init", may_use: &["wherry-sys"], never: &["tokio"] },
    Rule { name: "wherry-net", may_use: &["wherry-protocol"], never: &["wherry-sys"] },
    Rule { name: "wherry-broker", may_use: BROKER, never: &["wherry-client", "wherry-qemu"] },
    Rule { name: "wherry-node", may_use: BOARD, never: &["wherry-client", "wherry-qemu"] },
    // Builds on macOS too.
    Rule {
        name: "wherry-client",
        may_use: &["wherry-images", "wherry-protocol", "wherry-qemu"],
        never: &["wherry-sys"],
    },
    Rule { name: "wherry-qemu", may_use: &[], never: &["nix"] },
    // Knows HTTP and nothing of containers.
    Rule { name: "wherry-endpoint", may_use: &[], never: &["nix", "smoltcp"] },
];

/// What the programs on boards share.
const BOARD: &[&str] = &["wherry-images", "wherry-init", "wherry-net", "wherry-protocol", "wherry-sys"];

/// The broker alone serves the web.
const BROKER: &[&str] =
    &["wherry-endpoint", "wherry-images", "wherry-init", "wherry-net", "wherry-protocol", "wherry-sys"];

/// These may use everything, and nobody them.
const TOPS: [&str; 2] = ["wherry-tests", "xtask"];

/// Who names whom, in normal and build dependencies, on every platform. Development dependencies do not count.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of our own crates, and the graph of everything.
fn read(metadata: &Value) -> (BTreeSet<String>, Graph) {
    let packages = metadata["packages"].as_array().unwrap();
    let name_of: BTreeMap<&str, &str> = packages
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let members = metadata["workspace_members"].as_array().unwrap();
    let ours = members.iter().map(|id| name_of[id.as_str().unwrap()].to_owned()).collect();
    let mut graph = Graph::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let uses = graph.entry(name_of[node["id"].as_str().unwrap()].to_owned()).or_default();
        let dependencies = node["deps"].as_array().unwrap().iter().filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
        });
        uses.extend(dependencies.map(|dependency| name_of[dependency["pkg"].as_str().unwrap()].to_owned()));
    }
    (ours, graph)
}

/// Everything that `name` reaches.
fn closure(graph: &Graph, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![name.to_owned()];
    while let Some(next) = todo.pop() {
        for used in graph.get(&next).into_iter().flatten() {
            if found.insert(used.clone()) {
                todo.push(used.clone());
            }
        }
    }
    found
}

/// Every broken rule, as a sentence.
fn violations(ours: &BTreeSet<String>, graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    let ruled = || RULES.iter().map(|rule| rule.name).chain(TOPS);
    for name in ours.iter().filter(|name| !ruled().any(|ruled| ruled == name.as_str())) {
        found.push(format!("{name} has no rule"));
    }
    for rule in &RULES {
        for used in graph.get(rule.name).into_iter().flatten().filter(|used| ours.contains(*used)) {
            if !rule.may_use.contains(&used.as_str()) {
                found.push(format!("{} must not use {used}", rule.name));
            }
        }
        let reached = closure(graph, rule.name);
        found.extend(
            rule.never
                .iter()
                .filter(|name| reached.contains(**name))
                .map(|name| format!("{} must not reach {name}", rule.name)),
        );
    }
    found
}

#[test]
fn crates_depend_in_one_direction_only() {
    let (ours, graph) = read(&metadata());
    assert!(RULES.iter().all(|rule| ours.contains(rule.name)), "a rule for a crate that is gone");
    assert_eq!(violations(&ours, &graph), Vec::<String>::new());
}

#[test]
fn the_check_finds_each_kind_of_violation() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let ours = set(&["wherry-init", "wherry-client", "wherry-protocol", "stray"]);
    let graph = Graph::from([
        ("wherry-init".into(), set(&["helper"])),
        ("helper".into(), set(&["tokio"])),
        ("wherry-protocol".into(), set(&["wherry-client"])),
    ]);
    assert_eq!(
        violations(&ours, &graph),
        [
            "stray has no rule",
            "wherry-protocol must not use wherry-client",
            "wherry-init must not reach tokio"
        ]
    );
}

/// What is compiled for a program of a board. The graph above has more: options of dependencies that nobody takes.
fn built(program: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p}"])
        .args(["--edges", "normal,build", "--target", "aarch64-unknown-linux-musl", "--package", program])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let packages = String::from_utf8(output.stdout).unwrap();
    // Without where they are, and that they were listed before.
    packages.lines().map(|line| line.split(" (").next().unwrap().to_owned()).collect()
}

#[test]
fn what_boards_run_stays_small() {
    for program in ["wherry-broker", "wherry-node"] {
        let packages = built(program).len();
        assert!(
            (50..MAX_BOARD_PACKAGES).contains(&packages),
            "{packages} packages make {program}, allowed are fewer than {MAX_BOARD_PACKAGES}"
        );
    }
}

#[test]
fn the_lock_file_stays_small() {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages = text.lines().filter(|line| *line == "[[package]]").count();
    assert!(
        (1..MAX_PACKAGES).contains(&packages),
        "{packages} packages, allowed are fewer than {MAX_PACKAGES}"
    );
}

/// Every Rust file below `dir`, build output left out.
fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != ".git") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code on which the keyword itself stands; lint names, comments and texts do not count.
fn lines_with_unsafe(source: &str) -> Vec<usize> {
    let keyword = ["un", "safe"].concat();
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let has = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == keyword)
            && !line.contains('"')
    };
    source.lines().enumerate().filter(|(_, line)| has(&code(line))).map(|(index, _)| index + 1).collect()
}

#[test]
fn the_keyword_is_found_in_code_only() {
    let keyword = ["un", "safe"].concat();
    let source =
        format!("fn f() {{\n    {keyword} {{ g() }}\n}}\n// {keyword}\n#![forbid({keyword}_code)]\n");
    assert_eq!(lines_with_unsafe(&source), [2]);
}

#[test]
fn memory_safety_is_argued_in_one_crate_only() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let inside = root().join("sys");
    let (sys, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| path.starts_with(&inside));
    let found = |files: Vec<PathBuf>| -> Vec<String> {
        files
            .into_iter()
            .flat_map(|path| {
                let lines = lines_with_unsafe(&std::fs::read_to_string(&path).unwrap());
                lines.into_iter().map(move |line| format!("{}:{line}", path.display()))
            })
            .collect()
    };
    assert!(!found(sys).is_empty(), "the search itself is broken");
    assert_eq!(found(others), Vec::<String>::new());
}
