//! Searching a sorted list that is mostly not in the processor's caches.

/// How many places are looked at in one step.
const LOOKS: usize = 8;

/// How many of the first `len` places are below what is sought, where those that are come before those that are not: what
/// [`slice::partition_point`] says. It looks at several places at a time. Looks at memory that do not depend on one another are waited for
/// together, while halving waits for each before it knows the next; for the lists of a node, that is three waits of eight.
pub(crate) fn seek(len: usize, is_below: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut end) = (0, len);
    while end - from > 2 * LOOKS {
        let step = (end - from) / (LOOKS + 1);
        let below = (1..=LOOKS).filter(|look| is_below(from + look * step)).count();
        if below < LOOKS {
            end = from + (below + 1) * step;
        }
        if below > 0 {
            from += below * step + 1;
        }
    }
    from + (from..end).filter(|at| is_below(*at)).count()
}

/// The places that [`seek`] looks at first, if there are many.
pub(crate) fn first_looks(len: usize) -> impl Iterator<Item = usize> {
    let step = if len > 2 * LOOKS { len / (LOOKS + 1) } else { 2 };
    (0..len).step_by(step).skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_halving_says_of_every_length_and_place() {
        for len in (0..200).chain([1_000, 4_097]) {
            let list: Vec<usize> = (0..len).collect();
            for sought in 0..=len {
                assert_eq!(seek(len, |at| list[at] < sought), list.partition_point(|it| *it < sought), "{sought} of {len}");
            }
        }
    }

    #[test]
    fn it_looks_at_few_places_one_after_the_other() {
        let looks = std::cell::Cell::new(0_usize);
        let found = seek(100_000, |at| {
            looks.set(looks.get() + 1);
            at < 77_777
        });
        assert_eq!(found, 77_777);
        assert!(looks.get() < 64, "{} looks", looks.get());
    }
}
