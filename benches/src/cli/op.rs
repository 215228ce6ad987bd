//! `sparq-bench op` and `sparq-bench backends`: decode steps of attention.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use sparq::methods::{Components, GroupScore};
use sparq::{RowFormat, Sketch};
use sparq_device::DeviceChoice;
use sparq_measure::attention::{self, Case, Row, Run, Scope, Setup};
use sparq_measure::memory::DeviceMemory;
use sparq_measure::shape::{CacheType, Shape};
use sparq_measure::timing::Pace;
use sparq_output::files::OutputFile;

use super::args::{DeviceArgs, OutputArgs, check_positive, name_of, print};
use crate::baselines::Baselines;
use crate::presets::{Budget, Grid, Group, Preset};
use crate::report::{self, Bench, Head, Report};
use crate::tables::{op as tables, summary};

/// Arguments of `sparq-bench op`.
#[derive(Args, Debug)]
pub struct OpArgs {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Arguments of `sparq-bench backends`, which are also arguments of `op`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Preset of shapes and settings
    #[arg(long, value_enum, default_value = "quick")]
    preset: Preset,
    /// Shape, instead of those of the preset; may be repeated
    #[arg(long = "shape", value_name = "B,H,H_KV,D,S")]
    shapes: Vec<Shape>,
    /// Element types of K and V, instead of those of the preset
    #[arg(long = "dtype", value_delimiter = ',', value_name = "TYPES")]
    dtypes: Vec<CacheType>,
    /// Key sketches, instead of those of the preset
    #[arg(
        long = "sketch",
        value_delimiter = ',',
        value_name = "SKETCHES",
        value_parser = name_of::<Sketch>(["full", "8bits", "4bits"])
    )]
    sketches: Vec<Sketch>,
    /// Formats of K and V
    #[arg(
        long = "rows",
        value_delimiter = ',',
        value_name = "FORMATS",
        value_parser = name_of::<RowFormat>(["float", "int8"])
    )]
    rows: Vec<RowFormat>,
    /// Group scores, instead of those of the preset
    #[arg(
        long = "group-score",
        value_delimiter = ',',
        value_name = "SCORES",
        value_parser = name_of::<GroupScore>(["probabilities", "logits"])
    )]
    group_scores: Vec<GroupScore>,
    /// Rules by which a group of heads selects components, instead of those of the preset
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "RULES",
        value_parser = name_of::<Components>(["sum_abs", "abs_sum"])
    )]
    components: Vec<Components>,
    /// r for every shape
    #[arg(long, requires = "top_k", value_name = "R")]
    rank: Option<usize>,
    /// k for every shape
    #[arg(long, requires = "rank", value_name = "K")]
    top_k: Option<usize>,
    /// Select r and k per shape to move at most this share of the bytes of dense attention, such as
    /// 0.125
    #[arg(long, conflicts_with = "rank", value_name = "SHARE")]
    compression: Option<f64>,
    /// Measure layers that share positions too: attention over given positions, and this many
    /// layers of which one selects, as the time of one layer on average
    #[arg(long, value_name = "LAYERS", value_parser = clap::value_parser!(u16).range(2..))]
    sharing: Option<u16>,
    /// Seconds to measure each row
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Measure eager calls and dense attention of burn on every shape, without the limits of the
    /// preset
    #[arg(long)]
    everything: bool,
    /// GiB of memory for buffers [default: 24 on a GPU, half of the free memory on a CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    /// Last-level cache of the device in MiB [default: 50 on a GPU, as reported by the system on a
    /// CPU]
    #[arg(long, value_name = "MIB")]
    cache_mib: Option<f64>,
    /// Output of a script of benches/baselines to show beside the times; it must share a shape with
    /// the run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `sparq-bench op`.
