//! `firebreak.v1`: the generated messages and services, and their conversions to and from the policy model.
#![forbid(unsafe_code)]

/// The generated code of `firebreak.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]
pub mod v1 {
    tonic::include_proto!("firebreak.v1");
}

/// The encoded `FileDescriptorSet` of `firebreak.v1`, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/firebreak.v1.bin"));
