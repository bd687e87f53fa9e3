//! Many idle containers on one node: how fast they come, what each costs in memory, and one more process in one of them;
//! next to Debian's crun and runc with the same root directory, in turns.
//! `cargo bench -p wherry-node --bench container_load`, as root.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]
#[path = "ground/account.rs"]
mod account;
#[path = "ground/mod.rs"]
mod ground;
#[path = "../tests/support/mod.rs"]
mod support;

use account::{Account, Usage, pss_kib};
use ground::{CRUN, Ground, Peer, RUNC, Times, Words, bundle};
use std::process::ExitCode;
use std::time::Instant;
use support::spec;

/// Idle containers at once, of each runtime; so many of one, then so many of the other.
const MANY: u64 = 200;
const BLOCK: u64 = 50;
const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];
const EXECS: u64 = 100;

fn main() -> ExitCode {
    ground::main(&[("load", load)])
}

fn load(_words: Words<'_>) {
    // Everything that is started counts here, the containers too.
    let account = Account::open("wherry-bench-all");
    let ground = Ground::new("load");
    let bundle = bundle(ground.base.path(), "bundle", &SLEEP);
    // The layer is unpacked, and both programs are in memory.
    warm_up(&ground, &bundle);
    let used = || account.as_ref().map(|account| account.usage(&ground.cgroup)).unwrap_or_default();
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for first in (0..MANY).step_by(BLOCK as usize) {
        let ids = first..first + BLOCK;
        ours.add(&used, ids.clone(), |id| drop(ground.start(id, spec(&SLEEP))));
        theirs.add(&used, ids, |id| {
            CRUN.ok(&["run", "--detach", "--bundle", &bundle, &name(id)]);
        });
    }
    println!("{MANY} idle containers of wherry: start of one {}", ours.times.shown());
    println!("{MANY} idle containers of crun:   start of one {}", theirs.times.shown());
    println!(
        "wherry {:.0} starts a second, crun {:.0}; the last {BLOCK} took {:.2} x the first {BLOCK}",
        ours.rate(),
        theirs.rate(),
        ours.blocks[ours.blocks.len() - 1] / ours.blocks[0]
    );
    memory(&ours, &theirs);
    exec(&ground, &bundle);
    (0..MANY).for_each(|id| {
        ground.remove(id);
        CRUN.ok(&["delete", "--force", &name(id)]);
    });
}

fn name(id: u64) -> String {
    format!("wherry-bench-idle-{id}")
}

fn warm_up(ground: &Ground, bundle: &str) {
    const WARM: u64 = 1_000_000;
    drop(ground.start(WARM, spec(&SLEEP)));
    ground.remove(WARM);
    CRUN.ok(&["run", "--detach", "--bundle", bundle, &name(WARM)]);
    CRUN.ok(&["delete", "--force", &name(WARM)]);
}

/// What one runtime's containers took.
#[derive(Default)]
struct Side {
    times: Times,
    /// Seconds of each block.
    blocks: Vec<f64>,
    usage: Usage,
    pss_kib: i64,
}

impl Side {
    fn add(&mut self, used: &impl Fn() -> Usage, ids: std::ops::Range<u64>, start: impl Fn(u64)) {
        let (used_before, pss) = (used(), pss_kib());
        let block = Instant::now();
        for id in ids {
            let before = Instant::now();
            start(id);
            self.times.push(before.elapsed());
        }
        self.blocks.push(block.elapsed().as_secs_f64());
        self.usage = self.usage + (used() - used_before);
        self.pss_kib += pss_kib() - pss;
    }

    fn rate(&self) -> f64 {
        MANY as f64 / self.blocks.iter().sum::<f64>()
    }

    fn each(&self, kib: i64) -> f64 {
        kib as f64 / MANY as f64
    }
}

fn memory(ours: &Side, theirs: &Side) {
    println!(
        "memory per idle container, of supervisor and service (PSS): {:.1} KiB",
        ours.each(ours.pss_kib)
    );
    if ours.usage == Usage::default() {
        println!("memory of the kernel: the cgroups of this machine do not count it");
        return;
    }
    for (name, side) in [("wherry", ours), ("crun", theirs)] {
        let Usage { total_kib, kernel_kib } = side.usage;
        let (total, kernel) = (side.each(total_kib), side.each(kernel_kib));
        println!(
            "memory per idle container, all in: {name:6} {total:6.1} KiB, of which the kernel {kernel:6.1} KiB"
        );
    }
    let more = ours.each(ours.usage.total_kib - theirs.usage.total_kib);
    println!("so a container of wherry takes {more:.1} KiB more than one that nobody looks after");
}

fn exec(ground: &Ground, bundle: &str) {
    const HOST: u64 = 2_000_000;
    let instance = ground.start(HOST, spec(&SLEEP));
    let [crun, runc] = [CRUN, RUNC].map(|peer: Peer| {
        let name = format!("wherry-bench-exec-{}", peer.program);
        peer.ok(&["run", "--detach", "--bundle", bundle, &name]);
        name
    });
    let mut times: [Times; 3] = Default::default();
    for _ in 0..EXECS {
        times[0].push(ground.exec(&instance));
        times[1].push(CRUN.ok(&["exec", &crun, "/bin/true"]));
        times[2].push(RUNC.ok(&["exec", &runc, "/bin/true"]));
    }
    for (name, of) in ["wherry", "crun", "runc"].into_iter().zip(&times) {
        let ratio = of.median() / times[0].median();
        println!("{name:6} exec of `true`, start to end: {}; {ratio:5.2} x wherry", of.shown());
    }
    CRUN.ok(&["delete", "--force", &crun]);
    RUNC.ok(&["delete", "--force", &runc]);
    ground.remove(HOST);
}
