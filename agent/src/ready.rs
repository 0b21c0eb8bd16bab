//! Tells systemd that enforcement is in force, so that what is ordered after the agent (Docker) starts then (sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `READY=1` to the socket that systemd named in `NOTIFY_SOCKET`; without one there is nobody to tell.
///
/// # Errors
/// The socket cannot be reached.
pub fn tell_systemd(socket: Option<&OsStr>) -> io::Result<()> {
    let Some(socket) = socket.map(OsStr::as_bytes).filter(|socket| !socket.is_empty()) else { return Ok(()) };
    // A name in the abstract namespace is written with `@` in the place of its zero.
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn systemd_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("firebreak-ready-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        tell_systemd(Some(path.as_os_str())).unwrap();
        tell_systemd(Some(OsStr::new(&format!("@{name}")))).unwrap();
        for socket in [by_path, by_name] {
            let mut text = [0; 16];
            let length = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1");
        }
        tell_systemd(None).unwrap();
        tell_systemd(Some(OsStr::new(""))).unwrap();
        assert!(tell_systemd(Some(OsStr::new("/nonexistent/notify"))).is_err());
    }
}
