//! The table of the README: whole models first, then attention, with rows that SparQ loses.

use sparq::{Sketch, SparqConfig};
use sparq_measure::attention::{MethodName, Row};
use sparq_measure::model::{ModelName, RunShape, StepRow};
use sparq_measure::shape::{CacheType, Shape};

use super::performance::{commit, day, machine};
use super::text::wrap;
use super::{Named, Results};
use crate::report::{E2eReport, Head, Report};
use crate::tables::summary;
use sparq_output::numbers::{digits, or_dash};
use sparq_output::table::Table;

/// The rows of the table: the name of a report, and one of its runs or shapes.
const ROWS: [(&str, Measurement); 8] = [
    ("h100-e2e-8b", step(ModelName::Llama3, 1, 4096)),
    ("h100-e2e-8b", step(ModelName::Llama3, 1, 32_768)),
    ("h100-e2e-8b", step(ModelName::Llama3, 1, 131_072)),
    ("h100-e2e-7b", step(ModelName::Llama2, 1, 65_536)),
    ("h100-e2e-7b", step(ModelName::Llama2, 16, 4096)),
    ("h100-field", attention(1, 4096, CacheType::F16)),
    ("h100-field", attention(8, 131_072, CacheType::F16)),
    ("cpu-2cores", attention(1, 16_384, CacheType::F32)),
];

const SKETCH: Sketch = Sketch::Bits4;

/// A whole decode step of a model, or attention of one decode step.
#[derive(Clone, Copy)]
enum Measurement {
    Step(RunShape),
    Attention(Shape, CacheType),
}

const fn step(model: ModelName, batch: usize, seq_len: usize) -> Measurement {
    Measurement::Step(RunShape {
        model,
        batch,
        seq_len,
    })
}

/// Attention with 32 query heads and 8 KV heads.
const fn attention(batch: usize, seq_len: usize, dtype: CacheType) -> Measurement {
    Measurement::Attention(Shape::new(batch, 32, 8, 128, seq_len), dtype)
}

/// A row of the table, times in microseconds.
struct Line<'a> {
    head: &'a Head,
    machine: String,
    what: String,
    batch: usize,
    seq_len: usize,
    dense: Option<f64>,
    sparq: f64,
    settings: SparqConfig,
    torch: Option<f64>,
    floor: f64,
}

/// The rendered part of the README.
pub fn readme(results: &Results) -> String {
    let lines: Vec<Line<'_>> = ROWS
        .into_iter()
        .filter_map(|(name, what)| match what {
            Measurement::Step(run) => step_line(find(&results.steps, name)?, run),
            Measurement::Attention(shape, dtype) => {
                attention_line(find(&results.operations, name)?, (shape, dtype))
            }
        })
        .collect();
    if lines.is_empty() {
        return "No results yet.\n".into();
    }
    let headings = "machine | what | B | S | dense | SparQ | PyTorch dense | PyTorch / SparQ \
        | SparQ floor";
    let mut table = Table::new(headings.split(" | "));
    for line in &lines {
        table.row([
            line.machine.clone(),
            line.what.clone(),
            line.batch.to_string(),
            line.seq_len.to_string(),
            line.dense.map_or("-".into(), time),
            time(line.sparq),
            line.torch.map_or("-".into(), time),
            or_dash(line.torch.map(|torch| torch / line.sparq)),
            time(line.floor),
        ]);
    }
    format!("{}\n{}", table.markdown(), notes(&lines))
}

fn find<'a, R>(reports: &'a [Named<R>], name: &str) -> Option<&'a R> {
    let named = reports.iter().find(|named| named.name == name)?;
    Some(&named.report)
}

