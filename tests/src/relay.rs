//! A relay as `docker-proxy` is one: takes connections on a port of the node and makes them anew, from the node's own address.

use crate::namespace::Namespace;
use anyhow::Context as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A TCP relay of one namespace; it takes no more connections once this is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// Relays this port of every address of the namespace to `to`, of either family.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(inside: &Namespace, port: u16, to: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = inside
            .run(move || TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))))?
            .with_context(|| format!("cannot listen on {port}/tcp"))?;
        let ended = Arc::clone(&stop);
        // Connections are made by threads that stay in the namespace.
        inside.spawn(move || {
            for taken in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(taken) = taken else { continue };
                // A client over IPv4 shows on [::] as a mapped address.
                let is_v4 = taken.peer_addr().is_ok_and(|from| from.ip().to_canonical().is_ipv4());
                let Some(to) = to.into_iter().find(|to| to.is_ipv4() == is_v4) else { continue };
                std::thread::spawn(move || relay(&taken, to));
            }
        })?;
        Ok(Self { stop })
    }
}

/// A UDP relay of one namespace, one way: what comes to the port is sent on from the node's own address. It takes no more once this is dropped.
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
}

impl Datagrams {
    /// Relays this port of every address of the namespace to `to`, of either family.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(inside: &Namespace, port: u16, to: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let bind = |address: IpAddr, port| inside.run(move || UdpSocket::bind(SocketAddr::new(address, port)));
        let taken = bind(Ipv6Addr::UNSPECIFIED.into(), port)?.with_context(|| format!("cannot listen on {port}/udp"))?;
        let made = [bind(Ipv4Addr::UNSPECIFIED.into(), 0)??, bind(Ipv6Addr::UNSPECIFIED.into(), 0)??];
        taken.set_read_timeout(Some(Duration::from_millis(100)))?;
        let ended = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 2048];
            while !ended.load(Ordering::Relaxed) {
                let Ok((bytes, from)) = taken.recv_from(&mut buffer) else { continue };
                let is_v4 = from.ip().to_canonical().is_ipv4();
                let way = usize::from(!is_v4);
                // A datagram that cannot be sent on is lost, as datagrams are.
                let _ = made[way].send_to(&buffer[..bytes], to[way]);
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Seen at the next connection; the namespace that it would come from goes at the same time.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn relay(taken: &TcpStream, to: SocketAddr) {
    // A backend that is not reached closes the client's connection, as docker-proxy does.
    let Ok(made) = TcpStream::connect_timeout(&to, Duration::from_secs(3)) else { return };
    let (Ok(mut from_client), Ok(mut to_client)) = (taken.try_clone(), taken.try_clone()) else { return };
    let (Ok(mut from_backend), Ok(mut to_backend)) = (made.try_clone(), made.try_clone()) else { return };
    std::thread::spawn(move || {
        // Either side's end ends the other.
        let _ = std::io::copy(&mut from_client, &mut to_backend);
        let _ = to_backend.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut from_backend, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
}
