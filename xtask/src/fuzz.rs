//! A short run of every fuzz target, where there is a nightly compiler. The same decoders meet random input in
//! `cargo test` on any compiler; this one is guided by coverage.
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TaskError;
use crate::exec;
use crate::project::Project;
use crate::suites::cargo_tool;

/// This version everywhere.
const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Seconds for each target among the tests: enough to notice that one has rotted or that a limit is gone.
pub(crate) const SMOKE_SECONDS: u32 = 10;
/// A target that wants more is a finding.
const MEMORY_MIB: u32 = 1024;

/// Runs each for `seconds`.
pub(crate) fn run(project: &Project, seconds: u32) -> Result<(), TaskError> {
    let nightly = exec::output(Command::new("rustup").args(["toolchain", "list"]));
    if !nightly.is_ok_and(|list| list.lines().any(|line| line.starts_with("nightly"))) {
        println!(
            "fuzz: no nightly compiler here (`rustup toolchain install nightly`), so only the tests' own random input"
        );
        return Ok(());
    }
    let tool = cargo_tool(project, "cargo-fuzz", CARGO_FUZZ_VERSION)?;
    directories(project).iter().try_for_each(|directory| run_in(project, &tool, directory, seconds))
}

/// The crates' fuzz directories.
fn directories(project: &Project) -> Vec<PathBuf> {
    let crates = ["protocol", "images"].map(|name| project.root.join(name).join("fuzz"));
    crates.into_iter().filter(|directory| directory.join("Cargo.toml").is_file()).collect()
}

fn fuzz(project: &Project, tool: &Path, action: &str, directory: &Path) -> Command {
    let mut command = Command::new(tool);
    // Found by name in the path, `cargo` and `rustc` are rustup's and follow this variable.
    command
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env_remove("CARGO")
        .env("CARGO_TARGET_DIR", project.target.join("fuzz"));
    command.current_dir(&project.root).args(["fuzz", action, "--fuzz-dir"]).arg(directory);
    command
}

fn run_in(project: &Project, tool: &Path, directory: &Path, seconds: u32) -> Result<(), TaskError> {
    let list = exec::output(&mut fuzz(project, tool, "list", directory))?;
    for target in list.lines() {
        println!("fuzz: {target} for {seconds} s");
        let limits = [format!("-max_total_time={seconds}"), format!("-rss_limit_mb={MEMORY_MIB}")];
        exec::output(fuzz(project, tool, "run", directory).arg(target).arg("--").args(limits))?;
    }
    Ok(())
}
