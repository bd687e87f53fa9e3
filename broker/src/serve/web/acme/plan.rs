//! Which name needs a certificate next, and when. Pure.
use crate::record::Certificate;
use crate::state::{Web, WebHost};
use std::collections::BTreeMap;
use std::sync::Arc;
use wherry_protocol::message::AcmeSettings;

/// Times the least pause, until it is tried again after so many failures. Authorities allow few of them: Let's Encrypt five
/// an hour for a name.
const PAUSES: [u64; 5] = [1, 5, 30, 180, 360];
/// Seconds in which a certificate is not renewed again, if it is valid that long.
const LONGEST_REST: u64 = 3600;

/// How the authority is to see that the name leads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By port 80 (RFC 8555 §8.3).
    Http,
    /// By port 443 (RFC 8737).
    Tls,
}

/// An attempt to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) host: String,
    /// Unix seconds.
    pub(super) at: u64,
    pub(super) way: Way,
    asked: u64,
}

/// What was tried for a name.
#[derive(Debug, Clone, Copy)]
struct Tries {
    /// [`WebHost::asked`] of the last one.
    asked: u64,
    /// Failures in a row.
    failed: usize,
    /// Unix seconds of the last one's end.
    last: u64,
}

/// The memory of attempts.
#[derive(Debug)]
pub(super) struct Plan {
    /// Seconds between two attempts for one name, whoever asks for it.
    least_pause: u64,
    settings: Option<Arc<AcmeSettings>>,
    tries: BTreeMap<String, Tries>,
}

impl Plan {
    pub(super) fn new(least_pause: u64) -> Self {
        Self { least_pause, settings: None, tries: BTreeMap::new() }
    }

    /// The next attempt; the past is now.
    pub(super) fn next(&mut self, web: &Web) -> Option<Due> {
        if self.settings != web.acme {
            // Another authority, or another account: what was tried with the old one says nothing.
            self.settings.clone_from(&web.acme);
            self.tries.clear();
        }
        self.tries.retain(|host, _| web.hosts.get(host).is_some_and(|host| host.acme));
        web.acme.as_ref()?;
        let hosts = web.hosts.iter().filter(|(_, host)| host.acme);
        hosts.map(|(name, host)| self.due(name, host)).min_by(|a, b| (a.at, &a.host).cmp(&(b.at, &b.host)))
    }

    fn due(&self, name: &str, host: &WebHost) -> Due {
        let wanted = host.certificate.as_deref().map_or(0, renewal);
        let tries = self.tries.get(name);
        let failed = tries.filter(|tries| tries.asked == host.asked).map_or(0, |tries| tries.failed);
        let earliest = tries.map_or(0, |tries| tries.last.saturating_add(self.pause(failed, host)));
        let way = if failed.is_multiple_of(2) { Way::Http } else { Way::Tls };
        Due { host: name.to_owned(), at: wanted.max(earliest), way, asked: host.asked }
    }

    /// The attempt was made.
    pub(super) fn tried(&mut self, due: &Due, success: bool, now: u64) {
        let old = self.tries.get(&due.host).filter(|old| old.asked == due.asked);
        let failed = if success { 0 } else { old.map_or(0, |old| old.failed) + 1 };
        self.tries.insert(due.host.clone(), Tries { asked: due.asked, failed, last: now });
    }

    fn pause(&self, failed: usize, host: &WebHost) -> u64 {
        match (failed.checked_sub(1), &host.certificate) {
            (Some(index), _) => {
                PAUSES.get(index).or(PAUSES.last()).map_or(0, |times| times.saturating_mul(self.least_pause))
            }
            // So that an authority whose certificates are old when they come is not asked without a pause.
            (None, Some(certificate)) => {
                (certificate.not_after.saturating_sub(certificate.not_before) / 3).clamp(1, LONGEST_REST)
            }
            (None, None) => self.least_pause,
        }
    }
}

