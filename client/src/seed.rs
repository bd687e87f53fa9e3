//! The configuration of a new cluster, made on the laptop: the broker's key pair, one admin token, one token per node.
//!
//! Each text is a board's `wherry.toml`, to be put on its configuration partition. The broker's holds its secret key
//! and only the *hashes* of the tokens; each node's holds its own token. Whoever claims the admin token first becomes
//! the cluster's administrator.
use serde::Serialize;
use std::net::Ipv4Addr;
use wherry_protocol::token::TokenSecret;
use wherry_protocol::{Name, Overlay, OverlayError, Prefix, PublicKey, Random, Role, SecretKey, Token};

/// Nodes of one cluster: 256 parts of the overlay, without 0 (the broker's) and 255.
pub const MAX_NODES: u8 = 254;
/// Seconds until the tokens expire, unless said otherwise: 30 days, the longest the broker accepts.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 30 * 24 * 3600;

/// Why a seed cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Zero nodes, or more than [`MAX_NODES`].
    #[error("a cluster has 1 to {MAX_NODES} nodes, not {0}")]
    Nodes(usize),
    /// An address that cannot be used.
    #[error(transparent)]
    Address(#[from] crate::address::AddressError),
    /// Containers' addresses that are the broker's neighbours'.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The text could not be written as TOML.
    #[error("cannot write the configuration as TOML")]
    Toml(#[from] toml::ser::Error),
}

/// What the cluster should be like.
#[derive(Debug, Clone)]
pub struct SeedOptions {
    /// What the cluster calls itself.
    pub location: Name,
    /// How many nodes.
    pub nodes: usize,
    /// Where nodes find the broker: `host` or `host:port`. `None`: they look for it on their LAN (udp/1026).
    pub broker_address: Option<String>,
    /// Where the laptop finds the broker, put into the admin token; the broker's address when `None`.
    pub admin_address: Option<String>,
    /// The broker's network, where it is not simply DHCP.
    pub broker_network: BoardNetwork,
    /// The containers' addresses; the broker's choice when `None`.
    pub overlay: Option<Overlay>,
    /// The nodes'.
    pub node_network: BoardNetwork,
    /// Time servers of all boards; those of DHCP or the public pool when empty.
    pub ntp: Vec<Ipv4Addr>,
    /// Seconds until the tokens expire.
    pub lifetime_seconds: u64,
    /// Marks the boards as test images, which may be told to crash.
    pub test_image: bool,
}

impl SeedOptions {
    /// A cluster called `location` of so many `nodes`, everything else as usual.
    #[must_use]
    pub fn new(location: Name, nodes: usize) -> Self {
        Self {
            location,
            nodes,
            broker_address: None,
            admin_address: None,
            broker_network: BoardNetwork::default(),
            overlay: None,
            node_network: BoardNetwork::default(),
            ntp: Vec::new(),
            lifetime_seconds: DEFAULT_LIFETIME_SECONDS,
            test_image: false,
        }
    }
}

/// How a board comes onto its network, where it is not simply DHCP. The boards check it too, and do not serve with nonsense.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BoardNetwork {
    /// Interface, such as `eth0`, or its hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// VLAN on it, 1 to 4094.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Address and prefix length, such as `192.168.50.2/24`; DHCP when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Default gateway of that address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; those of DHCP when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
}

impl BoardNetwork {
    /// `None` where there is nothing to be written.
    fn said(&self) -> Option<&Self> {
        (*self != Self::default()).then_some(self)
    }
}

/// A new cluster's secrets and configuration. It is secret as a whole: write it to files of mode 0600 only.
pub struct ClusterSeed {
    /// The broker's `wherry.toml`.
    pub broker_toml: String,
    /// The nodes' `wherry.toml`, in the order node1, node2, …
    pub node_tomls: Vec<String>,
    /// Makes its claimer the administrator: `wherry join <text>`.
    pub admin_token: Token,
    /// The broker's identity.
    pub broker_key: PublicKey,
}

impl std::fmt::Debug for ClusterSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSeed")
            .field("broker_key", &self.broker_key)
            .field("nodes", &self.node_tomls.len())
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct BrokerToml<'a> {
    role: &'static str,
    hostname: &'static str,
    location: &'a Name,
    secret_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlay: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test_image: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ntp: &'a [Ipv4Addr],
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a BoardNetwork>,
    token: Vec<TokenEntry>,
}

