//! Denied flows: what the kernel counted and logged becomes records at the controller.
//!
//! ```text
//! NFLOG group (first packet of a flow) --nflog--> \
//!                                                  aggregate (pure) --> outbox (pure) --reporter--> FlowService.Report
//! sets denied_* and named counters --read::Reader-> /
//! ```
//!
//! What holds:
//! 1. A flow yields `opened` once, `updated` at most every 60 s, `closed` after 60 s without a packet; all with one id.
//! 2. Kernel counters are read, never reset. Totals come from the counters; NFLOG only makes `opened` prompt and gives the
//!    first source port. With NFLOG gone a flow is opened by the next read.
//! 3. Every packet of `denied_in` and `denied_out` is told: by a flow's total or by a `lost` record ([`control`]).
//! 4. Sequences of one boot never name two different records, and a gap in them is a record that was lost ([`cursor`]).
//! 5. Everything is bounded: flows, unacknowledged records, channels; what is dropped is counted and told.
//!
//! This is, beside `dataplane`, the only code that speaks nfnetlink; it only reads. Reading a table that another socket
//! owns is allowed (kernel rule: NFT_TABLE_F_OWNER refuses changes only).

mod aggregate;
mod config;
pub mod control;
pub mod cursor;
mod cut;
mod error;
mod events;
mod guard;
pub mod journal;
mod key;
mod locals;
pub(crate) mod netlink;
mod nflog;
mod node_event;
mod outbox;
mod packet;
mod read;
mod record;
mod reporter;
mod run;
mod stats;

pub use aggregate::{Aggregator, Moment, PacketSeen};
pub use config::{FlowsConfig, Limits, Timing};
pub use cut::{CutTold, WireEnds};
pub use error::FlowsError;
pub use guard::{FirstFrame, GuardTold};
pub use key::{DecodeKey, FlowKey, FlowVerdict, LOG_UNCOUNTED};
pub use locals::{LocalEnd, LocalView, REMEMBERED, RecentLocals};
pub use nflog::{LoggedFrame, NflogSocket};
pub use node_event::{NodeEventKind, NodeTold, OBJECTS_NAMED};
pub use outbox::{BATCH_RECORDS, Outbox};
pub use packet::{PacketError, PacketSummary, parse_packet};
pub use read::{Counters, ElementReading, Reader, TableReading};
pub use record::{FlowId, FlowTold, Phase, Record, Told};
pub use run::{Others, run};
pub use stats::{FlowsStats, FlowsStatsSnapshot};
