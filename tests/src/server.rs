//! Servers inside workloads: TCP and UDP, both families, answering with what they were sent.

use crate::namespace::Namespace;
use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, poll};
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a listener may go on after its servers are dropped, in milliseconds.
const STOP_LATENCY: u16 = 200;

/// Echo servers of one namespace; they end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
}

impl Servers {
    /// Starts servers on these TCP and UDP ports, on every address of both families.
    ///
    /// # Errors
    /// A port is taken.
    pub fn start(namespace: &Namespace, tcp: &[u16], udp: &[u16]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = (tcp.to_vec(), udp.to_vec());
        let (listeners, sockets) = namespace.run(move || -> anyhow::Result<_> {
            // [::] takes IPv4 too (net.ipv6.bindv6only is 0).
            let at = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            let listen = |port: &u16| TcpListener::bind(at(*port)).with_context(|| format!("cannot listen on {port}/tcp"));
            let bind = |port: &u16| UdpSocket::bind(at(*port)).with_context(|| format!("cannot bind {port}/udp"));
            Ok((tcp.iter().map(listen).collect::<Result<Vec<_>, _>>()?, udp.iter().map(bind).collect::<Result<Vec<_>, _>>()?))
        })??;
        for listener in listeners {
            let stop = Arc::clone(&stop);
            listener.set_nonblocking(true)?;
            std::thread::spawn(move || accept(&listener, &stop));
        }
        for socket in sockets {
            let stop = Arc::clone(&stop);
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            std::thread::spawn(move || echo_datagrams(&socket, &stop));
        }
        Ok(Self { stop })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let stop = Arc::clone(stop);
                std::thread::spawn(move || echo(stream, &stop));
            }
            Err(_) => {
                // Nobody is waiting. How the wait ended is told by the next accept.
                let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], STOP_LATENCY);
            }
        }
    }
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(Duration::from_millis(500))));
    if prepared.is_err() {
        return;
    }
    let mut buffer = [0_u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => {
                if stream.write_all(&buffer[..bytes]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0_u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            // A datagram that cannot be answered is one that the prober will miss.
            let _ = socket.send_to(&buffer[..bytes], from);
        }
    }
}
