//! Every way past the policy that DESIGN section 6 names, tried with real frames from inside the attacker's namespace: on bridged and on routed
//! veths, over IPv4 and IPv6. Each fails with enforcement on, and is then seen to succeed without it, or is said to be harmless
//! and why. docs/threat-model.md names these functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arena;
mod attack;
mod connections;
mod flooding;
mod identity;
mod links;
mod moments;
mod neighbours;
mod node;
mod packets;
mod random;
mod routers;
mod scene;
