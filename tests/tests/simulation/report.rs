//! Figures of one life, for people and for comparison.
use crate::cluster::Cluster;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use wherry_broker::record::{Key, Record};
use wherry_broker::state::Answer;
use wherry_protocol::message::{ContainerState, Reply};

#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) commits: u64,
    pub(crate) records: u64,
    pub(crate) last_commit_ms: u64,
    pub(crate) cuts: u64,
    pub(crate) partitions: u64,
    pub(crate) crashes: u64,
    pub(crate) reboots: u64,
    pub(crate) falls: u64,
    /// Questions that the broker took with it when it fell.
    pub(crate) lost: usize,
    kinds: BTreeMap<&'static str, Kind>,
}

#[derive(Default)]
struct Kind {
    asked: u64,
    done: u64,
    refused: BTreeMap<String, u64>,
    took_ms: Vec<u64>,
}

impl Figures {
    pub(crate) fn asked(&mut self, kind: &'static str) {
        self.kinds.entry(kind).or_default().asked += 1;
    }

    pub(crate) fn answered(&mut self, kind: &'static str, took_ms: u64, answer: &Answer) {
        let kind = self.kinds.entry(kind).or_default();
        match answer {
            Answer::Reply(Reply::Error(error)) => {
                *kind.refused.entry(format!("{:?}", error.code)).or_default() += 1
            }
            _ => {
                kind.done += 1;
                kind.took_ms.push(took_ms);
            }
        }
    }
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(0)
}

pub(crate) fn render(cluster: &Cluster) -> String {
    let (plan, figures) = (&cluster.plan, &cluster.figures);
    let mut text = format!(
        "seed {}: {} boards, {} people, {} s busy, {} s at rest\n",
        plan.seed,
        plan.boards,
        plan.people,
        plan.busy_ms / 1000,
        plan.rest_ms / 1000
    );
    writeln!(
        text,
        "  trouble     {} cuts, {} partitions, {} services crashed, {} boards rebooted, {} broker power cuts ({} requests lost)",
        figures.cuts, figures.partitions, figures.crashes, figures.reboots, figures.falls, figures.lost
    )
    .expect("a string");
    for (name, kind) in &figures.kinds {
        let mut took = kind.took_ms.clone();
        took.sort_unstable();
        let refused: Vec<String> =
            kind.refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
        let line = format!(
            "  {name:<11} {:>5} asked {:>5} done, {:>5} ms median {:>6} ms p99   {}",
            kind.asked,
            kind.done,
            percentile(&took, 50),
            percentile(&took, 99),
            refused.join(", ")
        );
        writeln!(text, "{}", line.trim_end()).expect("a string");
    }
    let records = |wanted: fn(&Key, &Record) -> bool| {
        cluster.store.iter().filter(|(key, record)| wanted(key, record)).count()
    };
    let running = records(
        |_, record| matches!(record, Record::Container(c) if matches!(c.state, ContainerState::Running { .. })),
    );
    writeln!(
        text,
        "  at rest     {} containers, {running} of them running, {} connections; {} commits of {} records",
        records(|key, _| matches!(key, Key::Container(_))),
        records(|key, _| matches!(key, Key::Link(_))),
        figures.commits,
        figures.records
    )
    .expect("a string");
    text
}

/// Compares with the file of that name beside this one; with WHERRY_BLESS set, writes it instead.
pub(crate) fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulation").join(name);
    if std::env::var_os("WHERRY_BLESS").is_some() {
        std::fs::write(&path, found).expect("the file can be written");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, wanted, "{name} differs; WHERRY_BLESS=1 accepts the change. Found:\n{found}");
}
