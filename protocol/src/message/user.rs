//! What people ask the broker, and its replies.
use super::condition::{Condition, Probe};
use super::container::{
    ChangesQuery, ContainerSpec, ContainerState, ContainerStats, CopySpec, Descriptor, ExecSpec,
    ImageManifest, LogQuery, ProcessInfo, PublishedPort,
};
use super::endpoint::{AcmeSettings, DomainInfo, EndpointInfo, EndpointSpec};
use super::node::{NodeFacts, NodeLoad, Transport};
use crate::error::WireError;
use crate::id::{AccountId, ContainerId, Digest, Generation, Name, NodeIndex};
use crate::key::PublicKey;
use crate::token::Role;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// First message on a stream that a user opens. Each says which [`Reply`] a success gives;
/// `Reply::Error` is always possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Does nothing. `Done`.
    Ping,
    /// Who am I, where. `Status`.
    Status,
    /// Boards and their load. `Nodes`.
    Nodes,
    /// Which of these blobs does the broker lack for this account? `Missing`.
    MissingBlobs(Vec<Digest>),
    /// Sends a blob: `Done` when it may be sent (or `Blob` with its size if it is already there), then raw bytes of
    /// exactly `size`, then a second reply: `Done` once it is verified and on disk.
    PutBlob(Descriptor),
    /// Names an image whose blobs are all there. `Image`.
    PutImage {
        /// Its name.
        name: ImageName,
        /// `amd64` or `arm64`.
        architecture: String,
        /// What it consists of.
        manifest: ImageManifest,
    },
    /// This account's images. `Images`.
    Images,
    /// Forgets a name; blobs that nothing else needs go. `Done`.
    RemoveImage(ImageName),
    /// Creates and starts a container. `Container` as soon as it is placed; follow with `Wait` for its start.
    Run(Box<RunRequest>),
    /// This account's containers; everybody's for an admin who asks for all. `Containers`.
    Containers {
        /// Also other accounts' (admin only).
        all_accounts: bool,
    },
    /// One container. `Container`.
    Inspect(ContainerSelector),
    /// Waits until the container has left `Pending` and `Preparing` (`Started`) or ended (`Ended`). `Container`.
    Wait {
        /// Which.
        container: ContainerSelector,
        /// For what.
        until: WaitUntil,
    },
    /// Stops a container: its stop signal, then SIGKILL after the grace. `Container` when it has ended.
    Stop {
        /// Which.
        container: ContainerSelector,
        /// Seconds until SIGKILL; the container's own setting otherwise.
        grace_seconds: Option<u16>,
    },
    /// Starts a stopped container again, as a new generation. `Container`.
    Start(ContainerSelector),
    /// Removes a container. `Done` when nothing is left of it on its node (or the node is away: at once, it will be
    /// removed when it returns).
    Remove {
        /// Which.
        container: ContainerSelector,
        /// Also if it runs (SIGKILL).
        force: bool,
    },
    /// Sends a signal. `Done`.
    Signal {
        /// Which container.
        container: ContainerSelector,
        /// Signal number, 1 to 64.
        signal: u8,
    },
    /// Lets `from` connect to `to`. `Done` once both boards have applied it; again is the same as once.
    Connect(ConnectRequest),
    /// Takes that back, established flows included. `Done` once both boards have applied it.
    Disconnect(ConnectRequest),
    /// This account's connections. `Connections`.
    Connections,
    /// See [`super::RoutedRequest::Exec`].
    Exec {
        /// In this container.
        container: ContainerSelector,
        /// This process.
        spec: ExecSpec,
    },
    /// See [`super::RoutedRequest::Attach`].
    Attach(ContainerSelector),
    /// See [`super::RoutedRequest::Logs`].
    Logs {
        /// Of this container.
        container: ContainerSelector,
        /// Which part.
        query: LogQuery,
    },
    /// See [`super::RoutedRequest::Tunnel`].
    Tunnel {
        /// Into this container.
        container: ContainerSelector,
        /// To this port.
        port: u16,
        /// With this protocol.
        transport: Transport,
    },
    /// Makes a one-time token (admin only). `Token`.
    CreateToken {
        /// For whom.
        role: Role,
        /// Seconds until it expires, at most 30 days.
        lifetime_seconds: u32,
    },
    /// Accounts (admin only). `Accounts`.
    Accounts,
    /// Removes an account or a node with all it has (admin only). `Done`.
    RemoveAccount(AccountId),
    /// Test images only: makes a node's service abort (admin only). `Done`.
    CrashNode(NodeIndex),
    /// What happens from now on. `Done`, then [`Event`]s until the stream is closed.
    Events,
    /// Gives a container another name. `Container`.
    Rename {
        /// Which.
        container: ContainerSelector,
        /// Its new name; no other of this account may have it.
        name: Name,
    },
    /// See [`super::RoutedRequest::Stats`].
    Stats(ContainerSelector),
    /// See [`super::RoutedRequest::Processes`].
    Processes(ContainerSelector),
    /// See [`super::RoutedRequest::Copy`].
    Copy {
        /// Out of or into this container.
        container: ContainerSelector,
        /// What.
        copy: CopySpec,
    },
    /// See [`super::RoutedRequest::Pause`].
    Pause {
        /// Which.
        container: ContainerSelector,
        /// Whether to freeze it.
        paused: bool,
    },
    /// See [`super::RoutedRequest::Ready`].
    Ready {
        /// Whom.
        container: ContainerSelector,
        /// What; how its own health check judges otherwise.
        probe: Option<Probe>,
        /// How long, in milliseconds.
        timeout_ms: u32,
    },
    /// Starts the program of a container that is asleep. `Container` once it runs.
    Wake(ContainerSelector),
    /// As `Start`, with none of what the container has written; volumes stay. `Container`.
    StartClean(ContainerSelector),
    /// See [`super::RoutedRequest::Changes`].
    Changes {
        /// Whose.
        container: ContainerSelector,
        /// What of them.
        query: ChangesQuery,
    },
    /// Says something about a board, for placement (admin only). `Nodes` with that board.
    LabelNode {
        /// Host name or `n2`.
        node: String,
        /// New values by name.
        set: Vec<(String, String)>,
        /// Names of labels that go.
        remove: Vec<String>,
    },
    /// A small blob of this account, such as the configuration of an image, at most
    /// [`crate::limits::MAX_READ_BLOB_BYTES`]. `Blob`, then exactly so many raw bytes.
    ReadBlob(Digest),
    /// Serves a name on the web endpoint, or serves it otherwise from now on. `Endpoint`.
    PublishEndpoint(Box<EndpointSpec>),
    /// No longer serves a name. `Done`.
    RemoveEndpoint(String),
    /// This account's names; everybody's for an admin who asks for all. `Endpoints`.
    Endpoints {
        /// Also other accounts' (admin only).
        all_accounts: bool,
    },
    /// Requests to this account's names, the last ones and those that come. `Done`, then
    /// [`super::AccessLine`]s until the stream is closed, or until the last one there is.
    AccessLog {
        /// Of this name only.
        host: Option<String>,
        /// Those that come too.
        follow: bool,
    },
    /// Domains that this account has, has begun to claim, or may use. `Domains`.
    Domains,
    /// Begins to claim a domain: gives the token that its TXT record `_wherry.<domain>` must hold within six hours.
    /// `Domain`.
    PrepareDomain(String),
    /// Claims a domain: the broker looks the record up. `Domain`.
    ClaimDomain {
        /// Which.
        domain: String,
        /// Without a proof, on the asker's word (admin only).
        vouched: bool,
    },
    /// Lets everybody serve names in a domain, or the account alone. `Domain`.
    ShareDomain {
        /// Which.
        domain: String,
        /// Whether everybody may.
        shared: bool,
    },
    /// Gives a domain back, in which nothing is served any more (an admin: anybody's). `Done`.
    ReleaseDomain(String),
    /// Says whom the broker asks for certificates, or that it asks nobody (admin only). `Done`.
    ConfigureAcme(Option<Box<AcmeSettings>>),
}

