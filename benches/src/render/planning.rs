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
use sparq_output::numbers::{self, percent};
use sparq_output::table::Table;

/// The tables of the page.
pub fn planning(results: &Results) -> String {
    let headings = "results | steps | mean error | worst error | mean error, shape left out \
        | worst error, shape left out";
    let mut attention = Table::new(headings.split(" | "));
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
    let headings = "model | B | S | method | source | attention ms | products ms | rest ms \
        | step ms | error";
    let mut steps = Table::new(headings.split(" | "));
    for named in &results.steps {
        for row in &named.report.run.rows {
            add_step(&mut steps, &named.report, row);
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

/// The predicted time of a whole step. `None` if the library does not know the GPU, or the products
/// with packed weights.
pub fn prediction(report: &E2eReport, row: &StepRow) -> Option<StepTime> {
    if row.weights.is_some() {
        return None;
    }
    let gpu = Gpu::named(report.run.gpu.as_deref()?)?;
    let setup = Setup::new(row.run.model.plan(), Machine::gpu(gpu), row.dtype.bytes());
    let method = row.settings.map_or(Method::DENSE, Method::from);
    Some(setup.step(&method, row.run.batch, row.run.seq_len))
}

/// Adds the measured and the predicted times of a row, unless it was not measured.
fn add_step(table: &mut Table, report: &E2eReport, row: &StepRow) {
    let (captured, rest) = (row.captured_us(), row.rest_us());
    let Some((predicted, step)) = prediction(report, row).zip(captured) else {
        return;
    };
    let mut add = |names: [String; 4], source: &str, us: [Option<f64>; 4], error: String| {
        let times = us.map(|us| numbers::or_dash(us.map(|us| us / 1e3)));
        let cells = names.into_iter().chain([source.to_owned()]);
        table.row(cells.chain(times).chain([error]));
    };
    let run = row.run;
    let [batch, seq_len] = [run.batch, run.seq_len].map(|size| size.to_string());
    let names = [run.model.name().into(), batch, seq_len, row.label()];
    let attention = row.parts.map(|parts| parts.attention.median_us);
    let products = row.parts.map(|parts| parts.linears.median_us);
    add(
        names,
        "measured",
        [attention, products, rest, Some(step)],
        String::new(),
    );
    let total = predicted.total_us();
    let StepTime {
        attention_us,
        weights_us,
        layers_us,
        ..
    } = predicted;
    let times = [attention_us, weights_us, layers_us, total];
    add(
        Default::default(),
        "predicted",
        times.map(Some),
        signed(total / step - 1.0),
    );
}

fn signed(share: f64) -> String {
    let sign = if share < 0.0 { "-" } else { "+" };
    format!("{sign}{}", percent(share.abs()))
}
