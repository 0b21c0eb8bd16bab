//! What permitted traffic gets beside a flood: requests, and bytes.

use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const REQUEST: [u8; 64] = [7; 64];

/// At a time.
const CLIENTS: usize = 4;

/// Requests on each connection.
const REQUESTS: u32 = 20;

/// Longer than anything that works takes beside a flood.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// Connections of 20 requests each. The server is a thread of its own, woken for each, as servers are.
    Requests,
    /// One connection that is written to as fast as it is read.
    Bytes,
}

impl Traffic {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Requests, Self::Bytes];
}

/// A server that answers for as long as this lives, and where its client is.
#[derive(Debug)]
pub struct Permitted<'a> {
    client: &'a Namespace,
    to: SocketAddr,
    received: Arc<AtomicU64>,
    // Its end is the server's.
    listener: TcpListener,
}

impl<'a> Permitted<'a> {
    /// Starts the server.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(client: &'a Namespace, server: &Namespace, to: SocketAddr) -> anyhow::Result<Self> {
        let listener = server.run(move || TcpListener::bind(to))??;
        let received = Arc::new(AtomicU64::new(0));
        let (accepting, count) = (listener.try_clone()?, Arc::clone(&received));
        drop(server.spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let count = Arc::clone(&count);
                // A client that goes away ends its connection.
                std::thread::spawn(move || serve(stream, &count));
            }
        })?);
        Ok(Self { client, to, received, listener })
    }

    /// Requests answered, or bytes received, a second.
    ///
    /// # Errors
    /// A permitted packet did not come through.
    pub fn measure(&self, traffic: Traffic, lasting: Duration) -> anyhow::Result<f64> {
        let to = self.to;
        let clients = (0..CLIENTS).map(|_| {
            self.client.spawn(move || match traffic {
                Traffic::Requests => ask(to, lasting),
                Traffic::Bytes => pour(to, lasting),
            })
        });
        let before = self.received.load(Ordering::Relaxed);
        let begun = Instant::now();
        let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
        let mut answered = 0;
        for client in clients {
            let done = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            answered += done?.context("permitted traffic beside the flood")?;
        }
        let through = match traffic {
            Traffic::Requests => answered,
            Traffic::Bytes => self.received.load(Ordering::Relaxed) - before,
        };
        ensure!(through > 0, "nothing came through");
        Ok(through as f64 / begun.elapsed().as_secs_f64())
    }
}

impl Drop for Permitted<'_> {
    fn drop(&mut self) {
        // The server waits in `accept`, which this ends.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Answers requests, and only counts what begins with anything else.
fn serve(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        received.fetch_add(count as u64, Ordering::Relaxed);
        if buffer.get(..count) == Some(&REQUEST) {
            stream.write_all(&REQUEST)?;
        }
    }
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // No port is left waiting.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(stream)
}

fn ask(to: SocketAddr, lasting: Duration) -> anyhow::Result<u64> {
    let begun = Instant::now();
    let mut answered = 0;
    while begun.elapsed() < lasting {
        let mut stream = connect(to)?;
        for _ in 0..REQUESTS {
            let mut buffer = [0; REQUEST.len()];
            stream.write_all(&REQUEST)?;
            stream.read_exact(&mut buffer)?;
            answered += 1;
        }
    }
    Ok(answered)
}

/// What its buffers hold in the end is thrown away, and not counted.
fn pour(to: SocketAddr, lasting: Duration) -> anyhow::Result<u64> {
    let mut stream = connect(to)?;
    let block = vec![0; 64 * 1024];
    let begun = Instant::now();
    while begun.elapsed() < lasting {
        stream.write_all(&block)?;
    }
    Ok(0)
}
