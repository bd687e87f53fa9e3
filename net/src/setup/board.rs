//! The board's interfaces, as they come, go, and lose their cable.
use super::choice::Choice;
use super::wish::{Fixed, Which, Wish};
use super::{LOOK_AGAIN, Uplink};
use crate::dhcp::{self, DhcpEvent, Lease, Waker};
use crate::link::{Ethernet, LinkError, LinkNews, Links, vlan_name};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// What the kernel refused is tried again after this: an interface may just have gone down, or be about to come up.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Runs for ever.
pub(super) async fn run(
    links: Links,
    mut news: mpsc::UnboundedReceiver<LinkNews>,
    wish: Wish,
    candidates: fn(&str) -> bool,
    told: watch::Sender<Option<Uplink>>,
) {
    let (events, mut heard) = mpsc::channel(16);
    let restricted = wish.is_particular();
    let mut board = Board {
        links,
        wish,
        candidates,
        choice: Choice::new(restricted),
        known: BTreeMap::new(),
        events,
        told,
        wished: None,
        unsettled: false,
        said: String::new(),
        said_waiting: false,
    };
    board.look().await;
    loop {
        board.settle().await;
        tokio::select! {
            Some((name, event)) = heard.recv() => board.heard(&name, event).await,
            Some(link) = news.recv() => board.saw(link).await,
            () = sleep_until(board.next()) => board.look().await,
        }
    }
}

struct Board {
    links: Links,
    wish: Wish,
    candidates: fn(&str) -> bool,
    choice: Choice,
    known: BTreeMap<String, Known>,
    events: mpsc::Sender<(String, DhcpEvent)>,
    told: watch::Sender<Option<Uplink>>,
    /// The interface that the configuration turned out to be about, where it names none.
    wished: Option<String>,
    /// The kernel has refused something.
    unsettled: bool,
    /// What it was that was last said of that.
    said: String,
    said_waiting: bool,
}

/// An interface, and how it gets its address.
struct Known {
    ethernet: Ethernet,
    addressed: Addressed,
}

enum Addressed {
    /// By the configuration.
    Fixed,
    /// By DHCP.
    Dhcp(Client),
    /// Not itself: a VLAN on it.
    Below,
}

/// A DHCP client; it ends with this value.
struct Client {
    waker: Waker,
    forwarding: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.forwarding.abort();
    }
}

impl Board {
    /// When to look again without being told anything.
    fn next(&self) -> Instant {
        const FAR: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        let wait = if self.waits() {
            LOOK_AGAIN
        } else if self.unsettled {
            TRY_AGAIN
        } else {
            FAR
        };
        let by_itself = self.choice.poll_at(now);
        by_itself.map_or(now + wait, |at| at.min(now + wait))
    }

    /// Nothing is there yet, or not the one interface that is wished for.
    fn waits(&self) -> bool {
        match &self.wish.interface {
            None => self.known.is_empty(),
            Some(which) => !self.known.values().any(|known| is(&known.ethernet, which)),
        }
    }

    /// Takes on what is new.
    async fn look(&mut self) {
        let found = match self.links.ethernets(self.candidates).await {
            Ok(found) => found,
            Err(error) => return self.failed(&error),
        };
        for ethernet in found {
            if !self.known.contains_key(&ethernet.name)
                && let Err(error) = self.adopt(ethernet).await
            {
                self.failed(&error);
            }
        }
        if self.waits() && !std::mem::replace(&mut self.said_waiting, true) {
            let which = self.wish.interface.as_ref().map(ToString::to_string);
            tracing::warn!("waiting for {}", which.as_deref().unwrap_or("an Ethernet interface"));
        }
    }

    fn failed(&mut self, error: &LinkError) {
        self.unsettled = true;
        let problem = error.to_string();
        // Once, not with every try.
        if problem != self.said {
            tracing::error!("the board's network: {problem}");
            self.said = problem;
        }
    }

    /// Whether this is the interface that the configuration is about: the one it names, or the first.
    fn is_wished(&self, ethernet: &Ethernet) -> bool {
        let about_one = self.wish.vlan.is_some() || self.wish.fixed.is_some();
        match &self.wish.interface {
            Some(which) => is(ethernet, which),
            None => about_one && self.wished.as_ref().is_none_or(|name| *name == ethernet.name),
        }
    }

    async fn adopt(&mut self, base: Ethernet) -> Result<(), LinkError> {
        self.links.up(&base).await?;
        let wished = self.is_wished(&base);
        let mut ethernet = base.clone();
        if let (true, Some(number)) = (wished, self.wish.vlan) {
            ethernet = self.links.vlan(&base, number).await?;
            self.links.up(&ethernet).await?;
            let below = Known { ethernet: base.clone(), addressed: Addressed::Below };
            self.known.insert(base.name.clone(), below);
        }
        let name = ethernet.name.clone();
        if wished {
            self.wished = Some(base.name);
            self.choice.require(&name);
        }
        self.choice.carrier(&name, ethernet.carrier, Instant::now());
        let addressed = match self.wish.fixed.filter(|_| wished) {
            Some(fixed) => {
                let lease = self.lease(fixed);
                self.choice.lease(&name, Some(lease));
                Addressed::Fixed
            }
            None => Addressed::Dhcp(self.start_client(&ethernet)?),
        };
        self.known.insert(name.clone(), Known { ethernet, addressed });
        self.restore(&name).await;
        Ok(())
    }

