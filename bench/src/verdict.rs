//! Watches from outside what the kernel decides: numbered messages, each a new flow, and which of them arrive.

use anyhow::{Context as _, bail};
use firebreak_tests::lab::Workload;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pause between two messages: what a measured time is uncertain by.
pub(crate) const SPACING: Duration = Duration::from_micros(400);
/// When nothing has arrived for so long, everything is denied.
const SILENCE: Duration = Duration::from_millis(80);
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages from one workload to another until this is dropped.
pub(crate) struct Beacon {
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    /// When each message was sent; its number is its place.
    sent: Mutex<Vec<Instant>>,
    /// The numbers that arrived, in the order in which they did.
    arrived: Mutex<Vec<usize>>,
    stop: AtomicBool,
}

impl Beacon {
    /// Starts sending to this UDP port.
    ///
    /// # Errors
    /// A namespace cannot be entered.
    pub(crate) fn start(from: &Workload, to: &Workload, port: u16) -> anyhow::Result<Self> {
        let seen = Arc::new(Seen::default());
        let receiver = to.namespace.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let receiving = Arc::clone(&seen);
        std::thread::spawn(move || receiving.receive(&receiver));
        let (sending, to) = (Arc::clone(&seen), SocketAddr::new(IpAddr::V4(to.v4), port));
        // It ends with the beacon; its own failure shows as silence.
        drop(from.namespace.spawn(move || sending.send(to))?);
        Ok(Self { seen })
    }

    /// Makes a change and gives how long after its beginning the first message was decided otherwise. `change` gives when it began.
    ///
    /// # Errors
    /// The change failed, or was not seen for seconds.
    pub(crate) fn until_allowed(&self, change: impl FnOnce() -> anyhow::Result<Instant>) -> anyhow::Result<Duration> {
        let before = self.arrivals();
        let begun = change()?;
        let (first, _) = firebreak_tests::wait::until("a message to arrive", PATIENCE, || {
            let arrived = lock(&self.seen.arrived);
            arrived.get(before).copied().context("none did")
        })?;
        Ok(self.sent(first)?.saturating_duration_since(begun))
    }

    /// The same for the first message that does not arrive any more.
    ///
    /// # Errors
    /// As [`Self::until_allowed`].
    pub(crate) fn until_denied(&self, change: impl FnOnce() -> anyhow::Result<Instant>) -> anyhow::Result<Duration> {
        let begun = change()?;
        let deadline = Instant::now() + PATIENCE;
        let mut arrivals = self.arrivals();
        loop {
            // Silence is what is waited for: only time can show it.
            std::thread::sleep(SILENCE);
            let now = self.arrivals();
            if now == arrivals {
                break;
            }
            if Instant::now() > deadline {
                bail!("messages still arrive {PATIENCE:?} after the change");
            }
            arrivals = now;
        }
        let last = lock(&self.seen.arrived).iter().max().copied().context("nothing ever arrived")?;
        Ok(self.sent(last + 1)?.saturating_duration_since(begun))
    }

    fn arrivals(&self) -> usize {
        lock(&self.seen.arrived).len()
    }

    fn sent(&self, number: usize) -> anyhow::Result<Instant> {
        lock(&self.seen.sent).get(number).copied().with_context(|| format!("message {number} was never sent"))
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// Each from a port of its own: a new flow for the rules.
    fn send(&self, to: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
                let number = {
                    let mut sent = lock(&self.sent);
                    sent.push(Instant::now());
                    sent.len() - 1
                };
                // A message that cannot be sent is one that does not arrive.
                let _ = socket.send_to(&number.to_be_bytes(), to);
            }
            std::thread::sleep(SPACING);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0_u8; size_of::<usize>()];
        while !self.stop.load(Ordering::Relaxed) {
            if matches!(socket.recv(&mut buffer), Ok(bytes) if bytes == buffer.len()) {
                lock(&self.arrived).push(usize::from_be_bytes(buffer));
            }
        }
    }
}

/// The lists are whole whatever happened to another thread.
fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
