//! What the broker must not forget: one record per thing, as it is on disk.
//!
//! [`Stored`] carries the version, so that a later broker can read what this one wrote. Everything else the broker
//! knows (loads, sessions, who waits for what) is in memory only and costs no write.
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use wherry_protocol::message::{
    AcmeSettings, Connection, ContainerSpec, ContainerState, Descriptor, EndpointOptions, ImageManifest,
    ImageName, NodeFacts, Transport,
};
use wherry_protocol::{
    AccountId, ContainerId, Digest, Generation, Name, NodeIndex, Overlay, Prefix, PublicKey, Role,
};

/// Which record. Its bytes are the key in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// The one [`Meta`].
    Meta,
    /// An account.
    Account(AccountId),
    /// A token nobody has claimed yet, by the hash of its secret.
    Token(Digest),
    /// A token hash of the configuration that was taken over once.
    Adopted(Digest),
    /// A board.
    Node(NodeIndex),
    /// A named image of an account.
    Image(AccountId, ImageName),
    /// A blob that an account has proven to have.
    Hold(AccountId, Digest),
    /// A container.
    Container(ContainerId),
    /// An allowed connection.
    Link(Link),
    /// What is said about a board.
    NodeLabels(NodeIndex),
    /// From which life on a container began without what it had written.
    Clean(ContainerId),
    /// A rule about labels.
    Rule(Box<Rule>),
    /// A domain that somebody has proven to have.
    Domain(String),
    /// A domain whose proof is awaited, and from whom.
    Claim(String, AccountId),
    /// A name of the web endpoint.
    Endpoint(String),
    /// The certificate of a name.
    Certificate(String),
    /// Whom the broker asks for certificates.
    Acme,
    /// Its account there.
    AcmeAccount,
}

/// The content of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// For [`Key::Meta`].
    Meta(Meta),
    /// For [`Key::Account`].
    Account(Account),
    /// For [`Key::Token`].
    Token(PendingToken),
    /// For [`Key::Adopted`].
    Adopted,
    /// For [`Key::Node`].
    Node(Box<Node>),
    /// For [`Key::Image`].
    Image(Image),
    /// For [`Key::Hold`].
    Hold(Hold),
    /// For [`Key::Container`].
    Container(Box<Container>),
    /// For [`Key::Link`].
    Link,
    /// For [`Key::NodeLabels`].
    NodeLabels(BTreeMap<String, String>),
    /// For [`Key::Clean`].
    Clean(Generation),
    /// For [`Key::Rule`].
    Rule,
    /// For [`Key::Domain`].
    Domain(Domain),
    /// For [`Key::Claim`].
    Claim(Claim),
    /// For [`Key::Endpoint`].
    Endpoint(Box<Endpoint>),
    /// For [`Key::Certificate`].
    Certificate(Box<Certificate>),
    /// For [`Key::Acme`].
    Acme(Box<AcmeSettings>),
    /// For [`Key::AcmeAccount`].
    AcmeAccount(AcmeAccount),
}

/// A record with its version, as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stored {
    /// Before the first release; nobody has it, and it is no longer read.
    V1,
    /// Before the first release too: without the boards' WireGuard keys.
    V2,
    /// Before the first release too: with published TCP ports only.
    V3,
    /// Since ports of all kinds are published.
    V4(Record),
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write or overwrite.
    Put(Key, Record),
    /// Delete; not an error if it is not there.
    Delete(Key),
}

/// Counters that never go back, and what is chosen once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The last account number given out.
    pub last_account: u32,
    /// The last container number given out.
    pub last_container: u64,
    /// The last node number given out; the next one is searched after it, so that numbers rest before they return.
    pub last_node: u8,
    /// The addresses of all containers, once chosen.
    pub overlay: Option<Overlay>,
}

/// One key that may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its identity.
    pub key: PublicKey,
    /// Its name for people.
    pub label: Name,
    /// What it may do.
    pub role: Role,
    /// When it enrolled, Unix seconds.
    pub created_seconds: u64,
    /// Hash of the token it claimed: the same claim again gets the same answer.
    pub token: Digest,
    /// Its number as a board, if it is one.
    pub node: Option<NodeIndex>,
}

/// A token that waits to be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingToken {
    /// What it makes of a key.
    pub role: Role,
    /// Until when it holds, Unix seconds.
    pub expires_seconds: u64,
}

/// A board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The account that it is.
    pub account: AccountId,
    /// What it is called; no two boards have the same name.
    pub name: Name,
    /// What it said about itself when it last connected.
    pub facts: Option<NodeFacts>,
    /// Revision of its network; counts up with each change.
    pub revision: u64,
}

/// A named image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// What it consists of.
    pub manifest: ImageManifest,
    /// When it was named, Unix seconds.
    pub created_seconds: u64,
}

/// A blob that an account may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its size in bytes.
    pub size: u64,
}

