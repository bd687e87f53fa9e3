//! Bounds of the OCI command line on the boards' own kernel, which has every controller in cgroup v2: a host may keep some in
//! version 1. The node's tests run in a guest.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use wherry_tests::given;
use wherry_tests::programs::{inside, libraries, passes_in_a_guest, same_place, stripped};

const PATIENCE: Duration = Duration::from_secs(240);
/// The initial RAM disk cannot be left with pivot_root(2), which containers do: everything moves to another file system.
const SCRIPT: &str =
    "mkdir /root-fs; mount -t tmpfs t /root-fs; mkdir /root-fs/proc /root-fs/sys /root-fs/dev
for each in /*; do case $each in /root-fs|/proc|/sys|/dev) ;; *) cp -a $each /root-fs/;; esac; done
for each in proc sys dev; do mount --move /$each /root-fs/$each; done
exec switch_root /root-fs /second
";
const SECOND: &str = "#!/bin/sh
mount -t cgroup2 c /sys/fs/cgroup; chmod 1777 /tmp
export PATH=/bin RUST_BACKTRACE=0
echo controllers $(cat /sys/fs/cgroup/cgroup.controllers)
/oci_cgroups && echo all of it passed || echo it failed
reboot -f
";

/// Everything that goes into the guest, by path: the tests look for the node's program where it was built.
fn files() -> BTreeMap<String, Vec<u8>> {
    let tests = given::test_program("oci_cgroups").unwrap();
    let program = tests.parent().unwrap().with_file_name("wherry-node");
    let libraries: Vec<PathBuf> =
        [&tests, &program].into_iter().flat_map(|one| libraries(one).unwrap()).collect();
    let mut files = same_place(&libraries).unwrap();
    files.insert(inside(&program), stripped(&program).unwrap());
    files.insert("oci_cgroups".to_owned(), stripped(&tests).unwrap());
    files.insert("second".to_owned(), SECOND.into());
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_hold_on_the_boards_own_kernel() {
    let console = passes_in_a_guest("oci", 512, &files(), SCRIPT, PATIENCE).await.unwrap();
    // With a controller missing, less would have been tested.
    let offered = console.lines().find_map(|line| line.strip_prefix("controllers ")).unwrap();
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        assert!(offered.split_whitespace().any(|name| name == controller), "no {controller} in {offered}");
    }
    assert!(console.contains("running 8 tests") && console.contains("8 passed"), "{console}");
}
