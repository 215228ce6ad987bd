//! Tables of a report on starts.

use crate::baselines::StartKey;
use crate::report::StartReport;
use crate::start::{StartRow, StartRun};
use sparq_output::numbers::{bytes, digits, or_dash};
use sparq_output::table::Table;

/// One line per process, in the order of the runs.
pub fn runs(report: &StartReport) -> Table {
    let headings = "kernel cache | process s | load s | prefill s | other s | first token s \
        | second token s | whole process s | cache after";
    let mut headings: Vec<&str> = headings.split(" | ").collect();
    if report.baselines.is_some() {
        headings.extend(["PyTorch first token s", "PyTorch / this"]);
    }
    let mut table = Table::new(headings);
    let torch = torch_us(report);
    for row in &report.run.rows {
        let Some(phases) = &row.phases else { continue };
        let seconds = |us: f64| digits(us / 1e6);
        let mut cells = vec![
            row.cache.name().to_owned(),
            seconds(phases.process_us),
            seconds(phases.load_us),
            seconds(phases.prefill_us),
            seconds(phases.other_us()),
            seconds(phases.first_token_us),
            phases.second_token_us.map_or("-".into(), seconds),
            seconds(phases.total_us),
            bytes(row.cache_bytes as f64),
        ];
        if report.baselines.is_some() {
            cells.extend([
                torch.map_or("-".into(), seconds),
                or_dash(torch.map(|torch| torch / phases.first_token_us)),
            ]);
        }
        table.row(cells);
    }
    table
}

/// The time to PyTorch's first token in microseconds.
pub fn torch_us(report: &StartReport) -> Option<f64> {
    report.baselines.as_ref()?.best_us(&key(&report.run)?)
}

/// The key of a run in the baselines. `None` if no process succeeded.
fn key(run: &StartRun) -> Option<StartKey> {
    Some(StartKey {
        model: run.model.clone(),
        dtype: run.dtype?,
        prompt_tokens: run.prompt_tokens?,
    })
}

/// The model and the prompt as text.
pub fn model(run: &StartRun) -> String {
    let size = run
        .model_bytes
        .map(|size| format!(", files of {}", bytes(size as f64)));
    let dtype = run.dtype.map_or("unknown type", |dtype| dtype.name());
    let prompt = run.prompt_tokens.unwrap_or_default();
    format!(
        "Model {}{}, {dtype}, a prompt of {prompt} tokens.\n",
        run.model,
        size.unwrap_or_default()
    )
}

/// The explanation of the columns of [`runs`].
pub const COLUMNS: &str = "\
first token: from the start of the process to the logits that determine the first token. process:
until the program begins. load: reading the weights to the device. prefill: the prompt through the
model, kernels that are compiled meanwhile included. other: tokenizer, device and cache. second
token: the first decode step. The kernel cache is empty in the first process; the files of the model
are in the page cache.
";

/// The processes that failed, with the reasons.
pub fn failed(run: &StartRun) -> Vec<String> {
    let line = |row: &StartRow| {
        let why = row.failed.as_ref()?;
        Some(format!("not measured: {} cache: {why}", row.cache.name()))
    };
    run.rows.iter().filter_map(line).collect()
}
