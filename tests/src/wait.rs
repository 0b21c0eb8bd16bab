//! Waiting for a condition, with a limit and a name.

use anyhow::bail;
use std::time::{Duration, Instant};

/// Asks every few milliseconds until there is an answer; gives it and how long it took.
///
/// # Errors
/// Names what was waited for, and says the last reason why it was not there.
pub fn until<T>(what: &str, at_most: Duration, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok((answer, begun.elapsed())),
            Err(error) if begun.elapsed() >= at_most => bail!("waited {at_most:?} for {what}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The same for a plain yes or no.
///
/// # Errors
/// Names what was waited for.
pub fn until_true(what: &str, at_most: Duration, mut ask: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let asked = until(what, at_most, || if ask() { Ok(()) } else { Err(anyhow::anyhow!("it is not so")) })?;
    Ok(asked.1)
}
