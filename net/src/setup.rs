//! What the configuration says about the board's network, made so and kept so.
use crate::dhcp::{self, DhcpEvent, Lease};
use crate::link::{Ethernet, LinkError, Links};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Interfaces may appear late (USB Ethernet of a Raspberry Pi): how often to look until there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A fixed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddress {
    /// Which interface; the first Ethernet if absent.
    pub interface: Option<String>,
    /// The board's address.
    pub address: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// Default route.
    pub gateway: Option<Ipv4Addr>,
}

/// The board's address on its first network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Through this interface.
    pub interface: String,
    /// Address, prefix, gateway, name servers.
    pub lease: Lease,
}

/// Brings the board onto its network: `fixed` on its interface, DHCP on every other Ethernet.
///
/// Returns at once; the uplink appears in the watch when it has an address, and changes with it. The uplink is that of the
/// fixed address, or else of the first interface that got one.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn bring_up(fixed: Option<StaticAddress>) -> Result<watch::Receiver<Option<Uplink>>, LinkError> {
    let links = Links::open()?;
    let (uplink, receiver) = watch::channel(None);
    tokio::spawn(async move {
        if let Err(error) = run(&links, fixed, &uplink).await {
            tracing::error!("no network: {error}");
        }
    });
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

async fn run(
    links: &Links,
    fixed: Option<StaticAddress>,
    uplink: &watch::Sender<Option<Uplink>>,
) -> Result<(), LinkError> {
    let ethernets = wait_for_ethernets(links, fixed.as_ref()).await?;
    let static_name = match &fixed {
        Some(fixed) => Some(set_static(links, fixed, &ethernets, uplink).await?),
        None => None,
    };
    let (events, mut queue) = mpsc::channel(16);
    for ethernet in ethernets.iter().filter(|ethernet| Some(&ethernet.name) != static_name.as_ref()) {
        links.up(ethernet).await?;
        forward(ethernet.clone(), events.clone())?;
    }
    drop(events);
    while let Some((ethernet, event)) = queue.recv().await {
        if let Err(error) = follow(links, &ethernet, event, uplink).await {
            tracing::error!("{error}");
        }
    }
    // Without a DHCP client there is nothing more to do, but the watch must stay alive.
    std::future::pending().await
}

async fn wait_for_ethernets(
    links: &Links,
    fixed: Option<&StaticAddress>,
) -> Result<Vec<Ethernet>, LinkError> {
    let named = fixed.and_then(|fixed| fixed.interface.as_deref());
    let mut told = false;
    loop {
        let ethernets = links.ethernets().await?;
        if named.map_or(!ethernets.is_empty(), |name| ethernets.iter().any(|e| e.name == name)) {
            return Ok(ethernets);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("waiting for {}", named.unwrap_or("an Ethernet interface"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn set_static(
    links: &Links,
    fixed: &StaticAddress,
    ethernets: &[Ethernet],
    uplink: &watch::Sender<Option<Uplink>>,
) -> Result<String, LinkError> {
    let wanted = |ethernet: &&Ethernet| fixed.interface.as_ref().is_none_or(|name| *name == ethernet.name);
    let ethernet = ethernets
        .iter()
        .find(wanted)
        .ok_or_else(|| LinkError::Missing(fixed.interface.clone().unwrap_or_default()))?;
    links.up(ethernet).await?;
    let lease = Lease {
        address: fixed.address,
        prefix: fixed.prefix,
        gateway: fixed.gateway,
        dns: Vec::new(),
        ntp: Vec::new(),
    };
    settle(links, ethernet, &lease).await?;
    uplink.send_replace(Some(Uplink { interface: ethernet.name.clone(), lease }));
    Ok(ethernet.name.clone())
}

fn forward(ethernet: Ethernet, events: mpsc::Sender<(Ethernet, DhcpEvent)>) -> Result<(), LinkError> {
    let mut client = dhcp::start(&ethernet.name, ethernet.mac)?;
    tokio::spawn(async move {
        while let Some(event) = client.recv().await {
            if events.send((ethernet.clone(), event)).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn follow(
    links: &Links,
    ethernet: &Ethernet,
    event: DhcpEvent,
    uplink: &watch::Sender<Option<Uplink>>,
) -> Result<(), LinkError> {
    match event {
        DhcpEvent::Bound(lease) => {
            let other = uplink.borrow().as_ref().is_some_and(|uplink| uplink.interface != ethernet.name);
            // The default route belongs to the first network; a second one only adds its own.
            let gateway = if other { None } else { lease.gateway };
            settle(links, ethernet, &Lease { gateway, ..lease.clone() }).await?;
            tracing::info!(interface = %ethernet.name, address = %lease.address, "address by DHCP");
            if !other {
                uplink.send_replace(Some(Uplink { interface: ethernet.name.clone(), lease }));
            }
        }
        DhcpEvent::Lost => {
            links.remove_addresses_except(ethernet, None).await?;
            uplink.send_if_modified(|uplink| {
                let mine = uplink.as_ref().is_some_and(|uplink| uplink.interface == ethernet.name);
                mine && uplink.take().is_some()
            });
        }
    }
    Ok(())
}

async fn settle(links: &Links, ethernet: &Ethernet, lease: &Lease) -> Result<(), LinkError> {
    links.set_address(ethernet, lease.address, lease.prefix).await?;
    match lease.gateway {
        Some(gateway) => links.set_gateway(ethernet, gateway).await,
        None => Ok(()),
    }
}
