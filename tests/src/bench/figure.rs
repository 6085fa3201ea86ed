//! A measured figure, and its output for people and programs.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A figure with its baseline. `kage-bench --format json` prints one such object per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub bench: Cow<'static, str>,
    pub case: Cow<'static, str>,
    pub value: f64,
    pub unit: Cow<'static, str>,
    /// The name of the value that it is compared with.
    pub baseline: String,
    /// In the unit of `value`.
    pub baseline_value: f64,
    /// `value` divided by `baseline_value`.
    pub ratio: f64,
    /// The file system that it was measured on, and its mount.
    #[serde(default)]
    pub medium: String,
}

impl Figure {
    #[must_use]
    pub fn new(
        bench: &'static str,
        case: &'static str,
        (value, unit): (f64, &'static str),
        (baseline, baseline_value): (impl Into<String>, f64),
    ) -> Self {
        Self {
            bench: bench.into(),
            case: case.into(),
            value,
            unit: unit.into(),
            baseline: baseline.into(),
            baseline_value,
            ratio: value / baseline_value,
            medium: String::new(),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:<12} {:>12} {:<11} {:>8.3} x {} ({}), {}",
            self.bench,
            self.case,
            number(self.value),
            self.unit,
            self.ratio,
            self.baseline,
            number(self.baseline_value),
            self.medium,
        )
    }
}

/// Three significant digits, without noise behind the point of large numbers.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[must_use]
pub fn markdown(figures: &[Figure]) -> String {
    let mut table = String::from(
        "| bench | case | value | unit | baseline | its value | ratio | on |\n|---|---|---:|---|---|---:|---:|---|\n",
    );
    for figure in figures {
        table.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {:.3} | {} |\n",
            figure.bench,
            figure.case,
            number(figure.value),
            figure.unit,
            figure.baseline,
            number(figure.baseline_value),
            figure.ratio,
            figure.medium,
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_object_with_the_documented_members() {
        let mut figure = Figure::new("dispatch", "throughput", (500.0, "sessions/s"), ("echo", 1000.0));
        figure.medium = "ext4".to_owned();
        assert_eq!(
            serde_json::to_string(&figure).unwrap(),
            r#"{"bench":"dispatch","case":"throughput","value":500.0,"unit":"sessions/s","baseline":"echo","baseline_value":1000.0,"ratio":0.5,"medium":"ext4"}"#
        );
        assert_eq!(
            markdown(&[figure]).lines().last().unwrap(),
            "| dispatch | throughput | 500 | sessions/s | echo | 1000 | 0.500 | ext4 |"
        );
    }
}
