//! `flash cluster`, `flash node`: disks for boards.
use crate::context::{CliError, Context};
use crate::{output, parse};
use clap::{Args, Subcommand};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use wherry_client::flash::{FlashError, Images};
use wherry_client::seed::{NodeSeed, SeedError, node_toml};
use wherry_client::{Address, BoardNetwork, ClusterSeed, SeedOptions};
use wherry_images::disk::{Arch, BoardRole};
use wherry_protocol::{Name, OsRandom, Overlay, Prefix, Role, Token};

/// Seconds that a token for one more node may be claimed: time to flash a card and carry it to the board.
const NODE_TOKEN_SECONDS: u32 = 7 * 24 * 3600;
/// Name or time servers that a board asks.
const MOST_SERVERS: usize = 4;

/// `wherry flash`
#[derive(Debug, Subcommand)]
pub(crate) enum FlashCommand {
    /// A new cluster: a broker and its nodes, with keys and tokens made here.
    Cluster(ClusterArgs),
    /// One more node for a cluster that you administer.
    Node(NodeArgs),
}

#[derive(Debug, Args)]
struct From {
    /// Directory of the built images.
    #[arg(long, env = "WHERRY_IMAGES", value_name = "DIR")]
    images: PathBuf,
    /// The boards' processor: aarch64 or x86_64.
    #[arg(long, default_value = "aarch64", value_parser = arch)]
    arch: Arch,
    /// Size of each board's data partition.
    #[arg(long, default_value = "1g", value_name = "SIZE", value_parser = parse::size)]
    data: u64,
}

/// What boards are told of their network.
#[derive(Debug, Args)]
struct NetworkArgs {
    /// VLAN that the cluster is in; the boards' Ethernet itself otherwise.
    #[arg(long, value_name = "NUMBER", value_parser = parse::vlan)]
    vlan: Option<u16>,
    /// Name server, up to 4; those that DHCP names otherwise.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address)]
    dns: Vec<Ipv4Addr>,
    /// Time server, up to 4; those that DHCP names, or the public pool, otherwise.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address)]
    ntp: Vec<Ipv4Addr>,
}

/// A fixed address of one board.
#[derive(Debug, Args)]
struct FixedArgs {
    /// Fixed address of the board (of the broker, for a cluster), as in 192.168.1.10/24; DHCP otherwise.
    #[arg(long = "static", value_name = "ADDRESS/PREFIX", value_parser = parse::board_address)]
    fixed: Option<(Ipv4Addr, String)>,
    /// Default gateway of a fixed address.
    #[arg(long, requires = "fixed", value_name = "ADDRESS", value_parser = parse::address)]
    gateway: Option<Ipv4Addr>,
    /// Interface of that board that leads to the cluster, by name or hardware address; the first one otherwise.
    #[arg(long, value_name = "INTERFACE", value_parser = parse::interface)]
    interface: Option<String>,
}

impl NetworkArgs {
    fn check(&self) -> Result<(), CliError> {
        for (flag, servers) in [("--dns", &self.dns), ("--ntp", &self.ntp)] {
            if servers.len() > MOST_SERVERS {
                return Err(CliError::Usage(format!(
                    "{flag} is given {} times, a board asks at most {MOST_SERVERS}",
                    servers.len()
                )));
            }
            if let Some(server) = servers.iter().find(|server| !is_host(**server)) {
                return Err(CliError::Usage(format!("{flag} {server} is no host's address")));
            }
        }
        Ok(())
    }

    /// Of a board that is like the others.
    fn common(&self) -> BoardNetwork {
        BoardNetwork { vlan: self.vlan, dns: self.dns.clone(), ..BoardNetwork::default() }
    }
}

impl FixedArgs {
    fn of(&self, common: BoardNetwork) -> Result<BoardNetwork, CliError> {
        let address = self.fixed.as_ref().map(|(_, text)| text.clone());
        if let (Some((own, text)), Some(gateway)) = (&self.fixed, self.gateway) {
            let bits = text.split_once('/').and_then(|(_, bits)| bits.parse().ok()).unwrap_or(32);
            if gateway == *own || !is_host(gateway) || !Prefix::new(*own, bits).network().contains(gateway) {
                return Err(CliError::Usage(format!(
                    "--gateway {gateway} is no other host of the network of {text}"
                )));
            }
        }
        let interface = self.interface.clone();
        Ok(BoardNetwork { interface, address, gateway: self.gateway, ..common })
    }
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast())
}

/// `wherry flash cluster`
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// What the cluster calls itself.
    name: Name,
    #[command(flatten)]
    from: From,
    /// Directory for the disks; made if it is not there.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_name = "N")]
    nodes: usize,
    /// Where laptops and nodes find the broker; nodes otherwise look for it on their LAN.
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<Address>,
    /// The containers' network, as in 172.20.0.0/14: private, and not the boards' own [default: 10.0.0.0/8].
    #[arg(long, value_name = "NETWORK")]
    overlay: Option<Overlay>,
    #[command(flatten)]
    fixed: FixedArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

/// `wherry flash node`
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Host name of the board.
    name: Name,
    #[command(flatten)]
    from: From,
    /// File for the disk.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Where the node finds the broker, if not where this computer does.
    #[arg(long, value_name = "HOST[:PORT]")]
    broker: Option<Address>,
    #[command(flatten)]
    fixed: FixedArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