/// `repository[:tag]` as people write it, normalised: the tag is always there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

/// A container by id or by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerSelector {
    /// By id.
    Id(ContainerId),
    /// By the name its owner gave it; looked up among the asking account's own.
    Name(Name),
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitUntil {
    /// Running, ended or failed.
    Started,
    /// Ended or failed.
    Ended,
}

/// Asks for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// From this image.
    pub image: ImageName,
    /// Called this; a name is made up otherwise.
    pub name: Option<Name>,
    /// On this node (by host name or `n2`); otherwise where there is most room.
    pub node: Option<String>,
    /// Whether it outlives this session. Otherwise it goes 2 minutes after the session that asked has gone.
    pub detached: bool,
    /// How to run it.
    pub spec: ContainerSpec,
}

/// Whom a connection is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    /// One container.
    Container(ContainerSelector),
    /// All of the account's containers with this label, those that are there and those that come.
    Labelled {
        /// The label's name.
        key: String,
        /// Its value.
        value: String,
    },
}

impl From<ContainerSelector> for Party {
    fn from(container: ContainerSelector) -> Self {
        Self::Container(container)
    }
}

/// One allowed direction: between two containers, or, where labels are named, a rule that holds until it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Who may connect.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
}

/// The first message back on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// No.
    Error(WireError),
    /// Yes; nothing more to say, or frames or bytes follow as the request says.
    Done,
    /// To `Status`.
    Status(StatusInfo),
    /// To `Nodes`.
    Nodes(Vec<NodeInfo>),
    /// To `MissingBlobs`.
    Missing(Vec<Digest>),
    /// A blob of this size is there, or follows as raw bytes.
    Blob {
        /// In bytes.
        size: u64,
    },
    /// To `PutImage`.
    Image(ImageInfo),
    /// To `Images`.
    Images(Vec<ImageInfo>),
    /// To whatever is about one container.
    Container(Box<ContainerInfo>),
    /// To `Containers`.
    Containers(Vec<ContainerInfo>),
    /// To `Connections`.
    Connections {
        /// What holds now, whatever it follows from.
        connections: Vec<ConnectionInfo>,
        /// Rules about labels.
        rules: Vec<RuleInfo>,
    },
    /// To `CreateToken`: the token's text, without an address.
    Token {
        /// `wry1-…`.
        text: String,
        /// Unix seconds.
        expires_seconds: u64,
    },
    /// To `Accounts`.
    Accounts(Vec<AccountInfo>),
    /// To `Stats`.
    Stats(ContainerStats),
    /// To `Processes`.
    Processes(Vec<ProcessInfo>),
    /// To `Changes`: what the container was made from. Frames follow.
    Base {
        /// What the image consists of.
        manifest: ImageManifest,
        /// Its configuration, JSON.
        #[serde(with = "super::bytes")]
        config: Vec<u8>,
    },
    /// To whatever is about one name of the web endpoint.
    Endpoint(Box<EndpointInfo>),
    /// To `Endpoints`.
    Endpoints(Vec<EndpointInfo>),
    /// To whatever is about one domain.
    Domain(DomainInfo),
    /// To `Domains`.
    Domains(Vec<DomainInfo>),
}

