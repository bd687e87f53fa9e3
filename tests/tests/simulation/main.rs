//! Tier 1: a whole cluster in one thread. The broker's and the boards' real decisions, on a network that delays, cuts and
//! half-opens connections, with processes that die, services that crash, boards and brokers that lose power.
//!
//! The same seed gives the same life; its figures are compared with `figures.txt`. `WHERRY_BLESS=1` accepts a change.
mod board;
mod check;
mod cluster;
mod dice;
mod people;
mod report;

use cluster::{Cluster, Plan};

#[test]
fn a_cluster_in_trouble_comes_to_rest_as_it_should() {
    let mut report = String::new();
    for seed in 1..=2 {
        let mut cluster = Cluster::new(Plan { seed, ..Plan::TROUBLE });
        cluster.live();
        check::at_rest(&cluster);
        report.push_str(&report::render(&cluster));
    }
    report::compare("figures.txt", &report);
}

#[test]
fn a_cluster_in_peace_answers_everything_and_loses_nothing() {
    let mut cluster = Cluster::new(Plan { seed: 1, ..Plan::PEACE });
    cluster.live();
    check::at_rest(&cluster);
    check::everything_answered(&cluster);
    report::compare("peace.txt", &report::render(&cluster));
}

#[test]
fn an_idle_cluster_writes_nothing() {
    let mut cluster = Cluster::new(Plan { seed: 1, people: 0, ..Plan::PEACE });
    cluster.live();
    assert!(cluster.figures.last_commit_ms < 10_000, "written at {} ms", cluster.figures.last_commit_ms);
}
