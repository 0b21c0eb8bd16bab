//! What the collection of denied flows needs to know.

use firebreak_policy::model::NodeName;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Endpoint;

/// Settings of [`super::run`].
#[derive(Clone, Debug)]
pub struct FlowsConfig {
    /// This node's name, as in `Hello`.
    pub node: NodeName,
    /// The installation's random id, as in `Hello`.
    pub instance_id: String,
    /// The kernel's boot id (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// The controller's agent service. Flow reports use a connection of their own.
    pub endpoint: Endpoint,
    /// Where the cursor and the next sequence are kept; made if it is missing.
    pub state_dir: PathBuf,
    /// The NFLOG group that the table's rules log to.
    pub nflog_group: u16,
    /// How often the kernel's sets are read. Reads slow down by themselves when one takes more than a fiftieth of it, down to one a minute. Must stay under a quarter of
    /// the sets' timeout (5 min), or entries end unread.
    pub read_interval: Duration,
    /// When flows are told of.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
}

impl FlowsConfig {
    /// The group that the table logs to unless configured otherwise.
    pub const DEFAULT_NFLOG_GROUP: u16 = 5;
    /// Half a second, so that a flow whose log event was lost, or that wakes up while the kernel still has its entry (so that nothing is logged),
    /// is reported well within one second.
    pub const DEFAULT_READ_INTERVAL: Duration = Duration::from_millis(500);
}

/// When flows are told of. DESIGN fixes both at a minute; tests are quicker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A flow without packets for this long is closed.
    pub idle: Duration,
    /// A flow is `updated` at most this often.
    pub update_every: Duration,
}

impl Timing {
    /// Both at one interval.
    pub fn every(interval: Duration) -> Self {
        Self { idle: interval, update_every: interval }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), update_every: Duration::from_secs(60) }
    }
}

/// How much is held at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows, and kernel elements of flows that closed, 240 to 550 bytes each (a hash table doubles). Packets of flows beyond it become a `lost` record.
    pub flows: usize,
    /// Records that the controller has not acknowledged, some 200 bytes each. When it is reached the oldest unsent `updated` goes first, then
    /// `opened`, then `closed`, and a `lost` record says so.
    pub records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 150_000, records: 100_000 }
    }
}
