//! The Firebreak node agent as a library, so that tests and benchmarks can drive its parts.

pub mod core;
pub mod dataplane;
pub mod discovery;
pub mod flows;
pub mod local;
pub mod session;