#[derive(Serialize)]
struct TokenEntry {
    role: Role,
    hash: String,
    expires: u64,
}

#[derive(Serialize)]
struct NodeToml<'a> {
    role: &'static str,
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<&'a str>,
    token: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test_image: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ntp: &'a [Ipv4Addr],
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a BoardNetwork>,
}

/// What one node is told.
#[derive(Debug, Clone, Copy)]
pub struct NodeSeed<'a> {
    /// The board's name.
    pub hostname: &'a str,
    /// Where its broker is; it looks for it on its LAN when `None`.
    pub broker: Option<&'a str>,
    /// What it enrols with.
    pub token: &'a Token,
    /// It may be told to crash.
    pub test_image: bool,
    /// Time servers.
    pub ntp: &'a [Ipv4Addr],
    /// Its network.
    pub network: &'a BoardNetwork,
}

/// The `wherry.toml` of one node.
pub fn node_toml(seed: &NodeSeed<'_>) -> Result<String, SeedError> {
    let NodeSeed { hostname, broker, token, test_image, ntp, network } = *seed;
    // Where the broker is has a place of its own: the token's address is the one that laptops use.
    let token = Token { address: None, ..token.clone() }.to_string();
    let network = network.said();
    Ok(toml::to_string(&NodeToml { role: "node", hostname, broker, token, test_image, ntp, network })?)
}

/// The broker would refuse it as well, but only once it is booted.
fn check_apart(options: &SeedOptions) -> Result<(), OverlayError> {
    let network = options.broker_network.address.as_ref().map(|address| address.parse::<Prefix>());
    match network {
        Some(Ok(network)) => {
            options.overlay.unwrap_or_default().check_apart("the broker's own network", network)
        }
        // What is no address the broker says itself.
        Some(Err(_)) | None => Ok(()),
    }
}

