//! `firebreak flows --follow`, each line with the moment at which it was there.

use anyhow::Context as _;
use firebreak_tests::system::Controller;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

/// The running command; killed when dropped.
pub(crate) struct Follower {
    child: Child,
    /// Lines as they came.
    pub(crate) lines: Receiver<(Instant, String)>,
}

impl Follower {
    /// Starts following.
    ///
    /// # Errors
    /// The command cannot be started.
    pub(crate) fn start(controller: &Controller) -> anyhow::Result<Self> {
        let mut child = controller.command().args(["flows", "--follow"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = sync_channel(65_536);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Tear-down goes on whatever happens.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
