//! Datagrams at short and even distances, each a new connection, and which of them arrived: when a verdict changed is seen to a fraction of a
//! millisecond.

use firebreak_tests::namespace::Namespace;
use firebreak_tests::wait;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where they go.
pub(crate) const PORT: u16 = 9_900;

const BEAT: Duration = Duration::from_micros(300);

pub(crate) struct Metronome {
    stop: Arc<AtomicBool>,
    beats: Arc<AtomicU64>,
    sender: JoinHandle<anyhow::Result<Vec<Instant>>>,
    receiver: JoinHandle<anyhow::Result<BTreeSet<u64>>>,
}

/// When each was sent, and whether it arrived.
pub(crate) struct Beats(Vec<(Instant, bool)>);

impl Metronome {
    pub(crate) fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> anyhow::Result<Self> {
        let (stop, beats) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let at = SocketAddr::new(address, PORT);
        let server = to.run(move || UdpSocket::bind(at))??;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (ended, counted) = (Arc::clone(&stop), Arc::clone(&beats));
        let sender = from.spawn(move || {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let mut sent = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let number = u64::try_from(sent.len())?;
                // A socket of its own: a new connection is judged.
                let socket = UdpSocket::bind(any)?;
                sent.push(Instant::now());
                socket.send_to(&number.to_be_bytes(), at)?;
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(BEAT);
            }
            Ok(sent)
        })?;
        let sender = std::thread::spawn(move || sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??);
        let ended = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || {
            let mut arrived = BTreeSet::new();
            let mut buffer = [0; 8];
            loop {
                match server.recv(&mut buffer) {
                    Ok(_) => drop(arrived.insert(u64::from_be_bytes(buffer))),
                    // What was sent before the stop has arrived: the wait is far longer than the way.
                    Err(_) if ended.load(Ordering::Relaxed) => return Ok(arrived),
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, beats, sender, receiver })
    }

    /// Waits until so many more were sent.
    pub(crate) fn wait_for(&self, more: u64) -> anyhow::Result<()> {
        let until = self.beats.load(Ordering::Relaxed) + more;
        wait::until_true("more beats", Duration::from_secs(30), || self.beats.load(Ordering::Relaxed) >= until).map(drop)
    }

    pub(crate) fn stop(self) -> anyhow::Result<Beats> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        let arrived = self.receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        let number = |index| u64::try_from(index).unwrap_or(u64::MAX);
        Ok(Beats(sent.into_iter().enumerate().map(|(index, at)| (at, arrived.contains(&number(index)))).collect()))
    }
}

impl Beats {
    /// When the last one was sent that had this verdict.
    pub(crate) fn last_seen(&self, allowed: bool) -> Option<Instant> {
        self.0.iter().rev().find(|(_, arrived)| *arrived == allowed).map(|(at, _)| *at)
    }

    /// When the first one was sent, after a moment, that had this verdict.
    pub(crate) fn first_seen(&self, allowed: bool, after: Instant) -> Option<Instant> {
        self.0.iter().find(|(at, arrived)| *at >= after && *arrived == allowed).map(|(at, _)| *at)
    }

    /// How many had this verdict.
    pub(crate) fn seen(&self, allowed: bool) -> usize {
        self.0.iter().filter(|(_, arrived)| *arrived == allowed).count()
    }

    /// Whether any of the last ones had this verdict.
    pub(crate) fn ends_with(&self, allowed: bool, last: usize) -> bool {
        self.0.iter().rev().take(last).any(|(_, arrived)| *arrived == allowed)
    }
}
