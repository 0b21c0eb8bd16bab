//! Containers of a Docker engine. The engine is spoken with by a process of its own ([`watch`]), which passes typed events up
//! and nothing else: what an engine sends never meets the process that holds the kernel's tables.

pub mod event;
mod inspect;
mod supervise;
pub mod watch;

pub use event::{Bridge, Container, Event, Given, Network, Port};
pub use inspect::{InspectError, NetworkFacts, container, network};
pub use supervise::{DockerView, StartWatcher, Sync, supervise};