pub fn op(args: &OpArgs, command: String) -> Result<()> {
    let plan = Plan::new(&args.run, command, Bench::Op)?;
    let run = plan.run(&args.device.device)?;
    let report = plan.finish(vec![run])?;
    for run in &report.runs {
        print(&tables::details(run, report.baselines.as_ref()).text())?;
        let stages = tables::stages(run);
        if !stages.is_empty() {
            print(&format!("\n{}", stages.text()))?;
        }
        if report.preset == Preset::Goals {
            let goals = summary::goals(run, report.baselines.as_ref());
            print(&format!("\n{}", goals.text()))?;
        }
        for line in tables::skipped(run).into_iter().chain(tables::notes(run)) {
            print(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

/// Runs `sparq-bench backends`.
pub fn backends(args: &RunArgs, command: String) -> Result<()> {
    let plan = Plan::new(args, command, Bench::Backends)?;
    let devices = sparq_device::available();
    if devices.is_empty() {
        bail!(
            "expected an available device, found none; this build supports {:?}",
            sparq_device::built_in()
        );
    }
    let runs = devices
        .iter()
        .map(|device| plan.run(device))
        .collect::<Result<_>>()?;
    let report = plan.finish(runs)?;
    print(&tables::devices(&report).text())?;
    for run in &report.runs {
        for line in tables::skipped(run) {
            print(&format!("{}: {line}\n", run.device))?;
        }
    }
    Ok(())
}

/// The cases, baselines and output of a command line, checked before the measurement begins.
struct Plan<'a> {
    args: &'a RunArgs,
    cases: Vec<Case>,
    output: Option<OutputFile>,
    /// The report without runs.
    report: Report,
}

impl<'a> Plan<'a> {
    fn new(args: &'a RunArgs, command: String, bench: Bench) -> Result<Self> {
        check_positive("--seconds", args.seconds)?;
        check_positive("--memory-gib", args.memory_gib)?;
        check_positive("--cache-mib", args.cache_mib)?;
        let cases = args.grid().cases()?;
        let keys: Vec<_> = cases.iter().map(|case| (case.shape, case.dtype)).collect();
        let compare = args.compare.as_deref();
        let baselines = compare
            .map(|path| Baselines::read(path, &keys))
            .transpose()?;
        Ok(Self {
            args,
            cases,
            output: args.output.create()?,
            report: Report {
                head: Head::now(bench, command, args.output.commit.clone()),
                preset: args.preset,
                runs: vec![],
                baselines,
            },
        })
    }

    fn run(&self, device: &DeviceChoice) -> Result<Run> {
        let args = self.args;
        let (pace, rotate) = (args.preset.pace(), args.preset.rotates());
        let setup = Setup {
            device: device.clone(),
            memory: DeviceMemory::estimate(device, args.memory_gib, args.cache_mib, rotate),
            pace: Pace {
                seconds: args.seconds.unwrap_or(pace.seconds),
                ..pace
            },
            scope: match args.everything {
                true => Scope::ALL,
                false => args.preset.scope(),
            },
        };
        let mut first = true;
        attention::run(&setup, &self.cases, |bandwidth, rows| {
            if std::mem::take(&mut first) {
                eprintln!("{device}: {}", tables::bandwidth(bandwidth));
            }
            for row in rows {
                eprintln!("{device}: {}", progress(row));
            }
        })
        .with_context(|| device.to_string())
    }

    /// Completes the report and writes it to the output file, if there is one.
    fn finish(self, runs: Vec<Run>) -> Result<Report> {
        let report = Report {
            runs,
            ..self.report
        };
        if let Some(output) = self.output {
            output.finish_with(&report::to_json(&report)?)?;
        }
        Ok(report)
    }
}

fn progress(row: &Row) -> String {
    let result = match (row.median_us(), &row.skipped) {
        (Some(us), _) => format!("{us:.1} us"),
        (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
    };
    let (shape, dtype, mode) = (row.shape, row.dtype.name(), row.mode.name());
    format!("{shape} {dtype} {mode} {}: {result}", row.label())
}

impl RunArgs {
    fn grid(&self) -> Grid {
        fn or<T: Clone>(given: &[T], preset: Vec<T>) -> Vec<T> {
            match given.is_empty() {
                true => preset,
                false => given.to_vec(),
            }
        }
        let preset = self.preset.grid();
        let fixed = self.rank.zip(self.top_k);
        Grid {
            shapes: or(&self.shapes, preset.shapes),
            dtypes: or(&self.dtypes, preset.dtypes),
            sketches: or(&self.sketches, preset.sketches),
            rows: or(&self.rows, preset.rows),
            groups: match self.group_scores.is_empty() && self.components.is_empty() {
                true => preset.groups,
                false => {
                    let scores = or(&self.group_scores, vec![Group::PAPER.score]);
                    let rules = or(&self.components, vec![Group::PAPER.components]);
                    let pairs = |score| {
                        let rules = rules.clone().into_iter();
                        rules.map(move |components| Group { score, components })
                    };
                    scores.into_iter().flat_map(pairs).collect()
                }
            },
            budget: match (fixed, self.compression) {
                (Some((rank, top_k)), _) => Budget::Fixed { rank, top_k },
                (None, Some(share)) => Budget::Share(share),
                (None, None) => preset.budget,
            },
            sharing: self.sharing.map(usize::from),
        }
    }
}