impl ClusterSeed {
    /// Makes a cluster's keys and tokens from `random`; the tokens expire `options.lifetime_seconds` after
    /// `now_seconds` (Unix time).
    pub fn generate(
        options: &SeedOptions,
        now_seconds: u64,
        random: &mut dyn Random,
    ) -> Result<Self, SeedError> {
        if options.nodes == 0 || options.nodes > usize::from(MAX_NODES) {
            return Err(SeedError::Nodes(options.nodes));
        }
        for address in [&options.broker_address, &options.admin_address].into_iter().flatten() {
            address.parse::<crate::address::Address>()?;
        }
        check_apart(options)?;
        let secret = SecretKey::generate(random);
        let broker_key = secret.public();
        let mut token = |role, address: Option<&String>| {
            let mut secret = [0; 16];
            random.fill(&mut secret);
            Token { role, broker: broker_key, secret: TokenSecret(secret), address: address.cloned() }
        };
        let admin_token =
            token(Role::Admin, options.admin_address.as_ref().or(options.broker_address.as_ref()));
        let node_tokens: Vec<Token> = (0..options.nodes).map(|_| token(Role::Node, None)).collect();
        let expires = now_seconds.saturating_add(options.lifetime_seconds);
        let broker_toml = toml::to_string(&BrokerToml {
            role: "broker",
            hostname: "broker",
            location: &options.location,
            secret_key: secret.to_text(),
            overlay: options.overlay.map(|overlay| overlay.to_string()),
            test_image: options.test_image,
            ntp: &options.ntp,
            network: options.broker_network.said(),
            token: std::iter::once(&admin_token)
                .chain(&node_tokens)
                .map(|token| TokenEntry { role: token.role, hash: token.secret.hash().to_string(), expires })
                .collect(),
        })?;
        let node_tomls = node_tokens
            .iter()
            .zip(1u32..)
            .map(|(token, number)| {
                node_toml(&NodeSeed {
                    hostname: &format!("node{number}"),
                    broker: options.broker_address.as_deref(),
                    token,
                    test_image: options.test_image,
                    ntp: &options.ntp,
                    network: &options.node_network,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { broker_toml, node_tomls, admin_token, broker_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::OsRandom;

    struct Counting(u8);
    impl Random for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0 += 1;
            bytes.fill(self.0);
        }
    }

    fn demo() -> SeedOptions {
        SeedOptions {
            broker_address: Some("192.168.50.2".into()),
            admin_address: Some("127.8.0.1".into()),
            ..SeedOptions::new("demo".parse().unwrap(), 2)
        }
    }

    #[test]
    fn the_texts_are_pinned() {
        let seed = ClusterSeed::generate(&demo(), 1_000, &mut Counting(0)).unwrap();
        let admin = TokenSecret([2; 16]).hash();
        let (node1, node2) = (TokenSecret([3; 16]).hash(), TokenSecret([4; 16]).hash());
        let key = SecretKey::from_bytes([1; 32]).to_text();
        assert_eq!(
            seed.broker_toml,
            format!(
                "role = \"broker\"\nhostname = \"broker\"\nlocation = \"demo\"\nsecret_key = \"{key}\"\n\n\
                 [[token]]\nrole = \"admin\"\nhash = \"{admin}\"\nexpires = 2593000\n\n\
                 [[token]]\nrole = \"node\"\nhash = \"{node1}\"\nexpires = 2593000\n\n\
                 [[token]]\nrole = \"node\"\nhash = \"{node2}\"\nexpires = 2593000\n"
            )
        );
        let broker = SecretKey::from_bytes([1; 32]).public();
        let token =
            Token { role: Role::Node, broker, secret: TokenSecret([4; 16]), address: None }.to_string();
        assert_eq!(
            seed.node_tomls[1],
            format!(
                "role = \"node\"\nhostname = \"node2\"\nbroker = \"192.168.50.2\"\ntoken = \"{token}\"\n"
            )
        );
        assert_eq!(seed.admin_token.address.as_deref(), Some("127.8.0.1"));
    }

    #[test]
    fn options_reach_the_boards() {
        let mut options = SeedOptions { test_image: true, ..demo() };
        options.broker_network = BoardNetwork {
            interface: Some("eth0".into()),
            address: Some("192.168.50.2/24".into()),
            gateway: Some(Ipv4Addr::new(192, 168, 50, 1)),
            ..BoardNetwork::default()
        };
        options.overlay = Some("172.20.0.0/14".parse().unwrap());
        let dns = vec![Ipv4Addr::new(192, 168, 50, 1)];
        options.node_network = BoardNetwork { vlan: Some(5), dns, ..BoardNetwork::default() };
        options.ntp = vec![Ipv4Addr::new(192, 168, 50, 9)];
        let seed = ClusterSeed::generate(&options, 0, &mut OsRandom).unwrap();
        assert!(seed.broker_toml.contains("\noverlay = \"172.20.0.0/14\"\ntest_image = true\n"));
        assert!(
            seed.broker_toml.contains("[network]\ninterface = \"eth0\"\naddress = \"192.168.50.2/24\"\n")
        );
        let said =
            "test_image = true\nntp = [\"192.168.50.9\"]\n\n[network]\nvlan = 5\ndns = [\"192.168.50.1\"]\n";
        assert!(seed.node_tomls.iter().all(|toml| toml.ends_with(said)), "{:?}", seed.node_tomls);
        let parsed: toml::Table = seed.broker_toml.parse().unwrap();
        assert_eq!(parsed["token"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn secrets_stay_apart() {
        let seed = ClusterSeed::generate(&demo(), 0, &mut OsRandom).unwrap();
        let admin = seed.admin_token.to_string();
        let body = admin.split('@').next().unwrap();
        assert!(!seed.broker_toml.contains(body));
        assert!(!seed.node_tomls[0].contains("secret_key"));
        assert!(!format!("{seed:?}").contains("wry1-"));
    }

    #[test]
    fn impossible_clusters_are_refused() {
        for nodes in [0, 255] {
            let options = SeedOptions::new("demo".parse().unwrap(), nodes);
            assert!(matches!(
                ClusterSeed::generate(&options, 0, &mut OsRandom),
                Err(SeedError::Nodes(n)) if n == nodes
            ));
        }
        let broker_network = BoardNetwork { address: Some("10.0.0.2/24".into()), ..BoardNetwork::default() };
        let options = SeedOptions { broker_network, ..demo() };
        assert!(matches!(ClusterSeed::generate(&options, 0, &mut OsRandom), Err(SeedError::Overlay(_))));
        let options = SeedOptions { broker_address: Some("a b".into()), ..demo() };
        assert!(matches!(ClusterSeed::generate(&options, 0, &mut OsRandom), Err(SeedError::Address(_))));
    }
}
