//! How well a container that runs is: paused, asleep, healthy; and how that is found out.
use serde::{Deserialize, Serialize};
use std::fmt;

/// What else is to be said of a container whose process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its processes are frozen (cgroup v2 `cgroup.freeze`).
    pub paused: bool,
    /// All is set up, and its program waits to be started.
    pub asleep: bool,
    /// What its health check says; `None` if it has none.
    pub health: Option<HealthReport>,
}

/// The outcome of the last health checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// In one word.
    pub health: Health,
    /// Failures in a row.
    pub failures: u32,
    /// What the last check that changed anything had to say; at most [`HealthReport::MAX_OUTPUT_BYTES`].
    pub output: String,
}

impl HealthReport {
    /// Enough for a sentence; it is kept for every container in the broker's memory.
    pub const MAX_OUTPUT_BYTES: usize = 256;

    /// The beginning of what a check has to say, as much as is kept; without control characters but ends of lines.
    #[must_use]
    pub fn kept(words: &str) -> String {
        let mut bytes = 0;
        let fits = |c: &char| {
            bytes += c.len_utf8();
            bytes <= Self::MAX_OUTPUT_BYTES
        };
        words.chars().filter(|c| !c.is_control() || *c == '\n').take_while(fits).collect()
    }
}

/// In one word. As Docker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No check has succeeded yet, and failures do not count yet.
    Starting,
    /// The last check succeeded, or not enough have failed since.
    Healthy,
    /// So many checks in a row failed that it counts as broken.
    Unhealthy,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// A question to a container, whose answer is yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Does this program, started in it, exit with code 0?
    Exec(Vec<String>),
    /// Does it accept connections on this port?
    Tcp {
        /// Of the container.
        port: u16,
    },
    /// Does it answer `GET` of this path with status 200 (RFC 9110 §15.3.1)?
    Http {
        /// Of the container.
        port: u16,
        /// With the slash it begins with.
        path: String,
    },
}

impl Probe {
    /// Words for the shell of the container.
    #[must_use]
    pub fn shell(line: &str) -> Self {
        Self::Exec(["/bin/sh", "-c", line].map(str::to_owned).to_vec())
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec(command) => write!(f, "`{}`", command.join(" ")),
            Self::Tcp { port } => write!(f, "port {port}"),
            Self::Http { port, path } => write!(f, "http port {port} {path}"),
        }
    }
}

/// When a container is asked how it is, and what follows from the answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The question; the image's own if none is given.
    pub probe: Option<Probe>,
    /// From one check to the next, in milliseconds; the image's or 30 s otherwise.
    pub interval_ms: Option<u32>,
    /// How long an answer may take, in milliseconds; the image's or 30 s otherwise.
    pub timeout_ms: Option<u32>,
    /// So many failures in a row make it unhealthy; the image's or 3 otherwise.
    pub retries: Option<u32>,
    /// So long after its start failures do not count, in milliseconds; the image's or 0 otherwise.
    pub start_period_ms: Option<u32>,
    /// From one check to the next during that time, in milliseconds; the image's or 5 s otherwise.
    pub start_interval_ms: Option<u32>,
    /// What becomes of an unhealthy container.
    pub on_failure: OnUnhealthy,
}

/// What becomes of an unhealthy container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnhealthy {
    /// It is only told.
    #[default]
    Tell,
    /// It is killed; its restart policy may start it again.
    Kill,
}
