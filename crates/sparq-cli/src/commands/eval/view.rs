//! The table of scores.

use sparq_eval::{Estimate, Metric, SummaryRow};
use sparq_output::numbers;
use sparq_output::table::Table;

/// Makes the table of scores with standard errors.
pub fn table(rows: &[SummaryRow]) -> Table {
    let mut table = Table::new([
        "task",
        "context",
        "method",
        "budget",
        "bytes moved",
        "score",
        "n",
        "less dense",
    ]);
    for row in rows {
        let dash = || "-".to_owned();
        table.row([
            format!("{} ({})", row.task, row.metric),
            row.context.map_or_else(dash, numbers::positions),
            row.method.clone(),
            row.budget.map_or_else(dash, numbers::reciprocal),
            format!("{:.2}%", 100.0 * row.transfer),
            estimate(&row.score, row.metric, false),
            row.score.n.to_string(),
            row.difference
                .as_ref()
                .map_or_else(dash, |difference| estimate(difference, row.metric, true)),
        ]);
    }
    table
}

/// Formats a mean ± its standard error with decimals that suit the metric.
fn estimate(estimate: &Estimate, metric: Metric, signed: bool) -> String {
    let digits = match metric {
        Metric::BitsPerCharacter | Metric::RougeL => 4,
        Metric::Characters => 1,
        _ => 3,
    };
    estimate.text(digits, signed)
}
