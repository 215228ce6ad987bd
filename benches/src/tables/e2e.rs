//! Tables of a report on whole decode steps.

use sparq_measure::attention::MethodName;
use sparq_measure::model::{DeviceRun, StepRow};

use crate::baselines::{Baselines, StepBaseline};
use sparq_output::numbers::{bytes, digits, or_dash, percent};
use sparq_output::table::Table;

/// The time of a step with each method, and its ratio to dense attention and to PyTorch.
pub fn steps(run: &DeviceRun, baselines: Option<&Baselines<StepBaseline>>) -> Table {
    let headings = "model | B | S | type | method | cache moved | eager ms | captured ms \
        | floor ms | floor / step | dense / this";
    let mut headings: Vec<&str> = headings.split(" | ").collect();
    if baselines.is_some() {
        headings.extend(["PyTorch ms", "PyTorch / this"]);
    }
    let mut table = Table::new(headings);
    for row in run.rows.iter().filter(|row| row.step_us().is_some()) {
        let dense = dense_us(run, row);
        let us = row.step_us();
        let ratio = |other: Option<f64>| or_dash(other.zip(us).map(|(other, us)| other / us));
        let mut cells = shape_cells(row);
        cells.extend([
            bytes(row.cache_bytes),
            milliseconds(row.eager.map(|time| time.median_us)),
            milliseconds(row.captured_us()),
            milliseconds(Some(row.floor_us)),
            us.map_or("-".into(), |us| percent(row.floor_us / us)),
            ratio(dense),
        ]);
        if let Some(baselines) = baselines {
            let us = baselines.best_us(&row.run);
            cells.extend([milliseconds(us), ratio(us)]);
        }
        table.row(cells);
    }
    table
}

/// The parts of each step, with the floors of attention and matrices.
pub fn breakdown(run: &DeviceRun) -> Table {
    let headings = "model | B | S | type | method | step ms | attention ms | attention floor ms \
        | matrices ms | matrices floor ms | rest ms | launches ms";
    let mut table = Table::new(headings.split(" | "));
    for row in &run.rows {
        let Some(parts) = &row.parts else { continue };
        let mut cells = shape_cells(row);
        let ms = |us: f64| milliseconds(Some(us));
        cells.extend([
            milliseconds(row.step_us()),
            ms(parts.attention.median_us),
            ms(run.bandwidth.floor_us(row.cache_bytes)),
            ms(parts.linears.median_us),
            ms(run.bandwidth.floor_us(row.weight_bytes)),
            milliseconds(row.rest_us()),
            milliseconds(row.launches_us()),
        ]);
        table.row(cells);
    }
    table
}

/// Lossless decoding with drafts by each SparQ row, for the given shares of accepted tokens.
pub fn lossless(run: &DeviceRun, acceptance: &[f64]) -> Table {
    let headings = "model | B | S | type | drafts by | accepted | tokens per draft \
        | tokens per verification | draft step ms | verification ms | ms per token | dense / this";
    let mut table = Table::new(headings.split(" | "));
    for row in &run.rows {
        for &acceptance in acceptance {
            let Some(found) = row.lossless(acceptance) else {
                continue;
            };
            let rows = found.drafted + 1;
            let verification = row.verifications.iter().find(|one| one.rows == rows);
            let dense = dense_us(run, row);
            let mut cells = shape_cells(row);
            cells.extend([
                percent(acceptance),
                found.drafted.to_string(),
                digits(found.tokens),
                milliseconds(row.step_us()),
                milliseconds(verification.map(|one| one.time.median_us)),
                milliseconds(Some(found.token_us)),
                or_dash(dense.map(|dense| dense / found.token_us)),
            ]);
            table.row(cells);
        }
    }
    table
}

/// The time of the dense step of a row's run.
fn dense_us(run: &DeviceRun, row: &StepRow) -> Option<f64> {
    let mut rows = run.rows.iter();
    let dense = rows.find(|other| other.run == row.run && other.method == MethodName::Dense);
    dense.and_then(StepRow::step_us)
}

/// The explanation of the columns of [`steps`] and [`breakdown`].
pub const COLUMNS: &str = "\
floor: the bytes of the weights and the bytes the method moves of the caches, divided by the memory
bandwidth measured in the same run.
attention, matrices: attention of all layers and products with all matrices, each captured and timed
separately. rest: the step minus both: norms, elementwise operations, RoPE, appending to the caches,
token selection. launches: the eager step minus the captured step.
";

/// Explains dashes in the columns of a run.
pub fn notes(run: &DeviceRun) -> Vec<String> {
    let repeated = |row: &StepRow| row.captured.is_some_and(|step| !step.hardware_graph);
    match run.rows.iter().any(repeated) {
        true => vec!["A dash under captured: the device captured no graph.".to_owned()],
        false => vec![],
    }
}

/// The runs that were not measured, with the reasons.
pub fn skipped(run: &DeviceRun) -> Vec<String> {
    let line = |row: &StepRow| {
        let why = row.skipped.as_ref()?;
        Some(format!("not measured: {} {}: {why}", row.run, row.label()))
    };
    run.rows.iter().filter_map(line).collect()
}

fn shape_cells(row: &StepRow) -> Vec<String> {
    vec![
        row.run.model.name().into(),
        row.run.batch.to_string(),
        row.run.seq_len.to_string(),
        row.weights
            .clone()
            .unwrap_or_else(|| row.dtype.name().into()),
        row.label(),
    ]
}

fn milliseconds(us: Option<f64>) -> String {
    us.map_or("-".into(), |us| digits(us / 1e3))
}
