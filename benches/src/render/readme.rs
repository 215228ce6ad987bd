//! The table of the README: whole models beside PyTorch and llama.cpp, and attention alone.

use sparq::{Sketch, SparqConfig};
use sparq_measure::attention::{MethodName, Row};
use sparq_measure::model::{ModelName, RunShape, StepRow};
use sparq_measure::shape::{CacheType, Shape};
use sparq_measure::stats::percentile;

use super::performance::{commit, day, machine};
use super::text::wrap;
use super::{Named, Results};
use crate::baselines::ProgramKey;
use crate::report::{E2eReport, Head, PrefillReport, ProgramReport, Report, StartReport};
use crate::start::CacheState;
use crate::tables::{prefill, start, summary};
use sparq_output::numbers::{digits, or_dash};
use sparq_output::table::Table;

/// A row: the beginning of the names of reports, and one of their runs, lengths or shapes.
type Wanted = (&'static str, Measurement);

/// The rows of the table that have a result.
const WANTED: [Wanted; 10] = [
    ("h200-e2e", step(ModelName::Llama3, 1, 4096)),
    ("h200-e2e", step(ModelName::Llama3, 1, 131_072)),
    ("h200-e2e", step(ModelName::Llama2, 1, 65_536)),
    ("h200-e2e", step(ModelName::Llama2, 16, 4096)),
    ("h200-prefill", Measurement::Prefill(8192)),
    ("h200-prefill", Measurement::Prefill(131_072)),
    ("h200-start", Measurement::Start(CacheState::Cold)),
    ("h200-start", Measurement::Start(CacheState::Warm)),
    ("h100-field", attention(8, 131_072, CacheType::F16)),
    ("cpu-llama-q4_0", Measurement::Program(7680)),
];

const SKETCH: Sketch = Sketch::Bits4;

/// A measured figure.
#[derive(Clone, Copy)]
enum Measurement {
    /// A whole decode step of a model.
    Step(RunShape),
    /// Attention of one decode step.
    Attention(Shape, CacheType),
    /// The prefill of a prompt of this length.
    Prefill(usize),
    /// A decode step of a checkpoint in the program, at this depth.
    Program(usize),
    /// The time to the first token of a fresh process.
    Start(CacheState),
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
    measurement: Measurement,
    head: &'a Head,
    machine: String,
    what: String,
    batch: usize,
    seq_len: usize,
    dense: Option<f64>,
    /// The time of SparQ and its settings, if it takes part.
    sparq: Option<(f64, SparqConfig)>,
    baseline: Option<f64>,
    floor: Option<f64>,
}

/// The rendered part of the README.
pub fn readme(results: &Results) -> String {
    let lines = lines(&WANTED, results);
    if lines.is_empty() {
        return "No results yet.\n".into();
    }
    let headings = "machine | what | B | S | dense | SparQ | baseline | gain | floor";
    let mut table = Table::new(headings.split(" | "));
    let shown = |us: Option<f64>| us.map_or("-".into(), time);
    for line in &lines {
        let sparq = line.sparq.map(|(us, _)| us);
        let gain = line.baseline.zip(sparq.or(line.dense));
        table.row([
            line.machine.clone(),
            line.what.clone(),
            line.batch.to_string(),
            line.seq_len.to_string(),
            shown(line.dense),
            shown(sparq),
            shown(line.baseline),
            or_dash(gain.map(|(baseline, us)| baseline / us)),
            shown(line.floor),
        ]);
    }
    format!("{}\n{}", table.markdown(), notes(&lines))
}

/// The rows that have a result.
fn lines<'a>(wanted: &[Wanted], results: &'a Results) -> Vec<Line<'a>> {
    let line = |&(prefix, measurement): &Wanted| match measurement {
        Measurement::Step(run) => first(&results.steps, prefix, |report| step_line(report, run)),
        Measurement::Attention(shape, dtype) => first(&results.operations, prefix, |report| {
            attention_line(report, (shape, dtype))
        }),
        Measurement::Prefill(seq_len) => first(&results.prefills, prefix, |report| {
            prefill_line(report, seq_len)
        }),
        Measurement::Program(depth) => first(&results.programs, prefix, |report| {
            program_line(report, depth)
        }),
        Measurement::Start(cache) => {
            first(&results.starts, prefix, |report| start_line(report, cache))
        }
    };
    wanted.iter().filter_map(line).collect()
}

/// The line of the first report whose name begins with `prefix` and that has one.
fn first<'a, R>(
    reports: &'a [Named<R>],
    prefix: &str,
    line: impl Fn(&'a R) -> Option<Line<'a>>,
) -> Option<Line<'a>> {
    let mut named = reports
        .iter()
        .filter(|named| named.name.starts_with(prefix));
    named.find_map(|named| line(&named.report))
}

