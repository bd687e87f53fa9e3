//! The lease a board holds, through all that happens to the client: what it was given it may use until its end, unless a server
//! takes it back. So a cable that was pulled out for a moment costs no session its address.
use super::{DhcpEvent, Lease};
use std::time::Instant;

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Held {
    lease: Option<(Lease, Option<Instant>)>,
    /// The state machine begins anew and says so; that is no loss.
    confirming: bool,
}

impl Held {
    /// A server gave it, until then (for ever if `None`).
    pub(super) fn bound(&mut self, lease: &Lease, until: Option<Instant>) -> DhcpEvent {
        *self = Self { lease: Some((lease.clone(), until)), confirming: false };
        DhcpEvent::Bound(lease.clone())
    }

    /// The state machine begins anew, to hear whether the lease is still good here.
    pub(super) fn confirm(&mut self) {
        self.confirming = self.lease.is_some();
    }

    /// The state machine has no lease: it was refused or is over, or asks anew.
    pub(super) fn unconfigured(&mut self) -> Option<DhcpEvent> {
        if self.confirming { None } else { self.lease.take().map(|_| DhcpEvent::Lost) }
    }

    /// To be asked now and then: whether the lease is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<DhcpEvent> {
        let until = self.lease.as_ref().and_then(|(_, until)| *until);
        if until.is_none_or(|until| now < until) {
            return None;
        }
        *self = Self::default();
        Some(DhcpEvent::Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn lease(last: u8) -> Lease {
        let address = Ipv4Addr::new(192, 168, 50, last);
        Lease { address, prefix: 24, gateway: None, dns: Vec::new(), ntp: Vec::new() }
    }

    #[test]
    fn what_a_server_takes_back_is_lost_at_once() {
        let mut held = Held::default();
        assert_eq!(held.unconfigured(), None, "the beginning is no loss");
        held.bound(&lease(1), None);
        assert_eq!(held.unconfigured(), Some(DhcpEvent::Lost));
        assert_eq!(held.unconfigured(), None, "once");
    }

    #[test]
    fn while_it_asks_again_the_lease_holds_until_its_end() {
        let now = Instant::now();
        let end = now + Duration::from_secs(10);
        let mut held = Held::default();
        held.bound(&lease(1), Some(end));
        held.confirm();
        assert_eq!((held.unconfigured(), held.unconfigured()), (None, None));
        assert_eq!(held.expired(end - Duration::from_millis(1)), None);
        assert_eq!(held.expired(end), Some(DhcpEvent::Lost));
        assert_eq!((held.expired(end), held.unconfigured()), (None, None));
    }

    #[test]
    fn a_confirmed_lease_counts_from_then_on() {
        let now = Instant::now();
        let mut held = Held::default();
        held.bound(&lease(1), Some(now));
        held.confirm();
        assert_eq!(held.bound(&lease(2), None), DhcpEvent::Bound(lease(2)));
        assert_eq!(held.expired(now + Duration::from_secs(1 << 30)), None, "for ever");
        assert_eq!(held.unconfigured(), Some(DhcpEvent::Lost));
    }
}
