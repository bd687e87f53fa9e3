//! JSON forms of what the broker says. Field names are stable; the wire may change behind them.
use crate::signals;
use serde::Serialize;
use wherry_client::StoredLocation;
use wherry_protocol::message::{
    AccountInfo, ConnectionInfo, ContainerInfo, ContainerSpec, ContainerState, Drops, Event, ExitStatus,
    HealthReport, ImageInfo, NodeInfo, PublishedPort, RefusedAnswers, RuleInfo, StatusInfo,
};

/// A container's state, flat.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct State {
    pub(crate) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_ms: Option<u64>,
    /// As a shell reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) out_of_memory: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finished_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl State {
    fn ended(state: &'static str, status: ExitStatus, finished_ms: u64) -> Self {
        Self {
            state,
            exit_code: Some(status.shell_code()),
            signal: match status {
                ExitStatus::Signal(signal) => Some(signals::name(signal)),
                ExitStatus::Code(_) | ExitStatus::OutOfMemory => None,
            },
            out_of_memory: matches!(status, ExitStatus::OutOfMemory),
            finished_ms: Some(finished_ms),
            ..Self::default()
        }
    }

    pub(crate) fn of(state: &ContainerState) -> Self {
        match state {
            ContainerState::Pending => Self { state: "pending", ..Self::default() },
            ContainerState::Preparing => Self { state: "preparing", ..Self::default() },
            ContainerState::Running { pid, started_ms } => {
                Self { state: "running", pid: Some(*pid), started_ms: Some(*started_ms), ..Self::default() }
            }
            ContainerState::Exited { status, finished_ms } => Self::ended("exited", *status, *finished_ms),
            ContainerState::Restarting { status, finished_ms } => {
                Self::ended("restarting", *status, *finished_ms)
            }
            ContainerState::Failed(error) => {
                Self { state: "failed", error: Some(error.message.clone()), ..Self::default() }
            }
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Container<'a> {
    id: String,
    generation: u32,
    name: &'a str,
    account: String,
    image: &'a str,
    node: &'a str,
    node_index: u8,
    node_connected: bool,
    placement: &'a str,
    address: String,
    address6: String,
    #[serde(flatten)]
    state: State,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    paused: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    asleep: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'a HealthReport>,
    restarts: u32,
    created_seconds: u64,
    detached: bool,
    publish: &'a [PublishedPort],
}

impl<'a> Container<'a> {
    pub(crate) fn of(info: &'a ContainerInfo) -> Self {
        Self {
            id: info.id.to_string(),
            generation: info.generation.0,
            name: info.name.as_str(),
            account: info.account.to_string(),
            image: info.image.as_str(),
            node: info.node_name.as_str(),
            node_index: info.node.0,
            node_connected: info.node_connected,
            placement: &info.placement,
            address: info.address.to_string(),
            address6: info.address6.to_string(),
            state: State::of(&info.state),
            paused: info.condition.paused,
            asleep: info.condition.asleep,
            health: info.condition.health.as_ref(),
            restarts: info.restarts,
            created_seconds: info.created_seconds,
            detached: info.detached,
            publish: &info.publish,
        }
    }
}

/// A container with how it is run.
#[derive(Debug, Serialize)]
pub(crate) struct Inspected<'a> {
    #[serde(flatten)]
    container: Container<'a>,
    spec: &'a ContainerSpec,
    /// Packets that its firewall has dropped, by reason; while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<Drops>,
}

impl<'a> Inspected<'a> {
    pub(crate) fn of(info: &'a ContainerInfo, dropped: Option<Drops>) -> Self {
        Self { container: Container::of(info), spec: &info.spec, dropped }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Node<'a> {
    name: &'a str,
    index: u8,
    connected: bool,
    containers: u32,
    labels: std::collections::BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    facts: Option<NodeFacts<'a>>,
    #[serde(flatten)]
    load: Option<NodeLoad>,
}

#[derive(Debug, Serialize)]
struct NodeFacts<'a> {
    hostname: &'a str,
    architecture: &'a str,
    cpus: u16,
    memory_bytes: u64,
    kernel: &'a str,
    software: &'a str,
    /// New at each boot.
    boot_id: String,
    underlay: String,
    overlay: bool,
    limits: bool,
}

#[derive(Debug, Serialize)]
struct NodeLoad {
    memory_available_bytes: u64,
    load: f64,
    cpu_busy: f64,
    disk_free_bytes: u64,
    disk_bytes: u64,
    uptime_seconds: u64,
    /// Packets, by reason.
    dropped: Drops,
    /// Answers to LAN discovery, by reason.
    refused_answers: RefusedAnswers,
}

impl<'a> Node<'a> {
    pub(crate) fn of(info: &'a NodeInfo) -> Self {
        Self {
            name: info.name.as_str(),
            index: info.index.0,
            connected: info.connected,
            containers: info.containers,
            labels: info.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            facts: info.facts.as_ref().map(|facts| NodeFacts {
                hostname: &facts.hostname,
                architecture: &facts.architecture,
                cpus: facts.cpus,
                memory_bytes: facts.memory_bytes,
                kernel: &facts.kernel,
                software: &facts.software,
                boot_id: facts.boot_id.iter().map(|byte| format!("{byte:02x}")).collect(),
                underlay: facts.underlay.to_string(),
                overlay: facts.overlay,
                limits: facts.limits,
            }),
            load: info.load.map(|load| NodeLoad {
                memory_available_bytes: load.memory_available_bytes,
                load: f64::from(load.load_milli) / 1000.0,
                cpu_busy: f64::from(load.cpu_busy_milli) / 1000.0,
                disk_free_bytes: load.disk_free_bytes,
                disk_bytes: load.disk_bytes,
                uptime_seconds: load.uptime_seconds,
                dropped: load.dropped,
                refused_answers: load.refused_answers,
            }),
        }
    }
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// One changed path of a container.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) change: ChangeKind,
    pub(crate) path: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Image<'a> {
    name: &'a str,
    id: String,
    architecture: &'a str,
    size: u64,
    layers: usize,
    created_seconds: u64,
}