/// When two thirds of its time are over: then there is time for many attempts.
fn renewal(certificate: &Certificate) -> u64 {
    let lifetime = certificate.not_after.saturating_sub(certificate.not_before);
    certificate.not_before.saturating_add(lifetime - lifetime / 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::AccountId;
    use wherry_protocol::message::EndpointOptions;

    const DAY: u64 = 86_400;

    fn settings(directory: &str) -> Arc<AcmeSettings> {
        Arc::new(AcmeSettings {
            directory: directory.into(),
            contacts: Vec::new(),
            roots: Vec::new(),
            external_account: None,
            terms_agreed: true,
        })
    }

    fn host(certificate: Option<(u64, u64)>, asked: u64) -> WebHost {
        let certificate = certificate.map(|(not_before, not_after)| {
            Arc::new(Certificate { chain: Vec::new(), key: Vec::new(), acme: true, not_before, not_after })
        });
        WebHost {
            account: AccountId(1),
            routes: Vec::new(),
            options: EndpointOptions::default(),
            rules: None,
            certificate,
            acme: true,
            asked,
        }
    }

    fn web(hosts: Vec<(&str, WebHost)>) -> Web {
        Web {
            hosts: hosts.into_iter().map(|(name, host)| (name.to_owned(), host)).collect(),
            callers: BTreeMap::new(),
            acme: Some(settings("https://a/")),
            acme_account: None,
        }
    }

    #[test]
    fn nothing_is_asked_of_nobody() {
        let mut plan = Plan::new(60);
        let mut without = web(vec![("a", host(None, 0))]);
        without.acme = None;
        assert_eq!(plan.next(&without), None);
        assert_eq!(plan.next(&web(Vec::new())), None);
        let other = WebHost { acme: false, ..host(None, 0) };
        assert_eq!(plan.next(&web(vec![("a", other)])), None);
    }

    #[test]
    fn who_has_none_comes_first_and_renewals_come_in_time() {
        let mut plan = Plan::new(60);
        let both = web(vec![("a", host(Some((1000, 1000 + 90 * DAY)), 0)), ("b", host(None, 0))]);
        let due = plan.next(&both).unwrap();
        assert_eq!((due.host.as_str(), due.at, due.way), ("b", 0, Way::Http));
        let one = web(vec![("a", host(Some((1000, 1000 + 90 * DAY)), 0))]);
        assert_eq!(plan.next(&one).unwrap().at, 1000 + 60 * DAY);
    }

    #[test]
    fn failures_make_pauses_that_grow_and_change_the_way() {
        let mut plan = Plan::new(60);
        let one = web(vec![("a", host(None, 0))]);
        let mut now = 1_000_000;
        let (mut pauses, mut ways) = (Vec::new(), Vec::new());
        for _ in 0..7 {
            let due = plan.next(&one).unwrap();
            ways.push(due.way);
            now = now.max(due.at);
            plan.tried(&due, false, now);
            pauses.push(plan.next(&one).unwrap().at - now);
        }
        assert_eq!(pauses, [60, 300, 1800, 10_800, 21_600, 21_600, 21_600]);
        assert_eq!(ways[..3], [Way::Http, Way::Tls, Way::Http]);
    }

    #[test]
    fn publishing_again_tries_again_soon_but_not_without_a_pause() {
        let mut plan = Plan::new(60);
        for _ in 0..4 {
            let due = plan.next(&web(vec![("a", host(None, 1))])).unwrap();
            plan.tried(&due, false, 5000);
        }
        assert_eq!(plan.next(&web(vec![("a", host(None, 1))])).unwrap().at, 5000 + 10_800);
        let again = plan.next(&web(vec![("a", host(None, 2))])).unwrap();
        assert_eq!((again.at, again.way), (5060, Way::Http));
        // And with another authority at once.
        let mut other = web(vec![("a", host(None, 2))]);
        other.acme = Some(settings("https://b/"));
        assert_eq!(plan.next(&other).unwrap().at, 0);
    }

    #[test]
    fn a_certificate_that_is_old_when_it_comes_makes_no_storm() {
        let mut plan = Plan::new(60);
        let due = plan.next(&web(vec![("a", host(None, 0))])).unwrap();
        plan.tried(&due, true, 5000);
        // The state has not heard of it yet.
        assert_eq!(plan.next(&web(vec![("a", host(None, 0))])).unwrap().at, 5060);
        let past = web(vec![("a", host(Some((1000, 1012)), 0))]);
        assert_eq!(plan.next(&past).unwrap().at, 5004);
        let past = web(vec![("a", host(Some((0, 5000)), 0))]);
        assert_eq!(plan.next(&past).unwrap().at, 5000 + 1666);
        assert!(plan.next(&web(vec![("a", host(Some((u64::MAX, 0)), 0))])).is_some());
    }

    #[test]
    fn names_that_are_gone_are_forgotten() {
        let mut plan = Plan::new(60);
        let one = web(vec![("a", host(None, 0))]);
        let due = plan.next(&one).unwrap();
        plan.tried(&due, false, 5000);
        assert_eq!(plan.next(&web(Vec::new())), None);
        assert_eq!(plan.next(&one).unwrap().at, 0);
    }
}
