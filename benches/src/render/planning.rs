//! The rendered part of docs/planning.md: predictions of `sparq plan` beside measured times.

use std::collections::BTreeSet;

use sparq::Method;
use sparq::cost::{Gpu, StepCosts};
use sparq_plan::{Machine, Setup, StepTime};

use sparq_measure::attention::{Row, Run};
use sparq_measure::fit::{self, Errors, fitted};
use sparq_measure::model::StepRow;

use super::text::wrap;
use super::{Named, Results};
use crate::report::{E2eReport, Report};
use crate::table::{Table, digits, percent};

/// The tables of the page.
pub fn planning(results: &Results) -> String {
    let mut attention = Table::new([
        "results",
        "steps",
        "mean error",
        "worst error",
        "mean error, shape left out",
        "worst error, shape left out",
    ]);
    for (named, run) in runs(results) {
        let shipped = shipped(run);
        let unseen = unseen(run);
        let or_dash = |of: fn(&Errors) -> f64| {
            let found = unseen.as_ref().map(|errors| percent(of(errors)));
            found.unwrap_or("-".into())
        };
        attention.row([
            format!("{}, `{}`", named.name, run.device),
            shipped.count().to_string(),
            percent(shipped.mean()),
            percent(shipped.worst()),
            or_dash(Errors::mean),
            or_dash(Errors::worst),
        ]);
    }
    let introduction = "Attention of one layer, predicted by the figures in the library, which are \
        fitted to the results of `flex` and `cuda`, and by figures fitted without the predicted \
        shape (heads and B):";
    let mut text = format!("{}\n\n{}", wrap(introduction, ""), attention.markdown());
    let mut steps = Table::new([
        "model",
        "B",
        "S",
        "method",
        "source",
        "attention ms",
        "products ms",
        "rest ms",
        "step ms",
        "error",
    ]);
    for named in &results.steps {
        for row in &named.report.run.rows {
            for line in step_rows(&named.report, row) {
                steps.row(line);
            }
        }
    }
    if !steps.is_empty() {
        text += &format!("\nWhole captured steps:\n\n{}", steps.markdown());
    }
    text
}

/// The runs that the figures in the library describe: those of GPUs and of `flex`.
fn runs(results: &Results) -> impl Iterator<Item = (&Named<Report>, &Run)> {
    let all = results.operations.iter();
    let all = all.flat_map(|named| named.report.runs.iter().map(move |run| (named, run)));
    all.filter(|(_, run)| run.gpu.is_some() || run.device == "flex")
}

/// The figures in the library for the device of a run.
pub fn shipped_costs(run: &Run) -> StepCosts {
    match &run.gpu {
        Some(name) => StepCosts::of_gpu(name),
        None => StepCosts::CPU,
    }
}

/// The errors of the figures in the library.
pub fn shipped(run: &Run) -> Errors {
    let costs = shipped_costs(run);
    fit::errors(&fitted(run), &costs)
}

/// The errors of figures that are fitted without the rows that share heads and B with the predicted
/// row. `None` if the other rows are too few for a fit.
pub fn unseen(run: &Run) -> Option<Errors> {
    let rows = fitted(run);
    let family = |row: &Row| (row.shape.batch, row.shape.heads, row.shape.kv_heads);
    let families: BTreeSet<_> = rows.iter().map(|row| family(row)).collect();
    let mut errors = Vec::new();
    for out in families {
        let (tested, known): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| family(row) == out);
        let costs = fit::costs(&known, &run.device).ok()?;
        errors.extend(fit::errors(&tested, &costs).0);
    }
    Some(Errors(errors))
}

/// The predicted time of a whole step. `None` if the library does not know the GPU.
pub fn prediction(report: &E2eReport, row: &StepRow) -> Option<StepTime> {
    let gpu = Gpu::named(report.run.gpu.as_deref()?)?;
    let setup = Setup::new(row.run.model.plan(), Machine::gpu(gpu), row.dtype.bytes());
    let method = row.settings.map_or(Method::DENSE, Method::from);
    Some(setup.step(&method, row.run.batch, row.run.seq_len))
}

/// The measured and the predicted line of a row. Empty if the row was not measured.
fn step_rows(report: &E2eReport, row: &StepRow) -> Vec<[String; 10]> {
    let times = (
        prediction(report, row),
        row.parts,
        row.captured_us(),
        row.rest_us(),
    );
    let (Some(predicted), Some(parts), Some(step), Some(rest)) = times else {
        return vec![];
    };
    let ms = |us: f64| digits(us / 1e3);
    let attention = parts.attention.median_us;
    let products = parts.linears.median_us;
    let total = predicted.total_us();
    vec![
        [
            row.run.model.name().into(),
            row.run.batch.to_string(),
            row.run.seq_len.to_string(),
            row.label(),
            "measured".into(),
            ms(attention),
            ms(products),
            ms(rest),
            ms(step),
            String::new(),
        ],
        [
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            "predicted".into(),
            ms(predicted.attention_us),
            ms(predicted.weights_us),
            ms(predicted.layers_us),
            ms(total),
            signed(total / step - 1.0),
        ],
    ]
}

fn signed(share: f64) -> String {
    let sign = if share < 0.0 { "-" } else { "+" };
    format!("{sign}{}", percent(share.abs()))
}
