//! What the configuration says about the board's network, made so and kept so.
//!
//! ```text
//! wish     [network] of wherry.toml                        (pure)
//! choice   which of several networks leads to the cluster  (pure)
//! board    the interfaces, as they come, go, and lose their cable
//! ```
mod board;
mod choice;
mod wish;

pub use wish::{Fixed, RawNetwork, Which, Wish};

use crate::dhcp::Lease;
use crate::link::{self, LinkError, Links};
use std::time::Duration;
use tokio::sync::watch;

/// Interfaces may appear late (USB Ethernet of a Raspberry Pi): how often to look until there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The board's address on the network that leads to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Through this interface.
    pub interface: String,
    /// Address, prefix, gateway, name servers.
    pub lease: Lease,
}

/// Brings the board onto its networks, as `wish` says, and keeps it there.
///
/// Returns at once; the uplink appears in the watch when it has an address, and changes with it.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn bring_up(wish: Wish) -> Result<watch::Receiver<Option<Uplink>>, LinkError> {
    bring_up_among(wish, link::is_hardware)
}

/// The same with the interfaces that `candidates` names.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn bring_up_among(
    wish: Wish,
    candidates: fn(&str) -> bool,
) -> Result<watch::Receiver<Option<Uplink>>, LinkError> {
    let (links, news) = (Links::open()?, link::watch()?);
    let (uplink, receiver) = watch::channel(None);
    tokio::spawn(board::run(links, news, wish, candidates, uplink));
    Ok(receiver)
}

/// The network that somebody else has configured: the first global address there is, once there is one.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn observe() -> Result<watch::Receiver<Option<Uplink>>, LinkError> {
    let links = Links::open()?;
    let (uplink, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            match links.first_address().await {
                Ok(Some((interface, address, prefix))) => {
                    let lease = Lease { address, prefix, gateway: None, dns: Vec::new(), ntp: Vec::new() };
                    uplink.send_replace(Some(Uplink { interface, lease }));
                    // The watch must stay alive.
                    std::future::pending::<()>().await;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!("{error}"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    });
    Ok(receiver)
}
