//! When so much is denied that known packets are to be dropped first of all. Pure: it is told what the kernel has counted.
//!
//! What asks for known packets costs every packet a lookup, some 1.5 % of a round trip; a denied packet that it spares costs the node some 5 us. At
//! 10,000 a second ([`super::DataplaneConfig::flood_rate`]) these are a twentieth of a processor.

use super::names::DIRECTIONS;
use firebreak_policy::model::Direction;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Below this part of the rate at which it begins a flood may be over,
const ENDS: u64 = 5;
/// and is when it was below for so long.
const QUIET: Duration = Duration::from_secs(10);
/// A shorter time says nothing about a rate.
const SHORTEST: Duration = Duration::from_millis(50);

/// The floods of both directions.
#[derive(Clone, Debug)]
pub(super) struct Floods {
    /// Denied packets a second.
    begins: u64,
    /// What was counted in each direction, and when.
    seen: Option<(Instant, [u64; 2])>,
    on: BTreeSet<Direction>,
    /// Since when each direction was below the end.
    quiet: [Option<Instant>; 2],
}

impl Floods {
    /// Each begins at so many denied packets a second; `on` are those that somebody has found before.
    pub(super) fn new(begins: u64, on: BTreeSet<Direction>) -> Self {
        Self { begins, seen: None, on, quiet: [None; 2] }
    }

    /// Takes what is counted by now, ingress and egress, and says in which directions there is a flood.
    pub(super) fn see(&mut self, now: Instant, counted: [u64; 2]) -> &BTreeSet<Direction> {
        let Some((at, before)) = self.seen else {
            self.seen = Some((now, counted));
            return &self.on;
        };
        let lasted = now.saturating_duration_since(at);
        if lasted < SHORTEST {
            return &self.on;
        }
        self.seen = Some((now, counted));
        for (index, direction) in DIRECTIONS.into_iter().enumerate() {
            // A counter that was made anew has counted nothing yet.
            let packets = counted[index].saturating_sub(before[index]);
            let rate = u64::try_from(u128::from(packets) * 1_000 / lasted.as_millis().max(1)).unwrap_or(u64::MAX);
            if rate >= self.begins {
                self.on.insert(direction);
            }
            if rate >= self.begins / ENDS {
                self.quiet[index] = None;
                continue;
            }
            let since = *self.quiet[index].get_or_insert(now);
            if now.saturating_duration_since(since) >= QUIET {
                self.on.remove(&direction);
            }
        }
        &self.on
    }

    /// In which directions there is one.
    pub(super) fn shielded(&self) -> &BTreeSet<Direction> {
        &self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floods<const N: usize>(on: [Direction; N]) -> Floods {
        Floods::new(10_000, on.into())
    }

    /// Half a second each.
    fn over(rates: &[[u64; 2]], mut floods: Floods) -> Vec<Vec<Direction>> {
        let (mut now, mut counted) = (Instant::now(), [0; 2]);
        floods.see(now, counted);
        let step = |rate: &[u64; 2]| {
            now += Duration::from_millis(500);
            counted = [counted[0] + rate[0] / 2, counted[1] + rate[1] / 2];
            floods.see(now, counted).iter().copied().collect()
        };
        rates.iter().map(step).collect()
    }

    #[test]
    fn a_flood_begins_at_once_in_its_direction_and_ends_after_ten_quiet_seconds() {
        assert_eq!(DIRECTIONS, [Direction::Ingress, Direction::Egress]);
        let (none, only_in, both) = (vec![], vec![Direction::Ingress], vec![Direction::Ingress, Direction::Egress]);
        assert_eq!(over(&[[9_999, 0], [10_000, 9_000], [0, 10_000]], floods([])), [none.clone(), only_in.clone(), both]);
        let mut rates = vec![[50_000, 0]];
        rates.extend([[1_999, 0]; 20]);
        rates.push([2_000, 0]);
        rates.extend([[0, 0]; 21]);
        let told = over(&rates, floods([]));
        assert!(told[..42].iter().all(|told| *told == only_in), "what comes again within ten seconds goes on: {told:?}");
        assert_eq!(told[42], none);
    }

    #[test]
    fn one_that_was_found_goes_on_until_it_is_quiet_and_a_counter_made_anew_is_no_flood() {
        let egress = vec![Direction::Egress];
        let told = over(&[[0, 0]; 21], floods([Direction::Egress]));
        assert!(told[..20].iter().all(|told| *told == egress) && told[20].is_empty(), "{told:?}");
        let (mut floods, now) = (floods([]), Instant::now());
        floods.see(now, [u64::MAX, 5]);
        assert!(floods.see(now + Duration::from_secs(1), [5, 5]).is_empty());
        assert!(floods.see(now + Duration::from_secs(1), [u64::MAX, u64::MAX]).is_empty(), "no time has passed");
    }
}
