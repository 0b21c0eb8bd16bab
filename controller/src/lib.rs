//! The Firebreak controller: policy goes in, per-node state goes out, denied flows come back.
#![forbid(unsafe_code)]

pub mod store;
