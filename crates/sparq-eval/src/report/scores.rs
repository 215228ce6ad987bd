//! The table of a task's scores.

use sparq_output::numbers;
use sparq_output::table::{Cell, Table};

use super::{distinct, format};
use crate::SummaryRow;
use crate::summary::REFERENCE;

/// Makes the table of a task: a row for each method and budget, with the difference to dense
/// attention over all contexts, and a column for each context.
pub fn table(rows: &[SummaryRow], all: &[SummaryRow]) -> Table {
    let mut contexts: Vec<Option<usize>> = distinct(rows.iter().map(|row| row.context)).collect();
    contexts.sort();
    let heading = |context: &Option<usize>| match context {
        Some(context) => numbers::positions(*context),
        None => "score".into(),
    };
    let mut headings = ["method", "budget", "moved", "less dense"]
        .map(str::to_owned)
        .to_vec();
    headings.extend(contexts.iter().map(heading));
    headings.push("examples".into());
    let rows = all.iter().map(|row| {
        let mut cells = vec![
            row.method.as_str().into(),
            Cell::number(
                row.budget.map_or("-".into(), format::budget),
                row.budget.unwrap_or(1.0),
            ),
            Cell::number(numbers::percent(row.transfer), row.transfer),
        ];
        // The difference of dense attention itself is 0.
        let difference = row.difference.filter(|_| row.method != REFERENCE);
        cells.push(match difference {
            Some(difference) => Cell::number(
                format::estimate(&difference, row.metric, true),
                difference.mean,
            ),
            None => "-".into(),
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
                None => "-".into(),
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
