//! PID 1 of a board: a supervisor and nothing else. It starts the service, restarts it with growing backoff, forks the
//! containers on the service's request and keeps their descriptors, reaps, feeds the watchdog and shuts down in order.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::expect_used)
)]

pub mod control;
