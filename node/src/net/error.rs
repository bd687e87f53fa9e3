//! What can go wrong with a board's network.
use super::apply::ApplyError;
use super::inside::InsideError;
use nix::errno::Errno;
use std::net::Ipv4Addr;
use wherry_net::nft::NftError;
use wherry_protocol::{ContainerId, NodeIndex, OverlayError};

/// Why the network is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The board's rules could not be set.
    #[error("the board's firewall could not be set: {0}")]
    Firewall(#[source] NftError),
    /// A container's rules could not be set.
    #[error("the firewall of {id} could not be set: {source}")]
    ContainerFirewall {
        /// Which container.
        id: ContainerId,
        /// Why.
        source: NftError,
    },
    /// A device, address, route or setting could not be changed.
    #[error("{0}")]
    Apply(#[source] ApplyError),
    /// The kernel could not be asked.
    #[error("could not {what}: {errno}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// A container's namespace could not be entered.
    #[error("could not enter the network namespace of {id}: {errno}; is the container still there?")]
    Namespace {
        /// Which container.
        id: ContainerId,
        /// Why.
        errno: Errno,
    },
    /// Something went wrong inside a container's namespace.
    #[error("the network of {id} could not be set up: {source}")]
    Inside {
        /// Which container.
        id: ContainerId,
        /// What.
        source: InsideError,
    },
    /// The board has no number yet.
    #[error("the board has no number yet: it gets one when it joins its cluster")]
    NotStarted,
    /// An address that a container of this board cannot have.
    #[error("{id} cannot have the address {address}: it is not a container's address of board {index}")]
    Address {
        /// Which container.
        id: ContainerId,
        /// Which address.
        address: Ipv4Addr,
        /// The board.
        index: NodeIndex,
    },
    /// Two containers with one address.
    #[error("{id} cannot have the address {address}: {other} has it")]
    AddressInUse {
        /// Which container.
        id: ContainerId,
        /// Which address.
        address: Ipv4Addr,
        /// Whose it is.
        other: ContainerId,
    },
    /// An id with so many digits that no interface can be named after it.
    #[error("{0} has too many digits to name an interface after it")]
    Id(ContainerId),
    /// The container is not attached.
    #[error("{0} is not attached to the network")]
    Unknown(ContainerId),
    /// No GRE, or no WireGuard below it.
    #[error(
        "the kernel cannot make GRE tunnels within WireGuard (CONFIG_NET_IPGRE, CONFIG_WIREGUARD), so containers reach only those of the same board; {peers} other boards stay out of reach"
    )]
    NoTunnels {
        /// How many boards there should be tunnels to.
        peers: usize,
    },
    /// The board's network and the containers'.
    #[error(transparent)]
    Overlap(OverlayError),
    /// The board has no address of its own.
    #[error("the board has no address on its network yet; what is wanted will be made so when it has one")]
    NoUplink,
    /// The thread that does the work is gone.
    #[error("the network's thread has ended: restart the service")]
    Stopped,
}
