//! `firebreak flows --follow -o json`, as the SOC runs it, with the time at which each line came.

use crate::system::Controller;
use anyhow::Context as _;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A line and when it came.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// The record.
    pub record: Value,
}

/// A follower of flows; ended when dropped.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Follower {
    /// Starts it with further filters; what the controller has kept comes first.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(controller: &Controller, filters: &[&str]) -> anyhow::Result<Self> {
        let mut command = controller.command();
        // With what is kept, so that a flow that came before the command had connected is not missed.
        command.args(["flows", "--follow", "--tail", "10000", "-o", "json"]).args(filters);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start firebreak flows")?;
        let output = child.stdout.take().context("no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        std::thread::spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                let record = serde_json::from_str(&text).unwrap_or(Value::String(text));
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(Line { at: Instant::now(), record });
            }
        });
        Ok(Self { child, lines })
    }

    /// Everything that came so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that came since the last call: for those who cannot hold it all.
    pub fn take(&self) -> Vec<Line> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The records that satisfy a condition.
    pub fn matching(&self, mut wanted: impl FnMut(&Value) -> bool) -> Vec<Line> {
        self.lines().into_iter().filter(|line| wanted(&line.record)).collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Tear-down goes on whatever happens.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
