//! Who may cause unauthenticated work, and how much: bounds on connections that have not proven a known key yet.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use wherry_protocol::Limits;

/// Bounds of one broker's listeners.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Handshakes going on at once, from everywhere. Bounds the memory and CPU that strangers can take: one costs a
    /// few kilobytes and two scalar multiplications.
    pub handshakes: usize,
    /// Handshakes going on at once from one address, so that one stranger does not take all of them.
    pub handshakes_per_address: usize,
    /// Failed attempts that one address may make at once. Successful ones are given back.
    pub failures_burst: u32,
    /// Failed attempts per second that one address may make in the long run.
    pub failures_per_second: u32,
    /// Sessions open at once of keys that are known.
    pub sessions: usize,
    /// Streams open at once on a user's session.
    pub user_streams: usize,
    /// Streams that one account may have to boards at once (exec, logs, tunnels).
    pub routes_per_account: usize,
    /// Connections from the web endpoint to the containers of one account, apart from those streams: who is busy on the web
    /// can still be looked after.
    pub web_routes_per_account: usize,
    /// Visitors of one account's published ports, apart from those too.
    pub visits_per_account: usize,
    /// Streams of each board's session that the web and visitors leave free, whatever they want: for commands, logs and
    /// images.
    pub streams_kept_back: usize,
    /// Blobs being received at once; each holds a thread and a megabyte.
    pub uploads: usize,
    /// Connections to one published port at once.
    pub visitors_per_port: usize,
    /// Seconds for the first message on a stream to arrive.
    pub request_seconds: u64,
    /// Seconds for sessions to end by themselves at shutdown.
    pub drain_seconds: u64,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            handshakes: 128,
            handshakes_per_address: 32,
            failures_burst: 64,
            failures_per_second: 8,
            sessions: 4096,
            user_streams: Limits::DEFAULT.user_streams + 32,
            routes_per_account: 256,
            web_routes_per_account: 256,
            visits_per_account: 256,
            streams_kept_back: 128,
            uploads: 16,
            visitors_per_port: 256,
            request_seconds: 10,
            drain_seconds: 3,
        }
    }
}

/// Addresses remembered at most; when there are more, those with nothing against them are forgotten.
const MAX_ADDRESSES: usize = 8192;

#[derive(Debug)]
struct Visitor {
    /// Handshakes going on.
    open: usize,
    /// Attempts left, in thousandths.
    credit_milli: u64,
    refilled: Instant,
}

/// Counts by address.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    limits: Arc<ServeLimits>,
    visitors: Arc<Mutex<HashMap<IpAddr, Visitor>>>,
}

/// The right to do a handshake; dropping it without [`Pass::known`] counts as a failure.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    address: IpAddr,
    known: bool,
}

impl Gate {
    pub(crate) fn new(limits: Arc<ServeLimits>) -> Self {
        Self { limits, visitors: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Visitor>> {
        // Counters stay usable whatever panicked while they were held.
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: turn it away.
    pub(crate) fn enter(&self, address: IpAddr, now: Instant) -> Option<Pass> {
        let full_milli = u64::from(self.limits.failures_burst) * 1000;
        let mut visitors = self.lock();
        if visitors.len() >= MAX_ADDRESSES && !visitors.contains_key(&address) {
            visitors.retain(|_, visitor| {
                refill(visitor, &self.limits, now);
                visitor.open > 0 || visitor.credit_milli < full_milli
            });
            if visitors.len() >= MAX_ADDRESSES {
                return None;
            }
        }
        let visitor =
            visitors.entry(address).or_insert(Visitor { open: 0, credit_milli: full_milli, refilled: now });
        refill(visitor, &self.limits, now);
        if visitor.open >= self.limits.handshakes_per_address || visitor.credit_milli < 1000 {
            return None;
        }
        visitor.open += 1;
        visitor.credit_milli -= 1000;
        Some(Pass { gate: self.clone(), address, known: false })
    }
}

fn refill(visitor: &mut Visitor, limits: &ServeLimits, now: Instant) {
    let elapsed_ms = now.saturating_duration_since(visitor.refilled).as_millis();
    let gain =
        u64::try_from(elapsed_ms).unwrap_or(u64::MAX).saturating_mul(limits.failures_per_second.into());
    let full_milli = u64::from(limits.failures_burst) * 1000;
    visitor.credit_milli = visitor.credit_milli.saturating_add(gain).min(full_milli);
    visitor.refilled = now;
}

impl Pass {
    /// The peer has proven a key that is known, or claimed a token: its attempt was none.
    pub(crate) fn known(&mut self) {
        self.known = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let full_milli = u64::from(self.gate.limits.failures_burst) * 1000;
        let mut visitors = self.gate.lock();
        if let Some(visitor) = visitors.get_mut(&self.address) {
            visitor.open = visitor.open.saturating_sub(1);
            if self.known {
                visitor.credit_milli = (visitor.credit_milli + 1000).min(full_milli);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn gate() -> Gate {
        let limits = ServeLimits {
            handshakes_per_address: 2,
            failures_burst: 3,
            failures_per_second: 1,
            ..ServeLimits::default()
        };
        Gate::new(Arc::new(limits))
    }

    fn address(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    #[test]
    fn failures_use_up_the_credit_of_one_address_only() {
        let (gate, now) = (gate(), Instant::now());
        for _ in 0..3 {
            drop(gate.enter(address(1), now).unwrap());
        }
        assert!(gate.enter(address(1), now).is_none());
        assert!(gate.enter(address(2), now).is_some());
        assert!(gate.enter(address(1), now + Duration::from_millis(1001)).is_some());
    }

    #[test]
    fn those_who_are_known_are_never_turned_away() {
        let (gate, now) = (gate(), Instant::now());
        for _ in 0..100 {
            gate.enter(address(1), now).unwrap().known();
        }
    }

    #[test]
    fn handshakes_at_once_are_bounded() {
        let (gate, now) = (gate(), Instant::now());
        let first = gate.enter(address(1), now).unwrap();
        let _second = gate.enter(address(1), now).unwrap();
        assert!(gate.enter(address(1), now).is_none());
        drop(first);
        assert!(gate.enter(address(1), now).is_some());
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let (gate, now) = (gate(), Instant::now());
        for n in 0..u32::try_from(MAX_ADDRESSES).unwrap() + 100 {
            let mut pass = gate.enter(IpAddr::from(n.to_be_bytes()), now).unwrap();
            pass.known();
        }
        assert!(gate.lock().len() <= MAX_ADDRESSES);
    }
}
