//! Who holds an address of this node, now or a moment ago.

use firebreak_policy::model::{ContainerId, Direction, Generation, InterfaceName, NetworkName};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The local end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// The workload's container id.
    pub container: ContainerId,
    /// Its host-side interface.
    pub interface: InterfaceName,
    /// The network of its address.
    pub network: NetworkName,
}

/// What the collection asks of the rest of the agent. Must not block: it is asked for each new flow.
pub trait LocalView: Send + Sync + 'static {
    /// The workload that holds the address on this node, or held it a moment ago.
    fn locate(&self, now: Instant, direction: Direction, address: IpAddr) -> Option<Arc<LocalEnd>>;
    /// The generation that the kernel enforces.
    fn generation(&self) -> Generation;
}

/// How long a workload that has stopped is still named: as long as one of its flows may stay open.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// A [`LocalView`] that is told of each change and remembers those who went for [`REMEMBERED`]. An address that somebody
/// holds now is never given to who held it before.
#[derive(Debug, Default)]
pub struct RecentLocals {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    generation: Generation,
    live: HashMap<IpAddr, Arc<LocalEnd>>,
    gone: HashMap<IpAddr, (Instant, Arc<LocalEnd>)>,
}

impl RecentLocals {
    /// Knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the live workloads. Ends that are not named any more are remembered from `now` on.
    pub fn update(&self, now: Instant, live: HashMap<IpAddr, Arc<LocalEnd>>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut inner.live, live);
        for (address, end) in before {
            if !inner.live.contains_key(&address) {
                inner.gone.insert(address, (now, end));
            }
        }
        let Inner { live, gone, generation: _ } = &mut *inner;
        gone.retain(|address, (since, _)| now.saturating_duration_since(*since) <= REMEMBERED && !live.contains_key(address));
    }

    /// The generation that the kernel enforces from now on.
    pub fn set_generation(&self, generation: Generation) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).generation = generation;
    }
}

impl LocalView for RecentLocals {
    fn locate(&self, now: Instant, _direction: Direction, address: IpAddr) -> Option<Arc<LocalEnd>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let recent =
            || inner.gone.get(&address).filter(|(since, _)| now.saturating_duration_since(*since) <= REMEMBERED).map(|(_, end)| end);
        inner.live.get(&address).or_else(recent).cloned()
    }

    fn generation(&self) -> Generation {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(name: &str) -> Arc<LocalEnd> {
        Arc::new(LocalEnd { container: name.into(), interface: name.into(), network: NetworkName::default_network() })
    }

    #[test]
    fn a_stopped_workload_is_named_for_a_minute_unless_its_address_has_a_new_holder() {
        let address = IpAddr::from([10, 0, 0, 2]);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let locals = RecentLocals::new();
        let who = |now| locals.locate(now, Direction::Egress, address).map(|end| end.container.to_string());

        assert_eq!(who(start), None);
        locals.update(start, HashMap::from([(address, end("one"))]));
        assert_eq!(who(start).as_deref(), Some("one"));
        locals.update(after(10), HashMap::new());
        assert_eq!(who(after(70)).as_deref(), Some("one"));
        assert_eq!(who(after(71)), None);
        locals.update(after(20), HashMap::from([(address, end("two"))]));
        assert_eq!(who(after(21)).as_deref(), Some("two"));
        locals.update(after(30), HashMap::new());
        assert_eq!(who(after(31)).as_deref(), Some("two"));
        locals.update(after(200), HashMap::new());
        assert_eq!(locals.inner.read().map(|inner| inner.gone.len()).ok(), Some(0), "what was remembered too long is freed");
    }
}
