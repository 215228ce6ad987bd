//! Tables, in HTML and in Markdown.

use super::{distinct, format};
use crate::SummaryRow;

/// Rows of cells under headings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The headings; the first column has names, the others numbers.
    pub headings: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What is written in it.
    pub text: String,
    /// What it is sorted by, if not by its text.
    pub value: Option<f64>,
}

impl Cell {
    /// A name.
    pub fn name(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            value: None,
        }
    }

    /// A number.
    pub fn number(text: impl Into<String>, value: f64) -> Self {
        Self {
            text: text.into(),
            value: Some(value),
        }
    }
}

impl Table {
    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<&str>| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = "--:|".repeat(self.headings.len().saturating_sub(1));
        let rows = self.rows.iter();
        let rows = rows.map(|row| line(row.iter().map(|cell| cell.text.as_str()).collect()));
        let rows: String = rows.collect();
        line(self.headings.iter().map(String::as_str).collect()) + &format!("|---|{rule}\n") + &rows
    }
}

/// The scores of a task: a row for each method and budget, the difference to dense attention over all contexts, and a column for each context.
pub fn scores(rows: &[SummaryRow], all: &[SummaryRow]) -> Table {
    let mut contexts: Vec<Option<usize>> = distinct(rows.iter().map(|row| row.context)).collect();
    contexts.sort();
    let heading = |context: &Option<usize>| match context {
        Some(context) => format::positions(*context),
        None => "score".into(),
    };
    let mut headings = ["method", "budget", "moved", "less dense"]
        .map(str::to_owned)
        .to_vec();
    headings.extend(contexts.iter().map(heading));
    headings.push("examples".into());
    let rows = all.iter().map(|row| {
        let mut cells = vec![
            Cell::name(&row.method),
            Cell::number(
                row.budget.map_or("-".into(), format::budget),
                row.budget.unwrap_or(1.0),
            ),
            Cell::number(format::percent(row.transfer), row.transfer),
        ];
        // Of dense attention itself it would be 0.
        let difference = row.difference.filter(|_| row.budget.is_some());
        cells.push(match difference {
            Some(difference) => Cell::number(
                format::estimate(&difference, row.metric, true),
                difference.mean,
            ),
            None => Cell::name("-"),
        });
        for context in &contexts {
            let same = |other: &&SummaryRow| {
                (&other.method, other.budget, other.context) == (&row.method, row.budget, *context)
            };
            cells.push(match rows.iter().find(same) {
                Some(found) => Cell::number(
                    format::estimate(&found.score, row.metric, false),
                    found.score.mean,
                ),
                None => Cell::name("-"),
            });
        }
        cells.push(Cell::number(row.score.n.to_string(), row.score.n as f64));
        cells
    });
    Table {
        headings,
        rows: rows.collect(),
    }
}
