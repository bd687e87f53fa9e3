//! The node's tunnels on the boards' own kernel: its tests that need GRE, which this host's kernel may lack, run in a
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
/net_overlay --ignored --test-threads=1 && echo all of it passed || echo it failed
reboot -f
";

/// Everything that goes into the guest, by path.
fn files() -> BTreeMap<String, Vec<u8>> {
    let tests = given::test_program("net_overlay").unwrap();
    let tools = ["ip", "nft"].map(|name| tool(name).unwrap());
    let libraries: Vec<PathBuf> =
        tools.iter().chain([&tests]).flat_map(|program| libraries(program).unwrap()).collect();
    let mut files = same_place(tools.iter().chain(&libraries)).unwrap();
    files.insert("net_overlay".to_owned(), stripped(&tests).unwrap());
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_between_boards_on_their_own_kernel() {
    let console = passes_in_a_guest("overlay", 384, &files(), SCRIPT, PATIENCE).await.unwrap();
    // A filter that matches nothing passes as well.
    assert!(console.contains("running 9 tests") && console.contains("9 passed"), "{console}");
}
