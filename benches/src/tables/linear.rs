//! The table of a report on linear layers.

use sparq_measure::linear::Run;
use sparq_output::numbers::{bytes, digits, percent};
use sparq_output::table::Table;

/// The time of each operation and its share of the copy bandwidth.
pub fn operations(run: &Run) -> Table {
    let headings = "layers | in | out | rows | moved | us | GB/s | of bandwidth";
    let mut table = Table::new(headings.split(" | "));
    for row in &run.rows {
        let Some(measured) = &row.measured else {
            continue;
        };
        let outputs = row.operation.outputs.iter().map(usize::to_string);
        table.row([
            row.operation.name.clone(),
            row.operation.features.to_string(),
            outputs.collect::<Vec<_>>().join("+"),
            row.rows.to_string(),
            bytes(row.bytes),
            digits(measured.time.median_us),
            digits(measured.gb_per_s),
            percent(measured.share_of_bandwidth),
        ]);
    }
    table
}
