//! Firebreak's policy core: what people wrote and what is running go in, what each node needs comes out.
//!
//! Pure: no I/O, no async, no clock, no serde. Every function here is a function of its arguments, so that the
//! controller, the agent, the command line and the tests judge with the same engine.
#![forbid(unsafe_code)]

mod address_set;
#[cfg(feature = "arbitrary")]
pub mod arbitrary;
mod compile;
mod engine;
pub mod evaluate;
mod flatten;
mod headed;
mod id_text;
pub mod index;
pub mod judge;
pub mod kernel_sets;
mod members;
pub mod model;
pub mod node_judge;
pub mod node_state;
#[cfg(feature = "arbitrary")]
pub mod reference;
pub mod reserved;
mod seek;
pub mod shared_map;
mod shared_sets;
mod tiers;

pub use address_set::AddressSet;
pub use compile::{Compiled, Problem, compile};
pub use engine::{Engine, EvaluateError, FlowVerdict};
pub use flatten::{Flattened, Limits, SetsDelta, Step, flatten, flatten_with};
pub use headed::Headed;
pub use id_text::IdText;
pub use members::{Changes, Members};
pub use shared_map::SharedMap;
pub use tiers::resolved;