/// A container as its owner wants it, and what was last seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Which life.
    pub generation: Generation,
    /// Its name.
    pub name: Name,
    /// Whose it is.
    pub account: AccountId,
    /// The image it was made from, by name.
    pub image: ImageName,
    /// And by content.
    pub manifest: ImageManifest,
    /// Where it is.
    pub node: NodeIndex,
    /// Its address.
    pub address: Ipv4Addr,
    /// Why it is there.
    pub placement: String,
    /// When it was asked for, Unix seconds.
    pub created_seconds: u64,
    /// Whether it outlives its session.
    pub detached: bool,
    /// How to run it.
    pub spec: ContainerSpec,
    /// Whether it is wanted.
    pub phase: Phase,
    /// What was last seen. `Preparing` and `Restarting` are kept in memory; on disk the former is
    /// `Pending`.
    pub state: ContainerState,
    /// How often it was started again in this life.
    pub restarts: u32,
    /// Boards that had a rule with its address, and the network revision in which it is gone. Until they have applied
    /// that, nobody else may get the address.
    pub exposed: BTreeMap<NodeIndex, u64>,
}

/// What is wanted of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It should run, once in this generation.
    Wanted,
    /// It should not run.
    Stopping {
        /// First signal.
        signal: u8,
        /// Seconds until SIGKILL.
        grace_seconds: u16,
    },
    /// Nothing should be left of it. Nobody sees it any more, but its address is not free yet.
    Removing {
        /// Whether its node has said that nothing is left.
        confirmed: bool,
    },
}

impl Container {
    /// Whether its owner still sees it.
    #[must_use]
    pub fn is_present(&self) -> bool {
        match self.phase {
            Phase::Wanted | Phase::Stopping { .. } => true,
            Phase::Removing { .. } => false,
        }
    }

    /// The blobs it needs: its image's, and files that lie over them.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        blobs(&self.manifest).chain(self.spec.files())
    }

    /// Their digests.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.blobs().map(|blob| blob.digest)
    }
}

/// The blobs of an image: its layers, then its configuration.
pub fn blobs(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    manifest.layers.iter().chain([&manifest.config])
}

/// Their digests.
pub fn digests(manifest: &ImageManifest) -> impl Iterator<Item = Digest> {
    blobs(manifest).map(|blob| blob.digest)
}

/// An allowed connection, without the addresses that follow from the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// Who may connect.
    pub from: ContainerId,
    /// To whom.
    pub to: ContainerId,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Member {
    /// One container.
    Container(ContainerId),
    /// All with this label.
    Labelled {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
}

/// Connections that are allowed between all containers of an account that match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Whose containers.
    pub account: AccountId,
    /// Who may connect.
    pub from: Member,
    /// To whom.
    pub to: Member,
    /// On this port.
    pub port: u16,
    /// With this protocol.
    pub transport: Transport,
}

/// A domain that an account has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Whose it is.
    pub account: AccountId,
    /// Whether everybody may serve names in it.
    pub shared: bool,
    /// An admin's word stands for the proof.
    pub vouched: bool,
    /// Since when, Unix seconds.
    pub since_seconds: u64,
}

/// A domain whose proof is awaited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What the TXT record must say, but for its beginning.
    pub token: [u8; 16],
    /// Until when, Unix seconds.
    pub expires_seconds: u64,
}

/// A name of the web endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Whose it is.
    pub account: AccountId,
    /// Where requests go.
    pub routes: Vec<Route>,
    /// How.
    pub options: EndpointOptions,
    /// Who may ask for what.
    pub rules: Option<Vec<RouteRule>>,
    /// Whether the broker gets its certificate by ACME.
    pub acme: bool,
    /// When it was first asked for, Unix seconds.
    pub created_seconds: u64,
}

/// Requests below a path go to containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The path.
    pub prefix: String,
    /// Whom.
    pub to: Member,
    /// Their port.
    pub port: u16,
}

/// Requests that some callers may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRule {
    /// Any if there are none.
    pub methods: Vec<String>,
    /// As it was given.
    pub path: String,
    /// One of these.
    pub callers: Vec<CallerMember>,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallerMember {
    /// Anybody.
    Anyone,
    /// Whose address is in this network.
    Network(Prefix),
    /// The account's containers.
    Containers(Member),
}

/// A chain of certificates with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// As PEM, the name's own first.
    pub chain: Vec<u8>,
    /// As PEM.
    pub key: Vec<u8>,
    /// Whether it came by ACME.
    pub acme: bool,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("acme", &self.acme)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// An account with a certificate authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// Where.
    pub directory: String,
    /// With its key.
    pub credentials: Vec<u8>,
}

impl fmt::Debug for AcmeAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeAccount").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Link {
    /// The form that boards get.
    #[must_use]
    pub fn with_addresses(&self, from_address: Ipv4Addr, to_address: Ipv4Addr) -> Connection {
        let Self { from, to, port, transport } = *self;
        Connection { from, from_address, to, to_address, port, transport }
    }
}

/// Rows of one kind, which remember what was changed since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table<K, V> {
    rows: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub(crate) fn range(&self, range: impl std::ops::RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.rows.range(range)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.touched.insert(key.clone());
        self.rows.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.rows.remove(key);
        if value.is_some() {
            self.touched.insert(key.clone());
        }
        value
    }

    /// For a change that must reach the disk.
    pub(crate) fn edit(&mut self, key: &K) -> Option<&mut V> {
        let value = self.rows.get_mut(key)?;
        self.touched.insert(key.clone());
        Some(value)
    }

    /// For a change that need not reach the disk.
    pub(crate) fn edit_in_memory(&mut self, key: &K) -> Option<&mut V> {
        self.rows.get_mut(key)
    }

    /// What the store knows already.
    pub(crate) fn load(&mut self, key: K, value: V) {
        self.rows.insert(key, value);
    }

    pub(crate) fn take_touched(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut self.touched)
    }
}
