//! Orders of measured values.

use std::time::{Duration, Instant};

/// The value below which `percent` of the values are (nearest rank); zero of none.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The middle time.
pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// The middle of the rounds' ratios: `ours[n] / theirs[n]`, each pair measured in turn.
pub(crate) fn median_ratio(ours: &[Duration], theirs: &[Duration]) -> f64 {
    median_of(&ratios(ours, theirs))
}

/// The middle value; not a number of none.
pub(crate) fn median_of(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The lowest and the highest of the rounds' ratios: the noise.
pub(crate) fn ratio_range(ours: &[Duration], theirs: &[Duration]) -> (f64, f64) {
    let ratios = ratios(ours, theirs);
    (ratios.iter().copied().fold(f64::INFINITY, f64::min), ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

fn ratios(ours: &[Duration], theirs: &[Duration]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours.as_secs_f64() / theirs.as_secs_f64()).collect()
}

/// What it gives, and how long it took.
pub(crate) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let given = what();
    (given, begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        for (percent, expected) in [(0, 1), (1, 1), (50, 50), (99, 99), (100, 100)] {
            assert_eq!(percentile(&times, percent), Duration::from_millis(expected), "{percent}");
        }
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_ratio_is_of_the_pairs_not_of_the_medians() {
        let ms = |values: [u64; 3]| values.map(Duration::from_millis);
        let (ours, theirs) = (ms([2, 20, 200]), ms([1, 20, 400]));
        assert!((median_ratio(&ours, &theirs) - 1.0).abs() < 1e-9);
        assert_eq!(ratio_range(&ours, &theirs), (0.5, 2.0));
    }
}
