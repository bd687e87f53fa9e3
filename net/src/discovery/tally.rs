//! What was refused, counted; said on the console once a minute at most, however much there is.
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// A flood must not fill the console.
const ONCE_IN: Duration = Duration::from_secs(60);

/// Counts that only grow.
#[derive(Debug, Default)]
pub(super) struct Tally<C> {
    counted: C,
    told: C,
    last: Option<Instant>,
}

impl<C: Copy + PartialEq + fmt::Display> Tally<C> {
    pub(super) fn counted(&self) -> C {
        self.counted
    }

    pub(super) fn count(&mut self, add: impl FnOnce(&mut C)) {
        add(&mut self.counted);
    }

    /// What is to be said now, if anything.
    pub(super) fn news(&mut self, now: Instant) -> Option<C> {
        let early = self.last.is_some_and(|last| now.duration_since(last) < ONCE_IN);
        if early || self.told == self.counted {
            return None;
        }
        self.told = self.counted;
        self.last = Some(now);
        Some(self.counted)
    }

    /// When there may be something to say, if something is unsaid.
    pub(super) fn due(&self) -> Option<Instant> {
        let unsaid = self.told != self.counted;
        unsaid.then(|| self.last.map_or_else(Instant::now, |last| last + ONCE_IN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_at_once_and_then_once_a_minute() {
        let start = Instant::now();
        let mut tally = Tally::<u64>::default();
        assert_eq!((tally.news(start), tally.due()), (None, None));
        let mut told = Vec::new();
        for second in 0..150 {
            tally.count(|count| *count += 1);
            told.extend(tally.news(start + Duration::from_secs(second)));
        }
        assert_eq!(told, [1, 61, 121]);
        assert_eq!(tally.due(), Some(start + Duration::from_secs(180)));
        assert_eq!(tally.news(start + Duration::from_secs(180)), Some(150));
        assert_eq!(tally.news(start + Duration::from_secs(999)), None, "nothing new");
    }
}
