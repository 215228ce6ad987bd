//! `--eval`: finds the cheapest method in results that keeps enough of dense attention's scores.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use sparq::Method;
use sparq_eval::{Better, Record, SummaryRow, summarize};
use sparq_plan::Setup;

use super::document::{Candidate, Quality, Row};
use super::options::PlanArgs;
use super::view;

/// Finds the cheapest method that keeps `keep` of dense attention's score in every task and
/// context.
///
/// # Errors
/// If a file is not a results file, or has no method beside dense attention on the same examples.
pub fn cheapest(
    files: &[PathBuf],
    keep: f64,
    setup: &Setup,
    args: &PlanArgs,
    row: impl Fn(&Method) -> Row,
) -> Result<Quality> {
    let records = sparq_eval::report::read(files)?.examples;
    let grouped = setup.model.heads > setup.model.kv_heads;
    let rows = summarize(&records);
    let mut groups: BTreeMap<(String, u64), Vec<&SummaryRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.budget.is_some()) {
        let budget = row.budget.unwrap_or(0.0).to_bits();
        let key = (
            format!("{} {} {}", row.model, row.question, row.method),
            budget,
        );
        groups.entry(key).or_default().push(row);
    }
    let candidates: Vec<Candidate> = groups
        .values()
        .filter_map(|rows| candidate(rows, &records, setup, args, grouped))
        .collect();
    if candidates.is_empty() {
        bail!(
            "--eval: expected results of dense attention and of another method on the same examples, \
             found none in {} records",
            records.len()
        );
    }
    let enough = candidates.iter().enumerate();
    let enough = enough.filter(|(_, candidate)| candidate.kept >= keep);
    let timed = enough.filter_map(|(index, candidate)| Some((index, candidate.step_us?)));
    let cheapest = timed
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(index, _)| index);
    Ok(Quality {
        keep,
        row: cheapest.map(|index| row(&candidates[index].settings)),
        cheapest,
        candidates,
    })
}

/// Makes a candidate. Returns `None` if dense attention was not evaluated on the same examples.
fn candidate(
    rows: &[&SummaryRow],
    records: &[Record],
    setup: &Setup,
    args: &PlanArgs,
    grouped: bool,
) -> Option<Candidate> {
    let shares = rows.iter().filter_map(|row| Some((kept(row)?, *row)));
    let (kept, worst) = shares.clone().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let first = rows.first()?;
    // Settings depend on the context. Uses those of the nearest context.
    let far = |record: &&Record| {
        let context = record.context.unwrap_or(record.prompt_tokens);
        context.abs_diff(args.context)
    };
    let own = |record: &&Record| {
        (
            &record.method,
            record.budget,
            &record.model,
            record.question,
        ) == (&first.method, first.budget, &first.model, first.question)
    };
    let settings = records.iter().filter(own).min_by_key(far)?.settings;
    let fits = settings.validate(setup.model.head_dim).is_ok();
    Some(Candidate {
        settings,
        label: view::label(&settings, grouped),
        budget: first.budget,
        kept,
        in_task: match worst.context {
            Some(context) => format!("{} at {context}", worst.task),
            None => worst.task.to_string(),
        },
        compared: shares.count(),
        step_us: fits.then(|| setup.step(&settings, args.batch, args.context).total_us()),
    })
}

/// Returns the share of dense attention's score, inverted if lower is better. Returns `None`
/// without a score of dense attention or if it is 0.
fn kept(row: &SummaryRow) -> Option<f64> {
    let dense = row.score.mean - row.difference?.mean;
    let share = match row.better {
        Better::Higher => row.score.mean / dense,
        Better::Lower => dense / row.score.mean,
    };
    share.is_finite().then_some(share)
}
