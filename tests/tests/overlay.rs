//! Tunnels and VLANs on the boards' own kernel: the tests that need GRE or 802.1Q, which this host's kernel may lack, run in a
//! guest, with the tools they use.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use wherry_tests::given;
use wherry_tests::programs::{libraries, passes_in_a_guest, same_place, stripped, tool};

/// The tests wait for things that must not happen, each for seconds.
const PATIENCE: Duration = Duration::from_secs(240);
const SCRIPT: &str = "mkdir -p /run; mount -t tmpfs t /run; mount -t tmpfs t /tmp
export PATH=/usr/sbin:/sbin:/bin RUST_BACKTRACE=0
/NAME --ignored --test-threads=1 && echo all of it passed || echo it failed
reboot -f
";

/// Everything that goes into the guest, by path.
fn files(name: &str) -> BTreeMap<String, Vec<u8>> {
    let tests = given::test_program(name).unwrap();
    let tools = ["ip", "nft"].map(|name| tool(name).unwrap());
    let libraries: Vec<PathBuf> =
        tools.iter().chain([&tests]).flat_map(|program| libraries(program).unwrap()).collect();
    let mut files = same_place(tools.iter().chain(&libraries)).unwrap();
    files.insert(name.to_owned(), stripped(&tests).unwrap());
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_between_boards_on_their_own_kernel() {
    pass("net_overlay", 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vlans_on_the_boards_own_kernel() {
    pass("board_network", 2).await;
}

async fn pass(name: &str, tests: usize) {
    let script = SCRIPT.replace("NAME", name);
    let console = passes_in_a_guest(name, 384, &files(name), &script, PATIENCE).await.unwrap();
    // A filter that matches nothing passes as well.
    let all = [format!("running {tests} tests"), format!("{tests} passed")];
    assert!(all.iter().all(|line| console.contains(line)), "{console}");
}
