//! The broker's program reaches its own directory and nothing else.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn broker(root: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wherry-broker"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--enrol-listen", "127.0.0.1:0", "--root"]).arg(root);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_directory_that_leads_elsewhere_is_out_of_reach() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = root.path().join("data/broker");
    fs::create_dir_all(&data).unwrap();
    symlink(elsewhere.path(), data.join("blobs")).unwrap();
    let output = broker(root.path()).wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("blobs") && told.contains("ermission denied"), "{told}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_broker_that_serves_is_confined_in_every_thread() {
    let root = tempfile::tempdir().unwrap();
    let mut child = broker(root.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serves = lines.any(|line| line.unwrap().contains("serves sessions"));
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap();
    let threads: Vec<String> = threads.map(|thread| status(thread.unwrap())).collect();
    child.kill().unwrap();
    let told = child.wait_with_output().unwrap();
    assert!(serves, "{told:?}");
    assert!(threads.len() > 2, "{threads:?}");
    // The kernel does not tell whether a thread has a Landlock domain; this comes with one, and here from nowhere else.
    assert!(threads.iter().all(|status| status.contains("NoNewPrivs:\t1")), "{threads:?}");
    let mode = fs::metadata(root.path().join("data/broker")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "others may look into the broker's directory");
}
