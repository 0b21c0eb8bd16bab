//! Opening the listeners.

use anyhow::{Context, bail};
use nix::unistd::{Group, chown};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Opens the operators' socket: mode 0660, owned by `group` where one is named, in a folder that is made if it is not there.
///
/// A socket that is left over is replaced; one that somebody listens on, or a file that is no socket, is refused. The socket appears under its
/// name with its final mode, so that at no moment others can connect.
pub async fn unix(path: &Path, group: Option<&str>) -> anyhow::Result<UnixListener> {
    let act = || format!("cannot listen on {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(act)?;
    }
    refuse_taken(path).await.with_context(act)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    remove(&fresh).with_context(act)?;
    let listener = UnixListener::bind(&fresh).with_context(act)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660)).with_context(act)?;
    if let Some(name) = group {
        let found = Group::from_name(name).with_context(|| format!("cannot look up group {name}"))?;
        let group = found.with_context(|| format!("there is no group {name}"))?;
        chown(&fresh, None, Some(group.gid)).with_context(|| format!("cannot give {} to group {name}", path.display()))?;
    }
    std::fs::rename(&fresh, path).with_context(act)?;
    Ok(listener)
}

async fn refuse_taken(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => bail!("there is a file of that name that is no socket"),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another process listens there"),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error).context("a socket is there and cannot be tried"),
    }
}

/// Removes the file; one that is not there is no error.
pub fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Opens a TCP listener; `what` names it in the error.
pub async fn tcp(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/controller.sock");
        let first = unix(&path, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = format!("{:#}", unix(&path, None).await.unwrap_err());
        assert!(error.contains("another process listens there") && error.contains("controller.sock"), "{error}");
        drop(first);
        let second = unix(&path, None).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(second);
        remove(&path).unwrap();
        std::fs::write(&path, b"text").unwrap();
        let error = format!("{:#}", unix(&path, None).await.unwrap_err());
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        remove(&path).unwrap();
        let error = format!("{:#}", unix(&path, Some("no-such-group-here")).await.unwrap_err());
        assert!(error.contains("there is no group no-such-group-here"), "{error}");
    }
}
