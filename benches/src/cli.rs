//! The command line, of the program `sparq-bench` and of `cargo bench`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sparq::methods::{Components, GroupScore};
use sparq::{Sketch, SparqConfig};

use crate::buffers::Room;
use crate::compare;
use crate::e2e::{self, model::RunShape, peers::StepPeers, report::E2eReport};
use crate::fit;
use crate::op::{self, Setup};
use crate::peers::Peers;
use crate::preset::{Budget, Case, Grid, Group, Preset, Scope};
use crate::provenance;
use crate::render;
use crate::report::{self, Bench, Head, Report, Run};
use crate::shape::{CacheType, Shape};
use crate::timing::Pace;
use sparq_device::DeviceChoice;
use sparq_output::files::OutputFile;

const EXAMPLES: &str = "\
Examples:
  sparq-bench op                                   the quick preset on the default device
  sparq-bench op --device cuda --preset field --json benches/results/h100.json
  sparq-bench op --device cuda --preset goals --compare dense.json
  sparq-bench op --shape 1,32,8,128,32768 --dtype f16 --rank 32 --top-k 128 --sketch 4bits
  sparq-bench backends                             every device of this build and machine in one table
  sparq-bench e2e --device cuda --compare e2e.json --json benches/results/h100-e2e.json
  sparq-bench e2e --run tiny,1,512 --dtype f32     a small model, in seconds
  sparq-bench fit benches/results/h100.json        the figures of the cost model for what was measured
  sparq-bench render                               benches/results/*.json as tables and plots
  sparq-bench render --check                       whether they are up to date

Exit codes: 0 done, 1 `render --check` found a difference, 2 usage error or bad input.";

/// Time decode steps of attention, dense and SparQ, against the memory bandwidth of the same machine.
#[derive(Parser, Debug)]
#[command(name = "sparq-bench", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What `cargo bench` hands to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One decode step on one device: dense, burn's own dense attention and SparQ, eager and captured
    Op(OpArgs),
    /// The same on every device of this build and machine, in one table
    Backends(RunArgs),
    /// A whole decode step of a model with random weights: dense and SparQ, call by call and captured, and its parts
    E2e(E2eArgs),
    /// Fit the cost model that chooses between dense attention and SparQ to results of `op`
    Fit(FitArgs),
    /// Make the tables and plots of the documentation from benches/results/*.json
    Render(RenderArgs),
}

#[derive(Args, Debug)]
struct OpArgs {
    /// Device to measure: flex, ndarray, cuda[:N], vulkan[:N], wgpu[:N], metal[:N], rocm[:N], of which a build has some
    #[arg(
        long,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    device: DeviceChoice,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Shapes and settings
    #[arg(long, value_enum, default_value = "quick")]
    preset: Preset,
    /// Shape in place of the preset's; may be repeated
    #[arg(long = "shape", value_name = "B,H,H_KV,D,S")]
    shapes: Vec<Shape>,
    /// Types of K and V in place of the preset's
    #[arg(long = "dtype", value_delimiter = ',', value_name = "TYPES")]
    dtypes: Vec<CacheType>,
    /// Key sketches in place of the preset's
    #[arg(
        long = "sketch",
        value_delimiter = ',',
        value_name = "SKETCHES",
        value_parser = name_of::<Sketch>(["full", "8bits", "4bits"])
    )]
    sketches: Vec<Sketch>,
    /// Group scores in place of the preset's
    #[arg(
        long = "group-score",
        value_delimiter = ',',
        value_name = "SCORES",
        value_parser = name_of::<GroupScore>(["probabilities", "logits"])
    )]
    group_scores: Vec<GroupScore>,
    /// How a group of heads agrees on components, in place of the preset's
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "WAYS",
        value_parser = name_of::<Components>(["sum_abs", "abs_sum"])
    )]
    components: Vec<Components>,
    /// r for every shape
    #[arg(long, requires = "top_k", value_name = "R")]
    rank: Option<usize>,
    /// k for every shape
    #[arg(long, requires = "rank", value_name = "K")]
    top_k: Option<usize>,
    /// r and k for each shape so that at most this share of dense's bytes is read, such as 0.125
    #[arg(long, conflicts_with = "rank", value_name = "SHARE")]
    compression: Option<f64>,
    /// Seconds to measure each row
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Measure eager calls and burn's dense attention on every shape, also where the preset leaves them out
    #[arg(long)]
    everything: bool,
    /// GiB that buffers may take [default: 24 on a GPU, half of what is free on a CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    /// Last-level cache of the device in MiB [default: 50 on a GPU, what the system says on a CPU]
    #[arg(long, value_name = "MIB")]
    cache_mib: Option<f64>,
    /// Output of a script of benches/peers to put beside the figures; its shapes must be among those measured
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The commit that is measured [default: what git says in the current folder]
    #[arg(long, env = "SPARQ_COMMIT")]
    commit: Option<String>,
}

#[derive(Args, Debug)]
struct E2eArgs {
    /// Device to measure: flex, ndarray, cuda[:N], vulkan[:N], wgpu[:N], metal[:N], rocm[:N], of which a build has some
    #[arg(
        long,
        env = "BURN_DEVICE",
        default_value = "flex",
        value_name = "NAME[:N]"
    )]
    device: DeviceChoice,
    /// Model, B and S: llama3-8b, llama2-7b or tiny; may be repeated [default: six runs, for a GPU with 80 GB]
    #[arg(long = "run", value_name = "MODEL,B,S")]
    runs: Vec<RunShape>,
    /// Type of weights, K and V
    #[arg(long, value_enum, default_value = "f16")]
    dtype: CacheType,
    /// Key sketches of SparQ, each beside dense attention
    #[arg(
        long = "sketch",
        value_delimiter = ',',
        value_name = "SKETCHES",
        default_value = "4bits,full",
        value_parser = name_of::<Sketch>(["full", "8bits", "4bits"])
    )]
    sketches: Vec<Sketch>,
    /// r [default: a quarter of the model's head_dim]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// k
    #[arg(long, default_value_t = 128, value_name = "K")]
    top_k: usize,
    /// GiB that weights and caches may take [default: 76 on a GPU, half of what is free on a CPU]
    #[arg(long, value_name = "GIB")]
    memory_gib: Option<f64>,
    /// Output of benches/peers/e2e_baseline.py to put beside the figures
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The commit that is measured [default: what git says in the current folder]
    #[arg(long, env = "SPARQ_COMMIT")]
    commit: Option<String>,
}

#[derive(Args, Debug)]
struct FitArgs {
    /// Results of `sparq-bench op` or `backends`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Device to fit [default: each in the files]
    #[arg(long, value_name = "NAME[:N]")]
    device: Option<String>,
}

#[derive(Args, Debug)]
struct RenderArgs {
    /// The repository's folder
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
    /// Change nothing; fail if something would change
    #[arg(long)]
    check: bool,
}

/// Runs the program with the arguments of this process; `bench` is the subcommand that `cargo bench --bench` stands for.
pub fn main(bench: Option<&'static str>) -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(bench) = bench {
        arguments.insert(1, bench.into());
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output; clap knows which is which.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let typed = arguments.iter().skip(2);
    let typed = typed
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| argument != "--bench");
    let outcome = match (&cli.command, bench) {
        (Command::Render(args), _) => render(args),
        (Command::Fit(args), _) => fit(args).map(|()| ExitCode::SUCCESS),
        (Command::Op(args), _) => {
            let command = provenance::command(&program(bench, "op"), typed);
            op(args, command).map(|()| ExitCode::SUCCESS)
        }
        (Command::E2e(args), _) => {
            let command = provenance::command(&program(bench, "e2e"), typed);
            steps(args, command).map(|()| ExitCode::SUCCESS)
        }
        (Command::Backends(args), _) => {
            let command = provenance::command(&program(bench, "backends"), typed);
            backends(args, command).map(|()| ExitCode::SUCCESS)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The part of the command line that is not the user's.
fn program(bench: Option<&str>, subcommand: &str) -> String {
    match bench {
        Some(bench) => format!("cargo bench --bench {bench} --"),
        None => format!("sparq-bench {subcommand}"),
    }
}

fn op(args: &OpArgs, command: String) -> Result<()> {
    let plan = Plan::new(&args.run, command, Bench::Op)?;
    let run = plan.run(&args.device)?;
    let report = plan.finish(vec![run])?;
    for run in &report.runs {
        print(&compare::details(run, report.peers.as_ref()).text())?;
        let stages = compare::stages(run);
        if !stages.is_empty() {
            print(&format!("\n{}", stages.text()))?;
        }
        if report.preset == Preset::Goals {
            let goals = render::goals(run, report.peers.as_ref());
            print(&format!("\n{}", goals.text()))?;
        }
        let lines = compare::skipped(run)
            .into_iter()
            .map(|line| format!("not measured: {line}"));
        for line in lines.chain(compare::notes(run)) {
            print(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

fn backends(args: &RunArgs, command: String) -> Result<()> {
    let plan = Plan::new(args, command, Bench::Backends)?;
    let devices = sparq_device::available();
    if devices.is_empty() {
        bail!(
            "expected a device that answers; this build has {:?}",
            sparq_device::built_in()
        );
    }
    let runs = devices
        .iter()
        .map(|device| plan.run(device))
        .collect::<Result<_>>()?;
    let report = plan.finish(runs)?;
    print(&compare::devices(&report).text())?;
    for run in &report.runs {
        for line in compare::skipped(run) {
            print(&format!("not measured on {}: {line}\n", run.device))?;
        }
    }
    Ok(())
}

fn steps(args: &E2eArgs, command: String) -> Result<()> {
    let runs = match args.runs.is_empty() {
        true => RunShape::ALL.to_vec(),
        false => args.runs.clone(),
    };
    let largest = runs
        .iter()
        .map(|run| run.model.heads().2)
        .max()
        .unwrap_or(1);
    let rank = args.rank.unwrap_or((largest / 4).max(1));
    let settings: Vec<SparqConfig> = args
        .sketches
        .iter()
        .map(|&sketch| SparqConfig::new(rank, args.top_k).with_sketch(sketch))
        .collect();
    for (run, config) in runs
        .iter()
        .flat_map(|run| settings.iter().map(move |it| (run, it)))
    {
        config
            .validate(run.model.heads().2)
            .with_context(|| format!("the settings do not fit {}", run.model.name()))?;
    }
    check_positive("--memory-gib", args.memory_gib)?;
    let peers = args
        .compare
        .as_deref()
        .map(|path| StepPeers::read(path, &runs))
        .transpose()?;
    let output = args.json.as_deref().map(OutputFile::create).transpose()?;
    let head = Head::now(Bench::E2e, command, args.commit.clone());
    let device = &args.device;
    let setup = e2e::Setup {
        device: device.clone(),
        room: Room::likely(
            device,
            args.memory_gib.or(device.is_gpu().then_some(76.0)),
            None,
            true,
        ),
        pace: Pace::BRIEF,
        dtype: args.dtype,
        settings,
    };
    let run = e2e::run(&setup, &runs, |row| {
        let (model, batch, seq_len) = (row.run.model.name(), row.run.batch, row.run.seq_len);
        let result = match (row.step_us(), &row.skipped) {
            (Some(us), _) => format!("{:.2} ms", us / 1e3),
            (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
        };
        eprintln!(
            "{device}: {model} B={batch} S={seq_len} {}: {result}",
            row.label()
        );
    })
    .with_context(|| format!("{device}"))?;
    let report = E2eReport { head, run, peers };
    if let Some(output) = output {
        output.finish_with(&report::to_json(&report)?)?;
    }
    print(&format!(
        "{}\n{}\n",
        e2e::steps(&report.run, report.peers.as_ref()).text(),
        e2e::breakdown(&report.run).text()
    ))?;
    let skipped = e2e::skipped(&report.run);
    let skipped = skipped.iter().map(|line| format!("not measured: {line}"));
    for line in skipped.chain(e2e::notes(&report.run)) {
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// Refuses what is no size.
fn check_positive(name: &str, value: Option<f64>) -> Result<()> {
    match value.filter(|value| !(value.is_finite() && *value > 0.0)) {
        Some(value) => bail!("{name}: expected a number above 0, found {value}"),
        None => Ok(()),
    }
}

fn fit(args: &FitArgs) -> Result<()> {
    let reports: Vec<Report> = args
        .files
        .iter()
        .map(|path| Report::read(path))
        .collect::<Result<_>>()?;
    let devices = match &args.device {
        Some(device) => vec![device.clone()],
        None => fit::devices(&reports),
    };
    for device in devices {
        let found = fit::fit(&reports, &device)?;
        print(&format!("{device}\n\n{}\n{}\n", found.table.text(), found))?;
    }
    Ok(())
}

fn render(args: &RenderArgs) -> Result<ExitCode> {
    let pages = render::pages(&args.root)?;
    let stale = render::differences(&args.root, &pages)?;
    if !args.check {
        render::write(&args.root, &pages)?;
        for path in &stale {
            eprintln!("changed {path}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    for path in &stale {
        eprintln!("{path} differs from what benches/results gives; run `sparq-bench render`");
    }
    Ok(ExitCode::from(u8::from(!stale.is_empty())))
}

/// What a command line asks for, checked before anything long begins.
struct Plan<'a> {
    args: &'a RunArgs,
    cases: Vec<Case>,
    peers: Option<Peers>,
    output: Option<OutputFile>,
    report: Report,
}

impl<'a> Plan<'a> {
    fn new(args: &'a RunArgs, command: String, bench: Bench) -> Result<Self> {
        check_positive("--seconds", args.seconds)?;
        check_positive("--memory-gib", args.memory_gib)?;
        check_positive("--cache-mib", args.cache_mib)?;
        let cases = args.grid().cases()?;
        let peers = match &args.compare {
            Some(path) => Some(
                Peers::read(path)?
                    .matching(&cases)
                    .with_context(|| format!("{}", path.display()))?,
            ),
            None => None,
        };
        let output = args.json.as_deref().map(OutputFile::create).transpose()?;
        let report = Report {
            head: Head::now(bench, command, args.commit.clone()),
            preset: args.preset,
            runs: vec![],
            peers: None,
        };
        Ok(Self {
            args,
            cases,
            peers,
            output,
            report,
        })
    }

    fn run(&self, device: &DeviceChoice) -> Result<Run> {
        let setup = Setup {
            device: device.clone(),
            room: self.args.room(device),
            pace: self.args.pace(),
            scope: match self.args.everything {
                true => Scope::ALL,
                false => self.args.preset.scope(),
            },
        };
        let mut first = true;
        op::run(&setup, &self.cases, |bandwidth, rows| {
            if std::mem::take(&mut first) {
                eprintln!("{device}: {}", compare::bandwidth(bandwidth));
            }
            for row in rows {
                let result = match (&row.median_us(), &row.skipped) {
                    (Some(us), _) => format!("{us:.1} us"),
                    (None, why) => format!("not measured: {}", why.as_deref().unwrap_or_default()),
                };
                let (shape, dtype, mode) = (row.shape, row.dtype.name(), row.mode.name());
                eprintln!("{device}: {shape} {dtype} {mode} {}: {result}", row.label());
            }
        })
        .with_context(|| format!("{device}"))
    }

    /// The report, written where it was asked for.
    fn finish(self, runs: Vec<Run>) -> Result<Report> {
        let report = Report {
            runs,
            peers: self.peers,
            ..self.report
        };
        if let Some(output) = self.output {
            output.finish_with(&report::to_json(&report)?)?;
        }
        Ok(report)
    }
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
            groups: self.groups(preset.groups),
            budget: match (fixed, self.compression) {
                (Some((rank, top_k)), _) => Budget::Fixed { rank, top_k },
                (None, Some(share)) => Budget::Share(share),
                (None, None) => preset.budget,
            },
        }
    }

    /// Every given group score with every given way to agree on components; what is not given is the paper's.
    fn groups(&self, preset: Vec<Group>) -> Vec<Group> {
        if self.group_scores.is_empty() && self.components.is_empty() {
            return preset;
        }
        let or = |given: bool| given.then_some(Group::PAPER);
        let scores = self.group_scores.iter().copied();
        let scores = scores.chain(or(self.group_scores.is_empty()).map(|group| group.score));
        scores
            .flat_map(|score| {
                let ways = self.components.iter().copied();
                let paper = or(self.components.is_empty()).map(|group| group.components);
                ways.chain(paper)
                    .map(move |components| Group { score, components })
            })
            .collect()
    }

    fn pace(&self) -> Pace {
        let pace = self.preset.pace();
        Pace {
            seconds: self.seconds.unwrap_or(pace.seconds),
            ..pace
        }
    }

    fn room(&self, device: &DeviceChoice) -> Room {
        let rotate = self.preset.rotates();
        Room::likely(device, self.memory_gib, self.cache_mib, rotate)
    }
}

/// Takes one of the names that a type has in JSON.
fn name_of<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names)
        .try_map(|name| serde_json::from_value::<T>(Value::String(name)))
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    // The io::Error stays in the chain: a closed pipe is told from it.
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}

/// Whether an error only says that the reader of standard output has gone.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    })
}
