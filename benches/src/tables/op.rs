//! Tables of a report on attention: every row, the stages, and several devices side by side.

use sparq_measure::attention::stage::Stage;
use sparq_measure::attention::{MethodName, Row, Run};
use sparq_measure::bandwidth::Bandwidth;

use crate::baselines::{AttentionBaseline, Baselines};
use crate::report::Report;
use sparq_output::numbers::{bytes, digits, or_dash, percent};
use sparq_output::table::Table;

/// Every measured row of a run, beside the times of PyTorch if there are any.
pub fn details(run: &Run, baselines: Option<&Baselines<AttentionBaseline>>) -> Table {
    let headings = "method | B | heads | d | S | type | mode | median us | p10 us | p90 us \
        | samples | GB/s | of bandwidth | dense / this";
    let mut headings: Vec<&str> = headings.split(" | ").collect();
    if baselines.is_some() {
        headings.extend(["PyTorch us", "PyTorch / this"]);
    }
    let mut table = Table::new(headings);
    for row in &run.rows {
        let Some(measured) = &row.measured else {
            continue;
        };
        let mark = if measured.cold { "" } else { "*" };
        let mut cells = vec![row.label()];
        cells.extend(shape_cells(row));
        cells.extend([
            mode_name(row),
            digits(measured.time.median_us) + mark,
            digits(measured.time.p10_us),
            digits(measured.time.p90_us),
            measured.time.samples.to_string(),
            digits(measured.gb_per_s),
            percent(measured.share_of_bandwidth),
            or_dash(measured.speedup_over_dense),
        ]);
        if let Some(baselines) = baselines {
            let us = baselines.best_us(&(row.shape, row.dtype));
            cells.push(or_dash(us));
            cells.push(or_dash(us.map(|us| us / measured.time.median_us)));
        }
        table.row(cells);
    }
    table
}

/// The stages of the captured SparQ steps of a run. Empty if the device cannot end a step after a
/// stage.
pub fn stages(run: &Run) -> Table {
    let headings = ["method", "B", "heads", "d", "S", "type", "step us"].map(String::from);
    let columns = Stage::ALL.iter().flat_map(|stage| {
        [" us", " GB/s", " of bandwidth"].map(|unit| format!("{}{unit}", stage.name()))
    });
    let mut table = Table::new(headings.into_iter().chain(columns));
    for row in run.rows.iter().filter(|row| !row.stages.is_empty()) {
        let mut cells = vec![row.label()];
        cells.extend(shape_cells(row));
        cells.push(or_dash(row.median_us()));
        for stage in Stage::ALL {
            let time = row.stages.iter().find(|time| time.stage == stage);
            cells.push(or_dash(time.map(|time| time.us)));
            cells.push(or_dash(time.and_then(|time| time.gb_per_s)));
            cells.push(
                time.and_then(|time| time.share_of_bandwidth)
                    .map_or("-".into(), percent),
            );
        }
        table.row(cells);
    }
    table
}

/// The medians of the devices of a report side by side. The runs have the same cases.
pub fn devices(report: &Report) -> Table {
    let names = report.runs.iter().map(|run| format!("{} us", run.device));
    let mut table = Table::new(
        ["method", "B", "heads", "d", "S", "type", "mode"]
            .into_iter()
            .map(String::from)
            .chain(names),
    );
    let mut seen: Vec<&Row> = Vec::new();
    let same = |a: &Row, b: &Row| {
        (a.shape, a.dtype, a.method, a.mode, a.settings)
            == (b.shape, b.dtype, b.method, b.mode, b.settings)
    };
    for row in report.runs.iter().flat_map(|run| &run.rows) {
        if seen.iter().any(|other| same(row, other)) {
            continue;
        }
        seen.push(row);
        let mut cells = vec![row.label()];
        cells.extend(shape_cells(row));
        cells.push(row.mode.name().into());
        for run in &report.runs {
            let here = run.rows.iter().find(|other| same(row, other));
            cells.push(or_dash(here.and_then(Row::median_us)));
        }
        table.row(cells);
    }
    table
}

/// The cases that were not measured, one line per reason.
pub fn skipped(run: &Run) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for row in &run.rows {
        let Some(why) = &row.skipped else { continue };
        let what = format!("{} on {} {}", row.label(), row.shape, row.dtype.name());
        match reasons.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, rows)) if rows.contains(&what) => {}
            Some((_, rows)) => rows.push(what),
            None => reasons.push((why, vec![what])),
        }
    }
    reasons
        .into_iter()
        .map(|(why, rows)| match &rows[..] {
            [only] => format!("not measured: {only}: {why}"),
            [first, others @ ..] => {
                format!("not measured: {first} and {} more: {why}", others.len())
            }
            [] => format!("not measured: {why}"),
        })
        .collect()
}

/// Explains the marks of [`details`] that occur in a run.
pub fn notes(run: &Run) -> Vec<String> {
    let measured = || run.rows.iter().filter_map(|row| row.measured.as_ref());
    let mut notes = Vec::new();
    if measured().any(|measured| !measured.cold) {
        notes.push(format!(
            "* The buffers rotate over less than twice the last-level cache ({}): part of the data \
             may have come from it.",
            bytes(run.cache_bytes as f64)
        ));
    }
    if measured().any(|measured| measured.hardware_graph == Some(false)) {
        notes.push("captured+: the device has no graphs; each replay repeats the calls.".into());
    }
    let expanded = |row: &Row| row.method == MethodName::DenseBurn && row.shape.group_size() > 1;
    if run.rows.iter().any(expanded) {
        notes.push(
            "dense (burn) does not support groups and reads K and V expanded to all heads. Its \
             GB/s count them once."
                .into(),
        );
    }
    notes
}

/// The bandwidth as text.
pub fn bandwidth(bandwidth: &Bandwidth) -> String {
    let read = bandwidth
        .read_gb_per_s
        .map(|read| format!(", read {} GB/s", digits(read)))
        .unwrap_or_default();
    format!(
        "copy {} GB/s (read and written){read}, buffers of {}",
        digits(bandwidth.copy_gb_per_s),
        bytes(bandwidth.buffer_bytes as f64)
    )
}

fn shape_cells(row: &Row) -> [String; 5] {
    [
        row.shape.batch.to_string(),
        format!("{}/{}", row.shape.heads, row.shape.kv_heads),
        row.shape.head_dim.to_string(),
        row.shape.seq_len.to_string(),
        row.dtype.name().to_owned(),
    ]
}

fn mode_name(row: &Row) -> String {
    let repeated = row
        .measured
        .is_some_and(|measured| measured.hardware_graph == Some(false));
    format!("{}{}", row.mode.name(), if repeated { "+" } else { "" })
}
