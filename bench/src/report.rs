//! The figures of one run: a table for people, JSON for whoever compares runs.

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: Cow<'static, str>,
    baseline: Option<f64>,
    ratio: Option<f64>,
    goal: Option<f64>,
    holds: Option<bool>,
}

impl Figure {
    /// A figure with nothing to compare it to.
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit: unit.into(), baseline: None, ratio: None, goal: None, holds: None }
    }

    /// A time in milliseconds.
    pub(crate) fn ms(name: impl Into<String>, time: Duration) -> Self {
        Self::new(name, time.as_secs_f64() * 1e3, "ms")
    }

    /// A time in microseconds.
    pub(crate) fn us(name: impl Into<String>, time: Duration) -> Self {
        Self::new(name, time.as_secs_f64() * 1e6, "us")
    }

    /// What it was measured against in the same unit, and the ratio: the median of the paired rounds, ours / theirs.
    pub(crate) fn against(self, baseline: f64, ratio: f64) -> Self {
        Self { baseline: Some(baseline), ratio: Some(ratio), ..self }
    }

    /// Says in the name which row of the goals this is about.
    pub(crate) fn named(self, row: &str) -> Self {
        Self { name: format!("{} ({row})", self.name), ..self }
    }

    /// The value is to be at most this.
    pub(crate) fn at_most(self, goal: f64) -> Self {
        let holds = Some(self.value <= goal);
        Self { goal: Some(goal), holds, ..self }
    }

    /// The value is to be at least this.
    pub(crate) fn at_least(self, goal: f64) -> Self {
        let holds = Some(self.value >= goal);
        Self { goal: Some(goal), holds, ..self }
    }

    /// The ratio is to be at most this.
    pub(crate) fn ratio_at_most(self, goal: f64) -> Self {
        let holds = self.ratio.map(|ratio| ratio <= goal);
        Self { goal: Some(goal), holds, ..self }
    }
}

/// The figures so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    results: Vec<Figure>,
}

impl Report {
    /// Adds one and shows it, so that a run that breaks off has said what it knew.
    pub(crate) fn add(&mut self, figure: Figure) {
        let ratio = figure.ratio.map_or_else(String::new, |ratio| format!(", ratio {}", number(ratio)));
        eprintln!("  {}: {} {}{ratio}", figure.name, number(figure.value), figure.unit);
        self.results.push(figure);
    }

    /// Adds those of a file that [`Self::write`] wrote, which were shown already.
    ///
    /// # Errors
    /// The file and why it cannot be read.
    pub(crate) fn extend_from(&mut self, path: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let other: Self = serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        self.results.extend(other.results);
        Ok(())
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["figure", "value", "unit", "baseline", "ratio", "goal", "holds"]);
        for figure in &self.results {
            let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
            let holds = match figure.holds {
                Some(true) => "yes",
                Some(false) => "no",
                None => "-",
            };
            table.add_row([
                figure.name.clone(),
                number(figure.value),
                figure.unit.clone().into_owned(),
                or_dash(figure.baseline),
                or_dash(figure.ratio),
                or_dash(figure.goal),
                holds.to_owned(),
            ]);
        }
        for column in [1, 3, 4, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.lines().collect::<Vec<_>>().join("\n")
    }

    /// Writes `{"results":[..]}`.
    ///
    /// # Errors
    /// The file and why it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Three digits that mean something; whole numbers from 1,000.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_goal_is_held_to_the_value_or_to_the_ratio() {
        let figure = || Figure::new("f", 2.0, "ms");
        for (figure, expected) in [
            (figure(), r#"{"name":"f","value":2.0,"unit":"ms","baseline":null,"ratio":null,"goal":null,"holds":null}"#),
            (figure().at_most(3.0), r#"{"name":"f","value":2.0,"unit":"ms","baseline":null,"ratio":null,"goal":3.0,"holds":true}"#),
            (figure().at_least(3.0), r#"{"name":"f","value":2.0,"unit":"ms","baseline":null,"ratio":null,"goal":3.0,"holds":false}"#),
            (figure().at_most(1.0), r#"{"name":"f","value":2.0,"unit":"ms","baseline":null,"ratio":null,"goal":1.0,"holds":false}"#),
            (
                figure().against(1.0, 1.9).ratio_at_most(1.1),
                r#"{"name":"f","value":2.0,"unit":"ms","baseline":1.0,"ratio":1.9,"goal":1.1,"holds":false}"#,
            ),
            (figure().ratio_at_most(1.1), r#"{"name":"f","value":2.0,"unit":"ms","baseline":null,"ratio":null,"goal":1.1,"holds":null}"#),
        ] {
            assert_eq!(serde_json::to_string(&figure).unwrap(), expected);
        }
    }
}
