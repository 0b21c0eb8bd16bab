//! Break-glass: for a while, what policy denies is let through and told as AUDIT, so that people who locked themselves out get in.
//!
//! What holds:
//! 1. It ends by itself, whoever is alive then: it is a set element with a timeout ([`crate::dataplane`]). After a reboot it is over.
//! 2. It is never longer than [`LONGEST`], and always says who asked and why.
//! 3. It covers what policy denies, and connections that policy cuts. Unknown interfaces, the guards, and packets that belong to no
//!    connection stay denied: nobody locks himself out by those, and an attacker would be let loose.
//! 4. Where an agent runs, it alone writes; its orders come from the controller's session or from the socket in its state
//!    directory. Where none runs, `firebreak-agent observe` takes the tables over for that one change.

mod record;
mod run;
mod socket;

pub use record::{ObserveRecord, RecordFile};
pub use run::{ObserveLinks, run};
pub use socket::{Answer, Order, SOCKET, ask, listen, serve, without_agent};

use firebreak_proto::v1;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// The longest that a node observes after one order.
pub const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// A node that observes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observing {
    /// Until when.
    pub until: SystemTime,
    /// Who asked.
    pub principal: String,
    /// Why.
    pub reason: String,
}

impl From<&Observing> for v1::Observing {
    fn from(observing: &Observing) -> Self {
        let Observing { until, principal, reason } = observing;
        Self { until: Some((*until).into()), principal: principal.clone(), reason: reason.clone() }
    }
}

/// What became of a controller's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The order's number.
    pub order: u64,
    /// Why it was not followed.
    pub refused: Option<String>,
}

impl From<&Answered> for v1::ObserveAnswer {
    fn from(answered: &Answered) -> Self {
        let Answered { order, refused } = answered;
        Self { revision: *order, refused: refused.clone().unwrap_or_default() }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To observe for so long from now; replaces what was asked before.
    Begin(Duration),
    /// To stop.
    End,
}

/// An order.
#[derive(Debug)]
pub struct Request {
    /// To do what.
    pub change: Change,
    /// Who asks.
    pub principal: String,
    /// Why.
    pub reason: String,
    /// The number of a controller's order, which the node's report answers.
    pub order: Option<u64>,
    /// Who waits for the answer, if somebody does.
    pub reply: Option<oneshot::Sender<Result<Option<Observing>, Refused>>>,
}

/// Why an order was not followed; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too long, or for no time at all.
    #[error("{0:?} is not between 1 s and {LONGEST:?}")]
    Duration(Duration),
    /// It does not say why.
    #[error("a reason must be given")]
    NoReason,
    /// The kernel, or what is in it.
    #[error("{0}")]
    Kernel(String),
}

impl Change {
    /// Whether it is one that is followed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self, reason: &str) -> Result<(), Refused> {
        match self {
            Self::Begin(duration) if duration < Duration::from_secs(1) || duration > LONGEST => Err(Refused::Duration(duration)),
            Self::Begin(_) if reason.trim().is_empty() => Err(Refused::NoReason),
            Self::Begin(_) | Self::End => Ok(()),
        }
    }
}

/// As the element's comment has it, for people who list the table.
pub fn note(principal: &str, reason: &str) -> String {
    format!("{principal}: {reason}")
}

/// Reads `90s`, `15m`, `2h`.
///
/// # Errors
/// Says what is taken.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is not a time; give 90s, 15m or 2h");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?);
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_read_and_bounded_and_a_reason_must_be_given() {
        for (text, seconds) in
            [("90s", Some(90)), ("15m", Some(900)), ("2h", Some(7200)), ("15", None), ("m", None), ("-1s", None), ("1d", None)]
        {
            assert_eq!(parse_duration(text).ok().map(|duration| duration.as_secs()), seconds, "{text}");
        }
        for (change, reason, expected) in [
            (Change::Begin(Duration::from_secs(900)), "locked out", Ok(())),
            (Change::Begin(LONGEST + Duration::from_secs(1)), "locked out", Err(Refused::Duration(LONGEST + Duration::from_secs(1)))),
            (Change::Begin(Duration::ZERO), "locked out", Err(Refused::Duration(Duration::ZERO))),
            (Change::Begin(Duration::from_secs(900)), " ", Err(Refused::NoReason)),
            (Change::End, "", Ok(())),
        ] {
            assert_eq!(change.check(reason), expected);
        }
    }
}
