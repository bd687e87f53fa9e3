//! The backends as we know them: requests in flight, who cannot be reached, and idle connections.
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::body::{ClientBody, Progress};
use crate::limits::Limits;
use crate::table::{Cluster, Table};
use crate::ticket::InFlight;

/// One connection to a backend.
pub(crate) type Sender = SendRequest<ClientBody>;

/// Everything about backends that outlives a table.
pub(crate) struct Pool {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    idle_limit: usize,
    idle_timeout: Duration,
    unrepeatable_idle_timeout: Duration,
    set_aside: (Duration, Duration),
    /// A connection to some backend is closed.
    pub(crate) closed: Notify,
}

/// One backend.
pub(crate) struct Entry {
    pub(crate) id: u64,
    in_flight: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one used last is the last.
    idle: Vec<(Sender, Instant)>,
    /// Not in the table any more.
    gone: bool,
    failures: u32,
    aside_until: Option<Instant>,
}

impl Entry {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A connection and the request on it.
pub(crate) struct Lease {
    pub(crate) entry: Arc<Entry>,
    pub(crate) in_flight: InFlight,
    pub(crate) sender: Sender,
    pub(crate) progress: Option<Arc<Progress>>,
    pub(crate) pool: Arc<Pool>,
}

impl Lease {
    /// Bytes of the request body so far.
    pub(crate) fn received(&self) -> u64 {
        self.progress.as_ref().map_or(0, |progress| progress.bytes())
    }

