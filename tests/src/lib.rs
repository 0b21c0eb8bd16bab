//! The harness of the end-to-end tests and the demos: nodes and workloads as network namespaces of the real kernel, the real binaries, and
//! probes that send real packets. Everything is made under names of its own and taken away when it is dropped.
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod crowd;
pub mod docker;
pub mod docker_demo;
pub mod docker_site;
pub mod flood;
pub mod follower;
pub mod frames;
pub mod lab;
pub mod leak;
pub mod namespace;
pub mod permitted;
pub mod probe;
pub mod process;
pub mod random;
pub mod relay;
pub mod sctp;
pub mod server;
pub mod session;
pub mod shop;
pub mod site;
pub mod system;
pub mod volley;
pub mod wait;
pub mod witness;

/// How much the tests do: `ci` (default) or `full`, by `FIREBREAK_SCALE`.
pub fn scaled(ci: usize, full: usize) -> usize {
    match std::env::var("FIREBREAK_SCALE").as_deref() {
        Ok("full") => full,
        Ok(_) | Err(_) => ci,
    }
}
