//! The leak checker while everything is killed, restarted, upgraded, flushed and changed: zero forbidden packets delivered, zero permitted ones
//! dropped, zero connections refused or reset. Both topologies, both families, TCP, UDP and ICMP, every direction.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod field;
mod flood;
mod flushes;
mod itself;
mod kept;
mod metronome;
mod races;
mod restarts;
mod shielded;
mod storms;
mod upgrades;
