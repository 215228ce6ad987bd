//! Tables of a report on a checkpoint in the program.

use sparq_measure::program::ProgramRun;
use sparq_measure::stats::Summary;
use sparq_output::numbers::{bytes, digits, or_dash};
use sparq_output::table::Table;

use crate::baselines::ProgramKey;
use crate::report::ProgramReport;

/// One line per prompt and per depth.
pub fn rates(report: &ProgramReport) -> Table {
    let mut headings = vec!["", "dense tokens/s", "SparQ tokens/s", "SparQ / dense"];
    if report.baselines.is_some() {
        headings.extend([
            "llama.cpp tokens/s",
            "dense / llama.cpp",
            "SparQ / llama.cpp",
        ]);
    }
    let mut table = Table::new(headings);
    let run = &report.run;
    let prompts = run.prompts.iter().map(|row| {
        let key = ProgramKey::Prompt { tokens: row.tokens };
        let label = format!("prompt of {}", row.tokens);
        (label, key, row.tokens_per_second(), None)
    });
    let rate = |time: &Summary| 1e6 / time.median_us;
    let decode = run.decode.iter().map(|row| {
        let key = ProgramKey::Decode { depth: row.depth };
        let label = match row.depth {
            0 => "decode, empty cache".to_owned(),
            depth => format!("decode at {depth}"),
        };
        (label, key, rate(&row.dense), Some(rate(&row.sparq)))
    });
    for (label, key, dense, sparq) in prompts.chain(decode) {
        let mut cells = vec![
            label,
            digits(dense),
            or_dash(sparq),
            or_dash(sparq.map(|sparq| sparq / dense)),
        ];
        if let Some(baselines) = &report.baselines {
            let other = baselines.best_us(&key).map(|us| 1e6 / us);
            cells.extend([
                or_dash(other),
                or_dash(other.map(|other| dense / other)),
                or_dash(sparq.zip(other).map(|(sparq, other)| sparq / other)),
            ]);
        }
        table.row(cells);
    }
    table
}

/// The model and the settings as text.
pub fn model(run: &ProgramRun) -> String {
    format!(
        "Model {}, weights of {}; cache and activations in {}. SparQ: {}. {} decode steps at each \
         depth.\n",
        run.model,
        bytes(run.model_bytes as f64),
        run.dtype.name(),
        run.label(),
        run.steps
    )
}

/// The explanation of the columns of [`rates`].
pub const COLUMNS: &str = "\
prompt: read in chunks into an empty cache, the key sketch of SparQ included. decode: steps of one
token until the next token is on the host, after so many positions. SparQ / dense: the rates
divided. llama.cpp: its rate on the same file and machine, with dense attention.
";
