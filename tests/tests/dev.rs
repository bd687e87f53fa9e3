//! `wherry dev` as a person uses it: up, look, break, keep, up again, down; and nothing is left.
use std::path::Path;
use std::time::Duration;
use wherry_tests::{Failure, Wherry, ensure, given, wait};

struct Person {
    home: tempfile::TempDir,
    cli: Wherry,
}

impl Person {
    fn new() -> Result<Self, Failure> {
        let home = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
        let cli = Wherry::new(given::wherry()?, home.path().to_owned());
        Ok(Self { home, cli })
    }

    fn state(&self) -> std::path::PathBuf {
        self.home.path().join("state/wherry/dev/lab")
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // After a failure the machines must not stay.
        if self.state().exists() {
            drop(self.cli.run(&["dev", "down", "lab"]));
        }
    }
}

#[test]
fn a_cluster_goes_up_and_down_and_up_again() {
    if let Err(failure) = up_and_down() {
        panic!("{failure}");
    }
}

fn up_and_down() -> Result<(), Failure> {
    let person = Person::new()?;
    let cli = &person.cli;
    let images = given::artifacts()?.display().to_string();
    let up = ["dev", "up", "lab", "--nodes", "1", "--images", &images];
    cli.ok(&up)?;
    cli.refused(&up, "running")?;
    ensure(cli.ok(&["locations"])?.contains("lab"), || "the cluster was not joined".into())?;
    cli.ok(&["image", "push", &given::fixture(given::host_arch()?, "client.tar")?.display().to_string()])?;
    let pids = machines(cli)?;
    ensure(cli.ok(&["dev", "status"])?.contains("lab"), || "`dev status` does not list it".into())?;
    ensure(cli.ok(&["dev", "console", "node1", "--cluster", "lab"])?.contains("node"), || {
        "an empty console".into()
    })?;
    cli.refused(&["dev", "boot", "node1", "--cluster", "lab"], "running")?;
    cli.refused(&["dev", "boot", "node9", "--cluster", "lab"], "node9")?;
    // What is not a test image does not crash on request.
    cli.refused(&["debug", "crash-node", "node1"], "test")?;
    cli.ok(&["dev", "down", "lab", "--keep"])?;
    gone(&pids)?;
    cli.refused(&["dev", "status", "lab"], "no cluster")?;
    cli.refused(&["dev", "up", "lab", "--nodes", "3", "--images", &images], "other options")?;
    cli.ok(&["dev", "up", "lab"])?;
    ensure(cli.ok(&["images"])?.contains("client"), || "the kept cluster lost its images".into())?;
    let pids = machines(cli)?;
    cli.ok(&["dev", "down", "lab"])?;
    gone(&pids)?;
    ensure(!person.state().exists(), || "the disks are still there".into())?;
    ensure(!cli.ok(&["locations"])?.contains("lab"), || "the location is still there".into())?;
    cli.refused(&["dev", "down", "lab"], "no cluster").map(drop)
}

fn machines(cli: &Wherry) -> Result<Vec<u64>, Failure> {
    let report = cli.json(&["dev", "status", "lab"])?;
    let pids: Vec<u64> = report["machines"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|machine| machine["pid"].as_u64())
        .collect();
    ensure(pids.len() == 2, || format!("not two machines run: {report}"))?;
    Ok(pids)
}

fn gone(pids: &[u64]) -> Result<(), Failure> {
    wait::until("the end of all machines", Duration::from_secs(10), || {
        let left: Vec<&u64> = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
}

#[test]
fn wishes_that_cannot_be_are_refused_and_leave_nothing() {
    let person = Person::new().unwrap();
    let images = given::artifacts().unwrap().display().to_string();
    for (options, word) in [
        (&["--nodes", "0"][..], "nodes"),
        (&["--memory", "1"], "memory"),
        (&["--arch", "vax"], "vax"),
        (&["--images", "/nonexistent"], "/nonexistent"),
    ] {
        let mut command = vec!["dev", "up", "lab", "--images", &images];
        if options.contains(&"--images") {
            command.truncate(3);
        }
        command.extend(options);
        person.cli.refused(&command, word).unwrap();
        assert!(!person.state().exists(), "{command:?} left something");
    }
}