/// Who and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// The asking account.
    pub account: AccountInfo,
    /// What the cluster calls itself.
    pub location: Name,
    /// Name and version of the broker's software.
    pub software: String,
    /// Seconds since the broker service started.
    pub uptime_seconds: u64,
    /// The broker's wall clock, Unix seconds.
    pub now_seconds: u64,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountInfo {
    /// Its number.
    pub id: AccountId,
    /// Its name for people.
    pub label: Name,
    /// What it may do.
    pub role: Role,
    /// Its identity.
    pub key: PublicKey,
    /// When it enrolled, Unix seconds.
    pub created_seconds: u64,
    /// Sessions it has open now.
    pub sessions: u32,
}

/// One board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its number.
    pub index: NodeIndex,
    /// What it is called: its label when it enrolled.
    pub name: Name,
    /// Connected now.
    pub connected: bool,
    /// What it is; `None` until it first connected since the broker started.
    pub facts: Option<NodeFacts>,
    /// What it can spare; `None` while it is away.
    pub load: Option<NodeLoad>,
    /// Containers placed there.
    pub containers: u32,
    /// What an admin has said about it.
    pub labels: Vec<(String, String)>,
}

/// One named image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// `repository:tag`.
    pub name: ImageName,
    /// Digest of its configuration: what Docker calls the image id.
    pub id: Digest,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// Bytes of all its blobs.
    pub size: u64,
    /// When it was named, Unix seconds.
    pub created_seconds: u64,
    /// What it consists of.
    pub manifest: ImageManifest,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its number.
    pub id: ContainerId,
    /// Which life.
    pub generation: Generation,
    /// Its name.
    pub name: Name,
    /// Whose it is.
    pub account: AccountId,
    /// The image it was made from.
    pub image: ImageName,
    /// Where it is.
    pub node: NodeIndex,
    /// That node's name.
    pub node_name: Name,
    /// Whether that node is connected; if not, `state` is the last one known.
    pub node_connected: bool,
    /// Why it was placed there, in a few words.
    pub placement: String,
    /// Its address on the overlay.
    pub address: Ipv4Addr,
    /// Its IPv6 address there.
    pub address6: Ipv6Addr,
    /// What it does.
    pub state: ContainerState,
    /// How often it was started again in this life.
    pub restarts: u32,
    /// When it was asked for, Unix seconds.
    pub created_seconds: u64,
    /// Whether it outlives the session that asked.
    pub detached: bool,
    /// Broker ports that lead to it.
    pub publish: Vec<PublishedPort>,
    /// How it is run.
    pub spec: ContainerSpec,
    /// How it is, while it runs.
    pub condition: Condition,
}

