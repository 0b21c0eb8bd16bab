//! Counts that people see at night, as metrics and in logs.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// Counters of the collection, shared with whoever exports them. They only rise, but for the gauges that say so.
        #[derive(Debug, Default)]
        pub struct FlowsStats { $($(#[doc = $doc])* pub(crate) $name: AtomicU64,)* }

        /// What [`FlowsStats`] held at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct FlowsStatsSnapshot { $($(#[doc = $doc])* pub $name: u64,)* }

        impl FlowsStats {
            /// All of them now.
            pub fn snapshot(&self) -> FlowsStatsSnapshot {
                FlowsStatsSnapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl FlowsStatsSnapshot {
            /// Each with its name, and what it is in words; of a gauge these end with "A gauge.".
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),*), self.$name),)*].into_iter()
            }
        }
    };
}

stats! {
    /// Packets that NFLOG told of.
    nflog_packets,
    /// Events that the kernel made and that never arrived (gaps of NFLOG's own sequence).
    nflog_missed,
    /// Times that the NFLOG socket's buffer was full.
    nflog_overruns,
    /// Logged packets that could not be read: truncated or not IP.
    nflog_unreadable,
    /// Logged packets with a prefix that is not ours.
    nflog_foreign,
    /// Times that new connections came faster than they could be judged by policies in Audit mode, or could not be followed.
    audit_overruns,
    /// Complete reads of the sets and counters.
    reads,
    /// Reads that the kernel refused or that could not be decoded.
    read_failures,
    /// Elements seen by the last read. A gauge.
    elements,
    /// Flows held. A gauge.
    flows,
    /// Flows opened.
    flows_opened,
    /// Flows that were opened by a read of the sets because no log event had come.
    flows_opened_by_read,
    /// Times that an event or an element could not be followed because the flow limit was reached; an element counts at each read.
    flows_refused,
    /// Packets in `lost` records.
    packets_lost,
    /// Records made.
    records,
    /// Records dropped because the controller did not take them.
    records_dropped,
    /// Records given up because the controller refused them.
    records_refused,
    /// Records acknowledged.
    records_acked,
    /// Records waiting. A gauge.
    records_waiting,
    /// Connections made to the controller.
    connections,
}

impl FlowsStats {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn set(gauge: &AtomicU64, value: usize) {
        gauge.store(u64::try_from(value).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
