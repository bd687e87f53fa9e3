//! What happens to interfaces, as the kernel tells it.
use super::LinkError;
use futures_util::StreamExt as _;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

/// A word of the kernel about one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNews {
    /// Kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether there is a signal on its wire; `None` if the interface is gone.
    pub carrier: Option<bool>,
}

/// Hears about all interfaces of the present network namespace from now on.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn watch() -> Result<mpsc::UnboundedReceiver<LinkNews>, LinkError> {
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
    tokio::spawn(connection);
    let (news, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        // The connection ends with its last handle.
        let _open = handle;
        while let Some((message, _)) = messages.next().await {
            if let NetlinkPayload::InnerMessage(inner) = message.payload
                && let Some(heard) = read(&inner)
                && news.send(heard).is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}

fn read(message: &RouteNetlinkMessage) -> Option<LinkNews> {
    match message {
        RouteNetlinkMessage::NewLink(link) => of(link, Some(link.header.flags.contains(LinkFlags::LowerUp))),
        RouteNetlinkMessage::DelLink(link) => of(link, None),
        _ => None,
    }
}

fn of(link: &LinkMessage, carrier: Option<bool>) -> Option<LinkNews> {
    // Bridges send such messages about their ports too, in a family of their own; leaving a bridge is not being gone.
    if link.header.interface_family != netlink_packet_route::AddressFamily::Unspec {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(LinkNews { index: link.header.index, name, carrier })
}