    /// The response is read to its end: the connection may serve again, unless the request is still being sent.
    pub(crate) fn release(self) {
        if self.progress.as_ref().is_none_or(|progress| progress.is_done()) {
            self.pool.put(&self.entry, self.sender);
        }
    }
}

impl Pool {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            entries: Mutex::default(),
            idle_limit: limits.idle_per_backend,
            idle_timeout: limits.backend_idle_timeout,
            unrepeatable_idle_timeout: limits.unrepeatable_idle_timeout,
            set_aside: limits.set_aside,
            closed: Notify::new(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<u64, Arc<Entry>>) -> T) -> T {
        act(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A backend that may be asked and was not tried yet: the wanted one when it is among those, else the least loaded.
    pub(crate) fn choose(
        &self,
        cluster: &Cluster,
        tried: &[u64],
        wanted: Option<u64>,
    ) -> Option<(Arc<Entry>, InFlight)> {
        let now = Instant::now();
        self.with(|entries| {
            let mut candidates = Vec::with_capacity(cluster.backends.len());
            for backend in &cluster.backends {
                if !backend.healthy || backend.weight == 0 || tried.contains(&backend.id) {
                    continue;
                }
                let entry = entries.entry(backend.id).or_insert_with(|| new_entry(backend.id));
                if entry.with(|state| state.aside_until.is_some_and(|until| until > now)) {
                    continue;
                }
                candidates.push((backend.weight, entry.in_flight.load(Ordering::Relaxed), Arc::clone(entry)));
            }
            let wanted = candidates.iter().position(|(.., entry)| Some(entry.id) == wanted);
            let loads = || candidates.iter().map(|(weight, load, _)| (*weight, *load));
            let chosen = wanted.or_else(|| least_loaded(loads(), RandomState::new().hash_one(0)))?;
            let (.., entry) = candidates.swap_remove(chosen);
            let in_flight = InFlight::below(usize::MAX, &entry.in_flight)?;
            Some((entry, in_flight))
        })
    }

    /// It could not be reached: set aside for twice as long as the last time. Attempts that fail together count once.
    pub(crate) fn failed(&self, entry: &Entry) {
        let (first, longest) = self.set_aside;
        entry.with(|state| {
            if state.aside_until.is_some_and(|until| until > Instant::now()) {
                return;
            }
            let time = first.saturating_mul(1 << state.failures.min(16)).min(longest);
            state.failures = state.failures.saturating_add(1);
            state.aside_until = Some(Instant::now() + time);
            state.idle.clear();
        });
    }

    /// It could be reached.
    pub(crate) fn reached(&self, entry: &Entry) {
        entry.with(|state| {
            state.failures = 0;
            state.aside_until = None;
        });
    }

    /// An idle connection that looks alive, for a request that may or may not be sent twice.
    pub(crate) fn take(&self, entry: &Entry, repeatable: bool) -> Option<Sender> {
        let limit = if repeatable { self.idle_timeout } else { self.unrepeatable_idle_timeout };
        entry.with(|state| {
            // The others have been idle for longer still, and remain for requests that may be repeated.
            while state.idle.last().is_some_and(|(_, since)| since.elapsed() < limit) {
                let (sender, _) = state.idle.pop()?;
                if !sender.is_closed() {
                    return Some(sender);
                }
            }
            None
        })
    }

    /// Closes the idle connections to these backends. Whether there were any.
    pub(crate) fn evict(&self, backends: impl Iterator<Item = u64>) -> bool {
        self.with(|entries| {
            let mut any = false;
            for entry in backends.filter_map(|id| entries.get(&id)) {
                any |= entry.with(|state| !std::mem::take(&mut state.idle).is_empty());
            }
            any
        })
    }

    fn put(&self, entry: &Entry, sender: Sender) {
        entry.with(|state| {
            if !state.gone && state.idle.len() < self.idle_limit && !sender.is_closed() {
                state.idle.push((sender, Instant::now()));
            }
        });
    }

    /// Closes connections that were idle for long, and all those of backends that are gone.
    pub(crate) fn sweep(&self, table: &Table) {
        let known: HashSet<u64> = table.backends().map(|backend| backend.id).collect();
        let keep = |state: &mut State| {
            state.idle.retain(|(sender, since)| since.elapsed() < self.idle_timeout && !sender.is_closed());
        };
        let forget = |state: &mut State| {
            state.gone = true;
            state.idle.clear();
        };
        self.with(|entries| {
            entries.retain(|id, entry| {
                let kept = known.contains(id);
                entry.with(if kept { &keep as &dyn Fn(&mut State) } else { &forget });
                kept
            });
        });
    }

    /// Whoever became healthy by a new table may be asked at once.
    pub(crate) fn renewed(&self, old: &Table, new: &Table) {
        let healthy = |table: &Table| -> HashSet<u64> {
            table.backends().filter(|backend| backend.healthy).map(|backend| backend.id).collect()
        };
        let before = healthy(old);
        self.with(|entries| {
            for entry in healthy(new).difference(&before).filter_map(|id| entries.get(id)) {
                self.reached(entry);
            }
        });
    }
}

fn new_entry(id: u64) -> Arc<Entry> {
    Arc::new(Entry { id, in_flight: Arc::default(), state: Mutex::default() })
}

/// The position of the least loaded of (weight, requests in flight): the fewest per weight; among equals by lot, in proportion to
/// their weights. `None` when there is none, or none has a weight.
fn least_loaded(loads: impl Iterator<Item = (u32, usize)> + Clone, random: u64) -> Option<usize> {
    let below = |one: (u32, usize), other: (u32, usize)| {
        one.1 as u128 * u128::from(other.0) < other.1 as u128 * u128::from(one.0)
    };
    let weighed = loads.enumerate().filter(|(_, (weight, _))| *weight > 0);
    let least = weighed
        .clone()
        .map(|(_, load)| load)
        .reduce(|best, load| if below(load, best) { load } else { best })?;
    let equals = weighed.filter(move |(_, load)| !below(least, *load));
    let total: u64 = equals.clone().map(|(_, (weight, _))| u64::from(weight)).sum();
    let mut lot = random.checked_rem(total)?;
    for (position, (weight, _)) in equals {
        match lot.checked_sub(u64::from(weight)) {
            Some(rest) => lot = rest,
            None => return Some(position),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Backend;
    use proptest::prelude::*;

    fn cluster(ids: &[u64]) -> Cluster {
        let backend = |id: &u64| Backend { id: *id, weight: 1, healthy: true };
        Cluster { backends: ids.iter().map(backend).collect() }
    }

    #[test]
    fn fewest_in_flight_per_weight() {
        let of = |loads: &[(u32, usize)], random| least_loaded(loads.iter().copied(), random);
        assert_eq!(of(&[(1, 2), (1, 1), (1, 3)], 5), Some(1));
        assert_eq!(of(&[(1, 2), (4, 4)], 5), Some(1));
        assert_eq!(of(&[(0, 0), (1, 9)], 5), Some(1));
        assert_eq!(of(&[(0, 0)], 5), None);
        assert_eq!(of(&[], 5), None);
        let lots: Vec<_> = (0..4).map(|random| of(&[(1, 0), (3, 0)], random)).collect();
        assert_eq!(lots, [Some(0), Some(1), Some(1), Some(1)]);
    }

    proptest! {
        #[test]
        fn none_has_less_load(loads in prop::collection::vec((0_u32..5, 0_usize..9), 0..8), random: u64) {
            match least_loaded(loads.iter().copied(), random) {
                None => prop_assert!(loads.iter().all(|(weight, _)| *weight == 0)),
                Some(at) => {
                    let (weight, load) = loads[at];
                    prop_assert!(weight > 0);
                    prop_assert!(loads.iter().all(|(w, l)| *w == 0 || load * *w as usize <= l * weight as usize));
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn set_aside_for_longer_and_longer() {
        let (pool, two) = (Pool::new(&Limits::default()), cluster(&[1, 2]));
        let choose = |tried: &[u64]| pool.choose(&two, tried, Some(1)).map(|(entry, _)| entry);
        let first = choose(&[]).unwrap();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(choose(&[]).unwrap().id, 1);
            pool.failed(&first);
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert_eq!(choose(&[]).unwrap().id, 2);
            assert!(choose(&[2]).is_none());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        pool.failed(&first);
        let table = |healthy| {
            let backends = vec![Backend { id: 1, weight: 1, healthy }];
            let name = crate::table::HostName::new("a").unwrap();
            Table::new([crate::table::Host::new(name, Arc::new(Cluster { backends }))]).unwrap()
        };
        pool.renewed(&table(true), &table(true));
        assert_eq!(choose(&[]).unwrap().id, 2);
        pool.renewed(&table(false), &table(true));
        assert_eq!(choose(&[]).unwrap().id, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_fail_together_count_once() {
        let (pool, one) = (Pool::new(&Limits::default()), cluster(&[1]));
        let (entry, _) = pool.choose(&one, &[], None).unwrap();
        for _ in 0..64 {
            pool.failed(&entry);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(pool.choose(&one, &[], None).is_some(), "set aside for the first time, not for the longest");
    }

    #[tokio::test]
    async fn requests_in_flight_count() {
        let (pool, two) = (Pool::new(&Limits::default()), cluster(&[1, 2]));
        let mut held: Vec<_> = (0..10).map(|_| pool.choose(&two, &[], None).unwrap()).collect();
        let ones = held.iter().filter(|(entry, _)| entry.id == 1).count();
        assert_eq!(ones, 5);
        held.retain(|(entry, _)| entry.id == 1);
        assert_eq!(pool.choose(&two, &[], None).unwrap().0.id, 2);
        pool.sweep(&Table::default());
        assert!(held[0].0.with(|state| state.gone));
    }
}
