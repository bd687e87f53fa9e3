//! What each client has open: it must not take what is there for all.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ticket::InFlight;

/// Clients of one larger network may have so many times as much together.
const AROUND: usize = 2;
/// Below this many, clients that left are not worth a look.
const MIN_SWEEP: usize = 32;

/// Counts by network.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<(IpAddr, u8), Arc<Counts>>>);

/// What one has open.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) tunnels: Arc<AtomicUsize>,
}

/// One client's counts, and those of the network around it if it has any.
#[derive(Debug)]
pub(crate) struct Client {
    own: Arc<Counts>,
    around: Option<Arc<Counts>>,
}

/// One more of something, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Place {
    _own: InFlight,
    _around: Option<InFlight>,
}

impl Clients {
    /// Who comes from an address.
    pub(crate) fn of(&self, address: IpAddr) -> Client {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only when it would grow.
        if clients.len() >= MIN_SWEEP && clients.len() == clients.capacity() {
            clients.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        let (own, around) = networks(address);
        let mut counts = |network| Arc::clone(clients.entry(network).or_default());
        Client { own: counts(own), around: around.map(counts) }
    }
}

impl Client {
    /// One more of what `which` picks. `None` when the client has `limit`, or the network around it twice that.
    pub(crate) fn enter(&self, which: fn(&Counts) -> &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        let own = InFlight::below(limit, which(&self.own))?;
        let around = match &self.around {
            Some(around) => Some(InFlight::below(limit.saturating_mul(AROUND), which(around))?),
            None => None,
        };
        Some(Place { _own: own, _around: around })
    }
}

/// What one client has: an IPv4 address, or an IPv6 /64; and the /56 around that, of which providers give whole ones away.
fn networks(address: IpAddr) -> ((IpAddr, u8), Option<(IpAddr, u8)>) {
    match address.to_canonical() {
        IpAddr::V4(address) => ((address.into(), 32), None),
        IpAddr::V6(address) => {
            let network = |bits: u8| {
                let rest = 128 - u32::from(bits);
                (Ipv6Addr::from_bits(address.to_bits() >> rest << rest).into(), bits)
            };
            (network(64), Some(network(56)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_addresses_or_networks() {
        let of = |address: &str| {
            let (own, around) = networks(address.parse().unwrap());
            (own.0.to_string(), around.map(|(address, bits)| format!("{address}/{bits}")))
        };
        assert_eq!(of("192.0.2.1"), ("192.0.2.1".to_owned(), None));
        assert_eq!(of("::ffff:192.0.2.1"), ("192.0.2.1".to_owned(), None));
        let around = Some("2001:db8:1::/56".to_owned());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), ("2001:db8:1:2::".to_owned(), around));
    }

    #[test]
    fn many_ipv6_networks_of_one_provider_customer_are_bounded_together() {
        let clients = Clients::default();
        let enter = |address: String| {
            let client = clients.of(address.parse().unwrap());
            client.enter(|counts| &counts.connections, 3).map(|place| (client, place))
        };
        let mut held: Vec<_> = (0..9).filter_map(|n| enter(format!("2001:db8:1:{n:x}::1"))).collect();
        assert_eq!(held.len(), 6, "twice as many as one /64 may have");
        assert!(enter("2001:db8:1:100::1".to_owned()).is_some(), "another /56");
        held.pop();
        held.extend(enter("2001:db8:1:ff::1".to_owned()));
        assert_eq!(held.len(), 6);
        let one: Vec<_> = (0..9).filter_map(|_| enter("192.0.2.1".to_owned())).collect();
        assert_eq!(one.len(), 3);
    }

    #[test]
    fn who_left_is_forgotten_and_who_did_not_is_not() {
        let clients = Clients::default();
        let stays = clients.of([192, 0, 2, 1].into());
        let _place = stays.enter(|counts| &counts.requests, 1).unwrap();
        for n in 0..100_000_u32 {
            clients.of(IpAddr::V4((0x0a00_0000 + n).into()));
        }
        assert!(clients.0.lock().unwrap().len() < 1000);
        assert!(clients.of([192, 0, 2, 1].into()).enter(|counts| &counts.requests, 1).is_none());
    }
}
