//! `sparq-bench e2e`: whole decode steps of models.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use sparq::ops::BlockFormat;
use sparq::{RowFormat, Sketch, SparqConfig};
use sparq_measure::memory::DeviceMemory;
use sparq_measure::model::{self, RunShape, Setup, StepRow};
use sparq_measure::shape::CacheType;
use sparq_measure::timing::Pace;

use super::args::{DeviceArgs, OutputArgs, check_positive, name_of, parse_format, print};
use crate::baselines::Baselines;
use crate::report::{self, Bench, E2eReport, Head};
use crate::tables::e2e as tables;

/// The rows of the verifications that are timed: drafts of 1 to 11 tokens.
const VERIFIED_ROWS: [usize; 6] = [2, 3, 5, 7, 9, 12];

/// Parses a share of accepted tokens.
fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse::<f64>()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// Arguments of `sparq-bench e2e`.
#[derive(Args, Debug)]
pub struct E2eArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Model (llama3-8b, llama2-7b or another of `make-model`), B and S; may be repeated [default:
    /// six runs for a GPU with 80 GB]
    #[arg(long = "run", value_name = "MODEL,B,S")]
    runs: Vec<RunShape>,
    /// Element type of activations, K and V, and of weights without --weights
    #[arg(long, value_enum, default_value = "f16")]
    dtype: CacheType,
    /// Format of packed weights, such as q8_0 or q4_k
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    weights: Option<BlockFormat>,
    /// Key sketches of SparQ, each compared with dense attention
    #[arg(
        long = "sketch",
        value_delimiter = ',',
        value_name = "SKETCHES",
        default_value = "4bits,full",
        value_parser = name_of::<Sketch>(["full", "8bits", "4bits"])
    )]
    sketches: Vec<Sketch>,
    /// Storage of K and V of SparQ
    #[arg(
        long,
        value_name = "ROWS",
        default_value = "float",
        value_parser = name_of::<RowFormat>(["float", "int8"])
    )]
    rows: RowFormat,
    /// r [default: a quarter of the head dimension of the model]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// k
    #[arg(long, default_value_t = 128, value_name = "K")]
    top_k: usize,
    /// Also time the verification of drafts by SparQ, and show lossless decoding if a drafted token
    /// is accepted with these probabilities. With random weights they cannot be measured
    #[arg(long, value_delimiter = ',', value_name = "SHARES", value_parser = share)]
    acceptance: Vec<f64>,
    /// GiB of memory for weights and caches [default: 76 on a GPU, half of the free memory on a
    /// CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    /// Output of benches/baselines/e2e_baseline.py to show beside the times
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `sparq-bench e2e`.
pub fn e2e(args: &E2eArgs, command: String) -> Result<()> {
    let runs = match args.runs.is_empty() {
        true => RunShape::ALL.to_vec(),
        false => args.runs.clone(),
    };
    let settings = args.settings(&runs)?;
    check_positive("--memory-gib", args.memory_gib)?;
    let compare = args.compare.as_deref();
    let baselines = compare
        .map(|path| Baselines::read(path, &runs))
        .transpose()?;
    let output = args.output.create()?;
    let head = Head::now(Bench::E2e, command, args.output.commit.clone());
    let device = &args.device.device;
    let memory_gib = args.memory_gib.or(device.is_gpu().then_some(76.0));
    let setup = Setup {
        device: device.clone(),
        memory: DeviceMemory::estimate(device, memory_gib, None, true),
        pace: Pace::BRIEF,
        dtype: args.dtype,
        weights: args.weights,
        settings,
        verified_rows: match args.acceptance.is_empty() {
            true => Vec::new(),
            false => VERIFIED_ROWS.to_vec(),
        },
    };
    let progress = |row: &StepRow| eprintln!("{device}: {}", progress(row));
    let run = model::run(&setup, &runs, progress).with_context(|| device.to_string())?;
    let report = E2eReport {
        head,
        run,
        baselines,
    };
    if let Some(output) = output {
        output.finish_with(&report::to_json(&report)?)?;
    }
    print(&format!(
        "{}\n{}\n{}",
        tables::steps(&report.run, report.baselines.as_ref()).text(),
        tables::breakdown(&report.run).text(),
        tables::COLUMNS
    ))?;
    if !args.acceptance.is_empty() {
        print(&format!(
            "\n{}",
            tables::lossless(&report.run, &args.acceptance).text()
        ))?;
    }
    let skipped = tables::skipped(&report.run);
    for line in skipped.into_iter().chain(tables::notes(&report.run)) {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

fn progress(row: &StepRow) -> String {
    let result = match (row.step_us(), &row.skipped) {
        (Some(us), _) => format!("{:.2} ms", us / 1e3),
        (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
    };
    format!("{} {}: {result}", row.run, row.label())
}

impl E2eArgs {
    /// SparQ's settings, valid for every run.
    fn settings(&self, runs: &[RunShape]) -> Result<Vec<SparqConfig>> {
        let head_dim = |run: &RunShape| run.model.config().head_dim;
        let largest = runs.iter().map(head_dim).max().unwrap_or(1);
        let rank = self.rank.unwrap_or((largest / 4).max(1));
        let sketches = self.sketches.iter();
        let settings: Vec<SparqConfig> = sketches
            .map(|&sketch| {
                SparqConfig::new(rank, self.top_k)
                    .with_sketch(sketch)
                    .with_rows(self.rows)
            })
            .collect();
        for run in runs {
            for config in &settings {
                let valid = config.validate(head_dim(run));
                valid.with_context(|| format!("the settings do not fit {}", run.model.name()))?;
            }
        }
        Ok(settings)
    }
}
