//! The fleet's figures: each with the bar it is held to, as JSON and as a table.

use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// A rule under the header and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Stored trials that the bars are meant at.
pub const STORED: u64 = 100_000;

/// What a figure is held to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// Not less than this.
    AtLeast(f64),
    /// Not more than this.
    AtMost(f64),
}

impl Bar {
    /// Whether a value meets it.
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Bar::AtLeast(least) => value >= least,
            Bar::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtLeast(least) => format!(">= {}", number(least)),
            Bar::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What.
    pub what: String,
    /// How much; absent where this system does not tell.
    pub value: Option<f64>,
    /// Of what.
    pub unit: &'static str,
    /// What it is held to, if to anything.
    pub bar: Option<Bar>,
    /// Whether it meets that.
    pub met: Option<bool>,
}

impl Figure {
    /// A figure, held to its bar.
    pub fn new(what: impl Into<String>, value: Option<f64>, unit: &'static str, bar: Option<Bar>) -> Self {
        let met = value.zip(bar).map(|(value, bar)| bar.is_met_by(value));
        Self { what: what.into(), value, unit, bar, met }
    }
}

/// All that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Trials timed.
    pub trials: u64,
    /// Simulated workers.
    pub workers: u32,
    /// Trials stored in the end.
    pub stored: u64,
    /// In the order they were measured.
    pub figures: Vec<Figure>,
}

impl Figures {
    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(STYLE).set_header(["measured", "value", "", "bar", ""]);
        for figure in &self.figures {
            let met = figure.met.map_or("", |met| if met { "met" } else { "MISSED" });
            table.add_row([
                figure.what.clone(),
                figure.value.map_or_else(|| "-".into(), number),
                figure.unit.into(),
                figure.bar.map(Bar::text).unwrap_or_default(),
                met.into(),
            ]);
        }
        for (column, alignment) in [(1, CellAlignment::Right), (3, CellAlignment::Right)] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(alignment);
            }
        }
        let note = match self.stored < STORED {
            true => format!("\nThe bars are meant at {STORED} stored trials; here are {}.", self.stored),
            false => String::new(),
        };
        format!("{table}{note}")
    }
}

/// Three significant digits, whole numbers whole.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == value.round() => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The `part`-th part of some durations by nearest rank, ms; 0 of none.
pub fn percentile_ms(durations: &mut [Duration], part: f64) -> f64 {
    durations.sort_unstable();
    let rank = (part * durations.len() as f64).ceil() as usize;
    durations.get(rank.saturating_sub(1)).map_or(0.0, |duration| duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut durations: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&mut durations, 0.5), 100.0);
        assert_eq!(percentile_ms(&mut durations, 0.99), 198.0);
        assert_eq!(percentile_ms(&mut durations[..1], 0.99), 1.0);
        assert_eq!(percentile_ms(&mut [], 0.5), 0.0);
    }

    #[test]
    fn the_table_says_which_bars_are_met_and_where_they_are_meant() {
        let rate = |value| Figure::new("trials", Some(value), "/s", Some(Bar::AtLeast(1000.0)));
        let untold = Figure::new("memory", None, "MB", Some(Bar::AtMost(300.0)));
        assert_eq!((rate(999.0).met, rate(1000.0).met, untold.met), (Some(false), Some(true), None));
        let figures = vec![rate(12.34), rate(5678.9), untold];
        let text = Figures { trials: 1, workers: 2, stored: 3, figures }.text();
        let has = |line: &str| text.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") == line);
        assert!(has("trials 12.3 /s >= 1000 MISSED") && has("trials 5679 /s >= 1000 met"), "{text}");
        assert!(has("memory - MB <= 300"), "{text}");
        assert!(text.ends_with("The bars are meant at 100000 stored trials; here are 3."), "{text}");
    }
}
