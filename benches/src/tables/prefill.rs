//! Tables of a report on prefill.

use sparq_measure::prefill::{PrefillRow, PrefillRun};

use crate::baselines::PrefillKey;
use crate::report::PrefillReport;
use sparq_output::numbers::{bytes, digits, or_dash, percent};
use sparq_output::table::Table;

/// One line per length.
pub fn lengths(report: &PrefillReport) -> Table {
    let headings = "S | tokens/s | s | TFLOPS | of peak | attention s | rest s | memory";
    let mut headings: Vec<&str> = headings.split(" | ").collect();
    if report.baselines.is_some() {
        headings.extend(["PyTorch tokens/s", "PyTorch / this"]);
    }
    let mut table = Table::new(headings);
    for row in &report.run.rows {
        let Some(us) = row.median_us() else { continue };
        let tflops = row.tflops();
        let memory = row.reserved_bytes.map(|held| bytes(held as f64));
        let mut cells = vec![
            row.seq_len.to_string(),
            or_dash(row.tokens_per_second()),
            digits(us / 1e6),
            or_dash(tflops),
            tflops.map_or("-".into(), |tflops| percent(tflops / peak_tflops(report))),
            or_dash(row.split.map(|split| split.attention_us / 1e6)),
            or_dash(row.split.map(|split| split.rest_us / 1e6)),
            memory.unwrap_or_else(|| "-".into()),
        ];
        if let Some(baselines) = &report.baselines {
            let torch = baselines.best_us(&key(&report.run, row));
            cells.extend([
                or_dash(torch.map(|us| row.seq_len as f64 / us * 1e6)),
                or_dash(torch.map(|torch| torch / us)),
            ]);
        }
        table.row(cells);
    }
    table
}

/// The key of a row in the baselines.
pub fn key(run: &PrefillRun, row: &PrefillRow) -> PrefillKey {
    PrefillKey {
        model: run.model.clone(),
        layers: run.layers,
        dtype: run.dtype,
        seq_len: row.seq_len,
    }
}

/// The matrix peak: the higher rate of this project's product and PyTorch's, in 10^12 operations
/// per second.
pub fn peak_tflops(report: &PrefillReport) -> f64 {
    report
        .run
        .matrix
        .tflops
        .max(torch_tflops(report).unwrap_or(0.0))
}

fn torch_tflops(report: &PrefillReport) -> Option<f64> {
    report.baselines.as_ref()?.matmul_tflops
}

/// The matrix peak as text.
pub fn peak(report: &PrefillReport) -> String {
    let (matrix, dtype) = (&report.run.matrix, report.run.dtype.name());
    let torch = torch_tflops(report);
    let torch = torch.map_or(String::new(), |rate| format!(", PyTorch {}", digits(rate)));
    format!(
        "Matrix peak: {} TFLOPS{torch} (product of two {size} x {size} matrices, {dtype}). \
         {layers} layers, chunks of {chunk} tokens.\n",
        digits(matrix.tflops),
        size = matrix.size,
        layers = report.run.layers,
        chunk = report.run.chunk
    )
}

/// The explanation of the columns of [`lengths`].
pub const COLUMNS: &str = "\
TFLOPS: 2 operations per weight and token for the products with matrices, and 4 per layer, query
head, component, and pair of a query and a position it attends to. of peak: TFLOPS divided by the
matrix peak. attention: the part of the time that grows with the pairs, from the times of the
chunks. rest: everything else. memory: held by the device's allocator after the prefill.
";

/// The lengths that were not measured, with the reasons.
pub fn skipped(run: &PrefillRun) -> Vec<String> {
    let line = |row: &PrefillRow| {
        let why = row.skipped.as_ref()?;
        Some(format!(
            "not measured: {} S={}: {why}",
            run.model, row.seq_len
        ))
    };
    run.rows.iter().filter_map(line).collect()
}