impl<'a> Image<'a> {
    pub(crate) fn of(info: &'a ImageInfo) -> Self {
        Self {
            name: info.name.as_str(),
            id: info.id.to_string(),
            architecture: &info.architecture,
            size: info.size,
            layers: info.manifest.layers.len(),
            created_seconds: info.created_seconds,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Account<'a> {
    id: String,
    label: &'a str,
    role: &'static str,
    key: String,
    created_seconds: u64,
    sessions: u32,
}

impl<'a> Account<'a> {
    pub(crate) fn of(info: &'a AccountInfo) -> Self {
        Self {
            id: info.id.to_string(),
            label: info.label.as_str(),
            role: info.role.as_str(),
            key: info.key.to_string(),
            created_seconds: info.created_seconds,
            sessions: info.sessions,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Status<'a> {
    location: &'a str,
    address: String,
    account: Account<'a>,
    software: &'a str,
    uptime_seconds: u64,
    now_seconds: u64,
}

impl<'a> Status<'a> {
    pub(crate) fn of(info: &'a StatusInfo, stored: &StoredLocation) -> Self {
        Self {
            location: info.location.as_str(),
            address: stored.address.to_string(),
            account: Account::of(&info.account),
            software: &info.software,
            uptime_seconds: info.uptime_seconds,
            now_seconds: info.now_seconds,
        }
    }
}

/// A stored location, without its secret key.
#[derive(Debug, Serialize)]
pub(crate) struct Location<'a> {
    name: &'a str,
    default: bool,
    address: String,
    broker_key: String,
    key: String,
    account: String,
    role: &'static str,
    label: &'a str,
}

impl<'a> Location<'a> {
    pub(crate) fn of(stored: &'a StoredLocation, default: bool) -> Self {
        Self {
            name: stored.name.as_str(),
            default,
            address: stored.address.to_string(),
            broker_key: stored.broker.to_string(),
            key: stored.secret.public().to_string(),
            account: stored.account.to_string(),
            role: stored.role.as_str(),
            label: stored.label.as_str(),
        }
    }
}

/// What may connect to what, and the rules that some of it follows from.
#[derive(Debug, Serialize)]
pub(crate) struct Connections<'a> {
    connections: Vec<Connection<'a>>,
    rules: Vec<Rule<'a>>,
}

impl<'a> Connections<'a> {
    pub(crate) fn of(connections: &'a [ConnectionInfo], rules: &'a [RuleInfo]) -> Self {
        Self {
            connections: connections.iter().map(Connection::of).collect(),
            rules: rules.iter().map(Rule::of).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Rule<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    transport: wherry_protocol::message::Transport,
    connections: u32,
}

impl<'a> Rule<'a> {
    fn of(info: &'a RuleInfo) -> Self {
        let RuleInfo { from, to, port, transport, connections } = info;
        Self { from, to, port: *port, transport: *transport, connections: *connections }
    }
}

#[derive(Debug, Serialize)]
struct Connection<'a> {
    from: &'a str,
    from_id: String,
    to: &'a str,
    to_id: String,
    port: u16,
    transport: wherry_protocol::message::Transport,
}

impl<'a> Connection<'a> {
    fn of(info: &'a ConnectionInfo) -> Self {
        Self {
            from: info.from_name.as_str(),
            from_id: info.from.to_string(),
            to: info.to_name.as_str(),
            to_id: info.to.to_string(),
            port: info.port,
            transport: info.transport,
        }
    }
}

/// One line of the stream of events.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum EventLine<'a> {
    Container(Box<Container<'a>>),
    ContainerRemoved { id: String },
    Node { index: u8, connected: bool },
    Lost { count: u64 },
}

impl<'a> EventLine<'a> {
    pub(crate) fn of(event: &'a Event) -> Self {
        match event {
            Event::Container(info) => Self::Container(Box::new(Container::of(info))),
            Event::ContainerRemoved(id) => Self::ContainerRemoved { id: id.to_string() },
            Event::Node { index, connected } => Self::Node { index: index.0, connected: *connected },
            Event::Lost { count } => Self::Lost { count: *count },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::{ErrorCode, WireError};

    #[test]
    fn state_fields_are_stable() {
        let json = |state: &ContainerState| serde_json::to_string(&State::of(state)).unwrap();
        let exited = |status| ContainerState::Exited { status, finished_ms: 7 };
        for (state, text) in [
            (ContainerState::Pending, r#"{"state":"pending"}"#),
            (
                ContainerState::Running { pid: 5, started_ms: 6 },
                r#"{"state":"running","pid":5,"started_ms":6}"#,
            ),
            (exited(ExitStatus::Code(3)), r#"{"state":"exited","exit_code":3,"finished_ms":7}"#),
            (
                exited(ExitStatus::Signal(9)),
                r#"{"state":"exited","exit_code":137,"signal":"SIGKILL","finished_ms":7}"#,
            ),
            (
                exited(ExitStatus::OutOfMemory),
                r#"{"state":"exited","exit_code":137,"out_of_memory":true,"finished_ms":7}"#,
            ),
            (
                ContainerState::Failed(WireError::new(ErrorCode::StartFailed, "no")),
                r#"{"state":"failed","error":"no"}"#,
            ),
        ] {
            assert_eq!(json(&state), text);
        }
    }
}
