//! How far `sparq plan` is off what was measured.

use std::collections::BTreeSet;

use sparq::Method;
use sparq::cost::{Gpu, StepCosts};
use sparq_plan::{Machine, Setup, StepTime};

use super::{Named, Results};
use crate::e2e::report::{E2eReport, StepRow};
use crate::fit::{self, fitted};
use crate::report::{Report, Row, Run};
use crate::table::{Table, digits, percent};

/// Relative errors, predicted over measured less 1.
#[derive(Clone, Debug, Default)]
pub struct Errors(Vec<f64>);

impl Errors {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Their mean without the signs.
    pub fn mean(&self) -> f64 {
        self.0.iter().map(|error| error.abs()).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The largest without its sign.
    pub fn worst(&self) -> f64 {
        self.0.iter().map(|error| error.abs()).fold(0.0, f64::max)
    }
}

/// The tables of the page.
pub fn planning(results: &Results) -> String {
    let mut attention = Table::new([
        "results",
        "steps",
        "mean error",
        "worst",
        "mean, shape left out",
        "worst",
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
    let mut text = format!(
        "Attention of one layer, predicted by the figures in the library, which are fitted to those of `flex` and `cuda`, and by figures that are fitted anew without the shape (heads and B) in question:\n\n{}",
        attention.markdown()
    );
    let mut steps = Table::new([
        "model",
        "B",
        "S",
        "method",
        "",
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
        text += &format!("\nWhole steps, captured:\n\n{}", steps.markdown());
    }
    text
}

/// The runs that the library's figures are meant for: of the devices that are measured and of the CPU's native implementation.
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

/// How far the figures in the library are off.
pub fn shipped(run: &Run) -> Errors {
    let costs = shipped_costs(run);
    let rows = fitted(run).into_iter();
    Errors(rows.filter_map(|row| fit::error(row, &costs)).collect())
}

/// How far figures are off that were fitted to everything but the rows with the heads and the B of the row in question; `None` where too little is left to
/// fit.
pub fn unseen(run: &Run) -> Option<Errors> {
    let rows = fitted(run);
    let family = |row: &Row| (row.shape.batch, row.shape.heads, row.shape.kv_heads);
    let families: BTreeSet<_> = rows.iter().map(|row| family(row)).collect();
    let mut errors = Vec::new();
    for out in families {
        let (tested, known): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| family(row) == out);
        let costs = fit::costs(&known, &run.device).ok()?;
        errors.extend(tested.iter().filter_map(|row| fit::error(row, &costs)));
    }
    Some(Errors(errors))
}

/// What is predicted for a whole step, if the library knows the GPU.
pub fn prediction(report: &E2eReport, row: &StepRow) -> Option<StepTime> {
    let gpu = Gpu::named(report.run.gpu.as_deref()?)?;
    let setup = Setup::new(row.run.model.plan(), Machine::gpu(gpu), row.dtype.bytes());
    let method = row.settings.map_or(Method::DENSE, Method::from);
    Some(setup.step(&method, row.run.batch, row.run.seq_len))
}

/// The lines of a row that was measured: what was, and what is predicted.
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