/// One allowed direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Who may connect.
    pub from: ContainerId,
    /// Its name.
    pub from_name: Name,
    /// To whom.
    pub to: ContainerId,
    /// Its name.
    pub to_name: Name,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
}

/// A rule about labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// Who may connect: a container's name, or `label:KEY=VALUE`.
    pub from: String,
    /// To whom.
    pub to: String,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
    /// Connections that follow from it now.
    pub connections: u32,
}

/// Something that happened, to those who may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container changed.
    Container(Box<ContainerInfo>),
    /// A container is gone.
    ContainerRemoved(ContainerId),
    /// A node came or went.
    Node {
        /// Which.
        index: NodeIndex,
        /// Whether it is there now.
        connected: bool,
    },
    /// Events were lost because the reader was slow.
    Lost {
        /// How many.
        count: u64,
    },
}

mod image_name {
    use super::ImageName;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::fmt;
    use std::str::FromStr;

    /// A text that is no image name.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error(
        "'{0}' is not an image name: expected repository[:tag] in lower case, as in web, tools/web or web:1.2"
    )]
    pub struct ImageNameError(pub(super) String);

    /// Longest repository and tag, in bytes (OCI distribution-spec: 255 and 128).
    const MAX_REPOSITORY_BYTES: usize = 255;
    const MAX_TAG_BYTES: usize = 128;

    impl ImageName {
        /// `repository:tag`.
        #[must_use]
        pub fn as_str(&self) -> &str {
            &self.0
        }
    }

    fn component_ok(component: &str) -> bool {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = component.as_bytes();
        bytes.first().copied().is_some_and(ok)
            && bytes.last().copied().is_some_and(ok)
            && bytes.iter().all(|&b| ok(b) || b"._-".contains(&b))
    }

    // A registry host may be the first component and may carry a port: localhost:5000/web.
    fn host_ok(host: &str) -> bool {
        match host.split_once(':') {
            Some((name, port)) => component_ok(name) && port.parse::<u16>().is_ok(),
            None => component_ok(host),
        }
    }

    fn repository_ok(repository: &str) -> bool {
        let mut components = repository.split('/');
        let first = components.next().unwrap_or_default();
        let rest: Vec<&str> = components.collect();
        let first_ok = if rest.is_empty() { component_ok(first) } else { host_ok(first) };
        first_ok && rest.iter().all(|component| component_ok(component))
    }

    fn tag_ok(tag: &str) -> bool {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        tag.len() <= MAX_TAG_BYTES
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
    }

    impl FromStr for ImageName {
        type Err = ImageNameError;
        fn from_str(text: &str) -> Result<Self, ImageNameError> {
            let (repository, tag) = match text.rsplit_once(':') {
                Some((repository, tag)) if !tag.contains('/') => (repository, tag),
                _ => (text, "latest"),
            };
            if repository.len() <= MAX_REPOSITORY_BYTES && repository_ok(repository) && tag_ok(tag) {
                Ok(Self(format!("{repository}:{tag}")))
            } else {
                Err(ImageNameError(text.chars().take(80).collect()))
            }
        }
    }

    impl fmt::Display for ImageName {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.pad(&self.0)
        }
    }

    impl Serialize for ImageName {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&self.0)
        }
    }

    impl<'de> Deserialize<'de> for ImageName {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        }
    }
}

pub use image_name::ImageNameError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_normalised_and_checked() {
        for (text, full) in [
            ("web", "web:latest"),
            ("web:1.2", "web:1.2"),
            ("tools/web", "tools/web:latest"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("localhost:5000/web:v1", "localhost:5000/web:v1"),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().as_str(), full);
        }
        for bad in ["", ":", "Web", "web:", "a//b", "../x", "web:-x", "a b", "/web", "web/"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?} must be refused");
        }
    }
}
