//! Configuration of one node: `wherry.toml` of the config partition, and where things are.
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use wherry_net::setup::{RawNetwork, Wish};
use wherry_protocol::{Name, Role, Token};

/// Session port of a broker.
pub const SESSION_PORT: u16 = 2020;
/// Enrolment port of a broker.
pub const ENROLMENT_PORT: u16 = 2021;
/// Largest configuration file read, in bytes: it is written by people and `wherry flash`, and holds a few lines.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; flash the board again or put the config partition back")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is absurdly large.
    #[error("{path} is larger than {MAX_CONFIG_BYTES} bytes, that is no wherry.toml")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The text is not what it should be.
    #[error("{path} is not a valid node configuration: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    role: String,
    hostname: Option<String>,
    broker: Option<String>,
    token: String,
    network: Option<RawNetwork>,
    #[serde(default)]
    ntp: Vec<Ipv4Addr>,
    #[serde(default)]
    test_image: bool,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The board's name, also its label when it enrols.
    pub hostname: Name,
    /// Where the broker is; found by LAN discovery if absent.
    pub broker: Option<BrokerAddress>,
    /// The token the board was flashed with; its key part says who the broker is, for ever.
    pub token: Token,
    /// How the board comes onto its network; DHCP on every Ethernet if nothing is said.
    pub network: Wish,
    /// Time servers; those that DHCP names, or else the public pool, if absent.
    pub ntp: Vec<Ipv4Addr>,
    /// This is an image for tests: crash requests may be honoured (with `wherry.test=1` on the kernel command line).
    pub test_image: bool,
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerAddress {
    /// tcp/2020, or what the configuration says.
    pub session: SocketAddr,
    /// tcp/2021; always next to the session port.
    pub enrolment: SocketAddr,
}

impl BrokerAddress {
    /// The broker at `ip` with its session port at `port`; enrolment is one above.
    #[must_use]
    pub fn new(ip: Ipv4Addr, port: u16) -> Self {
        Self {
            session: (ip, port).into(),
            enrolment: (ip, port.checked_add(1).unwrap_or(ENROLMENT_PORT)).into(),
        }
    }
}

impl Config {
    /// Reads `path`.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold a valid node configuration.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { path: path.into() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text).map_err(|reason| ConfigError::Invalid { path: path.into(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| one_line(error.message()))?;
        if raw.role != "node" {
            return Err(format!("role is '{}', but this is the node image", raw.role));
        }
        let token: Token = raw.token.parse().map_err(|error| format!("token: {error}"))?;
        if token.role != Role::Node {
            return Err(format!("the token is for a {}, a board needs one for a node", token.role));
        }
        let hostname = raw.hostname.as_deref().unwrap_or("node");
        // An address in the token is how the laptop sees the broker; a board may only use its own setting.
        Ok(Self {
            hostname: hostname.parse().map_err(|error| format!("hostname: {error}"))?,
            broker: raw.broker.as_deref().map(parse_broker).transpose()?,
            token,
            network: raw.network.map(Wish::check).transpose()?.unwrap_or_default(),
            ntp: raw.ntp,
            test_image: raw.test_image,
        })
    }
}

fn parse_broker(text: &str) -> Result<BrokerAddress, String> {
    let wrong = || format!("broker: '{text}' is not an IPv4 address, optionally with :port");
    let (ip, port) = match text.split_once(':') {
        Some((ip, port)) => (ip, port.parse().map_err(|_| wrong())?),
        None => (text, SESSION_PORT),
    };
    Ok(BrokerAddress::new(ip.parse().map_err(|_| wrong())?, port))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

/// The only absolute paths of the node; tests put all of them below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// `wherry.toml`.
    pub config: PathBuf,
    /// The node's part of the data partition.
    pub data: PathBuf,
    /// Gone after a reboot.
    pub run: PathBuf,
    /// The node's subtree of cgroup v2.
    pub cgroup: PathBuf,
}

impl Dirs {
    /// The board's long-term secret key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.data.join("key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::PublicKey;
    use wherry_protocol::token::TokenSecret;

    fn token(role: Role) -> String {
        Token { role, broker: PublicKey([1; 32]), secret: TokenSecret([2; 16]), address: None }.to_string()
    }

    fn parse(extra: &str) -> Result<Config, String> {
        Config::parse(&format!("role = \"node\"\ntoken = \"{}\"\n{extra}", token(Role::Node)))
    }

    #[test]
    fn a_minimal_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config.hostname.as_str(), "node");
        assert_eq!((config.broker, config.network, config.test_image), (None, Wish::default(), false));
    }

    #[test]
    fn a_full_configuration() {
        let config = parse(
            "hostname = \"node1\"\nbroker = \"192.168.50.2:3000\"\nntp = [\"192.168.50.1\"]\ntest_image = true\n[network]\ninterface = \"eth1\"\n\
             address = \"192.168.50.3/24\"\ngateway = \"192.168.50.1\"\nvlan = 5\ndns = [\"192.168.50.1\"]\n",
        )
        .unwrap();
        let broker = config.broker.unwrap();
        assert_eq!(broker.session, "192.168.50.2:3000".parse().unwrap());
        assert_eq!(broker.enrolment, "192.168.50.2:3001".parse().unwrap());
        assert_eq!(config.ntp, [Ipv4Addr::new(192, 168, 50, 1)]);
        let network = config.network;
        assert_eq!(network.interface.unwrap().to_string(), "eth1");
        assert_eq!((network.fixed.unwrap().prefix, network.vlan, network.dns.len()), (24, Some(5), 1));
    }

    #[test]
    fn nonsense_is_refused_in_one_line() {
        for extra in [
            "broker = \"example.com\"",
            "broker = \"1.2.3.4:x\"",
            "hostname = \"Bad Name\"",
            "surprise = 1",
            "[network]\naddress = \"1.2.3.4\"",
            "[network]\naddress = \"1.2.3.4/33\"",
            "[network]\nvlan = 4095",
            "= =",
        ] {
            let reason = parse(extra).unwrap_err();
            assert!(!reason.contains('\n'), "{reason}");
        }
        assert!(Config::parse("role = \"broker\"\ntoken = \"x\"").unwrap_err().contains("node image"));
        let user = format!("role = \"node\"\ntoken = \"{}\"", token(Role::User));
        assert!(Config::parse(&user).unwrap_err().contains("token is for a user"));
    }

    #[test]
    fn a_missing_file_is_reported_with_its_path() {
        let error = Config::read(Path::new("/nonexistent/wherry.toml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/wherry.toml"));
    }
}
