//! The fit of the cost model as text.

use anyhow::{Context, Result};
use sparq::cost::StepCosts;
use sparq_measure::attention::Run;
use sparq_measure::fit::{self, Fit};

use sparq_output::numbers::{digits, or_dash, percent};
use sparq_output::table::Table;

/// Each fitted step with its measured and its predicted time, and the S at which SparQ breaks even.
pub fn steps(runs: &[&Run], costs: &StepCosts) -> Table {
    let headings = "method | shape | type | measured us | predicted us | error | break-even S";
    let mut table = Table::new(headings.split(" | "));
    for row in runs.iter().flat_map(|run| fit::fitted(run)) {
        let step = row.shape.step(row.dtype);
        let predicted = match &row.settings {
            None => costs.dense_us(&step, row.shape.seq_len),
            Some(config) => costs.sparq_us(&step, row.shape.seq_len, config),
        };
        let us = row.median_us();
        let break_even = row.settings.map(|config| {
            let at = costs.break_even(&step, &config);
            at.map_or("never".into(), |at| at.to_string())
        });
        table.row([
            row.label(),
            row.shape.to_string(),
            row.dtype.name().into(),
            or_dash(us),
            digits(predicted),
            us.map_or("-".into(), |us| percent(predicted / us - 1.0)),
            break_even.unwrap_or("-".into()),
        ]);
    }
    table
}

/// The figures as Rust code and as JSON, and the quality of the fit.
///
/// # Errors
/// If a figure cannot be represented in JSON.
pub fn figures(fit: &Fit) -> Result<String> {
    let costs = StepCosts {
        dense_us: rounded(fit.costs.dense_us),
        sparq_us: rounded(fit.costs.sparq_us),
        gb_per_s: rounded(fit.costs.gb_per_s),
        scores_per_us: rounded(fit.costs.scores_per_us),
    };
    let json = serde_json::to_string(&costs).context("the figures as JSON")?;
    let (errors, decisions) = (&fit.errors, &fit.decisions);
    Ok(format!(
        "{} steps, relative error {} on average and {} at most\n\
         {} pairs of dense and SparQ; the model selects the slower one in {}, \
         with a loss of {} at most\n\
         {costs:?}\n{json}\n",
        errors.count(),
        percent(errors.mean()),
        percent(errors.worst()),
        decisions.pairs,
        decisions.wrong,
        percent(decisions.worst_loss)
    ))
}

/// Rounds to four digits, the precision of a fit at most.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
