//! Taking everything away again: one explicit command, never a side effect of stopping.

use super::error::{OpenError, UninstallError};
use super::names::{Layer, TABLE};
use super::report::UninstallReport;
use super::socket::NetfilterSocket;
use super::tables;

/// Removes every kernel object that is ours and nothing else. A second time it removes nothing. Goes on after a failure and
/// names each at the end. A table that a running agent owns is refused.
pub fn uninstall() -> Result<UninstallReport, UninstallError> {
    let mut socket = NetfilterSocket::open().map_err(UninstallError::Socket)?;
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    for layer in Layer::ALL {
        let object = format!("table {layer} {TABLE}");
        match remove(&mut socket, layer) {
            Ok(true) => removed.push(object),
            Ok(false) => {}
            Err(reason) => failures.push(format!("{object}: {reason}")),
        }
    }
    if failures.is_empty() { Ok(UninstallReport { removed }) } else { Err(UninstallError::Tables { failures, removed }) }
}

fn remove(socket: &mut NetfilterSocket, layer: Layer) -> Result<bool, String> {
    let found = match tables::find(socket, layer) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(false),
        // A table that is owned hides from nobody; this is a kernel without the family.
        Err(OpenError::Kernel { source, .. }) if layer != Layer::Inet && source.errno == nix::errno::Errno::EAFNOSUPPORT => {
            return Ok(false);
        }
        Err(error) => return Err(error.to_string()),
    };
    if found.persists() {
        // Also waits for an agent that is just ending, and says so if one is running.
        tables::adopt(socket, layer).map_err(|error| error.to_string())?;
    }
    match tables::delete(socket, layer) {
        Ok(Ok(())) => Ok(true),
        Ok(Err(refusal)) => Err(refusal.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
