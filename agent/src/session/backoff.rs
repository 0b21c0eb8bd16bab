//! How long to wait before the next attempt.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Doubles from `first` to `most`; each wait is cut by up to half, by a number that differs from node to node and from attempt
/// to attempt, so that a thousand agents do not come back in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), most: Duration::from_secs(15) }
    }
}

impl Backoff {
    /// The wait before attempt `attempt` (the first one after a failure is 0) of who is called `who`.
    pub fn wait(&self, attempt: u32, who: &str) -> Duration {
        let whole = self.first.saturating_mul(1_u32.checked_shl(attempt.min(20)).unwrap_or(u32::MAX)).min(self.most);
        let mut hasher = DefaultHasher::new();
        (who, attempt).hash(&mut hasher);
        let share = u32::try_from(hasher.finish() % 1000).unwrap_or(0);
        whole - whole / 2 * share / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_differ_between_nodes() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(10) };
        for (attempt, whole) in [(0, 100), (1, 200), (3, 800), (7, 10_000), (40, 10_000), (u32::MAX, 10_000)] {
            let wait = backoff.wait(attempt, "n1");
            assert!(wait <= Duration::from_millis(whole) && wait >= Duration::from_millis(whole / 2), "{attempt}: {wait:?}");
        }
        assert_ne!(backoff.wait(5, "n1"), backoff.wait(5, "n2"));
    }
}