    fn lease(&self, fixed: Fixed) -> Lease {
        let Fixed { address, prefix, gateway } = fixed;
        Lease { address, prefix, gateway, dns: self.wish.dns.clone(), ntp: Vec::new() }
    }

    fn start_client(&self, ethernet: &Ethernet) -> Result<Client, LinkError> {
        let (mut client, waker) = dhcp::start(&ethernet.name, ethernet.mac)?;
        let (events, name) = (self.events.clone(), ethernet.name.clone());
        let forwarding = tokio::spawn(async move {
            while let Some(event) = client.recv().await {
                if events.send((name.clone(), event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Client { waker, forwarding: forwarding.abort_handle() })
    }

    async fn heard(&mut self, name: &str, event: DhcpEvent) {
        // Of a client whose interface has gone.
        let Some(known) = self.known.get(name) else { return };
        match event {
            DhcpEvent::Bound(mut lease) => {
                if !self.wish.dns.is_empty() {
                    lease.dns.clone_from(&self.wish.dns);
                }
                if self.choice.lease_of(name) != Some(&lease) {
                    tracing::info!(interface = %name, address = %lease.address, "address by DHCP");
                }
                self.choice.lease(name, Some(lease));
                self.restore(name).await;
            }
            DhcpEvent::Lost => {
                tracing::warn!(interface = %name, "the address is no longer this board's: DHCP begins anew");
                self.choice.lease(name, None);
                let ethernet = known.ethernet.clone();
                if let Err(error) = self.links.remove_addresses_except(&ethernet, None).await {
                    self.failed(&error);
                }
            }
        }
    }

    async fn saw(&mut self, link: LinkNews) {
        let Some(known) = self.known.get_mut(&link.name) else {
            if link.carrier.is_some() && (self.candidates)(&link.name) {
                self.look().await;
            }
            return;
        };
        let Some(carrier) = link.carrier.filter(|_| link.index == known.ethernet.index) else {
            tracing::warn!(interface = %link.name, "the interface is gone");
            self.known.remove(&link.name);
            self.choice.gone(&link.name);
            if self.wish.vlan.is_some_and(|number| link.name == vlan_name(number)) {
                // It is made anew with what is below it.
                self.known.retain(|_, known| !matches!(known.addressed, Addressed::Below));
            }
            return self.look().await;
        };
        if std::mem::replace(&mut known.ethernet.carrier, carrier) == carrier {
            return;
        }
        self.choice.carrier(&link.name, carrier, Instant::now());
        if !carrier {
            return tracing::warn!(interface = %link.name, "no signal: is the cable in?");
        }
        tracing::info!(interface = %link.name, "there is a signal");
        match &known.addressed {
            // It may be another network now.
            Addressed::Dhcp(client) => client.waker.confirm(),
            Addressed::Fixed | Addressed::Below => {}
        }
        self.restore(&link.name).await;
    }

    /// Gives an interface the address that it should have, and all else anew: an interface that was down has lost its routes.
    async fn restore(&mut self, name: &str) {
        let (Some(known), Some(lease)) = (self.known.get(name), self.choice.lease_of(name)) else { return };
        if let Err(error) = self.links.set_address(&known.ethernet, lease.address, lease.prefix).await {
            self.failed(&error);
        }
        if self.told.borrow().as_ref().is_some_and(|uplink| uplink.interface == name) {
            self.unsettled = true;
        }
    }

    /// The default route and what others are told follow the choice.
    async fn settle(&mut self) {
        let uplink = self.choice.uplink(Instant::now());
        let before = self.told.borrow().clone();
        if uplink == before && !self.unsettled {
            return;
        }
        match self.lead(before.as_ref(), uplink.as_ref()).await {
            Ok(()) => self.unsettled = false,
            Err(error) => self.failed(&error),
        }
        let through = |uplink: &Option<Uplink>| uplink.as_ref().map(|uplink| uplink.interface.clone());
        if let (Some(old), Some(new)) = (through(&before), through(&uplink))
            && old != new
        {
            self.said.clear();
            tracing::warn!("the cluster is looked for through {new} instead of {old}");
        }
        self.told.send_if_modified(|told| std::mem::replace(told, uplink.clone()) != uplink);
    }

    async fn lead(&self, before: Option<&Uplink>, uplink: Option<&Uplink>) -> Result<(), LinkError> {
        let ethernet = |uplink: &Uplink| self.known.get(&uplink.interface).map(|known| &known.ethernet);
        let new = uplink.map(|uplink| uplink.interface.as_str());
        let given_up = before.filter(|before| new != Some(before.interface.as_str()));
        if let Some(old) = given_up.and_then(ethernet) {
            self.links.remove_gateway(old).await?;
            // Its network may be the other one's too, and the kernel would go on to send into the void.
            if self.choice.is_silent(&old.name, Instant::now()) {
                self.links.remove_addresses_except(old, None).await?;
            }
        }
        if let Some((uplink, ethernet)) = uplink.and_then(|uplink| Some((uplink, ethernet(uplink)?))) {
            match uplink.lease.gateway {
                Some(gateway) => self.links.set_gateway(ethernet, gateway).await?,
                None => self.links.remove_gateway(ethernet).await?,
            }
        }
        Ok(())
    }
}

fn is(ethernet: &Ethernet, which: &Which) -> bool {
    match which {
        Which::Name(name) => ethernet.name == *name,
        Which::Mac(mac) => ethernet.mac == *mac,
    }
}
