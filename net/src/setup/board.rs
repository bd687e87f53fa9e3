//! The board's interfaces, as they come, go, and lose their cable.
//!
//! What is heard (leases, news of the kernel, that time has passed) only changes what should be. Then [`Board::tend`] looks at what
//! is, and writes the difference. So whatever failed, and whatever somebody else has changed, is made good by a later turn.
use super::choice::Choice;
use super::wish::{Fixed, Which, Wish};
use super::{LOOK_AGAIN, Uplink};
use crate::dhcp::{self, DhcpEvent, Lease, Waker};
use crate::link::{Ethernet, LinkError, LinkNews, LinkState, Links, vlan_name};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// What the kernel refused is tried again after this: an interface may just have gone down, or be about to come up.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often it is seen whether all is still as it should be, if nothing is heard.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// Who changes an address, a route or an interface by hand may be about to change more: what he did is undone after this.
const GRACE: Duration = Duration::from_secs(1);

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
        due: Instant::now(),
        refused: false,
        said: BTreeSet::new(),
        said_waiting: false,
    };
    loop {
        board.tend().await;
        while Instant::now() < board.due {
            tokio::select! {
                Some((name, event)) = heard.recv() => board.heard(&name, event),
                Some(word) = news.recv() => board.saw(word),
                () = sleep_until(board.due) => {}
            }
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
    /// When to tend to everything again.
    due: Instant,
    /// The kernel has refused something in this turn.
    refused: bool,
    /// What was said of that since all was well.
    said: BTreeSet<String>,
    said_waiting: bool,
}

/// An interface, and how it gets its address.
struct Known {
    ethernet: Ethernet,
    addressed: Addressed,
    /// A server has taken its address back: it has to go, also if that takes several tries.
    lost: bool,
}

enum Addressed {
    /// By the configuration.
    Fixed,
    /// By DHCP, once a client could be started.
    Dhcp(Option<Client>),
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

/// What was heard.
impl Board {
    /// Has everything tended to at `at` or before.
    fn tend_at(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    fn heard(&mut self, name: &str, event: DhcpEvent) {
        // Of a client whose interface has gone.
        let Some(known) = self.known.get_mut(name) else { return };
        match event {
            DhcpEvent::Bound(mut lease) => {
                if !self.wish.dns.is_empty() {
                    lease.dns.clone_from(&self.wish.dns);
                }
                if self.choice.lease_of(name) != Some(&lease) {
                    tracing::info!(interface = %name, address = %lease.address, "address by DHCP");
                }
                known.lost = false;
                self.choice.lease(name, Some(lease));
            }
            DhcpEvent::Lost => {
                tracing::warn!(interface = %name, "the address is no longer this board's: DHCP begins anew");
                known.lost = true;
                self.choice.lease(name, None);
            }
        }
        self.tend_at(Instant::now());
    }

    fn saw(&mut self, news: LinkNews) {
        let now = Instant::now();
        match news {
            LinkNews::Link { index, name, state } => self.saw_link(index, &name, state),
            LinkNews::Address(index) => {
                if self.known.values().any(|known| known.ethernet.index == index) {
                    self.tend_at(now + GRACE);
                }
            }
            LinkNews::DefaultRoute => self.tend_at(now + GRACE),
            LinkNews::Missed => self.tend_at(now),
        }
    }

    fn saw_link(&mut self, index: u32, name: &str, state: Option<LinkState>) {
        let now = Instant::now();
        let Some(known) = self.known.get_mut(name) else {
            let renamed = || self.known.values().any(|known| known.ethernet.index == index);
            if state.is_some() && ((self.candidates)(name) || renamed()) {
                self.tend_at(now);
            }
            return;
        };
        match state.filter(|_| known.ethernet.index == index) {
            Some(LinkState { up, carrier }) => {
                known.ethernet.up = up;
                if !up {
                    self.tend_at(now + GRACE);
                }
                self.signal(name, carrier);
            }
            // It is gone, or another one has its name.
            None => self.tend_at(now),
        }
    }

    /// There is a signal on the wire, or none.
    fn signal(&mut self, name: &str, carrier: bool) {
        let Some(known) = self.known.get_mut(name) else { return };
        if std::mem::replace(&mut known.ethernet.carrier, carrier) == carrier {
            return;
        }
        let now = Instant::now();
        self.choice.carrier(name, carrier, now);
        if !carrier {
            tracing::warn!(interface = %name, "no signal: is the cable in?");
        } else {
            tracing::info!(interface = %name, "there is a signal");
            match &known.addressed {
                // It may be another network now.
                Addressed::Dhcp(Some(client)) => client.waker.confirm(),
                Addressed::Dhcp(None) | Addressed::Fixed | Addressed::Below => {}
            }
        }
        // An interface that was down has lost its routes.
        self.tend_at(now);
    }
}

/// What is done about it.
impl Board {
    /// Makes everything as it should be, as far as the kernel lets it.
    async fn tend(&mut self) {
        self.refused = false;
        self.look().await;
        self.make_vlan().await;
        self.switch_on().await;
        self.start_clients();
        self.set_addresses().await;
        self.lead().await;
        if !self.refused {
            self.said.clear();
        }
        let wait = if self.waits() {
            LOOK_AGAIN
        } else if self.refused {
            TRY_AGAIN
        } else {
            LOOK_ANYWAY
        };
        let now = Instant::now();
        self.due = now + wait;
        if let Some(at) = self.choice.poll_at(now) {
            self.tend_at(at);
        }
    }

    fn failed(&mut self, error: &LinkError) {
        self.refused = true;
        let problem = error.to_string();
        // Once, not with every try.
        if !self.said.contains(&problem) {
            tracing::error!("the board's network: {problem}");
            self.said.insert(problem);
        }
    }

    /// What the kernel was told to do; tells whether it did.
    fn done<T>(&mut self, result: Result<T, LinkError>) -> bool {
        result.map_err(|error| self.failed(&error)).is_ok()
    }

    /// Nothing is there yet, or not the one interface that is wished for.
    fn waits(&self) -> bool {
        match &self.wish.interface {
            None => self.known.is_empty(),
            Some(which) => !self.known.values().any(|known| is(&known.ethernet, which)),
        }
    }

    /// Takes on what is new, and takes leave of what is gone.
    async fn look(&mut self) {
        let found = match self.links.ethernets(|_| true).await {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error);
                // The socket itself may have failed, for good.
                let links = Links::open();
                return if let Ok(links) = links {
                    self.links = links
                };
            }
        };
        let is_there = |known: &Known| {
            found
                .iter()
                .any(|there| (there.index, &there.name) == (known.ethernet.index, &known.ethernet.name))
        };
        let gone = self.known.iter().filter(|(_, known)| !is_there(known)).map(|(name, _)| name.clone());
        for name in gone.collect::<Vec<_>>() {
            tracing::warn!(interface = %name, "the interface is gone");
            self.known.remove(&name);
            self.choice.gone(&name);
        }
        for ethernet in found {
            if let Some(known) = self.known.get_mut(&ethernet.name) {
                known.ethernet.up = ethernet.up;
                self.signal(&ethernet.name, ethernet.carrier);
            } else if (self.candidates)(&ethernet.name) {
                self.adopt(ethernet);
            }
        }
        if self.waits() && !std::mem::replace(&mut self.said_waiting, true) {
            let which = self.wish.interface.as_ref().map(ToString::to_string);
            tracing::warn!("waiting for {}", which.as_deref().unwrap_or("an Ethernet interface"));
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

    /// Decides what an interface is for; nothing that fails later changes that.
    fn adopt(&mut self, ethernet: Ethernet) {
        let wished = self.is_wished(&ethernet);
        if wished {
            self.wished = Some(ethernet.name.clone());
        }
        if wished && self.wish.vlan.is_some() {
            let below = Known { addressed: Addressed::Below, lost: false, ethernet };
            self.known.insert(below.ethernet.name.clone(), below);
        } else {
            self.give_address(ethernet, wished);
        }
    }

    /// Decides where an interface gets its address from.
    fn give_address(&mut self, ethernet: Ethernet, wished: bool) {
        let name = ethernet.name.clone();
        if wished {
            self.choice.require(&name);
        }
        self.choice.carrier(&name, ethernet.carrier, Instant::now());
        let addressed = match self.wish.fixed.filter(|_| wished) {
            Some(fixed) => {
                let lease = self.lease(fixed);
                self.choice.lease(&name, Some(lease));
                Addressed::Fixed
            }
            None => Addressed::Dhcp(None),
        };
        self.known.insert(name, Known { ethernet, addressed, lost: false });
    }

    fn lease(&self, fixed: Fixed) -> Lease {
        let Fixed { address, prefix, gateway } = fixed;
        Lease { address, prefix, gateway, dns: self.wish.dns.clone(), ntp: Vec::new() }
    }

    /// Makes the VLAN, also if it went without what is below it.
    async fn make_vlan(&mut self) {
        let Some(number) = self.wish.vlan.filter(|number| !self.known.contains_key(&vlan_name(*number)))
        else {
            return;
        };
        let is_below = |known: &&Known| matches!(known.addressed, Addressed::Below);
        let Some(base) = self.known.values().find(is_below).map(|known| known.ethernet.clone()) else {
            return;
        };
        match self.links.vlan(&base, number).await {
            Ok(ethernet) => self.give_address(ethernet, true),
            Err(error) => self.failed(&error),
        }
    }

    async fn switch_on(&mut self) {
        let off = |known: &&Known| !known.ethernet.up;
        let mut off: Vec<_> = self.known.values().filter(off).map(|known| known.ethernet.clone()).collect();
        // A VLAN cannot be on before what it is on; that is older.
        off.sort_by_key(|ethernet| ethernet.index);
        for ethernet in off {
            let on = self.links.up(&ethernet).await;
            if self.done(on)
                && let Some(known) = self.known.get_mut(&ethernet.name)
            {
                known.ethernet.up = true;
            }
        }
    }

    fn start_clients(&mut self) {
        let mut failed = Vec::new();
        for known in self.known.values_mut() {
            match &mut known.addressed {
                Addressed::Dhcp(none @ None) => match start_client(&known.ethernet, &self.events) {
                    Ok(client) => *none = Some(client),
                    Err(error) => failed.push(error),
                },
                Addressed::Dhcp(Some(_)) | Addressed::Fixed | Addressed::Below => {}
            }
        }
        failed.iter().for_each(|error| self.failed(error));
    }

    /// Gives each interface the address that it should have, and no other.
    async fn set_addresses(&mut self) {
        let now = Instant::now();
        let chosen = self.choice.uplink(now).map(|uplink| uplink.interface);
        let all: Vec<_> = self.known.values().map(|known| (known.ethernet.clone(), known.lost)).collect();
        for (ethernet, lost) in all {
            // Its network may be the chosen one's too, and the kernel would send into the void.
            let void = chosen.as_ref() != Some(&ethernet.name) && self.choice.is_silent(&ethernet.name, now);
            let result = match self.choice.lease_of(&ethernet.name) {
                Some(lease) if !void => self.links.set_address(&ethernet, lease.address, lease.prefix).await,
                None if !lost => continue,
                Some(_) | None => self.links.remove_addresses(&ethernet).await,
            };
            self.done(result);
        }
    }

    /// The default route and what others are told follow the choice.
    async fn lead(&mut self) {
        let uplink = self.choice.uplink(Instant::now());
        if let Some(Uplink { interface, lease }) = &uplink
            && let Some(ethernet) = self.known.get(interface).map(|known| known.ethernet.clone())
        {
            let others = self.known.values().map(|known| known.ethernet.index);
            let others: Vec<u32> = others.filter(|index| *index != ethernet.index).collect();
            let result = self.links.set_gateway(&ethernet, lease.gateway, &others).await;
            self.done(result);
        }
        let through = |uplink: &Option<Uplink>| uplink.as_ref().map(|uplink| uplink.interface.clone());
        let before = through(&self.told.borrow());
        if let (Some(old), Some(new)) = (before, through(&uplink))
            && old != new
        {
            tracing::warn!("the cluster is looked for through {new} instead of {old}");
        }
        self.told.send_if_modified(|told| std::mem::replace(told, uplink.clone()) != uplink);
    }
}

fn start_client(
    ethernet: &Ethernet,
    events: &mpsc::Sender<(String, DhcpEvent)>,
) -> Result<Client, LinkError> {
    let (mut client, waker) = dhcp::start(&ethernet.name, ethernet.mac)?;
    let (events, name) = (events.clone(), ethernet.name.clone());
    let forwarding = tokio::spawn(async move {
        while let Some(event) = client.recv().await {
            if events.send((name.clone(), event)).await.is_err() {
                return;
            }
        }
    });
    Ok(Client { waker, forwarding: forwarding.abort_handle() })
}

fn is(ethernet: &Ethernet, which: &Which) -> bool {
    match which {
        Which::Name(name) => ethernet.name == *name,
        Which::Mac(mac) => ethernet.mac == *mac,
    }
}
