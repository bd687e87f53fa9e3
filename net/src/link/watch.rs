//! What happens to interfaces, as the kernel tells it.
use super::{LinkError, is_default};
use futures_util::{Stream, StreamExt as _};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::MulticastGroup;
use std::time::Duration;
use tokio::sync::mpsc;

/// What is told: everything that may make a board's network another one.
const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
/// Pause before the next try to listen, where the kernel gives no socket.
const RETRY: Duration = Duration::from_secs(1);

/// A word of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// About one interface.
    Link {
        /// Kernel's number.
        index: u32,
        /// Its name.
        name: String,
        /// How it is; `None` if it is gone.
        state: Option<LinkState>,
    },
    /// An IPv4 address of the interface with this number was set or taken away.
    Address(u32),
    /// A default route was set or taken away.
    DefaultRoute,
    /// There was more to say than could be heard: everything may be different.
    Missed,
}

/// How an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// It is switched on.
    pub up: bool,
    /// There is a signal on its wire.
    pub carrier: bool,
}

/// Hears about all interfaces of the present network namespace from now on. What was missed is told as [`LinkNews::Missed`]; the news do
/// not end.
///
/// # Errors
/// When the kernel offers no netlink.
pub fn watch() -> Result<mpsc::UnboundedReceiver<LinkNews>, LinkError> {
    let mut messages = listen()?;
    let (news, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while !pass_on(&mut messages, &news).await {
            tracing::warn!("the kernel's news of interfaces have ended: listening anew");
            messages = loop {
                tokio::time::sleep(RETRY).await;
                match listen() {
                    Ok(anew) => break anew,
                    Err(error) => tracing::warn!("{error}"),
                }
            };
            news.send(LinkNews::Missed).ok();
        }
    });
    Ok(receiver)
}

/// What the kernel sends from now on.
fn listen() -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin, LinkError> {
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    tokio::spawn(connection);
    Ok(messages.map(move |(message, _)| {
        // The connection ends with its last handle.
        let _open = &handle;
        message
    }))
}

/// Passes on what is heard. Tells whether there is nobody any more who listens; else there is nothing more to hear.
async fn pass_on(
    messages: &mut (impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin),
    news: &mpsc::UnboundedSender<LinkNews>,
) -> bool {
    loop {
        let message = tokio::select! {
            () = news.closed() => return true,
            message = messages.next() => message,
        };
        let Some(message) = message else { return false };
        let heard = match &message.payload {
            NetlinkPayload::InnerMessage(inner) => read(inner),
            NetlinkPayload::Overrun(_) => Some(LinkNews::Missed),
            _ => None,
        };
        if heard.is_some_and(|heard| news.send(heard).is_err()) {
            return true;
        }
    }
}

fn read(message: &RouteNetlinkMessage) -> Option<LinkNews> {
    match message {
        RouteNetlinkMessage::NewLink(link) => {
            let is = |flag| link.header.flags.contains(flag);
            of(link, Some(LinkState { up: is(LinkFlags::Up), carrier: is(LinkFlags::LowerUp) }))
        }
        RouteNetlinkMessage::DelLink(link) => of(link, None),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(LinkNews::Address(address.header.index))
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            is_default(route).then_some(LinkNews::DefaultRoute)
        }
        _ => None,
    }
}

fn of(link: &LinkMessage, state: Option<LinkState>) -> Option<LinkNews> {
    // Bridges send such messages about their ports too, in a family of their own; leaving a bridge is not being gone.
    if link.header.interface_family != netlink_packet_route::AddressFamily::Unspec {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(LinkNews::Link { index: link.header.index, name, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkHeader;

    #[tokio::test]
    async fn what_was_missed_is_told_and_the_end_is_noticed() {
        let (news, mut heard) = mpsc::unbounded_channel();
        let message = |payload| NetlinkMessage::new(NetlinkHeader::default(), payload);
        let mut link = LinkMessage::default();
        link.header.index = 3;
        link.attributes.push(LinkAttribute::IfName("eth0".into()));
        let link = NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link));
        let said = [NetlinkPayload::Overrun(Vec::new()), link, NetlinkPayload::Noop].map(message);
        let mut messages = futures_util::stream::iter(said);
        assert!(!pass_on(&mut messages, &news).await, "it has ended");
        assert_eq!(heard.recv().await, Some(LinkNews::Missed));
        let gone = LinkNews::Link { index: 3, name: "eth0".into(), state: None };
        assert_eq!(heard.recv().await, Some(gone));
        assert!(heard.is_empty());
        drop(heard);
        assert!(pass_on(&mut futures_util::stream::pending(), &news).await, "nobody listens");
    }
}
