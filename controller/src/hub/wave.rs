//! How fast changes reach the nodes that they concern: for each change of policies of the last time, how many had it how soon.

use std::time::Duration;

/// Times are told apart by an eighth of a doubling, from 0.1 ms on: within 9 %.
const STEPS_PER_DOUBLING: f64 = 8.0;
const FIRST_SECONDS: f64 = 0.000_1;
/// The last one, some 7 minutes, stands for all that take longer.
const STEPS: usize = 176;

/// Counts of times, in few bytes however many there are.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    counts: [u32; STEPS],
    all: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: [0; STEPS], all: 0 }
    }
}

impl Times {
    /// Counts one.
    pub(crate) fn add(&mut self, time: Duration) {
        let doublings = (time.as_secs_f64() / FIRST_SECONDS).max(1.0).log2();
        // Not negative, and far below what is exact.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to some hundreds")]
        let step = (doublings * STEPS_PER_DOUBLING).ceil() as usize;
        if let Some(count) = self.counts.get_mut(step.min(STEPS - 1)) {
            *count = count.saturating_add(1);
            self.all = self.all.saturating_add(1);
        }
    }

    /// What so many of a hundred took at most; `None` of none.
    pub(crate) fn percentile(&self, percent: u32) -> Option<Duration> {
        let rank = (u64::from(self.all) * u64::from(percent)).div_ceil(100).max(1);
        let mut below = 0;
        let step = self.counts.iter().position(|count| {
            below += u64::from(*count);
            below >= rank
        })?;
        let doublings = f64::from(u16::try_from(step).unwrap_or(u16::MAX)) / STEPS_PER_DOUBLING;
        Some(Duration::from_secs_f64(FIRST_SECONDS * doublings.exp2()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_right_within_a_tenth_and_of_none_there_is_none() {
        assert_eq!(Times::default().percentile(99), None);
        let mut times = Times::default();
        (1..=1_000).map(Duration::from_millis).for_each(|time| times.add(time));
        for (percent, expected) in [(0, 0.001), (50, 0.5), (99, 0.99), (100, 1.0)] {
            let found = times.percentile(percent).map_or(0.0, |time| time.as_secs_f64());
            assert!((expected..expected * 1.1).contains(&(found + 1e-9)), "{percent}: {found}");
        }
        times.add(Duration::ZERO);
        times.add(Duration::from_secs(1_000_000));
        assert_eq!(times.all, 1_002);
        assert!(times.percentile(100) > Some(Duration::from_secs(300)));
    }
}
