//! `firebreak.v1`: the generated messages and services, and their conversions to and from the policy model.
#![forbid(unsafe_code)]

pub mod convert;
pub mod hash;
pub mod state;
pub mod workload;

pub use convert::Refusal;
pub use hash::ContentHash;

/// The generated code of `firebreak.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]
pub mod v1 {
    tonic::include_proto!("firebreak.v1");
}

/// The encoded `FileDescriptorSet` of `firebreak.v1`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firebreak.v1.bin"));

/// No message of the Sync stream is larger than this, in either direction.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What the message of an `INVALID_ARGUMENT` begins with when one record of a `FlowBatch` is to blame.
pub const REFUSED_RECORD: &str = "batch.records[";

/// The protocol version that `agent.proto` describes.
pub const PROTOCOL_VERSION: u32 = 2;

/// The feature of agents that enforce tiers; the others are sent no state that has any.
pub const FEATURE_TIERS: &str = "tiers";

/// The feature of agents that deny with an answer where a rule says so; the others are sent no state in which one does.
pub const FEATURE_REJECT: &str = "reject";

/// The feature of agents that tell what policies in Audit mode would deny; the others are sent no state that has any.
pub const FEATURE_AUDIT: &str = "audit";
