//! The command line of the program `sparq-bench` and of `cargo bench`.

mod args;
mod e2e;
mod linear;
mod make_model;
mod op;
mod prefill;
mod program;
mod serve;
mod start;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use sparq_measure::attention::Run;
use sparq_measure::fit;

use crate::provenance;
use crate::render;
use crate::report::{self, Report};
use crate::tables;
use args::print;
use sparq_output::is_closed_pipe;

const EXAMPLES: &str = "\
Examples:
  sparq-bench op                                   the quick preset on the default device
  sparq-bench op --device cuda --preset field --json benches/results/h100.json
  sparq-bench op --device cuda --preset goals --compare dense.json
  sparq-bench op --shape 1,32,8,128,32768 --dtype f16 --rank 32 --top-k 128 --sketch 4bits
  sparq-bench backends                             every device of this build and machine in one table
  sparq-bench e2e --device cuda --compare e2e.json --json benches/results/h100-e2e.json
  sparq-bench e2e --run tiny,1,512 --dtype f32     a small model, in seconds
  sparq-bench linear --device cuda --rows 1,16     the linear layers of Llama 3 8B
  sparq-bench prefill llama3-8b --device cuda --compare prefill.json
  sparq-bench program smollm2.gguf --compare llama.json  prompts and decode steps beside llama.cpp
  sparq-bench make-model llama3-8b llama3-8b       a checkpoint with random weights, and prompts
  sparq-bench start --device cuda --model llama3-8b --prompt llama3-8b/p4096.txt
  sparq-bench serve --clients 64 --hang-up 10      load on a running `sparq serve`
  sparq-bench fit benches/results/h100.json        the figures of the cost model for these results
  sparq-bench render                               tables and plots from benches/results/*.json
  sparq-bench render --check                       fails if the tables and plots are out of date

Exit codes: 0 done, 1 `render --check` found a difference, 2 usage error or bad input.";

/// Time decode steps, prefill and starts, and relate them to the limits of the same machine.
#[derive(Parser, Debug)]
#[command(name = "sparq-bench", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Passed by `cargo bench` to every benchmark
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Attention of one decode step on one device: dense, burn's dense attention and SparQ, eager
    /// and captured
    Op(op::OpArgs),
    /// The same on every device of this build and machine, in one table
    Backends(op::RunArgs),
    /// A whole decode step of a model with random weights and its parts: dense and SparQ, eager and
    /// captured
    E2e(e2e::E2eArgs),
    /// The linear layers of a decode step, with their norms and epilogues
    Linear(linear::LinearArgs),
    /// The prefill of a model with random weights: tokens per second, and the share of the matrix
    /// peak
    Prefill(prefill::PrefillArgs),
    /// A checkpoint as the program `sparq` runs it: tokens per second of prompts, and of decode
    /// steps at several depths, dense and SparQ
    Program(program::ProgramArgs),
    /// The time to the first token of the program `sparq` in a fresh process, with an empty and
    /// with a filled kernel cache
    Start(start::StartArgs),
    /// Load on a running server: tokens per second, latencies, and whether every request succeeds
    Serve(serve::ServeArgs),
    /// Write a Hugging Face checkpoint with random weights in a published shape, and prompts for it
    MakeModel(make_model::MakeModelArgs),
    /// Fit the cost model that selects dense attention or SparQ to results of `op`
    Fit(FitArgs),
    /// Make the tables and plots of the documentation from benches/results/*.json
    Render(RenderArgs),
}

#[derive(Args, Debug)]
struct FitArgs {
    /// Results of `sparq-bench op` or `backends`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Device to fit [default: each device in the files]
    #[arg(long, value_name = "NAME[:N]")]
    device: Option<String>,
}

#[derive(Args, Debug)]
struct RenderArgs {
    /// Root folder of the repository
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
    /// Change nothing; fail if something would change
    #[arg(long)]
    check: bool,
}

/// Runs the program with the arguments of this process. `bench` is the subcommand that
/// `cargo bench --bench` stands for.
pub fn main(bench: Option<&'static str>) -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(bench) = bench {
        arguments.insert(1, bench.into());
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap reports help and version as errors too, but prints them to standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(&cli.command, &command_line(bench, &arguments)) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command, line: &str) -> Result<ExitCode> {
    match command {
        Command::Op(args) => op::op(args, line.to_owned())?,
        Command::Backends(args) => op::backends(args, line.to_owned())?,
        Command::E2e(args) => e2e::e2e(args, line.to_owned())?,
        Command::Linear(args) => linear::linear(args, line.to_owned())?,
        Command::Prefill(args) => prefill::prefill(args, line.to_owned())?,
        Command::Program(args) => program::program(args, line.to_owned())?,
        Command::Start(args) => start::start(args, line.to_owned())?,
        Command::Serve(args) => serve::serve(args)?,
        Command::MakeModel(args) => make_model::make_model(args)?,
        Command::Fit(args) => fit(args)?,
        Command::Render(args) => return render(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that repeats this run. Its first argument is the subcommand.
fn command_line(bench: Option<&str>, arguments: &[OsString]) -> String {
    let mut typed = arguments
        .iter()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .filter(|argument| argument != "--bench");
    let subcommand = typed.next().unwrap_or_default();
    let program = match bench {
        Some(bench) => format!("cargo bench --bench {bench} --"),
        None => format!("sparq-bench {subcommand}"),
    };
    provenance::command(&program, typed)
}

fn fit(args: &FitArgs) -> Result<()> {
    let reports: Vec<Report> = args
        .files
        .iter()
        .map(|path| report::read(path))
        .collect::<Result<_>>()?;
    let runs = || reports.iter().flat_map(|report| &report.runs);
    let mut devices: Vec<&str> = args.device.as_deref().into_iter().collect();
    if devices.is_empty() {
        for run in runs() {
            if !devices.contains(&run.device.as_str()) {
                devices.push(&run.device);
            }
        }
    }
    for device in devices {
        let runs: Vec<&Run> = runs().filter(|run| run.device == device).collect();
        let found = fit::fit(&runs, device)?;
        let steps = tables::fit::steps(&runs, &found.costs).text();
        print(&format!(
            "{device}\n\n{steps}\n{}\n",
            tables::fit::figures(&found)?
        ))?;
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
        eprintln!("{path} differs from the results in benches/results; run `sparq-bench render`");
    }
    Ok(ExitCode::from(u8::from(!stale.is_empty())))
}