fn step_line(report: &E2eReport, run: RunShape) -> Option<Line<'_>> {
    let rows = || report.run.rows.iter().filter(|row| row.run == run);
    let dense = rows().find(|row| row.method == MethodName::Dense);
    let of_sketch = |row: &&StepRow| row.settings.is_some_and(|found| found.sketch == SKETCH);
    let sparq = rows().find(of_sketch)?;
    Some(Line {
        measurement: Measurement::Step(run),
        head: &report.head,
        machine: machine(report.run.gpu.as_deref(), &report.head),
        what: format!("{} decode step, {}", run.model.name(), sparq.dtype.name()),
        batch: run.batch,
        seq_len: run.seq_len,
        dense: dense.and_then(StepRow::step_us),
        sparq: Some((sparq.step_us()?, sparq.settings?)),
        baseline: report
            .baselines
            .as_ref()
            .and_then(|rows| rows.best_us(&run)),
        floor: Some(sparq.floor_us),
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
        measurement: Measurement::Attention(shape, dtype),
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
        sparq: Some((sparq_us, sparq.settings?)),
        baseline: report
            .baselines
            .as_ref()
            .and_then(|rows| rows.best_us(&case)),
        floor: Some(run.bandwidth.floor_us(sparq.bytes)),
    })
}

fn prefill_line(report: &PrefillReport, seq_len: usize) -> Option<Line<'_>> {
    let run = &report.run;
    let row = run.rows.iter().find(|row| row.seq_len == seq_len)?;
    let key = prefill::key(run, row);
    // 10^12 operations per second are 10^6 per microsecond.
    let floor = row.flops.total() / prefill::peak_tflops(report) / 1e6;
    Some(Line {
        measurement: Measurement::Prefill(seq_len),
        head: &report.head,
        machine: machine(run.gpu.as_deref(), &report.head),
        what: format!("{} prefill, {}", run.model, run.dtype.name()),
        batch: 1,
        seq_len,
        dense: Some(row.median_us()?),
        sparq: None,
        baseline: report
            .baselines
            .as_ref()
            .and_then(|rows| rows.best_us(&key)),
        floor: Some(floor),
    })
}

fn program_line(report: &ProgramReport, depth: usize) -> Option<Line<'_>> {
    let run = &report.run;
    let row = run.decode.iter().find(|row| row.depth == depth)?;
    Some(Line {
        measurement: Measurement::Program(depth),
        head: &report.head,
        machine: machine(run.gpu.as_deref(), &report.head),
        what: format!("{} decode step", run.model),
        batch: 1,
        seq_len: depth,
        dense: Some(row.dense.median_us),
        sparq: Some((row.sparq.median_us, run.settings)),
        baseline: report
            .baselines
            .as_ref()
            .and_then(|rows| rows.best_us(&ProgramKey::Decode { depth })),
        floor: None,
    })
}

fn start_line(report: &StartReport, cache: CacheState) -> Option<Line<'_>> {
    let run = &report.run;
    let rows = run.rows.iter().filter(|row| row.cache == cache);
    let mut times: Vec<f64> = rows
        .filter_map(|row| Some(row.phases?.first_token_us))
        .collect();
    times.sort_by(f64::total_cmp);
    Some(Line {
        measurement: Measurement::Start(cache),
        head: &report.head,
        machine: machine(run.gpu.as_deref(), &report.head),
        what: format!(
            "{} first token, {} cache, {}",
            run.model,
            cache.name(),
            run.dtype?.name()
        ),
        batch: 1,
        seq_len: run.prompt_tokens?,
        dense: Some(percentile(&times, 0.5)?),
        sparq: None,
        baseline: start::torch_us(report),
        floor: None,
    })
}

/// The settings, and the machines, commits and commands of the table.
fn notes(lines: &[Line<'_>]) -> String {
    let mut settings: Vec<(SparqConfig, &str)> = Vec::new();
    let mut sources: Vec<(String, Vec<String>)> = Vec::new();
    for line in lines {
        if let Some((_, config)) = line.sparq
            && settings.iter().all(|(known, _)| *known != config)
        {
            settings.push((config, &line.machine));
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
    let mut text = "Medians. Dense is the dense attention of this project".to_owned();
    if !sparq.is_empty() {
        text += &format!("; SparQ reads a 4-bit sketch, with {sparq}");
    }
    let has = |wanted: fn(&Measurement) -> bool| lines.iter().any(|line| wanted(&line.measurement));
    let program = has(|measurement| matches!(measurement, Measurement::Program(_)));
    text += match program {
        true => {
            ". Baseline: dense attention of PyTorch; of llama.cpp for GGUF files, with trained \
             weights"
        }
        false => ". Baseline: dense attention of PyTorch",
    };
    text += ". Gain: baseline over SparQ, else over dense. Floor: the bytes that SparQ moves over \
             the measured bandwidth";
    if has(|measurement| matches!(measurement, Measurement::Prefill(_))) {
        text += "; of a prefill, its operations at the peak of products";
    }
    text += ".";
    if has(|measurement| matches!(measurement, Measurement::Start(_))) {
        text += " First token: cold with an empty kernel cache.";
    }
    if !program {
        text += " Models have random weights.";
    }
    text += " Results: [docs/performance.md](docs/performance.md).";
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
    match us {
        us if us < 999.5 => format!("{} us", digits(us)),
        us if us < 999.5e3 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}
