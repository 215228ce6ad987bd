//! The human form of a report on whole steps.

use super::peers::StepPeers;
use super::report::{DeviceRun, StepRow};
use crate::contender::MethodName;
use crate::table::{Table, bytes, digits, or_dash, percent};

/// Milliseconds of a step with each method, and what SparQ gains.
pub fn steps(run: &DeviceRun, peers: Option<&StepPeers>) -> Table {
    let mut headings = vec![
        "model",
        "B",
        "S",
        "type",
        "method",
        "cache moved",
        "eager ms",
        "captured ms",
        "floor ms",
        "of floor",
        "x dense",
    ];
    if peers.is_some() {
        headings.extend(["PyTorch ms", "x PyTorch"]);
    }
    let mut table = Table::new(headings);
    for row in run.rows.iter().filter(|row| row.step_us().is_some()) {
        let dense = run
            .rows
            .iter()
            .find(|other| other.run == row.run && other.method == MethodName::Dense)
            .and_then(StepRow::step_us);
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
        if let Some(peers) = peers {
            let best = peers.find(&row.run).map(|peer| peer.best_us);
            cells.extend([milliseconds(best), ratio(best)]);
        }
        table.row(cells);
    }
    table
}

/// Where the time of each step goes, with what bytes over bandwidth allow for its parts.
pub fn breakdown(run: &DeviceRun) -> Table {
    let mut table = Table::new([
        "model",
        "B",
        "S",
        "type",
        "method",
        "step ms",
        "attention ms",
        "its floor",
        "matrices ms",
        "their floor",
        "rest ms",
        "launches ms",
    ]);
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

/// What the columns of [`breakdown`] and [`steps`] mean.
pub fn notes(run: &DeviceRun) -> Vec<String> {
    let mut notes = vec![
        "floor: the weights and what the method moves of the caches over the memory bandwidth measured in the same run.".to_owned(),
        "attention, matrices: the attention of all layers and the products with all matrices, each recorded and timed alone. rest: the step less both: norms, \
         elementwise operations, rotation, appending to the caches, the choice of the token. launches: what a step call by call takes longer than a recorded one."
            .to_owned(),
    ];
    let repeated = |row: &StepRow| row.captured.is_some_and(|step| !step.hardware_graph);
    if run.rows.iter().any(repeated) {
        notes.push("Where captured is missing, the device recorded no graph.".to_owned());
    }
    notes
}

/// What could not run and why.
pub fn skipped(run: &DeviceRun) -> Vec<String> {
    let line = |row: &StepRow| {
        let why = row.skipped.as_ref()?;
        let (model, batch, seq_len) = (row.run.model.name(), row.run.batch, row.run.seq_len);
        Some(format!(
            "{model} B={batch} S={seq_len} {}: {why}",
            row.label()
        ))
    };
    run.rows.iter().filter_map(line).collect()
}

fn shape_cells(row: &StepRow) -> Vec<String> {
    vec![
        row.run.model.name().into(),
        row.run.batch.to_string(),
        row.run.seq_len.to_string(),
        row.dtype.name().into(),
        row.label(),
    ]
}

fn milliseconds(us: Option<f64>) -> String {
    us.map_or("-".into(), |us| digits(us / 1e3))
}