fn step_line(report: &E2eReport, run: RunShape) -> Option<Line<'_>> {
    let rows = || report.run.rows.iter().filter(|row| row.run == run);
    let dense = rows().find(|row| row.method == MethodName::Dense);
    let of_sketch = |row: &&StepRow| row.settings.is_some_and(|found| found.sketch == SKETCH);
    let sparq = rows().find(of_sketch)?;
    Some(Line {
        head: &report.head,
        machine: machine(report.run.gpu.as_deref(), &report.head),
        what: format!("{} decode step, {}", run.model.name(), sparq.dtype.name()),
        batch: run.batch,
        seq_len: run.seq_len,
        dense: dense.and_then(StepRow::step_us),
        sparq: sparq.step_us()?,
        settings: sparq.settings?,
        torch: report.baselines.as_ref().and_then(|rows| rows.best_us(run)),
        floor: sparq.floor_us,
    })
}

fn attention_line(report: &Report, case: (Shape, CacheType)) -> Option<Line<'_>> {
    let run = report.runs.first()?;
    let dense = summary::fastest(run, case, |row| row.method == MethodName::Dense);
    let of_sketch = |row: &Row| row.settings.is_some_and(|found| found.sketch == SKETCH);
    let (sparq, sparq_us) =
        summary::fastest(run, case, |row| row.is_default_sparq() && of_sketch(row))?;
    let (shape, dtype) = case;
    Some(Line {
        head: &report.head,
        machine: machine(run.gpu.as_deref(), &report.head),
        what: format!(
            "attention, {} heads, {} KV heads, {}",
            shape.heads,
            shape.kv_heads,
            dtype.name()
        ),
        batch: shape.batch,
        seq_len: shape.seq_len,
        dense: dense.map(|(_, us)| us),
        sparq: sparq_us,
        settings: sparq.settings?,
        torch: report
            .baselines
            .as_ref()
            .and_then(|rows| rows.best_us(case)),
        floor: run.bandwidth.floor_us(sparq.bytes),
    })
}

/// The settings, and the machines, commits and commands of the table.
fn notes(lines: &[Line<'_>]) -> String {
    let mut settings: Vec<(SparqConfig, &str)> = Vec::new();
    let mut sources: Vec<(String, Vec<String>)> = Vec::new();
    for line in lines {
        if settings.iter().all(|(known, _)| *known != line.settings) {
            settings.push((line.settings, &line.machine));
        }
        let source = format!(
            "{}, {}, commit {}",
            line.machine,
            day(line.head),
            commit(line.head)
        );
        let command = format!("`{}`", short(&line.head.command));
        match sources.iter_mut().find(|(known, _)| *known == source) {
            None => sources.push((source, vec![command])),
            Some((_, commands)) if commands.contains(&command) => {}
            Some((_, commands)) => commands.push(command),
        }
    }
    let sizes = |config: &SparqConfig| format!("r = {} and k = {}", config.rank, config.top_k);
    let mut sparq = String::new();
    for (index, (config, machine)) in settings.iter().enumerate() {
        sparq += &match index {
            0 => sizes(config),
            _ => format!(" ({machine}: {})", sizes(config)),
        };
    }
    let text = format!(
        "Medians. PyTorch / SparQ above 1 means that SparQ is faster; dense is the dense attention \
         of this project. SparQ reads a 4-bit sketch, with {sparq}. Floor: the bytes that SparQ has \
         to move, divided by the memory bandwidth measured in the same run. Models have random \
         weights. All results: [docs/performance.md](docs/performance.md)."
    );
    let mut text = wrap(&text, "") + "\n\n";
    for (source, commands) in sources {
        text += &wrap(&format!("- {source}: {}", commands.join(", ")), "  ");
        text.push('\n');
    }
    text
}

/// A command with only the device and the preset of its options.
fn short(command: &str) -> String {
    let mut options = command.split(" --");
    let program = options.next().unwrap_or_default().to_owned();
    let kept =
        options.filter(|option| option.starts_with("device ") || option.starts_with("preset "));
    kept.fold(program, |line, option| format!("{line} --{option}"))
}

/// A time with its unit.
fn time(us: f64) -> String {
    match us < 999.5 {
        true => format!("{} us", digits(us)),
        false => format!("{} ms", digits(us / 1e3)),
    }
}
