//! Several answers → one offset → what to do with the clock. Pure.
use super::packet::Nanos;

/// Below this the clock is not stepped but led to the right time: what people and programs notice as a jump
/// (RFC 5905 §11.3, STEPT).
const STEP: Nanos = 128_000_000;
/// Servers agree if they differ by no more than their own uncertainty and this: clocks drift between two questions.
const TOLERANCE: Nanos = 50_000_000;
/// A clock that is ahead of the time by less is held back until the time has caught up; by more it is set back.
const AHEAD: Nanos = 1_000_000_000;

/// What one server's answer says about our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// How much the clock is behind the server's.
    pub offset: Nanos,
    /// By how much that may be wrong: half the way there and back, and what the server says of itself.
    pub uncertainty: Nanos,
}

/// What to do with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// Set it forward, or back if this is negative.
    Step(Nanos),
    /// Let it run a little faster or slower until so much is made up.
    Slew(Nanos),
}

/// The offset that most servers agree on: that of the most certain one among the largest group whose answers are the same within
/// what they may be wrong. `None` where there is no majority: two that differ say nothing, and one liar of three is outvoted.
#[must_use]
pub fn select(samples: &[Sample]) -> Option<Nanos> {
    let agree = |a: &Sample, b: &Sample| {
        a.offset.abs_diff(b.offset)
            <= (a.uncertainty.saturating_add(b.uncertainty).saturating_add(TOLERANCE)).unsigned_abs()
    };
    let group = |of: &Sample| samples.iter().filter(|other| agree(of, other)).count();
    let in_majority = samples.iter().filter(|sample| group(sample) * 2 > samples.len());
    in_majority.min_by_key(|sample| sample.uncertainty).map(|sample| sample.offset)
}

/// What an offset asks for. `set` is whether the clock has been set since the board booted.
#[must_use]
pub fn decide(offset: Nanos, set: bool) -> Option<Adjustment> {
    match (offset, set) {
        (0, _) => None,
        // Nobody relies yet on what the clock said before.
        (offset, false) if offset.unsigned_abs() >= STEP.unsigned_abs() => Some(Adjustment::Step(offset)),
        (offset, true) if offset >= STEP || offset <= -AHEAD => Some(Adjustment::Step(offset)),
        (offset, _) => Some(Adjustment::Slew(offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Nanos = 1_000_000;

    fn sample(offset_ms: i64, uncertainty_ms: i64) -> Sample {
        Sample { offset: offset_ms * MS, uncertainty: uncertainty_ms * MS }
    }

    #[test]
    fn the_majority_is_believed() {
        assert_eq!(select(&[]), None);
        assert_eq!(select(&[sample(7, 5)]), Some(7 * MS));
        assert_eq!(select(&[sample(7, 5), sample(9000, 1)]), None, "which of them?");
        assert_eq!(select(&[sample(7, 5), sample(12, 3)]), Some(12 * MS), "the more certain one");
        assert_eq!(select(&[sample(7, 5), sample(86_400_000, 1), sample(9, 3)]), Some(9 * MS), "one lies");
        assert_eq!(select(&[sample(0, 5), sample(1000, 5), sample(2000, 5)]), None);
        let two_and_two = [sample(0, 5), sample(1, 5), sample(9000, 1), sample(9001, 1)];
        assert_eq!(select(&two_and_two), None);
    }

    #[test]
    fn the_clock_jumps_at_first_and_is_led_later() {
        use Adjustment::*;
        assert_eq!(decide(0, false), None);
        assert_eq!(decide(200 * MS, false), Some(Step(200 * MS)));
        assert_eq!(decide(-200 * MS, false), Some(Step(-200 * MS)));
        assert_eq!(decide(100 * MS, false), Some(Slew(100 * MS)));
        assert_eq!(decide(200 * MS, true), Some(Step(200 * MS)));
        assert_eq!(decide(-200 * MS, true), Some(Slew(-200 * MS)), "it does not go back for so little");
        assert_eq!(decide(-2000 * MS, true), Some(Step(-2000 * MS)));
    }

    proptest! {
        #[test]
        fn a_minority_of_liars_never_moves_the_clock(
            honest in prop::collection::vec((-20i64..20, 0i64..30), 3..6),
            liars in prop::collection::vec((1_000i64..1_000_000_000, 0i64..30), 0..3),
        ) {
            prop_assume!(liars.len() < honest.len());
            let samples: Vec<_> =
                honest.iter().chain(&liars).map(|(offset, uncertainty)| sample(*offset, *uncertainty)).collect();
            if let Some(offset) = select(&samples) {
                prop_assert!(offset.abs() <= 20 * MS);
            }
        }

        #[test]
        fn extremes_do_not_overflow(offsets in prop::collection::vec((any::<i64>(), 0i64..i64::MAX), 0..5)) {
            let samples: Vec<_> =
                offsets.into_iter().map(|(offset, uncertainty)| Sample { offset, uncertainty }).collect();
            let selected = select(&samples);
            prop_assert!(selected.is_none_or(|offset| samples.iter().any(|sample| sample.offset == offset)));
            for sample in samples {
                prop_assert_eq!(decide(sample.offset, true).is_some(), sample.offset != 0);
            }
        }
    }
}