fn arch(text: &str) -> Result<Arch, String> {
    match text {
        "x86_64" | "amd64" => Ok(Arch::X86_64),
        "aarch64" | "arm64" => Ok(Arch::Aarch64),
        other => Err(format!("'{other}' is not a processor of a board: use aarch64 or x86_64")),
    }
}

impl std::convert::From<FlashError> for CliError {
    fn from(error: FlashError) -> Self {
        Self::Other(with_cause(&error))
    }
}

impl std::convert::From<SeedError> for CliError {
    fn from(error: SeedError) -> Self {
        match error {
            SeedError::Nodes(_) | SeedError::Address(_) | SeedError::Overlay(_) => {
                Self::Usage(error.to_string())
            }
            SeedError::Toml(_) => Self::Other(with_cause(&error)),
        }
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_cause(cause)),
        None => error.to_string(),
    }
}

/// Dispatches `wherry flash …`.
pub(crate) async fn flash(context: &Context, command: FlashCommand) -> Result<u8, CliError> {
    match command {
        FlashCommand::Cluster(args) => cluster(context, args).await,
        FlashCommand::Node(args) => node(context, args).await,
    }
}

/// Writing disks blocks; it has a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(CliError::Other("writing the disks was interrupted".into())))
}

async fn cluster(context: &Context, args: ClusterArgs) -> Result<u8, CliError> {
    args.network.check()?;
    let address = args.address.as_ref().map(ToString::to_string);
    let address = address.or_else(|| args.fixed.fixed.as_ref().map(|(address, _)| address.to_string()));
    let options = SeedOptions {
        broker_address: address,
        broker_network: args.fixed.of(args.network.common())?,
        node_network: args.network.common(),
        ntp: args.network.ntp.clone(),
        overlay: args.overlay,
        ..SeedOptions::new(args.name.clone(), args.nodes)
    };
    let seed = ClusterSeed::generate(&options, output::now_seconds(), &mut OsRandom)?;
    let (token, written) = blocking(move || write_cluster(args, seed)).await?;
    if context.json {
        output::json(&serde_json::json!({ "disks": written, "admin_token": token }))?;
        return Ok(0);
    }
    for path in &written {
        output::line(&path.display().to_string())?;
    }
    output::line(&format!("once the broker is up: wherry join {token}"))?;
    Ok(0)
}

fn write_cluster(args: ClusterArgs, seed: ClusterSeed) -> Result<(String, Vec<PathBuf>), CliError> {
    let images = Images { directory: args.from.images, arch: args.from.arch };
    images.check(BoardRole::Broker)?;
    images.check(BoardRole::Node)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.out)
        .map_err(|error| CliError::Other(format!("cannot create {}: {error}", args.out.display())))?;
    let token = seed.admin_token.to_string();
    // First of all: without it nobody could ever administer the cluster.
    write_new(&args.out.join("admin-token"), &format!("{token}\n"))?;
    let mut written = Vec::new();
    let broker = (BoardRole::Broker, "broker.img".to_owned(), seed.broker_toml);
    let nodes = seed.node_tomls.into_iter().zip(1u32..);
    let nodes = nodes.map(|(toml, number)| (BoardRole::Node, format!("node{number}.img"), toml));
    for (role, file, toml) in std::iter::once(broker).chain(nodes) {
        let out = args.out.join(file);
        images.write(role, toml, &out, args.from.data)?;
        written.push(out);
    }
    Ok((token, written))
}

fn write_new(path: &Path, text: &str) -> Result<(), CliError> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).map_err(|error| {
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => FlashError::Exists(path.to_owned()).into(),
            _ => CliError::Other(format!("cannot write {}: {error}", path.display())),
        }
    })
}

async fn node(context: &Context, args: NodeArgs) -> Result<u8, CliError> {
    args.network.check()?;
    let network = args.fixed.of(args.network.common())?;
    let images = Images { directory: args.from.images, arch: args.from.arch };
    // Before a token is made that would then be of no use.
    images.check(BoardRole::Node)?;
    if args.out.symlink_metadata().is_ok() {
        return Err(FlashError::Exists(args.out).into());
    }
    let location = context.location()?;
    let created = location.create_token(Role::Node, NODE_TOKEN_SECONDS).await?;
    let token: Token = created.text.parse().map_err(|error| CliError::Other(format!("{error}")))?;
    let broker = args.broker.unwrap_or_else(|| location.info().address.clone()).to_string();
    let toml = node_toml(&NodeSeed {
        hostname: args.name.as_str(),
        broker: Some(&broker),
        token: &token,
        test_image: false,
        ntp: &args.network.ntp,
        network: &network,
    })?;
    let (out, data) = (args.out.clone(), args.from.data);
    blocking(move || Ok(images.write(BoardRole::Node, toml, &out, data)?)).await?;
    match context.json {
        true => output::json(&serde_json::json!({ "disks": [args.out] }))?,
        false => {
            output::line(&format!("{}: {} joins {} when it boots", args.out.display(), args.name, broker))?
        }
    }
    Ok(0)
}
